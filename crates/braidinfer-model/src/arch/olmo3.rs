//! OLMo 3: OLMo 2 with a window on three of four layers; only the full layers have scaled RoPE.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, set_windows, sliding_window};
use crate::arch::rope_config::{RopeDefaults, two_tables};
use crate::arch::{Architecture, Description, olmo2};
use crate::spec::Mixer;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "olmo3",
    aliases: &[],
    models: "OLMo 3 and 3.1 7B, 32B",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("dbrx"),
        llama_cpp: LlamaCpp { windows: true, yarn_ramp: true, ..LlamaCpp::PLAIN },
        ..GgufForm::named("olmo2")
    }),
    fixtures: &["olmo3"],
};

/// Theta of both kinds of layers.
const THETA: f64 = 500_000.0;
const DEFAULTS: Defaults =
    Defaults { rope: RopeDefaults { rope_theta: THETA, ..Defaults::LLAMA.rope }, ..olmo2::DEFAULTS };

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = olmo2::family(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    let window = sliding_window(config, Some(4096))?;
    set_windows(config, spec, window, |layer| (layer + 1) % 4 != 0)?;
    let head_dim = spec.attentions[0].head_dim;
    spec.rope = two_tables(config, &DEFAULTS.rope, THETA, head_dim, spec.max_position_embeddings)?.into();
    for layer in &mut spec.layers {
        if let Mixer::Attention { sliding_window, rope, .. } = &mut layer.mixer {
            *rope = Some(usize::from(sliding_window.is_some()));
        }
    }
    Ok(description)
}
