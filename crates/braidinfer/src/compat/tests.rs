//! Faults of arithmetic that no description can hold, planted in the executor. `tests/compat.rs` has the others.

use std::path::PathBuf;
use std::sync::Arc;

use braidinfer_model::quantization::FileType;
use braidinfer_model::{Dtype, LayerSlot, ModelSource, Param, Slot};

use super::{CompatReport, Status, Thoroughness};
use crate::executor::fused::planted::Planted;
use crate::loading::{LoadOptions, ModelParts};

fn fixture(name: &str) -> ModelSource {
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
    ModelSource::open(models.join(name)).expect("the fixture is there")
}

/// The verdict with a fault in the fused kernels; `spoil` may replace weights that only they read.
fn check(name: &str, quantize: Option<FileType>, planted: Option<Planted>, spoil: fn(&mut ModelParts)) -> CompatReport {
    let options = LoadOptions { quantize, ..LoadOptions::default() };
    let open = || ModelParts::open(&fixture(name), &options, &|_, _| {}).expect("the fixture opens");
    let (parts, mut spoiled) = (open(), open());
    spoil(&mut spoiled);
    let mut fused = spoiled.fused(&options, &|_, _| {}).expect("the weights can be packed");
    fused.planted = planted;
    parts.subject().check(&mut fused, Thoroughness::Normal).expect("the check runs")
}

/// Layer and activation of the first fault.
fn found(report: &CompatReport) -> Option<(usize, &str)> {
    report.layers.iter().find_map(|layer| Some((layer.layer, layer.fault.as_deref()?)))
}

#[test]
fn without_a_fault_nothing_is_found() {
    let report = check("llama-bias", None, None, |_| {});
    assert_eq!((report.status, found(&report)), (Status::Compatible, None));
}

#[test]
fn sums_rounded_to_bf16_are_found_in_their_layer() {
    for quantize in [None, Some(FileType::Q8_0)] {
        let report = check("llama-yarn", quantize, Some(Planted::SumsInBf16 { layer: 1 }), |_| {});
        assert_eq!((report.status, found(&report)), (Status::Incompatible, Some((1, "attn.q"))), "{}", report.reason);
        assert!(report.falls_back());
    }
}

#[test]
fn keys_in_bf16_are_found_on_the_extreme_model() {
    let report = check("qwen3-extreme", None, Some(Planted::KeysInBf16), |_| {});
    assert_eq!((report.status, found(&report)), (Status::Incompatible, Some((0, "attn.heads"))), "{}", report.reason);
}

#[test]
fn scores_out_of_range_are_found_in_their_layer() {
    let report = check("qwen3-bias", None, Some(Planted::ScoreOverflow { layer: 1 }), |_| {});
    assert_eq!((report.status, found(&report)), (Status::Incompatible, Some((1, "attn.heads"))), "{}", report.reason);
    assert_eq!(report.score, 0.0);
}

#[test]
fn a_transposed_scale_is_found_in_its_layer() {
    let report = check("llama-yarn", Some(FileType::Q8_0), None, |parts| {
        let slot = Slot::Layer(1, LayerSlot::UpProj);
        let view = parts.weights.get(slot, Param::Weight).expect("the projection exists");
        assert_eq!(view.dtype, Dtype::Q8_0);
        let mut data = view.data.to_vec();
        let block = Dtype::Q8_0.bytes(32).expect("a block is whole");
        // The f16 scales of the first two blocks of the first row.
        let (first, second) = data.split_at_mut(block);
        first[..2].swap_with_slice(&mut second[..2]);
        parts.weights.replace(slot, Param::Weight, Dtype::Q8_0, Arc::from(data));
    });
    assert_eq!((report.status, found(&report)), (Status::Incompatible, Some((1, "ffn.out"))), "{}", report.reason);
}
