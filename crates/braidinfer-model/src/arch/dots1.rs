//! dots.llm1: query/key norms, and the sigmoid router of GLM 4.5 with full RoPE.

use crate::arch::expert_config::{ExpertFields, set_experts};
use crate::arch::gguf::{GgufExperts, GgufForm, LlamaCpp};
use crate::arch::glm4_moe::{SigmoidDefaults, sigmoid_experts};
use crate::arch::llama_like::{
    Defaults, Sizes, decoder, per_head_norm, read_attention_bias, set_windows, sliding_window,
};
use crate::arch::{Architecture, Description};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "dots1",
    aliases: &[],
    models: "dots.llm1",
    describe,
    gguf: Some(GgufForm {
        experts: Some(GgufExperts { leading_dense: true, ..GgufExperts::OF_CHOSEN }),
        llama_cpp: LlamaCpp::WINDOWS,
        ..GgufForm::named("dots1")
    }),
    fixtures: &["dots1"],
};

const DEFAULTS: Defaults = Defaults { sizes: Sizes::new(152_064, 4608, 10_944, 62, 32), ..Defaults::LLAMA };

// The class has no defaults for the numbers of experts; published configs have both.
const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("n_routed_experts", 128),
    num_experts_per_tok: ("num_experts_per_tok", 6),
    intermediate_size: ("moe_intermediate_size", 1408),
};

const ROUTER: SigmoidDefaults = SigmoidDefaults { norm_topk_prob: false, routed_scaling_factor: 1.0, groups: [1, 1] };

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.attentions[0].qk_norm = per_head_norm(spec.norm);
    read_attention_bias(config, "attention_bias", spec)?;
    let first = config.count_or("max_window_layers", 62)?;
    let window = sliding_window(config, Some(4096))?;
    set_windows(config, spec, window, |layer| layer >= first)?;
    let experts = sigmoid_experts(config, spec, &FIELDS, &ROUTER)?;
    let dense = config.count_or("first_k_dense_replace", 0)?;
    set_experts(spec, experts, |layer| layer >= dense);
    Ok(description)
}
