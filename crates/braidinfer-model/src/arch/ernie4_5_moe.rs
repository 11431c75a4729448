//! ERNIE 4.5 with experts: a softmax router whose choice is corrected by stored biases, and experts for every token.

use crate::arch::expert_config::{ExpertFields, experts, set_experts, shared_experts};
use crate::arch::gguf::{GgufExperts, GgufForm};
use crate::arch::llama_like::{Defaults, Sizes, decoder, read_attention_bias, read_mlp_bias};
use crate::arch::{Architecture, Description, ernie4_5};
use crate::layout::LayerSlot;
use crate::spec::RouterSpec;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "ernie4_5_moe",
    aliases: &[],
    models: "ERNIE 4.5 21B-A3B, 300B-A47B",
    describe,
    gguf: Some(GgufForm {
        experts: Some(GgufExperts { leading_dense: true, ..GgufExperts::OF_CHOSEN }),
        ..GgufForm::named("ernie4_5-moe")
    }),
    fixtures: &["ernie4_5_moe", "ernie4_5_moe-bias"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(103_424, 2560, 12_288, 28, 20),
    num_key_value_heads: Some(4),
    head_dim: None,
    ..ernie4_5::DEFAULTS
};

const FIELDS: ExpertFields = ExpertFields {
    num_experts: ("moe_num_experts", 64),
    num_experts_per_tok: ("moe_k", 6),
    intermediate_size: ("moe_intermediate_size", 1536),
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    read_attention_bias(config, "use_bias", spec)?;
    read_mlp_bias(config, "use_bias", spec)?;
    // The router and its experts have none.
    let bias = config.flag("use_bias")?.unwrap_or(false);
    spec.lm_head_bias = bias;
    let norm_min = config.positive("moe_norm_min")?.unwrap_or(1e-12);
    let router = RouterSpec { correction_bias: true, norm_min, ..RouterSpec::SOFTMAX_OF_CHOSEN };
    let mut experts = experts(config, spec, &FIELDS, router)?;
    experts.shared_expert = shared_experts(config, ("moe_num_shared_experts", 2), &experts, bias)?;
    set_experts(spec, experts, sparse_layers(config)?);
    description.names = description
        .names
        .with(&[(LayerSlot::Router, "mlp.gate")])
        .with_tensor(&[(LayerSlot::RouterCorrection, "mlp.moe_statics.e_score_correction_bias")]);
    Ok(description)
}

/// Every `moe_layer_interval`-th layer from `moe_layer_start_index` to `moe_layer_end_index` (-1 for the last one).
fn sparse_layers(config: &JsonFile) -> Result<impl Fn(usize) -> bool + use<>> {
    let start = config.number("moe_layer_start_index")?.unwrap_or(1.0);
    let end = config.number("moe_layer_end_index")?.filter(|end| *end >= 0.0).unwrap_or(f64::INFINITY);
    let interval = config.size_or("moe_layer_interval", 1)?;
    Ok(move |layer: usize| (layer + 1).is_multiple_of(interval) && layer as f64 >= start && layer as f64 <= end)
}
