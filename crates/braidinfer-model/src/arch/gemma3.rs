//! Gemma 3, text part: Gemma 2 with query/key norms and two rotary tables, one for sliding and one for full layers.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, per_head_norm, set_windows, sliding_window};
use crate::arch::rope_config::{RopeDefaults, two_tables};
use crate::arch::{Architecture, Description, gemma, gemma2};
use crate::spec::{BlockSpec, Mixer};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma3_text",
    aliases: &["gemma3"],
    models: "Gemma 3 270M, 1B; the text part of 4B, 12B, 27B",
    describe,
    gguf: Some(GgufForm { offset_included: true, llama_cpp: LlamaCpp::WINDOWS, ..GgufForm::named("gemma3") }),
    fixtures: &["gemma3", "gemma3-old-style", "gemma3-softcap"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(262_208, 2304, 9216, 26, 8),
    max_position_embeddings: 131_072,
    rope: RopeDefaults { rope_theta: 1_000_000.0, ..gemma2::DEFAULTS.rope },
    ..gemma2::DEFAULTS
};
/// Theta of the sliding layers.
const SLIDING_THETA: f64 = 10_000.0;
/// Indices into [`DecoderSpec::rope`].
const FULL_TABLE: usize = 0;
const SLIDING_TABLE: usize = 1;

fn describe(config: &JsonFile) -> Result<Description> {
    if config.flag("use_bidirectional_attention")? == Some(true) {
        return Err(config.error("use_bidirectional_attention", "false, since attention here is causal", "true"));
    }
    let mut description = gemma::family(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.block = BlockSpec::SANDWICH;
    spec.attentions[0].scale = gemma2::query_pre_attn_scale(config)?;
    // Published configs have `attn_logit_softcapping`, but transformers ignores it.
    spec.final_logit_softcapping = gemma2::cap(config, "final_logit_softcapping", None)?;
    spec.attentions[0].qk_norm = per_head_norm(spec.norm);
    let window = sliding_window(config, Some(4096))?;
    let pattern = config.size("sliding_window_pattern")?.or(config.size("_sliding_window_pattern")?).unwrap_or(6);
    set_windows(config, spec, window, |layer| (layer + 1) % pattern != 0)?;
    let head_dim = spec.attentions[0].head_dim;
    spec.rope = two_tables(config, &DEFAULTS.rope, SLIDING_THETA, head_dim, spec.max_position_embeddings)?.into();
    for layer in &mut spec.layers {
        if let Mixer::Attention { sliding_window, rope, .. } = &mut layer.mixer {
            *rope = Some(if sliding_window.is_some() { SLIDING_TABLE } else { FULL_TABLE });
        }
    }
    description.names = gemma2::tensor_names();
    Ok(description)
}
