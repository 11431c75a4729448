//! Does the fast path change the answers? Measured on the model and machine at hand.
//!
//! The same tokens go through the standard kernels in f32 (the truth), through them in the type of the checkpoint (what
//! most people run), and through the fused kernels: layer by layer on the true residual stream, so that an error shows
//! in the layer that makes it, and whole. With nothing rounded but sums, fused kernels must agree with the truth to the
//! rounding of sums, or there is a fault. At the fastest level they may differ by what rounding explains; layers that
//! amplify it too much are computed and stored more exactly, until the whole model is close enough.
//!
//! `docs/numerics.md` has the thresholds with the measurements behind them, and what a check cannot see.

mod adapt;
mod cache;
mod divergence;
mod judge;
mod measure;
mod plan_entries;
mod prescreen;
mod probe_text;
mod report;
mod speed;
#[cfg(test)]
mod tests;

use std::time::Instant;

use braidinfer_model::{DecoderSpec, Weights};

pub(crate) use self::cache::VerdictCache;
pub use self::divergence::Divergence;
pub(crate) use self::divergence::log_softmax;
pub use self::prescreen::{NormStatistics, Predicted};
pub use self::report::{CompatReport, LayerReport, Measured, OpError, PlanEntry, RunKind, RunReport, Speed, Status};

use self::adapt::Adapted;
use self::judge::Judgement;
use self::measure::{Errors, LayerErrors, Run, Truth, sequences};
use self::probe_text::probe_ids;
use crate::executor::fused::{FusedExecutor, KernelPlan};
use crate::executor::standard::{ComputeDtype, StandardStream};
use crate::executor::{Batch, Executor, KvCacheConfig};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// How thorough a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Thoroughness {
    /// What loading can wait for: a few tokens, and the type of the checkpoint only if the fused kernels are not close to
    /// the truth by themselves.
    Brief,
    /// Some lines of text.
    #[default]
    Normal,
    /// More text, and positions beyond a thousand.
    Full,
}

impl Thoroughness {
    /// Tokens of the sequence that is read.
    fn tokens(self) -> usize {
        match self {
            Self::Brief => 32,
            Self::Normal => 96,
            Self::Full => 1280,
        }
    }
}

/// What is checked.
pub struct Subject<'a> {
    /// Where the model came from, for the report.
    pub label: String,
    /// The decoder.
    pub spec: &'a DecoderSpec,
    /// Its weights, which standard kernels read a layer at a time.
    pub weights: &'a Weights,
    /// The tokenizer, if there is one; random token ids are read otherwise.
    pub tokenizer: Option<&'a Tokenizer>,
}

impl Subject<'_> {
    /// Looks at the weights only.
    pub fn predict(&self, isa: &str) -> Result<CompatReport> {
        let predicted = Predicted::of(self.spec, self.weights)?;
        let reason = judge::predicted_reason(&predicted);
        Ok(CompatReport {
            model: self.label.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            isa: isa.to_owned(),
            status: predicted.status,
            score: predicted.score,
            reason,
            predicted,
            measured: None,
            layers: Vec::new(),
            plan: Vec::new(),
            recommendations: vec!["measure: weights alone cannot tell whether kernels change the answers".into()],
        })
    }

    /// Measures `fused` against the standard kernels, and leaves it with the plan that `auto` picks; where that is standard
    /// kernels, [`CompatReport::kernels`] says so.
    pub fn check(&self, fused: &mut FusedExecutor, thoroughness: Thoroughness) -> Result<CompatReport> {
        let started = Instant::now();
        let mut report = self.predict(fused.isa().name())?;
        let storage = fused.kv_cache();
        let longest = storage.capacity().min(self.spec.context_length());
        let count = thoroughness.tokens().min(longest).max(1);
        let probe = probe_ids(self.tokenizer, self.spec.vocab_size, count)?;
        let found = self.measure(fused, sequences(&probe.ids, storage), thoroughness)?;
        // Nobody runs quantized weights in just that way, so it is shown for them, and nothing is measured by it.
        let usual = found.checkpoint.as_ref().filter(|_| !self.weights.dtype().is_quantized()).map(|(_, run)| run);
        let judgement = Judgement::of(&found.exact_errors, &found.exact, usual);
        let adapted = self.adapt(fused, &found, &judgement)?;
        let speed = match thoroughness {
            // Whoever waits for a model to load does not wait for this.
            Thoroughness::Brief => None,
            _ if judgement.has_fault() => None,
            _ => speed::compare(fused, &found.fastest_plan, &adapted.plan)?,
        };
        // Nothing of what was read stays.
        fused.set_plan(adapted.plan.clone())?;
        report.layers = layer_reports(&found.exact_errors, &found.fastest_errors, &judgement, &adapted);
        judgement.conclude(&adapted, &mut report);
        let loss = found.truth.loss();
        report.measured = Some(Measured {
            tokens: count,
            text: probe.text,
            loss,
            uniform_loss: (self.spec.vocab_size as f64).ln(),
            runs: found.runs(&adapted),
            speed,
            seconds: started.elapsed().as_secs_f64(),
        });
        judge::recommend(&mut report);
        Ok(report)
    }

    /// The plan that is as fast as answers allow.
    fn adapt(&self, fused: &mut FusedExecutor, found: &Measurements, judgement: &Judgement) -> Result<Adapted> {
        if let Some(faulty) = judgement.faulty_layers() {
            let mut standard = self.standard(ComputeDtype::F32, fused.kv_cache())?;
            if let Some(adapted) = adapt::around(fused, &mut standard, found, &faulty)? {
                return Ok(adapted);
            }
        }
        adapt::adapt(fused, found, judgement)
    }

    /// Every run but those of plans in between.
    fn measure(&self, fused: &mut FusedExecutor, batch: Batch, thoroughness: Thoroughness) -> Result<Measurements> {
        let storage = fused.kv_cache();
        let fastest_plan = fused.plan().clone();
        let exact_plan = fastest_plan.exact();
        let mut standard = self.standard(ComputeDtype::F32, storage)?;
        let (truth, errors) = Truth::observe(&mut standard, fused, &[&exact_plan, &fastest_plan], batch)?;
        drop(standard);
        let [exact_errors, fastest_errors] = errors.try_into().map_err(|_| Error::Internal("two plans".into()))?;
        fused.set_plan(exact_plan)?;
        let exact = truth.run(fused)?;
        fused.set_plan(fastest_plan.clone())?;
        let fastest = truth.run(fused)?;
        let checkpoint = match thoroughness {
            Thoroughness::Brief if Judgement::is_close(&fastest) => None,
            _ => self.checkpoint_run(&truth, storage)?,
        };
        Ok(Measurements { truth, fastest_plan, exact_errors, fastest_errors, exact, fastest, checkpoint })
    }

    pub(super) fn standard(&self, dtype: ComputeDtype, storage: KvCacheConfig) -> Result<StandardStream<'_>> {
        StandardStream::new(self.spec, self.weights, dtype, storage.block_size, storage.num_blocks)
    }

    /// What most people run, unless that is the truth itself.
    fn checkpoint_run(&self, truth: &Truth, storage: KvCacheConfig) -> Result<Option<(String, Run)>> {
        let dtype = ComputeDtype::from(self.weights.dtype());
        if dtype == ComputeDtype::F32 {
            return Ok(None);
        }
        let run = truth.run(&mut self.standard(dtype, storage)?)?;
        Ok(Some((format!("standard, {dtype}"), run)))
    }
}

/// What was measured before any layer was raised.
struct Measurements {
    truth: Truth,
    fastest_plan: KernelPlan,
    exact_errors: Errors,
    fastest_errors: Errors,
    exact: Run,
    fastest: Run,
    /// With its name.
    checkpoint: Option<(String, Run)>,
}

impl Measurements {
    /// All runs, with that of the plan.
    fn runs(self, adapted: &Adapted) -> Vec<RunReport> {
        let report = |kind, name, run: Run| RunReport { kind, name, divergence: run.divergence, drift: run.drift };
        let mut runs: Vec<RunReport> =
            self.checkpoint.into_iter().map(|(name, run)| report(RunKind::Checkpoint, name, run)).collect();
        runs.push(report(RunKind::Exact, "fused, nothing rounded but sums".into(), self.exact));
        let fastest = format!("fused, fastest ({})", describe(&self.fastest_plan));
        runs.push(report(RunKind::Fastest, fastest, self.fastest));
        if adapted.plan != self.fastest_plan || !adapted.standard.is_empty() {
            let standard = match adapted.standard.len() {
                0 => String::new(),
                1 => ", one layer standard".to_owned(),
                count => format!(", {count} layers standard"),
            };
            let name = format!("fused, by plan ({}{standard})", describe(&adapted.plan));
            runs.push(report(RunKind::Plan, name, adapted.run.clone()));
        }
        runs
    }
}

/// Applies the plan of a report made earlier. Returns whether it was about this model's projections.
pub fn apply(report: &CompatReport, fused: &mut FusedExecutor) -> Result<bool> {
    match plan_entries::planned(fused.plan(), &report.plan) {
        Some(plan) => fused.set_plan(plan).map(|()| true),
        None => Ok(false),
    }
}

/// Levels and storage in a few words.
fn describe(plan: &KernelPlan) -> String {
    let levels: Vec<&str> = plan.summary().iter().map(|count| count.level).collect();
    let mut storage: Vec<&str> = plan.kv_dtypes.iter().map(|kv| kv.name()).collect();
    storage.sort_unstable();
    storage.dedup();
    format!("{}, K/V {}", levels.join(" and "), storage.join(" and "))
}

fn layer_reports(exact: &Errors, fastest: &Errors, judgement: &Judgement, adapted: &Adapted) -> Vec<LayerReport> {
    let ops = |errors: &LayerErrors| -> Vec<OpError> {
        errors.ops.iter().map(|(op, error)| OpError { op: op.clone(), error: *error }).collect()
    };
    let of = |(layer, (exact, fastest)): (usize, (&LayerErrors, &LayerErrors))| LayerReport {
        layer,
        exact: ops(exact),
        fastest: ops(fastest),
        fault: judgement.fault_in(layer),
        raised: adapted.raised.get(&layer).cloned(),
    };
    exact.layers.iter().zip(&fastest.layers).enumerate().map(of).collect()
}
