//! Divergence of a run's logits from the true ones: one measure for `check`, `diff`, `perplexity` and the server's
//! checks.

mod tally;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Deserializer, Serialize};

pub use self::tally::Tally;

/// Tokens whose log-probabilities under the truth differ by at most this, in nats, are a near tie. If one takes the
/// other's place, that does not count as a changed answer: 5 % of a probability is less than the effect of sampling, of
/// other hardware, or of a comma in the prompt.
pub const NEAR_TIE: f64 = 0.05;

/// Deserializes `null`, which JSON writes for NaN, as NaN.
pub(crate) fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// The same for lists.
pub(crate) fn nulls_are_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let values: Vec<Option<f64>> = Vec::deserialize(deserializer)?;
    Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
}

/// Divergence of the logits of a run from the true ones, over some positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Number of positions compared.
    pub positions: usize,
    /// Mean Kullback-Leibler divergence of the run from the truth, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl_mean: f64,
    /// Standard error of that mean, assuming independent positions.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl_standard_error: f64,
    /// Median divergence.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl_median: f64,
    /// 99th percentile of the divergences.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl_p99: f64,
    /// Largest divergence.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl_max: f64,
    /// Fraction of positions with the same most likely token.
    pub top1_agreement: f64,
    /// Positions with another most likely token that is a near tie under the truth: within [`NEAR_TIE`].
    pub near_ties: usize,
    /// Positions with another most likely token that is clearly less likely under the truth.
    pub disagreements: usize,
    /// Positions that could show a change: the two most likely tokens under the truth are no near tie, or the run's
    /// most likely token is clearly less likely than both.
    pub decided: usize,
    /// Median over positions of the shift, in nats. The shift of a position is the largest change of the margin between
    /// the most likely token under the truth and any token within 3 nats of it.
    #[serde(deserialize_with = "null_is_nan")]
    pub shift_median: f64,
    /// Largest shift of all positions. If it is below [`NEAR_TIE`], only near ties can change.
    #[serde(deserialize_with = "null_is_nan")]
    pub shift_max: f64,
    /// Mean negative log-likelihood of the next token, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Standard error of that mean, assuming independent positions.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss_standard_error: f64,
    /// Divergence of each position, in nats.
    #[serde(deserialize_with = "nulls_are_nan")]
    pub kl: Vec<f64>,
}

/// A measured fraction with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// The measured fraction.
    pub share: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Rate {
    /// `count` of `all`, with the score interval of Wilson (1927), which is valid for small counts and for zero.
    pub fn of(count: usize, all: usize) -> Self {
        if all == 0 {
            return Self { share: 0.0, low: 0.0, high: 1.0 };
        }
        // Quantile of the normal distribution for a two-sided 95 % interval.
        const Z: f64 = 1.959_964;
        let (n, share) = (all as f64, count as f64 / all as f64);
        let middle = share + Z * Z / (2.0 * n);
        let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + Z * Z / n;
        Self { share, low: ((middle - half) / scale).max(0.0), high: ((middle + half) / scale).min(1.0) }
    }
}

impl Divergence {
    /// Divergence of `logits` from `truth`, both `[positions][vocab_size]`; `next` has the token that follows each
    /// position, if there is one.
    pub(crate) fn of(truth: &[f32], logits: &[f32], vocab_size: usize, next: &[Option<u32>]) -> Self {
        let mut tally = Tally::default();
        tally.add(truth, logits, vocab_size, next);
        tally.divergence()
    }

    /// Whether every number is finite.
    pub fn is_finite(&self) -> bool {
        self.kl.iter().all(|kl| kl.is_finite()) && self.loss.is_finite()
    }

    /// Fraction of positions with a clearly different most likely token, among those that could show it.
    pub fn changed(&self) -> Rate {
        Rate::of(self.disagreements, self.decided)
    }
}

/// Log-probabilities, computed in f64.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    logits.iter().map(|logit| f64::from(logit - max) - sum.ln()).collect()
}
