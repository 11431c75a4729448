//! One tokenizer over the two kinds of files that checkpoints ship.

use std::borrow::Cow;
use std::str::FromStr;

use braidinfer_model::{JsonFile, ModelSource};
use serde::Serialize;

use super::SentencePiece;
use crate::{Error, Result};

const TOKENIZER_JSON: &str = "tokenizer.json";
const TOKENIZER_MODEL: &str = "tokenizer.model";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Turns text into ids and back.
#[derive(Debug)]
pub struct Tokenizer {
    path: String,
    backend: Backend,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

#[derive(Debug)]
enum Backend {
    HuggingFace(Box<tokenizers::Tokenizer>),
    SentencePiece(Box<SentencePiece>),
}

/// A token as shown to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// Its id.
    pub id: u32,
    /// How the vocabulary spells it.
    pub piece: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or else `tokenizer.model`; `None` if the model has neither.
    pub fn read(source: &ModelSource) -> Result<Option<Self>> {
        let config = JsonFile::read(source, TOKENIZER_CONFIG)?;
        let (path, backend) = if let Some(bytes) = source.read(TOKENIZER_JSON)? {
            let path = source.path_of(TOKENIZER_JSON);
            let tokenizer = parse_tokenizer_json(&path, &bytes)?;
            (path, Backend::HuggingFace(Box::new(tokenizer)))
        } else if let Some(bytes) = source.read(TOKENIZER_MODEL)? {
            let path = source.path_of(TOKENIZER_MODEL);
            let tokenizer = SentencePiece::parse(&path, &bytes)?.configured(config.as_ref())?;
            (path, Backend::SentencePiece(Box::new(tokenizer)))
        } else {
            return Ok(None);
        };
        let named =
            |field: &str| config.as_ref().map(|config| special_token(config, field)).transpose().map(Option::flatten);
        Ok(Some(Self { path, backend, bos_token: named("bos_token")?, eos_token: named("eos_token")? }))
    }

    /// Where it was read from.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Which kind of file it was read from, in words.
    pub fn kind(&self) -> &'static str {
        match &self.backend {
            Backend::HuggingFace(_) => "tokenizer.json",
            Backend::SentencePiece(_) => "SentencePiece tokenizer.model",
        }
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        match &self.backend {
            Backend::HuggingFace(tokenizer) => tokenizer.get_vocab_size(true),
            Backend::SentencePiece(tokenizer) => tokenizer.vocab_size(),
        }
    }

    /// The text that begins a sequence, if the tokenizer names one.
    pub fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_deref()
    }

    /// The text that ends a sequence, if the tokenizer names one.
    pub fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_deref()
    }

    /// The id of a token by its spelling.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match &self.backend {
            Backend::HuggingFace(tokenizer) => tokenizer.token_to_id(token),
            Backend::SentencePiece(tokenizer) => tokenizer.token_to_id(token),
        }
    }

    /// The spelling of an id, or `None` if the vocabulary has no such id.
    pub fn id_to_token(&self, id: u32) -> Option<Cow<'_, str>> {
        match &self.backend {
            Backend::HuggingFace(tokenizer) => tokenizer.id_to_token(id).map(Cow::Owned),
            Backend::SentencePiece(tokenizer) => tokenizer.id_to_token(id).map(Cow::Borrowed),
        }
    }

    /// Ids of `text`. Special tokens spelled out in the text are recognised; `add_special` adds those the
    /// tokenizer puts around every text (usually a first one).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        match &self.backend {
            Backend::HuggingFace(tokenizer) => {
                let encoding =
                    tokenizer.encode_fast(text, add_special).map_err(|error| self.error(error.to_string()))?;
                Ok(encoding.get_ids().to_vec())
            }
            Backend::SentencePiece(tokenizer) => Ok(tokenizer.encode(text, add_special)),
        }
    }

    /// Ids of a rendered chat. Templates write the special tokens themselves, so none are added; where the
    /// template leaves out the first one that this tokenizer adds to every text, it stays out, as in `transformers`.
    pub fn encode_chat(&self, rendered: &str) -> Result<Vec<u32>> {
        self.encode(rendered, false)
    }

    /// Ids of a plain prompt: special tokens are added, but a first token the text already spells is not doubled.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, true)?;
        let bos = self.bos_token().and_then(|token| self.token_to_id(token));
        if bos.is_some() && ids.len() > 1 && Some(ids[0]) == bos && Some(ids[1]) == bos {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// Text of `ids`; broken characters become U+FFFD. Ids outside the vocabulary have no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        match &self.backend {
            Backend::HuggingFace(tokenizer) => {
                tokenizer.decode(ids, skip_special).map_err(|error| self.error(error.to_string()))
            }
            Backend::SentencePiece(tokenizer) => Ok(tokenizer.decode(ids, skip_special)),
        }
    }

    /// Each id with its spelling.
    pub fn pieces(&self, ids: &[u32]) -> Vec<Piece> {
        let spelling = |id| self.id_to_token(id).map_or_else(String::new, Cow::into_owned);
        ids.iter().map(|id| Piece { id: *id, piece: spelling(*id) }).collect()
    }

    fn error(&self, message: String) -> Error {
        Error::Text { path: self.path.clone(), message }
    }
}

fn parse_tokenizer_json(path: &str, bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let error = |message: String| Error::Text { path: path.to_owned(), message };
    let text = std::str::from_utf8(bytes).map_err(|fault| error(format!("expected UTF-8 text, found {fault}")))?;
    let mut tokenizer =
        tokenizers::Tokenizer::from_str(text).map_err(|fault| error(format!("not a usable tokenizer: {fault}")))?;
    // Files saved during training may cut or pad every text: a prompt must reach the model whole.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|fault| error(fault.to_string()))?;
    Ok(tokenizer)
}

/// A special token of `tokenizer_config.json`: a text, or an object with its `content`.
pub(super) fn special_token(config: &JsonFile, field: &str) -> Result<Option<String>> {
    let content = match config.value(field) {
        Some(serde_json::Value::Object(_)) => {
            config.object(field)?.and_then(|token| token.text("content").ok().flatten().map(str::to_owned))
        }
        _ => config.text(field)?.map(str::to_owned),
    };
    Ok(content)
}
