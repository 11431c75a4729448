//! Arithmetic errors that no model description can express, planted in the executor. `tests/all/compat.rs` has the others.

#[path = "../../../braidinfer-model/tests/support/mutations.rs"]
mod mutations;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use braidinfer_kernels::NumericLevel;
use braidinfer_model::quantization::FileType;
use braidinfer_model::{Dtype, LayerSlot, ModelSource, Param, Slot};
use half::bf16;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;

use super::measure::Truth;
use super::passages::Passages;
use super::{CheckedKernels, CompatReport, Precision, RunKind, Status, Thoroughness, VerdictCache};
use super::{batches, cache};
use crate::executor::fused::planted::{self, Planted};
use crate::executor::standard::ComputeDtype;
use crate::executor::{ActiveKernels, Decoder, KernelPlan, Kernels, KvDtype};
use crate::loading::{LoadOptions, ModelParts};
use crate::quantize::quantize_weights;

fn fixture(name: &str) -> ModelSource {
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
    ModelSource::open(models.join(name)).expect("the fixture is there")
}

/// The report for fused kernels with an error; `spoil` may modify the weights of the fused kernels only.
fn check(name: &str, quantize: Option<FileType>, planted: Option<Planted>, spoil: fn(&mut ModelParts)) -> CompatReport {
    check_seed(0, name, quantize, planted, spoil)
}

/// Like `check`, on shuffled weights, which are another model of the same kind; seed 0 leaves them unchanged.
fn check_seed(
    seed: u64,
    name: &str,
    quantize: Option<FileType>,
    planted: Option<Planted>,
    spoil: fn(&mut ModelParts),
) -> CompatReport {
    let options = LoadOptions::default();
    let open = || {
        let mut parts = ModelParts::open(&fixture(name), &options, &|_, _| {}).expect("the fixture opens");
        shuffle(&mut parts, seed);
        if let Some(file_type) = quantize {
            quantize_weights(&parts.spec, &mut parts.weights, file_type, &parts.threads, &|_, _| {})
                .expect("weights can be quantized");
        }
        parts
    };
    let (parts, mut spoiled) = (open(), open());
    spoil(&mut spoiled);
    let mut fused = fused(&spoiled, &options, planted);
    parts.subject(None).check(&mut fused, Thoroughness::Normal, Precision::Auto).expect("the check runs").report
}

/// Fused kernels with an error, or without.
fn fused(parts: &ModelParts, options: &LoadOptions, fault: Option<Planted>) -> Decoder<'static> {
    let options = parts.fused_options(options).expect("there are fused kernels");
    planted::load(parts.spec.clone(), &parts.weights, options, fault).expect("the weights can be packed")
}

/// Shuffles the entries of each matrix.
fn shuffle(parts: &mut ModelParts, seed: u64) {
    if seed == 0 {
        return;
    }
    let mut rng = Pcg64::seed_from_u64(seed);
    let slots: Vec<(Slot, Param)> = parts.weights.iter().map(|(slot, param, _)| (slot, param)).collect();
    // A tied head is shuffled with the embedding.
    let tied = parts.weights.head_is_embedding();
    for (slot, param) in slots.into_iter().filter(|(slot, _)| !(tied && *slot == Slot::LmHead)) {
        let view = parts.weights.get(slot, param).expect("it was listed");
        if view.shape.len() == 2 && view.dtype == Dtype::BF16 {
            let mut values: Vec<[u8; 2]> = view.data.read().expect("the file is as it was").as_chunks().0.to_vec();
            values.shuffle(&mut rng);
            drop(view);
            let data: Vec<u8> = values.into_flattened();
            parts.weights.replace(slot, param, Dtype::BF16, Arc::from(data));
        }
    }
}

/// Seeds of the models in which arithmetic errors are planted.
const SEEDS: [u64; 3] = [0, 41, 42];

/// Layer and activation of the first fault.
fn found(report: &CompatReport) -> Option<(usize, &str)> {
    report.layers.iter().find_map(|layer| Some((layer.layer, layer.fault.as_deref()?)))
}

#[test]
fn correct_kernels_have_no_fault() {
    for name in [
        "llama-bias",
        "qwen3_5",
        "qwen3_next-dense",
        "granitemoehybrid-dense",
        "falcon_h1-norm",
        "nemotron_h-moe",
        "gemma3n",
    ] {
        let report = check(name, None, None, |_| {});
        assert_eq!((report.status, found(&report)), (Status::Compatible, None), "{name}: {}", report.reason);
    }
}

#[test]
fn sums_rounded_to_bf16_are_reported_in_their_layer() {
    for (seed, quantize) in SEEDS.into_iter().flat_map(|seed| [(seed, None), (seed, Some(FileType::Q8_0))]) {
        let report = check_seed(seed, "llama-yarn", quantize, Some(Planted::SumsInBf16 { layer: 1 }), |_| {});
        assert_eq!((report.status, found(&report)), (Status::Incompatible, Some((1, "attn.q"))), "{}", report.reason);
        // The other layers are right, so they stay fused.
        assert_eq!(report.kernels(), ActiveKernels::Mixed);
        assert_eq!(report.standard_layers(), BTreeSet::from([1]));
        let run = report.run(RunKind::Plan).expect("what auto runs is measured");
        assert!(run.divergence.kl_mean < 1e-3, "{:e}", run.divergence.kl_mean);
    }
}

#[test]
fn rounded_inputs_of_mamba_2_are_reported_in_their_layer() {
    for (seed, name) in SEEDS.into_iter().flat_map(|seed| [(seed, "granitemoehybrid-dense"), (seed, "nemotron_h-moe")])
    {
        let report = check_seed(seed, name, None, Some(Planted::SumsInBf16 { layer: 0 }), |_| {});
        let expected = (Status::Incompatible, Some((0, "mamba.zxbcdt")));
        assert_eq!((report.status, found(&report)), expected, "{name} seed {seed}: {}", report.reason);
        assert_eq!(report.standard_layers(), BTreeSet::from([0]), "{name} seed {seed}: {}", report.reason);
    }
}

#[test]
fn a_fault_in_every_layer_selects_standard_kernels() {
    let report = check("qwen3-extreme", None, Some(Planted::KeysInBf16), |_| {});
    assert_eq!((report.kernels(), report.run(RunKind::Plan)), (ActiveKernels::Standard, None));
}

#[test]
fn a_verdict_with_standard_layers_loads_a_mixed_decoder() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let options = LoadOptions { verdicts: Some(folder.path().to_owned()), ..LoadOptions::default() };
    let mut parts = ModelParts::open(&fixture("llama-yarn"), &options, &|_, _| {}).expect("the fixture opens");
    let mut fused = fused(&parts, &options, Some(Planted::SumsInBf16 { layer: 1 }));
    let kernels = CheckedKernels::of(&fused);
    let cache = VerdictCache::new(options.verdicts.as_deref(), &parts.subject(None), &kernels, Precision::Auto)
        .expect("the file is as it was");
    let checked = parts.subject(None).check(&mut fused, Thoroughness::Brief, Precision::Auto).expect("the check runs");
    cache.write(&checked.report).expect("the verdict can be kept");
    let kept = cache.read().expect("the verdict was kept");
    assert!(!kept.recommendations.is_empty());
    let recommended = checked.report.recommendations;
    assert_eq!(kept.recommendations, recommended, "advice that is read again still names its settings");
    let loaded = parts.load(&options, &|_, _| {}).expect("auto loads the model");
    assert_eq!(loaded.decoder.report().kernels, ActiveKernels::Mixed);
    let note = parts.notes.last().expect("the choice is said");
    for part in ["mixed kernels: INCOMPATIBLE (measured earlier)", "in layer 1", "standard: layers 1"] {
        assert!(note.contains(part), "{part}: {note}");
    }
    // A request for fused kernels only fails.
    let asked = LoadOptions { kernels: Kernels::Fused, ..options };
    let refused = parts.load(&asked, &|_, _| {}).err().expect("fused kernels are wrong here");
    let advice = refused.advice().expect("there is a way out");
    assert!(refused.to_string().contains("INCOMPATIBLE"), "{refused}");
    assert_eq!(advice.to_string(), "use kernels=auto, or force=true");
}

/// `qwen3-window` with norms on keys of some layers so large that attention there all but picks single tokens.
fn with_large_keys(layers: impl IntoIterator<Item = usize>, options: &LoadOptions) -> ModelParts {
    let mut parts = ModelParts::open(&fixture("qwen3-window"), options, &|_, _| {}).expect("the fixture opens");
    for layer in layers {
        let slot = Slot::Layer(layer, LayerSlot::KNorm);
        let view = parts.weights.get(slot, Param::Weight).expect("there are norms on keys");
        let values = view.read::<f32>().expect("they are finite");
        let data: Vec<u8> = values.iter().flat_map(|value| bf16::from_f32(40.0 * value).to_le_bytes()).collect();
        drop(view);
        parts.weights.replace(slot, Param::Weight, Dtype::BF16, Arc::from(data));
    }
    parts
}

#[test]
fn a_model_that_four_bits_hurt_everywhere_refuses_them() {
    let options = LoadOptions { kv_dtype: Some(KvDtype::Q4_0), ..LoadOptions::default() };
    let layers = with_large_keys([], &options).spec.layers.len();
    let mut parts = with_large_keys(0..layers, &options);
    let refused = parts.load(&options, &|_, _| {}).err().expect("no layer can have them");
    let text = refused.to_string();
    assert!(text.contains("q4_0 do not serve") && text.contains("in every choice of layers"), "{text}");
    let advice = refused.advice().expect("there is a way out").to_string();
    assert_eq!(advice, "use kv_dtype=f16, or, whatever the answers are, kernels=fused with force=true");
    let plain = LoadOptions::default();
    parts.load(&plain, &|_, _| {}).expect("f16 or f32 serve");
}

/// Verdicts on other types of keys and values have other names.
#[test]
fn verdicts_are_about_a_type_of_keys_and_values() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let of = |kv_dtype| {
        let options = LoadOptions { kv_dtype, verdicts: Some(folder.path().to_owned()), ..LoadOptions::default() };
        let mut parts = ModelParts::open(&fixture("llama-f16"), &options, &|_, _| {}).expect("the fixture opens");
        let loaded = parts.load(&options, &|_, _| {}).expect("it opens");
        let note = parts.notes.last().expect("the choice is said").clone();
        (loaded.decoder.plan().kv_dtypes.clone(), note.contains("measured earlier"))
    };
    let (plain, earlier) = of(None);
    assert!(!earlier && plain.iter().all(|kv| *kv == KvDtype::F16), "{plain:?}");
    let (eight, earlier) = of(Some(KvDtype::Q8_0));
    assert!(!earlier && eight.iter().all(|kv| *kv == KvDtype::Q8_0), "{eight:?}");
    assert_eq!(of(Some(KvDtype::Q8_0)), (eight, true));
    assert_eq!(of(None), (plain, true));
}

/// A program that can write to the folder of verdicts can also write a right checksum.
#[test]
fn changed_verdicts_never_panic() {
    let options = LoadOptions::default();
    let parts = ModelParts::open(&fixture("llama-yarn"), &options, &|_, _| {}).expect("the fixture opens");
    let mut fused = fused(&parts, &options, Some(Planted::SumsInBf16 { layer: 1 }));
    let checked = parts.subject(None).check(&mut fused, Thoroughness::Brief, Precision::Auto).expect("the check runs");
    let report = serde_json::to_value(&checked.report).expect("reports are JSON");
    let layers = parts.spec.layers.len();
    let read = |bytes: &[u8]| {
        let Some(report) = cache::verdict(bytes, "key") else { return Ok(()) };
        // What loading does with it.
        if super::plan_of(&report, fused.plan()).is_none() {
            return Ok(());
        }
        let beyond = report.standard_layers().into_iter().find(|layer| *layer >= layers);
        super::judge::recommend(&mut report.clone());
        serde_json::to_string(&report).map_err(|error| error.to_string())?;
        beyond.map_or(Ok(()), |layer| Err(format!("layer {layer} of {layers} is taken")))
    };
    let entry = |report: String| cache::entry(report, "key").expect("entries are JSON");
    mutations::check_all(500, mutations::json_changes(), |changes| {
        read(entry(mutations::changed_json(&report, changes).to_string()).as_bytes())
    });
    let file = mutations::File::json("verdict.json", entry(report.to_string()).into_bytes());
    mutations::check_all(500, mutations::changes(), |changes| read(&file.changed(changes)));
}

#[test]
fn keys_in_bf16_are_reported_on_the_extreme_model() {
    for seed in SEEDS {
        let report = check_seed(seed, "qwen3-extreme", None, Some(Planted::KeysInBf16), |_| {});
        let expected = (Status::Incompatible, Some((0, "attn.heads")));
        assert_eq!((report.status, found(&report)), expected, "seed {seed}: {}", report.reason);
    }
}

#[test]
fn overflowing_scores_are_reported_in_their_layer() {
    let overflowing = |seed| check_seed(seed, "qwen3-bias", None, Some(Planted::ScoreOverflow { layer: 1 }), |_| {});
    for seed in SEEDS {
        let report = overflowing(seed);
        let expected = (Status::Incompatible, Some((1, "attn.heads")));
        assert_eq!((report.status, found(&report)), expected, "seed {seed}: {}", report.reason);
        assert_eq!(report.score, 0.0);
    }
    let report = overflowing(0);
    // A verdict with a NaN can be serialized and deserialized.
    let text = serde_json::to_string(&report).expect("reports are JSON");
    let read: CompatReport = serde_json::from_str(&text).expect("and can be read");
    assert_eq!((read.status, &read.plan, found(&read)), (report.status, &report.plan, found(&report)));
    let heads = read.layers[1].exact.iter().find(|op| op.op == "attn.heads").expect("heads are compared");
    assert!(heads.error.is_nan());
}

#[test]
fn forgotten_sinks_are_reported_in_their_layer() {
    for seed in SEEDS {
        let report = check_seed(seed, "gpt_oss-mxfp4", None, Some(Planted::SinksForgotten { layer: 1 }), |_| {});
        let expected = (Status::Incompatible, Some((1, "attn.heads")));
        assert_eq!((report.status, found(&report)), expected, "seed {seed}: {}", report.reason);
        // The other layers are right, so they stay fused.
        assert_eq!(report.standard_layers(), BTreeSet::from([1]), "seed {seed}: {}", report.reason);
    }
}

#[test]
fn faults_of_streams_branches_and_sparsity_are_reported_in_their_layer() {
    let faults = [
        (Planted::PredictionForgotten { layer: 2 }, 2, "altup.predicted"),
        (Planted::EqualCorrections { layer: 1 }, 1, "altup.corrected"),
        (Planted::LaurelForgotten { layer: 3 }, 3, "attn.residual"),
        (Planted::SparsityForgotten { layer: 0 }, 0, "ffn.out"),
    ];
    for (fault, layer, place) in faults {
        for seed in SEEDS {
            let report = check_seed(seed, "gemma3n", None, Some(fault), |_| {});
            let expected = (Status::Incompatible, Some((layer, place)));
            assert_eq!((report.status, found(&report)), expected, "{fault:?}, seed {seed}: {}", report.reason);
        }
    }
}

/// Fixtures with experts in layer 1, by softmax and sigmoid, with and without experts for every token.
const ROUTED: [&str; 7] = [
    "qwen3_moe-unnormed",
    "glm4_moe-plain",
    "ernie4_5_moe-bias",
    "granitemoeshared",
    "qwen3_5_moe",
    "gpt_oss-mxfp4",
    "nemotron_h-moe",
];

#[test]
fn faults_of_routers_are_reported_in_their_layer() {
    let faults = [
        (Planted::RouterLogits { layer: 1 }, "ffn.router"),
        (Planted::WrongExpert { layer: 1 }, "ffn.routing"),
        (Planted::EqualWeights { layer: 1 }, "ffn.routing"),
    ];
    for (fault, place) in faults {
        for name in ROUTED {
            for seed in SEEDS {
                let report = check_seed(seed, name, None, Some(fault), |_| {});
                let expected = (Status::Incompatible, Some((1, place)));
                let what = format!("{fault:?} in {name}, seed {seed}: {}", report.reason);
                assert_eq!((report.status, found(&report)), expected, "{what}");
            }
        }
    }
}

#[test]
fn wrong_recurrent_states_are_reported_in_their_layer() {
    for (name, planted) in [
        ("qwen3_5", Planted::StatesForgotten { layer: 1 }),
        ("qwen3_5", Planted::StatesInBf16 { layer: 2 }),
        ("qwen3_next-dense", Planted::StatesInBf16 { layer: 2 }),
        ("granitemoehybrid-dense", Planted::StatesForgotten { layer: 0 }),
        ("granitemoehybrid-dense", Planted::StatesInBf16 { layer: 0 }),
        ("falcon_h1-norm", Planted::StatesForgotten { layer: 1 }),
        ("falcon_h1-norm", Planted::StatesInBf16 { layer: 0 }),
        ("nemotron_h-moe", Planted::StatesForgotten { layer: 0 }),
        ("lfm2-bias", Planted::StatesForgotten { layer: 2 }),
        ("lfm2-bias", Planted::StatesInBf16 { layer: 1 }),
    ] {
        let first_wrong = if name.starts_with("qwen") {
            "delta.heads"
        } else if name.starts_with("lfm") {
            "conv.convolved"
        } else {
            "mamba.heads"
        };
        let (Planted::StatesForgotten { layer } | Planted::StatesInBf16 { layer }) = planted else { continue };
        for seed in SEEDS {
            let report = check_seed(seed, name, None, Some(planted), |_| {});
            let expected = (Status::Incompatible, Some((layer, first_wrong)));
            assert_eq!((report.status, found(&report)), expected, "{name} seed {seed}: {}", report.reason);
            // The other layers are right, so they stay fused.
            assert_eq!(report.standard_layers(), BTreeSet::from([layer]), "{name} seed {seed}: {}", report.reason);
        }
    }
}

#[test]
fn swapped_scales_are_reported_in_their_layer() {
    let swap_scales = |parts: &mut ModelParts| {
        let slot = Slot::Layer(1, LayerSlot::UpProj);
        let view = parts.weights.get(slot, Param::Weight).expect("the projection exists");
        assert_eq!(view.dtype, Dtype::Q8_0);
        let mut data = view.data.read().expect("the file is as it was").into_owned();
        let block = Dtype::Q8_0.bytes(32).expect("a block is whole");
        // The f16 scales of the first two blocks of the first row.
        let (first, second) = data.split_at_mut(block);
        first[..2].swap_with_slice(&mut second[..2]);
        drop(view);
        parts.weights.replace(slot, Param::Weight, Dtype::Q8_0, Arc::from(data));
    };
    for seed in SEEDS {
        let report = check_seed(seed, "llama-yarn", Some(FileType::Q8_0), None, swap_scales);
        let expected = (Status::Incompatible, Some((1, "ffn.out")));
        assert_eq!((report.status, found(&report)), expected, "seed {seed}: {}", report.reason);
    }
}

/// The only thing that is rounded in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rounded {
    /// Fused kernels: sums in another order.
    Sums,
    Keys(KvDtype),
    KeysInBf16,
    /// Activations of every projection, with weights of this type.
    Activations(NumericLevel, Option<FileType>),
    /// The weights themselves, on standard kernels.
    Weights(FileType),
    /// Standard kernels with a bf16 residual stream.
    Everything,
}

const ROUNDINGS: [(&str, Rounded); 11] = [
    ("sums in another order, operations fused (K/V f32)", Rounded::Sums),
    ("keys and values stored in f32", Rounded::Keys(KvDtype::F32)),
    ("keys and values stored in f16", Rounded::Keys(KvDtype::F16)),
    ("keys and values stored in q8_0, transformed", Rounded::Keys(KvDtype::Q8_0)),
    ("keys and values stored in q4_0, transformed", Rounded::Keys(KvDtype::Q4_0)),
    ("keys stored in bf16", Rounded::KeysInBf16),
    ("activations of products in bf16", Rounded::Activations(NumericLevel::Bf16, None)),
    (
        "activations of products in 8 bits (q8_0 weights, from their own truth)",
        Rounded::Activations(NumericLevel::Int8, Some(FileType::Q8_0)),
    ),
    (
        "activations of products in 16 bits (the same weights)",
        Rounded::Activations(NumericLevel::Int16, Some(FileType::Q8_0)),
    ),
    ("weights in q8_0", Rounded::Weights(FileType::Q8_0)),
    ("all activations in bf16, K/V f16: the checkpoint's own type", Rounded::Everything),
];

/// A model; with `limit`, its key norm weights are clipped.
fn extreme(quantize: Option<FileType>, limit: Option<f32>) -> ModelParts {
    let options = LoadOptions { quantize, ..LoadOptions::default() };
    let mut parts = ModelParts::open(&fixture("qwen3-extreme"), &options, &|_, _| {}).expect("the fixture opens");
    let Some(limit) = limit else { return parts };
    for layer in 0..parts.spec.layers.len() {
        let slot = Slot::Layer(layer, LayerSlot::KNorm);
        let view = parts.weights.get(slot, Param::Weight).expect("there are norms on keys");
        let values = view.read::<f32>().expect("they are finite");
        let clipped = values.iter().flat_map(|value| bf16::from_f32(value.clamp(-limit, limit)).to_le_bytes());
        let data: Vec<u8> = clipped.collect();
        drop(view);
        parts.weights.replace(slot, Param::Weight, Dtype::BF16, Arc::from(data));
    }
    parts
}

/// Mean KL divergence of a run in which only `rounded` is rounded.
fn cost(rounded: Rounded, limit: Option<f32>) -> f64 {
    let options = LoadOptions::default();
    let quantize = match rounded {
        Rounded::Activations(_, quantize) => quantize,
        _ => None,
    };
    let parts = extreme(quantize, limit);
    let mut fused = fused(&parts, &options, (rounded == Rounded::KeysInBf16).then_some(Planted::KeysInBf16));
    let passages = Passages::new(None, None, parts.spec.vocab_size).expect("ids can be drawn");
    let storage = fused.kv_cache();
    let batch = batches::first(&passages, &parts.spec, storage, Thoroughness::Normal, true);
    let exact = fused.plan().exact();
    let subject = parts.subject(None);
    let mut standard = subject.standard(ComputeDtype::F32, storage).expect("standard kernels run");
    let (truth, _) = Truth::observe(&mut standard, &mut fused, &[&exact], batch, &parts.threads).expect("it runs");
    let run = match rounded {
        Rounded::Weights(file_type) => {
            let parts = extreme(Some(file_type), limit);
            let subject = parts.subject(None);
            let mut standard = subject.standard(ComputeDtype::F32, storage).expect("standard kernels run");
            truth.run(&mut standard, &exact)
        }
        Rounded::Everything => {
            truth.run(&mut subject.standard(ComputeDtype::BF16, storage).expect("standard kernels run"), &exact)
        }
        _ => truth.run(&mut fused, &planned(exact, rounded)),
    };
    run.expect("it runs").divergence.kl_mean
}

fn planned(mut plan: KernelPlan, rounded: Rounded) -> KernelPlan {
    match rounded {
        Rounded::Keys(dtype) => plan.kv_dtypes.fill(dtype),
        Rounded::Activations(level, _) => {
            // Projections of another type, such as those whose rows are no whole blocks, stay exact.
            let stored = |dtype: Dtype| match level {
                NumericLevel::Int8 | NumericLevel::Int16 => dtype.is_quantized(),
                _ => dtype == Dtype::BF16,
            };
            for planned in plan.projections.iter_mut().filter(|planned| stored(planned.dtype)) {
                planned.level = level;
            }
        }
        _ => {}
    }
    plan
}

/// The predecessors of this project took reordered sums for a limit of tiled computation. `BRAIDINFER_BLESS=1` writes
/// the table of `docs/numerics.md`.
#[test]
fn reordering_sums_is_harmless_and_rounding_keys_is_not() {
    let costs: Vec<[f64; 2]> =
        ROUNDINGS.iter().map(|(_, rounded)| [cost(*rounded, None), cost(*rounded, Some(CLIPPED))]).collect();
    let of =
        |wanted: Rounded| costs[ROUNDINGS.iter().position(|(_, rounded)| *rounded == wanted).expect("it is listed")];
    assert!(of(Rounded::Sums)[0] < 1e-8, "{:e}", of(Rounded::Sums)[0]);
    assert!(of(Rounded::KeysInBf16)[0] > 10.0 * of(Rounded::Keys(KvDtype::F16))[0]);
    assert!(of(Rounded::KeysInBf16)[0] > 1e5 * of(Rounded::Keys(KvDtype::F32))[0]);
    assert!(of(Rounded::KeysInBf16)[0] > 5.0 * of(Rounded::KeysInBf16)[1], "clipping the weights takes it away");
    if std::env::var_os("BRAIDINFER_BLESS").is_some() {
        write_table(&costs);
    }
}

/// Limit for key norm weights: about twice their median.
const CLIPPED: f32 = 5.0;

fn write_table(costs: &[[f64; 2]]) {
    let mut table = String::from("| rounded, alone | mean KL, weights up to 96.5 | clipped to 5 |\n|---|---|---|\n");
    for ((name, _), [extreme, clipped]) in ROUNDINGS.iter().zip(costs) {
        writeln!(table, "| {name} | {extreme:.1e} | {clipped:.1e} |").expect("a string takes text");
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/numerics.md");
    let page = std::fs::read_to_string(&path).expect("the page exists");
    let (before, rest) = page.split_once("<!-- roundings -->\n").expect("the page has a start marker");
    let (_, after) = rest.split_once("<!-- end of roundings -->").expect("the page has an end marker");
    std::fs::write(&path, format!("{before}<!-- roundings -->\n{table}<!-- end of roundings -->{after}"))
        .expect("the page can be written");
}
