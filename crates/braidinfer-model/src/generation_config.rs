//! `generation_config.json`, or the equivalent GGUF keys: end-of-sequence tokens and recommended sampling parameters.

use crate::format::gguf::{Array, Metadata, Scalar};
use crate::{JsonFile, ModelSource, Result};

/// Prefix of the sampling parameters' keys in GGUF.
const SAMPLING: &str = "general.sampling.";
/// Key of this project: all end-of-sequence token ids, because GGUF's own keys hold too few.
const EOS_TOKEN_IDS: &str = "braidinfer.eos_token_ids";
/// Key of this project: maximum number of output tokens.
const MAX_NEW_TOKENS: &str = "braidinfer.max_new_tokens";

/// A checkpoint's generation defaults. Absent settings are `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// End-of-sequence token ids.
    pub eos_token_id: Vec<u32>,
    /// Beginning-of-sequence token id.
    pub bos_token_id: Option<u32>,
    /// Whether to sample; greedy if false or absent, as in `transformers`.
    pub do_sample: bool,
    /// Softmax temperature.
    pub temperature: Option<f64>,
    /// Sample from this many most likely tokens; 50 if the file enables sampling without this field, as in
    /// `transformers`.
    pub top_k: Option<usize>,
    /// Sample from the smallest set of tokens with at least this total probability.
    pub top_p: Option<f64>,
    /// Sample from tokens with at least this fraction of the most likely token's probability.
    pub min_p: Option<f64>,
    /// Divisor of positive logits, and factor of negative logits, of tokens that already occurred.
    pub repetition_penalty: Option<f64>,
    /// Maximum number of output tokens.
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`, or the keys of a GGUF file; missing token ids come from `config`, the model's
    /// `config.json`.
    pub fn read(source: &ModelSource, config: &JsonFile) -> Result<Self> {
        let mut settings = match (source.gguf(), JsonFile::read(source, "generation_config.json")?) {
            (Some(gguf), _) => Self::from_metadata(gguf.metadata())?,
            (None, Some(file)) => Self::from_json(&file)?,
            (None, None) => Self::default(),
        };
        if settings.eos_token_id.is_empty() {
            settings.eos_token_id = config.token_ids("eos_token_id")?;
        }
        if settings.bos_token_id.is_none() {
            settings.bos_token_id = config.token_ids("bos_token_id")?.first().copied();
        }
        Ok(settings)
    }

    /// The sampling parameters of a GGUF file; greedy if it has none.
    fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let number = |name: &str| metadata.number(&format!("{SAMPLING}{name}"));
        let (temperature, top_k) = (number("temp")?, number("top_k")?);
        let (top_p, min_p) = (number("top_p")?, number("min_p")?);
        let ends = metadata.scalars(EOS_TOKEN_IDS)?.into_iter().flat_map(Array::scalars);
        let asked = [temperature, top_k, top_p, min_p].iter().any(Option::is_some);
        Ok(Self {
            eos_token_id: ends.filter_map(|id| u32::try_from(id.to_json().as_u64()?).ok()).collect(),
            max_new_tokens: metadata.unsigned(MAX_NEW_TOKENS)?.and_then(|tokens| usize::try_from(tokens).ok()),
            do_sample: asked && temperature != Some(0.0),
            temperature,
            top_k: top_k.filter(|k| *k >= 1.0).map(|k| k as usize),
            top_p,
            min_p,
            repetition_penalty: number("penalty_repeat")?,
            ..Self::default()
        })
    }

    /// Writes the settings into the metadata of a GGUF file, some of them with this project's own keys.
    pub fn write(&self, metadata: &mut Metadata) {
        let ends: Vec<i32> = self.eos_token_id.iter().filter_map(|id| i32::try_from(*id).ok()).collect();
        metadata.insert(EOS_TOKEN_IDS, &ends[..]);
        if let Some(tokens) = self.max_new_tokens.and_then(|tokens| u32::try_from(tokens).ok()) {
            metadata.insert(MAX_NEW_TOKENS, tokens);
        }
        let mut number = |name: &str, value: Option<f64>| {
            if let Some(value) = value {
                metadata.insert(format!("{SAMPLING}{name}"), value as f32);
            }
        };
        number("penalty_repeat", self.repetition_penalty);
        if !self.do_sample {
            return;
        }
        number("temp", Some(self.temperature.unwrap_or(1.0)));
        number("top_p", self.top_p);
        number("min_p", self.min_p);
        if let Some(top_k) = self.top_k {
            metadata.insert(format!("{SAMPLING}top_k"), Scalar::I32(i32::try_from(top_k).unwrap_or(i32::MAX)));
        }
    }

    fn from_json(file: &JsonFile) -> Result<Self> {
        Ok(Self {
            eos_token_id: file.token_ids("eos_token_id")?,
            bos_token_id: file.token_ids("bos_token_id")?.first().copied(),
            do_sample: file.flag("do_sample")?.unwrap_or(false),
            temperature: file.number("temperature")?,
            top_k: top_k(file)?,
            top_p: file.number("top_p")?,
            min_p: file.number("min_p")?,
            repetition_penalty: file.number("repetition_penalty")?,
            max_new_tokens: file.size("max_new_tokens")?,
        })
    }
}

fn top_k(file: &JsonFile) -> Result<Option<usize>> {
    const CLASS_DEFAULT: usize = 50;
    let samples = file.flag("do_sample")?.unwrap_or(false);
    if samples && !file.has("top_k") {
        return Ok(Some(CLASS_DEFAULT));
    }
    // Zero and negative numbers mean "no limit".
    Ok(file.number("top_k")?.filter(|k| *k >= 1.0).map(|k| k as usize))
}
