//! Mixtral: Mistral with experts, and a softmax over those that are chosen.

use crate::arch::expert_config::{ExpertFields, experts, set_experts};
use crate::arch::gguf::{GgufExperts, GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, decoder, set_all_windows, sliding_window};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description, mistral};
use crate::layout::{ExpertNames, LayerSlot};
use crate::spec::RouterSpec;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "mixtral",
    aliases: &[],
    models: "Mixtral 8x7B, 8x22B",
    describe,
    gguf: Some(GgufForm {
        neighbours: true,
        experts: Some(GgufExperts::OF_CHOSEN),
        llama_cpp: LlamaCpp::LLAMA,
        ..GgufForm::named("llama")
    }),
    fixtures: &["mixtral", "mixtral-window"],
};

const DEFAULTS: Defaults = Defaults {
    rms_norm_eps: 1e-5,
    rope: RopeDefaults { rope_theta: 1e6, ..Defaults::LLAMA.rope },
    ..mistral::DEFAULTS
};

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("num_local_experts", 8),
    num_experts_per_tok: ("num_experts_per_tok", 2),
    intermediate_size: ("intermediate_size", 14_336),
};

/// The experts of Mixtral and its kin.
pub(super) const EXPERTS: ExpertNames =
    ExpertNames::Separate { experts: "block_sparse_moe.experts", names: ["w1", "w3", "w2"] };

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    set_all_windows(spec, sliding_window(config, None)?);
    let experts = experts(config, spec, &FIELDS, RouterSpec::SOFTMAX_OF_CHOSEN)?;
    set_experts(spec, experts, |_| true);
    description.names =
        description.names.with(&[(LayerSlot::Router, "block_sparse_moe.gate")]).with_experts(&[EXPERTS]);
    Ok(description)
}
