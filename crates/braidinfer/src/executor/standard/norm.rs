//! Normalisation over the last dimension.

use braidinfer_model::spec::{NormKind, NormSpec};
use candle_core::{D, DType, Device, Tensor};

use crate::Result;

/// A norm with its parameters in f32, the weight offset already added.
#[derive(Debug)]
pub(super) struct Norm {
    kind: NormKind,
    eps: f64,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Norm {
    /// `weight` and `bias` are `[width]` in f32, as stored, or `[heads, width]` for `[.., heads, width]`.
    pub(super) fn new(spec: &NormSpec, weight: &Tensor, bias: Option<Tensor>) -> Result<Self> {
        let weight = (weight + f64::from(spec.weight_offset))?;
        Ok(Self { kind: spec.kind, eps: spec.eps, weight, bias })
    }

    /// A norm of `width` values without a weight of its own.
    pub(super) fn plain(eps: f64, width: usize, device: &Device) -> Result<Self> {
        Ok(Self { kind: NormKind::Rms, eps, weight: Tensor::ones(width, DType::F32, device)?, bias: None })
    }

    /// This norm, with its weight multiplied by `factor`.
    pub(super) fn times(self, factor: f64) -> Result<Self> {
        Ok(Self { weight: (self.weight * factor)?, ..self })
    }

    /// `[.., width]` to the same shape and type; computed in f32 and rounded once.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let dtype = x.dtype();
        let mut x = x.to_dtype(DType::F32)?;
        if self.kind == NormKind::Layer {
            x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        }
        let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
        let y = x.broadcast_div(&(mean_square + self.eps)?.sqrt()?)?.broadcast_mul(&self.weight)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        Ok(y.to_dtype(dtype)?)
    }
}
