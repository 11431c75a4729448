//! OLMoE: norms before attention and experts, query/key norms over whole projections, and a softmax router.

use crate::arch::expert_config::{ExpertFields, experts, set_experts, softmax_router};
use crate::arch::gguf::{GgufExperts, GgufForm};
use crate::arch::llama_like::{Defaults, Sizes, decoder, read_attention_bias};
use crate::arch::{Architecture, Description};
use crate::spec::{QkNormExtent, QkNormSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "olmoe",
    aliases: &[],
    models: "OLMoE 1B-7B",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("olmo"),
        experts: Some(GgufExperts::OF_ALL),
        ..GgufForm::named("olmoe")
    }),
    fixtures: &["olmoe"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(50_304, 2048, 2048, 16, 16),
    rms_norm_eps: 1e-5,
    max_position_embeddings: 4096,
    ..Defaults::LLAMA
};

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("num_experts", 64),
    num_experts_per_tok: ("num_experts_per_tok", 8),
    intermediate_size: ("intermediate_size", 2048),
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    if let Some(limit) = config.number("clip_qkv")? {
        // Published models have none.
        return Err(config.error(
            "clip_qkv",
            "null: clipped queries, keys and values are not supported",
            limit.to_string(),
        ));
    }
    spec.attentions[0].qk_norm =
        Some(QkNormSpec { extent: QkNormExtent::Projection, norm: spec.norm, after_rope: false });
    read_attention_bias(config, "attention_bias", spec)?;
    let experts = experts(config, spec, &FIELDS, softmax_router(config, false)?)?;
    set_experts(spec, experts, |_| true);
    Ok(description)
}
