//! Qwen 1.5 and 2 with experts: the attention of Qwen 2, a softmax router, and a gated expert for every token.

use crate::arch::expert_config::{
    ExpertFields, experts, gated_shared_expert, set_experts, softmax_router, sparse_layers,
};
use crate::arch::gguf::{GgufExperts, GgufForm};
use crate::arch::llama_like::{Defaults, Sizes, decoder, set_windows, sliding_window};
use crate::arch::{Architecture, Description};
use crate::layout::LayerSlot;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen2_moe",
    aliases: &[],
    models: "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("qwen2"),
        experts: Some(GgufExperts::OF_ALL),
        ..GgufForm::named("qwen2moe")
    }),
    fixtures: &["qwen2_moe"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(151_936, 2048, 5632, 24, 16),
    num_key_value_heads: Some(16),
    max_position_embeddings: 32_768,
    ..Defaults::LLAMA
};

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("num_experts", 60),
    num_experts_per_tok: ("num_experts_per_tok", 4),
    intermediate_size: ("moe_intermediate_size", 1408),
};

/// The expert that serves every token.
pub(super) const SHARED_EXPERT: [(LayerSlot, &str); 3] = [
    (LayerSlot::SharedGateProj, "mlp.shared_expert.gate_proj"),
    (LayerSlot::SharedUpProj, "mlp.shared_expert.up_proj"),
    (LayerSlot::SharedDownProj, "mlp.shared_expert.down_proj"),
];

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.attentions[0].qkv_bias = config.flag("qkv_bias")?.unwrap_or(true);
    if config.flag("use_sliding_window")?.unwrap_or(false) {
        // Unlike in the dense models, every second layer below `max_window_layers`.
        let first_full = config.count_or("max_window_layers", 28)?;
        let window = sliding_window(config, Some(4096))?;
        set_windows(config, spec, window, |layer| (layer + 1) % 2 == 1 && layer < first_full)?;
    }
    let mut experts = experts(config, spec, &FIELDS, softmax_router(config, false)?)?;
    experts.shared_expert = gated_shared_expert(config, 5632)?;
    set_experts(spec, experts, sparse_layers(config)?);
    description.names = description.names.with(&SHARED_EXPERT);
    Ok(description)
}
