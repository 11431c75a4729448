//! Changed `tokenizer.json` files and the settings beside them: an error that names the file, or a tokenizer; never a panic,
//! and no work or memory without bounds.
//!
//! `BRAIDINFER_MUTATIONS=100000` tries that many.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, fs};

use braidinfer::executor::Kernels;
use braidinfer::model::{GenerationConfig, ModelSource, Weights, describe};
use braidinfer::text::{ChatTemplate, Tokenizer, TokenizerSettings};
use braidinfer::{Error, Llm, LoadOptions};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use support::fixtures;

const TOKENIZER: &str = "tokenizer.json";
const TEXTS: [&str; 4] =
    ["", "Hello  world, 2024!\r\n\tit's abababab", "<s>\u{e9}\u{4e2d}\u{1f600}\u{2581}</s>\u{0}", "Once"];

fn demo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../braidinfer-cli/demo-model")
}

/// The files of a folder.
fn files(folder: &Path) -> BTreeMap<String, Arc<[u8]>> {
    let entries = fs::read_dir(folder).expect("the folder is in the repository");
    let paths = entries.map(|entry| entry.expect("the folder can be listed").path()).filter(|path| path.is_file());
    let named = paths.map(|path| {
        let name = path.file_name().expect("files have names").to_string_lossy().into_owned();
        (name, fs::read(path).expect("the file can be read").into())
    });
    named.collect()
}

/// A tokenizer with one part of its own.
fn with_part(field: &str, part: Value) -> Result<(), Error> {
    let mut files = files(&demo());
    let mut tokenizer: Value = serde_json::from_slice(&files[TOKENIZER]).expect("it is JSON");
    tokenizer[field] = part;
    files.insert(TOKENIZER.into(), tokenizer.to_string().into_bytes().into());
    use_tokenizer(&source(files))
}

fn source(files: BTreeMap<String, Arc<[u8]>>) -> ModelSource {
    ModelSource::Memory { label: "changed".into(), files: Arc::new(files) }
}

/// Reads the tokenizer of a model, and takes a few texts there and back.
fn use_tokenizer(source: &ModelSource) -> Result<(), Error> {
    let settings = TokenizerSettings::read(source)?;
    let Some(tokenizer) = Tokenizer::read(source, &settings)? else { return Ok(()) };
    ChatTemplate::read(source, &settings, None)?;
    for text in TEXTS {
        for add_special in [false, true] {
            let ids = tokenizer.encode(text, add_special)?;
            tokenizer.decode(&ids, false)?;
        }
    }
    let ids: Vec<u32> = (0..300).chain([u32::MAX]).collect();
    tokenizer.decode(&ids, true)?;
    tokenizer.pieces(&ids);
    ids.iter().for_each(|id| drop((tokenizer.token_bytes(*id), tokenizer.is_special(*id))));
    Ok(())
}

/// Reads everything that describes a model.
fn use_settings(source: &ModelSource) -> Result<(), Error> {
    let (description, config) = describe(source)?;
    GenerationConfig::read(source, &config)?;
    Weights::open(source, &description.spec, &description.names)?;
    Ok(())
}

fn check_refused(outcome: Result<(), Error>, part: &str) {
    let error = outcome.expect_err(part).to_string();
    assert!(error.starts_with("changed/tokenizer.json: ") && error.contains(part), "{error}");
}

/// What makes the `tokenizers` crate panic is an error that names the file.
#[test]
fn panics_of_the_library_are_errors() {
    let merges = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"],
        "continuing_subword_prefix": "longer than b", "fuse_unk": false});
    check_refused(with_part("model", merges), "its settings made reading it fail: ");
    let strip = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    with_part("normalizer", strip).expect_err("it is no map of characters");
}

#[test]
fn replacements_that_multiply_a_text_are_refused() {
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    for (field, list) in [("normalizer", "normalizers"), ("decoder", "decoders")] {
        let part = json!({"type": "Sequence", list: vec![double.clone(); 50]});
        check_refused(with_part(field, part), &format!("field `{field}`: expected replacements"));
    }
}

/// They would be blamed on every request otherwise.
#[test]
fn sampling_values_of_the_model_name_their_file() {
    let values = [("temperature", json!(-1.0)), ("top_p", json!(7)), ("repetition_penalty", json!(0))];
    for (field, value) in values {
        let mut files = files(&demo());
        let config = json!({"do_sample": true, field: value}).to_string();
        files.insert("generation_config.json".into(), config.into_bytes().into());
        let options = LoadOptions { kernels: Kernels::Fused, force: true, ..LoadOptions::default() };
        let error = Llm::open(&source(files), &options, &|_, _| {}).err().expect(field).to_string();
        assert!(error.starts_with(&format!("changed/generation_config.json: field `{field}`: expected ")), "{error}");
    }
}

/// Expressions that search back for an exponential time end after a fixed number of steps.
#[test]
fn hostile_expressions_end() {
    for pattern in [r"(?:(?=a)a|a)*(?!a)b\1?", r"(a+)+\1$", r"((a|aa)+)+(?<!b)c"] {
        for behaviour in ["Isolated", "Removed"] {
            let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behaviour, "invert": false});
            let mut files = files(&demo());
            let mut tokenizer: Value = serde_json::from_slice(&files[TOKENIZER]).expect("it is JSON");
            tokenizer["pre_tokenizer"] = split;
            files.insert(TOKENIZER.into(), tokenizer.to_string().into_bytes().into());
            let source = source(files);
            let settings = TokenizerSettings::read(&source).expect("they are as before");
            let Ok(Some(tokenizer)) = Tokenizer::read(&source, &settings) else { continue };
            // An error or tokens, after bounded work.
            drop(tokenizer.encode(&"a".repeat(64), false));
        }
    }
}

/// A place in a JSON document.
fn place<'a>(value: &'a mut Value, rng: &mut SmallRng) -> &'a mut Value {
    let inside = match value {
        Value::Array(list) => list.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    };
    if inside == 0 || rng.random_bool(0.15) {
        return value;
    }
    let index = rng.random_range(0..inside);
    let inner = match value {
        Value::Array(list) => list.get_mut(index),
        Value::Object(map) => map.values_mut().nth(index),
        _ => None,
    };
    place(inner.expect("it was counted"), rng)
}

/// Parts that are valid somewhere, with values that are absurd.
fn part(rng: &mut SmallRng) -> Value {
    let parts = [
        json!(null),
        json!(-1),
        json!(u64::MAX),
        json!(1e308),
        json!(4_294_967_295u32),
        json!(""),
        json!("\u{0}\u{2581}"),
        json!([]),
        json!({}),
        json!([["a", "b"], ["", ""]]),
        json!({"type": "Strip", "content": "a", "start": u64::MAX, "stop": 3}),
        json!({"type": "Replace", "pattern": {"Regex": "(a|)*"}, "content": "aaa"}),
        json!({"type": "Prepend", "prepend": "\u{2581}\u{2581}"}),
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true}),
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        json!({"type": "ByteFallback"}),
        json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}),
        json!({"type": "BPEDecoder", "suffix": ""}),
        json!({"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "none", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": u64::MAX}),
        json!({"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0], ["", 0.0]], "byte_fallback": true}),
        json!({"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": true}),
        json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": [],
            "special_tokens": {"x": {"id": "x", "ids": [4_000_000_000u32], "tokens": ["x"]}}}),
        json!({"id": u32::MAX, "content": "", "single_word": true, "lstrip": true, "rstrip": true, "normalized": true,
            "special": true}),
    ];
    parts[rng.random_range(0..parts.len())].clone()
}

fn change(document: &mut Value, rng: &mut SmallRng) {
    let mut copy = document.clone();
    let other = place(&mut copy, rng).clone();
    let at = place(document, rng);
    match (rng.random_range(0..6), &mut *at) {
        (0, _) => *at = other,
        (1, Value::Object(map)) if !map.is_empty() => {
            let key = map.keys().nth(rng.random_range(0..map.len())).cloned();
            key.and_then(|key| map.remove(&key));
        }
        (1 | 2, Value::Array(list)) if !list.is_empty() => {
            let index = rng.random_range(0..list.len());
            let one = list[index].clone();
            list.push(one);
            list.swap_remove(index);
        }
        (3, Value::String(text)) => text.push_str("\u{2581}a"),
        (3, Value::Number(_)) => *at = json!(rng.random_range(0..100_000)),
        _ => *at = part(rng),
    }
}

fn cases() -> usize {
    env::var("BRAIDINFER_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(2000)
}

/// A few changes to one file of a model; how many were refused.
fn mutate(folder: &Path, name: &str, count: usize, read: fn(&ModelSource) -> Result<(), Error>) -> usize {
    let original = files(folder);
    let document: Value = serde_json::from_slice(&original[name]).expect("it is JSON");
    let mut refused = 0;
    for seed in 0..count as u64 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut document = document.clone();
        (0..rng.random_range(1..=3)).for_each(|_| change(&mut document, &mut rng));
        let mut files = original.clone();
        files.insert(name.into(), document.to_string().into_bytes().into());
        if let Err(error) = read(&source(files)) {
            let error = error.to_string();
            assert!(error.starts_with("changed"), "seed {seed} of {name}: {error}");
            refused += 1;
        }
    }
    refused
}

#[test]
fn changed_tokenizers_never_panic() {
    let small = fixtures().join("text/tokenizers/bytelevel");
    let refused =
        mutate(&small, TOKENIZER, cases(), use_tokenizer) + mutate(&demo(), TOKENIZER, cases() / 20, use_tokenizer);
    assert!(refused > cases() / 20, "{refused} refused");
}

#[test]
fn changed_settings_never_panic() {
    mutate(&demo(), "tokenizer_config.json", cases() / 20, use_tokenizer);
    for name in ["config.json", "generation_config.json"] {
        mutate(&demo(), name, cases(), use_settings);
    }
}
