//! The check of kernels on a GPU, as they are and with errors planted in them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use braidinfer_gpu::{Adapters, SourceEdit};
use braidinfer_model::ModelSource;

use super::{Checked, Precision, Status, Thoroughness};
use crate::Error;
use crate::executor::gpu::planted;
use crate::executor::{ActiveKernels, DeviceChoice, GpuChoice, GpuShare, KvDtype};
use crate::loading::{LoadOptions, Loaded, ModelParts};

/// Set where tests must not be left out for want of an adapter.
const REQUIRED: &str = "BRAIDINFER_TEST_GPU";

fn has_adapter() -> bool {
    let found = Adapters::find().first().map(|_| ());
    assert!(found.is_ok() || std::env::var_os(REQUIRED).is_none(), "{found:?}");
    found.is_ok()
}

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models")
}

fn parts(name: &str, options: &LoadOptions) -> ModelParts {
    let source = ModelSource::open(models().join(name)).expect("the fixture is there");
    ModelParts::open(&source, options, &|_, _| {}).expect("the fixture opens")
}

fn on_gpu() -> LoadOptions {
    LoadOptions { device: DeviceChoice::Gpu(vec![GpuChoice::Best]), ..LoadOptions::default() }
}

/// The check of a model with an error in the kernels of layer 1.
fn check(name: &str, edit: SourceEdit) -> Checked {
    let mut parts = parts(name, &on_gpu());
    let mut decoder =
        planted::with([(Some(1), edit)], || parts.fused(&on_gpu(), &|_, _| {}).expect("it is loaded onto the GPU"));
    parts.subject(None).check(&mut decoder, Thoroughness::Normal, Precision::Auto).expect("the check runs")
}

/// What a driver or a kernel may get wrong: where rows begin, in which order memory is written and read, which keys are stored, and
/// whether anything is written at all.
const FAULTS: [(&str, SourceEdit); 4] = [
    (
        "wrong stride",
        SourceEdit {
            kernel: "heads",
            from: "let row = token * parameters.input_stride;",
            to: "let row = token * (parameters.input_stride - 1u);",
        },
    ),
    ("missing barrier", SourceEdit { kernel: "attention", from: "workgroupBarrier();", to: "" }),
    (
        "stale keys",
        SourceEdit { kernel: "heads", from: "let lane = slot % 16u;", to: "let lane = (slot & 0xfffffffeu) % 16u;" },
    ),
    ("zeros", SourceEdit { kernel: "merge", from: "value /= sum;", to: "value = 0.0f;" }),
];

#[test]
fn errors_are_reported_in_their_layer() {
    if !has_adapter() {
        return;
    }
    for name in ["llama-yarn", "qwen3-bias", "qwen3-window"] {
        for (fault, edit) in FAULTS {
            let report = check(name, edit).report;
            let first = report.layers.iter().find(|layer| layer.fault.is_some()).map(|layer| layer.layer);
            assert_eq!((report.status, first), (Status::Incompatible, Some(1)), "{name}, {fault}: {}", report.reason);
            assert_eq!(report.standard_layers(), BTreeSet::from([1]), "{name}, {fault}: {}", report.reason);
        }
    }
}

#[test]
fn keys_that_overflow_f16_are_kept_in_f32() {
    if !has_adapter() {
        return;
    }
    let overflow = SourceEdit {
        kernel: "heads",
        from: "half_bits(head[2u * index])",
        to: "half_bits(head[2u * index] * 1000000.0f)",
    };
    let Checked { report, plan } = check("qwen3-bias", overflow);
    assert!(report.layers.iter().all(|layer| layer.fault.is_none()), "{}", report.reason);
    assert_eq!(plan.kv_dtypes[1], KvDtype::F32, "{}", report.reason);
}

/// Wherever there are kernels for all layers.
#[test]
fn models_without_faults_are_compatible() {
    if !has_adapter() {
        return;
    }
    let mut checked = 0;
    for entry in std::fs::read_dir(models()).expect("there are fixtures") {
        let path = entry.expect("it can be read").path();
        let source = ModelSource::open(&path).expect("the fixture is there");
        let mut parts = match ModelParts::open(&source, &on_gpu(), &|_, _| {}) {
            Err(Error::Unsupported(_)) => continue,
            parts => parts.expect("the fixture opens"),
        };
        let loaded = parts.load(&on_gpu(), &|_, _| {}).expect("it is loaded");
        let report = loaded.compat.expect("it was checked");
        assert_eq!(report.status, Status::Compatible, "{}: {}", path.display(), report.reason);
        checked += 1;
    }
    assert!(checked >= 55, "kernels for {checked} fixtures only");
}

/// Layer 1 goes to standard kernels on the CPU, and what the decoder says is right: also where layers run on two GPUs, and on the CPU.
#[test]
fn a_wrong_layer_runs_on_the_cpu() {
    if !has_adapter() {
        return;
    }
    let (_, edit) = FAULTS[0];
    for layers in [vec![], vec![1, 3], vec![3]] {
        let device = DeviceChoice::Gpu(vec![GpuChoice::Best; layers.len().max(1)]);
        let options = LoadOptions { device, gpu_share: GpuShare { layers, memory: None }, ..LoadOptions::default() };
        let mut parts = parts("qwen3-bias", &options);
        let Loaded { decoder, .. } =
            planted::with([(Some(1), edit)], || parts.load(&options, &|_, _| {}).expect("a mixed decoder serves"));
        assert_eq!(decoder.report().kernels, ActiveKernels::Mixed);
        let note = parts.notes.last().expect("the choice is said");
        assert!(note.contains("mixed kernels") && note.contains("standard: layers 1"), "{note}");
    }
}

/// There is something to share out only on GPUs, and a number for each.
#[test]
fn shares_are_those_of_the_gpus() {
    let with = |device: &str, layers: &[usize]| {
        let gpu_share = GpuShare { layers: layers.to_vec(), memory: None };
        let options =
            LoadOptions { device: device.parse().expect("it is a device"), gpu_share, ..LoadOptions::default() };
        let source = ModelSource::open(models().join("llama-yarn")).expect("the fixture is there");
        ModelParts::open(&source, &options, &|_, _| {}).err().map(|error| error.to_string())
    };
    assert!(with("cpu", &[]).is_none());
    assert!(with("cpu", &[1]).is_some_and(|said| said.contains("gpu_layers: expected a GPU to compute on")));
    if has_adapter() {
        assert!(
            with("gpu", &[1, 2]).is_some_and(|said| said.contains("gpu_layers: expected one number, found [1, 2]"))
        );
        assert!(with("gpu+gpu", &[1]).is_some_and(|said| said.contains("a number for each of 2 GPUs")));
        assert!(with("gpu+gpu", &[1, 2]).is_none());
    }
}

/// A driver that gets everything wrong is left for the CPU.
#[test]
fn a_gpu_that_is_wrong_everywhere_is_left_for_the_cpu() {
    if !has_adapter() {
        return;
    }
    let mut parts = parts("llama-yarn", &on_gpu());
    let few = SourceEdit { kernel: "product of few rows", from: "sum += partial", to: "sum -= partial" };
    let many = SourceEdit { kernel: "product of many rows", from: "total0 += sum0;", to: "total0 -= sum0;" };
    let loaded =
        planted::with([(None, few), (None, many)], || parts.load(&on_gpu(), &|_, _| {}).expect("the CPU serves"));
    assert!(loaded.decoder.report().device.is_none());
    assert!(parts.notes.iter().any(|note| note.starts_with("runs on the CPU, not on ")), "{:?}", parts.notes);
}
