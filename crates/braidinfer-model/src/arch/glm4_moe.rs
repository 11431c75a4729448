//! GLM 4.5 and 4.6: partial RoPE, and a sigmoid router with corrected choice, groups, and experts for every token.

use crate::arch::expert_config::{ExpertFields, experts, groups, set_experts, shared_experts};
use crate::arch::gguf::{GgufExperts, GgufForm};
use crate::arch::llama_like::{Defaults, Sizes, decoder, per_head_norm};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::spec::{DecoderSpec, ExpertsSpec, GroupScore, RouterSpec, ScoringFunction};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "glm4_moe",
    aliases: &[],
    models: "GLM 4.5, GLM 4.5 Air, GLM 4.6",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("glm4"),
        feed_forward_norm: "post_attention_norm",
        experts: Some(GgufExperts { leading_dense: true, ..GgufExperts::OF_CHOSEN }),
        ..GgufForm::named("glm4moe")
    }),
    fixtures: &["glm4_moe", "glm4_moe-plain"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(151_552, 4096, 10_944, 46, 96),
    rms_norm_eps: 1e-5,
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    rope: RopeDefaults { partial_rotary_factor: 0.5, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("n_routed_experts", 128),
    num_experts_per_tok: ("num_experts_per_tok", 8),
    intermediate_size: ("moe_intermediate_size", 1408),
};

const ROUTER: SigmoidDefaults = SigmoidDefaults { norm_topk_prob: true, routed_scaling_factor: 1.0, groups: [1, 1] };

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.attentions[0].qkv_bias = config.flag("attention_bias")?.unwrap_or(false);
    if config.flag("use_qk_norm")?.unwrap_or(false) {
        spec.attentions[0].qk_norm = per_head_norm(spec.norm);
    }
    let experts = sigmoid_experts(config, spec, &FIELDS, &ROUTER)?;
    let dense = config.count_or("first_k_dense_replace", 1)?;
    set_experts(spec, experts, |layer| layer >= dense);
    Ok(description)
}

/// Class defaults of the router of DeepSeek V3.
pub(super) struct SigmoidDefaults {
    pub norm_topk_prob: bool,
    pub routed_scaling_factor: f64,
    /// `n_group` and `topk_group`.
    pub groups: [usize; 2],
}

/// Experts with the router of DeepSeek V3.
pub(super) fn sigmoid_experts(
    config: &JsonFile,
    spec: &DecoderSpec,
    fields: &ExpertFields,
    defaults: &SigmoidDefaults,
) -> Result<ExpertsSpec> {
    let router = RouterSpec {
        scoring_func: ScoringFunction::Sigmoid,
        correction_bias: true,
        groups: groups(config, GroupScore::TwoBest, defaults.groups)?,
        norm_topk_prob: config.flag("norm_topk_prob")?.unwrap_or(defaults.norm_topk_prob),
        routed_scaling_factor: config.positive("routed_scaling_factor")?.unwrap_or(defaults.routed_scaling_factor),
        ..RouterSpec::SOFTMAX
    };
    let mut experts = experts(config, spec, fields, router)?;
    experts.shared_expert = shared_experts(config, ("n_shared_experts", 1), &experts, false)?;
    Ok(experts)
}
