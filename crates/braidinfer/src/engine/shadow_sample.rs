//! A random sample of steps whose logits are kept, to be compared with the standard kernels later.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::VecDeque;

/// Most samples that may wait for their comparison; further steps are not kept.
const MAX_PENDING: usize = 4;

/// Longest sequence that is kept, in tokens: standard kernels hold the attention scores of every pair of tokens.
const MAX_TOKENS: usize = 1024;

/// The tokens of one sequence and the logits after them.
#[derive(Debug, Clone, PartialEq)]
pub struct ShadowSample {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Index of the adapter that it was computed with.
    pub adapter: Option<u32>,
    /// Logits after the last token, `[vocab_size]`.
    pub logits: Vec<f32>,
}

/// Keeps a random share of all steps.
#[derive(Debug)]
pub(super) struct ShadowSamples {
    share: f64,
    rng: SmallRng,
    kept: VecDeque<ShadowSample>,
}

impl ShadowSamples {
    pub(super) fn new(share: f64) -> Self {
        Self { share, rng: SmallRng::seed_from_u64(rand::random()), kept: VecDeque::new() }
    }

    pub(super) fn offer(&mut self, tokens: &[u32], adapter: Option<u32>, logits: &[f32]) {
        let has_room = tokens.len() <= MAX_TOKENS && self.kept.len() < MAX_PENDING;
        if self.share > 0.0 && has_room && self.rng.random_bool(self.share) {
            self.kept.push_back(ShadowSample { tokens: tokens.to_vec(), adapter, logits: logits.to_vec() });
        }
    }

    pub(super) fn first(&self) -> Option<&ShadowSample> {
        self.kept.front()
    }

    pub(super) fn forget_first(&mut self) {
        self.kept.pop_front();
    }
}
