//! Mutated checkpoints: an error or a model, never a panic.

use std::fs;
use std::path::PathBuf;

use braidinfer_model::{ModelSource, Weights, describe};
use proptest::prelude::*;

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/llama-tied").join(name);
    fs::read(path).expect("the fixture is in the repository")
}

/// Opens a model of these two files and reads all of its weights.
fn open(config: &[u8], weights: &[u8]) -> Result<usize, braidinfer_model::ModelError> {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    fs::write(dir.path().join("config.json"), config).expect("the file can be written");
    fs::write(dir.path().join("model.safetensors"), weights).expect("the file can be written");
    let source = ModelSource::open(dir.path())?;
    let (description, _) = describe(&source)?;
    let weights = Weights::open(&source, &description.spec, &description.names)?;
    let mut values = 0;
    for (_, _, view) in weights.iter() {
        values += view.read::<f32>()?.len();
    }
    Ok(values)
}

/// Bytes of `original` with some of them replaced, and perhaps the end cut off.
fn mutated(original: Vec<u8>, within: usize) -> impl Strategy<Value = Vec<u8>> {
    let len = original.len();
    let changes = prop::collection::vec((0..within.min(len), any::<u8>()), 1..6);
    (changes, prop::option::weighted(0.1, 0..len)).prop_map(move |(changes, cut)| {
        let mut bytes = original.clone();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(cut.unwrap_or(len));
        bytes
    })
}

#[test]
fn the_unchanged_files_open() {
    assert!(open(&fixture("config.json"), &fixture("model.safetensors")).expect("the fixture is whole") > 10_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mutated_headers_never_panic(weights in mutated(fixture("model.safetensors"), 3000)) {
        if let Err(error) = open(&fixture("config.json"), &weights) {
            prop_assert!(error.to_string().contains("model.safetensors") || error.to_string().contains("tensor `"), "{}", error);
        }
    }

    #[test]
    fn mutated_configs_never_panic(config in mutated(fixture("config.json"), 2000)) {
        if let Err(error) = open(&config, &fixture("model.safetensors")) {
            prop_assert!(error.to_string().contains("config.json") || error.to_string().contains("tensor `"), "{}", error);
        }
    }

    #[test]
    fn digits_in_configs_never_panic(at in 0usize..2000, digits in "[0-9]{1,20}") {
        let mut config = fixture("config.json");
        let at = at % config.len();
        if let Some(offset) = config[at..].iter().position(u8::is_ascii_digit) {
            config.splice(at + offset..at + offset, digits.bytes());
        }
        if let Err(error) = open(&config, &fixture("model.safetensors")) {
            prop_assert!(error.to_string().contains("config.json") || error.to_string().contains("tensor `"), "{}", error);
        }
    }
}
