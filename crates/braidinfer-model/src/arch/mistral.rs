//! Mistral: LLaMA with a sliding window on every layer.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, decoder, set_windows, sliding_window};
use crate::arch::{Architecture, Description};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "mistral",
    aliases: &["mistral3"],
    models: "Mistral 7B v0.1 to v0.3, Mistral Nemo, Mistral Small",
    describe,
    gguf: Some(GgufForm { neighbours: true, llama_cpp: LlamaCpp::LLAMA, ..GgufForm::named("llama") }),
    fixtures: &["mistral"],
};

pub(super) const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(32_000, 4096, 14_336, 32, 32),
    num_key_value_heads: Some(8),
    max_position_embeddings: 4096 * 32,
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let window = sliding_window(config, Some(4096))?;
    set_windows(config, &mut description.spec, window, |_| true)?;
    Ok(description)
}
