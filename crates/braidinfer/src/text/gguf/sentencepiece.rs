//! SentencePiece models without their file: what llama.cpp keeps of one.

use braidinfer_model::arch::gguf::form_of;
use braidinfer_model::format::gguf::{Array, Metadata, Scalar, Value};

use super::vocabulary::{Token, TokenKind, Vocabulary};
use super::{Around, around};
use crate::text::sentencepiece::SentencePiece;
use crate::text::sentencepiece::parts::{PartKind, PartPiece, Parts};
use crate::{Error, Result};

const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
/// Control tokens that never swallow white space.
const KEEPING: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];
const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";

/// BPE by score. Every text begins with the first token unless the file says otherwise.
pub(super) fn bpe(metadata: &Metadata, vocabulary: Vocabulary) -> Result<SentencePiece> {
    build(metadata, vocabulary, false, Around { bos: true, eos: false, bos_id: 1, eos_id: 2 })
}

/// The most probable cut.
pub(super) fn unigram(metadata: &Metadata, vocabulary: Vocabulary) -> Result<SentencePiece> {
    build(metadata, vocabulary, true, Around { bos: false, eos: true, bos_id: 0, eos_id: 1 })
}

fn build(metadata: &Metadata, vocabulary: Vocabulary, unigram: bool, defaults: Around) -> Result<SentencePiece> {
    let (bos, eos) = around(metadata, defaults, &vocabulary)?;
    let unknown = unknown(metadata, &vocabulary)?;
    let flag = |name: &str, default: bool| {
        Ok::<_, Error>(metadata.flag(&format!("tokenizer.ggml.{name}"))?.unwrap_or(default))
    };
    let strips = form_of(metadata)?.is_some_and(|form| form.control_tokens_strip);
    let kind = |token: &Token| match token.kind {
        TokenKind::Normal => PartKind::Normal,
        TokenKind::Unknown => PartKind::Unknown,
        TokenKind::Byte => PartKind::Byte,
        TokenKind::Unused => PartKind::Unused,
        TokenKind::Control => {
            PartKind::Added { special: true, rstrip: strips && !KEEPING.contains(&token.text.as_str()) }
        }
        TokenKind::UserDefined => PartKind::Added { special: false, rstrip: false },
    };
    let pieces = vocabulary.tokens.into_iter().map(|token| PartPiece {
        kind: kind(&token),
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

/// The token for text without one; a key names it where its kind does not. Models in llama.cpp's kind without either have
/// it first.
fn unknown(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<u32> {
    let by_kind = || vocabulary.iter().find(|(_, token)| token.kind == TokenKind::Unknown).map(|(id, _)| id);
    let Some(named) = metadata.unsigned(UNKNOWN)? else { return Ok(by_kind().unwrap_or(0)) };
    let known = u32::try_from(named).ok().filter(|id| (*id as usize) < vocabulary.tokens.len());
    known.ok_or_else(|| {
        let found = format!("{named} of {} tokens", vocabulary.tokens.len());
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
