//! Buffers of a forward pass. They grow to the largest batch seen and are then used again.

use braidinfer_kernels::attention::{AttentionShape, Partial, scratch_len};
use braidinfer_kernels::norm::Statistics;
use braidinfer_kernels::{Buffer, LANES, PerThread};

use super::attention::Partials;
use super::encode::Encoded;

/// Activations between kernels. `[panels][T][16]` holds a matrix with its columns in panels of 16.
pub(super) struct Scratch {
    /// The residual stream `[panels][T][16]`.
    pub(super) hidden: Buffer,
    /// What projections of the normed stream read.
    pub(super) normed: Encoded,
    /// What output projections read.
    pub(super) inner: Encoded,
    /// Queries, then keys, then values, each `[panels][T][16]`.
    pub(super) qkv: Buffer,
    /// Of queries and keys `[T]`, where a norm runs over whole projections.
    pub(super) qk_statistics: Vec<[Statistics; 2]>,
    /// What attention returns, `[G][T][H/G * d]`.
    pub(super) heads: Buffer,
    /// Where the parts of `heads` begin.
    pub(super) head_starts: Vec<usize>,
    /// `[panels][T][16]` of the feed-forward part's inner width.
    pub(super) gate: Buffer,
    pub(super) up: Buffer,
    /// What attention or the feed-forward part adds to the stream, `[panels][T][16]`.
    pub(super) branch: Buffer,
    /// Of `branch` `[T]`, where a norm follows it.
    pub(super) branch_statistics: Vec<Statistics>,
    /// `[panels][rows][16]`.
    pub(super) logits: Buffer,
    /// Indices of slabs.
    pub(super) items: Vec<usize>,
    /// Attention over parts of long contexts, and where those of each piece begin.
    pub(super) partials: Partials,
    pub(super) merges: Vec<usize>,
    /// One row for each thread.
    pub(super) rows: PerThread<Buffer>,
    pub(super) attention: PerThread<AttentionScratch>,
}

/// What one thread needs for a piece of attention.
#[derive(Debug, Default)]
pub(super) struct AttentionScratch {
    pub(super) queries: Buffer,
    /// Two partial results: of all spans so far, and of one.
    pub(super) sums: [Buffer; 2],
    /// Blocks of keys and values in f32.
    pub(super) blocks: Buffer,
}

impl Scratch {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            hidden: Buffer::new(),
            normed: Encoded::default(),
            inner: Encoded::default(),
            qkv: Buffer::new(),
            qk_statistics: Vec::new(),
            heads: Buffer::new(),
            head_starts: Vec::new(),
            gate: Buffer::new(),
            up: Buffer::new(),
            branch: Buffer::new(),
            branch_statistics: Vec::new(),
            logits: Buffer::new(),
            items: Vec::new(),
            partials: Partials::default(),
            merges: Vec::new(),
            rows: PerThread::new(threads, Buffer::new),
            attention: PerThread::new(threads, AttentionScratch::default),
        }
    }
}

impl AttentionScratch {
    /// Makes room for `rows` queries.
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

/// Sets the length of a buffer of `panels` panels and returns it.
pub(super) fn panels(buffer: &mut Buffer, width: usize, rows: usize) -> &mut [f32] {
    buffer.resize(width.div_ceil(LANES) * rows * LANES);
    buffer
}
