//! Available memory, and the memory that models need.

use braidinfer_model::DecoderSpec;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::executor::KvDtype;

/// Memory reserved for the rest of the process, in bytes.
pub(crate) const SLACK: usize = 150 << 20;

/// Available memory in bytes: that of the system, or what the limit of the control group leaves.
pub(crate) fn available() -> usize {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
    let system = System::new_with_specifics(memory);
    // The group's own figure for free memory counts the page cache as used.
    let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
    usize::try_from(system.available_memory().min(group)).unwrap_or(usize::MAX)
}

/// KV cache bytes per token, over all layers.
pub(crate) fn kv_bytes_per_token(spec: &DecoderSpec, dtype: KvDtype) -> usize {
    spec.layer_attentions().map(|attention| 2 * attention.key_value_width() * dtype.size()).sum()
}
