//! Helium: LLaMA with interleaved RoPE.

use crate::arch::llama_like::{Defaults, Sizes, decoder, read_mlp_bias};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::spec::RopePairing;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "helium",
    aliases: &[],
    models: "Helium 1 2B",
    describe,
    gguf: None,
    fixtures: &["helium"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(48_000, 2560, 7040, 24, 20),
    rms_norm_eps: 1e-8,
    head_dim: Some(128),
    num_key_value_heads: Some(20),
    max_position_embeddings: 4096,
    rope: RopeDefaults { rope_theta: 100_000.0, pairing: RopePairing::Interleaved, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    // Unlike in most models, the output projection has no bias.
    spec.attentions[0].qkv_bias = config.flag("attention_bias")?.unwrap_or(false);
    read_mlp_bias(config, "mlp_bias", spec)?;
    Ok(description)
}
