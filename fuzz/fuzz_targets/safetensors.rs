//! A `config.json` and the header of a `model.safetensors`, with a NUL byte between them.

#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use braidinfer_model::{ModelError, ModelSource, Weights, describe};
use libfuzzer_sys::fuzz_target;

const LABEL: &str = "fuzzed";
/// Data for the tensors, so that inputs are headers only.
const DATA: usize = 1 << 18;

fuzz_target!(|input: &[u8]| {
    let end = input.iter().position(|byte| *byte == 0).unwrap_or(input.len());
    let (config, header) = (&input[..end], input.get(end + 1..).unwrap_or_default());
    if let Err(error) = read(config, header) {
        assert!(error.to_string().starts_with(LABEL), "{error}");
    }
});

fn read(config: &[u8], header: &[u8]) -> Result<(), ModelError> {
    let files: BTreeMap<String, Arc<[u8]>> =
        [("config.json".to_owned(), config.into()), ("model.safetensors".to_owned(), file(header).into())].into();
    let source = ModelSource::Memory { label: LABEL.to_owned(), files: Arc::new(files) };
    let (description, _) = describe(&source)?;
    let weights = Weights::open(&source, &description.spec, &description.names)?;
    for (_, _, view) in weights.iter() {
        view.read::<f32>()?;
    }
    Ok(())
}

/// A file with as much data as the header's own offsets ask for, within reason.
fn file(header: &[u8]) -> Vec<u8> {
    let text = header.get(size_of::<u64>()..).unwrap_or_default();
    let tensors: BTreeMap<String, serde_json::Value> = serde_json::from_slice(text).unwrap_or_default();
    let ends = tensors.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64());
    let data = ends.max().unwrap_or(0).min(DATA as u64) as usize;
    let mut bytes = header.to_vec();
    bytes.resize(header.len() + data, 0);
    bytes
}
