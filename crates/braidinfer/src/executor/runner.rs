//! The interface of the implementations that compute layers.

use std::sync::Arc;

use braidinfer_model::Adapter;

use super::{Batch, ExecutorReport, KernelPlan, Outputs, Probe, ReadPattern};
use crate::{Error, Result};

/// One forward step: the batch and the numeric plan.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The tokens to run.
    pub batch: &'a Batch,
    /// The numeric level of each projection and the KV data type of each layer. Runners with a fixed precision, such as
    /// the standard kernels, ignore it.
    pub plan: &'a KernelPlan,
}

/// Row indices of a batch whose outputs are requested.
#[derive(Debug, Clone, Copy, Default)]
pub struct WantedRows<'a> {
    /// Rows whose logits are requested.
    pub logits: &'a [usize],
    /// Rows of which only the likeliest next token is requested; none of a runner that does not compute it.
    pub argmax: &'a [usize],
    /// Rows whose hidden state after the final norm is requested.
    pub hidden: &'a [usize],
}

/// Computes the embedding, any layer and the output head of a decoder. The runner keeps the residual stream in its own
/// format: in panels, in device memory, or on another machine. [`super::Decoder`] calls it, and validates every batch
/// before.
///
/// A step begins with [`LayerRunner::begin`]. Then [`LayerRunner::embed`] or [`LayerRunner::set_hidden`] sets the
/// residual stream of the step, and each [`LayerRunner::layer`] updates it. A layer stores its state only in the KV
/// cache blocks and state slots that the batch names. With length-dependent RoPE, the caller ensures that cached keys
/// are rotated as the batch needs them.
pub trait LayerRunner: Send {
    /// What this runner guarantees.
    fn capabilities(&self) -> Capabilities;

    /// The kernels and the memory they read under `plan`.
    fn report(&self, plan: &KernelPlan) -> ExecutorReport;

    /// The state that a layer stores per token and per sequence under `plan`.
    fn layer_state(&self, layer: usize, plan: &KernelPlan) -> LayerState;

    /// Allocates the KV cache blocks of the step, and makes sure of memory for its activations.
    ///
    /// Fails with [`Error::TooLittleMemory`]. The step must then not be run; everything else goes on.
    fn reserve(&mut self, _step: Step<'_>) -> Result<()> {
        Ok(())
    }

    /// Number of KV cache blocks that there is memory for already.
    fn reserved_blocks(&self, _plan: &KernelPlan) -> usize {
        usize::MAX
    }

    /// Frees large buffers that only a running step needs. Returns whether there were any since the last call.
    fn release_scratch(&mut self) -> bool {
        false
    }

    /// Allocates the KV cache blocks of the step, and computes what all layers share, such as rotations.
    ///
    /// Fails on a plan for another model, or with a level that is impossible for the type of some weights.
    fn begin(&mut self, step: Step<'_>) -> Result<()>;

    /// Sets the residual stream to the embedding of every token.
    fn embed(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<()>;

    /// Runs layer `index` on the residual stream.
    fn layer(&mut self, index: usize, step: Step<'_>, probe: &mut dyn Probe) -> Result<()>;

    /// The requested outputs, from the residual stream after the last layer, which is left unchanged.
    fn head(&mut self, rows: WantedRows<'_>, step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs>;

    /// A copy of the residual stream, `[T, stream_width]`: all streams of a token side by side.
    fn hidden(&mut self) -> Result<Vec<f32>>;

    /// Sets the residual stream to `hidden`, `[T, stream_width]`.
    fn set_hidden(&mut self, hidden: &[f32]) -> Result<()>;

    /// Copies the per-sequence state from one state slot to another. Runners that keep state only in KV cache blocks
    /// need not implement it.
    fn copy_state(&mut self, from: u32, to: u32) -> Result<()> {
        Err(Error::Internal(format!("state slot {from} was to be copied to {to}, but nothing is kept in slots")))
    }

    /// Reads the weights of one step at full memory bandwidth without computing: the lower bound for the time of a
    /// decode step. Returns whether this runner supports it.
    fn read_weights(&mut self, _pattern: ReadPattern) -> bool {
        false
    }

    /// Bytes of its device's memory in use.
    fn device_bytes(&self) -> u64 {
        0
    }

    /// Bytes that its device reads and writes in a second while it copies memory, as measured now; `None` on the CPU, and if there is
    /// no room to measure it.
    ///
    /// Fails if the device does.
    fn copy_rate(&mut self) -> Result<Option<f64>> {
        Ok(None)
    }

    /// Copies some of the weights that steps used to memory that is read faster, as every step does, too: some milliseconds of
    /// work. Returns whether there were any.
    fn copy_some_weights(&mut self) -> bool {
        false
    }

    /// Frees the KV cache memory and all per-sequence state.
    fn release_storage(&mut self) -> Result<()> {
        Ok(())
    }

    /// Bytes of a KV cache block of a layer, as [`LayerRunner::save_block`] writes it; `None` if blocks cannot be saved.
    fn saved_block_bytes(&self, _layer: usize, _plan: &KernelPlan) -> Option<usize> {
        None
    }

    /// Appends the KV cache block of a layer, which a step has written.
    fn save_block(&self, _layer: usize, _block: u32, _plan: &KernelPlan, _out: &mut Vec<u8>) {}

    /// Sets the KV cache block of a layer to what [`LayerRunner::save_block`] wrote.
    ///
    /// Fails with [`Error::TooLittleMemory`].
    fn restore_block(&mut self, layer: usize, block: u32, _plan: &KernelPlan, _bytes: &[u8]) -> Result<()> {
        Err(Error::Internal(format!("block {block} of layer {layer} cannot be restored")))
    }

    /// Computes with these adapters from now on, where a batch says so, in place of any before.
    ///
    /// Fails if this runner has no adapters, or if they are for another model.
    fn set_adapters(&mut self, adapters: &[Arc<Adapter>]) -> Result<()> {
        match adapters.first() {
            None => Ok(()),
            Some(first) => Err(Error::Unsupported(format!("{}: adapters run on the CPU alone", first.label()))),
        }
    }

    /// Gives its device up as if that was lost, to see what follows from it. Returns whether it has one.
    fn give_up_device(&mut self) -> bool {
        false
    }
}

/// The error of a runner of layers alone that is asked for what comes before or after them.
#[cfg(feature = "gpu")]
pub(super) fn no_ends() -> Error {
    Error::Internal("some layers were asked for what comes before or after all of them".into())
}

/// What a runner guarantees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Batch invariance: results of a sequence are bitwise independent of the other sequences in its batches and of how
    /// it is split into batches. Without this, they may differ by rounding.
    pub same_bits_in_company: bool,
    /// The state stored for a prefix can be reused by every sequence that begins with it (prefix caching).
    pub shares_prefixes: bool,
    /// After a step, the last [`super::SequenceSlice::draft_len`] tokens of a sequence can be rolled back.
    pub takes_back_drafts: bool,
    /// Finds likeliest tokens itself, for which logits need not leave a device.
    pub computes_argmax: bool,
}

impl Capabilities {
    /// What two runners guarantee if they compute one decoder together.
    pub fn and(self, other: Self) -> Self {
        Self {
            same_bits_in_company: self.same_bits_in_company && other.same_bits_in_company,
            shares_prefixes: self.shares_prefixes && other.shares_prefixes,
            takes_back_drafts: self.takes_back_drafts && other.takes_back_drafts,
            computes_argmax: self.computes_argmax && other.computes_argmax,
        }
    }
}

/// The state that a layer keeps of sequences, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerState {
    /// State per token, in KV cache blocks: keys and values of any width.
    pub bytes_per_token: usize,
    /// State per sequence, in a state slot, independent of its length: convolution windows, recurrent state matrices.
    ///
    /// A runner keeps the state at the last block boundary before the draft tokens, and what it needs to continue from
    /// there. The state is computed in chunks that end at block boundaries of the sequence, so that it is bitwise
    /// independent of how the sequence is split into batches. A sequence may continue from any position between that
    /// boundary and its end. A slice whose `context_len` is 0 begins a new sequence, whatever its slot holds.
    pub bytes_per_sequence: usize,
    /// Sliding window: the layer reads only this many of the last tokens, including the current one, so blocks with
    /// earlier tokens only may be freed. 0 if it reads nothing of its blocks, `None` if it reads all tokens.
    pub window: Option<usize>,
}

/// A borrowed runner, so that a decoder can be built from it temporarily.
impl LayerRunner for &mut (dyn LayerRunner + '_) {
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn report(&self, plan: &KernelPlan) -> ExecutorReport {
        (**self).report(plan)
    }

    fn layer_state(&self, layer: usize, plan: &KernelPlan) -> LayerState {
        (**self).layer_state(layer, plan)
    }

    fn reserve(&mut self, step: Step<'_>) -> Result<()> {
        (**self).reserve(step)
    }

    fn reserved_blocks(&self, plan: &KernelPlan) -> usize {
        (**self).reserved_blocks(plan)
    }

    fn release_scratch(&mut self) -> bool {
        (**self).release_scratch()
    }

    fn begin(&mut self, step: Step<'_>) -> Result<()> {
        (**self).begin(step)
    }

    fn embed(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<()> {
        (**self).embed(step, probe)
    }

    fn layer(&mut self, index: usize, step: Step<'_>, probe: &mut dyn Probe) -> Result<()> {
        (**self).layer(index, step, probe)
    }

    fn head(&mut self, rows: WantedRows<'_>, step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs> {
        (**self).head(rows, step, probe)
    }

    fn hidden(&mut self) -> Result<Vec<f32>> {
        (**self).hidden()
    }

    fn set_hidden(&mut self, hidden: &[f32]) -> Result<()> {
        (**self).set_hidden(hidden)
    }

    fn copy_state(&mut self, from: u32, to: u32) -> Result<()> {
        (**self).copy_state(from, to)
    }

    fn read_weights(&mut self, pattern: ReadPattern) -> bool {
        (**self).read_weights(pattern)
    }

    fn device_bytes(&self) -> u64 {
        (**self).device_bytes()
    }

    fn copy_rate(&mut self) -> Result<Option<f64>> {
        (**self).copy_rate()
    }

    fn copy_some_weights(&mut self) -> bool {
        (**self).copy_some_weights()
    }

    fn release_storage(&mut self) -> Result<()> {
        (**self).release_storage()
    }

    fn saved_block_bytes(&self, layer: usize, plan: &KernelPlan) -> Option<usize> {
        (**self).saved_block_bytes(layer, plan)
    }

    fn save_block(&self, layer: usize, block: u32, plan: &KernelPlan, out: &mut Vec<u8>) {
        (**self).save_block(layer, block, plan, out);
    }

    fn restore_block(&mut self, layer: usize, block: u32, plan: &KernelPlan, bytes: &[u8]) -> Result<()> {
        (**self).restore_block(layer, block, plan, bytes)
    }

    fn set_adapters(&mut self, adapters: &[Arc<Adapter>]) -> Result<()> {
        (**self).set_adapters(adapters)
    }

    fn give_up_device(&mut self) -> bool {
        (**self).give_up_device()
    }
}
