//! Buffers of a forward pass. They grow to the size of the largest batch and are reused.

use braidinfer_kernels::attention::{AttentionShape, Partial, scratch_len};
use braidinfer_kernels::norm::Statistics;
use braidinfer_kernels::{Buffer, LANES, PerThread};

use super::attention::Partials;
use super::delta_net::DeltaScratch;
use super::encode::Encoded;
use super::laurel::LaurelScratch;
use super::mamba2::Mamba2Scratch;
use super::mixture::MixtureScratch;
use super::per_layer::LayerInputs;
use super::recurrent_state::RecurrentScratch;
use super::streams::StreamScratch;

/// Activations between kernels. The layout `[panels][T][16]` splits the columns of a matrix into panels of 16.
pub(super) struct Scratch {
    /// The residual stream `[panels][T][16]`; if there are several, the active one of the layer that is run.
    pub(super) hidden: Buffer,
    /// The normed residual stream, encoded as input of projections.
    pub(super) normed: Encoded,
    /// Encoded inputs of the attention output and down projections.
    pub(super) inner: Encoded,
    /// Queries, then keys, then values, each `[panels][T][16]`; or the outputs of the input projections of a recurrent
    /// layer or of latent attention.
    pub(super) qkv: Buffer,
    /// In latent attention, queries if they are not in `qkv`, then keys and values, each `[panels][T][16]`.
    pub(super) expanded: Buffer,
    /// Norm statistics of queries and keys `[T]`, if a norm runs over whole projections.
    pub(super) qk_statistics: Vec<[Statistics; 2]>,
    /// Attention output, `[G][T][H/G * d]`, or that of a delta net, by key head, of a convolution, by
    /// group of channels, or of Mamba-2, by part of a group.
    pub(super) heads: Buffer,
    /// Offset in `heads` of each attention task's output.
    pub(super) head_starts: Vec<usize>,
    /// Gate activations of the feed-forward network, `[panels][T][16]` of its inner width.
    pub(super) gate: Buffer,
    pub(super) up: Buffer,
    /// Output of attention or of the feed-forward network, before it is added to the residual stream:
    /// `[panels][T][16]`.
    pub(super) branch: Buffer,
    /// Norm statistics of `branch` `[T]`, if it is normed.
    pub(super) branch_statistics: Vec<Statistics>,
    /// What a gate's values of each token must exceed, if they must.
    pub(super) cutoffs: Vec<f32>,
    pub(super) laurel: LaurelScratch,
    pub(super) several: StreamScratch,
    pub(super) layer_inputs: LayerInputs,
    pub(super) mixture: MixtureScratch,
    /// Logits, `[panels][rows][16]`.
    pub(super) logits: Buffer,
    /// Indices of the slabs to write.
    pub(super) items: Vec<usize>,
    /// Partial attention results over spans of long contexts, and the offset of each task's first one.
    pub(super) partials: Partials,
    pub(super) merges: Vec<usize>,
    /// One row per thread.
    pub(super) rows: PerThread<Buffer>,
    pub(super) attention: PerThread<AttentionScratch>,
    pub(super) delta: PerThread<DeltaScratch>,
    pub(super) mamba2: PerThread<Mamba2Scratch>,
    pub(super) recurrent: RecurrentScratch,
}

/// Buffers of one thread for an attention task.
#[derive(Debug, Default)]
pub(super) struct AttentionScratch {
    pub(super) queries: Buffer,
    /// Two partial results: the sum of all spans so far, and that of the current span.
    pub(super) sums: [Buffer; 2],
    /// Blocks of keys and values, converted to f32.
    pub(super) blocks: Buffer,
}

impl Scratch {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            hidden: Buffer::new(),
            normed: Encoded::default(),
            inner: Encoded::default(),
            qkv: Buffer::new(),
            expanded: Buffer::new(),
            qk_statistics: Vec::new(),
            heads: Buffer::new(),
            head_starts: Vec::new(),
            gate: Buffer::new(),
            up: Buffer::new(),
            branch: Buffer::new(),
            branch_statistics: Vec::new(),
            cutoffs: Vec::new(),
            laurel: LaurelScratch::default(),
            several: StreamScratch::default(),
            layer_inputs: LayerInputs::default(),
            mixture: MixtureScratch::default(),
            logits: Buffer::new(),
            items: Vec::new(),
            partials: Partials::default(),
            merges: Vec::new(),
            rows: PerThread::new(threads, Buffer::new),
            attention: PerThread::new(threads, AttentionScratch::default),
            delta: PerThread::new(threads, DeltaScratch::default),
            mamba2: PerThread::new(threads, Mamba2Scratch::default),
            recurrent: RecurrentScratch::default(),
        }
    }
}

impl AttentionScratch {
    /// Allocates for `rows` queries.
    pub(super) fn reserve(&mut self, shape: &AttentionShape, rows: usize) {
        grow(&mut self.queries, rows * shape.head_dim);
        grow(&mut self.blocks, scratch_len(shape, rows));
        for sums in &mut self.sums {
            grow(sums, Partial::len(shape, rows));
        }
    }
}

fn grow(buffer: &mut Buffer, len: usize) {
    buffer.resize(buffer.len().max(len));
}

/// Resizes a buffer to `[panels][rows][16]` for `width` columns and returns it.
pub(super) fn panels(buffer: &mut Buffer, width: usize, rows: usize) -> &mut [f32] {
    buffer.resize(width.div_ceil(LANES) * rows * LANES);
    buffer
}
