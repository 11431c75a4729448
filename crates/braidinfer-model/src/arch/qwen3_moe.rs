//! Qwen 3 with experts: the attention of Qwen 3, and a softmax router.

use crate::arch::expert_config::{ExpertFields, experts, set_experts, softmax_router, sparse_layers};
use crate::arch::gguf::{GgufExperts, GgufForm};
use crate::arch::llama_like::{
    Defaults, Sizes, decoder, per_head_norm, read_attention_bias, set_all_windows, sliding_window,
};
use crate::arch::{Architecture, Description};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen3_moe",
    aliases: &[],
    models: "Qwen 3 30B-A3B, 235B-A22B, Qwen3-Coder 30B and 480B",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("qwen2"),
        experts: Some(GgufExperts::OF_CHOSEN),
        ..GgufForm::named("qwen3moe")
    }),
    fixtures: &["qwen3_moe", "qwen3_moe-unnormed", "qwen3_moe-stacked"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(151_936, 2048, 6144, 24, 32),
    num_key_value_heads: Some(4),
    max_position_embeddings: 32_768,
    ..Defaults::LLAMA
};

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("num_experts", 128),
    num_experts_per_tok: ("num_experts_per_tok", 8),
    intermediate_size: ("moe_intermediate_size", 768),
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.attentions[0].qk_norm = per_head_norm(spec.norm);
    read_attention_bias(config, "attention_bias", spec)?;
    if config.flag("use_sliding_window")?.unwrap_or(false) {
        set_all_windows(spec, sliding_window(config, Some(4096))?);
    }
    let experts = experts(config, spec, &FIELDS, softmax_router(config, false)?)?;
    set_experts(spec, experts, sparse_layers(config)?);
    Ok(description)
}
