//! Tokenizers from the metadata of GGUF files.
//!
//! `tokenizer.ggml.model` names the kind: `llama` is SentencePiece BPE by score, `t5` is a SentencePiece unigram model,
//! `gpt2` is byte-level BPE, and `gemma4` is BPE over characters. If the file contains the original tokenizer files, those take precedence.

mod byte_level;
mod character_level;
mod pre_tokenizer;
mod sentencepiece;
mod vocabulary;
pub(crate) mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use braidinfer_model::ModelSource;
use braidinfer_model::format::gguf::{Array, Metadata, Value};
use serde_json::{Map, Value as Json, json};

use self::vocabulary::Vocabulary;
use super::SentencePiece;
use crate::{Error, Result};

/// Key for the kind of tokenizer.
const MODEL: &str = "tokenizer.ggml.model";
/// Kinds: SentencePiece BPE by score, a SentencePiece unigram model, byte-level BPE, BPE over characters, and none.
const SENTENCEPIECE_BPE: &str = "llama";
const SENTENCEPIECE_UNIGRAM: &str = "t5";
const BYTE_LEVEL_BPE: &str = "gpt2";
const CHARACTER_BPE: &str = "gemma4";
const NONE: &str = "none";
/// A whole `tokenizer.json`.
pub(super) const HUGGING_FACE: &str = "tokenizer.huggingface.json";
/// Key of this project: prefix of the names of original tokenizer files. They are stored in GGUF files whose other keys
/// would yield other token ids.
const ORIGINAL_FILE: &str = "braidinfer.tokenizer.file.";
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
/// Prefix of the keys of templates that have a name.
const NAMED_CHAT_TEMPLATE: &str = "tokenizer.chat_template.";

/// A tokenizer as stored in a file.
pub(super) enum Read {
    ByteLevel(Box<tokenizers::Tokenizer>),
    CharacterLevel(Box<tokenizers::Tokenizer>),
    SentencePiece(Box<SentencePiece>),
    /// The text of a `tokenizer.json`.
    HuggingFace(String),
    /// The original tokenizer files.
    Original(ModelSource),
}

/// The tokenizer of a file, with notes on assumptions; `None` if the file has none.
pub(super) fn read(metadata: &Metadata) -> Result<Option<(Read, Vec<String>)>> {
    if let Some(original) = original(metadata) {
        return Ok(Some((Read::Original(original), Vec::new())));
    }
    if let Some(text) = metadata.text(HUGGING_FACE)? {
        return Ok(Some((Read::HuggingFace(text.to_owned()), Vec::new())));
    }
    let kind = match metadata.text(MODEL)? {
        None | Some(NONE | "no_vocab") => return Ok(None),
        Some(kind) => kind,
    };
    let mut notes = Vec::new();
    let vocabulary = Vocabulary::read(metadata)?;
    let read = match kind {
        SENTENCEPIECE_BPE => Read::SentencePiece(Box::new(sentencepiece::bpe(metadata, vocabulary)?)),
        SENTENCEPIECE_UNIGRAM => Read::SentencePiece(Box::new(sentencepiece::unigram(metadata, vocabulary)?)),
        BYTE_LEVEL_BPE => Read::ByteLevel(Box::new(byte_level::tokenizer(metadata, &vocabulary, &mut notes)?)),
        CHARACTER_BPE => Read::CharacterLevel(Box::new(character_level::tokenizer(metadata, &vocabulary, &mut notes)?)),
        other => return Err(metadata.error(MODEL, "llama, gpt2, t5 or gemma4", format!("`{other}`")).into()),
    };
    Ok(Some((read, notes)))
}

/// The original tokenizer files, if the file contains them.
fn original(metadata: &Metadata) -> Option<ModelSource> {
    let file = |(key, value): (&str, &Value)| match value {
        Value::Array(Array::Numbers { bytes, .. }) => {
            Some((key.strip_prefix(ORIGINAL_FILE)?.to_owned(), bytes.as_slice().into()))
        }
        _ => None,
    };
    let files: BTreeMap<String, Arc<[u8]>> = metadata.iter().filter_map(file).collect();
    (!files.is_empty()).then(|| ModelSource::Memory { label: metadata.path().to_owned(), files: Arc::new(files) })
}

/// The fields of an equivalent `tokenizer_config.json`.
pub(super) fn config(metadata: &Metadata) -> Result<Map<String, Json>> {
    let mut fields = Map::new();
    let tokens = metadata.texts(vocabulary::TOKENS)?.unwrap_or_default();
    for (field, name) in
        [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = metadata.unsigned(&key)? else { continue };
        // Some files have an id beyond the vocabulary for a missing token.
        if let Some(token) = usize::try_from(id).ok().and_then(|id| tokens.get(id)) {
            fields.insert(field.to_owned(), json!(token));
        }
    }
    if let Some(template) = metadata.text(CHAT_TEMPLATE)? {
        let mut templates = vec![json!({"name": "default", "template": template})];
        for (key, _) in metadata.iter() {
            if let Some(name) = key.strip_prefix(NAMED_CHAT_TEMPLATE)
                && let Some(template) = metadata.text(key)?
            {
                templates.push(json!({"name": name, "template": template}));
            }
        }
        fields.insert("chat_template".to_owned(), json!(templates));
    }
    Ok(fields)
}

/// Defaults for BOS and EOS tokens, for files without these keys.
#[derive(Debug, Clone, Copy)]
struct BosEosDefaults {
    bos: bool,
    eos: bool,
    /// Their default ids.
    bos_id: u64,
    eos_id: u64,
}

/// BOS and EOS token ids to add to every text.
fn bos_eos_ids(
    metadata: &Metadata,
    defaults: BosEosDefaults,
    vocabulary: &Vocabulary,
) -> Result<(Option<u32>, Option<u32>)> {
    let one = |flag: &str, default: bool, id: &str, default_id: u64| -> Result<Option<u32>> {
        if !metadata.flag(&format!("tokenizer.ggml.{flag}"))?.unwrap_or(default) {
            return Ok(None);
        }
        let key = format!("tokenizer.ggml.{id}");
        let found = metadata.unsigned(&key)?.unwrap_or(default_id);
        let known = u32::try_from(found).ok().filter(|id| (*id as usize) < vocabulary.tokens.len());
        let expected = || format!("an id of the vocabulary, since `tokenizer.ggml.{flag}` adds it to every text");
        known.map(Some).ok_or_else(|| Error::from(metadata.error(&key, expected(), found.to_string())))
    };
    Ok((
        one("add_bos_token", defaults.bos, "bos_token_id", defaults.bos_id)?,
        one("add_eos_token", defaults.eos, "eos_token_id", defaults.eos_id)?,
    ))
}
