//! Rotary position embedding.

use std::collections::HashMap;

use braidinfer_model::DecoderSpec;
use braidinfer_model::spec::{RopePairing, RopeSpec};
use candle_core::{D, Device, Tensor};

use crate::Result;
use crate::executor::Batch;

/// Cosines and sines of one rotary table for every token of a batch.
#[derive(Debug)]
pub(super) struct Rotation {
    pairing: RopePairing,
    rotary_dim: usize,
    /// `[T, 1, rotary_dim / 2]` in f32, the attention factor included.
    cos: Tensor,
    /// As `cos`.
    sin: Tensor,
}

impl Rotation {
    /// One rotation per table of the spec.
    pub(super) fn for_batch(spec: &DecoderSpec, batch: &Batch, device: &Device) -> Result<Vec<Self>> {
        spec.rope.iter().map(|table| Self::new(table, batch, device)).collect()
    }

    fn new(table: &RopeSpec, batch: &Batch, device: &Device) -> Result<Self> {
        let pairs = table.rotary_dim / 2;
        let mut frequencies = HashMap::new();
        let (mut angles, mut factors) = (Vec::with_capacity(batch.token_ids.len() * pairs), Vec::new());
        for sequence in &batch.sequences {
            let regime = table.regime(sequence.rope_len);
            let inv_freq = frequencies.entry(regime).or_insert_with(|| table.inv_freq(sequence.rope_len));
            angles.extend(sequence.positions().flat_map(|p| inv_freq.iter().map(move |f| p as f32 * f)));
            factors.resize(angles.len(), table.attention_factor(sequence.rope_len));
        }
        let tensor = |function: fn(f32) -> f32| {
            let values: Vec<f32> =
                angles.iter().zip(&factors).map(|(angle, factor)| function(*angle) * factor).collect();
            Tensor::from_vec(values, (batch.token_ids.len(), 1, pairs), device)
        };
        Ok(Self {
            pairing: table.pairing,
            rotary_dim: table.rotary_dim,
            cos: tensor(f32::cos)?,
            sin: tensor(f32::sin)?,
        })
    }

    /// Rotates `[T, heads, d]` in f32, from dimension `first` of each head.
    pub(super) fn apply(&self, x: &Tensor, first: usize) -> Result<Tensor> {
        let head_dim = x.dim(D::Minus1)?;
        let turning = x.narrow(D::Minus1, first, self.rotary_dim)?;
        let turned = match self.pairing {
            RopePairing::HalfSplit => self.half_split(&turning)?,
            RopePairing::Interleaved => self.interleaved(&turning)?,
        };
        if self.rotary_dim == head_dim {
            return Ok(turned);
        }
        let end = first + self.rotary_dim;
        let (before, after) = (x.narrow(D::Minus1, 0, first)?, x.narrow(D::Minus1, end, head_dim - end)?);
        let parts = [before, turned, after];
        let parts: Vec<&Tensor> = parts.iter().filter(|part| part.elem_count() > 0).collect();
        Ok(Tensor::cat(&parts, D::Minus1)?)
    }

    fn half_split(&self, x: &Tensor) -> Result<Tensor> {
        let half = self.rotary_dim / 2;
        let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let (a, b) = self.turn(&a, &b)?;
        Ok(Tensor::cat(&[&a, &b], D::Minus1)?)
    }

    fn interleaved(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, heads, width) = x.dims3()?;
        let pairs = x.reshape((tokens, heads, width / 2, 2))?;
        let (a, b) = (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?);
        let (a, b) = self.turn(&a, &b)?;
        Ok(Tensor::stack(&[&a, &b], 3)?.reshape((tokens, heads, width))?)
    }

    /// `(a cos - b sin, b cos + a sin)`.
    fn turn(&self, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
        let turned_a = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?)?;
        let turned_b = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(&self.sin)?)?;
        Ok((turned_a, turned_b))
    }
}
