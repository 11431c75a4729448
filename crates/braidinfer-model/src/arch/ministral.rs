//! Ministral: Mistral with an explicit pattern of full and sliding layers.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{decoder, set_windows, sliding_window};
use crate::arch::{Architecture, Description, mistral};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "ministral",
    aliases: &[],
    models: "Ministral 8B",
    describe,
    gguf: Some(GgufForm { neighbours: true, llama_cpp: LlamaCpp::LLAMA, ..GgufForm::named("llama") }),
    fixtures: &["ministral"],
};

fn describe(config: &JsonFile) -> Result<Description> {
    config.required_size("head_dim")?;
    let mut description = decoder(config, &mistral::DEFAULTS)?;
    let window = sliding_window(config, Some(4096))?;
    set_windows(config, &mut description.spec, window, |_| true)?;
    Ok(description)
}
