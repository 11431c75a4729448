//! ShadowChecker checks: while the engine is idle, sampled steps are computed again on the standard kernels and compared.

use std::sync::Arc;

use braidinfer_model::{Adapter, DecoderSpec, Weights};

use crate::Result;
use crate::divergence::Divergence;
use crate::engine::ShadowSample;
use crate::executor::standard::{self, ComputeDtype, StreamOptions};
use crate::executor::{Batch, NoProbe, SequenceSlice, Step};
use crate::loading::BLOCK_SIZE;
use crate::threads::Threads;

/// Recomputes sampled steps on the standard kernels. Reads the weights from their files, one layer at a time.
pub(super) struct ShadowChecker {
    spec: DecoderSpec,
    weights: Weights,
    adapters: Vec<Arc<Adapter>>,
    threads: Threads,
}

/// How far the logits of a step were from those of the standard kernels in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShadowCheck {
    /// Number of tokens of the sequence.
    pub tokens: usize,
    /// Kullback-Leibler divergence from the standard kernels, in nats.
    pub kl: f64,
    /// Whether the standard kernels clearly give another token as the likeliest.
    pub disagrees: bool,
}

impl ShadowChecker {
    pub(super) fn new(spec: DecoderSpec, weights: Weights, adapters: Vec<Arc<Adapter>>, threads: Threads) -> Self {
        Self { spec, weights, adapters, threads }
    }

    /// Computes a step again. `None` if `keep_going` returned false before a layer.
    pub(super) fn check(
        &self,
        sample: &ShadowSample,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Option<ShadowCheck>> {
        let tokens = sample.tokens.len();
        let blocks = tokens.div_ceil(BLOCK_SIZE);
        let options = StreamOptions {
            dtype: ComputeDtype::F32,
            block_size: BLOCK_SIZE,
            num_blocks: blocks,
            threads: self.threads.clone(),
        };
        let mut standard = standard::stream(&self.spec, &self.weights, options)?;
        if sample.adapter.is_some() {
            standard = standard.with_adapters(&self.adapters)?;
        }
        let mut batch = Batch::default();
        let slice = SequenceSlice::new(0, tokens, (0..blocks as u32).collect());
        batch.push(&sample.tokens, SequenceSlice { adapter: sample.adapter, ..slice }, 1);
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
        let divergence = Divergence::of(truth.row(0), &sample.logits, self.spec.vocab_size, &[]);
        Ok(Some(ShadowCheck { tokens, kl: divergence.kl_max, disagrees: divergence.disagreements > 0 }))
    }
}
