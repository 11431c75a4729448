//! The machine: what it is, what it can do at most, and how much memory this process took.

use std::fs;

use anyhow::Context;
use braidinfer::executor::ReadPattern;
use braidinfer::kernels::{Isa, NumericLevel, Pool, ceilings};
use serde::{Deserialize, Serialize, Serializer};

/// More than the caches of any processor hold.
const READ_BYTES: usize = 512 << 20;

/// The machine that ran the measurement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name, where the system tells it.
    pub cpu: Option<String>,
    /// The instruction set of our own kernels.
    pub isa: String,
    pub threads: usize,
    pub os: String,
}

impl Machine {
    pub fn this(threads: usize) -> anyhow::Result<Self> {
        Ok(Self { cpu: cpu_name(), isa: Isa::detect()?.name().into(), threads, os: std::env::consts::OS.into() })
    }
}

/// The processor's name on Linux.
fn cpu_name() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Peak memory bandwidth and arithmetic throughput of the machine, in units of 10^9 per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ceilings {
    pub read_gb_s: f64,
    /// The fastest way to read that was tried.
    #[serde(serialize_with = "in_words")]
    pub read_pattern: ReadPattern,
    pub int8_gop_s: f64,
    pub bf16_gflop_s: f64,
    pub f32_gflop_s: f64,
}

impl Ceilings {
    /// Measures with all threads; takes about a second.
    pub fn measure(threads: usize) -> anyhow::Result<Self> {
        let isa = Isa::detect()?;
        let mut pool = Pool::new(threads).with_context(|| format!("{threads} threads"))?;
        let read = ceilings::read_bandwidth(isa, &mut pool, READ_BYTES);
        let (read, read_pattern) =
            read.with_context(|| format!("{READ_BYTES} bytes of memory to measure how fast it is read"))?;
        let mut rate = |level| ceilings::multiply_rate(isa, &mut pool, level) / 1e9;
        Ok(Self {
            read_gb_s: read / 1e9,
            read_pattern,
            int8_gop_s: rate(NumericLevel::Int8),
            bf16_gflop_s: rate(NumericLevel::Bf16),
            f32_gflop_s: rate(NumericLevel::F32),
        })
    }

    /// The larger of each value.
    pub fn or_better(&self, other: &Self) -> Self {
        Self {
            read_gb_s: self.read_gb_s.max(other.read_gb_s),
            read_pattern: if self.read_gb_s >= other.read_gb_s { self.read_pattern } else { other.read_pattern },
            int8_gop_s: self.int8_gop_s.max(other.int8_gop_s),
            bf16_gflop_s: self.bf16_gflop_s.max(other.bf16_gflop_s),
            f32_gflop_s: self.f32_gflop_s.max(other.f32_gflop_s),
        }
    }

    /// Arithmetic throughput at a level.
    pub fn multiply(&self, level: NumericLevel) -> f64 {
        match level {
            NumericLevel::Int8 => self.int8_gop_s,
            // Each 16-bit product takes two 8-bit products.
            NumericLevel::Int16 => self.int8_gop_s / 2.0,
            NumericLevel::Bf16 => self.bf16_gflop_s,
            NumericLevel::F32 => self.f32_gflop_s,
        }
    }
}

fn in_words<S: Serializer>(pattern: &ReadPattern, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(pattern)
}

/// Measures the peak of the resident memory of this process over what it used before. Linux only.
pub struct PeakMemory {
    before: usize,
}

impl PeakMemory {
    /// Resets the peak and starts measuring; `None` if the system does not support it.
    pub fn begin() -> Option<Self> {
        // See proc(5): "5" resets the peak to the current size.
        fs::write("/proc/self/clear_refs", "5").ok()?;
        Some(Self { before: status_bytes("VmRSS")? })
    }

    /// The peak since [`PeakMemory::begin`] over the earlier size, in bytes.
    pub fn end(self) -> Option<usize> {
        Some(status_bytes("VmHWM")?.saturating_sub(self.before))
    }
}

/// Memory of the machine, in bytes. Linux only.
pub fn memory_bytes() -> Option<usize> {
    size_in("/proc/meminfo", "MemTotal")
}

fn status_bytes(field: &str) -> Option<usize> {
    size_in("/proc/self/status", field)
}

/// A size in a file of the system, in bytes.
fn size_in(file: &str, field: &str) -> Option<usize> {
    let text = fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: usize = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
