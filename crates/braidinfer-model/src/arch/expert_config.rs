//! Mixtures of experts in `config.json`: what their architectures share.

use crate::spec::{
    ActivationFunction, DecoderSpec, ExpertGroups, ExpertsSpec, FeedForward, GroupScore, RouterSpec, ScoringFunction,
    SharedExpertSpec,
};
use crate::{JsonFile, Result};

/// Limit of all experts in all layers, against huge allocations from a corrupt count; the largest published decoders have
/// some 25,000.
const MAX_EXPERTS: usize = 1 << 17;

impl RouterSpec {
    /// Softmax over all experts, of which the best are chosen, with their scores as weights.
    pub(super) const SOFTMAX: Self = Self {
        scoring_func: ScoringFunction::Softmax,
        bias: false,
        correction_bias: false,
        groups: None,
        norm_topk_prob: false,
        norm_min: 1e-20,
        norm_eps: 0.0,
        routed_scaling_factor: 1.0,
        per_expert_scale: false,
        norm_multiplier: None,
    };
    /// The same, with weights that sum to one, which is a softmax over the chosen experts.
    pub(super) const SOFTMAX_OF_CHOSEN: Self = Self { norm_topk_prob: true, ..Self::SOFTMAX };
}

/// Names of fields that differ between architectures, and their class defaults.
pub(super) struct ExpertFields {
    pub num_experts: (&'static str, usize),
    pub num_experts_per_tok: (&'static str, usize),
    pub intermediate_size: (&'static str, usize),
}

/// Experts of equal size, with the activation function of the dense layers of `spec`.
pub(super) fn experts(
    config: &JsonFile,
    spec: &DecoderSpec,
    fields: &ExpertFields,
    router: RouterSpec,
) -> Result<ExpertsSpec> {
    let size = |(field, absent): (&str, usize)| config.size_or(field, absent);
    // `transformers` writes the number of experts under a name that it has for all architectures.
    let named = ["num_local_experts", "num_experts"].into_iter().find(|field| config.has(field));
    let (field, absent) = fields.num_experts;
    let field = if config.has(field) { field } else { named.unwrap_or(field) };
    Ok(ExpertsSpec {
        num_experts: size((field, absent))?,
        num_experts_per_tok: size(fields.num_experts_per_tok)?,
        intermediate_size: size(fields.intermediate_size)?,
        hidden_act: dense_activation(spec),
        gated: true,
        bias: false,
        router,
        shared_expert: None,
        branch_norms: false,
    })
}

/// A softmax over all experts; `norm_topk_prob` is the class default of the field.
pub(super) fn softmax_router(config: &JsonFile, norm_topk_prob: bool) -> Result<RouterSpec> {
    let norm_topk_prob = config.flag("norm_topk_prob")?.unwrap_or(norm_topk_prob);
    Ok(RouterSpec { norm_topk_prob, ..RouterSpec::SOFTMAX })
}

/// A number of experts for every token, as wide as the others, which are one wider network; none if the number is zero.
pub(super) fn shared_experts(
    config: &JsonFile,
    (field, absent): (&str, usize),
    experts: &ExpertsSpec,
    bias: bool,
) -> Result<Option<SharedExpertSpec>> {
    let count = config.count_or(field, absent)?;
    let intermediate_size = experts.intermediate_size.saturating_mul(count);
    Ok((count > 0).then_some(SharedExpertSpec { intermediate_size, gated: false, bias }))
}

/// Qwen's gated expert for every token; `absent` is the class default of its width.
pub(super) fn gated_shared_expert(config: &JsonFile, absent: usize) -> Result<Option<SharedExpertSpec>> {
    let intermediate_size = config.size_or("shared_expert_intermediate_size", absent)?;
    Ok(Some(SharedExpertSpec { intermediate_size, gated: true, bias: false }))
}

fn dense_activation(spec: &DecoderSpec) -> ActivationFunction {
    let of = |feed_forward: &FeedForward| match feed_forward {
        FeedForward::Dense { hidden_act, .. } => Some(*hidden_act),
        FeedForward::Experts(_) | FeedForward::None => None,
    };
    spec.layers.iter().find_map(|layer| of(&layer.feed_forward)).unwrap_or(ActivationFunction::Silu)
}

/// Replaces the feed-forward networks of the layers that `is_sparse` selects.
pub(super) fn set_experts(spec: &mut DecoderSpec, experts: ExpertsSpec, is_sparse: impl Fn(usize) -> bool) {
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        if is_sparse(index) {
            layer.feed_forward = FeedForward::Experts(experts);
        }
    }
}

/// Qwen's rule: every `decoder_sparse_step`-th layer has experts, but not those in `mlp_only_layers`.
pub(super) fn sparse_layers(config: &JsonFile) -> Result<impl Fn(usize) -> bool + use<>> {
    let step = config.size_or("decoder_sparse_step", 1)?;
    let dense = layer_indices(config, "mlp_only_layers")?;
    Ok(move |layer: usize| (layer + 1).is_multiple_of(step) && !dense.contains(&layer))
}

pub(super) fn layer_indices(config: &JsonFile, field: &str) -> Result<Vec<usize>> {
    let Some(values) = config.list(field)? else { return Ok(Vec::new()) };
    let index = |value: &serde_json::Value| {
        let index = value.as_u64().and_then(|index| usize::try_from(index).ok());
        index.ok_or_else(|| config.error(field, "indices of layers", value.to_string()))
    };
    values.iter().map(index).collect()
}

/// DeepSeek's groups of experts, compared by `score`; one group is none. The last argument has the class defaults of
/// `n_group` and `topk_group`.
pub(super) fn groups(config: &JsonFile, score: GroupScore, absent: [usize; 2]) -> Result<Option<ExpertGroups>> {
    let n_group = config.size_or("n_group", absent[0])?;
    let topk_group = config.size_or("topk_group", absent[1])?;
    Ok((n_group > 1).then_some(ExpertGroups { n_group, topk_group, score }))
}

/// Fails if a field states another rule than the only one that its architecture has.
pub(super) fn stated(config: &JsonFile, field: &str, rule: &str) -> Result<()> {
    match config.text(field)? {
        Some(other) if other != rule => Err(config.error(field, format!("`{rule}`"), format!("`{other}`"))),
        _ => Ok(()),
    }
}

/// Fails if some layers after the dense ones have no experts: transformers does not read `moe_layer_freq`.
pub(super) fn every_layer(config: &JsonFile) -> Result<()> {
    match config.size_or("moe_layer_freq", 1)? {
        1 => Ok(()),
        other => Err(config.error("moe_layer_freq", "1", other.to_string())),
    }
}

/// Checks what executors rely on.
pub(super) fn check(config: &JsonFile, spec: &DecoderSpec) -> Result<()> {
    let mut total: usize = 0;
    for experts in (0..spec.layers.len()).filter_map(|layer| spec.experts(layer)) {
        total = total.saturating_add(experts.num_experts);
        if total > MAX_EXPERTS {
            let expected = format!("at most {MAX_EXPERTS} experts in all layers");
            return Err(config.error("num_experts", expected, experts.num_experts.to_string()));
        }
        check_router(config, experts)?;
        if spec.block.parallel {
            let expected = "experts after attention: beside it, they are not supported yet";
            return Err(config.error("model_type", expected, spec.model_type.clone()));
        }
    }
    Ok(())
}

fn check_router(config: &JsonFile, experts: &ExpertsSpec) -> Result<()> {
    let (count, chosen) = (experts.num_experts, experts.num_experts_per_tok);
    if chosen > count {
        return Err(config.error("num_experts_per_tok", format!("at most {count} experts"), chosen.to_string()));
    }
    let Some(ExpertGroups { n_group, topk_group, score }) = experts.router.groups else { return Ok(()) };
    let least = if score == GroupScore::TwoBest { 2 } else { 1 };
    if !count.is_multiple_of(n_group) || count / n_group < least {
        let expected = format!("a divisor of {count} experts that leaves groups of at least {least}");
        return Err(config.error("n_group", expected, n_group.to_string()));
    }
    if topk_group > n_group || topk_group * (count / n_group) < chosen {
        let expected = format!("at most {n_group} groups, and enough for {chosen} experts");
        return Err(config.error("topk_group", expected, topk_group.to_string()));
    }
    Ok(())
}
