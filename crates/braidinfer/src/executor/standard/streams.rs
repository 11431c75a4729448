//! Several residual streams, of which each layer transforms one.

use braidinfer_model::spec::AltUpSpec;
use candle_core::{D, DType, IndexOp, Tensor};

use super::linear::Linear;
use super::norm::Norm;
use crate::Result;

/// Projections from the embedding to the further streams, or from the further streams to what the output head reads.
#[derive(Debug)]
pub(super) struct StreamProjections {
    pub(super) spec: AltUpSpec,
    /// One for each stream but the first.
    pub(super) matrices: Vec<Linear>,
}

impl StreamProjections {
    /// All streams `[T, K, h]` before the first layer, from the embeddings `[T, h]`.
    pub(super) fn spread(&self, x: &Tensor) -> Result<Tensor> {
        let further = self.matrices.iter().map(|matrix| self.projected(matrix, x, x));
        let streams = std::iter::once(Ok(x.clone())).chain(further).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&streams, 1)?)
    }

    /// What the output head reads, `[T, h]`, from all streams after the last layer, `[T, K, h]`.
    pub(super) fn merged(&self, streams: &Tensor) -> Result<Tensor> {
        let first = streams.i((.., 0))?.contiguous()?;
        let mut sum = first.to_dtype(DType::F32)?;
        for (index, matrix) in self.matrices.iter().enumerate() {
            let stream = streams.i((.., index + 1))?.contiguous()?;
            sum = (sum + self.projected(matrix, &stream, &first)?.to_dtype(DType::F32)?)?;
        }
        Ok((sum / self.spec.altup_num_inputs as f64)?.to_dtype(streams.dtype())?)
    }

    /// The product of `matrix` and `x`, as large as `like`; all are `[T, h]`.
    fn projected(&self, matrix: &Linear, x: &Tensor, like: &Tensor) -> Result<Tensor> {
        let projected = matrix.forward_f32(x)?;
        let magnitude = mean_square(&like.to_dtype(DType::F32)?)?.sqrt()?;
        let own = mean_square(&projected)?.maximum(self.spec.least_mean_square)?.sqrt()?;
        Ok(projected.broadcast_mul(&magnitude.broadcast_div(&own)?)?.to_dtype(x.dtype())?)
    }
}

/// `[T, h]` to `[T, 1]`.
fn mean_square(x: &Tensor) -> Result<Tensor> {
    Ok(x.sqr()?.mean_keepdim(D::Minus1)?)
}

/// What predicts the streams before a layer and corrects them after it.
#[derive(Debug)]
pub(super) struct AltUp {
    pub(super) spec: AltUpSpec,
    /// With the factor of the router's input in its weight.
    pub(super) router_norm: Norm,
    pub(super) router: Linear,
    /// `[K * K, K]` in f32.
    pub(super) prediction_coefs: Tensor,
    /// `[K, K]` in f32.
    pub(super) correction_coefs: Tensor,
    /// `[h]` in f32.
    pub(super) output_scale: Option<Tensor>,
}

impl AltUp {
    /// The predicted streams, from the streams before the layer; both are `[T, K, h]`.
    pub(super) fn predict(&self, streams: &Tensor) -> Result<Tensor> {
        let (tokens, inputs, _) = streams.dims3()?;
        let coefs = self.modalities(&self.active(streams)?)?.matmul(&self.prediction_coefs.t()?)?;
        let coefs = coefs.reshape((tokens, inputs, inputs))?;
        let wide = streams.to_dtype(DType::F32)?.contiguous()?;
        Ok((coefs.matmul(&wide)? + wide)?.to_dtype(streams.dtype())?)
    }

    /// The corrected streams, from the predicted ones and what the layer made of the active one, `[T, h]`.
    pub(super) fn correct(&self, predicted: &Tensor, activated: &Tensor) -> Result<Tensor> {
        let coefs = (self.modalities(activated)?.matmul(&self.correction_coefs.t()?)? + 1.0)?;
        let wide = predicted.to_dtype(DType::F32)?;
        let innovation = (activated.to_dtype(DType::F32)? - self.active(&wide)?)?;
        let change = coefs.unsqueeze(2)?.broadcast_mul(&innovation.unsqueeze(1)?)?;
        Ok((wide + change)?.to_dtype(predicted.dtype())?)
    }

    /// The active stream, `[T, h]`.
    pub(super) fn active(&self, streams: &Tensor) -> Result<Tensor> {
        Ok(streams.i((.., self.spec.altup_active_idx))?.contiguous()?)
    }

    /// What a layer's further input is gated by, `[T, h]`.
    pub(super) fn gating(&self, streams: &Tensor) -> Result<Tensor> {
        let active = self.active(streams)?;
        match &self.output_scale {
            Some(scale) => Ok(active.to_dtype(DType::F32)?.broadcast_mul(scale)?.to_dtype(active.dtype())?),
            None => Ok(active),
        }
    }

    /// The streams `[T, K, h]`, with `update` `[T, h]` added to all but the first.
    pub(super) fn add_to_others(&self, streams: &Tensor, update: &Tensor) -> Result<Tensor> {
        let further = self.spec.altup_num_inputs - 1;
        if further == 0 {
            return Ok(streams.clone());
        }
        let first = streams.narrow(1, 0, 1)?;
        let others = streams.narrow(1, 1, further)?.broadcast_add(&update.unsqueeze(1)?)?;
        Ok(Tensor::cat(&[first, others], 1)?)
    }

    /// `[T, h]` to `[T, K]` in f32.
    fn modalities(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.router.forward_f32(&self.router_norm.forward(x)?)?.tanh()?)
    }
}
