//! `generation_config.json`: where a text ends and how the authors would sample it.

use crate::{JsonFile, ModelSource, Result};

/// Generation defaults a checkpoint ships with. Absent settings are `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end a text.
    pub eos_token_id: Vec<u32>,
    /// Id that begins a text.
    pub bos_token_id: Option<u32>,
    /// Whether to sample; greedy when false or absent, as in `transformers`.
    pub do_sample: bool,
    /// Softmax temperature.
    pub temperature: Option<f64>,
    /// Keep this many most likely tokens; 50 where the file samples and does not say, as in `transformers`.
    pub top_k: Option<usize>,
    /// Keep the smallest set of tokens with this much probability.
    pub top_p: Option<f64>,
    /// Keep tokens at least this likely relative to the likeliest.
    pub min_p: Option<f64>,
    /// Divide (or multiply) the logits of seen tokens by this.
    pub repetition_penalty: Option<f64>,
    /// Most tokens of an answer.
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`; ids it lacks come from `config`, the model's `config.json`.
    pub fn read(source: &ModelSource, config: &JsonFile) -> Result<Self> {
        let mut settings = match JsonFile::read(source, "generation_config.json")? {
            Some(file) => Self::from_json(&file)?,
            None => Self::default(),
        };
        if settings.eos_token_id.is_empty() {
            settings.eos_token_id = config.token_ids("eos_token_id")?;
        }
        if settings.bos_token_id.is_none() {
            settings.bos_token_id = config.token_ids("bos_token_id")?.first().copied();
        }
        Ok(settings)
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
    // Zero, or less, says "no limit".
    Ok(file.number("top_k")?.filter(|k| *k >= 1.0).map(|k| k as usize))
}
