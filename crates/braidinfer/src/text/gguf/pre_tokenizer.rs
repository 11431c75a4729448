//! Pre-tokenizers of byte-level BPE, by their names in `tokenizer.ggml.pre`.
//!
//! The expressions are those of the models' published `tokenizer.json` files.

use serde_json::Value as Json;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::{Error, Result};

/// A pre-tokenizer: how a text is split before merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PreTokenizer {
    /// Its names; the first is used for writing.
    pub(super) names: &'static [&'static str],
    /// Regular expression of one part of the text; GPT-2's if `None`.
    pattern: Option<&'static str>,
    /// Whether digits are first split off one by one.
    digits: bool,
    /// Whether the text is first normalized to NFC.
    pub(super) nfc: bool,
    /// Whether a part that is a token is used directly, without merging.
    pub(super) ignore_merges: bool,
    /// Whether a BOS token is added if the file does not say.
    pub(super) add_bos: bool,
}

const GPT2: PreTokenizer = PreTokenizer {
    names: &["gpt-2", "phi-2"],
    pattern: None,
    digits: false,
    nfc: false,
    ignore_merges: false,
    add_bos: false,
};

/// Letters, numbers of up to three digits, and punctuation (OpenAI's cl100k).
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Like `CL100K`, with single digits.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Also splits words at changes from lower to upper case (OpenAI's o200k).
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Like `O200K`, with single digits and without contractions (Mistral's Tekken).
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) const KNOWN: [PreTokenizer; 7] = [
    GPT2,
    PreTokenizer { names: &["smollm", "starcoder", "refact", "command-r", "codeshell"], digits: true, ..GPT2 },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        pattern: Some(CL100K),
        ignore_merges: true,
        add_bos: true,
        ..GPT2
    },
    PreTokenizer { names: &["dbrx", "smaug-bpe"], pattern: Some(CL100K), ..GPT2 },
    PreTokenizer { names: &["qwen2", "deepseek-r1-qwen", "megrez"], pattern: Some(QWEN2), nfc: true, ..GPT2 },
    PreTokenizer { names: &["gpt-4o", "llama4"], pattern: Some(O200K), ..GPT2 },
    PreTokenizer { names: &["tekken"], pattern: Some(TEKKEN), ignore_merges: true, add_bos: true, ..GPT2 },
];

/// The pre-tokenizer with this name.
pub(super) fn named(name: &str) -> Option<PreTokenizer> {
    KNOWN.into_iter().find(|known| known.names.contains(&name))
}

/// The pre-tokenizer with the same steps as `pre_tokenizer` in a `tokenizer.json`, regardless of their nesting.
pub(super) fn of_json(json: &Json, ignore_merges: bool) -> Option<PreTokenizer> {
    let mut found = PreTokenizer { ignore_merges, ..GPT2 };
    let mut pattern = None;
    let mut gpt2 = false;
    for step in steps(json) {
        match step["type"].as_str()? {
            "Digits" if step["individual_digits"] == true => found.digits = true,
            "Split" => pattern = Some(step["pattern"]["Regex"].as_str()?.to_owned()),
            "ByteLevel" if step["add_prefix_space"] != true => gpt2 = step["use_regex"] != false,
            _ => return None,
        }
    }
    let same = |known: &PreTokenizer| {
        let cut = known.pattern == pattern.as_deref() && known.pattern.is_none() == gpt2;
        cut && known.digits == found.digits && known.ignore_merges == found.ignore_merges
    };
    // Another `ignore_merges` only matters for tokens that no merge produces; whether it does is checked by reading
    // back.
    let close = |known: &PreTokenizer| known.pattern == pattern.as_deref() && known.digits == found.digits;
    KNOWN.into_iter().find(same).or_else(|| KNOWN.into_iter().find(close))
}

fn steps(json: &Json) -> Vec<&Json> {
    match json["pretokenizers"].as_array() {
        Some(inner) => inner.iter().flat_map(steps).collect(),
        None => vec![json],
    }
}

impl PreTokenizer {
    /// The equivalent pre-tokenizer of the `tokenizers` crate.
    pub(super) fn build(self) -> Result<PreTokenizerWrapper> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        if self.digits {
            steps.push(Digits::new(true).into());
        }
        if let Some(pattern) = self.pattern {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            steps
                .push(split.map_err(|error| Error::Internal(format!("a pre-tokenizer's expression: {error}")))?.into());
        }
        steps.push(ByteLevel::new(false, true, self.pattern.is_none()).into());
        Ok(Sequence::new(steps).into())
    }
}
