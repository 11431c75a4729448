//! Linear layers.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::Result;

/// `y = W x + b`, with sums in f32 whatever the types of `W` and `x`.
#[derive(Debug)]
pub(super) struct Linear {
    /// `[out, in]` in the compute type.
    weight: Tensor,
    /// `[out]` in f32.
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// `[T, in]` to `[T, out]`, rounded once to the type of `x`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.forward_f32(x)?.to_dtype(x.dtype())?)
    }

    /// `[T, in]` to `[T, out]` in f32.
    pub(super) fn forward_f32(&self, x: &Tensor) -> Result<Tensor> {
        // Below this many tokens a product is bound by reading the weights, which one thread cannot do fast enough.
        const FEW: usize = 8;
        let narrow = self.weight.dtype() != DType::F32;
        let y = if self.weight.device().is_cpu() && (narrow || x.dim(0)? <= FEW) {
            self.matmul_by_rows(x)?
        } else {
            x.matmul(&self.weight.t()?)?.to_dtype(DType::F32)?
        };
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }

    /// A few rows of the weight at a time, in parallel. Candle's CPU matmul has no bf16 and sums f16 in its own way, so
    /// such rows are widened to f32: few enough to stay in the cache, and never a second copy of the matrix.
    fn matmul_by_rows(&self, x: &Tensor) -> Result<Tensor> {
        const ROWS: usize = 128;
        let x = x.to_dtype(DType::F32)?;
        let out = self.weight.dim(0)?;
        let starts: Vec<usize> = (0..out).step_by(ROWS).collect();
        let part = |start: &usize| {
            let rows = self.weight.narrow(0, *start, ROWS.min(out - start))?.to_dtype(DType::F32)?;
            x.matmul(&rows.t()?)
        };
        let parts = starts.par_iter().map(part).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 1)?)
    }
}
