//! Apertus: LLaMA with query/key norms and an ungated feed-forward network of xIELU, with parameters in each layer.

use crate::arch::llama_like::{Defaults, Sizes, decoder, per_head_norm, read_attention_bias, set_ungated};
use crate::arch::rope_config::{RopeDefaults, settings};
use crate::arch::{Architecture, Description};
use crate::layout::{LayerSlot, TensorNames};
use crate::spec::{ActivationFunction, RopeScaling};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "apertus",
    aliases: &[],
    models: "Apertus 8B, 70B",
    describe,
    gguf: None,
    fixtures: &["apertus"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(131_072, 4096, 14_336, 32, 32),
    rms_norm_eps: 1e-5,
    max_position_embeddings: 65_536,
    rope: RopeDefaults { rope_theta: 12_000_000.0, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

/// Applies if there are no `rope_parameters`.
const CLASS_SCALING: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 8192,
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    // transformers takes a top-level `rope_theta` only with settings.
    if settings(config)?.is_none_or(|settings| settings.is_empty()) {
        spec.rope[0].scaling = CLASS_SCALING;
        spec.rope[0].rope_theta = DEFAULTS.rope.rope_theta;
    }
    spec.attentions[0].qk_norm = per_head_norm(spec.norm);
    read_attention_bias(config, "attention_bias", spec)?;
    set_ungated(config, spec, ActivationFunction::Xielu)?;
    description.names = TensorNames::default()
        .with(&[(LayerSlot::InputNorm, "attention_layernorm"), (LayerSlot::FeedForwardNorm, "feedforward_layernorm")]);
    Ok(description)
}
