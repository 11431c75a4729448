//! Checking answers while they are given: some steps are computed again on standard kernels when nothing else is to do.

use braidinfer_model::{DecoderSpec, Weights};

use crate::Result;
use crate::divergence::Divergence;
use crate::engine::ShadowSample;
use crate::executor::standard::{self, ComputeDtype, StreamOptions};
use crate::executor::{Batch, NoProbe, SequenceSlice, Step};
use crate::loading::BLOCK_SIZE;
use crate::threads::Threads;

/// What computes steps again: the weights stay in their files, and one layer at a time is read from them.
pub(super) struct Shadow {
    spec: DecoderSpec,
    weights: Weights,
    threads: Threads,
}

/// How far a step was from standard kernels in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShadowCheck {
    /// Tokens of the sequence.
    pub tokens: usize,
    /// Kullback-Leibler divergence of its logits, in nats.
    pub kl: f64,
    /// Whether another token is likeliest, and clearly so.
    pub disagrees: bool,
}

impl Shadow {
    pub(super) fn new(spec: DecoderSpec, weights: Weights, threads: Threads) -> Self {
        Self { spec, weights, threads }
    }

    /// Computes a step again. `None` if `keep_going` said no before the end.
    pub(super) fn check(
        &self,
        tap: &ShadowSample,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Option<ShadowCheck>> {
        let tokens = tap.tokens.len();
        let blocks = tokens.div_ceil(BLOCK_SIZE);
        let options = StreamOptions {
            dtype: ComputeDtype::F32,
            block_size: BLOCK_SIZE,
            num_blocks: blocks,
            reread: true,
            threads: self.threads.clone(),
        };
        let mut standard = standard::stream(&self.spec, &self.weights, options)?;
        let mut batch = Batch::default();
        batch.push(&tap.tokens, SequenceSlice::new(0, tokens, (0..blocks as u32).collect()), 1);
        let plan = standard.plan().clone();
        let step = Step { batch: &batch, plan: &plan };
        let mut hidden = standard.embed(step, &mut NoProbe)?;
        for index in 0..self.spec.layers.len() {
            if !keep_going() {
                return Ok(None);
            }
            hidden = standard.layer(index, step, &hidden, &mut NoProbe)?;
        }
        let truth = standard.head(step, &hidden, &mut NoProbe)?.logits;
        let divergence = Divergence::of(truth.row(0), &tap.logits, self.spec.vocab_size, &[]);
        Ok(Some(ShadowCheck { tokens, kl: divergence.kl_max, disagrees: divergence.disagreements > 0 }))
    }
}
