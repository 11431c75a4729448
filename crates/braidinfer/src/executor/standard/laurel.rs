//! A branch of low rank beside attention.

use candle_core::Tensor;

use super::linear::Linear;
use super::norm::Norm;
use super::trace::Trace;
use crate::Result;

/// See [`braidinfer_model::spec::LaurelSpec`].
#[derive(Debug)]
pub(super) struct Laurel {
    pub(super) left: Linear,
    pub(super) right: Linear,
    pub(super) norm: Norm,
    /// Factor of the sum.
    pub(super) sum_multiplier: f64,
}

impl Laurel {
    /// The residual stream after attention with the branch, from the normed stream before it and the stream after it; all
    /// are `[T, h]`.
    pub(super) fn add_to(&self, after_attention: &Tensor, normed: &Tensor, trace: &mut Trace) -> Result<Tensor> {
        let low = self.norm.forward(&self.right.forward(&self.left.forward(normed)?)?)?;
        let branch = (normed + low)?;
        trace.record("laurel.out", &branch)?;
        Ok(((after_attention + branch)? * self.sum_multiplier)?)
    }

    /// Its linear layers.
    pub(super) fn projections(&self) -> [&Linear; 2] {
        [&self.left, &self.right]
    }
}
