//! `tokenizer.json`, a NUL byte, and `tokenizer_config.json`: reading them, then a few texts there and back.

#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use braidinfer::Error;
use braidinfer::model::ModelSource;
use braidinfer::text::{Tokenizer, TokenizerSettings};
use libfuzzer_sys::fuzz_target;

const LABEL: &str = "fuzzed";
const TEXTS: [&str; 3] = ["", "Hello  world, 2024!\r\n\tit's", "<s>\u{e9}\u{4e2d}\u{1f600}\u{2581}</s><|im_end|>\u{0}"];

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = read(bytes) {
        assert!(error.to_string().starts_with(LABEL), "{error}");
    }
});

fn read(bytes: &[u8]) -> Result<(), Error> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let mut files: BTreeMap<String, Arc<[u8]>> = BTreeMap::from([("tokenizer.json".to_owned(), bytes[..end].into())]);
    if let Some(config) = bytes.get(end + 1..) {
        files.insert("tokenizer_config.json".to_owned(), config.into());
    }
    let source = ModelSource::Memory { label: LABEL.to_owned(), files: Arc::new(files) };
    let Some(tokenizer) = Tokenizer::read(&source, &TokenizerSettings::read(&source)?)? else { return Ok(()) };
    for text in TEXTS {
        let ids = tokenizer.encode(text, true)?;
        tokenizer.decode(&ids, false)?;
    }
    let ids: Vec<u32> = (0..tokenizer.vocab_size().min(1 << 16) as u32 + 2).step_by(7).collect();
    tokenizer.decode(&ids, true)?;
    tokenizer.pieces(&ids);
    Ok(())
}
