//! The bytes that a token adds to a text.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::Value as Json;
use tokenizers::Tokenizer;

/// How the tokens of the `tokenizers` crate represent bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each byte is a character of GPT-2's alphabet.
    ByteLevel,
    /// U+2581 is a space, and `<0xAB>` a byte.
    SentencePiece,
    /// Tokens are plain text.
    Plain,
}

impl Spelling {
    /// Derived from the components of the decoder.
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or_default();
        let has = |kind: &str| mentions(&decoder, kind);
        if has("ByteLevel") {
            Self::ByteLevel
        } else if has("ByteFallback") || has("Metaspace") {
            Self::SentencePiece
        } else {
            Self::Plain
        }
    }

    pub(super) fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            // A token with characters outside the alphabet is an added token, in plain text.
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = token.chars().map(|letter| alphabet().get(&letter).copied()).collect();
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::SentencePiece => match byte_of(token) {
                Some(byte) => vec![byte],
                None => token.replace('\u{2581}', " ").into_bytes(),
            },
            Self::Plain => token.as_bytes().to_vec(),
        }
    }
}

/// Whether a decoder, or a component of it, is of a kind.
fn mentions(decoder: &Json, kind: &str) -> bool {
    match decoder {
        Json::Object(fields) => {
            fields.get("type").and_then(Json::as_str) == Some(kind) || fields.values().any(|part| mentions(part, kind))
        }
        Json::Array(parts) => parts.iter().any(|part| mentions(part, kind)),
        _ => false,
    }
}

/// Parses `<0xAB>`.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's alphabet (`bytes_to_unicode` in openai/gpt-2, `encoder.py`): bytes that are visible characters in Latin-1
/// represent themselves, and the others are mapped to characters from U+0100 on.
fn alphabet() -> &'static HashMap<char, u8> {
    static ALPHABET: OnceLock<HashMap<char, u8>> = OnceLock::new();
    ALPHABET.get_or_init(|| {
        let visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let (visible, hidden): (Vec<u8>, Vec<u8>) = (0..=u8::MAX).partition(visible);
        let own = visible.into_iter().map(|byte| (char::from(byte), byte));
        own.chain(('\u{100}'..).zip(hidden)).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_the_alphabet() {
        assert_eq!(alphabet().len(), 256);
        assert_eq!(Spelling::ByteLevel.bytes("Ġthe"), b" the");
        assert_eq!(Spelling::ByteLevel.bytes("Ã©Ċ"), "é\n".as_bytes());
        assert_eq!(Spelling::ByteLevel.bytes("<|日本|>"), "<|日本|>".as_bytes());
    }

    #[test]
    fn sentencepiece_spells_spaces_and_bytes() {
        assert_eq!(Spelling::SentencePiece.bytes("▁a▁b"), b" a b");
        assert_eq!(Spelling::SentencePiece.bytes("<0x0A>"), b"\n");
        assert_eq!(Spelling::SentencePiece.bytes("<0x0AB>"), b"<0x0AB>");
    }
}
