//! Reading on, until a plan's divergence is known well enough.

use super::batches::{next_tokens, stages};
use super::measure::{Run, Truth};
use super::passages::Passages;
use super::precision::{Holds, Target};
use super::{Measurements, Subject, Thoroughness};
use crate::Result;
use crate::divergence::{Divergence, NEAR_TIE};
use crate::executor::standard::ComputeDtype;
use crate::executor::{Batch, Decoder, KernelPlan, NoProbe, Step};

/// Logits of the reference that are kept for the next plan, in values.
const KEPT: usize = 64 << 20;

/// Fused kernels that round nothing but sums stand for standard ones where they are as close as this: a tenth of what the most
/// exact plan is asked for.
const AS_GOOD_AS_TRUTH: Target = Target { kl_mean: 2.5e-8, shift: 1.25e-3 };

/// Positions to read before a verdict.
#[derive(Debug, Clone, Copy)]
struct Amount {
    /// What it takes where weights let expect nothing.
    begun: usize,
    /// What it takes with these weights, where nothing turns out to be in doubt.
    usual: usize,
    /// Where something is.
    most: usize,
}

/// Reads passages that the first measurement left.
pub(super) struct Reader<'a, 's> {
    subject: &'a Subject<'s>,
    truth: &'a Truth,
    stages: Vec<Batch>,
    exact: KernelPlan,
    /// Runs of the first measurement that are known already.
    known: Vec<(KernelPlan, Run)>,
    /// Where fused kernels cannot stand for the truth, or certainty is asked for.
    standard: Option<Decoder<'a>>,
    /// Of the first stages, of the reference.
    kept: Vec<Vec<f32>>,
    amount: Amount,
}

impl<'a, 's> Reader<'a, 's> {
    /// `doubtful` says that the weights let expect trouble.
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
        let verified = AS_GOOD_AS_TRUTH.judge(&found.exact.divergence) != Holds::No;
        let storage = fused.kv_cache();
        let standard = match how {
            Thoroughness::Brief | Thoroughness::Normal if verified => None,
            _ => Some(subject.standard(ComputeDtype::F32, storage)?),
        };
        Ok(Self {
            subject,
            truth: &found.truth,
            stages: stages(passages, subject.spec, storage, how),
            known: vec![(found.fastest_plan.clone(), found.fastest.clone()), (exact.clone(), found.exact.clone())],
            exact,
            standard,
            kept: Vec::new(),
            amount: Amount { begun: usual, usual: if doubtful { most } else { usual }, most },
        })
    }

    /// What positions beyond the first measurement were compared with.
    pub(super) fn reference(&self) -> &'static str {
        match self.standard {
            Some(_) => "standard kernels in f32",
            None => "fused kernels that round nothing but sums, which agree with standard ones in f32",
        }
    }

    /// Whether so many positions are more than usual.
    pub(super) fn is_more_than_usual(&self, positions: usize) -> bool {
        // A stage may be longer than what was left to read.
        positions > self.amount.begun.saturating_mul(2)
    }

    /// Runs a plan until it is known whether it holds `target`. Where there is none, on the usual amount of text, or on more
    /// if tokens may change.
    pub(super) fn read(&mut self, fused: &mut Decoder<'_>, plan: &KernelPlan, target: Option<Target>) -> Result<Run> {
        if *plan == self.exact && self.standard.is_none() {
            // It must not be compared with itself.
            self.standard = Some(self.subject.standard(ComputeDtype::F32, fused.kv_cache())?);
            self.kept.clear();
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
            self.keep_reference(fused, stage)?;
            let own = logits(fused, &self.stages[stage], plan)?;
            run.tally.add(&self.kept[stage], &own, vocab_size, &next_tokens(&self.stages[stage]));
            self.drop_large(stage);
            run.divergence = run.tally.divergence();
        }
        Ok(run)
    }

    fn needs_more(&self, found: &Divergence, target: Option<Target>) -> bool {
        let Amount { usual, most, .. } = self.amount;
        match target.map(|target| target.judge(found)) {
            Some(Holds::No) => false,
            Some(Holds::Barely) => found.positions < most,
            Some(Holds::Yes) => found.positions < usual,
            // How often tokens change is all there is to say then, so that it is read on where they may.
            None if found.shift_max > NEAR_TIE => found.is_finite() && found.positions < most,
            None => found.is_finite() && found.positions < usual,
        }
    }

    /// Sees to it that the logits of the reference for a stage are kept.
    fn keep_reference(&mut self, fused: &mut Decoder<'_>, stage: usize) -> Result<()> {
        self.kept.resize(self.kept.len().max(stage + 1), Vec::new());
        if !self.kept[stage].is_empty() {
            return Ok(());
        }
        self.kept[stage] = match &mut self.standard {
            Some(standard) => {
                let plan = standard.plan().clone();
                logits(standard, &self.stages[stage], &plan)?
            }
            None => logits(fused, &self.stages[stage], &self.exact)?,
        };
        Ok(())
    }

    /// Lets the logits of a stage go, if those of all that are kept are too large.
    fn drop_large(&mut self, stage: usize) {
        if self.kept.iter().map(Vec::len).sum::<usize>() > KEPT {
            self.kept[stage] = Vec::new();
        }
    }
}

fn logits(decoder: &mut Decoder<'_>, stage: &Batch, plan: &KernelPlan) -> Result<Vec<f32>> {
    Ok(decoder.forward_as_stored(Step { batch: stage, plan }, &mut NoProbe)?.logits.into_values())
}
