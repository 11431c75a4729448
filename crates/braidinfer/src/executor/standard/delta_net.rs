//! Gated delta nets, token by token.

use std::cell::RefCell;
use std::collections::BTreeMap;

use braidinfer_model::DecoderSpec;
use braidinfer_model::spec::DeltaNetSpec;
use candle_core::{DType, Tensor};
use candle_nn::ops::sigmoid;
use rayon::prelude::*;

use super::layer::Context;
use super::linear::Linear;
use super::norm::Norm;
use super::trace::Trace;
use crate::executor::recurrence::StatePosition;
use crate::executor::{Batch, SequenceSlice};
use crate::{Result, memory};

/// Added to the sum of squares of queries and keys.
const L2_EPS: f32 = 1e-6;

/// The recurrent part of a layer.
#[derive(Debug)]
pub(super) struct DeltaNet {
    pub(super) spec: DeltaNetSpec,
    pub(super) projections: Projections,
    /// `[channels][kernel]`.
    pub(super) conv1d: Vec<f32>,
    /// `[value heads]`.
    pub(super) dt_bias: Vec<f32>,
    /// `-exp(A_log)`, `[value heads]`.
    pub(super) rates: Vec<f32>,
    pub(super) norm: Norm,
    pub(super) out_proj: Linear,
}

/// The input projections.
#[derive(Debug)]
pub(super) enum Projections {
    ByKind { qkv: Linear, z: Linear, b: Linear, a: Linear },
    ByKeyHead { qkvz: Linear, ba: Linear },
    StrengthByKeyHead { qkv: Linear, z: Linear, ba: Linear },
}

/// The outputs of the input projections, in f32.
struct Projected {
    /// Queries, keys and values, `[T, channels]`.
    qkv: Tensor,
    /// `[T, value width]`.
    z: Tensor,
    /// `[T, value heads]`.
    b: Tensor,
    /// `[T, value heads]`.
    a: Tensor,
}

/// What the recurrence needs of some tokens.
#[derive(Debug, Clone, Default)]
struct Tokens {
    /// Queries, keys and values before the convolution, `[tokens][channels]`.
    qkv: Vec<f32>,
    /// Factors of the state, `[tokens][value heads]`.
    decays: Vec<f32>,
    /// Strengths of the updates, `[tokens][value heads]`.
    betas: Vec<f32>,
}

impl Tokens {
    fn extend(&mut self, other: &Self) {
        self.qkv.extend_from_slice(&other.qkv);
        self.decays.extend_from_slice(&other.decays);
        self.betas.extend_from_slice(&other.betas);
    }

    /// Keeps those in a range.
    fn keep(&mut self, range: std::ops::Range<usize>, spec: &DeltaNetSpec) {
        let (channels, heads) = (spec.conv_width(), spec.linear_num_value_heads);
        for (values, width) in [(&mut self.qkv, channels), (&mut self.decays, heads), (&mut self.betas, heads)] {
            values.truncate(range.end * width);
            values.drain(..range.start * width);
        }
    }
}

/// The state of one sequence in one layer.
#[derive(Debug, Clone)]
struct State {
    position: StatePosition,
    /// `[value heads][d_k][d_v]`, at the boundary.
    matrices: Vec<f32>,
    /// The last inputs of the convolution before the boundary, `[kernel - 1][channels]`.
    window: Vec<f32>,
    /// The tokens after it.
    tokens: Tokens,
}

impl State {
    fn new(spec: &DeltaNetSpec) -> Self {
        Self {
            position: StatePosition::default(),
            matrices: vec![0.0; spec.value_width() * spec.linear_key_head_dim],
            window: vec![0.0; (spec.linear_conv_kernel_dim - 1) * spec.conv_width()],
            tokens: Tokens::default(),
        }
    }
}

/// The states of sequences, by slot and layer. They grow when slots are first used.
#[derive(Debug)]
pub(super) struct DeltaStates {
    block_size: usize,
    /// Size of the states of one sequence in all layers, in bytes.
    bytes: usize,
    states: RefCell<BTreeMap<(u32, usize), State>>,
}

impl DeltaStates {
    /// For those of the layers with these indices that have such states.
    pub(super) fn new(spec: &DecoderSpec, layers: &[usize], block_size: usize) -> Self {
        let nets = layers.iter().filter_map(|layer| spec.delta_net(*layer));
        let bytes = nets.map(|net| memory::delta_state_bytes(net, block_size)).fold(0, usize::saturating_add);
        Self { block_size, bytes, states: RefCell::default() }
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
}

impl DeltaNet {
    /// `[T, h]` to `[T, h]`; moves the states of all sequences on.
    pub(super) fn forward(&self, x: &Tensor, context: &Context, trace: &mut Trace) -> Result<Tensor> {
        let projected = self.project(x)?;
        for (name, values) in [("qkv", &projected.qkv), ("z", &projected.z), ("b", &projected.b), ("a", &projected.a)] {
            trace.record(&format!("delta.{name}"), values)?;
        }
        let (value_heads, value_dim) = (self.spec.linear_num_value_heads, self.spec.linear_value_head_dim);
        let mut heads = Vec::with_capacity(x.dim(0)? * self.spec.value_width());
        for (range, sequence) in context.batch.ranges() {
            let tokens = self.tokens(&projected, range)?;
            self.run(tokens, sequence, context, &mut heads)?;
        }
        let heads = Tensor::from_vec(heads, (x.dim(0)?, value_heads, value_dim), x.device())?;
        trace.record("delta.heads", &heads)?;
        let z = projected.z.reshape(heads.shape())?;
        let gated = (self.norm.forward(&heads)? * z.silu()?)?.flatten_from(1)?.to_dtype(x.dtype())?;
        trace.record("delta.gated", &gated)?;
        let out = self.out_proj.forward(&gated)?;
        trace.record("delta.out", &out)?;
        Ok(out)
    }

    /// All projections.
    pub(super) fn projections(&self) -> Vec<&Linear> {
        let mut all = match &self.projections {
            Projections::ByKind { qkv, z, b, a } => vec![qkv, z, b, a],
            Projections::ByKeyHead { qkvz, ba } => vec![qkvz, ba],
            Projections::StrengthByKeyHead { qkv, z, ba } => vec![qkv, z, ba],
        };
        all.push(&self.out_proj);
        all
    }

    fn project(&self, x: &Tensor) -> Result<Projected> {
        let f32 = |linear: &Linear| Ok::<_, crate::Error>(linear.forward(x)?.to_dtype(DType::F32)?);
        let (rows, groups) = (x.dim(0)?, self.spec.linear_num_key_heads);
        let (key, per_key) = (self.spec.linear_key_head_dim, self.spec.values_per_key());
        let value = per_key * self.spec.linear_value_head_dim;
        // `[T, key heads, ..]`; a part of every key head, side by side.
        let by_key_head = |linear: &Linear| Ok::<_, crate::Error>(f32(linear)?.reshape((rows, groups, ()))?);
        let part = |of: &Tensor, first, width| of.narrow(2, first, width)?.contiguous()?.flatten_from(1);
        let (qkv, z, ba) = match &self.projections {
            Projections::ByKind { qkv, z, b, a } => {
                return Ok(Projected { qkv: f32(qkv)?, z: f32(z)?, b: f32(b)?, a: f32(a)? });
            }
            Projections::ByKeyHead { qkvz, ba } => {
                let qkvz = by_key_head(qkvz)?;
                let (q, k, v) = (part(&qkvz, 0, key)?, part(&qkvz, key, key)?, part(&qkvz, 2 * key, value)?);
                (Tensor::cat(&[q, k, v], 1)?, part(&qkvz, 2 * key + value, value)?, by_key_head(ba)?)
            }
            Projections::StrengthByKeyHead { qkv, z, ba } => (f32(qkv)?, f32(z)?, by_key_head(ba)?),
        };
        Ok(Projected { qkv, z, b: part(&ba, 0, per_key)?, a: part(&ba, per_key, per_key)? })
    }

    /// Some of the tokens.
    fn tokens(&self, projected: &Projected, range: std::ops::Range<usize>) -> Result<Tokens> {
        let rows = |tensor: &Tensor| tensor.narrow(0, range.start, range.len())?.flatten_all()?.to_vec1::<f32>();
        let decay = |(index, a): (usize, f32)| {
            let head = index % self.rates.len();
            let x = a + self.dt_bias[head];
            let softplus = if x > 20.0 { x } else { x.exp().ln_1p() };
            (self.rates[head] * softplus).exp()
        };
        Ok(Tokens {
            qkv: rows(&projected.qkv)?,
            decays: rows(&projected.a)?.into_iter().enumerate().map(decay).collect(),
            betas: rows(&sigmoid(&projected.b)?)?,
        })
    }

    /// Appends the outputs of one sequence's tokens, `[tokens][value heads][d_v]`, to `out`.
    fn run(&self, new: Tokens, sequence: &SequenceSlice, context: &Context, out: &mut Vec<f32>) -> Result<()> {
        let spec = &self.spec;
        let mut states = context.delta_states.states.borrow_mut();
        let state = states.entry((sequence.state_slot, context.index)).or_insert_with(|| State::new(spec));
        if sequence.context_len == 0 {
            *state = State::new(spec);
        }
        let known = state.position.resume(sequence)?;
        let passed = state.position.advance(sequence, context.delta_states.block_size);
        state.tokens.keep(0..known, spec);
        state.tokens.extend(&new);
        let inputs = [&state.window[..], &state.tokens.qkv].concat();
        let convolved = self.convolve(&inputs);
        let matrices = state.matrices.par_chunks_mut(spec.linear_key_head_dim * spec.linear_value_head_dim);
        let head = |(head, matrix): (usize, &mut [f32])| self.head(head, matrix, &convolved, &state.tokens, passed);
        let heads: Vec<Vec<f32>> = matrices.enumerate().map(head).collect();
        let width = spec.linear_value_head_dim;
        for token in known..known + sequence.query_len {
            heads.iter().for_each(|head| out.extend_from_slice(&head[token * width..(token + 1) * width]));
        }
        let channels = spec.conv_width();
        state.window = inputs[passed * channels..][..state.window.len()].to_vec();
        let all = known + sequence.query_len;
        state.tokens.keep(passed..all, spec);
        Ok(())
    }

    /// The convolution and SiLU over `inputs`, the first `kernel - 1` rows of which are only read.
    fn convolve(&self, inputs: &[f32]) -> Vec<f32> {
        let (channels, kernel) = (self.spec.conv_width(), self.spec.linear_conv_kernel_dim);
        let rows = inputs.len() / channels + 1 - kernel;
        let mut outputs = vec![0.0; rows * channels];
        outputs.par_chunks_mut(channels).enumerate().for_each(|(row, outputs)| {
            for (channel, output) in outputs.iter_mut().enumerate() {
                let weights = &self.conv1d[channel * kernel..][..kernel];
                let input = |tap: usize| inputs[(row + tap) * channels + channel];
                let sum: f32 = weights.iter().enumerate().map(|(tap, weight)| weight * input(tap)).sum();
                *output = sum / (1.0 + (-sum).exp());
            }
        });
        outputs
    }

    /// The outputs of one value head for all tokens; the matrix is moved past the first `passed` of them.
    fn head(&self, head: usize, matrix: &mut [f32], qkv: &[f32], tokens: &Tokens, passed: usize) -> Vec<f32> {
        let spec = &self.spec;
        let (keys, values, heads) = (spec.linear_key_head_dim, spec.linear_value_head_dim, spec.linear_num_value_heads);
        let key_head = spec.key_head(head);
        let mut current = matrix.to_vec();
        let mut outputs = Vec::new();
        for (token, row) in qkv.chunks_exact(spec.conv_width()).enumerate() {
            let mut query = normalized(&row[key_head * keys..][..keys]);
            query.iter_mut().for_each(|value| *value /= (keys as f32).sqrt());
            let key = normalized(&row[spec.key_width() + key_head * keys..][..keys]);
            let value = &row[2 * spec.key_width() + head * values..][..values];
            let at = token * heads + head;
            outputs.extend(step(&mut current, [&query, &key, value], tokens.decays[at], tokens.betas[at]));
            if token + 1 == passed {
                matrix.copy_from_slice(&current);
            }
        }
        outputs
    }
}

/// `x / sqrt(sum(x²) + 1e-6)`.
fn normalized(x: &[f32]) -> Vec<f32> {
    let squares: f32 = x.iter().map(|value| value * value).sum();
    let inverse = 1.0 / (squares + L2_EPS).sqrt();
    x.iter().map(|value| value * inverse).collect()
}

/// One token of the gated delta rule on a state `[d_k][d_v]`; returns the output.
fn step(state: &mut [f32], [query, key, value]: [&[f32]; 3], decay: f32, beta: f32) -> Vec<f32> {
    state.iter_mut().for_each(|value| *value *= decay);
    let remembered = read(state, key);
    let delta: Vec<f32> = value.iter().zip(remembered).map(|(value, remembered)| (value - remembered) * beta).collect();
    for (row, key) in state.chunks_exact_mut(value.len()).zip(key) {
        row.iter_mut().zip(&delta).for_each(|(value, delta)| *value += key * delta);
    }
    read(state, query)
}

/// The sum of the rows of a state, each times its element of `x`.
fn read(state: &[f32], x: &[f32]) -> Vec<f32> {
    let mut sum = vec![0.0; state.len() / x.len()];
    for (row, x) in state.chunks_exact(sum.len()).zip(x) {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += x * value);
    }
    sum
}
