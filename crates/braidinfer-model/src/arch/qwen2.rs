//! Qwen 2 and 2.5: LLaMA with biases of queries, keys and values.

use crate::arch::gguf::GgufForm;
use crate::arch::llama_like::{Defaults, Sizes, decoder, set_windows, sliding_window};
use crate::arch::{Architecture, Description};
use crate::spec::DecoderSpec;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen2",
    aliases: &[],
    models: "Qwen 2, Qwen 2.5, QwQ, DeepSeek-R1 distills",
    describe,
    gguf: Some(GgufForm { pre_tokenizer: Some("qwen2"), ..GgufForm::named("qwen2") }),
    fixtures: &["qwen2", "qwen2-window"],
};

pub(super) const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(151_936, 4096, 22_016, 32, 32),
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    description.spec.attentions[0].qkv_bias = true;
    set_upper_windows(config, &mut description.spec)?;
    Ok(description)
}

/// Qwen's window is opt-in and starts at layer `max_window_layers`; `sliding_window` alone has no effect.
pub(super) fn set_upper_windows(config: &JsonFile, spec: &mut DecoderSpec) -> Result<()> {
    let enabled = config.flag("use_sliding_window")?.unwrap_or(false);
    let window = if enabled { sliding_window(config, Some(4096))? } else { None };
    // Zero is valid: then all layers have a window.
    let first = config.count_or("max_window_layers", 28)?;
    if window.is_none() {
        return Ok(());
    }
    set_windows(config, spec, window, |layer| layer >= first)
}
