//! Linear layers.

use braidinfer_model::Slot;
use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::adapters::ActiveAdapter;
use super::input_squares::InputObserver;
use super::matrix::Matrix;
use crate::Result;

/// `y = W x + b`, and what an adapter adds, with sums in f32 for all data types of `W` and `x`.
#[derive(Debug)]
pub(super) struct Linear {
    /// `[out, in]`.
    weight: Matrix,
    /// `[out]` in f32.
    bias: Option<Tensor>,
    /// Told of every input, if there is one.
    observer: Option<InputObserver>,
    /// Its module, by which adapters know it.
    slot: Slot,
    adapter: ActiveAdapter,
}

impl Linear {
    /// A layer that computes with `adapter`, too.
    pub(super) fn new(slot: Slot, weight: Matrix, bias: Option<Tensor>, adapter: &ActiveAdapter) -> Self {
        Self { weight, bias, observer: None, slot, adapter: adapter.clone() }
    }

    /// Tells `observer` of every input from now on.
    pub(super) fn observed_by(self, observer: Option<InputObserver>) -> Self {
        Self { observer, ..self }
    }

    /// Size of the weight in bytes.
    pub(super) fn weight_bytes(&self) -> usize {
        self.weight.bytes()
    }

    /// `[T, in]` to `[T, out]`, rounded once to the data type of `x`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.forward_f32(x)?.to_dtype(x.dtype())?)
    }

    /// `[T, in]` to `[T, out]` in f32.
    pub(super) fn forward_f32(&self, x: &Tensor) -> Result<Tensor> {
        // Below this many tokens a product is limited by reading the weights, and one thread cannot saturate the
        // memory.
        const FEW: usize = 8;
        if let Some(observer) = &self.observer {
            observer.add(x)?;
        }
        let y = match &self.weight {
            Matrix::Dense(weight) if !weight.device().is_cpu() => x.matmul(&weight.t()?)?.to_dtype(DType::F32)?,
            weight => match weight.as_f32() {
                Some(weight) if x.dim(0)? > FEW => x.matmul(&weight.t()?)?,
                _ => self.matmul_by_rows(x)?,
            },
        };
        let y = self.adapter.added_to(y, self.slot, x)?;
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }

    /// Multiplies a few rows of the weight at a time, in parallel. Candle's CPU matmul has no bf16 and its own way of
    /// summing f16, so such rows are converted to f32, as quantized rows are: few enough to stay in the CPU cache, and
    /// without a second copy of the matrix. The weight is the left operand, `W x^T`, which takes half the time of `x
    /// W^T` with 25 tokens, and five sixths with 72.
    fn matmul_by_rows(&self, x: &Tensor) -> Result<Tensor> {
        const ROWS: usize = 64;
        let x = x.to_dtype(DType::F32)?.t()?.contiguous()?;
        let out = self.weight.rows()?;
        let rows = ROWS.min(out.div_ceil(rayon::current_num_threads())).max(1);
        let starts: Vec<usize> = (0..out).step_by(rows).collect();
        let part = |start: &usize| Ok(self.weight.rows_f32(*start, rows.min(out - start))?.matmul(&x)?);
        let parts = starts.par_iter().map(part).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 0)?.t()?.contiguous()?)
    }
}
