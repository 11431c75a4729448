//! Gemma 3, text part: Gemma 2 with query/key norms and two rotary tables, one for sliding and one for full layers.

use crate::arch::llama_like::{Defaults, per_head_norm, query_pre_attn_scale, set_windows, sliding_window};
use crate::arch::rope_config::{RopeDefaults, rope_from};
use crate::arch::{Architecture, Description, gemma, gemma2};
use crate::spec::{BlockSpec, DecoderSpec, Mixer, RopeScaling, RopeSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma3_text",
    aliases: &["gemma3"],
    models: "Gemma 3 270M, 1B; the text part of 4B, 12B, 27B",
    describe,
    fixtures: &["gemma3", "gemma3-old-style", "gemma3-softcap"],
};

const DEFAULTS: Defaults = Defaults { max_position_embeddings: 131_072, ..gemma2::DEFAULTS };
const FULL_THETA: f64 = 1_000_000.0;
const SLIDING_THETA: f64 = 10_000.0;
/// Indices into [`DecoderSpec::rope`].
const FULL_TABLE: usize = 0;
const SLIDING_TABLE: usize = 1;

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = gemma::family(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.block = BlockSpec::SANDWICH;
    spec.attention.scale = query_pre_attn_scale(config)?;
    // `attn_logit_softcapping` stands in published configs and has no effect in transformers.
    spec.final_logit_softcapping = gemma2::cap(config, "final_logit_softcapping", None)?;
    spec.attention.qk_norm = per_head_norm(spec.norm);
    let window = sliding_window(config, Some(4096))?;
    let pattern = config.size("sliding_window_pattern")?.or(config.size("_sliding_window_pattern")?).unwrap_or(6);
    set_windows(config, spec, window, |layer| (layer + 1) % pattern != 0)?;
    spec.rope = tables(config, spec)?;
    for layer in &mut spec.layers {
        let Mixer::Attention { sliding_window, rope } = &mut layer.mixer;
        *rope = Some(if sliding_window.is_some() { SLIDING_TABLE } else { FULL_TABLE });
    }
    description.names = gemma2::tensor_names();
    Ok(description)
}

fn tables(config: &JsonFile, spec: &DecoderSpec) -> Result<Vec<RopeSpec>> {
    let defaults = |rope_theta| RopeDefaults { rope_theta, ..DEFAULTS.rope };
    let (head_dim, len) = (spec.head_dim, spec.max_position_embeddings);
    let parameters = config.object("rope_parameters")?;
    let nested =
        |kind: &str| parameters.as_ref().map(|parameters| parameters.object(kind)).transpose().map(Option::flatten);
    let (full, sliding) = (nested("full_attention")?, nested("sliding_attention")?);
    // The old style scales full layers only, with `rope_scaling` before anything in `rope_parameters`.
    let full = config.object("rope_scaling")?.or(full);
    let full_table = rope_from(config, full.as_ref(), &defaults(FULL_THETA), head_dim, len)?;
    let mut sliding_table = rope_from(config, sliding.as_ref(), &defaults(SLIDING_THETA), head_dim, len)?;
    let local_theta = match &sliding {
        Some(sliding) => sliding.positive("rope_theta")?,
        None => config.positive("rope_local_base_freq")?,
    };
    sliding_table.rope_theta = local_theta.unwrap_or(SLIDING_THETA);
    if sliding.is_none() {
        sliding_table.scaling = RopeScaling::Default;
    }
    Ok(vec![full_table, sliding_table])
}
