//! Ministral 3: Mistral with YaRN and a position-dependent query scale.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, decoder, set_all_windows, sliding_window};
use crate::arch::rope_config::{RopeDefaults, settings};
use crate::arch::{Architecture, Description};
use crate::spec::{QueryPositionScale, RopeScaling};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "ministral3",
    aliases: &[],
    models: "Ministral 3 3B, 8B, 14B, text part",
    describe,
    gguf: Some(GgufForm {
        neighbours: true,
        llama_cpp: LlamaCpp { yarn_ramp: true, ..LlamaCpp::LLAMA },
        ..GgufForm::named("mistral3")
    }),
    fixtures: &["ministral3"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(131_072, 4096, 14_336, 34, 32),
    rms_norm_eps: 1e-5,
    head_dim: Some(128),
    num_key_value_heads: Some(8),
    max_position_embeddings: 262_144,
    rope: RopeDefaults { rope_theta: 1_000_000.0, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

/// Applies if there are no `rope_parameters`, regardless of top-level fields.
const CLASS_SCALING: RopeScaling = RopeScaling::Yarn {
    factor: 16.0,
    original_max_position_embeddings: 16_384,
    beta_fast: 32.0,
    beta_slow: 1.0,
    truncate: true,
    attention_factor: 1.0,
};
const CLASS_BETA: f64 = 0.1;

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    let window = sliding_window(config, None)?;
    set_all_windows(spec, window);
    let beta = match settings(config)? {
        Some(settings) => settings.positive("llama_4_scaling_beta")?,
        None => {
            spec.rope[0].scaling = CLASS_SCALING;
            spec.rope[0].rope_theta = DEFAULTS.rope.rope_theta;
            Some(CLASS_BETA)
        }
    };
    let original = match spec.rope[0].scaling {
        RopeScaling::Yarn { original_max_position_embeddings, .. } => original_max_position_embeddings,
        _ => spec.max_position_embeddings,
    };
    spec.attentions[0].query_position_scale =
        beta.map(|beta| QueryPositionScale { beta, original_max_position_embeddings: original });
    Ok(description)
}
