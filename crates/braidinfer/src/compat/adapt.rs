//! Raising the layers that amplify rounding, and only those.

use std::collections::{BTreeMap, BTreeSet};

use braidinfer_model::LayerSlot;

use super::Measurements;
use super::judge::Judgement;
use super::measure::Run;
use crate::Result;
use crate::executor::fused::{FusedExecutor, KernelPlan};
use crate::executor::{KvDtype, LayerByLayer, Mixed};

/// A layer stands out whose own error is so many times the median of all layers.
const STANDS_OUT: f64 = 2.5;
/// And is at least this.
const NOTABLE: f64 = 1e-2;

/// What is made more exact, least first.
const STEPS: [Raise; 3] = [Raise::Storage, Raise::Keys, Raise::Levels];

/// The plan that was settled on.
#[derive(Debug)]
pub(super) struct Adapted {
    pub(super) plan: KernelPlan,
    pub(super) run: Run,
    /// What was done in which layer.
    pub(super) raised: BTreeMap<usize, String>,
    /// Layers that standard kernels compute, because fused ones are wrong there; `run` is one with them.
    pub(super) standard: BTreeSet<usize>,
}

/// Starts from the fastest plan and gives up speed where it costs accuracy. First, layers whose own error stands out are
/// raised until it does not. Then, if the whole is not close to the truth, because errors that come to a layer are
/// amplified, too, all layers are raised step by step until it is as close as healthy models are. The executor is left with
/// that plan.
pub(super) fn adapt(fused: &mut FusedExecutor, found: &Measurements, judgement: &Judgement) -> Result<Adapted> {
    let (truth, fastest) = (&found.truth, &found.fastest_plan);
    let mut adapted = Adapted::fastest(found);
    fused.set_plan(fastest.clone())?;
    if !judgement.has_fault() {
        let own: Vec<f64> = found.fastest_errors.layers.iter().map(|errors| errors.update).collect();
        let limit = NOTABLE.max(STANDS_OUT * median(&own));
        for layer in (0..own.len()).filter(|layer| stands_out(own[*layer], limit)) {
            for step in STEPS {
                adapted.raise(fused, &[layer], step)?;
                if !stands_out(truth.update_error(fused, layer)?, limit) {
                    break;
                }
            }
        }
        if !adapted.raised.is_empty() {
            adapted.run = truth.run(fused)?;
        }
        if !Judgement::is_close(&adapted.run) {
            let all: Vec<usize> = (0..own.len()).collect();
            for step in STEPS.into_iter().chain([Raise::Head]) {
                adapted.raise(fused, &all, step)?;
                adapted.run = truth.run(fused)?;
                if Judgement::is_as_close_as_healthy(&adapted.run) {
                    break;
                }
            }
        }
    }
    Ok(adapted)
}

/// Leaves `faulty` layers to standard kernels, if the model is then close to the truth: with the other layers at the
/// fastest level, or with nothing rounded in them. The executor is left with the plan.
pub(super) fn around(
    fused: &mut FusedExecutor,
    standard: &mut dyn LayerByLayer,
    found: &Measurements,
    faulty: &BTreeSet<usize>,
) -> Result<Option<Adapted>> {
    let mut adapted = Adapted { standard: faulty.clone(), ..Adapted::fastest(found) };
    let others: Vec<usize> = (0..adapted.plan.kv_dtypes.len()).filter(|layer| !faulty.contains(layer)).collect();
    for step in [None, Some(Raise::Head)] {
        match step {
            None => fused.set_plan(adapted.plan.clone())?,
            Some(step) => adapted.raise(fused, &others, step)?,
        }
        adapted.run = found.truth.run(&mut Mixed { fused, standard, layers: faulty })?;
        if Judgement::is_close(&adapted.run) {
            return Ok(Some(adapted));
        }
    }
    Ok(None)
}

fn stands_out(error: f64, limit: f64) -> bool {
    error.is_nan() || error > limit
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// What is made more exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Raise {
    /// Keys and values in f32.
    Storage,
    /// Activations unrounded where queries and keys are made of them, too.
    Keys,
    /// And in every other projection of the layer.
    Levels,
    /// And in the output head.
    Head,
}

impl Raise {
    fn name(self) -> &'static str {
        match self {
            Self::Storage => "keys and values in f32",
            Self::Keys => "keys and values in f32, queries and keys of unrounded activations",
            Self::Levels | Self::Head => "keys and values in f32, all activations unrounded",
        }
    }
}

impl Adapted {
    fn fastest(found: &Measurements) -> Self {
        let (plan, run) = (found.fastest_plan.clone(), found.fastest.clone());
        Self { plan, run, raised: BTreeMap::new(), standard: BTreeSet::new() }
    }

    fn raise(&mut self, fused: &mut FusedExecutor, layers: &[usize], step: Raise) -> Result<()> {
        let before = self.plan.clone();
        for layer in layers {
            self.plan.kv_dtypes[*layer] = KvDtype::F32;
            match step {
                Raise::Storage => {}
                Raise::Keys => {
                    self.plan.raise_levels(*layer, |slot| matches!(slot, LayerSlot::QProj | LayerSlot::KProj));
                }
                Raise::Levels | Raise::Head => self.plan.raise_levels(*layer, |_| true),
            }
            if !self.plan.same_layer(&before, *layer) {
                self.raised.insert(*layer, step.name().to_owned());
            }
        }
        if step == Raise::Head {
            self.plan.raise_head();
        }
        fused.set_plan(self.plan.clone())
    }
}
