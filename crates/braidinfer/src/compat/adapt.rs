//! Choosing a plan: exactness where it takes most of the divergence away for what it costs, until the target holds.

mod contributions;

use std::collections::{BTreeMap, BTreeSet};

use super::judge::{self, Judgement};
use super::measure::{Run, Truth};
use super::plan_words::layer_in_words;
use super::precision::{Holds, Target};
use super::reading::Reader;
use super::{Measurements, Status};
use crate::executor::{Decoder, KernelPlan};
use crate::{Error, Result};

/// Between a plan that is so many times as far from the truth as it may be and one that holds, nearly all of the exactness
/// is needed, and it does not pay to find out which part is not.
const HOPELESS: f64 = 20.0;

/// Shares of what a target leaves room for that plans in between are tried with, one after the other.
const SHARES: [f64; 3] = [0.5, 0.1, 0.02];

/// The plan that was settled on.
#[derive(Debug)]
pub(super) struct Adapted {
    pub(super) plan: KernelPlan,
    pub(super) run: Run,
    /// How layers are computed that depart from the fastest plan.
    pub(super) raised: BTreeMap<usize, String>,
    /// Layers that standard kernels compute, because fused ones are wrong there; `run` is one with them.
    pub(super) standard: BTreeSet<usize>,
    /// Whether it holds what was asked for.
    pub(super) holds: bool,
}

impl Adapted {
    fn new(found: &Measurements, plan: KernelPlan, run: Run, holds: bool) -> Self {
        let departs = |layer: &usize| !plan.same_layer(&found.fastest_plan, *layer);
        let raised = (0..plan.kv_dtypes.len()).filter(departs).map(|layer| (layer, layer_in_words(&plan, layer)));
        Self { raised: raised.collect(), plan, run, standard: BTreeSet::new(), holds }
    }
}

/// Starts from the fastest plan and takes the first of ever more exact ones that holds the target; between the last that does
/// not and the first that does, it raises only what it must, if `search_between` says that there is time to find out what.
pub(super) fn adapt(
    fused: &mut Decoder<'_>,
    found: &Measurements,
    judgement: &Judgement,
    reader: &mut Reader<'_, '_>,
    target: Option<Target>,
    search_between: bool,
) -> Result<Adapted> {
    let fastest = found.fastest_plan.clone();
    if judgement.has_fault() {
        return Ok(Adapted::new(found, fastest, found.fastest.clone(), false));
    }
    let Some(target) = target else {
        return fastest_that_serves(fused, found, reader);
    };
    let mut below: Option<(KernelPlan, Run)> = None;
    for plan in fastest.ladder() {
        let run = reader.read(fused, &plan, Some(target))?;
        if target.judge(&run.divergence) != Holds::No {
            let between = match &below {
                Some((coarse, far)) if search_between && far.divergence.kl_mean < HOPELESS * target.kl_mean => {
                    between(fused, found, reader, target, [coarse, &plan], far)?
                }
                _ => None,
            };
            let (plan, run) = between.unwrap_or((plan, run));
            return Ok(Adapted::new(found, plan, run, true));
        }
        below = Some((plan, run));
    }
    // Nothing that the fused kernels can do holds it: the most exact plan is the nearest.
    let (plan, run) = below.ok_or_else(|| Error::Internal("a ladder has a first plan".into()))?;
    Ok(Adapted::new(found, plan, run, false))
}

/// The fastest plan whose answers are of use: one that rounds so coarsely that they are not is no plan to be fast with.
fn fastest_that_serves(fused: &mut Decoder<'_>, found: &Measurements, reader: &mut Reader<'_, '_>) -> Result<Adapted> {
    let mut adapted = None;
    for plan in found.fastest_plan.ladder() {
        let run = reader.read(fused, &plan, None)?;
        let serves = judge::status_of(&run.divergence) != Status::Incompatible;
        adapted = Some(Adapted::new(found, plan, run, serves));
        if serves {
            break;
        }
    }
    adapted.ok_or_else(|| Error::Internal("a ladder has a first plan".into()))
}

/// A plan that takes from `fine` only what it needs to hold the target, and the rest from `coarse`, which does not hold it.
fn between(
    fused: &mut Decoder<'_>,
    found: &Measurements,
    reader: &mut Reader<'_, '_>,
    target: Target,
    [coarse, fine]: [&KernelPlan; 2],
    far: &Run,
) -> Result<Option<(KernelPlan, Run)>> {
    let contributions = contributions::measure(fused, &found.truth, coarse, fine)?;
    // To first order shifts are as the root of the divergence.
    let by_shift = (target.shift / far.divergence.shift_max.max(f64::MIN_POSITIVE)).powi(2) * far.divergence.kl_mean;
    for share in SHARES {
        let plan = contributions.cheapest(coarse, fine, share * target.kl_mean.min(by_shift));
        if plan == *fine {
            break;
        }
        let run = reader.read(fused, &plan, Some(target))?;
        // Nothing is gained by what only just holds.
        if target.judge(&run.divergence) == Holds::Yes {
            return Ok(Some((plan, run)));
        }
    }
    Ok(None)
}

/// Leaves `faulty` layers to standard kernels, if the model is then close to the truth: by the first plan for the other layers
/// that holds the target, or at least by one that is close.
pub(super) fn around(
    fused: &mut Decoder<'_>,
    standard: &mut Decoder<'_>,
    found: &Measurements,
    faulty: &BTreeSet<usize>,
    target: Option<Target>,
) -> Result<Option<Adapted>> {
    let mut close = None;
    for plan in found.fastest_plan.ladder() {
        let run = mixed_run(fused, standard, &found.truth, &plan, faulty)?;
        let holds = target.is_none_or(|target| target.judge(&run.divergence) != Holds::No);
        if Judgement::is_close(&run) {
            let mut adapted = Adapted::new(found, plan, run, holds);
            adapted.raised.retain(|layer, _| !faulty.contains(layer));
            adapted.standard.clone_from(faulty);
            close = Some(adapted);
        }
        if holds && close.is_some() {
            break;
        }
    }
    Ok(close)
}

fn mixed_run(
    fused: &mut Decoder<'_>,
    standard: &mut Decoder<'_>,
    truth: &Truth,
    plan: &KernelPlan,
    faulty: &BTreeSet<usize>,
) -> Result<Run> {
    let (spec, storage) = (fused.spec().clone(), fused.kv_cache());
    let mixed = Decoder::new(spec, storage, plan.clone(), fused.runner_mut());
    truth.run(&mut mixed.with_layers(faulty, standard.runner_mut())?, plan)
}
