//! DeepSeek V2: latent attention, and a softmax router, with or without groups, beside experts for every token.

use crate::arch::expert_config::{ExpertFields, every_layer, experts, groups, set_experts, shared_experts, stated};
use crate::arch::gguf::{GgufExperts, GgufForm};
use crate::arch::latent_config::{Widths, latent_decoder};
use crate::arch::llama_like::{Defaults, Sizes, read_mlp_bias};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::spec::{ExpertGroups, GroupScore, RopePairing, RouterSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "deepseek_v2",
    aliases: &[],
    models: "DeepSeek V2, V2 Lite, V2.5, Coder V2",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("deepseek-llm"),
        latent: true,
        experts: Some(GgufExperts { leading_dense: true, ..GgufExperts::OF_ALL }),
        ..GgufForm::named("deepseek2")
    }),
    fixtures: &["deepseek_v2", "deepseek_v2-groups"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(102_400, 4096, 11_008, 32, 32),
    rope: RopeDefaults { pairing: RopePairing::Interleaved, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

const WIDTHS: Widths =
    Widths { q_lora_rank: 1536, kv_lora_rank: 512, qk_nope_head_dim: 128, qk_rope_head_dim: 64, v_head_dim: Some(128) };

// The class has no default for the number of chosen experts; published configs have 6.
const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("n_routed_experts", 64),
    num_experts_per_tok: ("num_experts_per_tok", 6),
    intermediate_size: ("moe_intermediate_size", 1407),
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = latent_decoder(config, &DEFAULTS, &WIDTHS)?;
    let spec = &mut description.spec;
    read_mlp_bias(config, "mlp_bias", spec)?;
    let router = RouterSpec {
        groups: best_groups(config)?,
        routed_scaling_factor: config.positive("routed_scaling_factor")?.unwrap_or(1.0),
        ..RouterSpec::SOFTMAX
    };
    stated(config, "scoring_func", "softmax")?;
    // transformers leaves the weights as they are, where DeepSeek's code divides them and does not scale them.
    if config.flag("norm_topk_prob")?.unwrap_or(false) {
        return Err(config.error("norm_topk_prob", "false: implementations of true disagree", "true"));
    }
    let mut experts = experts(config, spec, &FIELDS, router)?;
    let bias = config.flag("mlp_bias")?.unwrap_or(false);
    experts.shared_expert = shared_experts(config, ("n_shared_experts", 2), &experts, bias)?;
    every_layer(config)?;
    let dense = config.count_or("first_k_dense_replace", 0)?;
    set_experts(spec, experts, |layer| layer >= dense);
    Ok(description)
}

/// The groups that `topk_method` asks for.
fn best_groups(config: &JsonFile) -> Result<Option<ExpertGroups>> {
    match config.text("topk_method")? {
        None | Some("greedy") => Ok(None),
        Some("group_limited_greedy") => groups(config, GroupScore::Best, [1, 1]),
        Some(other) => Err(config.error("topk_method", "greedy or group_limited_greedy", format!("`{other}`"))),
    }
}
