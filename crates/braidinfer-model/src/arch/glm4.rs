//! GLM-4-0414: norms before and after attention and feed-forward network, interleaved RoPE on half of each head.

use crate::arch::gguf::GgufForm;
use crate::arch::llama_like::{Defaults, Sizes, decoder};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::layout::{LayerSlot, TensorNames};
use crate::spec::{BlockSpec, RopePairing};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "glm4",
    aliases: &[],
    models: "GLM-4-0414 9B, 32B, GLM-Z1",
    describe,
    gguf: Some(GgufForm { pre_tokenizer: Some("glm4"), stacked_gate_up: true, ..GgufForm::named("glm4") }),
    fixtures: &["glm4"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(151_552, 4096, 13_696, 40, 32),
    rms_norm_eps: 1.5625e-7,
    head_dim: Some(128),
    num_key_value_heads: Some(2),
    max_position_embeddings: 131_072,
    rope: RopeDefaults { partial_rotary_factor: 0.5, pairing: RopePairing::Interleaved, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.block = BlockSpec::SANDWICH;
    spec.attentions[0].qkv_bias = config.flag("attention_bias")?.unwrap_or(true);
    description.names = tensor_names();
    Ok(description)
}

fn tensor_names() -> TensorNames {
    TensorNames::default().with(&[
        (LayerSlot::AttentionOutputNorm, "post_self_attn_layernorm"),
        (LayerSlot::GateProj, "mlp.gate_up_proj"),
        (LayerSlot::UpProj, "mlp.gate_up_proj"),
        (LayerSlot::FeedForwardOutputNorm, "post_mlp_layernorm"),
    ])
}
