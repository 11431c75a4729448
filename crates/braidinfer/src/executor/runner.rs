//! What computes the layers of a decoder.

use super::{Batch, ExecutorReport, KernelPlan, Outputs, Probe};
use crate::{Error, Result};

/// One step: what runs, and how exactly.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The tokens.
    pub batch: &'a Batch,
    /// At which level each projection is multiplied, and how each layer stores keys and values. Runners that know one way
    /// only, such as the standard kernels, leave it aside.
    pub plan: &'a KernelPlan,
}

/// Rows of a batch whose outputs are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct WantedRows<'a> {
    /// Of which the logits.
    pub logits: &'a [usize],
    /// Of which the hidden state, as the last norm gives it.
    pub hidden: &'a [usize],
}

/// Computes the embedding, any layer and the output head of a decoder, on a residual stream that it keeps as suits it: in
/// panels, in the memory of a device, or on another machine. [`super::Decoder`] calls it, and checks every batch before.
///
/// A step begins with [`LayerRunner::begin`]. The residual stream of the step is then set by [`LayerRunner::embed`] or
/// [`LayerRunner::set_hidden`], and changed by each [`LayerRunner::layer`]. A layer stores what it keeps of its tokens in
/// the blocks and the state slots that the batch names, and leaves nothing else behind. Where RoPE depends on the length of
/// a sequence, the caller sees to it that what was stored before is rotated as the batch needs it.
pub trait LayerRunner: Send {
    /// What it promises.
    fn capabilities(&self) -> Capabilities;

    /// What computes under `plan`, and how much memory it reads.
    fn report(&self, plan: &KernelPlan) -> ExecutorReport;

    /// What it stores of sequences for a layer under `plan`.
    fn layer_state(&self, layer: usize, plan: &KernelPlan) -> LayerState;

    /// Makes room for what the step stores, and computes what its layers share, such as rotations.
    ///
    /// Fails on a plan for another model, or with a level that weights of a type cannot be multiplied at.
    fn begin(&mut self, step: Step<'_>) -> Result<()>;

    /// The residual stream becomes the embedding of every token.
    fn embed(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<()>;

    /// The residual stream becomes what it is after layer `index`.
    fn layer(&mut self, index: usize, step: Step<'_>, probe: &mut dyn Probe) -> Result<()>;

    /// What is wanted, from the residual stream after the last layer, which stays as it is.
    fn head(&mut self, rows: WantedRows<'_>, step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs>;

    /// A copy of the residual stream, `[T, hidden_size]`.
    fn hidden(&self) -> Result<Vec<f32>>;

    /// The residual stream becomes `hidden`, `[T, hidden_size]`.
    fn set_hidden(&mut self, hidden: &[f32]) -> Result<()>;

    /// Copies what it keeps of a sequence in one state slot to another one. Runners whose layers keep nothing but what lies
    /// in blocks have nothing to copy.
    fn copy_state(&mut self, from: u32, to: u32) -> Result<()> {
        Err(Error::Internal(format!("state slot {from} was to be copied to {to}, but nothing is kept in slots")))
    }

    /// Reads the weights of one step as fast as memory gives them, and computes nothing: the least time that a step can
    /// take. Returns whether there was anything to read so.
    fn read_weights(&mut self) -> bool {
        false
    }

    /// Lets the memory of all that is stored of sequences go.
    fn release_storage(&mut self) -> Result<()> {
        Ok(())
    }
}

/// What a runner promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The bits of a sequence depend on nothing but the sequence: not on the others in its batches, nor on how it is cut
    /// into batches. Without this, they may differ within rounding.
    pub same_bits_in_company: bool,
    /// What is stored for the beginning of a sequence serves every sequence that begins so.
    pub shares_prefixes: bool,
    /// The last [`super::SequenceSlice::draft_len`] tokens of a sequence can be taken back after a step.
    pub takes_back_drafts: bool,
}

impl Capabilities {
    /// What runners promise that compute one decoder together.
    pub fn and(self, other: Self) -> Self {
        Self {
            same_bits_in_company: self.same_bits_in_company && other.same_bits_in_company,
            shares_prefixes: self.shares_prefixes && other.shares_prefixes,
            takes_back_drafts: self.takes_back_drafts && other.takes_back_drafts,
        }
    }
}

/// What a layer keeps of sequences, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerState {
    /// For each token, in blocks: keys and values, of whatever widths.
    pub bytes_per_token: usize,
    /// For each sequence, in a state slot, however long it is: windows of convolutions, matrices of recurrences.
    ///
    /// A runner keeps the state at the last block boundary before the tokens that may be taken back, and what it needs to go
    /// on from there. It is computed in chunks that end at block boundaries of the sequence, so that its bits do not depend
    /// on how the sequence is cut into batches. A sequence may go on from any position from that boundary on, up to its end.
    pub bytes_per_sequence: usize,
    /// So many tokens of a sequence, up to the one that is computed, are all that is read of its blocks; earlier ones may
    /// be given to others. All if `None`.
    pub window: Option<usize>,
}

/// A runner that is lent, so that a decoder can be made of it for a while.
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

    fn hidden(&self) -> Result<Vec<f32>> {
        (**self).hidden()
    }

    fn set_hidden(&mut self, hidden: &[f32]) -> Result<()> {
        (**self).set_hidden(hidden)
    }

    fn copy_state(&mut self, from: u32, to: u32) -> Result<()> {
        (**self).copy_state(from, to)
    }

    fn read_weights(&mut self) -> bool {
        (**self).read_weights()
    }

    fn release_storage(&mut self) -> Result<()> {
        (**self).release_storage()
    }
}
