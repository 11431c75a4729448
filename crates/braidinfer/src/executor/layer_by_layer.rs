//! Executors whose layers can be run one at a time.

use super::{Batch, Logits, Probe};
use crate::Result;

/// The parts of a forward pass, on a residual stream that the caller keeps: so that layers can be compared on the same
/// input, whatever the ones before them did.
///
/// Batches hold whole sequences, from their first token on. A part stores the keys and values of its own layer and
/// leaves nothing else behind.
pub trait LayerByLayer {
    /// The residual stream `[T, hidden_size]` before the first layer.
    fn embed(&mut self, batch: &Batch) -> Result<Vec<f32>>;

    /// The residual stream after layer `index`, from that before it; both `[T, hidden_size]`.
    fn layer(&mut self, index: usize, batch: &Batch, hidden: &[f32], probe: &mut dyn Probe) -> Result<Vec<f32>>;

    /// Logits of the wanted rows, from the residual stream after the last layer.
    fn head(&mut self, batch: &Batch, hidden: &[f32]) -> Result<Logits>;
}

/// Fails on a sequence that does not begin with its first token.
pub(super) fn check_whole(batch: &Batch) -> Result<()> {
    match batch.sequences.iter().find(|sequence| sequence.context_len > 0) {
        None => Ok(()),
        Some(sequence) => {
            Err(crate::Error::bad_request("context_len", "whole sequences, layer by layer", sequence.context_len))
        }
    }
}
