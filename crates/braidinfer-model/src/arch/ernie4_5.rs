//! ERNIE 4.5, dense: LLaMA whose RoPE turns neighbouring dimensions.

use crate::arch::llama_like::{Defaults, decoder, set_attention_bias, set_feed_forward_bias};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::spec::RopePairing;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "ernie4_5",
    aliases: &[],
    models: "ERNIE 4.5 0.3B",
    describe,
    fixtures: &["ernie4_5", "ernie4_5-bias"],
};

const DEFAULTS: Defaults = Defaults {
    rms_norm_eps: 1e-5,
    head_dim: Some(128),
    num_key_value_heads: Some(2),
    max_position_embeddings: 131_072,
    tie_word_embeddings: true,
    rope: RopeDefaults { rope_theta: 500_000.0, partial_rotary_factor: 1.0, pairing: RopePairing::Interleaved },
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let bias = config.flag("use_bias")?.unwrap_or(false);
    set_attention_bias(&mut description.spec, bias);
    set_feed_forward_bias(&mut description.spec, bias);
    Ok(description)
}
