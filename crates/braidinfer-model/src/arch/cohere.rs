//! Command R: attention and feed-forward network in parallel after a LayerNorm without bias, interleaved RoPE, logits
//! multiplied by `logit_scale`.

use crate::arch::gguf::GgufForm;
use crate::arch::llama_like::{Defaults, Sizes, decoder, read_attention_bias};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::spec::{BlockSpec, NormKind, NormSpec, QkNormExtent, QkNormSpec, RopePairing};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "cohere",
    aliases: &[],
    models: "Command R, Command R+, Aya 23, Aya Expanse",
    describe,
    gguf: Some(GgufForm { pre_tokenizer: Some("command-r"), logit_scale: true, ..GgufForm::named("command-r") }),
    fixtures: &["cohere"],
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = family(config, 500_000.0)?;
    let spec = &mut description.spec;
    if config.flag("use_qk_norm")?.unwrap_or(false) {
        spec.attentions[0].qk_norm =
            Some(QkNormSpec { extent: QkNormExtent::EachHead, norm: spec.norm, after_rope: false });
    }
    Ok(description)
}

/// The common parts of Command R and its successors.
pub(super) fn family(config: &JsonFile, rope_theta: f64) -> Result<Description> {
    let defaults = Defaults {
        sizes: Sizes::new(256_000, 8192, 22_528, 40, 64),
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
        rope: RopeDefaults { rope_theta, pairing: RopePairing::Interleaved, ..Defaults::LLAMA.rope },
        ..Defaults::LLAMA
    };
    let mut description = decoder(config, &defaults)?;
    let spec = &mut description.spec;
    let eps = config.positive("layer_norm_eps")?.unwrap_or(1e-5);
    spec.norm = NormSpec { kind: NormKind::Layer, eps, weight_offset: 0.0, bias: false };
    spec.block = BlockSpec::PARALLEL;
    spec.logits_scaling = 1.0 / config.positive("logit_scale")?.unwrap_or(0.0625);
    read_attention_bias(config, "attention_bias", spec)?;
    Ok(description)
}
