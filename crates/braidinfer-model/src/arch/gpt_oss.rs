//! gpt-oss: attention sinks, YaRN, windows in every other layer, and experts with clamped SwiGLU and biases, whose
//! matrices are published as MXFP4.

use crate::arch::expert_config::{ExpertFields, experts, set_experts};
use crate::arch::gguf::{GgufExperts, GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, decoder, set_windows, sliding_window};
use crate::arch::rope_config::{self, RopeDefaults};
use crate::arch::{Architecture, Description};
use crate::layout::{ExpertNames, LayerSlot};
use crate::spec::{ActivationFunction, RopeScaling, RouterSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gpt_oss",
    aliases: &[],
    models: "gpt-oss 20B and 120B",
    describe,
    gguf: Some(GgufForm {
        feed_forward_norm: "post_attention_norm",
        experts: Some(GgufExperts::OF_CHOSEN),
        yarn_truncate: false,
        llama_cpp: LlamaCpp { windows: true, output_bias: true, ..LlamaCpp::PLAIN },
        ..GgufForm::named("gpt-oss")
    }),
    fixtures: &["gpt_oss", "gpt_oss-mxfp4"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(201_088, 2880, 2880, 36, 64),
    rms_norm_eps: 1e-5,
    head_dim: Some(64),
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    rope: RopeDefaults { rope_theta: 150_000.0, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("num_local_experts", 128),
    num_experts_per_tok: ("num_experts_per_tok", 4),
    intermediate_size: ("intermediate_size", 2880),
};

/// As published, and as `transformers` keeps them in memory.
const EXPERTS: [ExpertNames; 2] = {
    let names = ["mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"];
    [
        ExpertNames::Alternating { names, suffix: "_blocks", transposed: false },
        ExpertNames::Alternating { names, suffix: "", transposed: true },
    ]
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    let bias = config.flag("attention_bias")?.unwrap_or(true);
    let attention = &mut spec.attentions[0];
    (attention.qkv_bias, attention.output_bias, attention.sinks) = (bias, bias, true);
    if rope_config::settings(config)?.is_none() {
        spec.rope[0].scaling = RopeScaling::Yarn {
            factor: 32.0,
            original_max_position_embeddings: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: false,
            attention_factor: crate::rope::yarn_mscale(32.0, 1.0),
        };
    }
    let window = sliding_window(config, Some(128))?;
    set_windows(config, spec, window, |layer| layer.is_multiple_of(2))?;
    let mut experts = experts(config, spec, &FIELDS, RouterSpec { bias: true, ..RouterSpec::SOFTMAX_OF_CHOSEN })?;
    experts.bias = true;
    experts.hidden_act = ActivationFunction::ClampedSwiglu {
        swiglu_alpha: config.positive("swiglu_alpha")?.unwrap_or(1.702),
        swiglu_limit: config.positive("swiglu_limit")?.unwrap_or(7.0),
    };
    set_experts(spec, experts, |_| true);
    description.names = description.names.with(&[(LayerSlot::Router, "mlp.router")]).with_experts(&EXPERTS);
    Ok(description)
}
