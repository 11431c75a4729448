//! Log-probabilities of tokens.

use super::softmax::{largest, likeliest, sum, weights};

/// The log-probability of one token of a prompt or an answer, and the likeliest alternatives at its position.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability under the model's own logits, before temperature, penalties and biases.
    pub logprob: f32,
    /// The likeliest tokens with their log-probabilities, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// How much memory it takes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.top.capacity() * size_of::<(u32, f32)>()
    }

    /// Computes them from the `logits` at the position before `token`; `top` gets the `count` likeliest tokens.
    pub(super) fn of(logits: &[f32], token: u32, count: usize) -> Self {
        let (largest, log_sum) = (f64::from(largest(logits)), sum(&weights(logits, 1.0)).ln());
        let logprob = |id: u32| (f64::from(logits[id as usize]) - largest - log_sum) as f32;
        let top = likeliest(logits, count).into_iter().map(|id| (id, logprob(id))).collect();
        Self { token, logprob: logprob(token), top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_are_sorted() {
        let of = TokenLogprobs::of(&[0.0, 2.0, 1.0, 2.0], 2, 4);
        assert_eq!(of.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2, 0]);
        let sum: f32 = of.top.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert_eq!(of.logprob, of.top[2].1);
        assert_eq!(TokenLogprobs::of(&[0.0, 1.0], 0, 0).top, []);
        assert_eq!(TokenLogprobs::of(&[0.0, 1.0], 0, 1).top.len(), 1);
    }
}
