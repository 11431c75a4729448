//! GLM 4.7 Flash: DeepSeek V3 with another list of the layers that have experts.

use serde_json::Value;

use crate::arch::expert_config::{ExpertFields, set_experts, stated};
use crate::arch::gguf::{GgufExperts, GgufForm};
use crate::arch::glm4_moe::{SigmoidDefaults, sigmoid_experts};
use crate::arch::latent_config::{Widths, interleaved, latent_decoder};
use crate::arch::llama_like::{Defaults, Sizes};
use crate::arch::{Architecture, Description};
use crate::spec::RopePairing;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "glm4_moe_lite",
    aliases: &[],
    models: "GLM 4.7 Flash",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("glm4"),
        latent: true,
        experts: Some(GgufExperts { leading_dense: true, ..GgufExperts::OF_ALL }),
        ..GgufForm::named("deepseek2")
    }),
    fixtures: &["glm4_moe_lite"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(154_880, 2048, 10_240, 47, 20),
    rms_norm_eps: 1e-5,
    num_key_value_heads: Some(20),
    max_position_embeddings: 202_752,
    ..Defaults::LLAMA
};

const WIDTHS: Widths =
    Widths { q_lora_rank: 768, kv_lora_rank: 512, qk_nope_head_dim: 192, qk_rope_head_dim: 64, v_head_dim: Some(256) };

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("n_routed_experts", 64),
    num_experts_per_tok: ("num_experts_per_tok", 4),
    intermediate_size: ("moe_intermediate_size", 1536),
};

const ROUTER: SigmoidDefaults = SigmoidDefaults { norm_topk_prob: true, routed_scaling_factor: 1.8, groups: [1, 1] };

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = latent_decoder(config, &DEFAULTS, &WIDTHS)?;
    let spec = &mut description.spec;
    if interleaved(config)? {
        spec.rope[0].pairing = RopePairing::Interleaved;
    }
    let experts = sigmoid_experts(config, spec, &FIELDS, &ROUTER)?;
    stated(config, "scoring_func", "sigmoid")?;
    stated(config, "topk_method", "noaux_tc")?;
    let sparse = sparse_layers(config, spec.layers.len())?;
    set_experts(spec, experts, |layer| sparse[layer]);
    Ok(description)
}

/// Whether each layer has experts: as `mlp_layer_types` says, or else all but the first.
fn sparse_layers(config: &JsonFile, layers: usize) -> Result<Vec<bool>> {
    const FIELD: &str = "mlp_layer_types";
    let Some(types) = config.list(FIELD)? else {
        // transformers does not read this field, and published models have 1.
        return match config.count_or("first_k_dense_replace", 1)? {
            1 => Ok((0..layers).map(|layer| layer > 0).collect()),
            other => Err(config.error("first_k_dense_replace", format!("1, or `{FIELD}`"), other.to_string())),
        };
    };
    if types.len() != layers {
        return Err(config.error(FIELD, format!("{layers} entries, one per layer"), types.len().to_string()));
    }
    let sparse = |value: &Value| match value.as_str() {
        Some("sparse") => Ok(true),
        Some("dense") => Ok(false),
        _ => Err(config.error(FIELD, "sparse or dense", value.to_string())),
    };
    types.iter().map(sparse).collect()
}
