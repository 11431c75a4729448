//! GGUF files that llama.cpp's own converter made, against `transformers` and against the directories they came from.

mod support;

use std::fs;
use std::path::PathBuf;

use braidinfer::executor::standard::ComputeDtype;
use braidinfer::model::ModelSource;
use braidinfer::text::{Tokenizer, TokenizerSettings};
use serde::Deserialize;
use support::{Fixture, argmax, distance, feed, fixtures, read_json};

/// Largest allowed difference of a logit from `transformers`.
const TOLERANCE: f32 = 5e-4;
/// Largest allowed difference from the same model read from its directory.
const SAME: f32 = 1e-4;

fn folder() -> PathBuf {
    fixtures().join("gguf/models")
}

/// Names of the files, of a split model the first shard only.
fn names() -> Vec<String> {
    let entries = fs::read_dir(folder()).expect("the fixtures are in the repository");
    let files = entries.map(|entry| entry.expect("the folder can be listed").file_name());
    let names = files.filter_map(|file| file.to_string_lossy().strip_suffix(".gguf").map(str::to_owned));
    let mut names: Vec<String> = names.filter(|name| !name.contains("-of-") || name.contains("-00001-of-")).collect();
    names.sort();
    assert!(names.len() >= 20, "expected at least 20 files, found {}", names.len());
    names
}

/// The file with what is expected of it: beside it where llama.cpp cannot say all that the directory says, else what
/// is expected of the directory.
fn open(name: &str) -> (Fixture, bool) {
    let source = ModelSource::open(folder().join(format!("{name}.gguf"))).unwrap_or_else(|error| panic!("{error}"));
    let (own_prompts, own_logits) =
        (folder().join(format!("{name}.expected.json")), folder().join(format!("{name}.expected.safetensors")));
    if own_prompts.is_file() {
        return (Fixture::with_expected(name, source, &own_prompts, &own_logits), false);
    }
    let original = fixtures().join("models").join(name.split("-split").next().unwrap_or(name));
    let (prompts, logits) = (original.join("expected.json"), original.join("expected.safetensors"));
    (Fixture::with_expected(name, source, &prompts, &logits), true)
}

#[test]
fn files_of_llama_cpp_give_the_logits_of_transformers() {
    for name in names() {
        let (fixture, same_as_directory) = open(&name);
        let mut executor = fixture.executor();
        let directory = same_as_directory.then(|| Fixture::open(name.split("-split").next().unwrap_or(&name)));
        let mut original = directory.map(|fixture| fixture.executor_with(ComputeDtype::F32, |_| {}));
        for (prompt, expected) in fixture.prompts.iter().enumerate() {
            let rows = feed(&mut executor, prompt, &expected.ids, usize::MAX >> 1);
            for (position, row) in rows.iter().enumerate() {
                let distance = distance(row, fixture.expected(prompt, position));
                assert!(distance <= TOLERANCE, "{name} prompt {prompt} position {position}: {distance:e}");
            }
            assert_eq!(expected.greedy.first(), Some(&argmax(&rows[rows.len() - 1])), "{name} prompt {prompt}");
            let Some(original) = &mut original else { continue };
            for (row, same) in rows.iter().zip(feed(original, prompt, &expected.ids, usize::MAX >> 1)) {
                let distance = distance(row, &same);
                assert!(distance <= SAME, "{name} prompt {prompt}: {distance:e} from the directory");
            }
        }
    }
}

#[derive(Deserialize)]
struct ExpectedIds {
    /// Ids of the tokens around every text.
    before: Vec<u32>,
    after: Vec<u32>,
    /// Texts beyond those that all vocabularies share.
    texts: Vec<String>,
    /// Of the shared texts, then of the own ones.
    ids: Vec<Vec<u32>>,
}

fn tokenizer(source: &ModelSource) -> Tokenizer {
    let settings = TokenizerSettings::read(source).unwrap_or_else(|error| panic!("{error}"));
    let tokenizer = Tokenizer::read(source, &settings).unwrap_or_else(|error| panic!("{error}"));
    tokenizer.expect("the model has a tokenizer")
}

#[test]
fn vocabularies_give_the_ids_of_the_original_tokenizers() {
    let folder = fixtures().join("gguf/vocabularies");
    let shared: Vec<String> = read_json(folder.join("texts.json"));
    assert!(shared.len() >= 200, "expected at least 200 texts, found {}", shared.len());
    let mut vocabularies = 0;
    for entry in fs::read_dir(&folder).expect("the fixtures are in the repository") {
        let folder = entry.expect("the folder can be listed").path();
        if !folder.is_dir() {
            continue;
        }
        vocabularies += 1;
        let name = folder.file_name().expect("folders have names").to_string_lossy().into_owned();
        let expected: ExpectedIds = read_json(folder.join("expected.json"));
        let from_gguf =
            tokenizer(&ModelSource::open(folder.join("vocab.gguf")).unwrap_or_else(|error| panic!("{error}")));
        let texts: Vec<&String> = shared.iter().chain(&expected.texts).collect();
        assert_eq!(texts.len(), expected.ids.len());
        let mut wrong = Vec::new();
        for (text, ids) in texts.into_iter().zip(&expected.ids) {
            let found = from_gguf.encode(text, false).expect("the text can be encoded");
            if found != *ids {
                wrong.push(format!("{text:?}: expected {ids:?}, found {found:?}"));
                continue;
            }
            let around: Vec<u32> = expected.before.iter().chain(ids).chain(&expected.after).copied().collect();
            assert_eq!(from_gguf.encode(text, true).expect("the text can be encoded"), around, "{name}: {text:?}");
        }
        assert!(wrong.is_empty(), "{name}: {} of {} texts:\n{}", wrong.len(), expected.ids.len(), wrong.join("\n"));
    }
    assert!(vocabularies >= 12, "expected at least 12 vocabularies, found {vocabularies}");
}
