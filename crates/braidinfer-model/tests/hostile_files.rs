//! Changed model files: an error that says what is wrong or a model, never a panic.

#[path = "support/mutations.rs"]
mod mutations;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use braidinfer_model::format::gguf::{Gguf, GgufWriter, Metadata, Value};
use braidinfer_model::{ModelError, ModelSource, Weights, describe};
use mutations::{File, GgufParts, changed_json, changes, check_changed, gguf_changes, json_changes, with_index};

const GGUF: &str = "changed.gguf";
const FOLDER: &str = "changed";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// Folders whose configs differ: plain, two rotary tables, factors for each frequency, a list of layers, stacked tensors.
const MODELS: [&str; 6] = ["llama-tied", "gemma3", "phi3-longrope", "llama3", "ministral", "qwen2-window"];
/// Files that differ in the same way.
const GGUF_MODELS: [&str; 9] =
    ["gemma", "gemma3", "granite", "llama-yarn", "llama3", "phi", "phi3-longrope", "qwen2", "smollm3"];

fn fixture(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Describes a model and reads all of its weights.
fn read(source: &ModelSource) -> Result<(), ModelError> {
    let (description, _) = describe(source)?;
    let weights = Weights::open(source, &description.spec, &description.names)?;
    for (_, _, view) in weights.iter() {
        view.read::<f32>()?;
    }
    Ok(())
}

fn read_gguf(bytes: Vec<u8>) -> Result<(), ModelError> {
    read(&ModelSource::Gguf(Arc::new(Gguf::from_bytes(GGUF, bytes.into())?)))
}

fn read_folder(config: Arc<[u8]>, weights: Arc<[u8]>) -> Result<(), ModelError> {
    let files = BTreeMap::from([(CONFIG.to_owned(), config), (WEIGHTS.to_owned(), weights)]);
    read(&ModelSource::Memory { label: FOLDER.to_owned(), files: Arc::new(files) })
}

/// A model of two files.
struct Folder {
    config: File,
    weights: File,
}

impl Folder {
    fn all() -> Vec<Self> {
        let file = |name: &str, file: &str| fixture(&format!("models/{name}/{file}"));
        let folder = |name| Self {
            config: File::json(name, file(name, CONFIG)),
            weights: File::safetensors(name, file(name, WEIGHTS)),
        };
        MODELS.into_iter().map(folder).collect()
    }

    fn config(&self) -> serde_json::Value {
        serde_json::from_slice(&self.config.bytes).expect("the fixture is JSON")
    }

    /// The header of the weights, and the data behind it.
    fn weights(&self) -> (serde_json::Value, &[u8]) {
        let (len, rest) = self.weights.bytes.split_first_chunk().expect("the file has a header");
        let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
        (serde_json::from_slice(header).expect("the fixture is JSON"), data)
    }
}

#[test]
fn the_unchanged_files_open() {
    for folder in Folder::all() {
        let opened = read_folder(folder.config.bytes.into(), folder.weights.bytes.into());
        opened.unwrap_or_else(|error| panic!("{error}"));
    }
    for name in GGUF_MODELS {
        read_gguf(fixture(&format!("gguf/models/{name}.gguf"))).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn changed_gguf_files_never_panic() {
    let file = |name: &str| File::gguf(name, fixture(&format!("gguf/models/{name}.gguf")));
    let files = GGUF_MODELS.map(file);
    check_changed(GGUF, 35_000, with_index(files.len(), changes()), |(file, changes)| {
        read_gguf(files[*file].changed(changes))
    });
    let parts = files.each_ref().map(GgufParts::of);
    check_changed(GGUF, 20_000, with_index(parts.len(), gguf_changes()), |(file, changes)| {
        read_gguf(parts[*file].changed(changes))
    });
}

#[test]
fn changed_safetensors_files_never_panic() {
    let folders = Folder::all();
    check_changed(FOLDER, 20_000, with_index(folders.len(), changes()), |(folder, changes)| {
        let folder = &folders[*folder];
        read_folder(folder.config.bytes.as_slice().into(), folder.weights.changed(changes).into())
    });
}

#[test]
fn changed_safetensors_headers_never_panic() {
    let folders = Folder::all();
    let weights: Vec<_> = folders.iter().map(Folder::weights).collect();
    check_changed(FOLDER, 15_000, with_index(folders.len(), json_changes()), |(folder, changes)| {
        let (header, data) = &weights[*folder];
        let header = changed_json(header, changes).to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
        read_folder(folders[*folder].config.bytes.as_slice().into(), file.into())
    });
}

#[test]
fn changed_configs_never_panic() {
    let folders = Folder::all();
    let configs: Vec<_> = folders.iter().map(Folder::config).collect();
    let weights: Vec<Arc<[u8]>> = folders.iter().map(|folder| folder.weights.bytes.as_slice().into()).collect();
    check_changed(FOLDER, 15_000, with_index(folders.len(), json_changes()), |(folder, changes)| {
        let config = changed_json(&configs[*folder], changes).to_string();
        read_folder(config.into_bytes().into(), Arc::clone(&weights[*folder]))
    });
    check_changed(FOLDER, 5000, with_index(folders.len(), changes()), |(folder, changes)| {
        read_folder(folders[*folder].config.changed(changes).into(), Arc::clone(&weights[*folder]))
    });
}

/// Files that once did harm: in `tests/hostile`, with what must be said of them.
#[test]
fn files_that_did_harm_are_refused() {
    for (name, expected) in [
        ("scalar-embedding.gguf", "tensor `token_embd.weight`: expected a row for each token, found a single number"),
        (
            "shard-number-00001-of-00002.gguf",
            "field `split.no`: expected a number below 2, the number of shards, found 18446744073709551615",
        ),
    ] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/hostile").join(name);
        let error = ModelSource::open(&path).and_then(|source| read(&source)).expect_err(name);
        assert_eq!(error.to_string(), format!("{}: {expected}", path.display()));
    }
}

/// The file of `metadata` without tensors.
fn written(metadata: &Metadata) -> Vec<u8> {
    GgufWriter::begin(Vec::new(), metadata, &[]).and_then(GgufWriter::finish).expect("memory can be written to")
}

#[test]
fn a_long_key_before_a_long_list_takes_no_time_to_speak_of() {
    let mut metadata = Metadata::new(GGUF.into());
    // Reading both takes a moment; copying the key for each entry would take minutes.
    metadata.insert("k".repeat(1 << 20), vec![""; 1 << 20].into_iter().collect::<Value>());
    let error = read_gguf(written(&metadata)).expect_err("the file has no model").to_string();
    assert_eq!(
        error,
        "changed.gguf: field `general.architecture`: expected the name of an architecture, found nothing"
    );
}

#[test]
fn lists_that_are_not_one_entry_per_layer_are_refused() {
    let sizes = ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"];
    let mut metadata = Metadata::new(GGUF.into());
    metadata.insert("general.architecture", "gemma2");
    sizes.iter().for_each(|size| drop(metadata.insert(format!("gemma2.{size}"), 2)));
    metadata.insert("gemma2.attention.sliding_window", 16);
    metadata.insert("gemma2.attention.sliding_window_pattern", &[true; 3][..]);
    let error = read_gguf(written(&metadata)).expect_err("the list is too long").to_string();
    let expected = "field `gemma2.attention.sliding_window_pattern`: expected 2 entries, one per layer, found 3";
    assert_eq!(error, format!("{GGUF}: {expected}"));
    metadata.insert("gemma2.attention.head_count", &[2, 2, 4][..]);
    let error = read_gguf(written(&metadata)).expect_err("layers differ").to_string();
    let expected = "field `gemma2.attention.head_count`: expected the same number for every layer";
    assert_eq!(error, format!("{GGUF}: {expected}, found 3 entries that differ"));
}
