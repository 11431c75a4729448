//! Converting the tokenizer of a model directory to the metadata of a GGUF file.
//!
//! The result is read back, and must yield the same token ids as the original on texts chosen to be hard. If
//! llama.cpp's keys are not sufficient for that, the original tokenizer files are stored as well.

use std::collections::{BTreeMap, BTreeSet};

use braidinfer_model::ModelSource;
use braidinfer_model::format::gguf::{Array, Metadata, Value};
use serde_json::Value as Json;

use super::vocabulary::{KINDS, SCORES, TOKENS, Token, TokenKind};
use super::{
    BYTE_LEVEL_BPE, CHAT_TEMPLATE, MODEL, NAMED_CHAT_TEMPLATE, NONE, ORIGINAL_FILE, SENTENCEPIECE_BPE,
    SENTENCEPIECE_UNIGRAM, byte_level, pre_tokenizer,
};
use crate::text::chat_template::{find_template, other_templates};
use crate::text::sentencepiece::parts::PieceKind;
use crate::text::settings::SETTINGS_FILES;
use crate::text::tokenizer::{TOKENIZER_JSON, TOKENIZER_MODEL};
use crate::text::{SentencePiece, Tokenizer, TokenizerSettings};
use crate::{Error, Result};

/// Hard texts: white space, digits, punctuation, scripts, composed and decomposed letters, emoji, code, contractions.
const PROBES: &str = include_str!("probes.txt");

/// Adds the tokenizer and chat template of `source` to `metadata`, for an embedding of `rows` rows. `ends` are the
/// end-of-sequence token ids and `first` is the BOS token id, according to the model's settings. Returns the
/// differences for a reader that only knows llama.cpp's keys, one line each.
pub(crate) fn write(
    source: &ModelSource,
    rows: usize,
    first: Option<u32>,
    ends: &[u32],
    metadata: &mut Metadata,
) -> Result<Vec<String>> {
    let settings = TokenizerSettings::read(source)?;
    let mut notes = Vec::new();
    if let Some((_, template)) = find_template(source, &settings)? {
        metadata.insert(CHAT_TEMPLATE, template.as_str());
    }
    for (name, template) in other_templates(source, &settings)? {
        metadata.insert(format!("{NAMED_CHAT_TEMPLATE}{name}"), template.as_str());
    }
    let Some(tokenizer) = Tokenizer::read(source, &settings)? else {
        metadata.insert(MODEL, NONE);
        write_ends(metadata, first, ends, None);
        return Ok(notes);
    };
    let json = source.read(TOKENIZER_JSON)?;
    let form = match &json {
        Some(bytes) => HuggingFace::parse(&source.path_of(TOKENIZER_JSON), bytes)?.form()?,
        None => {
            let bytes = source.read(TOKENIZER_MODEL)?.unwrap_or_default();
            sentencepiece_form(
                &SentencePiece::parse(&source.path_of(TOKENIZER_MODEL), &bytes)?.configured(&settings)?,
                rows,
            )
        }
    };
    form.write(rows, metadata);
    if tokenizer.vocab_size() > rows {
        let beyond = tokenizer.vocab_size() - rows;
        notes.push(format!("the tokenizer has {beyond} ids that the embedding lacks: left out"));
    }
    let bos = settings.special_token("bos_token")?.and_then(|token| tokenizer.token_to_id(&token)).or(first);
    let eos = settings.special_token("eos_token")?.and_then(|token| tokenizer.token_to_id(&token));
    write_ends(metadata, bos, ends, eos);
    write_around(&tokenizer, bos, metadata)?;
    make_faithful(source, &tokenizer, metadata, &mut notes)?;
    Ok(notes)
}

/// Writes BOS and end-of-sequence token ids.
fn write_ends(metadata: &mut Metadata, bos: Option<u32>, ends: &[u32], eos: Option<u32>) {
    let mut ends: Vec<u32> = eos.into_iter().chain(ends.iter().copied()).collect();
    let mut seen = BTreeSet::new();
    ends.retain(|id| seen.insert(*id));
    if let Some(bos) = bos {
        metadata.insert("tokenizer.ggml.bos_token_id", bos);
    }
    // GGUF has keys for three of them; this project's own key has all.
    for (name, id) in ["eos", "eot", "eom"].into_iter().zip(ends) {
        metadata.insert(format!("tokenizer.ggml.{name}_token_id"), id);
    }
}

/// Writes whether BOS and EOS tokens are added, determined by encoding an empty text.
fn write_around(tokenizer: &Tokenizer, bos: Option<u32>, metadata: &mut Metadata) -> Result<()> {
    let around = tokenizer.encode("", true)?;
    let eos = metadata.unsigned("tokenizer.ggml.eos_token_id")?.map(|id| id as u32);
    let begins = !around.is_empty() && around.first().copied() == bos;
    let ends = around.len() > usize::from(begins) && around.last().copied() == eos;
    metadata.insert("tokenizer.ggml.add_bos_token", begins);
    metadata.insert("tokenizer.ggml.add_eos_token", ends);
    Ok(())
}

/// Reads the metadata back; if token ids differ from the original's, adds the original files.
fn make_faithful(
    source: &ModelSource,
    original: &Tokenizer,
    metadata: &mut Metadata,
    notes: &mut Vec<String>,
) -> Result<()> {
    let Some(text) = first_difference(original, metadata)? else { return Ok(()) };
    for file in [TOKENIZER_JSON, TOKENIZER_MODEL].into_iter().chain(SETTINGS_FILES) {
        if let Some(bytes) = source.read(file)? {
            metadata.insert(format!("{ORIGINAL_FILE}{file}"), &bytes[..]);
        }
    }
    notes.push(format!(
        "other programs will tokenize some texts differently, such as {text:?}: the keys of GGUF cannot say how; for \
         Braidinfer the original tokenizer goes with the file"
    ));
    match first_difference(original, metadata)? {
        None => Ok(()),
        Some(text) => Err(Error::Internal(format!("{}: the tokenizer reads {text:?} differently", source.label()))),
    }
}

/// A text that the written tokenizer encodes differently.
fn first_difference(original: &Tokenizer, metadata: &Metadata) -> Result<Option<String>> {
    // What the keys cannot express shows in the ids, or makes reading fail.
    let Ok(Some(written)) = Tokenizer::from_gguf_metadata(metadata) else {
        return Ok(PROBES.lines().next().map(str::to_owned));
    };
    let tokens = metadata.texts(TOKENS)?.unwrap_or_default();
    let kinds = metadata.scalars(KINDS)?.into_iter().flat_map(Array::scalars);
    let added = tokens.iter().zip(kinds).filter(|(_, kind)| matches!(kind.to_json().as_i64(), Some(3 | 4)));
    let around = added.take(64).map(|(token, _)| format!("a{token}b {token} c\n{token}"));
    let mut texts = PROBES.lines().map(str::to_owned).chain([PROBES.to_owned(), String::new()]).chain(around);
    for text in &mut texts {
        if original.encode(&text, true)? != written.encode(&text, true)? {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// A tokenizer in the form of llama.cpp's keys.
struct Form {
    model: &'static str,
    pre: String,
    /// By id.
    tokens: BTreeMap<u32, Token>,
    merges: Option<Vec<String>>,
    unknown: Option<u32>,
    add_space_prefix: bool,
    remove_extra_whitespaces: bool,
    charsmap: Vec<u8>,
}

impl Form {
    /// Ids without a token get a placeholder that no text encodes to.
    fn write(self, rows: usize, metadata: &mut Metadata) {
        let (mut texts, mut kinds, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        for id in 0..rows as u32 {
            let token = self.tokens.get(&id);
            texts.push(token.map_or_else(|| format!("[PAD{id}]"), |token| token.text.clone()));
            kinds.push(token.map_or(TokenKind::Unused, |token| token.kind).number());
            scores.push(token.map_or(0.0, |token| token.score));
        }
        metadata.insert(MODEL, self.model);
        metadata.insert(byte_level::PRE, self.pre.as_str());
        metadata.insert(TOKENS, texts.iter().collect::<Value>());
        metadata.insert(KINDS, &kinds[..]);
        if let Some(unknown) = self.unknown {
            metadata.insert("tokenizer.ggml.unknown_token_id", unknown);
        }
        match self.merges {
            Some(merges) => {
                metadata.insert(byte_level::MERGES, merges.iter().collect::<Value>());
            }
            None => {
                metadata.insert(SCORES, &scores[..]);
                metadata.insert("tokenizer.ggml.add_space_prefix", self.add_space_prefix);
                metadata.insert("tokenizer.ggml.remove_extra_whitespaces", self.remove_extra_whitespaces);
            }
        }
        if !self.charsmap.is_empty() {
            metadata.insert("tokenizer.ggml.precompiled_charsmap", &self.charsmap[..]);
        }
    }
}

/// A `tokenizer.json`.
struct HuggingFace {
    path: String,
    json: Json,
}

impl HuggingFace {
    fn parse(path: &str, bytes: &[u8]) -> Result<Self> {
        let json = serde_json::from_slice(bytes);
        let json = json.map_err(|fault| Error::Text { path: path.to_owned(), message: fault.to_string() })?;
        Ok(Self { path: path.to_owned(), json })
    }

    fn error(&self, expected: &str, found: impl Into<String>) -> Error {
        let message = format!("expected {expected}, which GGUF can hold, found {}", found.into());
        Error::Text { path: self.path.clone(), message }
    }

    fn form(&self) -> Result<Form> {
        let model = &self.json["model"];
        let kind = model["type"].as_str().unwrap_or("BPE");
        if kind != "BPE" {
            return Err(self.error("a BPE model", kind));
        }
        if model["byte_fallback"] == true { self.sentencepiece() } else { self.byte_level() }
    }

    fn byte_level(&self) -> Result<Form> {
        let ignore_merges = self.json["model"]["ignore_merges"] == true;
        let nfc = self.json["normalizer"]["type"] == "NFC";
        let pre = pre_tokenizer::of_json(&self.json["pre_tokenizer"], nfc, ignore_merges);
        let merges = self.merges()?.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
        Ok(Form {
            model: BYTE_LEVEL_BPE,
            pre: pre.map_or(byte_level::DEFAULT, |pre| pre.names[0]).to_owned(),
            tokens: self.tokens(|_| 0.0),
            merges: Some(merges),
            unknown: None,
            add_space_prefix: false,
            remove_extra_whitespaces: false,
            charsmap: Vec::new(),
        })
    }

    /// BPE that was converted from SentencePiece: the rank of a merge corresponds to the score of its result.
    fn sentencepiece(&self) -> Result<Form> {
        let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
        for (rank, (left, right)) in self.merges()?.into_iter().enumerate() {
            ranks.entry(left + &right).or_insert(rank);
        }
        let last = ranks.len() + 1;
        let score = |text: &str| -(ranks.get(text).copied().unwrap_or(last) as f32);
        let mut tokens = self.tokens(score);
        let unknown = self.json["model"]["unk_token"].as_str().or(Some("<unk>"));
        let unknown = tokens.iter().find(|(_, token)| Some(token.text.as_str()) == unknown).map(|(id, _)| *id);
        // Its kind must be "control", so that it has no output text; that it is the unknown token is in a key.
        if let Some(token) = unknown.and_then(|id| tokens.get_mut(&id)).filter(|token| token.kind == TokenKind::Normal)
        {
            token.kind = TokenKind::Unknown;
        }
        let prefix = self.json["normalizer"].to_string().contains("\"Prepend\"")
            || matches!(self.json["pre_tokenizer"]["prepend_scheme"].as_str(), Some("always" | "first"))
            || self.json["pre_tokenizer"]["add_prefix_space"] == true;
        Ok(Form {
            model: SENTENCEPIECE_BPE,
            pre: byte_level::DEFAULT.to_owned(),
            tokens,
            merges: None,
            unknown,
            add_space_prefix: prefix,
            remove_extra_whitespaces: false,
            charsmap: Vec::new(),
        })
    }

    /// All tokens by id; added tokens replace the model's own.
    fn tokens(&self, score: impl Fn(&str) -> f32) -> BTreeMap<u32, Token> {
        let id_of = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let mut tokens = BTreeMap::new();
        let fallback = self.json["model"]["byte_fallback"] == true;
        for (text, id) in self.json["model"]["vocab"].as_object().into_iter().flatten() {
            let kind = if fallback { TokenKind::by_spelling(text) } else { TokenKind::Normal };
            tokens.extend(id_of(id).map(|id| (id, Token { score: score(text), text: text.clone(), kind })));
        }
        for token in self.json["added_tokens"].as_array().into_iter().flatten() {
            let (Some(id), Some(text)) = (id_of(&token["id"]), token["content"].as_str()) else { continue };
            let kind = if token["special"] == true { TokenKind::Control } else { TokenKind::UserDefined };
            tokens.insert(id, Token { text: text.to_owned(), kind, score: score(text) });
        }
        tokens
    }

    /// Merges in order; a file has them as lists, or as strings separated by a space.
    fn merges(&self) -> Result<Vec<(String, String)>> {
        let pair = |merge: &Json| match merge {
            Json::String(line) => line.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())),
            Json::Array(pair) => Some((pair.first()?.as_str()?.to_owned(), pair.get(1)?.as_str()?.to_owned())),
            _ => None,
        };
        let merges = self.json["model"]["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
        let pairs =
            merges.iter().map(|merge| pair(merge).ok_or_else(|| self.error("pairs as merges", merge.to_string())));
        pairs.collect()
    }
}

fn sentencepiece_form(tokenizer: &SentencePiece, rows: usize) -> Form {
    let parts = tokenizer.to_parts(rows);
    let kind = |kind| match kind {
        PieceKind::Normal => TokenKind::Normal,
        PieceKind::Unknown => TokenKind::Unknown,
        PieceKind::Unused => TokenKind::Unused,
        PieceKind::Byte => TokenKind::Byte,
        PieceKind::Added { special: true, .. } => TokenKind::Control,
        PieceKind::Added { special: false, .. } => TokenKind::UserDefined,
    };
    let tokens = parts.pieces.into_iter().zip(0..);
    let tokens: BTreeMap<u32, Token> = tokens
        .map(|(piece, id)| (id, Token { text: piece.text, kind: kind(piece.kind), score: piece.score }))
        .collect();
    Form {
        model: if parts.unigram { SENTENCEPIECE_UNIGRAM } else { SENTENCEPIECE_BPE },
        pre: byte_level::DEFAULT.to_owned(),
        unknown: Some(parts.unknown),
        tokens,
        merges: None,
        add_space_prefix: parts.add_dummy_prefix,
        remove_extra_whitespaces: parts.remove_extra_whitespaces,
        charsmap: parts.charsmap,
    }
}
