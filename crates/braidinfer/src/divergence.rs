//! How far the logits of a run are from the true ones: one measure for `check`, `diff`, `perplexity` and the server's checks.

mod tally;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Deserializer, Serialize};

pub use self::tally::Tally;

/// Tokens that the truth finds as likely within this many nats are nearly tied: that one takes the other's place is no
/// change of an answer, since 5 % of a probability is less than sampling, hardware or a comma in the prompt make.
pub const NEAR_TIE: f64 = 0.05;

/// JSON has no word for what is not a number, and says `null`; so it is read back.
pub(crate) fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// The same for lists.
pub(crate) fn nulls_are_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let values: Vec<Option<f64>> = Vec::deserialize(deserializer)?;
    Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
}

/// Distance of the logits of a run from the true ones, over some positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Positions compared.
    pub positions: usize,
    /// Mean Kullback-Leibler divergence of the run from the truth, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl_mean: f64,
    /// Standard error of that mean, if positions were independent of each other.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl_standard_error: f64,
    /// Median.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl_median: f64,
    /// 99th percentile.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl_p99: f64,
    /// Largest.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl_max: f64,
    /// Share of positions with the same likeliest token.
    pub top1_agreement: f64,
    /// Positions where another token is likeliest that the truth finds as likely within [`NEAR_TIE`].
    pub near_ties: usize,
    /// Positions where another token is likeliest that the truth finds clearly less likely.
    pub disagreements: usize,
    /// Positions at which a change shows: the two likeliest tokens are no near tie in the truth, or the run finds one likeliest
    /// that is clearly less likely than both.
    pub decided: usize,
    /// How far a token that the truth finds within 3 nats of the likeliest came nearer to it or moved away, in nats: the
    /// largest such shift of each position; its median.
    #[serde(deserialize_with = "null_is_nan")]
    pub shift_median: f64,
    /// The largest of all positions. Nothing but near ties can change below [`NEAR_TIE`].
    #[serde(deserialize_with = "null_is_nan")]
    pub shift_max: f64,
    /// Mean negative log-likelihood of the next token, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Standard error of that mean, if positions were independent of each other.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss_standard_error: f64,
    /// Divergence at each position.
    #[serde(deserialize_with = "nulls_are_nan")]
    pub kl: Vec<f64>,
}

/// A share that was counted, and the interval that contains the true one in 95 of 100 measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// As counted.
    pub share: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Rate {
    /// Of `count` in `all`, with the score interval of Wilson (1927), which is sound for few and for none.
    pub fn of(count: usize, all: usize) -> Self {
        if all == 0 {
            return Self { share: 0.0, low: 0.0, high: 1.0 };
        }
        // Two-sided, 95 %.
        const Z: f64 = 1.959_964;
        let (n, share) = (all as f64, count as f64 / all as f64);
        let middle = share + Z * Z / (2.0 * n);
        let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + Z * Z / n;
        Self { share, low: ((middle - half) / scale).max(0.0), high: ((middle + half) / scale).min(1.0) }
    }
}

impl Divergence {
    /// Of `logits` from `truth`, both `[positions][vocab_size]`; `next` has the token after each position, where there
    /// is one.
    pub(crate) fn of(truth: &[f32], logits: &[f32], vocab_size: usize, next: &[Option<u32>]) -> Self {
        let mut tally = Tally::default();
        tally.add(truth, logits, vocab_size, next);
        tally.divergence()
    }

    /// Whether every number is finite.
    pub fn is_finite(&self) -> bool {
        self.kl.iter().all(|kl| kl.is_finite()) && self.loss.is_finite()
    }

    /// How often another token is clearly likeliest, of the positions at which that shows.
    pub fn changed(&self) -> Rate {
        Rate::of(self.disagreements, self.decided)
    }
}

/// Log-probabilities, in binary64.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    logits.iter().map(|logit| f64::from(logit - max) - sum.ln()).collect()
}
