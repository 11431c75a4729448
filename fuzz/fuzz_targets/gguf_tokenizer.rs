//! The tokenizer of a GGUF file: reading it, then a few texts there and back.

#![no_main]

use std::sync::Arc;

use braidinfer::Error;
use braidinfer::model::ModelSource;
use braidinfer::model::format::gguf::Gguf;
use braidinfer::text::{Tokenizer, TokenizerSettings};
use libfuzzer_sys::fuzz_target;

const LABEL: &str = "fuzzed.gguf";
const TEXTS: [&str; 3] = ["", "Hello  world, 2024!\r\n\tit's", "<s>\u{e9}\u{4e2d}\u{1f600}\u{2581}</s><|im_end|>\u{0}"];

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = read(bytes) {
        assert!(error.to_string().starts_with(LABEL), "{error}");
    }
});

fn read(bytes: &[u8]) -> Result<(), Error> {
    let source = ModelSource::Gguf(Arc::new(Gguf::from_bytes(LABEL, bytes.into())?));
    let Some(tokenizer) = Tokenizer::read(&source, &TokenizerSettings::read(&source)?)? else { return Ok(()) };
    for text in TEXTS {
        let ids = tokenizer.encode(text, true)?;
        tokenizer.decode(&ids, false)?;
    }
    let ids: Vec<u32> = (0..tokenizer.vocab_size() as u32 + 2).step_by(7).collect();
    tokenizer.decode(&ids, true)?;
    Ok(())
}
