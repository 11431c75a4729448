//! Checks of whether the machine suits the model.

use braidinfer_kernels::Isa;

use super::{Finding, Size};
use crate::Advice;
use crate::executor::KvDtype;
use crate::loading::{LoadOptions, ModelParts};
use crate::memory::{SLACK, available, kv_bytes_per_token, size};

const AREA: &str = "machine";

pub(super) fn findings(parts: &ModelParts, options: &LoadOptions) -> Vec<Finding> {
    let mut findings = vec![memory(parts, options), cores(parts)];
    findings.extend(instructions());
    findings
}

/// Size of the model.
pub(super) fn size_of(parts: &ModelParts, options: &LoadOptions) -> Size {
    Size {
        parameters: parts.weights.parameter_count(),
        weight_bytes: parts.weight_bytes(),
        kv_bytes_per_token: kv_bytes_per_token(&parts.spec, options.kv_dtype.unwrap_or(KvDtype::F16)),
    }
}

fn memory(parts: &ModelParts, options: &LoadOptions) -> Finding {
    const WHAT: &str = "memory";
    let Size { weight_bytes: weights, kv_bytes_per_token, .. } = size_of(parts, options);
    let one = kv_bytes_per_token.saturating_mul(parts.context);
    let all = one.saturating_mul(options.max_sequences);
    let (need, available) = (weights.saturating_add(one).saturating_add(SLACK), available());
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
        let fix = Advice::from("quantize the model, ask for less ").then_name("context").then(", or add memory");
        return Finding::fail(AREA, WHAT, found, fix);
    }
    if need.saturating_add(all) - one > available {
        let fix = Advice::from("fewer sequences at once or less ")
            .then_name("context")
            .then("; memory is taken as it is used, and then it may be too late");
        return Finding::warn(AREA, WHAT, found, fix);
    }
    Finding::pass(AREA, WHAT, found)
}

fn cores(parts: &ModelParts) -> Finding {
    const WHAT: &str = "threads";
    let (threads, usable) = (parts.threads.count(), braidinfer_kernels::default_threads());
    let found = format!("{threads} threads for {usable} cores that this process may use");
    if threads > usable {
        return Finding::warn(
            AREA,
            WHAT,
            found,
            Advice::from("give ")
                .then_name("threads")
                .then(" no more than the cores, or raise the quota: threads wait for each other"),
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
            "a processor with AVX2, AVX-512 or NEON, or no BRAIDINFER_ISA, is many times faster",
        ),
        isa => Finding::pass(AREA, WHAT, isa),
    })
}
