//! ERNIE 4.5, dense: LLaMA with interleaved RoPE.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, decoder, read_attention_bias, read_mlp_bias};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::spec::RopePairing;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "ernie4_5",
    aliases: &[],
    models: "ERNIE 4.5 0.3B",
    describe,
    gguf: Some(GgufForm {
        llama_cpp: LlamaCpp { output_bias: true, ..LlamaCpp::PLAIN },
        ..GgufForm::named("ernie4_5")
    }),
    fixtures: &["ernie4_5", "ernie4_5-bias"],
};

pub(super) const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(103_424, 1024, 3072, 18, 16),
    rms_norm_eps: 1e-5,
    head_dim: Some(128),
    num_key_value_heads: Some(2),
    max_position_embeddings: 131_072,
    tie_word_embeddings: true,
    rope: RopeDefaults { rope_theta: 500_000.0, pairing: RopePairing::Interleaved, ..Defaults::LLAMA.rope },
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    read_attention_bias(config, "use_bias", &mut description.spec)?;
    read_mlp_bias(config, "use_bias", &mut description.spec)?;
    Ok(description)
}
