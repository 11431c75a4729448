//! Gated short convolutions.

use braidinfer_model::spec::ShortConvSpec;
use candle_core::{DType, Tensor};

use super::layer::Context;
use super::linear::Linear;
use super::recurrent_state::{StateShape, Tokens, convolve};
use super::trace::Trace;
use crate::Result;

/// The convolution of a layer, with its projections.
#[derive(Debug)]
pub(super) struct ShortConv {
    pub(super) spec: ShortConvSpec,
    /// To the two gates and what is convolved.
    pub(super) in_proj: Linear,
    /// `[channels][kernel]`.
    pub(super) conv: Vec<f32>,
    /// `[channels]`.
    pub(super) bias: Option<Vec<f32>>,
    pub(super) out_proj: Linear,
}

impl ShortConv {
    /// `[T, h]` to `[T, h]`; moves the states of all sequences on.
    pub(super) fn forward(&self, x: &Tensor, context: &Context, trace: &mut Trace) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let bcx = self.in_proj.forward(x)?.to_dtype(DType::F32)?;
        trace.record("conv.bcx", &bcx)?;
        let part = |index: usize| bcx.narrow(1, index * width, width);
        let products = (part(0)? * part(2)?)?;
        let mut convolved = Vec::with_capacity(rows * width);
        for (range, sequence) in context.batch.ranges() {
            let inputs = products.narrow(0, range.start, range.len())?.flatten_all()?.to_vec1()?;
            let new = Tokens { inputs, ..Tokens::default() };
            let bias = |channel: usize| self.bias.as_ref().map_or(0.0, |bias| bias[channel]);
            let shape = StateShape::of_short_conv(&self.spec, width);
            context.recurrent_states.step(context.index, shape, sequence, &new, |_, inputs, known, _| {
                let outputs = convolve(inputs, &self.conv, width, |channel, sum| sum + bias(channel));
                convolved.extend_from_slice(&outputs[known * width..]);
            })?;
        }
        let convolved = Tensor::from_vec(convolved, (rows, width), x.device())?;
        trace.record("conv.convolved", &convolved)?;
        let gated = (part(1)? * convolved)?.to_dtype(x.dtype())?;
        trace.record("conv.gated", &gated)?;
        let out = self.out_proj.forward(&gated)?;
        trace.record("conv.out", &out)?;
        Ok(out)
    }

    /// All projections.
    pub(super) fn projections(&self) -> Vec<&Linear> {
        vec![&self.in_proj, &self.out_proj]
    }
}
