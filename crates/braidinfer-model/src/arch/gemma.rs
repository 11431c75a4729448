//! Gemma 1: scaled embeddings, norm weights stored as `w - 1`, tanh GELU.

use crate::arch::gguf::GgufForm;
use crate::arch::llama_like::{Defaults, Sizes, decoder, read_attention_bias};
use crate::arch::{Architecture, Description};
use crate::spec::{ActivationFunction, FeedForward};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma",
    aliases: &[],
    models: "Gemma 2B, 7B, CodeGemma",
    describe,
    gguf: Some(GgufForm { offset_included: true, ..GgufForm::named("gemma") }),
    fixtures: &["gemma"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(256_000, 3072, 24_576, 28, 16),
    head_dim: Some(256),
    num_key_value_heads: Some(16),
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    family(config, &DEFAULTS)
}

/// The common parts of all Gemma generations.
pub(super) fn family(config: &JsonFile, defaults: &Defaults) -> Result<Description> {
    let mut description = decoder(config, defaults)?;
    let spec = &mut description.spec;
    spec.embedding_multiplier = (spec.hidden_size as f64).sqrt();
    spec.norm.weight_offset = 1.0;
    read_attention_bias(config, "attention_bias", spec)?;
    // Configs have different values here (`hidden_act: gelu`, `hidden_activation: gelu_pytorch_tanh`); all mean this
    // one.
    for layer in &mut spec.layers {
        let FeedForward::Dense { hidden_act, .. } = &mut layer.feed_forward else { continue };
        *hidden_act = ActivationFunction::GeluTanh;
    }
    Ok(description)
}
