//! DeepSeek V3: latent attention, and the sigmoid router with corrected choice of experts from the best groups.

use crate::arch::expert_config::{ExpertFields, every_layer, set_experts, stated};
use crate::arch::gguf::{GgufExperts, GgufForm};
use crate::arch::glm4_moe::{SigmoidDefaults, sigmoid_experts};
use crate::arch::latent_config::{Widths, interleaved, latent_decoder};
use crate::arch::llama_like::{Defaults, Sizes};
use crate::arch::{Architecture, Description};
use crate::spec::RopePairing;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "deepseek_v3",
    aliases: &[],
    models: "DeepSeek V3, V3.1, R1; Moonlight 16B-A3B",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("deepseek-v3"),
        latent: true,
        experts: Some(GgufExperts { leading_dense: true, ..GgufExperts::OF_ALL }),
        ..GgufForm::named("deepseek2")
    }),
    fixtures: &["deepseek_v3", "deepseek_v3-plain"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(129_280, 7168, 18_432, 61, 128),
    num_key_value_heads: Some(128),
    max_position_embeddings: 4096,
    ..Defaults::LLAMA
};

const WIDTHS: Widths =
    Widths { q_lora_rank: 1536, kv_lora_rank: 512, qk_nope_head_dim: 128, qk_rope_head_dim: 64, v_head_dim: Some(128) };

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("n_routed_experts", 256),
    num_experts_per_tok: ("num_experts_per_tok", 8),
    intermediate_size: ("moe_intermediate_size", 2048),
};

const ROUTER: SigmoidDefaults = SigmoidDefaults { norm_topk_prob: true, routed_scaling_factor: 2.5, groups: [8, 4] };

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = latent_decoder(config, &DEFAULTS, &WIDTHS)?;
    let spec = &mut description.spec;
    if interleaved(config)? {
        spec.rope[0].pairing = RopePairing::Interleaved;
    }
    let experts = sigmoid_experts(config, spec, &FIELDS, &ROUTER)?;
    stated(config, "scoring_func", "sigmoid")?;
    stated(config, "topk_method", "noaux_tc")?;
    every_layer(config)?;
    let dense = config.count_or("first_k_dense_replace", 3)?;
    set_experts(spec, experts, |layer| layer >= dense);
    Ok(description)
}
