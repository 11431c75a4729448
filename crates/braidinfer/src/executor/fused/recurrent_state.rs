//! States of gated delta nets, of gated short convolutions and of Mamba-2.

use std::collections::BTreeMap;
use std::ops::Range;

use braidinfer_kernels::{Buffer, Chunks, LANES, PerThread, Pool, Ranges};
use braidinfer_model::DecoderSpec;
use braidinfer_model::spec::{DeltaNetSpec, Mamba2Spec, ShortConvSpec};

use crate::executor::recurrence::{StatePosition, heads_per_part};
use crate::executor::{Batch, SequenceSlice};
use crate::{Result, memory};

/// The states of every layer that has some. They grow when slots are first used.
#[derive(Debug)]
pub(super) struct RecurrentStates {
    pub(super) block_size: usize,
    /// Size of the states of one sequence in all layers, in bytes.
    bytes: usize,
    /// By layer, then by slot.
    layers: BTreeMap<usize, BTreeMap<u32, SlotState>>,
}

/// The state of one sequence in one layer.
#[derive(Debug, Clone, Default)]
struct SlotState {
    position: StatePosition,
    /// One per group of channels; empty while a step runs on them.
    groups: Vec<GroupState>,
}

/// The state of some channels at a block boundary, and the tokens since: of one key head and its value heads, of some
/// channels of a short convolution, which has inputs only, or of some heads of a group of Mamba-2, which are its value heads
/// and whose `B` is the key.
#[derive(Debug, Clone, Default)]
pub(super) struct GroupState {
    /// Inputs of the convolution: of the last `kernel - 1` tokens before the boundary, and of those after it, `[tokens][width]`.
    pub(super) inputs: Buffer,
    /// Normed keys, or `B`, of the tokens after the boundary, `[tokens][key_dim]`.
    pub(super) keys: Buffer,
    pub(super) values: Vec<ValueState>,
}

/// The state of one value head.
#[derive(Debug, Clone, Default)]
pub(super) struct ValueState {
    /// `[key_dim][value_dim]`, at the boundary.
    pub(super) matrix: Buffer,
    /// Updates by the tokens after it, `[tokens][value_dim]`.
    pub(super) deltas: Buffer,
    /// Logarithms of their decays, `[tokens]`.
    pub(super) decays: Buffer,
}

/// Sizes of a layer's state. Widths are padded to multiples of 16.
#[derive(Debug, Clone, Copy)]
pub(super) struct StateShape {
    /// Number of groups of channels: key heads, those of a short convolution, or parts of the groups of Mamba-2.
    pub(super) groups: usize,
    /// Number of value heads in a group.
    pub(super) values: usize,
    pub(super) key: usize,
    pub(super) value: usize,
    /// Channels of the convolution in a group: query (`C`), key (`B`) and values.
    pub(super) inputs: usize,
    /// Tokens before the current one that the convolution reads.
    pub(super) before: usize,
}

impl StateShape {
    pub(super) fn of_delta_net(spec: &DeltaNetSpec) -> Self {
        let padded = |width: usize| width.next_multiple_of(LANES);
        let (key, value) = (padded(spec.linear_key_head_dim), padded(spec.linear_value_head_dim));
        let (groups, values) = (spec.linear_num_key_heads, spec.values_per_key());
        Self { groups, values, key, value, inputs: 2 * key + values * value, before: spec.linear_conv_kernel_dim - 1 }
    }

    pub(super) fn of_mamba2(spec: &Mamba2Spec) -> Self {
        let padded = |width: usize| width.next_multiple_of(LANES);
        let (key, value, values) = (padded(spec.mamba_d_state), padded(spec.mamba_d_head), heads_per_part(spec));
        let groups = spec.mamba_n_heads / values;
        Self { groups, values, key, value, inputs: 2 * key + values * value, before: spec.mamba_d_conv - 1 }
    }

    /// For `groups` groups of `width` channels.
    pub(super) fn of_short_conv(spec: &ShortConvSpec, groups: usize, width: usize) -> Self {
        let inputs = width.next_multiple_of(LANES);
        Self { groups, values: 0, key: 0, value: 0, inputs, before: spec.conv_l_cache - 1 }
    }
}

/// A step of one group of channels of one sequence.
#[derive(Debug, Clone)]
pub(super) struct GroupStep {
    pub(super) group: usize,
    /// The sequence's tokens in the batch.
    pub(super) tokens: Range<usize>,
    pub(super) moved: Moved,
}

/// Buffers of a recurrent layer.
#[derive(Debug, Default)]
pub(super) struct RecurrentScratch {
    /// How the state moves, for each sequence.
    moved: Vec<Moved>,
    /// States that a step runs on, by group and then by sequence.
    groups: Vec<GroupState>,
    /// Offset in the outputs of each of them.
    starts: Vec<usize>,
}

/// The recurrent part of a layer in a step.
pub(super) struct RecurrentPass<'a> {
    pub(super) pool: &'a mut Pool,
    pub(super) states: &'a mut RecurrentStates,
    pub(super) layer: usize,
    pub(super) shape: StateShape,
    pub(super) batch: &'a Batch,
}

impl RecurrentPass<'_> {
    /// Moves the states of all sequences past the batch's tokens. `step` computes the outputs of a group for the tokens of one
    /// sequence, `[tokens][width]`; `out` gets those of all, `[groups][T][width]`.
    ///
    /// Fails if a state is that of another position.
    pub(super) fn run<S: Send>(
        self,
        width: usize,
        scratch: &mut RecurrentScratch,
        threads: &mut PerThread<S>,
        out: &mut Buffer,
        step: impl Fn(GroupStep, &mut GroupState, &mut S, &mut [f32]) + Sync,
    ) -> Result<()> {
        let Self { pool, states, layer, shape, batch } = self;
        let RecurrentScratch { moved, groups, starts } = scratch;
        states.take(layer, shape, batch, moved, groups)?;
        let (sequences, rows) = (batch.sequences.len(), batch.token_ids.len());
        for (position, state) in groups.iter_mut().enumerate() {
            let sequence = position % sequences;
            state.resize(shape, moved[sequence].known + batch.sequences[sequence].query_len);
        }
        out.resize(shape.groups * rows * width);
        starts.clear();
        for group in 0..shape.groups {
            starts.extend(batch.ranges().map(|(range, _)| (group * rows + range.start) * width));
        }
        let (moved, starts) = (&*moved, &*starts);
        pool.for_each_with(
            threads,
            (Chunks::new(groups, 1), Ranges::new(out, starts)),
            |task, (state, out), scratch| {
                let (group, sequence) = (task / sequences, task % sequences);
                let first = starts[sequence] / width;
                let tokens = first..first + out.len() / width;
                step(GroupStep { group, tokens, moved: moved[sequence] }, &mut state[0], scratch, out);
            },
        );
        states.put_back(layer, batch, groups);
        Ok(())
    }
}

/// A block of tokens in a step.
#[derive(Debug, Clone)]
pub(super) struct BlockStep {
    /// The tokens since the boundary that are in the block.
    pub(super) tokens: Range<usize>,
    /// How many of them are known; none of those after them is.
    pub(super) known: usize,
}

/// How a state goes through the tokens since the boundary, block by block.
pub(super) struct Walk<'a> {
    pub(super) moved: Moved,
    /// Number of tokens since the boundary, those of the step included.
    pub(super) all: usize,
    pub(super) block_size: usize,
    /// The state at the boundary, which is moved on to the next one.
    pub(super) matrix: &'a mut Buffer,
    /// For a state beyond the boundary, which drafts begin from.
    pub(super) ahead: &'a mut Buffer,
}

/// What [`Walk::run`] asks for.
pub(super) enum Visit<'a> {
    /// Outputs of the tokens of a block that are not known, from the state before it.
    Outputs(BlockStep, &'a [f32]),
    /// The state moved past the tokens of a block.
    Advance(Range<usize>, &'a mut [f32]),
}

impl Walk<'_> {
    /// Visits every block: outputs first, if it has new tokens, then the state, if there is more to come after it.
    pub(super) fn run(self, mut visit: impl FnMut(Visit<'_>)) {
        let Self { moved, all, block_size, matrix, ahead } = self;
        let mut is_ahead = false;
        for first in (0..all).step_by(block_size) {
            let last = all.min(first + block_size);
            let from = moved.known.max(first);
            if from < last {
                let block = BlockStep { tokens: first..last, known: from - first };
                visit(Visit::Outputs(block, if is_ahead { ahead } else { matrix }));
            }
            let is_passed = last <= moved.passed;
            if !is_passed && last == all {
                break;
            }
            if !is_passed && !is_ahead {
                ahead.resize(matrix.len());
                ahead.copy_from_slice(matrix);
                is_ahead = true;
            }
            visit(Visit::Advance(first..last, if is_ahead { ahead } else { matrix }));
        }
    }
}

/// A slice whose tokens a step runs: how many tokens are kept before them, and how many the state passes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moved {
    pub(super) known: usize,
    pub(super) passed: usize,
}

impl GroupState {
    /// Makes room for `tokens` tokens after the boundary; what is new is zero or arbitrary.
    pub(super) fn resize(&mut self, widths: StateShape, tokens: usize) {
        self.inputs.resize((widths.before + tokens) * widths.inputs);
        self.keys.resize(tokens * widths.key);
        for value in &mut self.values {
            value.matrix.resize(widths.key * widths.value);
            value.deltas.resize(tokens * widths.value);
            value.decays.resize(tokens);
        }
    }

    /// The state of a sequence of which nothing was computed.
    fn clear(&mut self, values: usize) {
        self.values.resize_with(values, ValueState::default);
        self.inputs.fill(0.0);
        self.values.iter_mut().for_each(|value| value.matrix.fill(0.0));
    }

    /// Forgets the first tokens after the boundary, which the matrices now cover.
    pub(super) fn pass(&mut self, widths: StateShape, passed: usize) {
        let forget = |buffer: &mut Buffer, values: usize| buffer.copy_within(values.., 0);
        forget(&mut self.inputs, passed * widths.inputs);
        forget(&mut self.keys, passed * widths.key);
        for value in &mut self.values {
            forget(&mut value.deltas, passed * widths.value);
            forget(&mut value.decays, passed);
        }
    }
}

impl RecurrentStates {
    pub(super) fn new(spec: &DecoderSpec, block_size: usize) -> Self {
        let layers = (0..spec.layers.len()).filter(|layer| spec.is_recurrent(*layer));
        let bytes = memory::state_bytes(spec, block_size);
        Self { block_size, bytes, layers: layers.map(|layer| (layer, BTreeMap::new())).collect() }
    }

    /// Makes sure of memory for the states of every sequence in `batch`.
    pub(super) fn reserve(&self, batch: &Batch) -> Result<()> {
        let Some(slots) = self.layers.values().next_back() else { return Ok(()) };
        let new = batch.sequences.iter().filter(|sequence| !slots.contains_key(&sequence.state_slot)).count();
        match self.bytes.saturating_mul(new) {
            0 => Ok(()),
            bytes => memory::can_grow(bytes, || format!("recurrent states of {new} sequences")),
        }
    }

    /// Copies what is kept in one slot to another.
    pub(super) fn copy(&mut self, from: u32, to: u32) {
        for slots in self.layers.values_mut() {
            match slots.get(&from).cloned() {
                Some(state) => slots.insert(to, state),
                None => slots.remove(&to),
            };
        }
    }

    /// Sets the matrices in a slot, or what short convolutions keep, to zero, which is wrong.
    #[cfg(test)]
    pub(super) fn spoil(&mut self, slot: u32) {
        let states = self.layers.values_mut().filter_map(|slots| slots.get_mut(&slot));
        for group in states.flat_map(|state| &mut state.groups) {
            group.values.iter_mut().for_each(|value| value.matrix.fill(0.0));
            if group.values.is_empty() {
                group.inputs.fill(0.0);
            }
        }
    }

    /// Frees all memory.
    pub(super) fn clear(&mut self) {
        self.layers.values_mut().for_each(BTreeMap::clear);
    }

    /// Takes the states of the sequences of `batch` in a layer, by group and then by sequence, into `groups`, and moves
    /// their positions past the batch's tokens. They must be put back.
    ///
    /// Fails if a state is that of another position.
    fn take(
        &mut self,
        layer: usize,
        shape: StateShape,
        batch: &Batch,
        moved: &mut Vec<Moved>,
        groups: &mut Vec<GroupState>,
    ) -> Result<()> {
        let block_size = self.block_size;
        let slots = self.layers.entry(layer).or_default();
        moved.clear();
        for sequence in &batch.sequences {
            let state = slots.entry(sequence.state_slot).or_default();
            moved.push(state.move_past(sequence, shape, block_size)?);
        }
        groups.clear();
        for group in 0..shape.groups {
            let mut take = |sequence: &SequenceSlice| {
                Some(std::mem::take(&mut slots.get_mut(&sequence.state_slot)?.groups[group]))
            };
            groups.extend(batch.sequences.iter().filter_map(&mut take));
        }
        Ok(())
    }

    /// Puts states back that were taken.
    fn put_back(&mut self, layer: usize, batch: &Batch, groups: &mut Vec<GroupState>) {
        let Some(slots) = self.layers.get_mut(&layer) else { return };
        let sequences = batch.sequences.len();
        for (index, state) in groups.drain(..).enumerate() {
            let slot = batch.sequences[index % sequences].state_slot;
            if let Some(slot) = slots.get_mut(&slot) {
                slot.groups[index / sequences] = state;
            }
        }
    }
}

impl SlotState {
    fn move_past(&mut self, sequence: &SequenceSlice, shape: StateShape, block_size: usize) -> Result<Moved> {
        let known = self.position.resume(sequence)?;
        self.groups.resize_with(shape.groups, GroupState::default);
        if sequence.context_len == 0 {
            self.groups.iter_mut().for_each(|group| group.clear(shape.values));
        }
        let passed = self.position.advance(sequence, block_size);
        Ok(Moved { known, passed })
    }
}
