//! Qwen 3.5 and 3.6 with experts, text part: the hybrid of Qwen 3.5 with experts in every layer.

use crate::arch::delta_net_config::hybrid;
use crate::arch::expert_config::{ExpertFields, experts, gated_shared_expert, set_experts};
use crate::arch::gguf::{GgufDeltaNets, GgufExperts, GgufForm};
use crate::arch::llama_like::{Defaults, Sizes};
use crate::arch::{Architecture, Description, qwen2_moe, qwen3_next};
use crate::spec::{DeltaNetProjections, RouterSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen3_5_moe_text",
    aliases: &["qwen3_5_moe"],
    models: "Qwen 3.5 and 3.6 35B-A3B, 122B-A10B, text part",
    describe,
    gguf: Some(GgufForm {
        offset_included: true,
        pre_tokenizer: Some("qwen35"),
        feed_forward_norm: "post_attention_norm",
        experts: Some(GgufExperts::OF_CHOSEN),
        delta_nets: Some(GgufDeltaNets { projections: DeltaNetProjections::ByKind, tiled: true, rope_sections: true }),
        ..GgufForm::named("qwen35moe")
    }),
    fixtures: &["qwen3_5_moe"],
};

// There are no dense layers, so that the inner width of one means nothing.
const DEFAULTS: Defaults = Defaults { sizes: Sizes::new(248_320, 2048, 512, 40, 16), ..qwen3_next::DEFAULTS };

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("num_experts", 256),
    num_experts_per_tok: ("num_experts_per_tok", 8),
    intermediate_size: ("moe_intermediate_size", 512),
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = hybrid(config, &DEFAULTS, DeltaNetProjections::ByKind)?;
    let spec = &mut description.spec;
    let mut experts = experts(config, spec, &FIELDS, RouterSpec::SOFTMAX_OF_CHOSEN)?;
    experts.shared_expert = gated_shared_expert(config, 512)?;
    set_experts(spec, experts, |_| true);
    description.names = description.names.with(&qwen2_moe::SHARED_EXPERT);
    Ok(description)
}
