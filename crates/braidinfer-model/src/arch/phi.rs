//! Phi 1, 1.5 and 2: attention and a plain MLP side by side after one LayerNorm, biases everywhere, partial RoPE.

use crate::arch::llama_like::{Defaults, decoder, per_head_norm, set_attention_bias, set_feed_forward};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::layout::{LayerSlot, TensorNames};
use crate::spec::{Activation, BlockSpec, FeedForward, NormKind, NormSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "phi",
    aliases: &[],
    models: "Phi-1, Phi-1.5, Phi-2",
    describe,
    fixtures: &["phi", "phi-qk-layernorm"],
};

const DEFAULTS: Defaults =
    Defaults { rope: RopeDefaults { partial_rotary_factor: 0.5, ..Defaults::LLAMA.rope }, ..Defaults::LLAMA };

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    let eps = config.positive("layer_norm_eps")?.unwrap_or(1e-5);
    spec.norm = NormSpec { kind: NormKind::Layer, eps, weight_offset: 0.0 };
    spec.block = BlockSpec::PARALLEL;
    spec.lm_head_bias = true;
    set_attention_bias(spec, true);
    let absent = config.text("hidden_act")?.is_none();
    set_feed_forward(spec, |FeedForward::Dense { intermediate_size, hidden_act, .. }| FeedForward::Dense {
        intermediate_size,
        hidden_act: if absent { Activation::GeluTanh } else { hidden_act },
        gated: false,
        bias: true,
    });
    if config.flag("qk_layernorm")?.unwrap_or(false) {
        spec.attention.qk_norm = per_head_norm(spec.norm);
    }
    description.names = tensor_names();
    Ok(description)
}

fn tensor_names() -> TensorNames {
    TensorNames::default().with_final_norm("final_layernorm").with(&[
        (LayerSlot::OProj, "self_attn.dense"),
        (LayerSlot::QNorm, "self_attn.q_layernorm"),
        (LayerSlot::KNorm, "self_attn.k_layernorm"),
        (LayerSlot::UpProj, "mlp.fc1"),
        (LayerSlot::DownProj, "mlp.fc2"),
    ])
}
