//! Executors whose layers can be run one at a time.

use super::{Batch, Outputs, Probe};
use crate::Result;

/// Layers, on a residual stream that the caller keeps: so that they can be compared on the same input, whatever the ones
/// before them did, and so that different kernels can compute different ones.
///
/// A layer stores its keys and values and leaves nothing else behind. Where RoPE depends on the length of a sequence,
/// the caller sees to it that what was stored before is rotated as the batch needs it.
pub trait Layers {
    /// The residual stream after layer `index`, from that before it; both `[T, hidden_size]`.
    fn layer(&mut self, index: usize, batch: &Batch, hidden: &[f32], probe: &mut dyn Probe) -> Result<Vec<f32>>;
}

/// All parts of a forward pass.
pub trait LayerByLayer: Layers {
    /// The residual stream `[T, hidden_size]` before the first layer.
    fn embed(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<Vec<f32>>;

    /// What the batch asks for, from the residual stream after the last layer.
    fn head(&mut self, batch: &Batch, hidden: &[f32], probe: &mut dyn Probe) -> Result<Outputs>;
}
