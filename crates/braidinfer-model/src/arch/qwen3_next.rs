//! Qwen3-Next: gated delta nets in three of four layers, gated attention in the fourth, and the experts of Qwen 2 and 3.

use crate::arch::delta_net_config::hybrid;
use crate::arch::expert_config::{
    ExpertFields, experts, gated_shared_expert, set_experts, softmax_router, sparse_layers,
};
use crate::arch::gguf::{GgufDeltaNets, GgufExperts, GgufForm};
use crate::arch::llama_like::{Defaults, Sizes};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description, qwen2_moe};
use crate::spec::DeltaNetProjections;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen3_next",
    aliases: &[],
    models: "Qwen3-Next 80B-A3B",
    describe,
    gguf: Some(GgufForm {
        offset_included: true,
        pre_tokenizer: Some("qwen2"),
        feed_forward_norm: "post_attention_norm",
        experts: Some(GgufExperts::OF_CHOSEN),
        delta_nets: Some(GgufDeltaNets {
            projections: DeltaNetProjections::StrengthByKeyHead,
            tiled: false,
            rope_sections: false,
        }),
        ..GgufForm::named("qwen3next")
    }),
    fixtures: &["qwen3_next", "qwen3_next-dense"],
};

pub(super) const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(151_936, 2048, 5632, 48, 16),
    head_dim: Some(256),
    num_key_value_heads: Some(2),
    max_position_embeddings: 32_768,
    rope: RopeDefaults { partial_rotary_factor: 0.25, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("num_experts", 512),
    num_experts_per_tok: ("num_experts_per_tok", 10),
    intermediate_size: ("moe_intermediate_size", 512),
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = hybrid(config, &DEFAULTS, DeltaNetProjections::ByKeyHead)?;
    let spec = &mut description.spec;
    // Zero experts are none.
    if config.number("num_experts")? != Some(0.0) {
        let mut experts = experts(config, spec, &FIELDS, softmax_router(config, true)?)?;
        experts.shared_expert = gated_shared_expert(config, 512)?;
        set_experts(spec, experts, sparse_layers(config)?);
    }
    description.names = description.names.with(&qwen2_moe::SHARED_EXPERT);
    Ok(description)
}
