//! Phi-3.5-MoE: LayerNorms, biases outside the experts, and a router that chooses one expert after the other.

use crate::arch::expert_config::{ExpertFields, experts, set_experts};
use crate::arch::gguf::{GgufExperts, GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, decoder, read_attention_bias, set_all_windows, sliding_window};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description, mixtral};
use crate::layout::LayerSlot;
use crate::spec::{NormKind, NormSpec, RouterSpec, ScoringFunction};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "phimoe",
    aliases: &[],
    models: "Phi-3.5-MoE, Phi-mini-MoE",
    describe,
    gguf: Some(GgufForm {
        experts: Some(GgufExperts::OF_CHOSEN),
        llama_cpp: LlamaCpp { output_bias: true, ..LlamaCpp::WINDOWS },
        ..GgufForm::named("phimoe")
    }),
    fixtures: &["phimoe", "phimoe-longrope"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(32_064, 4096, 6400, 32, 32),
    rms_norm_eps: 1e-5,
    num_key_value_heads: Some(8),
    max_position_embeddings: 4096 * 32,
    rope: RopeDefaults { rope_theta: 1e6, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("num_local_experts", 16),
    num_experts_per_tok: ("num_experts_per_tok", 2),
    intermediate_size: ("intermediate_size", 6400),
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.norm = NormSpec { kind: NormKind::Layer, bias: true, ..spec.norm };
    spec.lm_head_bias = config.flag("lm_head_bias")?.unwrap_or(false);
    read_attention_bias(config, "attention_bias", spec)?;
    set_all_windows(spec, sliding_window(config, None)?);
    let router_jitter_noise = config.number("router_jitter_noise")?.unwrap_or(0.01);
    if router_jitter_noise < 0.0 {
        return Err(config.error("router_jitter_noise", "a number not below zero", router_jitter_noise.to_string()));
    }
    let scoring_func = ScoringFunction::Sparsemixer { router_jitter_noise };
    let mut experts = experts(config, spec, &FIELDS, RouterSpec { scoring_func, ..RouterSpec::SOFTMAX })?;
    // The router always chooses two.
    experts.num_experts_per_tok = 2;
    set_experts(spec, experts, |_| true);
    description.names =
        description.names.with(&[(LayerSlot::Router, "block_sparse_moe.gate")]).with_experts(&[mixtral::EXPERTS]);
    Ok(description)
}
