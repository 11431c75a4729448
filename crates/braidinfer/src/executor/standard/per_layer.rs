//! Inputs of every layer besides the residual stream.

use braidinfer_model::spec::{ActivationFunction, PerLayerInputSpec};
use candle_core::{DType, Tensor};

use super::feed_forward::activate;
use super::linear::Linear;
use super::matrix::Matrix;
use super::norm::Norm;
use super::scaled;
use super::trace::Trace;
use crate::Result;

/// The weights that the inputs of all layers are computed with.
#[derive(Debug)]
pub(super) struct PerLayerInputs {
    pub(super) spec: PerLayerInputSpec,
    pub(super) layers: usize,
    pub(super) embed_tokens: Matrix,
    pub(super) projection: Linear,
    pub(super) norm: Norm,
}

impl PerLayerInputs {
    /// The inputs of all layers `[T, layers, p]`, from the tokens and their embeddings `[T, h]`.
    pub(super) fn of(&self, tokens: &[u32], x: &Tensor) -> Result<Tensor> {
        let shape = (tokens.len(), self.layers, self.spec.hidden_size_per_layer_input);
        let projected = (self.projection.forward(x)? * self.spec.projection_multiplier)?;
        let projected = self.norm.forward(&projected.reshape(shape)?)?;
        let tokens: Vec<u32> = tokens.iter().map(|token| self.spec.row(*token)).collect();
        let own = scaled(self.embed_tokens.select(&tokens, x.dtype())?, self.spec.embedding_multiplier)?;
        Ok(((projected + own.reshape(shape)?)? * self.spec.input_multiplier)?)
    }
}

/// How a layer uses its input.
#[derive(Debug)]
pub(super) struct PerLayerInput {
    pub(super) hidden_act: ActivationFunction,
    pub(super) gate: Linear,
    pub(super) projection: Linear,
    pub(super) norm: Norm,
}

impl PerLayerInput {
    /// What is added to the residual stream `x` `[T, h]` for the layer's input, `[T, p]`.
    pub(super) fn update(&self, x: &Tensor, input: &Tensor, trace: &mut Trace) -> Result<Tensor> {
        trace.record("per_layer.input", input)?;
        let gate = activate(self.hidden_act, None, &self.gate.forward(x)?.to_dtype(DType::F32)?)?;
        let gated = (gate * input.to_dtype(DType::F32)?)?.to_dtype(x.dtype())?;
        let out = self.norm.forward(&self.projection.forward(&gated)?)?;
        trace.record("per_layer.out", &out)?;
        Ok(out)
    }

    /// Its linear layers.
    pub(super) fn projections(&self) -> [&Linear; 2] {
        [&self.gate, &self.projection]
    }
}
