//! A [`Decoder`] runs the tokens of a [`Batch`] and returns the [`Outputs`] that it asks for. It asks a table which
//! [`LayerRunner`] computes which layer: the standard kernels, the fused ones, or others. Runners store keys and values; the
//! caller decides which block holds what.

mod batch;
mod decoder;
mod device;
pub mod fused;
mod plan;
mod probe;
mod report;
mod rope_history;
mod route;
mod runner;
pub mod standard;

pub use batch::{Batch, SequenceSlice};
pub use decoder::Decoder;
pub use device::DeviceChoice;
pub use plan::{KernelPlan, LevelCount, PlannedProjection};
pub use probe::{NoProbe, Probe, RecordedActivation, Recorder};
pub use report::ExecutorReport;
pub use runner::{Capabilities, LayerRunner, LayerState, Step, WantedRows};

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

    /// All rows, `[rows][vocab_size]`.
    pub fn into_values(self) -> Vec<f32> {
        self.values
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
