//! Accumulating the divergence position by position, so that texts of any length can be compared without storing
//! logits.

use rayon::prelude::*;

use super::{Divergence, NEAR_TIE, log_softmax};
use crate::engine::argmax;
use crate::threads::Threads;

/// Tokens whose log-probability under the truth is within this of the most likely token's, in nats, compete with it.
const COMPETES: f64 = 3.0;

/// Statistics of the positions read so far.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    positions: Vec<Position>,
    threads: Option<Threads>,
}

/// Statistics of one position.
#[derive(Debug, Clone)]
struct Position {
    kl: f64,
    shift: f64,
    loss: Option<f64>,
    agreement: Agreement,
    decided: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agreement {
    Same,
    NearTie,
    Other,
}

impl Tally {
    /// An empty tally that computes on these threads.
    pub fn on(threads: &Threads) -> Self {
        Self { positions: Vec::new(), threads: Some(threads.clone()) }
    }

    /// Adds positions: `truth` and `logits` are `[positions][vocab_size]`, `next` has the token that follows each
    /// position, if there is one.
    pub fn add(&mut self, truth: &[f32], logits: &[f32], vocab_size: usize, next: &[Option<u32>]) {
        let of = |(row, (truth, logits)): (usize, (&[f32], &[f32]))| {
            Position::of(truth, logits, next.get(row).copied().flatten())
        };
        let positions = &mut self.positions;
        match &self.threads {
            None => {
                let rows = truth.chunks_exact(vocab_size).zip(logits.chunks_exact(vocab_size)).enumerate();
                positions.extend(rows.map(of));
            }
            Some(threads) => threads.run(|| {
                let rows = truth.par_chunks_exact(vocab_size).zip(logits.par_chunks_exact(vocab_size)).enumerate();
                positions.par_extend(rows.map(of));
            }),
        }
    }

    /// Number of positions added.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether no position was added yet.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// The divergence over all positions.
    pub fn divergence(&self) -> Divergence {
        let positions = &self.positions;
        let kl: Vec<f64> = positions.iter().map(|position| position.kl).collect();
        let shifts = sorted(positions.iter().map(|position| position.shift));
        let ordered = sorted(kl.iter().copied());
        let losses: Vec<f64> = positions.iter().filter_map(|position| position.loss).collect();
        let count = |agreement| positions.iter().filter(|position| position.agreement == agreement).count();
        Divergence {
            positions: positions.len(),
            kl_mean: mean(&kl),
            kl_standard_error: standard_error(&kl),
            kl_median: quantile(&ordered, 0.5),
            kl_p99: quantile(&ordered, 0.99),
            kl_max: quantile(&ordered, 1.0),
            top1_agreement: count(Agreement::Same) as f64 / positions.len().max(1) as f64,
            near_ties: count(Agreement::NearTie),
            disagreements: count(Agreement::Other),
            decided: positions.iter().filter(|position| position.decided).count(),
            shift_median: quantile(&shifts, 0.5),
            shift_max: quantile(&shifts, 1.0),
            loss: mean(&losses),
            loss_standard_error: standard_error(&losses),
            kl,
        }
    }
}

impl Position {
    fn of(truth: &[f32], logits: &[f32], next: Option<u32>) -> Self {
        let chosen = argmax(logits) as usize;
        let (truth, own) = (log_softmax(truth), log_softmax(logits));
        let kl: f64 = truth.iter().zip(&own).map(|(truth, own)| truth.exp() * (truth - own)).sum();
        let best = most_likely(&truth);
        let agreement = match best {
            best if best == chosen => Agreement::Same,
            best if truth[best] - truth[chosen] <= NEAR_TIE => Agreement::NearTie,
            _ => Agreement::Other,
        };
        let others = || truth.iter().zip(&own).enumerate().filter(|(token, _)| *token != best);
        let second = others().map(|(_, (truth, _))| *truth).fold(f64::NEG_INFINITY, f64::max);
        let moved =
            |(_, (truth_of, own_of)): (usize, (&f64, &f64))| ((own_of - own[best]) - (truth_of - truth[best])).abs();
        let competing = others().filter(|(_, (of, _))| **of >= truth[best] - COMPETES);
        Self {
            // Rounding may make the sum slightly negative; NaN is kept.
            kl: if kl < 0.0 { 0.0 } else { kl },
            shift: competing.map(moved).fold(if kl.is_nan() { f64::NAN } else { 0.0 }, larger),
            loss: next.and_then(|id| own.get(id as usize)).map(|of_next| -of_next),
            agreement,
            decided: truth[best] - second > NEAR_TIE || agreement == Agreement::Other,
        }
    }
}

/// Index of the largest value, the first if there are several.
fn most_likely(values: &[f64]) -> usize {
    let better = |best: usize, index: usize| if values[index] > values[best] { index } else { best };
    (0..values.len()).reduce(better).unwrap_or(0)
}

/// The larger value; NaN counts as larger than any number.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn standard_error(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let (mean, n) = (mean(values), values.len() as f64);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (n - 1.0) / n).sqrt()
}

/// Sorts in ascending order; NaN comes last, whatever its sign.
fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    sorted
}

/// The smallest value that at least a fraction `share` of all values does not exceed.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let index = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().unwrap_or(0.0)
}
