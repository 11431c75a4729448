//! OLMo 2: norms only after each half, and on whole query and key projections.

use crate::arch::llama_like::{Defaults, decoder, set_attention_bias};
use crate::arch::{Architecture, Description};
use crate::spec::{BlockSpec, QkNormExtent, QkNormSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "olmo2",
    aliases: &[],
    models: "OLMo 2 1B, 7B, 13B, 32B",
    describe,
    fixtures: &["olmo2"],
};

const DEFAULTS: Defaults = Defaults { rms_norm_eps: 1e-5, ..Defaults::LLAMA };

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.block = BlockSpec::POST_NORM;
    spec.attention.qk_norm = Some(QkNormSpec { extent: QkNormExtent::Projection, norm: spec.norm });
    set_attention_bias(spec, config.flag("attention_bias")?.unwrap_or(false));
    Ok(description)
}
