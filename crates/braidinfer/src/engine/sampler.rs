//! Sampling: chooses a token from logits.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::SamplingParams;

/// Number of logits that are compared at once.
const LANES: usize = 16;

/// Number of candidates that are sorted first; more are sorted only if these do not reach top-p.
const FIRST_SORTED: usize = 64;

/// Chooses the tokens of one sequence. The same seed and logits give the same choices.
#[derive(Debug)]
pub(super) struct Sampler {
    rng: Pcg64,
}

impl Sampler {
    pub(super) fn new(seed: Option<u64>) -> Self {
        Self { rng: Pcg64::seed_from_u64(seed.unwrap_or_else(rand::random)) }
    }

    /// Samples the next token after `prompt` and `answer`.
    pub(super) fn sample(&mut self, logits: &[f32], prompt: &[u32], answer: &[u32], params: &SamplingParams) -> u32 {
        let mut logits = Cow::Borrowed(logits);
        if !params.logit_bias.is_empty() {
            add_bias(logits.to_mut(), &params.logit_bias);
        }
        if params.has_penalties() {
            penalize(logits.to_mut(), prompt, answer, params);
        }
        if params.temperature == 0.0 {
            return argmax(&logits);
        }
        let candidates = Candidates::new(&logits, params);
        candidates.choose(self.rng.random::<f64>())
    }
}

/// Index of the largest logit, the first of equals: the token that greedy sampling takes.
pub fn argmax(logits: &[f32]) -> u32 {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        raise(&mut largest, chunk);
    }
    raise(&mut largest, rest);
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|logit| *logit == largest).unwrap_or(0) as u32
}

/// Raises each element of `largest` to the value in `values` if that is larger.
fn raise(largest: &mut [f32; LANES], values: &[f32]) {
    for (largest, value) in largest.iter_mut().zip(values) {
        // This compiles to one instruction, unlike `f32::max`.
        *largest = if *value > *largest { *value } else { *largest };
    }
}

/// Index of the first value that is not finite.
pub(super) fn first_not_finite(logits: &[f32]) -> Option<usize> {
    // A loop without an early exit is vectorized and many times faster, and almost always all values are finite.
    let are_finite = logits.iter().fold(true, |so_far, logit| so_far & logit.is_finite());
    if are_finite { None } else { logits.iter().position(|logit| !logit.is_finite()) }
}

fn add_bias(logits: &mut [f32], bias: &BTreeMap<u32, f32>) {
    for (token, bias) in bias {
        logits.get_mut(*token as usize).into_iter().for_each(|logit| *logit += bias);
    }
}

fn penalize(logits: &mut [f32], prompt: &[u32], answer: &[u32], params: &SamplingParams) {
    let mut counts: HashMap<u32, usize> = prompt.iter().map(|token| (*token, 0)).collect();
    for token in answer {
        *counts.entry(*token).or_default() += 1;
    }
    for (token, count) in counts {
        let Some(logit) = logits.get_mut(token as usize) else { continue };
        let repetition = params.repetition_penalty as f32;
        *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        if count > 0 {
            *logit -= (params.presence_penalty + params.frequency_penalty * count as f64) as f32;
        }
    }
}

/// Tokens that may be chosen, with weights proportional to their probabilities; the likeliest token has weight 1.
struct Candidates(Vec<(u32, f64)>);

impl Candidates {
    /// Temperature, then top-k, top-p and min-p, in the order of `transformers`.
    fn new(logits: &[f32], params: &SamplingParams) -> Self {
        let largest = f64::from(logits[argmax(logits) as usize]);
        let weight = |logit: &f32| ((f64::from(*logit) - largest) / params.temperature).exp();
        let weights = (0..).zip(logits.iter().map(weight));
        // Tokens with probability 0 must be removed: `choose` falls back to the last candidate because of rounding.
        let mut candidates: Vec<(u32, f64)> = weights.filter(|(_, weight)| *weight > 0.0).collect();
        if let Some(keep) = params.top_k.filter(|keep| *keep < candidates.len()) {
            candidates.select_nth_unstable_by(keep.max(1) - 1, likelier_first);
            candidates.truncate(keep.max(1));
        }
        if params.top_p < 1.0 {
            keep_top_p(&mut candidates, params.top_p);
        }
        candidates.retain(|(_, weight)| *weight >= params.min_p);
        Self(candidates)
    }

    /// The token at `point` of the cumulative distribution; `point` is in `[0, 1)`.
    fn choose(&self, point: f64) -> u32 {
        let total: f64 = self.0.iter().map(|(_, weight)| weight).sum();
        let mut left = point * total;
        for (token, weight) in &self.0 {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        // Reached only because of rounding.
        self.0[self.0.len() - 1].0
    }
}

/// Orders candidates by decreasing weight, and those of equal weight by id.
fn likelier_first(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the fewest likeliest candidates whose weights sum to at least `top_p` of the total, likeliest first.
fn keep_top_p(candidates: &mut Vec<(u32, f64)>, top_p: f64) {
    let enough = top_p * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    let (mut sum, mut sorted) = (0.0, 0);
    // Usually a few candidates have most of the weight, and sorting the whole vocabulary would dominate the sampling time.
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let next = (7 * sorted).max(FIRST_SORTED).min(rest.len());
        rest.select_nth_unstable_by(next - 1, likelier_first);
        rest[..next].sort_unstable_by(likelier_first);
        for (index, (_, weight)) in rest[..next].iter().enumerate() {
            sum += weight;
            if sum >= enough {
                candidates.truncate(sorted + index + 1);
                return;
            }
        }
        sorted += next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 0.0];

    fn sampled(params: &SamplingParams) -> Vec<u32> {
        let mut sampler = Sampler::new(Some(7));
        let mut seen: Vec<u32> = (0..2000).map(|_| sampler.sample(&LOGITS, &[], &[], params)).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    fn warm() -> SamplingParams {
        SamplingParams { temperature: 1.0, ..SamplingParams::default() }
    }

    #[test]
    fn argmax_takes_the_first_of_equal_logits() {
        assert_eq!(argmax(&LOGITS), 1);
        assert_eq!(argmax(&[2.0, 2.0]), 0);
        assert_eq!((argmax(&[]), argmax(&[f32::NEG_INFINITY; 40])), (0, 0));
        for index in 0..67 {
            let mut logits = vec![-5.0; 67];
            logits[index..].fill(-4.0);
            assert_eq!(argmax(&logits), index as u32);
        }
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found() {
        assert_eq!(first_not_finite(&[0.0; 70]), None);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = vec![1.0; 70];
            (logits[66], logits[68]) = (bad, bad);
            assert_eq!(first_not_finite(&logits), Some(66));
        }
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let mut sampler = Sampler::new(Some(1));
        let draws = 20_000;
        let ones = (0..draws).filter(|_| sampler.sample(&LOGITS, &[], &[], &warm()) == 1).count();
        let total: f64 = LOGITS.iter().map(|logit| f64::from(*logit).exp()).sum();
        let expected = 3f64.exp() / total;
        assert!((ones as f64 / f64::from(draws) - expected).abs() < 0.02);
    }

    #[test]
    fn top_k_top_p_and_min_p_keep_the_right_tokens() {
        assert_eq!(sampled(&warm()), [0, 1, 2, 3, 4]);
        assert_eq!(sampled(&SamplingParams { top_k: Some(2), ..warm() }), [1, 2]);
        // Probabilities are 0.64, 0.23, 0.09, 0.03, 0.01.
        assert_eq!(sampled(&SamplingParams { top_p: 0.6, ..warm() }), [1]);
        assert_eq!(sampled(&SamplingParams { top_p: 0.7, ..warm() }), [1, 2]);
        assert_eq!(sampled(&SamplingParams { min_p: 0.3, ..warm() }), [1, 2]);
        assert_eq!(sampled(&SamplingParams { temperature: 0.01, ..warm() }), [1]);
    }

    #[test]
    fn top_p_keeps_the_same_tokens_as_a_full_sort() {
        let mut rng = Pcg64::seed_from_u64(5);
        for len in [1, 63, 64, 65, 600, 5000] {
            // Few different weights, so that many are equal.
            let candidates: Vec<(u32, f64)> =
                (0..len).map(|id| (id, f64::from(rng.random_range(1..50u32)) / 50.0)).collect();
            let mut sorted = candidates.clone();
            sorted.sort_by(likelier_first);
            let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
            for top_p in [1e-9, 0.1, 0.5, 0.9, 0.999_999] {
                let mut kept = candidates.clone();
                keep_top_p(&mut kept, top_p);
                let sum = |count: usize| sorted[..count].iter().map(|(_, weight)| weight).sum::<f64>();
                assert_eq!(kept, sorted[..kept.len()], "{len} candidates, {top_p}");
                assert!(sum(kept.len()) >= top_p * total && sum(kept.len() - 1) < top_p * total);
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_choices() {
        let draw = |seed| {
            let mut sampler = Sampler::new(Some(seed));
            (0..50).map(|_| sampler.sample(&LOGITS, &[], &[], &warm())).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn penalties_count_prompt_and_answer_as_documented() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..SamplingParams::default()
        };
        let mut logits = LOGITS;
        penalize(&mut logits, &[1, 3], &[2, 2], &params);
        assert_eq!(logits, [1.0, 1.5, 0.0, -2.0, 0.0]);
    }
}
