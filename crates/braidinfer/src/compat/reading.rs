//! Reading more text until the divergence of a plan is known well enough.

use super::batches::{next_tokens, stages};
use super::measure::{Run, Truth};
use super::passages::Passages;
use super::precision::{Target, TargetStatus};
use super::{Measurements, Subject, Thoroughness};
use crate::Result;
use crate::divergence::{Divergence, NEAR_TIE};
use crate::executor::standard::ComputeDtype;
use crate::executor::{Batch, Decoder, KernelPlan, NoProbe, Step};

/// Most reference logits that are cached for the next plan, as a number of values.
pub(super) const MAX_CACHED_VALUES: usize = 64 << 20;

/// If fused kernels with exact arithmetic are this close to the truth, they serve as the reference instead of the
/// standard kernels: a tenth of the target of `Precision::Exact`.
const AS_GOOD_AS_TRUTH: Target = Target { kl_mean: 2.5e-8, shift: 1.25e-3 };

/// Number of positions to read before a verdict.
#[derive(Debug, Clone, Copy)]
struct PositionCounts {
    /// The usual number if the weights look harmless.
    usual_if_harmless: usize,
    /// The usual number for these weights, if no result is uncertain.
    usual: usize,
    /// The number if a result is uncertain.
    most: usize,
}

/// Reads the passages that the first measurement did not cover.
pub(super) struct Reader<'a, 's> {
    subject: &'a Subject<'s>,
    truth: &'a Truth,
    stages: Vec<Batch>,
    exact: KernelPlan,
    /// Plans whose first measurement is already known.
    known: Vec<(KernelPlan, Run)>,
    /// Set if fused kernels cannot serve as the reference, or in a full check.
    standard: Option<Decoder<'a>>,
    /// Cached logits of the reference, one entry for each of the first stages.
    cached: Vec<Vec<f32>>,
    counts: PositionCounts,
}

impl<'a, 's> Reader<'a, 's> {
    /// `doubtful`: the weights suggest numerical trouble.
    pub(super) fn new(
        subject: &'a Subject<'s>,
        passages: &Passages,
        found: &'a Measurements,
        fused: &Decoder<'_>,
        how: Thoroughness,
        doubtful: bool,
    ) -> Result<Self> {
        let (usual, most) = match how {
            Thoroughness::Brief => (80, 256),
            Thoroughness::Normal => (256, 1024),
            Thoroughness::Full => (usize::MAX, usize::MAX),
        };
        let exact = found.fastest_plan.exact();
        let verified = AS_GOOD_AS_TRUTH.judge(&found.exact.divergence) != TargetStatus::Missed;
        let storage = fused.kv_cache();
        let standard = match how {
            Thoroughness::Brief | Thoroughness::Normal if verified => None,
            _ => Some(subject.standard(ComputeDtype::F32, storage)?),
        };
        Ok(Self {
            subject,
            truth: &found.truth,
            stages: stages(passages, subject.spec, storage, how)
                .into_iter()
                .map(|stage| stage.with_adapter(subject.adapter))
                .collect(),
            known: vec![(found.fastest_plan.clone(), found.fastest.clone()), (exact.clone(), found.exact.clone())],
            exact,
            standard,
            cached: Vec::new(),
            counts: PositionCounts { usual_if_harmless: usual, usual: if doubtful { most } else { usual }, most },
        })
    }

    /// Name of the reference for positions after the first measurement.
    pub(super) fn reference(&self) -> &'static str {
        match self.standard {
            Some(_) => "standard kernels in f32",
            None => "fused kernels that round nothing but sums, which agree with standard ones in f32",
        }
    }

    /// Whether this number of positions is more than usual.
    pub(super) fn is_more_than_usual(&self, positions: usize) -> bool {
        // Factor two: a stage may be longer than what was left to read.
        positions > self.counts.usual_if_harmless.saturating_mul(2)
    }

    /// Runs a plan until it is known whether it meets `target`. Without a target, on the usual counts of text, or on
    /// more if tokens may change.
    pub(super) fn read(&mut self, fused: &mut Decoder<'_>, plan: &KernelPlan, target: Option<Target>) -> Result<Run> {
        if *plan == self.exact && self.standard.is_none() {
            // The exact fused plan is the reference, and must not be compared with itself.
            self.standard = Some(self.subject.standard(ComputeDtype::F32, fused.kv_cache())?);
            self.cached.clear();
        }
        let mut run = match self.known.iter().find(|(known, _)| known == plan) {
            Some((_, run)) => run.clone(),
            None => self.truth.run(fused, plan)?,
        };
        let vocab_size = self.subject.spec.vocab_size;
        for stage in 0..self.stages.len() {
            if !self.needs_more(&run.divergence, target) {
                break;
            }
            self.cache_reference(fused, stage)?;
            let own = logits(fused, &self.stages[stage], plan)?;
            run.tally.add(&self.cached[stage], &own, vocab_size, &next_tokens(&self.stages[stage]));
            self.drop_large(stage);
            run.divergence = run.tally.divergence();
        }
        Ok(run)
    }

    fn needs_more(&self, found: &Divergence, target: Option<Target>) -> bool {
        let PositionCounts { usual, most, .. } = self.counts;
        match target.map(|target| target.judge(found)) {
            Some(TargetStatus::Missed) => false,
            Some(TargetStatus::BarelyMet) => found.positions < most,
            Some(TargetStatus::Met) => found.positions < usual,
            // Without a target only the rate of changed tokens is reported, so more is read where tokens may change.
            None if found.shift_max > NEAR_TIE => found.is_finite() && found.positions < most,
            None => found.is_finite() && found.positions < usual,
        }
    }

    /// Computes and caches the reference logits of a stage, if they are not cached yet.
    fn cache_reference(&mut self, fused: &mut Decoder<'_>, stage: usize) -> Result<()> {
        self.cached.resize(self.cached.len().max(stage + 1), Vec::new());
        if !self.cached[stage].is_empty() {
            return Ok(());
        }
        self.cached[stage] = match &mut self.standard {
            Some(standard) => {
                let plan = standard.plan().clone();
                logits(standard, &self.stages[stage], &plan)?
            }
            None => logits(fused, &self.stages[stage], &self.exact)?,
        };
        Ok(())
    }

    /// Drops the cached logits of a stage if the cache is too large.
    fn drop_large(&mut self, stage: usize) {
        if self.cached.iter().map(Vec::len).sum::<usize>() > MAX_CACHED_VALUES {
            self.cached[stage] = Vec::new();
        }
    }
}

fn logits(decoder: &mut Decoder<'_>, stage: &Batch, plan: &KernelPlan) -> Result<Vec<f32>> {
    Ok(decoder.forward_as_stored(Step { batch: stage, plan }, &mut NoProbe)?.logits.into_values())
}
