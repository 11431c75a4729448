//! A GGUF file: its header, the description of its decoder, and every parameter.

#![no_main]

use std::sync::Arc;

use braidinfer_model::format::gguf::Gguf;
use braidinfer_model::{ModelError, ModelSource, Weights, describe};
use libfuzzer_sys::fuzz_target;

const LABEL: &str = "fuzzed.gguf";
/// Data for the tensors, so that inputs are headers only.
const DATA: usize = 1 << 18;

fuzz_target!(|header: &[u8]| {
    if let Err(error) = read(header) {
        assert!(error.to_string().starts_with(LABEL), "{error}");
    }
});

fn read(header: &[u8]) -> Result<(), ModelError> {
    let mut bytes = header.to_vec();
    bytes.resize(header.len() + DATA, 0);
    let source = ModelSource::Gguf(Arc::new(Gguf::from_bytes(LABEL, bytes.into())?));
    let (description, _) = describe(&source)?;
    let weights = Weights::open(&source, &description.spec, &description.names)?;
    for (_, _, view) in weights.iter() {
        view.read::<f32>()?;
    }
    Ok(())
}
