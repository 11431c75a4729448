//! Ministral 3: Mistral with YaRN and queries that grow with the position.

use crate::arch::llama_like::{Defaults, decoder, set_windows, sliding_window};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::spec::{QueryPositionScale, RopeScaling};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "ministral3",
    aliases: &[],
    models: "Ministral 3 3B, 8B, 14B, text part",
    describe,
    fixtures: &["ministral3"],
};

const DEFAULTS: Defaults = Defaults {
    rms_norm_eps: 1e-5,
    head_dim: Some(128),
    num_key_value_heads: Some(8),
    max_position_embeddings: 262_144,
    rope: RopeDefaults { rope_theta: 1_000_000.0, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    let window = sliding_window(config, None)?;
    set_windows(config, spec, window, |_| true)?;
    let settings = config.object("rope_parameters")?;
    let beta = settings.map(|settings| settings.positive("llama_4_scaling_beta")).transpose()?.flatten();
    let original = match spec.rope[0].scaling {
        RopeScaling::Yarn { original_max_position_embeddings, .. } => original_max_position_embeddings,
        _ => spec.max_position_embeddings,
    };
    spec.attention.query_position_scale =
        beta.map(|beta| QueryPositionScale { beta, original_max_position_embeddings: original });
    Ok(description)
}
