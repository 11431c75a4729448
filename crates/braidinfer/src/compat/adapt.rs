//! Choosing a plan: precision is raised where it reduces the divergence most for its cost, until the target is met.

mod contributions;
mod storage;

use std::collections::{BTreeMap, BTreeSet};

use super::judge::{self, Judgement};
use super::measure::{Run, Truth};
use super::plan_words::layer_in_words;
use super::precision::{Target, TargetStatus};
use super::reading::Reader;
use super::{Measurements, Status};
use crate::executor::{Decoder, KernelPlan, KvDtype};
use crate::{Error, Result};

/// If the divergence of a plan exceeds the target by this factor, nearly all of the higher precision of the next plan
/// is needed, and searching for the part that is not needed does not pay.
const TOO_FAR: f64 = 20.0;

/// Fractions of the target's divergence that intermediate plans aim for, tried in this order.
const TARGET_FRACTIONS: [f64; 3] = [0.5, 0.1, 0.02];

/// The chosen plan.
#[derive(Debug)]
pub(super) struct Adapted {
    pub(super) plan: KernelPlan,
    pub(super) run: Run,
    /// Descriptions of the layers that deviate from the fastest plan.
    pub(super) raised: BTreeMap<usize, String>,
    /// Layers that use the standard kernels because fused kernels are wrong there; `run` includes them.
    pub(super) standard: BTreeSet<usize>,
    /// Whether the plan meets the target, apart from quantized keys and values.
    pub(super) holds: bool,
    /// The quantized type of keys and values that was asked for, and the layers that have a finer one.
    pub(super) asked_storage: Option<(KvDtype, Vec<usize>)>,
}

impl Adapted {
    fn new(found: &Measurements, plan: KernelPlan, run: Run, holds: bool) -> Self {
        let departs = |layer: &usize| !plan.same_layer(&found.fastest_plan, *layer);
        let asked = found.fastest_plan.kv_dtypes.iter().copied().filter(|kv| kv.is_quantized()).max();
        let is_finer = |layer: &usize| plan.kv_dtypes[*layer] < found.fastest_plan.kv_dtypes[*layer];
        let asked_storage = asked.map(|asked| (asked, (0..plan.kv_dtypes.len()).filter(is_finer).collect()));
        let raised = (0..plan.kv_dtypes.len()).filter(departs).map(|layer| (layer, layer_in_words(&plan, layer)));
        Self { raised: raised.collect(), plan, run, standard: BTreeSet::new(), holds, asked_storage }
    }
}

/// Tries plans of increasing precision, beginning with the fastest, and takes the first that meets the target. With
/// `search_between`, it then searches for a cheaper plan between the last that misses the target and the first that
/// meets it.
pub(super) fn adapt(
    fused: &mut Decoder<'_>,
    found: &Measurements,
    judgement: &Judgement,
    reader: &mut Reader<'_, '_>,
    target: Option<Target>,
    search_between: bool,
) -> Result<Adapted> {
    if judgement.has_fault() {
        return Ok(Adapted::new(found, found.fastest_plan.clone(), found.fastest.clone(), false));
    }
    // Quantized keys and values are no means to a target: they are asked for, and judged by themselves.
    let ladder = found.fastest_plan.without_quantized_kv().ladder();
    let adapted = match target {
        Some(target) => within(fused, found, reader, target, search_between, ladder)?,
        None => fastest_usable(fused, found, reader, ladder)?,
    };
    storage::quantize(fused, found, reader, adapted, target)
}

/// The first plan of `ladder` that meets the target, or one between it and the plan before; the last if none does.
fn within(
    fused: &mut Decoder<'_>,
    found: &Measurements,
    reader: &mut Reader<'_, '_>,
    target: Target,
    search_between: bool,
    ladder: Vec<KernelPlan>,
) -> Result<Adapted> {
    let mut below: Option<(KernelPlan, Run)> = None;
    for plan in ladder {
        let run = reader.read(fused, &plan, Some(target))?;
        if target.judge(&run.divergence) != TargetStatus::Missed {
            let between = match &below {
                Some((coarse, far)) if search_between && far.divergence.kl_mean < TOO_FAR * target.kl_mean => {
                    cheapest_between(fused, found, reader, target, [coarse, &plan], far)?
                }
                _ => None,
            };
            let (plan, run) = between.unwrap_or((plan, run));
            return Ok(Adapted::new(found, plan, run, true));
        }
        below = Some((plan, run));
    }
    // No plan of the fused kernels meets the target: the most exact plan comes closest.
    let (plan, run) = below.ok_or_else(|| Error::Internal("a ladder has a first plan".into()))?;
    Ok(Adapted::new(found, plan, run, false))
}

/// The fastest plan whose answers are usable. Plans that round so coarsely that the answers are useless are skipped.
fn fastest_usable(
    fused: &mut Decoder<'_>,
    found: &Measurements,
    reader: &mut Reader<'_, '_>,
    ladder: Vec<KernelPlan>,
) -> Result<Adapted> {
    let mut adapted = None;
    for plan in ladder {
        let run = reader.read(fused, &plan, None)?;
        let serves = judge::status_of(&run.divergence) != Status::Incompatible;
        adapted = Some(Adapted::new(found, plan, run, serves));
        if serves {
            break;
        }
    }
    adapted.ok_or_else(|| Error::Internal("a ladder has a first plan".into()))
}

/// A plan with the precision of `fine` only where it is needed to meet the target, and otherwise that of `coarse`,
/// which misses it.
fn cheapest_between(
    fused: &mut Decoder<'_>,
    found: &Measurements,
    reader: &mut Reader<'_, '_>,
    target: Target,
    [coarse, fine]: [&KernelPlan; 2],
    far: &Run,
) -> Result<Option<(KernelPlan, Run)>> {
    let contributions = contributions::measure(fused, &found.truth, coarse, fine)?;
    // To first order, shifts are proportional to the square root of the divergence.
    let by_shift = (target.shift / far.divergence.shift_max.max(f64::MIN_POSITIVE)).powi(2) * far.divergence.kl_mean;
    for share in TARGET_FRACTIONS {
        let plan = contributions.cheapest(coarse, fine, share * target.kl_mean.min(by_shift));
        if plan == *fine {
            break;
        }
        let run = reader.read(fused, &plan, Some(target))?;
        // A plan that barely meets the target is not worth it.
        if target.judge(&run.divergence) == TargetStatus::Met {
            return Ok(Some((plan, run)));
        }
    }
    Ok(None)
}

/// Assigns `faulty` layers to the standard kernels, if the model is then close to the truth: with the first plan for
/// the other layers that meets the target, or else with one that is close. Not for models whose layers share more than
/// the residual stream.
pub(super) fn with_standard_layers(
    fused: &mut Decoder<'_>,
    standard: &mut Decoder<'_>,
    found: &Measurements,
    faulty: &BTreeSet<usize>,
    target: Option<Target>,
) -> Result<Option<Adapted>> {
    if !fused.spec().has_separate_layers() {
        return Ok(None);
    }
    let mut close = None;
    for plan in found.fastest_plan.without_quantized_kv().ladder() {
        let run = mixed_run(fused, standard, &found.truth, &plan, faulty)?;
        let holds = target.is_none_or(|target| target.judge(&run.divergence) != TargetStatus::Missed);
        if Judgement::is_close(&run) {
            close = Some((plan, run, holds));
        }
        if holds && close.is_some() {
            break;
        }
    }
    let Some((mut plan, mut run, holds)) = close else { return Ok(None) };
    let quantized = plan.with_kv_of(&found.fastest_plan);
    if quantized != plan {
        let with_quantized = mixed_run(fused, standard, &found.truth, &quantized, faulty)?;
        if Judgement::is_close(&with_quantized) {
            (plan, run) = (quantized, with_quantized);
        }
    }
    let mut adapted = Adapted::new(found, plan, run, holds);
    adapted.raised.retain(|layer, _| !faulty.contains(layer));
    adapted.standard.clone_from(faulty);
    Ok(Some(adapted))
}

fn mixed_run(
    fused: &mut Decoder<'_>,
    standard: &mut Decoder<'_>,
    truth: &Truth,
    plan: &KernelPlan,
    faulty: &BTreeSet<usize>,
) -> Result<Run> {
    truth.run(&mut fused.under_plan(plan.clone()).with_layers(faulty, standard.runner_mut())?, plan)
}
