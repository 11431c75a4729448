//! How much each projection and each layer's KV data type adds to the divergence, and what higher precision costs
//! there.

use braidinfer_kernels::NumericLevel;
use braidinfer_model::{Dtype, ExpertSlot, LayerSlot, Slot};

use crate::Result;
use crate::compat::measure::Truth;
use crate::executor::{Decoder, KernelPlan, PlannedProjection};

/// Context length, in tokens, at which the cost of finer keys and values is counted.
const CONTEXT: usize = 1024;

/// A part of a plan whose precision can be chosen separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PlanPart {
    /// Index in [`KernelPlan::projections`].
    Projection(usize),
    /// KV data type of a layer.
    Storage(usize),
}

/// The divergence that a coarse part adds, and the cost of the fine one, in bytes that are read in the same time.
#[derive(Debug, Clone, Copy)]
struct Contribution {
    part: PlanPart,
    kl: f64,
    cost: f64,
}

/// One entry for each part in which two plans differ.
pub(super) struct Contributions(Vec<Contribution>);

/// Measures how much divergence `coarse` adds to that of `fine`. To first order, the errors of different parts are
/// independent, so that their divergences add up. Each layer is made coarse alone, and each kind of part in all layers
/// at once; a part is credited with its fraction of both. This needs as many runs as there are layers and kinds,
/// instead of one per part.
pub(super) fn measure(
    fused: &mut Decoder<'_>,
    truth: &Truth,
    coarse: &KernelPlan,
    fine: &KernelPlan,
) -> Result<Contributions> {
    let parts = differing(coarse, fine);
    let mut run = |parts: &[PlanPart]| -> Result<f64> {
        Ok(truth.run(fused, &with_parts(fine, coarse, parts))?.divergence.kl_mean)
    };
    let least = run(&[])?;
    let mut added = |wanted: &dyn Fn(PlanPart) -> bool| -> Result<f64> {
        let chosen: Vec<PlanPart> = parts.iter().copied().filter(|part| wanted(*part)).collect();
        // NaN must not count as no contribution.
        let kl = run(&chosen)? - least;
        Ok(if kl.is_nan() { f64::INFINITY } else { kl.max(0.0) })
    };
    let mut layers: Vec<Option<usize>> = parts.iter().map(|part| layer_of(*part, fine)).collect();
    layers.sort_unstable();
    layers.dedup();
    let mut by_layer = Vec::with_capacity(layers.len());
    for layer in &layers {
        by_layer.push(added(&|part| layer_of(part, fine) == *layer)?);
    }
    let mut kinds: Vec<PlanPartKind> = parts.iter().map(|part| PlanPartKind::of(*part, fine)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut by_kind = Vec::with_capacity(kinds.len());
    for kind in &kinds {
        by_kind.push(added(&|part| PlanPartKind::of(part, fine) == *kind)?);
    }
    let all: f64 = by_layer.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let contribution = |part: &PlanPart| {
        let layer = layers.binary_search(&layer_of(*part, fine)).map_or(0.0, |index| by_layer[index]);
        let kind = kinds.binary_search(&PlanPartKind::of(*part, fine)).map_or(0.0, |index| by_kind[index]);
        Contribution { part: *part, kl: layer * kind / all, cost: cost(*part, coarse, fine) }
    };
    Ok(Contributions(parts.iter().map(contribution).collect()))
}

impl Contributions {
    /// `coarse` with those parts of `fine` that reduce the divergence most for their cost, until the remaining coarse
    /// parts add no more than `allowed`.
    pub(super) fn cheapest(&self, coarse: &KernelPlan, fine: &KernelPlan, allowed: f64) -> KernelPlan {
        let mut parts = self.0.clone();
        parts.sort_by(|a, b| (a.kl / a.cost).total_cmp(&(b.kl / b.cost)));
        let mut left = 0.0;
        let kept = parts.iter().take_while(|part| {
            left += part.kl;
            left <= allowed
        });
        let kept: Vec<PlanPart> = kept.map(|contribution| contribution.part).collect();
        with_parts(fine, coarse, &kept)
    }
}

/// Kinds of parts; parts of the same kind are comparable across layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PlanPartKind {
    Storage,
    Projection(LayerSlot),
    Experts(ExpertSlot),
    Head,
}

impl PlanPartKind {
    fn of(part: PlanPart, plan: &KernelPlan) -> Self {
        match part {
            PlanPart::Storage(_) => Self::Storage,
            PlanPart::Projection(index) => match plan.projections[index].slot {
                Slot::Layer(_, slot) => Self::Projection(slot),
                Slot::Expert(.., slot) => Self::Experts(slot),
                _ => Self::Head,
            },
        }
    }
}

fn layer_of(part: PlanPart, plan: &KernelPlan) -> Option<usize> {
    match part {
        PlanPart::Storage(layer) => Some(layer),
        PlanPart::Projection(index) => plan.projections[index].layer(),
    }
}

fn differing(coarse: &KernelPlan, fine: &KernelPlan) -> Vec<PlanPart> {
    let pairs = coarse.projections.iter().zip(&fine.projections).enumerate();
    let projections = pairs.filter(|(_, (a, b))| a.level != b.level).map(|(index, _)| PlanPart::Projection(index));
    let layers = coarse.kv_dtypes.iter().zip(&fine.kv_dtypes).enumerate();
    let storage = layers.filter(|(_, (a, b))| a != b).map(|(layer, _)| PlanPart::Storage(layer));
    projections.chain(storage).collect()
}

/// `plan` with some parts replaced by those of `other`.
fn with_parts(plan: &KernelPlan, other: &KernelPlan, parts: &[PlanPart]) -> KernelPlan {
    let mut plan = plan.clone();
    for part in parts {
        match *part {
            PlanPart::Projection(index) => plan.projections[index].level = other.projections[index].level,
            PlanPart::Storage(layer) => plan.kv_dtypes[layer] = other.kv_dtypes[layer],
        }
    }
    plan
}

/// Cost of the fine part, in bytes that a decode step could read in the same time.
fn cost(part: PlanPart, coarse: &KernelPlan, fine: &KernelPlan) -> f64 {
    match part {
        PlanPart::Projection(index) => {
            let PlannedProjection { dtype, bytes, level, .. } = fine.projections[index];
            let more = level_cost(dtype, level) - level_cost(dtype, coarse.projections[index].level);
            bytes as f64 * more.max(0.01)
        }
        PlanPart::Storage(layer) => {
            let [coarse, fine] = [coarse, fine].map(|plan| plan.kv_dtypes[layer].token_bytes(1, plan.kv_widths[layer]));
            (CONTEXT * fine.saturating_sub(coarse)) as f64
        }
    }
}

/// Extra time of a level, as a fraction of the time for reading the weights: one row, two threads, measured by
/// `matmul_speed`.
fn level_cost(dtype: Dtype, level: NumericLevel) -> f64 {
    match level {
        NumericLevel::Int8 | NumericLevel::Bf16 => 0.0,
        NumericLevel::Int16 => 0.04,
        NumericLevel::F32 if dtype.is_quantized() && dtype != Dtype::Q8_0 => 0.8,
        NumericLevel::F32 => 0.05,
    }
}
