//! Phi 1, 1.5 and 2: attention and an ungated MLP in parallel after one LayerNorm, biases everywhere, partial RoPE.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, decoder, per_head_norm};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::layout::{LayerSlot, TensorNames};
use crate::spec::{ActivationFunction, BlockSpec, FeedForward, NormKind, NormSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "phi",
    aliases: &[],
    models: "Phi-1, Phi-1.5, Phi-2",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("phi-2"),
        llama_cpp: LlamaCpp { rope_freqs: false, ..LlamaCpp::LLAMA },
        ..GgufForm::named("phi2")
    }),
    fixtures: &["phi", "phi-qk-layernorm"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(51_200, 2048, 8192, 24, 32),
    rope: RopeDefaults { partial_rotary_factor: 0.5, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    let eps = config.positive("layer_norm_eps")?.unwrap_or(1e-5);
    spec.norm = NormSpec { kind: NormKind::Layer, eps, weight_offset: 0.0, bias: true };
    spec.block = BlockSpec::PARALLEL;
    spec.lm_head_bias = true;
    (spec.attentions[0].qkv_bias, spec.attentions[0].output_bias) = (true, true);
    let absent = config.text("hidden_act")?.is_none();
    for layer in &mut spec.layers {
        let FeedForward::Dense { hidden_act, gated, bias, .. } = &mut layer.feed_forward else { continue };
        (*gated, *bias) = (false, true);
        if absent {
            *hidden_act = ActivationFunction::GeluTanh;
        }
    }
    if config.flag("qk_layernorm")?.unwrap_or(false) {
        spec.attentions[0].qk_norm = per_head_norm(spec.norm);
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
