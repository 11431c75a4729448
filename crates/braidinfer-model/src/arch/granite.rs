//! Granite: LLaMA with four multipliers.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, decoder, read_attention_bias, read_mlp_bias};
use crate::arch::{Architecture, Description};
use crate::spec::Mixer;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "granite",
    aliases: &[],
    models: "Granite 3.0 to 3.3, dense",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("refact"),
        neighbours: true,
        multipliers: true,
        llama_cpp: LlamaCpp::LLAMA,
        ..GgufForm::named("granite")
    }),
    fixtures: &["granite"],
};

pub(super) fn describe(config: &JsonFile) -> Result<Description> {
    decoder_with(config, &Defaults::LLAMA)
}

/// With other class defaults.
pub(super) fn decoder_with(config: &JsonFile, defaults: &Defaults) -> Result<Description> {
    let mut description = decoder(config, defaults)?;
    let spec = &mut description.spec;
    let multiplier = |field: &str| Ok(config.positive(field)?.unwrap_or(1.0));
    spec.embedding_multiplier = multiplier("embedding_multiplier")?;
    spec.residual_multiplier = multiplier("residual_multiplier")?;
    spec.logits_scaling = multiplier("logits_scaling")?;
    spec.attentions[0].scale = multiplier("attention_multiplier")?;
    read_attention_bias(config, "attention_bias", spec)?;
    read_mlp_bias(config, "mlp_bias", spec)?;
    if config.text("position_embedding_type")? == Some("nope") {
        for layer in &mut spec.layers {
            if let Mixer::Attention { rope, .. } = &mut layer.mixer {
                *rope = None;
            }
        }
    }
    Ok(description)
}
