//! A [`Decoder`] runs the tokens of a [`Batch`] through the model and returns the requested [`Outputs`]. A table
//! assigns each layer to a [`LayerRunner`]: the standard kernels, the fused kernels, or another implementation. Runners
//! own the KV cache memory; the caller decides which sequence uses which block.

mod batch;
mod branch_norms;
mod decoder;
mod device;
pub mod fused;
#[cfg(feature = "gpu")]
pub mod gpu;
mod keys;
mod latent;
mod pipeline;
mod plan;
mod probe;
mod recurrence;
mod report;
mod rope_history;
mod route;
mod runner;
pub mod standard;

use braidinfer_kernels::attention::{KvElement, Q4_0, Q8_0};
use braidinfer_model::DecoderSpec;

pub use batch::{Batch, SequenceSlice};
pub use braidinfer_kernels::ceilings::ReadPattern;
pub use decoder::Decoder;
pub(crate) use decoder::HEAD_ROWS;
pub(crate) use device::{ChosenGpu, OnGpu, load_on_gpu};
pub use device::{DeviceChoice, GpuChoice, GpuShare, LayerTimes, PlacedLayers, Placement};
pub(crate) use pipeline::{EndsRunner, StagesRunner};
pub use pipeline::{Stage, StageConnection};
pub use plan::{KernelPlan, LevelCount, PlannedProjection};
pub use probe::{NoProbe, Probe, RecordedActivation, Recorder};
pub(crate) use recurrence::heads_per_part;
pub use report::{DeviceReport, ExecutorReport};
#[cfg(feature = "gpu")]
use runner::no_ends;
pub use runner::{Capabilities, LayerRunner, LayerState, Step, WantedRows};

/// The kernels that the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernels {
    /// Fused kernels where a check has measured that their results are right, standard kernels elsewhere.
    #[default]
    Auto,
    /// Candle operations, the reference implementation.
    Standard,
    /// This crate's own CPU kernels.
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

/// The kernels that a loaded model uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActiveKernels {
    /// Candle operations, the reference implementation.
    Standard,
    /// This crate's own CPU kernels.
    Fused,
    /// Fused kernels, except in layers where a check found their results wrong.
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

/// Size of the paged KV cache: blocks with a fixed number of tokens each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCacheConfig {
    /// Tokens per block.
    pub block_size: usize,
    /// Number of blocks; block ids are below it. Memory is allocated when a block is first used.
    pub num_blocks: usize,
    /// Data type of stored keys and values.
    pub dtype: KvDtype,
}

impl KvCacheConfig {
    /// Tokens that fit in all blocks together.
    pub fn capacity(&self) -> usize {
        self.block_size.saturating_mul(self.num_blocks)
    }
}

/// Data type of stored keys and values, from fine to coarse. bf16 is not offered: large key norms amplify its rounding of
/// keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KvDtype {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    F16,
    /// 8 bits, and an f16 scale for 32 dimensions of a head. Only fused kernels have it.
    Q8_0,
    /// 4 bits, and an f16 scale for 32 dimensions of a head. Only fused kernels have it.
    Q4_0,
}

impl KvDtype {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// All of them, from fine to coarse.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Q8_0, Self::Q4_0];

    /// Whether values are codes that share scales.
    pub fn is_quantized(self) -> bool {
        self > Self::F16
    }

    /// Bytes of the keys and the values of one token in `heads` heads, each `head_dim` wide.
    pub fn token_bytes(self, heads: usize, head_dim: usize) -> usize {
        match self {
            Self::F32 => 2 * heads * head_dim * 4,
            Self::F16 => 2 * heads * head_dim * 2,
            Self::Q8_0 | Self::Q4_0 => heads * self.stored_bytes(head_dim),
        }
    }

    /// Bytes that fused kernels take for one position of a head, with padding.
    pub(crate) fn stored_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => f32::position_bytes(head_dim),
            Self::F16 => u16::position_bytes(head_dim),
            Self::Q8_0 => Q8_0::position_bytes(head_dim),
            Self::Q4_0 => Q4_0::position_bytes(head_dim),
        }
    }

    /// [`KvDtype::token_bytes`] of a layer; 0 if it keeps no keys and values of its own.
    pub(crate) fn layer_bytes(self, spec: &DecoderSpec, layer: usize) -> usize {
        let kept = spec.kept_attention(layer);
        kept.map_or(0, |attention| self.token_bytes(attention.num_key_value_heads, attention.head_dim))
    }
}

/// The results of one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Outputs {
    /// One row for each of [`Batch::logits_rows`].
    pub logits: Logits,
    /// One for each of [`Batch::argmax_rows`].
    pub argmax: Vec<Argmax>,
    /// The hidden state after the final norm, `[hidden_size]`, for each of [`Batch::hidden_rows`].
    pub hidden: Vec<Vec<f32>>,
}

impl Outputs {
    /// The outputs of a batch without tokens.
    fn none(vocab_size: usize) -> Self {
        Self { logits: Logits::new(Vec::new(), vocab_size), argmax: Vec::new(), hidden: Vec::new() }
    }
}

/// The likeliest next token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Argmax {
    /// Its id, the lowest one of equals.
    pub token: u32,
    /// Its logit; not finite if any logit of the row is not.
    pub logit: f32,
}

impl Argmax {
    /// Of a row of logits.
    fn of(logits: &[f32]) -> Self {
        let mut best = Self { token: 0, logit: f32::NEG_INFINITY };
        for (token, logit) in logits.iter().enumerate() {
            if !logit.is_finite() {
                return Self { token: token as u32, logit: *logit };
            }
            if *logit > best.logit {
                best = Self { token: token as u32, logit: *logit };
            }
        }
        best
    }
}

/// Rows of logits, in the order of [`Batch::logits_rows`].
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

    /// Number of logits per row.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// One row, `[vocab_size]`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.vocab_size..(row + 1) * self.vocab_size]
    }
}
