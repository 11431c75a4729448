//! Byte-level BPE from the tokens and merges of a GGUF file.

use ahash::AHashMap;
use braidinfer_model::arch::gguf::form_of;
use braidinfer_model::format::gguf::Metadata;
use serde_json::{Map, Value as Json, json};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeBuilder};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use super::pre_tokenizer::{self, KNOWN, PreTokenizer};
use super::vocabulary::{TokenKind, Vocabulary};
use super::{BosEosDefaults, bos_eos_ids};
use crate::{Error, Result};

pub(super) const PRE: &str = "tokenizer.ggml.pre";
/// The name for an unknown pre-tokenizer.
pub(super) const DEFAULT: &str = "default";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";

/// The tokenizer of a file. Appends assumptions to `notes`.
pub(super) fn tokenizer(metadata: &Metadata, vocabulary: &Vocabulary, notes: &mut Vec<String>) -> Result<Tokenizer> {
    let error = |message: String| Error::Text { path: metadata.path().to_owned(), message };
    let pre_tokenizer = pre_tokenizer(metadata, notes)?;
    let (vocab, merges) = merges(metadata, vocabulary, notes)?;
    let builder = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre_tokenizer.ignore_merges);
    let mut tokenizer = Tokenizer::new(build(metadata, builder)?);
    if pre_tokenizer.nfc {
        tokenizer.with_normalizer(Some(NFC)).map_err(|fault| error(fault.to_string()))?;
    }
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer.build()?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let defaults = BosEosDefaults { bos: pre_tokenizer.add_bos, eos: false, bos_id: 11, eos_id: 11 };
    add_tokens(&mut tokenizer, metadata, vocabulary, defaults)?;
    Ok(tokenizer)
}

/// Adds the control and user-defined tokens of a file to `tokenizer`, and the tokens around every text.
pub(super) fn add_tokens(
    tokenizer: &mut Tokenizer,
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    defaults: BosEosDefaults,
) -> Result<()> {
    let error = |message: String| Error::Text { path: metadata.path().to_owned(), message };
    let added = |kind: TokenKind, special: bool| -> Vec<AddedToken> {
        let tokens = vocabulary.tokens.iter().filter(|token| token.kind == kind && !token.text.is_empty());
        tokens.map(|token| AddedToken::from(token.text.clone(), special).normalized(false)).collect()
    };
    let refused = |fault: tokenizers::Error| error(fault.to_string());
    tokenizer.add_special_tokens(added(TokenKind::Control, true)).map_err(refused)?;
    tokenizer.add_tokens(added(TokenKind::UserDefined, false)).map_err(refused)?;
    let (bos, eos) = bos_eos_ids(metadata, defaults, vocabulary)?;
    if let Some(template) = template(vocabulary, bos, eos) {
        tokenizer.with_post_processor(Some(template.map_err(error)?));
    }
    Ok(())
}

fn pre_tokenizer(metadata: &Metadata, notes: &mut Vec<String>) -> Result<PreTokenizer> {
    let known = || KNOWN.iter().flat_map(|known| known.names).copied().collect::<Vec<_>>().join(", ");
    // Converters wrote `default` if they did not recognize the tokenizer.
    if let Some(name) = metadata.text(PRE)?.filter(|name| *name != DEFAULT) {
        return pre_tokenizer::named(name).ok_or_else(|| metadata.error(PRE, known(), format!("`{name}`")).into());
    }
    let form = form_of(metadata)?;
    let assumed = form
        .and_then(|form| pre_tokenizer::named(form.pre_tokenizer?))
        .ok_or_else(|| metadata.error(PRE, known(), "nothing that says it, as in files of early 2024 and before"))?;
    notes.push(format!("the file does not say how to cut text (`{PRE}`): assuming `{}`", assumed.names[0]));
    Ok(assumed)
}

/// Ids of tokens, and pairs of tokens that are merged.
type Merges = (AHashMap<String, u32>, Vec<(String, String)>);

/// The tokens and merges of a file, for a model of the `tokenizers` crate.
pub(super) fn merges(metadata: &Metadata, vocabulary: &Vocabulary, notes: &mut Vec<String>) -> Result<Merges> {
    let lines = metadata.texts(MERGES)?;
    let lines = lines.ok_or_else(|| metadata.error(MERGES, "a list of merges", "nothing"))?;
    let mut merges = Vec::with_capacity(lines.len());
    for (index, line) in lines.into_iter().enumerate() {
        // No token has the separator in it: spaces are other characters in tokens.
        let Some((left, right)) = line.split_once(' ') else {
            let found = format!("`{line}` as merge {index}");
            return Err(metadata.error(MERGES, "two tokens with a space between them", found).into());
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    let known = vocabulary.iter().filter(|(_, token)| token.kind != TokenKind::Unused);
    let vocab: AHashMap<String, u32> = known.map(|(id, token)| (token.text.clone(), id)).collect();
    // Longer merges are removed, because the builder panics at a merge that is longer than every token.
    let before = merges.len();
    merges.retain(|(left, right)| {
        [left, right, &format!("{left}{right}")].into_iter().all(|token| vocab.contains_key(token.as_str()))
    });
    if merges.len() < before {
        notes.push(format!("ignored {} merges of tokens that are not in the vocabulary", before - merges.len()));
    }
    Ok((vocab, merges))
}

/// Builds a model from tokens and merges.
pub(super) fn build(metadata: &Metadata, builder: BpeBuilder) -> Result<BPE> {
    let fault = |fault: tokenizers::Error| {
        metadata.error(MERGES, "merges whose tokens are in the vocabulary", fault.to_string()).into()
    };
    builder.build().map_err(fault)
}

/// Adds BOS and EOS tokens to every text; `None` if there are none.
fn template(vocabulary: &Vocabulary, bos: Option<u32>, eos: Option<u32>) -> Option<Result<TemplateProcessing, String>> {
    if bos.is_none() && eos.is_none() {
        return None;
    }
    let spelling = |id: u32| vocabulary.tokens[id as usize].text.as_str();
    // Built from JSON, because the builder of the `tokenizers` crate would parse a token such as `$B` or `a:1` as an
    // instruction.
    let token = |id: u32| json!({"SpecialToken": {"id": spelling(id), "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Json> = bos.map(token).into_iter().chain([text]).chain(eos.map(token)).collect();
    let entry = |id: u32| {
        let spelling = spelling(id);
        (spelling.to_owned(), json!({"id": spelling, "ids": [id], "tokens": [spelling]}))
    };
    let special_tokens: Map<String, Json> = bos.into_iter().chain(eos).map(entry).collect();
    let template =
        json!({"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special_tokens});
    Some(serde_json::from_value(template).map_err(|fault| fault.to_string()))
}
