//! MiniCPM 3: latent attention in a dense decoder with three multipliers.

use crate::arch::gguf::GgufForm;
use crate::arch::latent_config::{Widths, latent_decoder};
use crate::arch::llama_like::{Defaults, Sizes, read_mlp_bias};
use crate::arch::{Architecture, Description};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "minicpm3",
    aliases: &[],
    models: "MiniCPM3 4B",
    describe,
    gguf: Some(GgufForm { latent: true, ..GgufForm::named("minicpm3") }),
    fixtures: &["minicpm3"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(73_448, 2560, 6400, 62, 40),
    rms_norm_eps: 1e-5,
    num_key_value_heads: Some(40),
    max_position_embeddings: 32_768,
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

const WIDTHS: Widths =
    Widths { q_lora_rank: 768, kv_lora_rank: 256, qk_nope_head_dim: 64, qk_rope_head_dim: 32, v_head_dim: None };

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = latent_decoder(config, &DEFAULTS, &WIDTHS)?;
    let spec = &mut description.spec;
    read_mlp_bias(config, "mlp_bias", spec)?;
    // An explicit null means that nothing is multiplied, unlike an absent key.
    let or_null = |field: &str, absent: f64, null: f64| {
        let missing = if config.has(field) { null } else { absent };
        Ok(config.positive(field)?.unwrap_or(missing))
    };
    let depth = (spec.layers.len() as f64).sqrt();
    let width = spec.hidden_size as f64;
    spec.embedding_multiplier = config.positive("scale_emb")?.unwrap_or(12.0);
    spec.residual_multiplier = or_null("scale_depth", 1.4, depth)? / depth;
    spec.logits_scaling = width / or_null("dim_model_base", 256.0, width)?;
    Ok(description)
}
