//! One layer: attention or a recurrence, and feed-forward network, added to the residual stream.

use candle_core::{IndexOp, Tensor};

use super::attention::{Attention, MaskCache};
use super::delta_net::DeltaNet;
use super::feed_forward::FeedForward;
use super::kv_cache::KvCache;
use super::linear::Linear;
use super::norm::Norm;
use super::per_layer::PerLayerInput;
use super::recurrent_state::RecurrentStates;
use super::rotary::Rotation;
use super::short_conv::ShortConv;
use super::trace::Trace;
use crate::Result;
use crate::executor::Batch;

/// What the layers of one forward pass need.
pub(super) struct Context<'a> {
    pub(super) batch: &'a Batch,
    /// One entry per rotary table.
    pub(super) rotations: &'a [Rotation],
    pub(super) kv_cache: &'a KvCache,
    pub(super) masks: &'a MaskCache,
    pub(super) recurrent_states: &'a RecurrentStates,
    /// Further inputs of all layers, `[T, layers, p]`.
    pub(super) per_layer_inputs: Option<&'a Tensor>,
    /// Index of the current layer.
    pub(super) index: usize,
}

/// How a layer mixes positions.
#[derive(Debug)]
pub(super) enum Mixer {
    Attention(Attention),
    DeltaNet(DeltaNet),
    ShortConv(ShortConv),
}

impl Mixer {
    /// `[T, h]` to `[T, h]`.
    fn forward(&self, x: &Tensor, context: &Context, trace: &mut Trace) -> Result<Tensor> {
        match self {
            Self::Attention(attention) => attention.forward(x, context, trace),
            Self::DeltaNet(delta_net) => delta_net.forward(x, context, trace),
            Self::ShortConv(short_conv) => short_conv.forward(x, context, trace),
        }
    }

    fn projections(&self) -> Vec<&Linear> {
        match self {
            Self::Attention(attention) => attention.projections(),
            Self::DeltaNet(delta_net) => delta_net.projections(),
            Self::ShortConv(short_conv) => short_conv.projections(),
        }
    }
}

/// A layer. Norms that the architecture lacks are `None` and pass their input through.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) parallel: bool,
    pub(super) residual_multiplier: f64,
    pub(super) input_norm: Option<Norm>,
    pub(super) mixer: Mixer,
    pub(super) attention_output_norm: Option<Norm>,
    pub(super) feed_forward_norm: Option<Norm>,
    pub(super) feed_forward: FeedForward,
    pub(super) feed_forward_output_norm: Option<Norm>,
    pub(super) per_layer_input: Option<PerLayerInput>,
    /// Factor of the residual stream at the end.
    pub(super) scalar: Option<f64>,
}

impl Layer {
    /// The residual stream `[T, h]` after this layer.
    pub(super) fn forward(&self, x: &Tensor, context: &Context, trace: &mut Trace) -> Result<Tensor> {
        let normed = apply_norm(&self.input_norm, x)?;
        trace.record("input_norm", &normed)?;
        let mixed = apply_norm(&self.attention_output_norm, &self.mixer.forward(&normed, context, trace)?)?;
        let after_attention = self.add(x, &mixed)?;
        trace.record("attn.residual", &after_attention)?;
        let normed = match (self.parallel, &self.feed_forward_norm) {
            (true, None) => normed,
            (true, Some(norm)) => norm.forward(x)?,
            (false, norm) => apply_norm(norm, &after_attention)?,
        };
        trace.record("ffn.norm", &normed)?;
        let transformed =
            apply_norm(&self.feed_forward_output_norm, &self.feed_forward.forward(&normed, &after_attention, trace)?)?;
        trace.record("ffn.out", &transformed)?;
        let x = self.add(&after_attention, &transformed)?;
        let x = match (&self.per_layer_input, context.per_layer_inputs) {
            (Some(part), Some(inputs)) => part.forward(&x, &inputs.i((.., context.index))?, trace)?,
            _ => x,
        };
        Ok(self.scalar.map_or(Ok(x.clone()), |scalar| &x * scalar)?)
    }

    /// All projections of the layer.
    pub(super) fn projections(&self) -> impl Iterator<Item = &Linear> {
        let further = self.per_layer_input.iter().flat_map(PerLayerInput::projections);
        self.mixer.projections().into_iter().chain(self.feed_forward.projections()).chain(further)
    }

    fn add(&self, x: &Tensor, update: &Tensor) -> Result<Tensor> {
        if self.residual_multiplier == 1.0 {
            return Ok((x + update)?);
        }
        Ok((x + (update * self.residual_multiplier)?)?)
    }
}

fn apply_norm(norm: &Option<Norm>, x: &Tensor) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(x),
        None => Ok(x.clone()),
    }
}
