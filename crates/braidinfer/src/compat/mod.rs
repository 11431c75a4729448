//! Do the fast kernels change a model's answers? This is measured with the actual model on the actual machine.
//!
//! The same tokens are run through the standard kernels in f32 (the truth), through the standard kernels in the
//! checkpoint's data type (what most people run), and through the fused kernels. The fused kernels are compared twice:
//! each layer alone, on the true residual stream, so that an error shows in the layer that causes it; and as a whole
//! model. With f32 activations, keys and values, fused kernels must agree with the truth up to the rounding of sums,
//! otherwise they have a fault. At the fastest level, differences that rounding explains are allowed. Precision is then
//! raised where that reduces the divergence most, until the whole model is as close to the truth as the requested
//! precision demands. The verdict is about how often generated tokens change, on text of many kinds; if the result is
//! uncertain, more text is read.
//!
//! `docs/numerics.md` has the thresholds with the measurements behind them, and the limits of the check.

mod adapt;
mod batches;
mod cache;
#[cfg(all(test, feature = "gpu"))]
mod gpu_tests;
mod judge;
mod measure;
mod passages;
mod plan_entries;
mod plan_words;
mod precision;
mod prescreen;
mod reading;
mod report;
mod speed;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use braidinfer_model::{Adapter, DecoderSpec, Weights};
use serde::{Deserialize, Serialize};

pub(crate) use self::cache::{CheckedKernels, VerdictCache};
pub(crate) use self::passages::plain_text;
pub use self::precision::Precision;
pub use self::prescreen::{NormStatistics, Predicted};
pub use self::report::{CompatReport, LayerReport, Measured, OpError, PlanEntry, RunKind, RunReport, Speed, Status};

use self::adapt::Adapted;
use self::judge::Judgement;
use self::measure::{Errors, LayerErrors, Run, Truth};
use self::passages::Passages;
use self::plan_words::plan_in_words;
use self::reading::Reader;
use crate::executor::standard::{self, ComputeDtype, StreamOptions};
use crate::executor::{Batch, Decoder, KernelPlan, KvCacheConfig};
use crate::text::{ChatMessage, ChatTemplate, Tokenizer};
use crate::threads::Threads;
use crate::{Error, Result, memory};

/// How thorough a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Thoroughness {
    /// Fast enough to run while a model loads: about a hundred positions; the checkpoint's data type only if the fused
    /// kernels are not close to the truth; a choice of a few uniform plans.
    Brief,
    /// Several hundred positions; precision is raised per layer and projection.
    #[default]
    Normal,
    /// Every passage on the standard kernels, including a long one.
    Full,
}

/// The model to check.
pub struct Subject<'a> {
    /// Where the model came from, for the report.
    pub label: String,
    /// The model's description.
    pub spec: &'a DecoderSpec,
    /// Its weights, which the standard kernels stream one layer at a time.
    pub weights: &'a Weights,
    /// The tokenizer, if there is one; without it, random token ids are read.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The chat template, if there is one; with it, a chat is also read.
    pub chat_template: Option<&'a ChatTemplate>,
    /// Threads of the reference decoder.
    pub threads: &'a Threads,
    /// The adapters that the fused decoder has.
    pub adapters: &'a [Arc<Adapter>],
    /// Which of them everything is computed with; `None` for the model alone.
    pub adapter: Option<u32>,
    /// Creates the reference decoder; if `None`, the standard kernels read `weights`.
    pub reference: Option<Reference<'a>>,
}

/// Creates a reference decoder with the given compute type and KV cache size.
pub type Reference<'a> = &'a dyn Fn(ComputeDtype, KvCacheConfig) -> Result<Decoder<'a>>;

/// The result of a check.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The verdict.
    pub report: CompatReport,
    /// The plan that the verdict is about, for those layers that [`CompatReport::kernels`] leaves to the fused kernels.
    pub plan: KernelPlan,
}

impl Subject<'_> {
    /// Predicts from the weights alone, without running the model.
    pub fn predict(&self, isa: &str) -> Result<CompatReport> {
        let predicted = Predicted::of(self.spec, self.weights)?;
        let reason = judge::predicted_reason(&predicted);
        Ok(CompatReport {
            model: self.label.clone(),
            adapter: self.adapter_label(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            isa: isa.to_owned(),
            precision: None,
            kv_dtype: None,
            thoroughness: None,
            same_answers: false,
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

    /// Measures `fused` against the standard kernels, beginning with its own plan, which is the fastest, and chooses a
    /// plan for `precision`. If layers need the standard kernels, [`CompatReport::kernels`] says so. The KV cache is
    /// released afterwards.
    pub fn check(&self, fused: &mut Decoder<'_>, thoroughness: Thoroughness, precision: Precision) -> Result<Checked> {
        let checked = self.check_and_keep(fused, thoroughness, precision);
        fused.release_storage()?;
        fused.release_scratch();
        checked
    }

    /// The same, with the KV cache left as it is.
    fn check_and_keep(
        &self,
        fused: &mut Decoder<'_>,
        thoroughness: Thoroughness,
        precision: Precision,
    ) -> Result<Checked> {
        let started = Instant::now();
        let mut report = self.predict(&fused.report().isa)?;
        report.precision = Some(precision);
        report.thoroughness = Some(thoroughness);
        let passages = self.passages()?;
        let batch =
            batches::first(&passages, self.spec, fused.kv_cache(), thoroughness, fused.state().bytes_per_sequence == 0)
                .with_adapter(self.adapter);
        let bytes = check_bytes(batch.logits_rows.len(), self.spec.vocab_size);
        memory::can_grow(bytes, || format!("{}: logits of a check of its kernels", self.label))?;
        let found = self.measure(fused, batch, thoroughness)?;
        let usual = found.checkpoint.as_ref().filter(|_| !self.weights.dtype().is_quantized()).map(|(_, run)| run);
        let judgement = Judgement::of(&found.exact_errors, &found.exact, usual);
        let doubtful = report.predicted.status != Status::Compatible;
        let mut reader = Reader::new(self, &passages, &found, fused, thoroughness, doubtful)?;
        let between = thoroughness != Thoroughness::Brief;
        let adapted = self.adapt(fused, &found, &judgement, &mut reader, precision, between)?;
        let speed = match thoroughness {
            // A model that is being loaded should not wait for this.
            Thoroughness::Brief => None,
            _ if judgement.has_fault() => None,
            _ => speed::compare(fused, self.adapter, &found.fastest_plan, &adapted.plan)?,
        };
        report.layers = layer_reports(&found.exact_errors, &found.fastest_errors, &judgement, &adapted);
        judgement.conclude(&adapted, precision, &mut report);
        let read = adapted.run.divergence.positions;
        let (more_than_usual, beyond_first) = (reader.is_more_than_usual(read), reader.reference().to_owned());
        drop(reader);
        report.measured = Some(Measured {
            tokens: read,
            more_than_usual,
            beyond_first,
            text: passages.text,
            loss: found.truth.self_divergence().loss,
            uniform_loss: (self.spec.vocab_size as f64).ln(),
            runs: found.runs(&adapted),
            speed,
            seconds: started.elapsed().as_secs_f64(),
        });
        judge::recommend(&mut report);
        Ok(Checked { report, plan: adapted.plan })
    }

    /// Where the adapter came from that everything is computed with.
    pub(crate) fn adapter_label(&self) -> Option<String> {
        Some(self.adapters.get(self.adapter? as usize)?.label().to_owned())
    }

    /// The tokens to read.
    fn passages(&self) -> Result<Passages> {
        let chat = [ChatMessage::new("user", "Which is longer, the Rhine or the Rhône? Answer in one sentence.")];
        // `validate` reports a failing template; the measurement goes on without it.
        let turn = self.chat_template.and_then(|template| template.render(&chat, true).ok());
        Passages::new(self.tokenizer, turn.as_deref(), self.spec.vocab_size)
    }

    /// Chooses the fastest plan that the precision allows.
    fn adapt(
        &self,
        fused: &mut Decoder<'_>,
        found: &Measurements,
        judgement: &Judgement,
        reader: &mut Reader<'_, '_>,
        precision: Precision,
        search_between: bool,
    ) -> Result<Adapted> {
        if let Some(faulty) = judgement.faulty_layers() {
            let mut standard = self.standard(ComputeDtype::F32, fused.kv_cache())?;
            if let Some(adapted) =
                adapt::with_standard_layers(fused, &mut standard, found, &faulty, precision.target())?
            {
                return Ok(adapted);
            }
        }
        adapt::adapt(fused, found, judgement, reader, precision.target(), search_between)
    }

    /// All runs except those of candidate plans.
    fn measure(&self, fused: &mut Decoder<'_>, batch: Batch, thoroughness: Thoroughness) -> Result<Measurements> {
        let storage = fused.kv_cache();
        let fastest_plan = fused.plan().clone();
        let exact_plan = fastest_plan.exact();
        let mut standard = self.standard(ComputeDtype::F32, storage)?;
        let plans: &[&KernelPlan] = match thoroughness {
            Thoroughness::Brief => &[&exact_plan],
            Thoroughness::Normal | Thoroughness::Full => &[&exact_plan, &fastest_plan],
        };
        let (truth, errors) = Truth::observe(&mut standard, fused, plans, batch, self.threads)?;
        drop(standard);
        let mut errors = errors.into_iter();
        let exact_errors = errors.next().ok_or_else(|| Error::Internal("no errors of the exact plan".into()))?;
        let fastest_errors = errors.next();
        let exact = truth.run(fused, &exact_plan)?;
        let fastest = truth.run(fused, &fastest_plan)?;
        let checkpoint = match thoroughness {
            Thoroughness::Brief if Judgement::is_close(&fastest) => None,
            _ => self.checkpoint_run(&truth, storage)?,
        };
        Ok(Measurements { truth, fastest_plan, exact_errors, fastest_errors, exact, fastest, checkpoint })
    }

    pub(super) fn standard(&self, dtype: ComputeDtype, storage: KvCacheConfig) -> Result<Decoder<'_>> {
        if let Some(reference) = self.reference {
            return reference(dtype, storage);
        }
        let KvCacheConfig { block_size, num_blocks, .. } = storage;
        let options = StreamOptions { dtype, block_size, num_blocks, threads: self.threads.clone() };
        standard::stream(self.spec, self.weights, options)?.with_adapters(self.adapters)
    }

    /// The run in the checkpoint's data type (what most people run), unless that is f32, the truth itself.
    fn checkpoint_run(&self, truth: &Truth, storage: KvCacheConfig) -> Result<Option<(String, Run)>> {
        let dtype = ComputeDtype::from(self.weights.dtype());
        if dtype == ComputeDtype::F32 {
            return Ok(None);
        }
        let mut standard = self.standard(dtype, storage)?;
        let plan = standard.plan().clone();
        let run = truth.run(&mut standard, &plan)?;
        Ok(Some((format!("standard, {dtype}"), run)))
    }
}

/// Logits that a check keeps, in bytes: those of the first batch for the truth and for three runs, and those of what is read
/// further.
fn check_bytes(rows: usize, vocab_size: usize) -> usize {
    let further = vocab_size.saturating_mul(2 * rows).min(reading::MAX_CACHED_VALUES);
    rows.saturating_mul(vocab_size).saturating_mul(4).saturating_add(further).saturating_mul(size_of::<f32>())
}

/// Measurements made before a plan is chosen.
struct Measurements {
    truth: Truth,
    fastest_plan: KernelPlan,
    exact_errors: Errors,
    /// `None` in a brief check, which runs while a model loads.
    fastest_errors: Option<Errors>,
    exact: Run,
    fastest: Run,
    /// The run in the checkpoint's data type, with its name.
    checkpoint: Option<(String, Run)>,
}

impl Measurements {
    /// All runs, including that of the chosen plan.
    fn runs(self, adapted: &Adapted) -> Vec<RunReport> {
        let report = |kind, name, run: Run| RunReport { kind, name, divergence: run.divergence, drift: run.drift };
        let mut runs: Vec<RunReport> =
            self.checkpoint.into_iter().map(|(name, run)| report(RunKind::Checkpoint, name, run)).collect();
        runs.push(report(RunKind::Exact, "fused, nothing rounded but sums".into(), self.exact));
        let fastest = format!("fused, fastest ({})", plan_in_words(&self.fastest_plan));
        if adapted.plan == self.fastest_plan && adapted.standard.is_empty() {
            // This run includes the text read after the first measurement.
            runs.push(report(RunKind::Fastest, fastest, adapted.run.clone()));
            return runs;
        }
        runs.push(report(RunKind::Fastest, fastest, self.fastest));
        let standard = match adapted.standard.len() {
            0 => String::new(),
            1 => ", one layer standard".to_owned(),
            count => format!(", {count} layers standard"),
        };
        let name = format!("fused, by plan ({}{standard})", plan_in_words(&adapted.plan));
        runs.push(report(RunKind::Plan, name, adapted.run.clone()));
        runs
    }
}

/// The plan of an earlier report, for a model with the projections of `plan`; `None` if the report has other
/// projections.
pub fn plan_of(report: &CompatReport, plan: &KernelPlan) -> Option<KernelPlan> {
    plan_with(plan, &report.plan)
}

/// `plan` with the levels and types of `entries`; `None` if these have other projections.
pub(crate) fn plan_with(plan: &KernelPlan, entries: &[PlanEntry]) -> Option<KernelPlan> {
    plan_entries::planned(plan, entries)
}

/// A plan of fused kernels for all layers, as reports have it.
pub(crate) fn entries_of(plan: &KernelPlan) -> Vec<PlanEntry> {
    plan_entries::entries(plan, plan_entries::Computed::Some(&BTreeSet::new()))
}

fn layer_reports(
    exact: &Errors,
    fastest: &Option<Errors>,
    judgement: &Judgement,
    adapted: &Adapted,
) -> Vec<LayerReport> {
    let ops = |errors: &LayerErrors| -> Vec<OpError> {
        errors.ops.iter().map(|(op, error)| OpError { op: op.clone(), error: *error }).collect()
    };
    let of = |(layer, exact): (usize, &LayerErrors)| LayerReport {
        layer,
        exact: ops(exact),
        fastest: fastest.as_ref().and_then(|errors| errors.layers.get(layer)).map(ops).unwrap_or_default(),
        fault: judgement.fault_in(layer),
        raised: adapted.raised.get(&layer).cloned(),
    };
    exact.layers.iter().enumerate().map(of).collect()
}
