//! How byte-level BPE cuts a text before it merges: what each name of `tokenizer.ggml.pre` stands for.
//!
//! The expressions are those of the models' published `tokenizer.json` files.

use serde_json::Value as Json;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::{Error, Result};

/// A way to cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PreTokenizer {
    /// Its names; the first is the one we write.
    pub(super) names: &'static [&'static str],
    /// What one part of a text looks like; GPT-2's expression if `None`.
    pattern: Option<&'static str>,
    /// Whether each digit stands alone before anything else is cut.
    digits: bool,
    /// Whether composed characters come first (Unicode's form NFC).
    pub(super) nfc: bool,
    /// Whether a part that is a token is taken as it is.
    pub(super) ignore_merges: bool,
    /// Whether the first token is added to every text where a file does not say.
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

/// Letters, numbers of up to three digits, and signs (OpenAI's cl100k).
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with single digits.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words split where small letters become large ones (OpenAI's o200k).
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with single digits and no contractions (Mistral's Tekken).
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

/// The way a name stands for.
pub(super) fn named(name: &str) -> Option<PreTokenizer> {
    KNOWN.into_iter().find(|known| known.names.contains(&name))
}

/// The way that the `pre_tokenizer` of a `tokenizer.json` stands for: the same steps, however they are nested.
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
    // One that always takes the merges gives other ids only for tokens that no merge makes; reading back decides.
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
    /// The steps in the `tokenizers` crate.
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
