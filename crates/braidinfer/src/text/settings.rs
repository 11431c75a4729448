//! Tokenizer settings: `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`.

use std::collections::{BTreeMap, BTreeSet};

use braidinfer_model::format::gguf::Metadata;
use braidinfer_model::{JsonFile, ModelSource};
use serde_json::Value;

use crate::{Error, Result};

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";
/// Files with tokenizer settings.
pub(super) const SETTINGS_FILES: [&str; 3] = [TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS];
const ADDITIONAL: &str = "additional_special_tokens";
/// Names of special tokens.
pub(super) const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Settings of a tokenizer, from those of the files that a model has.
#[derive(Debug)]
pub struct TokenizerSettings {
    label: String,
    config: Option<JsonFile>,
    special_tokens_map: Option<JsonFile>,
    added_tokens: Option<JsonFile>,
}

/// An added token: one beyond the tokenizer's own vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    /// Whether it is skipped in output text.
    pub(super) special: bool,
    /// Whether it strips white space before it.
    pub(super) lstrip: bool,
    /// Whether it strips white space after it.
    pub(super) rstrip: bool,
}

impl TokenizerSettings {
    /// Reads the files that a model has, or the metadata of a GGUF file.
    pub fn read(source: &ModelSource) -> Result<Self> {
        if let Some(gguf) = source.gguf() {
            return Self::of_gguf(gguf.metadata());
        }
        Ok(Self {
            label: source.label(),
            config: JsonFile::read(source, TOKENIZER_CONFIG)?,
            special_tokens_map: JsonFile::read(source, SPECIAL_TOKENS_MAP)?,
            added_tokens: JsonFile::read(source, ADDED_TOKENS)?,
        })
    }

    /// Settings from the metadata of a GGUF file.
    pub(super) fn of_gguf(metadata: &Metadata) -> Result<Self> {
        let label = metadata.path().to_owned();
        let config = Value::Object(super::gguf::config(metadata)?).to_string();
        let config = Some(JsonFile::parse(label.clone(), config.as_bytes())?);
        Ok(Self { label, config, special_tokens_map: None, added_tokens: None })
    }

    /// `tokenizer_config.json`, which may also contain chat templates.
    pub(super) fn config(&self) -> Option<&JsonFile> {
        self.config.as_ref()
    }

    pub(super) fn flag(&self, field: &str) -> Result<Option<bool>> {
        Ok(self.config.as_ref().map(|config| config.flag(field)).transpose()?.flatten())
    }

    /// A special token by name: a string, or an object with `content`. An empty string counts as absent.
    pub(super) fn special_token(&self, field: &str) -> Result<Option<String>> {
        for file in self.config.iter().chain(&self.special_tokens_map) {
            let content = match file.value(field) {
                Some(Value::Object(_)) => match file.object(field)? {
                    Some(token) => token.text("content")?.map(str::to_owned),
                    None => None,
                },
                _ => file.text(field)?.map(str::to_owned),
            };
            if let Some(content) = content.filter(|content| !content.is_empty()) {
                return Ok(Some(content));
            }
        }
        Ok(None)
    }

    /// Whether the files list additional special tokens.
    pub(super) fn lists_special_tokens(&self) -> bool {
        self.config.iter().chain(&self.special_tokens_map).any(|file| file.value(ADDITIONAL).is_some())
    }

    /// All special tokens in the files, named or listed.
    pub(super) fn special_tokens(&self) -> Result<BTreeSet<String>> {
        let mut tokens = BTreeSet::new();
        for field in SPECIAL_TOKENS {
            tokens.extend(self.special_token(field)?);
        }
        for file in self.config.iter().chain(&self.special_tokens_map) {
            for token in file.list(ADDITIONAL)?.unwrap_or_default() {
                let content =
                    token.as_str().or_else(|| token["content"].as_str()).filter(|content| !content.is_empty());
                let content = content.ok_or_else(|| file.error(ADDITIONAL, "tokens with a text", token.to_string()))?;
                tokens.insert(content.to_owned());
            }
        }
        Ok(tokens)
    }

    /// Tokens of `added_tokens_decoder`, and those that only `added_tokens.json` has.
    pub(super) fn added_tokens(&self) -> Result<Vec<AddedToken>> {
        let mut tokens = BTreeMap::new();
        if let Some(file) = &self.added_tokens {
            for content in file.fields().filter(|content| !content.is_empty()) {
                for id in file.token_ids(content)? {
                    let content = content.to_owned();
                    tokens.insert(id, AddedToken { id, content, special: true, lstrip: false, rstrip: false });
                }
            }
        }
        if let Some(decoder) =
            self.config.as_ref().map(|config| config.object("added_tokens_decoder")).transpose()?.flatten()
        {
            for key in decoder.fields() {
                let token = added_token(&decoder, key)?;
                tokens.insert(token.id, token);
            }
        }
        Ok(tokens.into_values().collect())
    }

    /// An error in these settings.
    pub(super) fn error(&self, message: String) -> Error {
        Error::Text { path: self.label.clone(), message }
    }
}

/// One entry of `added_tokens_decoder`.
fn added_token(decoder: &JsonFile, key: &str) -> Result<AddedToken> {
    let id = key.parse().map_err(|_| decoder.error(key, "a token id as key", format!("`{key}`")))?;
    let token = decoder.object(key)?.ok_or_else(|| decoder.error(key, "a token", "null"))?;
    let content = token.text("content")?.filter(|content| !content.is_empty());
    let content = content.ok_or_else(|| token.error("content", "a text", "none or an empty one"))?.to_owned();
    let flag = |field: &str| Ok::<_, Error>(token.flag(field)?.unwrap_or(false));
    Ok(AddedToken { id, content, special: flag("special")?, lstrip: flag("lstrip")?, rstrip: flag("rstrip")? })
}
