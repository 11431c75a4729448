//! Recurrent states of gated delta nets.

use std::collections::BTreeMap;

use braidinfer_kernels::{Buffer, LANES};
use braidinfer_model::DecoderSpec;
use braidinfer_model::spec::DeltaNetSpec;

use crate::executor::recurrence::StatePosition;
use crate::executor::{Batch, SequenceSlice};
use crate::{Result, memory};

/// The states of every layer that has some. They grow when slots are first used.
#[derive(Debug)]
pub(super) struct DeltaStates {
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
    /// One per key head; empty while a step runs on them.
    heads: Vec<HeadState>,
}

/// The state of one key head and its value heads at a block boundary, and the tokens since.
#[derive(Debug, Clone, Default)]
pub(super) struct HeadState {
    /// Inputs of the convolution: of the last `kernel - 1` tokens before the boundary, and of those after it, `[tokens][width]`.
    pub(super) inputs: Buffer,
    /// Normed keys of the tokens after the boundary, `[tokens][key_dim]`.
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

/// Widths, padded to multiples of 16.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeltaWidths {
    pub(super) key: usize,
    pub(super) value: usize,
    /// Query, key and values of a key head.
    pub(super) inputs: usize,
    /// Tokens before the current one that the convolution reads.
    pub(super) before: usize,
}

impl DeltaWidths {
    pub(super) fn of(spec: &DeltaNetSpec) -> Self {
        let padded = |width: usize| width.next_multiple_of(LANES);
        let (key, value) = (padded(spec.linear_key_head_dim), padded(spec.linear_value_head_dim));
        let inputs = 2 * key + spec.values_per_key() * value;
        Self { key, value, inputs, before: spec.linear_conv_kernel_dim - 1 }
    }
}

/// A slice whose tokens a step runs: how many tokens are kept before them, and how many the state passes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moved {
    pub(super) known: usize,
    pub(super) passed: usize,
}

impl HeadState {
    /// Makes room for `tokens` tokens after the boundary; what is new is zero or arbitrary.
    pub(super) fn resize(&mut self, widths: DeltaWidths, tokens: usize) {
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
    pub(super) fn pass(&mut self, widths: DeltaWidths, passed: usize) {
        let forget = |buffer: &mut Buffer, values: usize| buffer.copy_within(values.., 0);
        forget(&mut self.inputs, passed * widths.inputs);
        forget(&mut self.keys, passed * widths.key);
        for value in &mut self.values {
            forget(&mut value.deltas, passed * widths.value);
            forget(&mut value.decays, passed);
        }
    }
}

impl DeltaStates {
    pub(super) fn new(spec: &DecoderSpec, block_size: usize) -> Self {
        let layers = (0..spec.layers.len()).filter(|layer| spec.delta_net(*layer).is_some());
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

    /// Sets the matrices in a slot to zero, which is wrong.
    #[cfg(test)]
    pub(super) fn spoil(&mut self, slot: u32) {
        let states = self.layers.values_mut().filter_map(|slots| slots.get_mut(&slot));
        let values = states.flat_map(|state| &mut state.heads).flat_map(|head| &mut head.values);
        values.for_each(|value| value.matrix.fill(0.0));
    }

    /// Frees all memory.
    pub(super) fn clear(&mut self) {
        self.layers.values_mut().for_each(BTreeMap::clear);
    }

    /// Takes the states of the sequences of `batch` in a layer, by key head and then by sequence, into `heads`, and moves
    /// their positions past the batch's tokens. They must be put back.
    ///
    /// Fails if a state is that of another position.
    pub(super) fn take(
        &mut self,
        layer: usize,
        spec: &DeltaNetSpec,
        batch: &Batch,
        moved: &mut Vec<Moved>,
        heads: &mut Vec<HeadState>,
    ) -> Result<()> {
        let block_size = self.block_size;
        let slots = self.layers.entry(layer).or_default();
        moved.clear();
        for sequence in &batch.sequences {
            let state = slots.entry(sequence.state_slot).or_default();
            moved.push(state.move_past(sequence, spec, block_size)?);
        }
        heads.clear();
        for head in 0..spec.linear_num_key_heads {
            let mut take =
                |sequence: &SequenceSlice| Some(std::mem::take(&mut slots.get_mut(&sequence.state_slot)?.heads[head]));
            heads.extend(batch.sequences.iter().filter_map(&mut take));
        }
        Ok(())
    }

    /// Puts states back that were taken.
    pub(super) fn put_back(&mut self, layer: usize, batch: &Batch, heads: &mut Vec<HeadState>) {
        let Some(slots) = self.layers.get_mut(&layer) else { return };
        let sequences = batch.sequences.len();
        for (index, state) in heads.drain(..).enumerate() {
            let slot = batch.sequences[index % sequences].state_slot;
            if let Some(slot) = slots.get_mut(&slot) {
                slot.heads[index / sequences] = state;
            }
        }
    }
}

impl SlotState {
    fn move_past(&mut self, sequence: &SequenceSlice, spec: &DeltaNetSpec, block_size: usize) -> Result<Moved> {
        let known = self.position.resume(sequence)?;
        self.heads.resize_with(spec.linear_num_key_heads, HeadState::default);
        if sequence.context_len == 0 {
            self.heads.iter_mut().for_each(|head| head.clear(spec.values_per_key()));
        }
        let passed = self.position.advance(sequence, block_size);
        Ok(Moved { known, passed })
    }
}
