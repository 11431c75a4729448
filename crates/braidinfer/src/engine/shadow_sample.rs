//! Steps whose logits are kept, to be compared with standard kernels later.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::VecDeque;

/// Steps that wait for their comparison; while there are so many, no other is kept.
const MOST: usize = 4;

/// Longer sequences are not kept: standard kernels hold scores of every token with every other one.
const LONGEST: usize = 1024;

/// The tokens of one sequence and the logits after them.
#[derive(Debug, Clone, PartialEq)]
pub struct ShadowSample {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// After the last of them, `[vocab_size]`.
    pub logits: Vec<f32>,
}

/// Keeps a share of all steps.
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

    pub(super) fn offer(&mut self, tokens: &[u32], logits: &[f32]) {
        let has_room = tokens.len() <= LONGEST && self.kept.len() < MOST;
        if self.share > 0.0 && has_room && self.rng.random_bool(self.share) {
            self.kept.push_back(ShadowSample { tokens: tokens.to_vec(), logits: logits.to_vec() });
        }
    }

    pub(super) fn first(&self) -> Option<&ShadowSample> {
        self.kept.front()
    }

    pub(super) fn forget_first(&mut self) {
        self.kept.pop_front();
    }
}
