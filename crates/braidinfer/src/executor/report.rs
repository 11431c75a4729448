//! What reports say about the executor.

use std::time::Duration;

use braidinfer_kernels::NumericLevel;

use super::{ActiveKernels, KvDtype, LevelCount};

/// The kernels in use, their threads, and the memory they read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorReport {
    /// Standard, fused, or a mix of both.
    pub kernels: ActiveKernels,
    /// The instruction set of the fused kernels, the adapter and its driver, or `candle`.
    pub isa: String,
    /// Number of compute threads, including the calling thread.
    pub threads: usize,
    /// In-memory size of the projections of all layers and of the output head, in bytes: what one decode step reads,
    /// apart from keys, values and vectors.
    pub weight_bytes: usize,
    /// Time spent repacking the weights, if they are repacked.
    pub pack_time: Option<Duration>,
    /// Number of projections per numeric level; empty for standard kernels, which have no levels.
    pub levels: Vec<LevelCount>,
    /// The numeric level of the projections that hold most of the weight bytes; f32 for standard kernels.
    pub main_level: NumericLevel,
    /// KV data type of each layer.
    pub kv_dtypes: Vec<KvDtype>,
    /// The GPU, if one computes.
    pub device: Option<DeviceReport>,
}

/// A GPU, and what it was used for since it was opened; of several, the sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// Adapter and driver.
    pub name: String,
    /// Bytes of its memory that are in use: weights, keys and values, activations.
    pub allocated_bytes: u64,
    /// Kernels that ran.
    pub dispatches: u64,
    /// Times that it was given commands.
    pub submissions: u64,
    /// Bytes that were read back.
    pub bytes_read: u64,
    /// Bytes that were uploaded.
    pub bytes_written: u64,
    /// Bytes of weights, keys and values that kernels were to read, as their shapes say.
    pub model_bytes: u64,
}

impl DeviceReport {
    /// Adds another one.
    pub(super) fn add(&mut self, other: &Self) {
        self.name += &format!(" and {}", other.name);
        self.allocated_bytes += other.allocated_bytes;
        self.dispatches += other.dispatches;
        self.submissions += other.submissions;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.model_bytes += other.model_bytes;
    }
}
