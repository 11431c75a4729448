//! Whether the machine is right for the model.

use braidinfer_kernels::Isa;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use super::{Finding, Size};
use crate::executor::{KvDtype, threads};
use crate::loading::{LoadOptions, ModelParts};

const AREA: &str = "machine";

/// What is left to the rest of the process, in bytes.
const SLACK: usize = 150 << 20;

pub(super) fn findings(parts: &ModelParts, options: &LoadOptions) -> Vec<Finding> {
    let mut findings = vec![memory(parts, options), cores()];
    findings.extend(instructions());
    findings
}

/// Memory that can be had now, in bytes: that of the system, or what a control group leaves.
pub(super) fn available() -> usize {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
    let system = System::new_with_specifics(memory);
    // What a group calls free leaves out memory that only caches files.
    let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
    usize::try_from(system.available_memory().min(group)).unwrap_or(usize::MAX)
}

/// How large a model is.
pub(super) fn size_of(parts: &ModelParts) -> Size {
    Size {
        parameters: parts.weights.parameter_count(),
        weight_bytes: parts.weights.sizes().iter().map(|(_, bytes)| bytes).sum(),
        kv_bytes_per_token: 2 * parts.spec.key_value_width() * parts.spec.layers.len() * KvDtype::F16.size(),
    }
}

fn memory(parts: &ModelParts, options: &LoadOptions) -> Finding {
    const WHAT: &str = "memory";
    let Size { weight_bytes: weights, kv_bytes_per_token, .. } = size_of(parts);
    let one = kv_bytes_per_token.saturating_mul(parts.context);
    let all = one.saturating_mul(options.max_sequences);
    let (need, available) = (weights + one + SLACK, available());
    let found = format!(
        "weights {}, keys and values {} for one sequence of {} tokens and {} for {}; {} available",
        size(weights),
        size(one),
        parts.context,
        size(all),
        options.max_sequences,
        size(available)
    );
    if need > available {
        return Finding::fail(AREA, WHAT, found, "quantize the model, ask for less --context, or add memory");
    }
    if need.saturating_add(all) - one > available {
        let fix =
            "fewer sequences at once or less --context; memory is taken as it is used, and then it may be too late";
        return Finding::warn(AREA, WHAT, found, fix);
    }
    Finding::pass(AREA, WHAT, found)
}

/// In megabytes or gigabytes.
fn size(bytes: usize) -> String {
    match bytes as f64 / 1e9 {
        small if small < 0.1 => format!("{:.1} MB", 1e3 * small),
        large => format!("{large:.1} GB"),
    }
}

fn cores() -> Finding {
    const WHAT: &str = "threads";
    let (threads, usable) = (threads(), braidinfer_kernels::default_threads());
    let found = format!("{threads} threads for {usable} cores that this process may use");
    if threads > usable {
        return Finding::warn(
            AREA,
            WHAT,
            found,
            "give --threads no more than the cores, or raise the quota: threads wait for each other",
        );
    }
    Finding::pass(AREA, WHAT, found)
}

fn instructions() -> Option<Finding> {
    const WHAT: &str = "instruction set";
    let isa = Isa::detect().ok()?.name();
    Some(match isa {
        "scalar" => Finding::warn(
            AREA,
            WHAT,
            isa,
            "a processor with AVX2 or AVX-512, or no BRAIDINFER_ISA, is many times faster",
        ),
        isa => Finding::pass(AREA, WHAT, isa),
    })
}
