//! A common interface to the tokenizers of all kinds of checkpoint files.

use std::borrow::Cow;
use std::path::Path;
use std::str::FromStr;

use ahash::AHashMap;
use braidinfer_model::ModelSource;
use braidinfer_model::format::gguf::Metadata;
use serde::Serialize;

use super::growth;
use super::settings::TokenizerSettings;
use super::token_bytes::Spelling;
use super::{SentencePiece, gguf};
use crate::contained::contained;
use crate::{Error, Result};

pub(super) const TOKENIZER_JSON: &str = "tokenizer.json";
pub(super) const TOKENIZER_MODEL: &str = "tokenizer.model";

/// Converts between text and token ids.
#[derive(Debug)]
pub struct Tokenizer {
    path: String,
    kind: &'static str,
    backend: Backend,
    spelling: Spelling,
    bos_token: Option<String>,
    eos_token: Option<String>,
    /// The token that is added before every text (usually BOS).
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

/// A token for display.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// Token id.
    pub id: u32,
    /// Its spelling in the vocabulary.
    pub piece: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or else `tokenizer.model`, or the metadata of a GGUF file; `None` if the model has no
    /// tokenizer. `settings` are the model's.
    pub fn read(source: &ModelSource, settings: &TokenizerSettings) -> Result<Option<Self>> {
        if let Some(gguf) = source.gguf() {
            return Self::read_gguf(gguf.metadata(), settings);
        }
        for file in [TOKENIZER_JSON, TOKENIZER_MODEL] {
            if let Some(bytes) = source.read(file)? {
                if let Some(other) = source.other_tokenizer() {
                    let message = format!("expected a SentencePiece model, found {other}");
                    return Err(Error::Text { path: source.path_of(file), message });
                }
                return Self::parse(source.path_of(file), &bytes, settings).map(Some);
            }
        }
        Ok(None)
    }

    /// Reads one tokenizer file, with the settings files next to it.
    pub fn read_file(path: &Path) -> Result<Self> {
        let (folder, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let source = ModelSource::Directory(folder.to_owned());
        let missing =
            || Error::Text { path: path.display().to_string(), message: "expected a file, found none".into() };
        let bytes = source.read(&name.to_string_lossy())?.ok_or_else(missing)?;
        Self::parse(path.display().to_string(), &bytes, &TokenizerSettings::read(&source)?)
    }

    /// Parses a file: `.json` is a tokenizer of the `tokenizers` crate, anything else a SentencePiece model.
    fn parse(path: String, bytes: &[u8], settings: &TokenizerSettings) -> Result<Self> {
        let backend = if path.ends_with(".json") {
            Backend::HuggingFace(Box::new(parse_tokenizer_json(&path, bytes)?))
        } else {
            Backend::SentencePiece(Box::new(SentencePiece::parse(&path, bytes)?.configured(settings)?))
        };
        let kind = if path.ends_with(".json") { TOKENIZER_JSON } else { "SentencePiece tokenizer.model" };
        Self::new(path, kind, backend, settings)
    }

    /// The tokenizer in the metadata of a GGUF file; `None` if it has none.
    pub(super) fn from_gguf_metadata(metadata: &Metadata) -> Result<Option<Self>> {
        Self::read_gguf(metadata, &TokenizerSettings::of_gguf(metadata)?)
    }

    fn read_gguf(metadata: &Metadata, settings: &TokenizerSettings) -> Result<Option<Self>> {
        let Some((read, notes)) = gguf::read(metadata)? else { return Ok(None) };
        let path = metadata.path().to_owned();
        let (kind, backend) = match read {
            gguf::Read::ByteLevel(tokenizer) => ("byte-level BPE in GGUF", Backend::HuggingFace(tokenizer)),
            gguf::Read::CharacterLevel(tokenizer) => ("character-level BPE in GGUF", Backend::HuggingFace(tokenizer)),
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

    /// Remarks on assumptions, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Path of the file that it was read from.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The kind of file that it was read from, in words.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Size of the vocabulary, including added tokens.
    pub fn vocab_size(&self) -> usize {
        match &self.backend {
            Backend::HuggingFace(tokenizer) => tokenizer.get_vocab_size(true),
            Backend::SentencePiece(tokenizer) => tokenizer.vocab_size(),
        }
    }

    /// Spelling of the BOS token, if the tokenizer names one.
    pub fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_deref()
    }

    /// Spelling of the EOS token, if the tokenizer names one.
    pub fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_deref()
    }

    /// The token that is added before every text, if there is one.
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

    /// The bytes of a token's text, which may be part of a character; `None` if the vocabulary has no such id. What
    /// decoders do at the beginning of a text, such as removing a space, is not applied.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let is_added = match &self.backend {
            Backend::HuggingFace(tokenizer) => added(tokenizer).contains_key(&id),
            Backend::SentencePiece(_) => false,
        };
        let token = self.id_to_token(id)?;
        Some(if is_added { token.into_owned().into_bytes() } else { self.spelling.bytes(&token) })
    }

    /// Whether a token is special, such as an end-of-sequence token, and has no text.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.backend {
            Backend::HuggingFace(tokenizer) => added(tokenizer).get(&id).is_some_and(|token| token.special),
            Backend::SentencePiece(tokenizer) => tokenizer.is_special(id),
        }
    }

    /// Token ids of `text`. Special tokens spelled out in the text are recognized; `add_special` adds those that the
    /// tokenizer adds to every text (usually BOS).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encode = || match &self.backend {
            Backend::HuggingFace(tokenizer) => {
                let encoding = tokenizer.encode_fast(text, add_special).map_err(|error| error.to_string())?;
                Ok(encoding.get_ids().to_vec())
            }
            Backend::SentencePiece(tokenizer) => Ok(tokenizer.encode(text, add_special)),
        };
        self.tried("cutting a text into tokens", encode)
    }

    /// Token ids of a rendered chat. Templates contain the special tokens themselves, so none are added. If a template
    /// lacks the BOS token, none is added either, as in `transformers`.
    pub fn encode_chat(&self, rendered: &str) -> Result<Vec<u32>> {
        self.encode(rendered, false)
    }

    /// Token ids of a plain prompt: special tokens are added, but a BOS token that the text already begins with is not
    /// doubled.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, true)?;
        if ids.len() > 1 && self.first_token == Some(ids[0]) && ids[0] == ids[1] {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// Text of `ids`; incomplete characters become U+FFFD. Ids outside the vocabulary have no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let decode = || match &self.backend {
            Backend::HuggingFace(tokenizer) => tokenizer.decode(ids, skip_special).map_err(|error| error.to_string()),
            Backend::SentencePiece(tokenizer) => Ok(tokenizer.decode(ids, skip_special)),
        };
        self.tried("turning tokens into text", decode)
    }

    /// Each id with its spelling.
    pub fn pieces(&self, ids: &[u32]) -> Vec<Piece> {
        let spelling = |id| self.id_to_token(id).map_or_else(String::new, Cow::into_owned);
        ids.iter().map(|id| Piece { id: *id, piece: spelling(*id) }).collect()
    }

    /// The outcome of `call`, with the tokenizer's file in errors.
    fn tried<T>(&self, doing: &str, call: impl FnOnce() -> Result<T, String>) -> Result<T> {
        tried(&self.path, doing, call)
    }
}

/// The outcome of `call`, with the file at `path` in errors. The `tokenizers` crate panics on some files.
fn tried<T>(path: &str, doing: &str, call: impl FnOnce() -> Result<T, String>) -> Result<T> {
    let outcome = contained(call).unwrap_or_else(|panic| Err(format!("its settings made {doing} fail: {panic}")));
    outcome.map_err(|message| Error::Text { path: path.to_owned(), message })
}

/// Added tokens by id, borrowed, because the crate's own method copies them.
fn added(tokenizer: &tokenizers::Tokenizer) -> &AHashMap<u32, tokenizers::AddedToken> {
    tokenizer.get_added_vocabulary().get_added_tokens_decoder()
}

fn parse_tokenizer_json(path: &str, bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let error = |message: String| Error::Text { path: path.to_owned(), message };
    let text = std::str::from_utf8(bytes).map_err(|fault| error(format!("expected UTF-8 text, found {fault}")))?;
    growth::check(text).map_err(error)?;
    let parse = || tokenizers::Tokenizer::from_str(text).map_err(|fault| format!("not a usable tokenizer: {fault}"));
    let mut tokenizer = tried(path, "reading it", parse)?;
    // Files saved during training may truncate or pad texts, but a prompt must reach the model unchanged.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|fault| error(fault.to_string()))?;
    Ok(tokenizer)
}
