//! Checking answers while they are given: some steps are computed again on standard kernels when nothing else is to do.

use braidinfer_model::{DecoderSpec, Weights};

use crate::Result;
use crate::divergence::Divergence;
use crate::engine::Tap;
use crate::executor::standard::{ComputeDtype, StandardStream};
use crate::executor::{Batch, LayerByLayer, Layers, NoProbe, SequenceSlice};
use crate::loading::BLOCK_SIZE;

/// What computes steps again: the weights stay in their files, and one layer at a time is read from them.
pub(super) struct Shadow {
    spec: DecoderSpec,
    weights: Weights,
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
    pub(super) fn new(spec: DecoderSpec, weights: Weights) -> Self {
        Self { spec, weights }
    }

    /// Computes a step again. `None` if `keep_going` said no before the end.
    pub(super) fn check(&self, tap: &Tap, keep_going: &mut dyn FnMut() -> bool) -> Result<Option<ShadowCheck>> {
        let tokens = tap.tokens.len();
        let blocks = tokens.div_ceil(BLOCK_SIZE);
        let standard = StandardStream::new(&self.spec, &self.weights, ComputeDtype::F32, BLOCK_SIZE, blocks)?;
        let mut standard = standard.rereading();
        let mut batch = Batch::default();
        let block_table = (0..blocks as u32).collect();
        let slice = SequenceSlice { query_len: tokens, context_len: 0, rope_len: tokens, block_table };
        batch.push(&tap.tokens, slice, 1);
        let mut hidden = standard.embed(&batch, &mut NoProbe)?;
        for index in 0..self.spec.layers.len() {
            if !keep_going() {
                return Ok(None);
            }
            hidden = standard.layer(index, &batch, &hidden, &mut NoProbe)?;
        }
        let truth = standard.head(&batch, &hidden, &mut NoProbe)?.logits;
        let divergence = Divergence::of(truth.row(0), &tap.logits, self.spec.vocab_size, &[]);
        Ok(Some(ShadowCheck { tokens, kl: divergence.kl_max, disagrees: divergence.disagreements > 0 }))
    }
}
