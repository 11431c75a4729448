//! What lies at a path that is taken for a model, by its names and first bytes, so that a message can say what it is.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::format::gguf::Gguf;
use crate::{ModelError, Result};

/// How a file begins that is none of a model's.
const FIRST_BYTES: usize = 512;
/// Most bytes of the settings of an adapter.
const LARGEST_SETTINGS: usize = 1 << 16;

/// Fails if a directory holds something else than a model, or a model that is not complete, and says what to do.
pub(crate) fn check_directory(path: &Path) -> Result<()> {
    let names = names_in(path);
    let has = |name: &str| names.iter().any(|found| found == name);
    for name in names.iter().filter(|name| is_read(name)) {
        check_file(&path.join(name))?;
    }
    let refuse = |expected: &str, found: String| Err(missing(path, expected, found));
    if has("adapter_config.json") {
        let what = "an adapter (adapter_config.json)";
        return match has("config.json") {
            true => refuse(
                "a model alone",
                format!("{what} beside it: move it to a folder of its own, and name that as an adapter to use it"),
            ),
            false => refuse(
                "a model",
                format!("{what} alone: name its base model{}, with this folder as its adapter", base_of(path)),
            ),
        };
    }
    let has_weights = names.iter().any(|name| name.starts_with("model") && name.ends_with(".safetensors"));
    if has("config.json") && !has_weights && names.iter().any(|name| is_pickle(name)) {
        return refuse(
            "weights as safetensors",
            "weights as a Python pickle (.bin): save the model again with `save_pretrained`, which writes safetensors"
                .into(),
        );
    }
    if has("config.json") && !has("model.safetensors") && !has("model.safetensors.index.json") {
        let shards: Vec<&String> =
            names.iter().filter(|name| name.starts_with("model-") && name.ends_with(".safetensors")).collect();
        if let Some(first) = shards.first() {
            let found = format!("{} shards such as {first} without it: fetch it, too", shards.len());
            return refuse("`model.safetensors.index.json`, which names the shards", found);
        }
    }
    let is_original = |name: &String| name.starts_with("consolidated.") || name == "params.json";
    if !has("config.json") && names.iter().any(is_original) {
        let found =
            "weights in the layout of their maker (consolidated, params.json): take the files beside config.json";
        return refuse("a model in the layout of transformers", found.into());
    }
    let inner: Vec<&String> = names.iter().filter(|name| path.join(name).join("config.json").is_file()).collect();
    if !has("config.json") && !inner.is_empty() && !names.iter().any(|name| name.ends_with(".gguf")) {
        let inner: Vec<&str> = inner.into_iter().map(String::as_str).take(8).collect();
        return refuse("a model", format!("a directory of models; name one of them: {}", inner.join(", ")));
    }
    Ok(())
}

/// Fails if a file is a stand-in for one that was not fetched.
pub(crate) fn check_file(path: &Path) -> Result<()> {
    // What cannot be read is found later.
    let Some(first) = first_bytes(path, FIRST_BYTES) else { return Ok(()) };
    let text = String::from_utf8_lossy(&first);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let found = if text.starts_with("version https://git-lfs.github.com/spec/") {
        let size = text.lines().find_map(|line| line.strip_prefix("size "));
        let size = size.map_or_else(String::new, |size| format!(" for {size} bytes"));
        format!("a pointer of Git LFS{size}: fetch the file with `git lfs pull`")
    } else if text.starts_with("<!DOCTYPE") || text.starts_with("<!doctype") || text.starts_with("<html") {
        "a web page, which was saved in its place: download the file itself".to_owned()
    } else if path.extension().is_some_and(|kind| kind == "json")
        && (first.starts_with(&[0xff, 0xfe]) || first.starts_with(&[0xfe, 0xff]))
    {
        "text in UTF-16: save it as UTF-8".to_owned()
    } else {
        return Ok(());
    };
    Err(missing(path, "a file of a model", found))
}

/// What a directory has instead of a tokenizer that is read.
pub(crate) fn other_tokenizer(path: &Path) -> Option<String> {
    let names = names_in(path);
    let has = |name: &str| names.iter().any(|found| found == name);
    if has("tokenizer.json") {
        return None;
    }
    let advice = "take tokenizer.json from a copy of the model in the layout of transformers";
    if has("tokenizer.model") {
        return is_tiktoken(&path.join("tokenizer.model"))
            .then(|| format!("a list of tokens for tiktoken in tokenizer.model: {advice}"));
    }
    let file = names.iter().find(|name| *name == "tekken.json" || name.ends_with(".tiktoken"))?;
    let kind = if file == "tekken.json" { "Mistral's own tokenizer" } else { "a list of tokens for tiktoken" };
    Some(format!("{kind} in {file}: {advice}"))
}

/// Whether a file has lines of a token in base64 and a number.
fn is_tiktoken(path: &Path) -> bool {
    let first = first_bytes(path, FIRST_BYTES).unwrap_or_default();
    let line = first.split(|byte| *byte == b'\n').next().and_then(|line| std::str::from_utf8(line).ok());
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    line.and_then(|line| line.trim_end().split_once(' '))
        .is_some_and(|(token, rank)| !token.is_empty() && token.bytes().all(is_base64) && rank.parse::<u32>().is_ok())
}

/// Whether a file begins as GGUF files do.
pub(crate) fn is_gguf(path: &Path) -> bool {
    first_bytes(path, 4).is_some_and(|first| first == b"GGUF")
}

/// The first bytes of a file; `None` for what is no file, such as a pipe, from which reading could wait for ever.
fn first_bytes(path: &Path, most: usize) -> Option<Vec<u8>> {
    let mut first = Vec::new();
    fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    File::open(path).ok()?.take(most as u64).read_to_end(&mut first).ok()?;
    Some(first)
}

/// Fails if a GGUF file holds something else than a model.
pub(crate) fn check_gguf(gguf: &Gguf) -> Result<()> {
    let metadata = gguf.metadata();
    let kind = metadata.text("general.type")?.unwrap_or("model");
    let architecture = metadata.text("general.architecture")?.unwrap_or_default();
    let found = match (kind, architecture) {
        ("adapter", _) => "a LoRA adapter: name its base model, with this file as its adapter",
        ("mmproj", _) | (_, "clip") => "a projector for images or sound: name the file of the language model beside it",
        (_, "controlvector") => "a control vector, which changes a model and is none",
        ("imatrix", _) => "an importance matrix, which is used to quantize a model",
        _ => return Ok(()),
    };
    Err(missing(Path::new(metadata.path()), "a model", found.to_owned()))
}

fn missing(path: &Path, expected: &str, found: String) -> ModelError {
    ModelError::Missing { path: path.display().to_string(), expected: expected.to_owned(), found }
}

/// The names in a directory, in order. Names that are not UTF-8 are none of a model's.
pub(crate) fn names_in(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Whether a file of this name is read.
fn is_read(name: &str) -> bool {
    let is_settings =
        ["config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json"];
    is_settings.contains(&name) || name.ends_with(".safetensors") || name == "model.safetensors.index.json"
}

fn is_pickle(name: &str) -> bool {
    name.starts_with("pytorch_model") && name.ends_with(".bin")
}

/// The name of an adapter's base model, for a message.
fn base_of(path: &Path) -> String {
    let text = first_bytes(&path.join("adapter_config.json"), LARGEST_SETTINGS).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    config["base_model_name_or_path"].as_str().map_or_else(String::new, |base| format!(", {base}"))
}
