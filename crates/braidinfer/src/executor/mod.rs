//! Executors run the tokens of a [`Batch`] and return the [`Outputs`] that it asks for. They store keys and values; their
//! caller decides which block holds what.

mod batch;
mod device;
pub mod fused;
mod layer_by_layer;
mod mixed;
mod probe;
mod report;
mod rope_history;
pub mod standard;

use std::sync::OnceLock;

use braidinfer_model::DecoderSpec;

pub use batch::{Batch, SequenceSlice};
pub use device::DeviceChoice;
pub use layer_by_layer::{LayerByLayer, Layers};
pub(crate) use mixed::Mixed;
pub use mixed::MixedExecutor;
pub use probe::{Activation, NoProbe, Probe, Recorder};
pub use report::ExecutorReport;

use crate::{Error, Result};

/// Computes logits. Standard and fused executors take the same [`Batch`].
///
/// Promises, for every architecture: the logits of a position do not depend on how its sequence was cut
/// into batches, nor on the other sequences in the batch: to its last bit on fused kernels, and to the
/// tolerance of its matrix library on standard ones.
pub trait Executor: Send {
    /// The decoder this executes.
    fn spec(&self) -> &DecoderSpec;

    /// Shape of the key/value storage.
    fn kv_cache(&self) -> KvCacheConfig;

    /// What computes, and how much memory it reads.
    fn report(&self) -> ExecutorReport;

    /// Reads the weights of one step as fast as memory gives them, and computes nothing: the least time that a step can
    /// take. Returns whether there was anything to read so.
    fn read_weights(&mut self) -> bool {
        false
    }

    /// Runs every token of `batch`, stores its keys and values, and returns what the batch asks for.
    ///
    /// Fails with [`crate::Error::BadRequest`] on a batch that contradicts itself, the vocabulary or the
    /// storage; the storage is then unchanged.
    fn forward(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<Outputs>;
}

/// What [`set_threads`] was told.
static THREADS: OnceLock<usize> = OnceLock::new();

/// Limits the threads of every executor of this process; may be called once, before the first model is opened.
pub fn set_threads(threads: usize) -> Result<()> {
    const MOST: usize = 512;
    if !(1..=MOST).contains(&threads) {
        return Err(Error::bad_request("threads", format!("from 1 to {MOST}"), threads));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    pool.map_err(|error| Error::Unsupported(format!("the number of threads can no longer change: {error}")))?;
    THREADS.set(threads).map_err(|_| Error::Unsupported("the number of threads can no longer change".into()))
}

/// Threads of a fused executor: what [`set_threads`] was told, or as many as this process has cores for itself.
pub fn threads() -> usize {
    THREADS.get().copied().unwrap_or_else(braidinfer_kernels::default_threads)
}

/// Which kernels are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernels {
    /// Fused ones where a check has measured that they give the right answers, and standard ones elsewhere.
    #[default]
    Auto,
    /// Candle operations, the reference.
    Standard,
    /// Our own, on the CPU.
    Fused,
}

impl Kernels {
    /// The name in flags and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Standard => "standard",
            Self::Fused => "fused",
        }
    }
}

/// Which kernels compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActiveKernels {
    /// Candle operations, the reference.
    Standard,
    /// Our own, on the CPU.
    Fused,
    /// Our own, but for layers where a check found them wrong.
    Mixed,
}

impl ActiveKernels {
    /// The name in reports and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Fused => "fused",
            Self::Mixed => "mixed",
        }
    }
}

/// Key/value storage: blocks of a fixed number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCacheConfig {
    /// Tokens per block.
    pub block_size: usize,
    /// Blocks that may be named; memory is taken as they are first used.
    pub num_blocks: usize,
    /// How keys and values are stored.
    pub dtype: KvDtype,
}

impl KvCacheConfig {
    /// Tokens that fit in all blocks together.
    pub fn capacity(&self) -> usize {
        self.block_size.saturating_mul(self.num_blocks)
    }
}

/// How keys and values are stored. Never bf16: its rounding of keys is what large key norms amplify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    F16,
}

impl KvDtype {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// What a batch asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Outputs {
    /// A row for each of [`Batch::logits_rows`].
    pub logits: Logits,
    /// `[hidden_size]`, as the last norm gives it, for each of [`Batch::hidden_rows`].
    pub hidden: Vec<Vec<f32>>,
}

impl Outputs {
    /// Of a batch without tokens.
    fn none(vocab_size: usize) -> Self {
        Self { logits: Logits::new(Vec::new(), vocab_size), hidden: Vec::new() }
    }
}

/// Rows of logits, in the order the batch asked for them.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    values: Vec<f32>,
    vocab_size: usize,
}

impl Logits {
    /// `values` is `[rows, vocab_size]`, row-major.
    pub fn new(values: Vec<f32>, vocab_size: usize) -> Self {
        assert!(vocab_size > 0 && values.len().is_multiple_of(vocab_size), "logits are whole rows");
        Self { values, vocab_size }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.vocab_size
    }

    /// All rows, `[rows][vocab_size]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Logits of a row.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// One row, `[vocab_size]`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.vocab_size..(row + 1) * self.vocab_size]
    }
}
