//! OLMo 2: norms only after attention and feed-forward network, and query/key norms over whole projections.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, decoder, read_attention_bias};
use crate::arch::{Architecture, Description};
use crate::spec::{BlockSpec, QkNormExtent, QkNormSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "olmo2",
    aliases: &[],
    models: "OLMo 2 1B, 7B, 13B, 32B",
    describe,
    gguf: Some(GgufForm { pre_tokenizer: Some("dbrx"), llama_cpp: LlamaCpp::WINDOWS, ..GgufForm::named("olmo2") }),
    fixtures: &["olmo2"],
};

pub(super) const DEFAULTS: Defaults =
    Defaults { sizes: Sizes::new(50_304, 4096, 11_008, 32, 32), rms_norm_eps: 1e-5, ..Defaults::LLAMA };

fn describe(config: &JsonFile) -> Result<Description> {
    family(config, &DEFAULTS)
}

/// The common parts of OLMo 2 and 3.
pub(super) fn family(config: &JsonFile, defaults: &Defaults) -> Result<Description> {
    let mut description = decoder(config, defaults)?;
    let spec = &mut description.spec;
    spec.block = BlockSpec::POST_NORM;
    spec.attentions[0].qk_norm =
        Some(QkNormSpec { extent: QkNormExtent::Projection, norm: spec.norm, after_rope: false });
    read_attention_bias(config, "attention_bias", spec)?;
    Ok(description)
}
