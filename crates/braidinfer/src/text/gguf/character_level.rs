//! BPE over characters from the tokens and merges of a GGUF file: spaces are U+2581, texts are not cut, and characters
//! that the vocabulary lacks become bytes.

use braidinfer_model::format::gguf::Metadata;
use tokenizers::Tokenizer;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::Replace;

use super::vocabulary::Vocabulary;
use super::{BosEosDefaults, byte_level};
use crate::{Error, Result};

const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
/// What stands for a space in tokens.
const SPACE: &str = "\u{2581}";

/// The tokenizer of a file. Appends assumptions to `notes`.
pub(super) fn tokenizer(metadata: &Metadata, vocabulary: &Vocabulary, notes: &mut Vec<String>) -> Result<Tokenizer> {
    let error = |fault: tokenizers::Error| Error::Text { path: metadata.path().to_owned(), message: fault.to_string() };
    let (vocab, merges) = byte_level::merges(metadata, vocabulary, notes)?;
    let mut builder = BPE::builder().vocab_and_merges(vocab, merges).byte_fallback(true).fuse_unk(true);
    let unknown = metadata.unsigned(UNKNOWN)?.and_then(|id| usize::try_from(id).ok());
    if let Some(unknown) = unknown.and_then(|id| vocabulary.tokens.get(id)) {
        builder = builder.unk_token(unknown.text.clone());
    }
    let mut tokenizer = Tokenizer::new(byte_level::build(metadata, builder)?);
    tokenizer.with_normalizer(Some(Replace::new(" ", SPACE).map_err(error)?)).map_err(error)?;
    tokenizer.with_decoder(Some(Sequence::new(vec![
        DecoderWrapper::Replace(Replace::new(SPACE, " ").map_err(error)?),
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Fuse(Fuse::new()),
    ])));
    // llama.cpp puts the first token before every text, whatever the file says.
    let defaults = BosEosDefaults { bos: true, eos: false, bos_id: 2, eos_id: 1 };
    byte_level::add_tokens(&mut tokenizer, metadata, vocabulary, defaults)?;
    Ok(tokenizer)
}
