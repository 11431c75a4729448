//! LFM2 with experts: the hybrid of LFM2, and a sigmoid router in all layers but the first ones.

use crate::arch::expert_config::{ExpertFields, experts, set_experts};
use crate::arch::gguf::{GgufExperts, GgufForm};
use crate::arch::lfm2::hybrid;
use crate::arch::llama_like::{Defaults, Sizes};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::layout::{ExpertNames, LayerSlot};
use crate::spec::{RouterSpec, ScoringFunction};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "lfm2_moe",
    aliases: &[],
    models: "LFM2 8B-A1B and 24B-A2B",
    describe,
    gguf: Some(GgufForm {
        short_convs: true,
        pre_tokenizer: Some("lfm2"),
        experts: Some(GgufExperts { leading_dense: true, ..GgufExperts::OF_CHOSEN }),
        ..GgufForm::named("lfm2moe")
    }),
    fixtures: &["lfm2_moe"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(65_536, 2048, 7168, 32, 32),
    num_key_value_heads: Some(8),
    max_position_embeddings: 128_000,
    tie_word_embeddings: true,
    rope: RopeDefaults { rope_theta: 1_000_000.0, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("num_experts", 32),
    num_experts_per_tok: ("num_experts_per_tok", 4),
    intermediate_size: ("moe_intermediate_size", 1792),
};

/// Of experts, each with tensors of its own, and as `transformers` 5 keeps them in memory.
const EXPERTS: [ExpertNames; 2] = [
    ExpertNames::Separate { experts: "feed_forward.experts", names: ["w1", "w3", "w2"] },
    ExpertNames::Bare {
        names: [
            "feed_forward.experts.gate_up_proj",
            "feed_forward.experts.gate_up_proj",
            "feed_forward.experts.down_proj",
        ],
    },
];

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = hybrid(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    let router = RouterSpec {
        scoring_func: ScoringFunction::Sigmoid,
        correction_bias: config.flag("use_expert_bias")?.unwrap_or(true),
        norm_topk_prob: config.flag("norm_topk_prob")?.unwrap_or(true),
        norm_eps: 1e-6,
        routed_scaling_factor: config.positive("routed_scaling_factor")?.unwrap_or(1.0),
        ..RouterSpec::SOFTMAX
    };
    let experts = experts(config, spec, &FIELDS, router)?;
    let dense = config.count_or("num_dense_layers", 2)?;
    set_experts(spec, experts, |layer| layer >= dense);
    let correction = [(LayerSlot::RouterCorrection, "feed_forward.expert_bias")];
    description.names = description.names.with_tensor(&correction).with_experts(&EXPERTS);
    Ok(description)
}
