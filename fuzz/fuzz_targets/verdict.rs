//! A verdict that was kept: read, judged again, and written.

#![no_main]

use braidinfer::compat::{CompatReport, RunKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(report) = serde_json::from_slice::<CompatReport>(bytes) else { return };
    report.kernels();
    report.standard_layers();
    report.run(RunKind::Plan);
    let written = serde_json::to_string(&report).expect("reports are JSON");
    // NaN is no JSON, and is read as such: what was written once stays the same.
    let again: CompatReport = serde_json::from_str(&written).expect("what is written can be read");
    assert_eq!(serde_json::to_string(&again).expect("reports are JSON"), written);
});
