//! Gemma 1: scaled embeddings, norm weights stored as `w - 1`, tanh GELU.

use crate::arch::llama_like::{Defaults, decoder, set_activation, set_attention_bias};
use crate::arch::{Architecture, Description};
use crate::spec::Activation;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma",
    aliases: &[],
    models: "Gemma 2B, 7B, CodeGemma",
    describe,
    fixtures: &["gemma"],
};

const DEFAULTS: Defaults = Defaults {
    head_dim: Some(256),
    num_key_value_heads: Some(16),
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    family(config, &DEFAULTS)
}

/// What all Gemma generations share.
pub(super) fn family(config: &JsonFile, defaults: &Defaults) -> Result<Description> {
    let mut description = decoder(config, defaults)?;
    let spec = &mut description.spec;
    spec.embedding_multiplier = (spec.hidden_size as f64).sqrt();
    spec.norm.weight_offset = 1.0;
    set_attention_bias(spec, config.flag("attention_bias")?.unwrap_or(false));
    // Configs disagree on the name (`hidden_act: gelu`, `hidden_activation: gelu_pytorch_tanh`); all mean this one.
    set_activation(spec, Activation::GeluTanh);
    Ok(description)
}
