//! What an executor says about itself, for reports.

use std::time::Duration;

use braidinfer_kernels::NumericLevel;

use super::{ActiveKernels, KvDtype, LevelCount};

/// What computes, and how much memory it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorReport {
    /// Standard, fused, or some of each.
    pub kernels: ActiveKernels,
    /// The instruction set of our own kernels, or `candle`.
    pub isa: &'static str,
    /// Threads that compute, the caller included.
    pub threads: usize,
    /// Bytes of the projections of all layers and of the output head, as they lie in memory: what one decode step
    /// reads, but for keys, values and vectors.
    pub weight_bytes: usize,
    /// How long the weights were repacked, where they are.
    pub pack_time: Option<Duration>,
    /// How many projections are multiplied at each numeric level; empty for standard kernels, which have no levels.
    pub levels: Vec<LevelCount>,
    /// The numeric level that multiplies most of the weight bytes; f32 for standard kernels.
    pub main_level: NumericLevel,
    /// How each layer stores keys and values.
    pub kv_dtypes: Vec<KvDtype>,
}
