//! StableLM: LLaMA with LayerNorm and partial RoPE, optionally with attention and feed-forward network in parallel.

use crate::arch::gguf::GgufForm;
use crate::arch::llama_like::{Defaults, Sizes, decoder};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::spec::{BlockSpec, NormKind, NormSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "stablelm",
    aliases: &[],
    models: "StableLM 3B, Zephyr 3B, StableLM 2 1.6B, Stable Code",
    describe,
    gguf: Some(GgufForm { parallel_residual: true, ..GgufForm::named("stablelm") }),
    fixtures: &["stablelm", "stablelm-parallel"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(50_304, 2560, 6912, 32, 32),
    num_key_value_heads: Some(32),
    max_position_embeddings: 4096,
    rope: RopeDefaults { partial_rotary_factor: 0.25, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    if config.flag("qk_layernorm")? == Some(true) {
        // Each head's norm is a tensor of its own in these checkpoints.
        return Err(config.error("qk_layernorm", "false, since norms of single heads are not read yet", "true"));
    }
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    let eps = config.positive("layer_norm_eps")?.unwrap_or(1e-5);
    spec.norm = NormSpec { kind: NormKind::Layer, eps, weight_offset: 0.0, bias: true };
    spec.attentions[0].qkv_bias = config.flag("use_qkv_bias")?.unwrap_or(false);
    if config.flag("use_parallel_residual")?.unwrap_or(false) {
        spec.block = BlockSpec::PARALLEL;
    }
    Ok(description)
}
