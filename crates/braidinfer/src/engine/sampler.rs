//! Sampling: chooses a token from logits.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::SamplingParams;
use super::softmax::{argmax, likeliest, sum, weights};

/// Number of candidates that are sorted first; more are sorted only if these do not reach top-p.
const FIRST_SORTED: usize = 64;

/// Number of candidates whose weights are added before one of them is looked for.
const BLOCK: usize = 64;

/// Chooses the tokens of one sequence. The same seed and logits give the same choices.
#[derive(Debug, Clone)]
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

/// Chooses tokens from other logits as a sequence would, with the random numbers that it will take.
#[derive(Debug)]
pub(super) struct Proposer {
    pub(super) sampler: Sampler,
    pub(super) params: SamplingParams,
    pub(super) prompt: Vec<u32>,
    /// The answer so far, drafts included.
    pub(super) answer: Vec<u32>,
    /// Tokens that end the answer.
    pub(super) ends: Vec<u32>,
}

impl Proposer {
    /// The next token of the draft.
    pub(super) fn propose(&mut self, logits: &[f32]) -> u32 {
        let token = self.sampler.sample(logits, &self.prompt, &self.answer, &self.params);
        self.answer.push(token);
        token
    }

    /// Whether nothing comes after this token.
    pub(super) fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }
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
struct Candidates {
    /// In the order of `weights`; none if these are all tokens by id.
    ids: Option<Vec<u32>>,
    weights: Vec<f32>,
}

impl Candidates {
    /// Temperature, then top-k, top-p and min-p, in the order of `transformers`.
    fn new(logits: &[f32], params: &SamplingParams) -> Self {
        let mut candidates = match params.top_k {
            Some(keep) if keep < logits.len() => {
                let ids = likeliest(logits, keep.max(1));
                let logits: Vec<f32> = ids.iter().map(|id| logits[*id as usize]).collect();
                Self { weights: weights(&logits, params.temperature), ids: Some(ids) }
            }
            _ => Self { weights: weights(logits, params.temperature), ids: None },
        };
        if params.top_p < 1.0 {
            candidates.keep_top_p(params.top_p);
        }
        for weight in &mut candidates.weights {
            if f64::from(*weight) < params.min_p {
                *weight = 0.0;
            }
        }
        candidates
    }

    /// Keeps the fewest likeliest candidates whose weights sum to at least `top_p` of the total, likeliest first.
    fn keep_top_p(&mut self, top_p: f64) {
        let enough = top_p * sum(&self.weights);
        let mut count = FIRST_SORTED;
        // Usually a few candidates have most of the weight, and sorting the whole vocabulary would dominate the sampling time.
        let kept = loop {
            let mut sorted = likeliest(&self.weights, count);
            let mut so_far = 0.0;
            let last = sorted.iter().position(|index| {
                so_far += f64::from(self.weights[*index as usize]);
                so_far >= enough
            });
            if last.is_some() || sorted.len() == self.weights.len() {
                sorted.truncate(last.map_or(sorted.len(), |last| last + 1));
                break sorted;
            }
            count *= 8;
        };
        self.weights = kept.iter().map(|index| self.weights[*index as usize]).collect();
        self.ids = Some(kept.into_iter().map(|index| self.id(index as usize)).collect());
    }

    fn id(&self, index: usize) -> u32 {
        self.ids.as_ref().map_or(index as u32, |ids| ids[index])
    }

    /// The token at `point` of the cumulative distribution; `point` is in `[0, 1)`.
    fn choose(&self, point: f64) -> u32 {
        let mut left = point * sum(&self.weights);
        for (block, weights) in self.weights.chunks(BLOCK).enumerate() {
            let all = sum(weights);
            if all <= left {
                left -= all;
                continue;
            }
            for (index, weight) in weights.iter().enumerate() {
                if f64::from(*weight) > left {
                    return self.id(BLOCK * block + index);
                }
                left -= f64::from(*weight);
            }
        }
        // Reached only because of rounding. Tokens of probability 0 are never chosen.
        self.id(self.weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0))
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
            let weights: Vec<f32> = (0..len).map(|_| rng.random_range(1..50_u32) as f32 / 64.0).collect();
            let sorted = likeliest(&weights, weights.len());
            let total = |ids: &[u32]| ids.iter().map(|id| f64::from(weights[*id as usize])).sum::<f64>();
            for top_p in [1e-9, 0.1, 0.5, 0.9, 0.999_999] {
                let mut kept = Candidates { ids: None, weights: weights.clone() };
                kept.keep_top_p(top_p);
                let ids = kept.ids.expect("some are kept");
                assert_eq!(ids, sorted[..ids.len()], "{len} candidates, {top_p}");
                let enough = top_p * total(&sorted);
                assert!(total(&ids) >= enough && total(&ids[..ids.len() - 1]) < enough, "{len} candidates, {top_p}");
            }
        }
    }

    #[test]
    fn every_point_chooses_the_token_whose_share_it_lies_in() {
        let mut rng = Pcg64::seed_from_u64(6);
        for len in [1, 64, 65, 700] {
            // Sums of these are exact, and some are 0.
            let weights: Vec<f32> = (0..len).map(|_| rng.random_range(0..8_u32) as f32).chain([1.0, 0.0]).collect();
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            let candidates = Candidates { ids: None, weights };
            let mut before = 0.0;
            for (token, weight) in candidates.weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                for inside in [0.01, 0.5, 0.99] {
                    let point = (before + inside * f64::from(*weight)) / total;
                    assert_eq!(candidates.choose(point), token as u32, "{point} of {len}");
                }
                before += f64::from(*weight);
            }
            assert_eq!(candidates.choose(1.0), len as u32, "rounding chooses none of probability 0");
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
