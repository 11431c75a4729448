//! How far logits and activations of a run are from the truth.

use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize};

use crate::engine::argmax;

/// Another token that the truth finds nearly as likely, by this many nats, is no disagreement.
const NEAR_TIE: f64 = 0.1;

/// JSON has no word for what is not a number, and says `null`; so it is read back.
pub(super) fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// The same for lists.
pub(super) fn nulls_are_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let values: Vec<Option<f64>> = Vec::deserialize(deserializer)?;
    Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
}

/// Distance of the logits of a run from the true ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Positions compared.
    pub positions: usize,
    /// Mean Kullback-Leibler divergence of the run from the truth, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl_mean: f64,
    /// 99th percentile.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl_p99: f64,
    /// Largest.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl_max: f64,
    /// Share of positions with the same likeliest token.
    pub top1_agreement: f64,
    /// Positions where another token is likeliest that the truth finds as likely within 0.1 nats.
    pub near_ties: usize,
    /// Positions where another token is likeliest that the truth finds clearly less likely.
    pub disagreements: usize,
    /// Mean negative log-likelihood of the next token, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Divergence at each position.
    #[serde(deserialize_with = "nulls_are_nan")]
    pub kl: Vec<f64>,
}

/// One position.
struct Position {
    kl: f64,
    loss: Option<f64>,
    agreement: Agreement,
}

#[derive(PartialEq, Eq)]
enum Agreement {
    Same,
    NearTie,
    Other,
}

impl Divergence {
    /// Of `logits` from `truth`, both `[positions][vocab_size]`; `next` has the token after each position, where there
    /// is one.
    pub(crate) fn of(truth: &[f32], logits: &[f32], vocab_size: usize, next: &[Option<u32>]) -> Self {
        let rows = truth.par_chunks_exact(vocab_size).zip(logits.par_chunks_exact(vocab_size)).enumerate();
        let positions: Vec<Position> =
            rows.map(|(row, (truth, logits))| Position::of(truth, logits, next.get(row).copied().flatten())).collect();
        let kl: Vec<f64> = positions.iter().map(|position| position.kl).collect();
        let count = |agreement| positions.iter().filter(|position| position.agreement == agreement).count();
        let losses: Vec<f64> = positions.iter().filter_map(|position| position.loss).collect();
        Self {
            positions: positions.len(),
            kl_mean: mean(&kl),
            kl_p99: quantile(&kl, 0.99),
            kl_max: kl.iter().copied().fold(0.0, larger),
            top1_agreement: count(Agreement::Same) as f64 / positions.len().max(1) as f64,
            near_ties: count(Agreement::NearTie),
            disagreements: count(Agreement::Other),
            loss: mean(&losses),
            kl,
        }
    }

    /// Whether every number is finite.
    pub fn is_finite(&self) -> bool {
        self.kl.iter().all(|kl| kl.is_finite()) && self.loss.is_finite()
    }
}

impl Position {
    fn of(truth: &[f32], logits: &[f32], next: Option<u32>) -> Self {
        let (truth, other) = (log_softmax(truth), log_softmax(logits));
        let kl: f64 = truth.iter().zip(&other).map(|(truth, other)| truth.exp() * (truth - other)).sum();
        let (best, chosen) = (likeliest(&truth), argmax(logits) as usize);
        let agreement = match best {
            best if best == chosen => Agreement::Same,
            best if truth[best] - truth[chosen] <= NEAR_TIE => Agreement::NearTie,
            _ => Agreement::Other,
        };
        // A sum of rounded terms may come out a little below zero; what is not a number stays so.
        Self { kl: if kl < 0.0 { 0.0 } else { kl }, loss: next.map(|id| -other[id as usize]), agreement }
    }
}

/// Mean negative log-likelihood of the next token, in nats. `next` has one for each of the first rows of `logits`, where
/// there is one.
pub(super) fn loss(logits: &[f32], vocab_size: usize, next: &[Option<u32>]) -> f64 {
    let rows = logits.par_chunks_exact(vocab_size).zip(next.par_iter());
    let losses: Vec<f64> = rows.filter_map(|(row, next)| next.map(|id| -log_softmax(row)[id as usize])).collect();
    mean(&losses)
}

/// Log-probabilities, in binary64.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    logits.iter().map(|logit| f64::from(logit - max) - sum.ln()).collect()
}

/// Index of the largest value, the first of equals.
fn likeliest(values: &[f64]) -> usize {
    let better = |best: usize, index: usize| if values[index] > values[best] { index } else { best };
    (0..values.len()).reduce(better).unwrap_or(0)
}

/// The larger one; what is not a number is larger than anything.
pub(super) fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The value that a share of all is not above.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    // What is not a number comes last, whatever its sign.
    sorted.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let index = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Relative error of `values` from `truth`, both `[rows][width]`: the root of the mean, over rows, of the squared ratio
/// of the error's length to the row's. Not finite if a value is not.
pub(super) fn relative_error(truth: &[f32], values: &[f32], rows: usize) -> f64 {
    if truth.len() != values.len() || rows == 0 {
        return f64::NAN;
    }
    let width = truth.len() / rows;
    let squares = |truth: &[f32], values: &[f32]| {
        let error = |(truth, value): (&f32, &f32)| f64::from(truth - value).powi(2);
        let (error, length) = (
            truth.iter().zip(values).map(error).sum::<f64>(),
            truth.iter().map(|truth| f64::from(*truth).powi(2)).sum::<f64>(),
        );
        // Rows of zeros have no direction to be wrong in, unless something appears there.
        if error == 0.0 { 0.0 } else { error / length.max(f64::from(f32::MIN_POSITIVE)) }
    };
    let sum: f64 = truth.chunks_exact(width).zip(values.chunks_exact(width)).map(|(a, b)| squares(a, b)).sum();
    (sum / rows as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_logits_diverge_by_nothing() {
        let logits = [0.5, 2.0, -1.0, 3.0, 0.0, 1.0];
        let divergence = Divergence::of(&logits, &logits, 3, &[Some(1), None]);
        assert_eq!((divergence.kl_max, divergence.top1_agreement, divergence.disagreements), (0.0, 1.0, 0));
        // The token after the first position has logit 2 of 0.5, 2 and -1.
        let expected = (0.5_f64.exp() + 2.0_f64.exp() + (-1.0_f64).exp()).ln() - 2.0;
        assert!((divergence.loss - expected).abs() < 1e-12, "{}", divergence.loss);
    }

    #[test]
    fn near_ties_are_told_from_disagreements() {
        let truth = [1.0, 0.95, 0.0, 3.0, 0.0, 0.0];
        let other = [0.95, 1.0, 0.0, 0.0, 3.0, 0.0];
        let divergence = Divergence::of(&truth, &other, 3, &[]);
        assert_eq!((divergence.near_ties, divergence.disagreements, divergence.top1_agreement), (1, 1, 0.0));
        assert!(divergence.kl_max > 1.0 && divergence.kl_mean < divergence.kl_max);
    }

    #[test]
    fn what_is_not_finite_is_not_hidden() {
        let divergence = Divergence::of(&[0.0, 1.0], &[f32::NAN, 1.0], 2, &[]);
        assert!(!divergence.is_finite() && divergence.kl_max.is_nan());
        assert!(relative_error(&[1.0], &[f32::NAN], 1).is_nan());
    }

    #[test]
    fn rows_count_alike_however_long_they_are() {
        let truth = [1000.0, 0.0, 1.0, 0.0];
        let values = [1000.0, 0.0, 0.0, 0.0];
        assert!((relative_error(&truth, &values, 2) - 0.5_f64.sqrt()).abs() < 1e-6);
    }
}
