//! Memory: what there is, and what models need.

use braidinfer_model::DecoderSpec;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::executor::KvDtype;

/// What is left to the rest of the process, in bytes.
pub(crate) const SLACK: usize = 150 << 20;

/// Memory that can be had now, in bytes: that of the system, or what a control group leaves.
pub(crate) fn available() -> usize {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
    let system = System::new_with_specifics(memory);
    // What a group calls free leaves out memory that only caches files.
    let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
    usize::try_from(system.available_memory().min(group)).unwrap_or(usize::MAX)
}

/// Bytes of keys and values of one token.
pub(crate) fn kv_bytes_per_token(spec: &DecoderSpec, dtype: KvDtype) -> usize {
    spec.layer_attentions().map(|attention| 2 * attention.key_value_width() * dtype.size()).sum()
}
