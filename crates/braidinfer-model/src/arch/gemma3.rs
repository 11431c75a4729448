//! Gemma 3, text part: Gemma 2 with query/key norms and two rotary tables, one for sliding and one for full layers.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, per_head_norm, set_windows, sliding_window};
use crate::arch::rope_config::{RopeDefaults, rope_from};
use crate::arch::{Architecture, Description, gemma, gemma2};
use crate::spec::{BlockSpec, DecoderSpec, Mixer, RopeSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma3_text",
    aliases: &["gemma3"],
    models: "Gemma 3 270M, 1B; the text part of 4B, 12B, 27B",
    describe,
    gguf: Some(GgufForm { offset_included: true, llama_cpp: LlamaCpp::WINDOWS, ..GgufForm::named("gemma3") }),
    fixtures: &["gemma3", "gemma3-old-style", "gemma3-softcap"],
};

const DEFAULTS: Defaults =
    Defaults { sizes: Sizes::new(262_208, 2304, 9216, 26, 8), max_position_embeddings: 131_072, ..gemma2::DEFAULTS };
const FULL_THETA: f64 = 1_000_000.0;
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
    spec.rope = tables(config, spec)?;
    for layer in &mut spec.layers {
        if let Mixer::Attention { sliding_window, rope, .. } = &mut layer.mixer {
            *rope = Some(if sliding_window.is_some() { SLIDING_TABLE } else { FULL_TABLE });
        }
    }
    description.names = gemma2::tensor_names();
    Ok(description)
}

fn tables(config: &JsonFile, spec: &DecoderSpec) -> Result<Vec<RopeSpec>> {
    let (full, sliding) = (full_settings(config)?, nested_settings(config, "sliding_attention")?);
    let table = |settings: Option<&JsonFile>, rope_theta| {
        let defaults = RopeDefaults { rope_theta, ..DEFAULTS.rope };
        rope_from(config, settings, &defaults, spec.attentions[0].head_dim, spec.max_position_embeddings)
    };
    let full_table = table(full.as_ref(), FULL_THETA)?;
    let mut sliding_table = table(sliding.as_ref(), SLIDING_THETA)?;
    let nested_theta = sliding.map(|sliding| sliding.positive("rope_theta")).transpose()?.flatten();
    sliding_table.rope_theta = match nested_theta {
        Some(theta) => theta,
        None => config.positive("rope_local_base_freq")?.unwrap_or(SLIDING_THETA),
    };
    Ok(vec![full_table, sliding_table])
}

fn nested_settings(config: &JsonFile, layers: &str) -> Result<Option<JsonFile>> {
    let parameters = config.object("rope_parameters")?;
    parameters.map(|parameters| parameters.object(layers)).transpose().map(Option::flatten)
}

/// RoPE settings of full-attention layers: the new-style settings, overwritten by an old-style `rope_scaling`.
///
/// In the old style only the key `rope_type` counts: transformers ignores an older `type` key alone, and published
/// models that rely on scaling have `rope_type`.
fn full_settings(config: &JsonFile) -> Result<Option<JsonFile>> {
    let nested = nested_settings(config, "full_attention")?;
    match (config.object("rope_scaling")?, nested) {
        (Some(scaling), Some(nested)) => Ok(Some(nested.overlaid(&scaling))),
        (Some(scaling), None) if scaling.has("rope_type") => Ok(Some(scaling)),
        (Some(_), None) => Ok(None),
        (None, nested) => Ok(nested),
    }
}
