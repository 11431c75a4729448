//! SentencePiece models without their file: what llama.cpp keeps of one.

use braidinfer_model::format::gguf::{Array, Metadata, Scalar, Value};

use super::vocabulary::{TokenKind, Vocabulary};
use super::{Around, around};
use crate::text::sentencepiece::{PartKind, PartPiece, Parts, SentencePiece};
use crate::{Error, Result};

const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";

/// BPE by score. Every text begins with the first token unless the file says otherwise.
pub(super) fn bpe(metadata: &Metadata, vocabulary: Vocabulary) -> Result<SentencePiece> {
    build(metadata, vocabulary, false, Around { bos: true, eos: false })
}

/// The most probable cut.
pub(super) fn unigram(metadata: &Metadata, vocabulary: Vocabulary) -> Result<SentencePiece> {
    build(metadata, vocabulary, true, Around { bos: false, eos: true })
}

fn build(metadata: &Metadata, vocabulary: Vocabulary, unigram: bool, defaults: Around) -> Result<SentencePiece> {
    let (bos, eos) = around(metadata, defaults, &vocabulary)?;
    let unknown = unknown(metadata, &vocabulary)?;
    let flag = |name: &str, default: bool| {
        Ok::<_, Error>(metadata.flag(&format!("tokenizer.ggml.{name}"))?.unwrap_or(default))
    };
    let kind = |kind: TokenKind| match kind {
        TokenKind::Normal => PartKind::Normal,
        TokenKind::Unknown => PartKind::Unknown,
        TokenKind::Byte => PartKind::Byte,
        TokenKind::Unused => PartKind::Unused,
        TokenKind::Control => PartKind::Added { special: true },
        TokenKind::UserDefined => PartKind::Added { special: false },
    };
    let pieces = vocabulary.tokens.into_iter().map(|token| PartPiece {
        kind: kind(token.kind),
        text: token.text,
        score: token.score,
    });
    SentencePiece::from_parts(Parts {
        pieces: pieces.collect(),
        unknown,
        unigram,
        charsmap: charsmap(metadata)?,
        add_dummy_prefix: flag("add_space_prefix", true)?,
        remove_extra_whitespaces: flag("remove_extra_whitespaces", false)?,
        bos,
        eos,
    })
    .map_err(|message| Error::Text { path: metadata.path().to_owned(), message })
}

/// The token for text without one; a key names it where its kind does not.
fn unknown(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<u32> {
    let named = metadata.unsigned(UNKNOWN)?;
    let known = named.filter(|id| (*id as usize) < vocabulary.tokens.len()).map(|id| id as u32);
    let by_kind = || vocabulary.iter().find(|(_, token)| token.kind == TokenKind::Unknown).map(|(id, _)| id);
    known.or_else(by_kind).ok_or_else(|| {
        let found = named.map_or("nothing".into(), |id| format!("{id} of {} tokens", vocabulary.tokens.len()));
        metadata.error(UNKNOWN, "the id of the token for unknown text", found).into()
    })
}

fn charsmap(metadata: &Metadata) -> Result<Vec<u8>> {
    match metadata.get(CHARSMAP) {
        None => Ok(Vec::new()),
        Some(Value::Array(Array::Numbers { kind: Scalar::U8(_) | Scalar::I8(_), bytes })) => Ok(bytes.clone()),
        Some(_) => Err(metadata.error(CHARSMAP, "a list of bytes", "another value").into()),
    }
}
