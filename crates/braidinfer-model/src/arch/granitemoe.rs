//! Granite with experts: Granite's multipliers, a softmax over the chosen experts, and in some models an expert for every
//! token.

use crate::arch::expert_config::{ExpertFields, experts, set_experts};
use crate::arch::gguf::{GgufExperts, GgufForm, LlamaCpp};
use crate::arch::{Architecture, Description, granite};
use crate::layout::{ExpertNames, LayerSlot, TensorNames};
use crate::spec::{DecoderSpec, ExpertsSpec, RouterSpec, SharedExpertSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "granitemoe",
    aliases: &["granitemoeshared"],
    models: "Granite 3.0 and 3.1 1B-A400M, 3B-A800M",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("refact"),
        neighbours: true,
        multipliers: true,
        experts: Some(GgufExperts::OF_CHOSEN),
        llama_cpp: LlamaCpp::LLAMA,
        ..GgufForm::named("granitemoe")
    }),
    fixtures: &["granitemoe", "granitemoeshared"],
};

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("num_local_experts", 8),
    num_experts_per_tok: ("num_experts_per_tok", 2),
    intermediate_size: ("intermediate_size", 11_008),
};

const EXPERTS: ExpertNames = ExpertNames::Stacked {
    names: ["block_sparse_moe.input_linear", "block_sparse_moe.input_linear", "block_sparse_moe.output_linear"],
};

pub(super) fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = granite::describe(config)?;
    let spec = &mut description.spec;
    let mut experts = experts_of(config, spec)?;
    // Zero, the default, means none.
    if config.number("shared_intermediate_size")?.unwrap_or(0.0) > 0.0 {
        let intermediate_size = config.required_size("shared_intermediate_size")?;
        experts.shared_expert = Some(SharedExpertSpec { intermediate_size, gated: false, bias: false });
    }
    set_experts(spec, experts, |_| true);
    description.names = named_experts(description.names);
    Ok(description)
}

/// The experts, without one for every token.
pub(super) fn experts_of(config: &JsonFile, spec: &DecoderSpec) -> Result<ExpertsSpec> {
    experts(config, spec, &FIELDS, RouterSpec::SOFTMAX_OF_CHOSEN)
}

/// Names of the router, the experts and the one for every token.
pub(super) fn named_experts(names: TensorNames) -> TensorNames {
    names
        .with(&[
            (LayerSlot::Router, "block_sparse_moe.router.layer"),
            (LayerSlot::SharedGateProj, "shared_mlp.input_linear"),
            (LayerSlot::SharedUpProj, "shared_mlp.input_linear"),
            (LayerSlot::SharedDownProj, "shared_mlp.output_linear"),
        ])
        .with_experts(&[EXPERTS])
}
