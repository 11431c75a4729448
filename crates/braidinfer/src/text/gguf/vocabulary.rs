//! The vocabulary of a GGUF file.

use braidinfer_model::arch::gguf::ends_text;
use braidinfer_model::format::gguf::{Array, Metadata};

use crate::Result;

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const KINDS: &str = "tokenizer.ggml.token_type";
pub(super) const SCORES: &str = "tokenizer.ggml.scores";

/// The kind of a token (`enum llama_token_type` in `llama.h`, which is SentencePiece's).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    /// llama.cpp's number.
    pub(super) fn number(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }

    /// The kind of a token if the file does not say: a byte if it is spelled like one.
    pub(super) fn by_spelling(text: &str) -> Self {
        let byte = text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        if byte { Self::Byte } else { Self::Normal }
    }

    fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

#[derive(Debug)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) kind: TokenKind,
    pub(super) score: f32,
}

/// Tokens by id.
#[derive(Debug)]
pub(super) struct Vocabulary {
    pub(super) tokens: Vec<Token>,
}

impl Vocabulary {
    /// Reads the vocabulary. End-of-sequence tokens are control tokens regardless of the file; missing scores are 0.
    pub(super) fn read(metadata: &Metadata) -> Result<Self> {
        let texts = metadata.texts(TOKENS)?;
        let texts = texts.ok_or_else(|| metadata.error(TOKENS, "a list of texts", "nothing"))?;
        let kinds = same_length(metadata, KINDS, texts.len())?;
        let scores = same_length(metadata, SCORES, texts.len())?;
        let mut tokens = Vec::with_capacity(texts.len());
        for (id, text) in texts.into_iter().enumerate() {
            let kind = match kinds {
                _ if ends_text(text) => TokenKind::Control,
                Some(kinds) => kind(metadata, id, kinds.scalar(id).and_then(|kind| kind.to_json().as_i64()))?,
                None => TokenKind::by_spelling(text),
            };
            let score =
                scores.map_or(Some(0.0), |scores| scores.scalar(id)?.as_float().filter(|score| score.is_finite()));
            let score =
                score.ok_or_else(|| metadata.error(SCORES, "finite numbers", format!("another for token {id}")))?;
            tokens.push(Token { text: text.to_owned(), kind, score: score as f32 });
        }
        Ok(Self { tokens })
    }

    /// The tokens with their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Token)> {
        self.tokens.iter().enumerate().map(|(id, token)| (id as u32, token))
    }
}

/// The kind of a token according to the file.
fn kind(metadata: &Metadata, id: usize, number: Option<i64>) -> Result<TokenKind> {
    number.and_then(TokenKind::from_number).ok_or_else(|| {
        let found = number.map_or("no whole number".into(), |number| number.to_string());
        metadata.error(KINDS, "kinds from 1 to 6", format!("{found} for token {id}")).into()
    })
}

/// A list of numbers that must have one entry per token, if it exists.
fn same_length<'a>(metadata: &'a Metadata, key: &str, len: usize) -> Result<Option<&'a Array>> {
    let Some(numbers) = metadata.scalars(key)? else { return Ok(None) };
    if numbers.len() != len {
        return Err(metadata
            .error(key, format!("{len} numbers, one for each token"), numbers.len().to_string())
            .into());
    }
    Ok(Some(numbers))
}
