//! Gemma 2: Gemma with norms before and after attention and feed-forward network, softcaps, and a window on even
//! layers.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, set_windows, sliding_window};
use crate::arch::{Architecture, Description, gemma};
use crate::layout::{LayerSlot, TensorNames};
use crate::spec::BlockSpec;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma2",
    aliases: &[],
    models: "Gemma 2 2B, 9B, 27B",
    describe,
    gguf: Some(GgufForm { offset_included: true, llama_cpp: LlamaCpp::WINDOWS, ..GgufForm::named("gemma2") }),
    fixtures: &["gemma2"],
};

pub(super) const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(256_000, 2304, 9216, 26, 8),
    head_dim: Some(256),
    num_key_value_heads: Some(4),
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = gemma::family(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.block = BlockSpec::SANDWICH;
    spec.attentions[0].scale = query_pre_attn_scale(config)?;
    spec.attentions[0].logit_softcapping = cap(config, "attn_logit_softcapping", Some(50.0))?;
    spec.final_logit_softcapping = cap(config, "final_logit_softcapping", Some(30.0))?;
    let window = sliding_window(config, Some(4096))?;
    set_windows(config, spec, window, |layer| layer % 2 == 0)?;
    description.names = tensor_names();
    Ok(description)
}

/// The score scale of Gemma 2 and 3, which is independent of the head width.
pub(super) fn query_pre_attn_scale(config: &JsonFile) -> Result<f64> {
    Ok(config.positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5))
}

/// A softcap: an explicit null means none, unlike an absent key.
pub(super) fn cap(config: &JsonFile, field: &str, absent: Option<f64>) -> Result<Option<f64>> {
    if config.has(field) { config.positive(field) } else { Ok(absent) }
}

/// The norm names of Gemma 2 and 3.
pub(super) fn tensor_names() -> TensorNames {
    TensorNames::default().with(&[(LayerSlot::FeedForwardNorm, "pre_feedforward_layernorm")])
}
