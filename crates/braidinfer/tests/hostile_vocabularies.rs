//! Changed vocabularies of GGUF files: an error that says what is wrong or a tokenizer, never a panic.

#[path = "../../braidinfer-model/tests/support/mutations.rs"]
mod mutations;
mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use braidinfer::Error;
use braidinfer::model::ModelSource;
use braidinfer::model::format::gguf::{Gguf, GgufWriter, Metadata, Value};
use braidinfer::text::{Tokenizer, TokenizerSettings};
use mutations::{File, GgufParts, changes, check_changed, gguf_changes, with_index};
use support::fixtures;

const CHANGED: &str = "changed.gguf";
const TEXTS: [&str; 3] =
    ["", "Hello  world, 2024!\r\n\tit's ababababab", "<s>\u{e9}\u{4e2d}\u{1f600}\u{2581}</s><|im_end|>\u{0}"];

/// Reads the tokenizer of a file, and takes a few texts there and back.
fn use_tokenizer(bytes: Vec<u8>) -> Result<(), Error> {
    let source = ModelSource::Gguf(Arc::new(Gguf::from_bytes(CHANGED, bytes.into())?));
    let Some(tokenizer) = Tokenizer::read(&source, &TokenizerSettings::read(&source)?)? else { return Ok(()) };
    for text in TEXTS {
        for add_special in [false, true] {
            let ids = tokenizer.encode(text, add_special)?;
            tokenizer.decode(&ids, false)?;
        }
    }
    let ids: Vec<u32> = (0..tokenizer.vocab_size() as u32 + 2).collect();
    tokenizer.decode(&ids, true)?;
    tokenizer.pieces(&ids);
    Ok(())
}

/// Every vocabulary of the fixtures.
fn vocabularies() -> Vec<File> {
    let folders = fs::read_dir(fixtures().join("gguf/vocabularies")).expect("the fixtures are in the repository");
    let paths = folders.map(|folder| folder.expect("the folder can be listed").path().join("vocab.gguf"));
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.is_file()).collect();
    paths.sort();
    let file = |path: &PathBuf| File::gguf(&path.display().to_string(), fs::read(path).expect("the file can be read"));
    paths.iter().map(file).collect()
}

#[test]
fn changed_vocabularies_never_panic() {
    let files = vocabularies();
    check_changed(CHANGED, 2000, with_index(files.len(), changes()), |(file, changes)| {
        use_tokenizer(files[*file].changed(changes))
    });
    let parts: Vec<GgufParts> = files.iter().map(GgufParts::of).collect();
    check_changed(CHANGED, 3000, with_index(parts.len(), gguf_changes()), |(file, changes)| {
        use_tokenizer(parts[*file].changed(changes))
    });
}

/// The tokenizer of `metadata` with one key changed.
fn with_key(metadata: &Metadata, key: &str, value: Value) -> Result<(), Error> {
    let mut metadata = metadata.clone();
    metadata.insert(key, value);
    let bytes = GgufWriter::begin(Vec::new(), &metadata, &[]).and_then(GgufWriter::finish);
    use_tokenizer(bytes.expect("memory can be written to"))
}

/// What once made the `tokenizers` crate panic.
#[test]
fn hostile_tokens_and_merges_do_no_harm() {
    let source = ModelSource::open(fixtures().join("gguf/vocabularies/llama-bpe/vocab.gguf"));
    let source = source.expect("the file is valid");
    let metadata = source.gguf().expect("it is a GGUF file").metadata();
    let tokens = metadata.texts("tokenizer.ggml.tokens").expect("they are texts").expect("the file has tokens");
    let bos = metadata.unsigned("tokenizer.ggml.bos_token_id").expect("it is a number").expect("the file has one");
    // Spelled like what templates of that crate are made of.
    for spelling in ["$B", "$A", "$1:2", "a:b", ":"] {
        let mut tokens = tokens.clone();
        tokens[bos as usize] = spelling;
        with_key(metadata, "tokenizer.ggml.tokens", tokens.iter().collect()).expect(spelling);
    }
    let longest = tokens.iter().max_by_key(|token| token.len()).expect("there are tokens");
    let merges = [format!("{longest} {longest}")].iter().collect();
    with_key(metadata, "tokenizer.ggml.merges", merges).expect("a merge that gives no token is ignored");
}
