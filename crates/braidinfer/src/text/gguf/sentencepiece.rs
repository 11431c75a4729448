//! SentencePiece models from llama.cpp's GGUF keys.

use braidinfer_model::arch::gguf::form_of;
use braidinfer_model::format::gguf::{Array, Metadata, Scalar, Value};

use super::vocabulary::{Token, TokenKind, Vocabulary};
use super::{BosEosDefaults, bos_eos_ids};
use crate::text::sentencepiece::SentencePiece;
use crate::text::sentencepiece::parts::{PieceKind, PieceSpec, SentencePieceParts};
use crate::{Error, Result};

const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
/// Control tokens that never strip white space.
const NON_STRIPPING: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];
const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";

/// BPE by score. A BOS token is added to every text unless the file says otherwise.
pub(super) fn bpe(metadata: &Metadata, vocabulary: Vocabulary) -> Result<SentencePiece> {
    build(metadata, vocabulary, false, BosEosDefaults { bos: true, eos: false, bos_id: 1, eos_id: 2 })
}

/// Unigram segmentation.
pub(super) fn unigram(metadata: &Metadata, vocabulary: Vocabulary) -> Result<SentencePiece> {
    build(metadata, vocabulary, true, BosEosDefaults { bos: false, eos: true, bos_id: 0, eos_id: 1 })
}

fn build(
    metadata: &Metadata,
    vocabulary: Vocabulary,
    unigram: bool,
    defaults: BosEosDefaults,
) -> Result<SentencePiece> {
    let (bos, eos) = bos_eos_ids(metadata, defaults, &vocabulary)?;
    let unknown = unknown(metadata, &vocabulary)?;
    let flag = |name: &str, default: bool| {
        Ok::<_, Error>(metadata.flag(&format!("tokenizer.ggml.{name}"))?.unwrap_or(default))
    };
    let strips = form_of(metadata)?.is_some_and(|form| form.control_tokens_strip);
    let kind = |token: &Token| match token.kind {
        TokenKind::Normal => PieceKind::Normal,
        TokenKind::Unknown => PieceKind::Unknown,
        TokenKind::Byte => PieceKind::Byte,
        TokenKind::Unused => PieceKind::Unused,
        TokenKind::Control => {
            PieceKind::Added { special: true, rstrip: strips && !NON_STRIPPING.contains(&token.text.as_str()) }
        }
        TokenKind::UserDefined => PieceKind::Added { special: false, rstrip: false },
    };
    let pieces = vocabulary.tokens.into_iter().map(|token| PieceSpec {
        kind: kind(&token),
        text: token.text,
        score: token.score,
    });
    SentencePiece::from_parts(SentencePieceParts {
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

/// The unknown token: by its kind, or by a key. In `llama` models without both, it is the first token.
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
