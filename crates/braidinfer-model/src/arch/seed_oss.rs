//! Seed-OSS: LLaMA with biases on queries, keys and values, and a flag of its own for the output's bias.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, decoder, read_mlp_bias};
use crate::arch::{Architecture, Description};
use crate::layout::LayerSlot;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "seed_oss",
    aliases: &[],
    models: "Seed-OSS 36B",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("seed-coder"),
        llama_cpp: LlamaCpp { output_bias: true, ..LlamaCpp::PLAIN },
        names: &[(LayerSlot::FeedForwardNorm, "post_attention_norm")],
        ..GgufForm::named("seed_oss")
    }),
    fixtures: &["seed_oss"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(155_136, 4096, 27_648, 64, 80),
    head_dim: Some(128),
    num_key_value_heads: Some(8),
    max_position_embeddings: 524_288,
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.attentions[0].qkv_bias = config.flag("attention_bias")?.unwrap_or(true);
    spec.attentions[0].output_bias = config.flag("attention_out_bias")?.unwrap_or(false);
    read_mlp_bias(config, "mlp_bias", spec)?;
    Ok(description)
}
