//! Nemotron-4 and Minitron: LayerNorm whose weights are stored as `w - 1`, an ungated feed-forward network of squared
//! ReLU, partial RoPE.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, decoder, read_attention_bias, read_mlp_bias, set_ungated};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::spec::{ActivationFunction, NormKind, NormSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "nemotron",
    aliases: &[],
    models: "Nemotron-4, Minitron 4B, 8B",
    describe,
    gguf: Some(GgufForm {
        offset_included: true,
        llama_cpp: LlamaCpp { output_bias: true, mlp_bias: true, ..LlamaCpp::PLAIN },
        ..GgufForm::named("nemotron")
    }),
    fixtures: &["nemotron"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(256_000, 6144, 24_576, 32, 48),
    max_position_embeddings: 4096,
    rope: RopeDefaults { partial_rotary_factor: 0.5, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    let eps = config.positive("norm_eps")?.or(config.positive("layer_norm_eps")?).unwrap_or(1e-5);
    spec.norm = NormSpec { kind: NormKind::Layer, eps, weight_offset: 1.0, bias: true };
    read_attention_bias(config, "attention_bias", spec)?;
    read_mlp_bias(config, "mlp_bias", spec)?;
    set_ungated(config, spec, ActivationFunction::Relu2)?;
    Ok(description)
}
