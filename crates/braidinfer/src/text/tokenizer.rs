//! One tokenizer over the kinds of files that checkpoints ship.

use std::borrow::Cow;
use std::path::Path;
use std::str::FromStr;

use ahash::AHashMap;
use braidinfer_model::ModelSource;
use braidinfer_model::format::gguf::Metadata;
use serde::Serialize;

use super::settings::TokenizerSettings;
use super::token_bytes::Spelling;
use super::{SentencePiece, gguf};
use crate::{Error, Result};

pub(super) const TOKENIZER_JSON: &str = "tokenizer.json";
pub(super) const TOKENIZER_MODEL: &str = "tokenizer.model";

/// Turns text into ids and back.
#[derive(Debug)]
pub struct Tokenizer {
    path: String,
    kind: &'static str,
    backend: Backend,
    spelling: Spelling,
    bos_token: Option<String>,
    eos_token: Option<String>,
    /// The first of the tokens put around every text.
    first_token: Option<u32>,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Backend {
    HuggingFace(Box<tokenizers::Tokenizer>),
    SentencePiece(Box<SentencePiece>),
}

impl Backend {
    fn spelling(&self) -> Spelling {
        match self {
            Self::HuggingFace(tokenizer) => Spelling::of(tokenizer),
            Self::SentencePiece(_) => Spelling::SentencePiece,
        }
    }
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
    /// Reads `tokenizer.json`, or else `tokenizer.model`, or what a GGUF file says; `None` if the model has none of them.
    /// `settings` are the model's.
    pub fn read(source: &ModelSource, settings: &TokenizerSettings) -> Result<Option<Self>> {
        if let Some(gguf) = source.gguf() {
            return Self::read_gguf(gguf.metadata(), settings);
        }
        for file in [TOKENIZER_JSON, TOKENIZER_MODEL] {
            if let Some(bytes) = source.read(file)? {
                return Self::parse(source.path_of(file), &bytes, settings).map(Some);
            }
        }
        Ok(None)
    }

    /// Reads one tokenizer file, with the settings that stand beside it.
    pub fn read_file(path: &Path) -> Result<Self> {
        let (folder, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let source = ModelSource::Directory(folder.to_owned());
        let missing =
            || Error::Text { path: path.display().to_string(), message: "expected a file, found none".into() };
        let bytes = source.read(&name.to_string_lossy())?.ok_or_else(missing)?;
        Self::parse(path.display().to_string(), &bytes, &TokenizerSettings::read(&source)?)
    }

    /// A path that ends in `.json` holds a tokenizer of the `tokenizers` crate, any other a SentencePiece model.
    fn parse(path: String, bytes: &[u8], settings: &TokenizerSettings) -> Result<Self> {
        let backend = if path.ends_with(".json") {
            Backend::HuggingFace(Box::new(parse_tokenizer_json(&path, bytes)?))
        } else {
            Backend::SentencePiece(Box::new(SentencePiece::parse(&path, bytes)?.configured(settings)?))
        };
        let kind = if path.ends_with(".json") { TOKENIZER_JSON } else { "SentencePiece tokenizer.model" };
        Self::new(path, kind, backend, settings)
    }

    /// What the metadata of a GGUF file says; `None` if it has no tokenizer.
    pub(super) fn from_gguf_metadata(metadata: &Metadata) -> Result<Option<Self>> {
        Self::read_gguf(metadata, &TokenizerSettings::of_gguf(metadata)?)
    }

    fn read_gguf(metadata: &Metadata, settings: &TokenizerSettings) -> Result<Option<Self>> {
        let Some((read, notes)) = gguf::read(metadata)? else { return Ok(None) };
        let path = metadata.path().to_owned();
        let (kind, backend) = match read {
            gguf::Read::ByteLevel(tokenizer) => ("byte-level BPE in GGUF", Backend::HuggingFace(tokenizer)),
            gguf::Read::SentencePiece(tokenizer) => ("SentencePiece in GGUF", Backend::SentencePiece(tokenizer)),
            gguf::Read::Original(source) => {
                return Self::read(&source, &TokenizerSettings::read(&source)?);
            }
            gguf::Read::HuggingFace(text) => {
                let place = format!("{path}: {}", gguf::HUGGING_FACE);
                let tokenizer = parse_tokenizer_json(&place, text.as_bytes())?;
                ("tokenizer.json in GGUF", Backend::HuggingFace(Box::new(tokenizer)))
            }
        };
        Ok(Some(Self { notes, ..Self::new(path, kind, backend, settings)? }))
    }

    fn new(path: String, kind: &'static str, backend: Backend, settings: &TokenizerSettings) -> Result<Self> {
        let (bos_token, eos_token) = (settings.special_token("bos_token")?, settings.special_token("eos_token")?);
        let spelling = backend.spelling();
        let mut tokenizer =
            Self { path, kind, backend, spelling, bos_token, eos_token, first_token: None, notes: Vec::new() };
        tokenizer.first_token = tokenizer.encode("", true)?.first().copied();
        Ok(tokenizer)
    }

    /// What had to be assumed, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Where it was read from.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What it was read from, in words.
    pub fn kind(&self) -> &'static str {
        self.kind
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

    /// The token that stands before every text, if there is one.
    pub fn first_token(&self) -> Option<u32> {
        self.first_token
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

    /// The bytes that a token adds to a text, which may be a part of a character; `None` if the vocabulary has no such id.
    /// What decoders do to the beginning of a text, such as removing a space, is left out.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let is_added = match &self.backend {
            Backend::HuggingFace(tokenizer) => added(tokenizer).contains_key(&id),
            Backend::SentencePiece(_) => false,
        };
        let token = self.id_to_token(id)?;
        Some(if is_added { token.into_owned().into_bytes() } else { self.spelling.bytes(&token) })
    }

    /// Whether a token stands for something else than text, such as the end of an answer.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.backend {
            Backend::HuggingFace(tokenizer) => added(tokenizer).get(&id).is_some_and(|token| token.special),
            Backend::SentencePiece(tokenizer) => tokenizer.is_special(id),
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
        if ids.len() > 1 && self.first_token == Some(ids[0]) && ids[0] == ids[1] {
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

/// Added tokens by id; the tokenizer's own method copies them all.
fn added(tokenizer: &tokenizers::Tokenizer) -> &AHashMap<u32, tokenizers::AddedToken> {
    tokenizer.get_added_vocabulary().get_added_tokens_decoder()
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
