//! States of recurrent layers: what they have in common.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use braidinfer_model::DecoderSpec;
use braidinfer_model::spec::{DeltaNetSpec, Mamba2Spec, ShortConvSpec};
use rayon::prelude::*;

use crate::executor::recurrence::StatePosition;
use crate::executor::{Batch, SequenceSlice};
use crate::{Result, memory};

/// Sizes of a layer's state.
#[derive(Debug, Clone, Copy)]
pub(super) struct StateShape {
    /// Channels of the convolution.
    channels: usize,
    /// Tokens that the convolution covers.
    kernel: usize,
    /// Value heads of a delta net, or heads of Mamba-2.
    heads: usize,
    /// Values in all matrices.
    matrices: usize,
}

impl StateShape {
    pub(super) fn of_delta_net(spec: &DeltaNetSpec) -> Self {
        Self {
            channels: spec.conv_width(),
            kernel: spec.linear_conv_kernel_dim,
            heads: spec.linear_num_value_heads,
            matrices: spec.value_width() * spec.linear_key_head_dim,
        }
    }

    pub(super) fn of_mamba2(spec: &Mamba2Spec) -> Self {
        Self {
            channels: spec.conv_width(),
            kernel: spec.mamba_d_conv,
            heads: spec.mamba_n_heads,
            matrices: spec.inner_width() * spec.mamba_d_state,
        }
    }

    pub(super) fn of_short_conv(spec: &ShortConvSpec, channels: usize) -> Self {
        Self { channels, kernel: spec.conv_l_cache, heads: 0, matrices: 0 }
    }
}

/// What a recurrence needs of some tokens.
#[derive(Debug, Clone, Default)]
pub(super) struct Tokens {
    /// Inputs of the convolution, `[tokens][channels]`.
    pub(super) inputs: Vec<f32>,
    /// Factors of the states, `[tokens][heads]`.
    pub(super) decays: Vec<f32>,
    /// Strengths of their updates, or steps, `[tokens][heads]`.
    pub(super) betas: Vec<f32>,
}

impl Tokens {
    fn extend(&mut self, other: &Self) {
        self.inputs.extend_from_slice(&other.inputs);
        self.decays.extend_from_slice(&other.decays);
        self.betas.extend_from_slice(&other.betas);
    }

    /// Keeps those in a range.
    fn keep(&mut self, range: Range<usize>, shape: StateShape) {
        let StateShape { channels, heads, .. } = shape;
        for (values, width) in [(&mut self.inputs, channels), (&mut self.decays, heads), (&mut self.betas, heads)] {
            values.truncate(range.end * width);
            values.drain(..range.start * width);
        }
    }
}

/// The state of one sequence in one layer.
#[derive(Debug, Clone)]
pub(super) struct State {
    position: StatePosition,
    /// `[heads][d_k][d_v]`, at the boundary.
    pub(super) matrices: Vec<f32>,
    /// The last inputs of the convolution before the boundary, `[kernel - 1][channels]`.
    window: Vec<f32>,
    /// The tokens after it.
    pub(super) tokens: Tokens,
}

impl State {
    fn new(shape: StateShape) -> Self {
        Self {
            position: StatePosition::default(),
            matrices: vec![0.0; shape.matrices],
            window: vec![0.0; (shape.kernel - 1) * shape.channels],
            tokens: Tokens::default(),
        }
    }
}

/// The states of sequences, by slot and layer. They grow when slots are first used.
#[derive(Debug)]
pub(super) struct RecurrentStates {
    block_size: usize,
    /// Size of the states of one sequence in all layers, in bytes.
    bytes: usize,
    states: RefCell<BTreeMap<(u32, usize), State>>,
}

impl RecurrentStates {
    /// For those of the layers with these indices that have such states.
    pub(super) fn new(spec: &DecoderSpec, layers: &[usize], block_size: usize) -> Self {
        let sizes = layers.iter().map(|layer| memory::layer_state_bytes(spec, *layer, block_size));
        Self { block_size, bytes: sizes.fold(0, usize::saturating_add), states: RefCell::default() }
    }

    /// Makes sure of memory for the states of every sequence in `batch`.
    pub(super) fn reserve(&self, batch: &Batch) -> Result<()> {
        let states = self.states.borrow();
        let known = |slot: u32| states.range((slot, 0)..=(slot, usize::MAX)).next().is_some();
        let new = batch.sequences.iter().filter(|sequence| !known(sequence.state_slot)).count();
        match self.bytes.saturating_mul(new) {
            0 => Ok(()),
            bytes => memory::can_grow(bytes, || format!("recurrent states of {new} sequences")),
        }
    }

    /// Copies what is kept in one slot to another.
    pub(super) fn copy(&self, from: u32, to: u32) {
        let mut states = self.states.borrow_mut();
        let copies: Vec<(usize, State)> =
            states.range((from, 0)..=(from, usize::MAX)).map(|((_, layer), state)| (*layer, state.clone())).collect();
        states.retain(|(slot, _), _| *slot != to);
        states.extend(copies.into_iter().map(|(layer, state)| ((to, layer), state)));
    }

    /// Frees all memory.
    pub(super) fn clear(&self) {
        self.states.borrow_mut().clear();
    }

    /// Moves the state of one sequence in a layer past its new tokens. `step` is called between: with the state, whose tokens
    /// are all since the boundary; the inputs of the convolution, which begin `kernel - 1` tokens before those; how many of the
    /// tokens are known; and how many of them the state passes, which is for `step` to do with matrices.
    ///
    /// Fails if the state is that of another position.
    pub(super) fn step(
        &self,
        layer: usize,
        shape: StateShape,
        sequence: &SequenceSlice,
        new: &Tokens,
        step: impl FnOnce(&mut State, &[f32], usize, usize),
    ) -> Result<()> {
        let mut states = self.states.borrow_mut();
        let state = states.entry((sequence.state_slot, layer)).or_insert_with(|| State::new(shape));
        if sequence.context_len == 0 {
            *state = State::new(shape);
        }
        let known = state.position.resume(sequence)?;
        let passed = state.position.advance(sequence, self.block_size);
        state.tokens.keep(0..known, shape);
        state.tokens.extend(new);
        let inputs = [&state.window[..], &state.tokens.inputs].concat();
        step(state, &inputs, known, passed);
        state.window = inputs[passed * shape.channels..][..state.window.len()].to_vec();
        state.tokens.keep(passed..known + sequence.query_len, shape);
        Ok(())
    }
}

/// A causal depthwise convolution with weights `[channels][kernel]` over `inputs`, the first `kernel - 1` rows of which are
/// only read; `finish` is given each channel and sum.
pub(super) fn convolve(
    inputs: &[f32],
    weights: &[f32],
    channels: usize,
    finish: impl Fn(usize, f32) -> f32 + Sync,
) -> Vec<f32> {
    let kernel = weights.len() / channels;
    let rows = inputs.len() / channels + 1 - kernel;
    let mut outputs = vec![0.0; rows * channels];
    outputs.par_chunks_mut(channels).enumerate().for_each(|(row, outputs)| {
        for (channel, output) in outputs.iter_mut().enumerate() {
            let weights = &weights[channel * kernel..][..kernel];
            let input = |tap: usize| inputs[(row + tap) * channels + channel];
            let sum: f32 = weights.iter().enumerate().map(|(tap, weight)| weight * input(tap)).sum();
            *output = finish(channel, sum);
        }
    });
    outputs
}
