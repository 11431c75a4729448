//! Gated delta nets: convolution, and the gated delta rule on recurrent states.

use std::ops::Range;

use braidinfer_kernels::convolution::convolve;
use braidinfer_kernels::delta::{self, DeltaBlock, log_decay};
use braidinfer_kernels::elementwise::{self, logistic};
use braidinfer_kernels::{ActivationFunction, Buffer, Isa, LANES};
use braidinfer_model::spec::DeltaNetProjections;

use super::FusedRunner;
use super::heads::gather;
use super::packed::PackedDeltaNet;
use super::recurrent_state::{
    BlockStep, GroupState, GroupStep, Moved, RecurrentPass, StateShape, ValueState, Visit, Walk,
};
use super::scratch::Scratch;
use super::trace::Trace;
use crate::Result;
use crate::executor::Batch;

/// An output of the input projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeltaInput {
    /// Of a key head.
    Query,
    /// Of a key head.
    Key,
    /// Of a value head, as are the others.
    Value,
    Gate,
    Strength,
    Decay,
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(super) struct DeltaScratch {
    /// One token after the convolution, `[inputs]`.
    convolved: Buffer,
    /// Queries of the new tokens, `[tokens][key_dim]`.
    queries: Buffer,
    /// Values of the new tokens, for each value head `[tokens][value_dim]`.
    values: Buffer,
    /// Strengths of the updates by the new tokens, for each value head `[tokens]`.
    betas: Buffer,
    /// Of the kernels.
    rule: Buffer,
    /// Outputs of the new tokens, `[tokens][value_dim]`.
    outputs: Buffer,
    /// A state beyond the boundary, which drafts begin from.
    ahead: Buffer,
}

impl PackedDeltaNet {
    /// Reads an output of the input projections `[panels][rows][16]` for one token and head.
    pub(super) fn read(&self, input: DeltaInput, projected: &[f32], [rows, token, head]: [usize; 3], out: &mut [f32]) {
        let (linear, column) = self.place(input, head);
        let before: usize = self.inputs[..linear].iter().map(|linear| linear.panels()).sum();
        gather(&projected[before * rows * LANES..], rows, token, column, out);
    }

    /// Which projection an output belongs to, and its first column there.
    fn place(&self, input: DeltaInput, head: usize) -> (usize, usize) {
        let spec = &self.spec;
        let (key, value) = (spec.linear_key_head_dim, spec.linear_value_head_dim);
        let (keys, per_key) = (spec.key_width(), spec.values_per_key());
        let (key_head, index) = (head / per_key, head % per_key);
        // With queries, keys, values and gates by key head.
        let per_head = 2 * (key + per_key * value);
        let by_head = spec.projections == DeltaNetProjections::ByKeyHead;
        match input {
            DeltaInput::Query if by_head => (0, head * per_head),
            DeltaInput::Key if by_head => (0, head * per_head + key),
            DeltaInput::Value if by_head => (0, key_head * per_head + 2 * key + index * value),
            DeltaInput::Gate if by_head => (0, key_head * per_head + 2 * key + (per_key + index) * value),
            DeltaInput::Query => (0, head * key),
            DeltaInput::Key => (0, keys + head * key),
            DeltaInput::Value => (0, 2 * keys + head * value),
            DeltaInput::Gate => (1, head * value),
            DeltaInput::Strength | DeltaInput::Decay if spec.projections == DeltaNetProjections::ByKind => {
                (if input == DeltaInput::Strength { 2 } else { 3 }, head)
            }
            DeltaInput::Strength => (self.inputs.len() - 1, key_head * 2 * per_key + index),
            DeltaInput::Decay => (self.inputs.len() - 1, key_head * 2 * per_key + per_key + index),
        }
    }

    /// All tokens' outputs of some kinds, `[rows][width]`.
    fn all(&self, inputs: &[DeltaInput], projected: &[f32], rows: usize) -> Vec<f32> {
        let spec = &self.spec;
        let mut values = Vec::new();
        for token in 0..rows {
            for input in inputs {
                let (heads, width) = match input {
                    DeltaInput::Query | DeltaInput::Key => (spec.linear_num_key_heads, spec.linear_key_head_dim),
                    DeltaInput::Value | DeltaInput::Gate => (spec.linear_num_value_heads, spec.linear_value_head_dim),
                    DeltaInput::Strength | DeltaInput::Decay => (spec.linear_num_value_heads, 1),
                };
                for head in 0..heads {
                    let start = values.len();
                    values.resize(start + width, 0.0);
                    self.read(*input, projected, [rows, token, head], &mut values[start..]);
                }
            }
        }
        values
    }
}

impl FusedRunner {
    /// Moves the states of all sequences past the batch's tokens, and writes the outputs of the delta rule to `heads`.
    pub(super) fn run_delta_net(&mut self, index: usize, batch: &Batch, trace: &mut Trace) -> Result<()> {
        let Some(layer) = self.weights.layers[index].delta_net() else { return Ok(()) };
        let Scratch { qkv, heads, delta, recurrent, .. } = &mut self.scratch;
        let (isa, rows, block_size) = (self.isa, self.layout.rows, self.recurrent_states.block_size);
        for (name, inputs) in [
            ("delta.qkv", &[DeltaInput::Query, DeltaInput::Key, DeltaInput::Value][..]),
            ("delta.z", &[DeltaInput::Gate]),
            ("delta.b", &[DeltaInput::Strength]),
            ("delta.a", &[DeltaInput::Decay]),
        ] {
            trace.record(name, rows, || layer.all(inputs, qkv, rows));
        }
        #[cfg(test)]
        let spoil = self.planted.and_then(|planted| planted.of_states(index));
        let (shape, qkv) = (StateShape::of_delta_net(&layer.spec), &**qkv);
        let pass =
            RecurrentPass { pool: &mut self.pool, states: &mut self.recurrent_states, layer: index, shape, batch };
        let width = layer.spec.value_width() / shape.groups;
        pass.run(width, recurrent, delta, heads, |step, state, scratch: &mut DeltaScratch, out| {
            let GroupStep { group: key_head, tokens, moved } = step;
            let pass = HeadPass {
                isa,
                layer,
                widths: shape,
                qkv,
                rows,
                block_size,
                key_head,
                moved,
                #[cfg(test)]
                spoil,
            };
            pass.run(tokens, state, scratch, out);
        })
    }
}

/// The delta rule of one key head and its value heads on the new tokens of one sequence.
struct HeadPass<'a> {
    isa: Isa,
    layer: &'a PackedDeltaNet,
    widths: StateShape,
    /// The outputs of the input projections.
    qkv: &'a [f32],
    rows: usize,
    block_size: usize,
    key_head: usize,
    moved: Moved,
    /// A deliberate error.
    #[cfg(test)]
    spoil: Option<fn(&mut [f32])>,
}

impl HeadPass<'_> {
    /// `out` is `[tokens][value heads of the key head][value width]`, without padding.
    fn run(&self, tokens: Range<usize>, state: &mut GroupState, scratch: &mut DeltaScratch, out: &mut [f32]) {
        let (width, per_key) = (self.layer.spec.linear_value_head_dim, self.layer.spec.values_per_key());
        let new = tokens.len();
        self.prepare(tokens, state, scratch);
        for value in 0..per_key {
            self.run_value_head(value, new, state, scratch);
            for (outputs, out) in
                scratch.outputs.chunks_exact(self.widths.value).zip(out.chunks_exact_mut(width * per_key))
            {
                out[value * width..(value + 1) * width].copy_from_slice(&outputs[..width]);
            }
        }
        state.pass(self.widths, self.moved.passed);
    }

    /// Convolves the inputs of the new tokens, and norms their queries and keys.
    fn prepare(&self, tokens: Range<usize>, state: &mut GroupState, scratch: &mut DeltaScratch) {
        let (spec, widths, new) = (&self.layer.spec, self.widths, tokens.len());
        let scale = (spec.linear_key_head_dim as f32).sqrt().recip();
        let weights = &self.layer.conv1d[self.key_head];
        scratch.convolved.resize(widths.inputs);
        scratch.queries.resize(new * widths.key);
        scratch.values.resize(spec.values_per_key() * new * widths.value);
        scratch.betas.resize(spec.values_per_key() * new);
        for (index, token) in tokens.enumerate() {
            let row = self.moved.known + index;
            self.read_inputs(token, &mut state.inputs[(widths.before + row) * widths.inputs..][..widths.inputs]);
            let inputs = &state.inputs[row * widths.inputs..(row + widths.before + 1) * widths.inputs];
            scratch.convolved.fill(0.0);
            convolve(self.isa, inputs, weights, &mut scratch.convolved);
            elementwise::activate(self.isa, ActivationFunction::Silu, &mut scratch.convolved);
            let (query, rest) = scratch.convolved.split_at(widths.key);
            let (key, values) = rest.split_at(widths.key);
            for (from, to, scale) in [
                (query, &mut scratch.queries[index * widths.key..][..widths.key], scale),
                (key, &mut state.keys[row * widths.key..][..widths.key], 1.0),
            ] {
                to.copy_from_slice(from);
                delta::normalize_l2(self.isa, to, scale);
            }
            for (value, from) in values.chunks_exact(widths.value).enumerate() {
                let at = value * new + index;
                scratch.values[at * widths.value..][..widths.value].copy_from_slice(from);
                let [beta, decay] = self.strength_and_decay(token, value);
                scratch.betas[at] = beta;
                state.values[value].decays[row] = decay;
            }
        }
    }

    /// Reads query, key and values of one token, each padded with zeros.
    fn read_inputs(&self, token: usize, out: &mut [f32]) {
        let (spec, widths) = (&self.layer.spec, self.widths);
        let read = |input, head, width: usize, out: &mut [f32]| {
            self.layer.read(input, self.qkv, [self.rows, token, head], &mut out[..width]);
            out[width..].fill(0.0);
        };
        let (query, rest) = out.split_at_mut(widths.key);
        let (key, values) = rest.split_at_mut(widths.key);
        read(DeltaInput::Query, self.key_head, spec.linear_key_head_dim, query);
        read(DeltaInput::Key, self.key_head, spec.linear_key_head_dim, key);
        for (value, out) in values.chunks_exact_mut(widths.value).enumerate() {
            read(DeltaInput::Value, spec.value_head(self.key_head, value), spec.linear_value_head_dim, out);
        }
    }

    /// Strength of the update, and logarithm of the decay, of a value head by one token.
    fn strength_and_decay(&self, token: usize, value: usize) -> [f32; 2] {
        let head = self.layer.spec.value_head(self.key_head, value);
        let read = |input| {
            let mut value = [0.0];
            self.layer.read(input, self.qkv, [self.rows, token, head], &mut value);
            value[0]
        };
        let decay = log_decay(read(DeltaInput::Decay), self.layer.rates[head], self.layer.dt_bias[head]);
        [logistic(read(DeltaInput::Strength)), decay]
    }

    /// Computes the outputs of one value head, and moves its state to the new boundary.
    fn run_value_head(&self, value: usize, new: usize, state: &mut GroupState, scratch: &mut DeltaScratch) {
        let (widths, known) = (self.widths, self.moved.known);
        let DeltaScratch { queries, values, betas, rule, outputs, ahead, .. } = scratch;
        let GroupState { keys, values: states, .. } = state;
        let ValueState { matrix, deltas, decays } = &mut states[value];
        outputs.resize(new * widths.value);
        let (values, betas) = (&values[value * new * widths.value..], &betas[value * new..]);
        let (all, block_size) = (known + new, self.block_size);
        // For the largest block, in either kernel.
        let of_rule = delta::scratch_len(block_size, new.min(block_size), widths.value);
        rule.resize(of_rule.max(block_size * widths.key));
        Walk { moved: self.moved, all, block_size, matrix, ahead }.run(|visit| match visit {
            Visit::Outputs(BlockStep { tokens, known: before }, state) => {
                let (first, last) = (tokens.start, tokens.end);
                let new = first + before - known..last - known;
                let block = DeltaBlock {
                    key_dim: widths.key,
                    value_dim: widths.value,
                    state,
                    keys: &keys[first * widths.key..last * widths.key],
                    decays: &decays[tokens],
                    queries: &queries[new.start * widths.key..new.end * widths.key],
                    values: &values[new.start * widths.value..new.end * widths.value],
                    betas: &betas[new.clone()],
                };
                let deltas = &mut deltas[first * widths.value..last * widths.value];
                let out = &mut outputs[new.start * widths.value..new.end * widths.value];
                delta::delta_rule(self.isa, block, deltas, rule, out);
            }
            Visit::Advance(tokens, state) => {
                let (first, last) = (tokens.start, tokens.end);
                let (keys, deltas) =
                    (&keys[first * widths.key..last * widths.key], &deltas[first * widths.value..last * widths.value]);
                delta::advance(self.isa, state, keys, &decays[tokens], deltas, rule);
                #[cfg(test)]
                if let Some(spoil) = self.spoil {
                    spoil(state);
                }
            }
        });
    }
}
