//! Mamba-2: convolution, the recurrence on states of heads, and the gated norm after it.

use std::ops::Range;

use braidinfer_kernels::convolution::convolve;
use braidinfer_kernels::mamba2::{self, ScanBlock, step_and_decay};
use braidinfer_kernels::norm::{self, Statistics};
use braidinfer_kernels::{ActivationFunction, Buffer, Chunks, Isa, Pool, delta, elementwise};
use braidinfer_model::spec::{GatedNormSpec, Mamba2Multipliers};

use super::FusedRunner;
use super::each_row::each_row;
use super::heads::gather;
use super::packed::PackedMamba2;
use super::recurrent_state::{BlockStep, GroupState, GroupStep, Moved, RecurrentPass, ValueState, Visit, Walk};
use super::scratch::Scratch;
use super::trace::{Trace, from_panels};
use crate::Result;
use crate::executor::Batch;

/// Rows of one part of the heads per task.
const ROWS_PER_TASK: usize = 8;

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(super) struct Mamba2Scratch {
    /// One token after the convolution, `[inputs]`.
    convolved: Buffer,
    /// The numbers that give the steps of one token, `[heads]`.
    steps: Buffer,
    /// `C` of the new tokens, `[tokens][state_dim]`.
    queries: Buffer,
    /// Inputs of the new tokens, for each head `[tokens][head_dim]`.
    inputs: Buffer,
    /// Products of `C` and `B`, `[tokens][block size]`.
    scores: Buffer,
    /// Of the kernels.
    rule: Buffer,
    /// Outputs of one head for the new tokens, `[tokens][head_dim]`.
    outputs: Buffer,
    /// A state beyond the boundary, which drafts begin from.
    ahead: Buffer,
}

/// An output of the input projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mamba2Input {
    /// Of a head.
    Gate,
    /// Of a head.
    Input,
    /// Of a group.
    B,
    /// Of a group.
    C,
    /// Of a head: one number.
    Step,
}

impl PackedMamba2 {
    /// Number of heads that are computed together.
    fn heads_per_part(&self) -> usize {
        self.shape.values
    }

    /// Number of parts of a group.
    fn parts_per_group(&self) -> usize {
        self.spec.heads_per_group() / self.heads_per_part()
    }

    /// The width of the outputs of a part.
    fn part_width(&self) -> usize {
        self.heads_per_part() * self.spec.mamba_d_head
    }

    /// Reads outputs of the input projection `[panels][rows][16]` for one token, from a head or group on.
    fn read(&self, input: Mamba2Input, projected: &[f32], [rows, token, first]: [usize; 3], out: &mut [f32]) {
        let spec = &self.spec;
        let (inner, state) = (spec.inner_width(), spec.state_width());
        let Mamba2Multipliers { z, x, b, c, dt } = spec.multipliers();
        let (column, factor) = match input {
            Mamba2Input::Gate => (first * spec.mamba_d_head, z),
            Mamba2Input::Input => (inner + first * spec.mamba_d_head, x),
            Mamba2Input::B => (2 * inner + first * spec.mamba_d_state, b),
            Mamba2Input::C => (2 * inner + state + first * spec.mamba_d_state, c),
            Mamba2Input::Step => (2 * inner + 2 * state + first, dt),
        };
        gather(projected, rows, token, column, out);
        if factor != 1.0 {
            out.iter_mut().for_each(|value| *value *= factor as f32);
        }
    }

    /// Multiplies the outputs of a part for one token by its gate.
    fn gate(&self, isa: Isa, projected: &[f32], at: [usize; 3], heads: &mut [f32], gate: &mut Buffer) {
        let [rows, token, part] = at;
        gate.resize(heads.len());
        self.read(Mamba2Input::Gate, projected, [rows, token, part * self.heads_per_part()], gate);
        elementwise::gated(isa, ActivationFunction::Silu, gate, heads);
    }

    /// Multiplies the outputs `[parts][rows][part width]` by their gates, and norms them before or after that.
    pub(super) fn gate_all(&self, isa: Isa, pool: &mut Pool, rows: usize, scratch: &mut Scratch) {
        let Scratch { qkv, heads, rows: scratch, branch_statistics: statistics, .. } = scratch;
        let before_gate = self.spec.norm.is_some_and(|GatedNormSpec { before_gate, .. }| before_gate);
        if before_gate {
            self.norm_groups((isa, pool), rows, heads, statistics);
        }
        let width = self.part_width();
        pool.for_each_with(scratch, Chunks::new(heads, ROWS_PER_TASK * width), |task, heads, gate: &mut Buffer| {
            for (row, heads) in heads.chunks_exact_mut(width).enumerate() {
                let row = task * ROWS_PER_TASK + row;
                self.gate(isa, qkv, [rows, row % rows, row / rows], heads, gate);
            }
        });
        if !before_gate {
            self.norm_groups((isa, pool), rows, heads, statistics);
        }
    }

    /// Norms the outputs `[parts][rows][part width]` over the heads of every group.
    fn norm_groups(
        &self,
        (isa, pool): (Isa, &mut Pool),
        rows: usize,
        heads: &mut Buffer,
        statistics: &mut Vec<Statistics>,
    ) {
        let Some(norm) = &self.norm else { return };
        let (groups, parts, width) = (self.spec.mamba_n_groups, self.parts_per_group(), self.part_width());
        let data = &**heads;
        // Of each row, those of all groups one after the other.
        each_row(pool, statistics, rows * groups, Statistics { mean: 0.0, inverse: 0.0 }, |index| {
            let (row, group) = (index / groups, index % groups);
            let part = |part: usize| &data[((group * parts + part) * rows + row) * width..][..width];
            let squares: f32 = (0..parts).map(|index| norm::sum_of_squares(isa, part(index))).sum();
            let mean = squares / (parts * width) as f32;
            Statistics { mean: 0.0, inverse: 1.0 / (mean + norm.eps).sqrt() }
        });
        let statistics = &*statistics;
        pool.for_each(Chunks::new(heads, ROWS_PER_TASK * width), |task, heads, _| {
            for (index, heads) in heads.chunks_exact_mut(width).enumerate() {
                let index = task * ROWS_PER_TASK + index;
                let (part, row) = (index / rows, index % rows);
                let weight = &norm.weight[part * width..][..width];
                norm::apply(isa, heads, statistics[row * groups + part / parts], weight, None);
            }
        });
    }
}

impl FusedRunner {
    /// Moves the states of all sequences past the batch's tokens, and writes the outputs of the recurrence to `heads`.
    pub(super) fn run_mamba2(&mut self, index: usize, batch: &Batch, trace: &mut Trace) -> Result<()> {
        let Some(layer) = self.weights.layers[index].mamba2() else { return Ok(()) };
        let Scratch { qkv, heads, mamba2, recurrent, .. } = &mut self.scratch;
        let (isa, rows, block_size) = (self.isa, self.layout.rows, self.recurrent_states.block_size);
        trace.record("mamba.zxbcdt", rows, || layer.projected(qkv, rows));
        #[cfg(test)]
        let spoil = self.planted.and_then(|planted| planted.of_states(index));
        let (shape, qkv) = (layer.shape, &**qkv);
        let pass =
            RecurrentPass { pool: &mut self.pool, states: &mut self.recurrent_states, layer: index, shape, batch };
        pass.run(layer.part_width(), recurrent, mamba2, heads, |step, state, scratch: &mut Mamba2Scratch, out| {
            let GroupStep { group: part, tokens, moved } = step;
            let pass = PartPass {
                isa,
                layer,
                qkv,
                rows,
                block_size,
                part,
                moved,
                #[cfg(test)]
                spoil,
            };
            pass.run(tokens, state, scratch, out);
        })
    }
}

impl PackedMamba2 {
    /// All outputs of the input projection, with their factors, `[rows][width]`.
    fn projected(&self, qkv: &[f32], rows: usize) -> Vec<f32> {
        let (spec, width) = (&self.spec, self.spec.input_rows());
        let mut values = from_panels(qkv, rows, width);
        let Mamba2Multipliers { z, x, b, c, dt } = spec.multipliers();
        let (inner, state) = (spec.inner_width(), spec.state_width());
        let widths = [(inner, z), (inner, x), (state, b), (state, c), (spec.mamba_n_heads, dt)];
        for values in values.chunks_exact_mut(width) {
            let mut rest = values;
            for (width, factor) in widths {
                let (part, after) = rest.split_at_mut(width);
                part.iter_mut().for_each(|value| *value *= factor as f32);
                rest = after;
            }
        }
        values
    }
}

/// The recurrence of some heads of a group on the new tokens of one sequence.
struct PartPass<'a> {
    isa: Isa,
    layer: &'a PackedMamba2,
    /// The outputs of the input projection.
    qkv: &'a [f32],
    rows: usize,
    block_size: usize,
    part: usize,
    moved: Moved,
    /// A deliberate error.
    #[cfg(test)]
    spoil: Option<fn(&mut [f32])>,
}

impl PartPass<'_> {
    /// `out` is `[tokens][heads of the part][head width]`, without padding.
    fn run(&self, tokens: Range<usize>, state: &mut GroupState, scratch: &mut Mamba2Scratch, out: &mut [f32]) {
        let (width, shape) = (self.layer.spec.mamba_d_head, self.layer.shape);
        let new = tokens.len();
        self.prepare(tokens, state, scratch);
        self.multiply_vectors(new, state, scratch);
        for head in 0..shape.values {
            self.run_head(head, new, state, scratch);
            let skip = self.layer.skip[self.part * shape.values + head];
            let inputs = scratch.inputs[head * new * shape.value..].chunks_exact(shape.value);
            let outputs = scratch.outputs.chunks_exact_mut(shape.value).zip(inputs);
            for ((outputs, inputs), out) in outputs.zip(out.chunks_exact_mut(width * shape.values)) {
                elementwise::add_scaled(self.isa, outputs, inputs, skip);
                out[head * width..(head + 1) * width].copy_from_slice(&outputs[..width]);
            }
        }
        state.pass(shape, self.moved.passed);
    }

    /// Convolves the inputs of the new tokens, and computes their steps.
    fn prepare(&self, tokens: Range<usize>, state: &mut GroupState, scratch: &mut Mamba2Scratch) {
        let (layer, shape, new) = (self.layer, self.layer.shape, tokens.len());
        let (weights, bias) = (&layer.conv[self.part], &layer.conv_bias[self.part]);
        scratch.convolved.resize(shape.inputs);
        scratch.steps.resize(shape.values);
        scratch.queries.resize(new * shape.key);
        scratch.inputs.resize(shape.values * new * shape.value);
        for (index, token) in tokens.enumerate() {
            let row = self.moved.known + index;
            self.read_inputs(token, &mut state.inputs[(shape.before + row) * shape.inputs..][..shape.inputs]);
            let inputs = &state.inputs[row * shape.inputs..(row + shape.before + 1) * shape.inputs];
            scratch.convolved.copy_from_slice(bias);
            convolve(self.isa, inputs, weights, &mut scratch.convolved);
            elementwise::activate(self.isa, ActivationFunction::Silu, &mut scratch.convolved);
            let (query, rest) = scratch.convolved.split_at(shape.key);
            let (key, inputs) = rest.split_at(shape.key);
            scratch.queries[index * shape.key..][..shape.key].copy_from_slice(query);
            state.keys[row * shape.key..][..shape.key].copy_from_slice(key);
            let first = self.part * shape.values;
            layer.read(Mamba2Input::Step, self.qkv, [self.rows, token, first], &mut scratch.steps);
            for (head, from) in inputs.chunks_exact(shape.value).enumerate() {
                let (bias, rate) = (layer.dt_bias[first + head], layer.rates[first + head]);
                let [step, decay] = step_and_decay(scratch.steps[head], bias, rate, layer.spec.step_limits());
                scratch.inputs[(head * new + index) * shape.value..][..shape.value].copy_from_slice(from);
                let ValueState { deltas, decays, .. } = &mut state.values[head];
                let updates = &mut deltas[row * shape.value..][..shape.value];
                updates.copy_from_slice(from);
                elementwise::scale(self.isa, updates, step);
                decays[row] = decay;
            }
        }
    }

    /// Reads `C`, `B` and the inputs of the heads of one token, each padded with zeros.
    fn read_inputs(&self, token: usize, out: &mut [f32]) {
        let (spec, shape) = (&self.layer.spec, self.layer.shape);
        let read = |input, first, width: usize, out: &mut [f32]| {
            self.layer.read(input, self.qkv, [self.rows, token, first], &mut out[..width]);
            out[width..].fill(0.0);
        };
        let (query, rest) = out.split_at_mut(shape.key);
        let (key, inputs) = rest.split_at_mut(shape.key);
        let group = self.part / self.layer.parts_per_group();
        read(Mamba2Input::C, group, spec.mamba_d_state, query);
        read(Mamba2Input::B, group, spec.mamba_d_state, key);
        for (head, out) in inputs.chunks_exact_mut(shape.value).enumerate() {
            read(Mamba2Input::Input, self.part * shape.values + head, spec.mamba_d_head, out);
        }
    }

    /// The products of `C` of the new tokens and `B` of those in their blocks, which all heads have in common.
    fn multiply_vectors(&self, new: usize, state: &GroupState, scratch: &mut Mamba2Scratch) {
        let (key, known, stride) = (self.layer.shape.key, self.moved.known, self.block_size);
        scratch.scores.resize(new * stride);
        let all = known + new;
        for first in (known / stride * stride..all).step_by(stride) {
            let (from, last) = (known.max(first), all.min(first + stride));
            let keys = &state.keys[first * key..last * key];
            let queries = &scratch.queries[(from - known) * key..(last - known) * key];
            let out = &mut scratch.scores[(from - known) * stride..(last - known) * stride];
            mamba2::scores(self.isa, key, keys, queries, stride, out);
        }
    }

    /// Computes the outputs of one head, and moves its state to the new boundary.
    fn run_head(&self, head: usize, new: usize, state: &mut GroupState, scratch: &mut Mamba2Scratch) {
        let (shape, known, stride) = (self.layer.shape, self.moved.known, self.block_size);
        let Mamba2Scratch { queries, scores, rule, outputs, ahead, .. } = scratch;
        let GroupState { keys, values, .. } = state;
        let ValueState { matrix, deltas, decays } = &mut values[head];
        let (keys, deltas, decays) = (&**keys, &**deltas, &**decays);
        outputs.resize(new * shape.value);
        rule.resize(mamba2::scratch_len(stride).max(stride * shape.key));
        let walk = Walk { moved: self.moved, all: known + new, block_size: stride, matrix, ahead };
        walk.run(|visit| match visit {
            Visit::Outputs(BlockStep { tokens, known: before }, state) => {
                let new = tokens.start + before - known..tokens.end - known;
                let block = ScanBlock {
                    state_dim: shape.key,
                    head_dim: shape.value,
                    state,
                    decays: &decays[tokens.clone()],
                    updates: &deltas[tokens.start * shape.value..tokens.end * shape.value],
                    queries: &queries[new.start * shape.key..new.end * shape.key],
                    scores: &scores[new.start * stride..new.end * stride],
                    stride,
                };
                mamba2::scan(self.isa, block, rule, &mut outputs[new.start * shape.value..new.end * shape.value]);
            }
            Visit::Advance(tokens, state) => {
                let keys = &keys[tokens.start * shape.key..tokens.end * shape.key];
                let updates = &deltas[tokens.start * shape.value..tokens.end * shape.value];
                delta::advance(self.isa, state, keys, &decays[tokens], updates, rule);
                #[cfg(test)]
                if let Some(spoil) = self.spoil {
                    spoil(state);
                }
            }
        });
    }
}
