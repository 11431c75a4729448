//! One layer: attention or a recurrence, and feed-forward network, added to the residual stream.

use candle_core::{IndexOp, Tensor};

use super::attention::{Attention, MaskCache};
use super::delta_net::DeltaNet;
use super::feed_forward::FeedForward;
use super::kv_cache::KvCache;
use super::laurel::Laurel;
use super::linear::Linear;
use super::mamba2::Mamba2;
use super::norm::Norm;
use super::per_layer::PerLayerInput;
use super::recurrent_state::RecurrentStates;
use super::rotary::Rotation;
use super::short_conv::ShortConv;
use super::streams::AltUp;
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
    Mamba2(Mamba2),
}

impl Mixer {
    /// `[T, h]` to `[T, h]`.
    fn forward(&self, x: &Tensor, context: &Context, trace: &mut Trace) -> Result<Tensor> {
        match self {
            Self::Attention(attention) => attention.forward(x, context, trace),
            Self::DeltaNet(delta_net) => delta_net.forward(x, context, trace),
            Self::ShortConv(short_conv) => short_conv.forward(x, context, trace),
            Self::Mamba2(mamba2) => mamba2.forward(x, context, trace),
        }
    }

    fn projections(&self) -> Vec<&Linear> {
        match self {
            Self::Attention(attention) => attention.projections(),
            Self::DeltaNet(delta_net) => delta_net.projections(),
            Self::ShortConv(short_conv) => short_conv.projections(),
            Self::Mamba2(mamba2) => mamba2.projections(),
        }
    }
}

/// A layer. Norms that the architecture lacks are `None` and pass their input through.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) parallel: bool,
    pub(super) residual_multiplier: f64,
    /// What there is around the layer if there are several residual streams.
    pub(super) altup: Option<AltUp>,
    pub(super) input_norm: Option<Norm>,
    /// How positions are mixed, by one or more side by side, each with a factor of its output; or not at all.
    pub(super) mixers: Vec<(Mixer, f64)>,
    pub(super) attention_output_norm: Option<Norm>,
    pub(super) laurel: Option<Laurel>,
    pub(super) feed_forward_norm: Option<Norm>,
    pub(super) feed_forward: Option<FeedForward>,
    /// Factor of its output.
    pub(super) feed_forward_multiplier: f64,
    pub(super) feed_forward_output_norm: Option<Norm>,
    pub(super) per_layer_input: Option<PerLayerInput>,
    /// Factor of the residual stream at the end.
    pub(super) scalar: Option<f64>,
}

impl Layer {
    /// The residual stream `[T, h]`, or all streams `[T, K, h]`, after this layer.
    pub(super) fn forward(&self, x: &Tensor, context: &Context, trace: &mut Trace) -> Result<Tensor> {
        let x = match &self.altup {
            None => {
                let x = self.mix_and_transform(x, context, trace)?;
                self.input_update(&x, context, trace)?.map_or(Ok(x.clone()), |update| &x + update)?
            }
            Some(altup) => self.transform_active(altup, x, context, trace)?,
        };
        Ok(self.scalar.map_or(Ok(x.clone()), |scalar| &x * scalar)?)
    }

    /// All streams `[T, K, h]` after the layer transformed the active one.
    fn transform_active(
        &self,
        altup: &AltUp,
        streams: &Tensor,
        context: &Context,
        trace: &mut Trace,
    ) -> Result<Tensor> {
        let predicted = altup.predict(streams)?;
        trace.record("altup.predicted", &predicted)?;
        let activated = self.mix_and_transform(&altup.active(&predicted)?, context, trace)?;
        let corrected = altup.correct(&predicted, &activated)?;
        trace.record("altup.corrected", &corrected)?;
        match self.input_update(&altup.gating(&corrected)?, context, trace)? {
            Some(update) => altup.add_to_others(&corrected, &update),
            None => Ok(corrected),
        }
    }

    /// What is added for the layer's further input, if it has one; `x` is what the input is gated by.
    fn input_update(&self, x: &Tensor, context: &Context, trace: &mut Trace) -> Result<Option<Tensor>> {
        let (Some(part), Some(inputs)) = (&self.per_layer_input, context.per_layer_inputs) else { return Ok(None) };
        part.update(x, &inputs.i((.., context.index))?, trace).map(Some)
    }

    /// One residual stream `[T, h]` after both halves of the layer.
    fn mix_and_transform(&self, x: &Tensor, context: &Context, trace: &mut Trace) -> Result<Tensor> {
        let normed = apply_norm(&self.input_norm, x)?;
        let mut after_attention = x.clone();
        if !self.mixers.is_empty() {
            trace.record("input_norm", &normed)?;
            for (mixer, factor) in &self.mixers {
                let mixed = apply_norm(&self.attention_output_norm, &mixer.forward(&normed, context, trace)?)?;
                after_attention = self.add(&after_attention, &mixed, *factor)?;
            }
            if let Some(laurel) = &self.laurel {
                after_attention = laurel.add_to(&after_attention, &normed, trace)?;
            }
            trace.record("attn.residual", &after_attention)?;
        }
        match &self.feed_forward {
            Some(feed_forward) => self.transform(feed_forward, [x, &normed, &after_attention], trace),
            None => Ok(after_attention),
        }
    }

    /// All projections of the layer.
    pub(super) fn projections(&self) -> impl Iterator<Item = &Linear> {
        let further = self.per_layer_input.iter().flat_map(PerLayerInput::projections);
        let further = further.chain(self.laurel.iter().flat_map(Laurel::projections));
        let further = further.chain(self.altup.iter().map(|altup| &altup.router));
        let mixers = self.mixers.iter().flat_map(|(mixer, _)| mixer.projections());
        mixers.chain(self.feed_forward.iter().flat_map(FeedForward::projections)).chain(further)
    }

    /// The residual stream after the feed-forward part, given that before the layer, normed, and after attention.
    fn transform(
        &self,
        feed_forward: &FeedForward,
        [x, normed, after_attention]: [&Tensor; 3],
        trace: &mut Trace,
    ) -> Result<Tensor> {
        let normed = match (self.parallel, &self.feed_forward_norm) {
            (true, None) => normed.clone(),
            (true, Some(norm)) => norm.forward(x)?,
            (false, norm) => apply_norm(norm, after_attention)?,
        };
        trace.record("ffn.norm", &normed)?;
        let transformed =
            apply_norm(&self.feed_forward_output_norm, &feed_forward.forward(&normed, after_attention, trace)?)?;
        trace.record("ffn.out", &transformed)?;
        self.add(after_attention, &transformed, self.feed_forward_multiplier)
    }

    fn add(&self, x: &Tensor, update: &Tensor, factor: f64) -> Result<Tensor> {
        let factor = self.residual_multiplier * factor;
        if factor == 1.0 {
            return Ok((x + update)?);
        }
        Ok((x + (update * factor)?)?)
    }
}

fn apply_norm(norm: &Option<Norm>, x: &Tensor) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(x),
        None => Ok(x.clone()),
    }
}
