//! The check: no false alarm on what is healthy, and every fault that is planted in fused kernels found where it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::planted::{FAULTS, SWAPS, swapped};
use crate::support::{Fixture, Fused};
use braidinfer::compat::{CompatReport, Precision, RunKind, Status, Subject, Thoroughness};
use braidinfer::executor::{ActiveKernels, Decoder, Kernels, KvDtype};
use braidinfer::kernels::NumericLevel;
use braidinfer::model::quantization::FileType;
use braidinfer::model::{DecoderSpec, Description, ModelSource, Weights};
use braidinfer::{Llm, LoadOptions, Prompt, SamplingParams, Threads};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;

/// What `auto` starts from.
fn fastest() -> Fused {
    Fused { coarsest: NumericLevel::Int8, kv_dtype: KvDtype::F16, ..Fused::exact() }
}

/// The verdict on `fused`, measured against the true description.
fn check(fixture: &Fixture, fused: &mut Decoder<'_>) -> CompatReport {
    let Description { spec, names } = fixture.description();
    let weights = Weights::open(&fixture.source, &spec, &names).expect("the fixture is whole");
    verdict(&spec, &weights, fused, Thoroughness::Normal)
}

fn verdict(spec: &DecoderSpec, weights: &Weights, fused: &mut Decoder<'_>, how: Thoroughness) -> CompatReport {
    let threads = Threads::new(Some(2)).expect("threads can be had");
    let (tokenizer, chat_template, reference) = (None, None, None);
    let subject = Subject {
        label: "test".into(),
        spec,
        weights,
        tokenizer,
        chat_template,
        threads: &threads,
        adapters: &[],
        adapter: None,
        reference,
    };
    subject.check(fused, how, Precision::Auto).expect("the check runs").report
}

/// Layer and activation of the first fault, by the report's reason.
fn place(report: &CompatReport) -> String {
    let of = report.layers.iter().find_map(|layer| Some(format!("{} {}", layer.layer, layer.fault.as_ref()?)));
    let quoted = || report.reason.split('`').nth(1).map(str::to_owned);
    of.or_else(quoted).unwrap_or_default()
}

#[test]
fn every_fixture_keeps_its_verdict() {
    for fixture in Fixture::all() {
        let report = check(&fixture, &mut fixture.fused(fastest()));
        let extreme = fixture.name == "qwen3-extreme";
        let what = format!("{}: {}", fixture.name, report.reason);
        assert_eq!(report.status, Status::Compatible, "{what}");
        let predicted = if extreme { Status::Incompatible } else { Status::Compatible };
        assert_eq!(report.predicted.status, predicted, "{what}");
        // What auto runs is close enough to change nothing, and no more exact than that takes.
        let found = report.measured_divergence().expect("the plan was measured");
        assert!(found.disagreements == 0 && found.kl_mean <= 1e-5, "{what}");
        let exact = report.plan.iter().filter(|entry| entry.kv.as_deref() == Some("f32")).count();
        // Where a small difference changes which experts run, everything may have to be exact.
        let chooses = (0..report.layers.len()).any(|layer| fixture.spec().experts(layer).is_some());
        let enough = if extreme { exact > report.layers.len() / 2 } else { chooses || exact < report.layers.len() };
        assert!(enough, "{what}");
    }
}

#[test]
fn keys_and_values_in_eight_bits_serve_healthy_models() {
    for name in ["llama", "qwen3", "gemma2", "gemma3n", "deepseek_v3", "falcon_h1"] {
        let fixture = Fixture::open(name);
        let report = check(&fixture, &mut fixture.fused(Fused { kv_dtype: KvDtype::Q8_0, ..fastest() }));
        assert_eq!(report.status, Status::Compatible, "{name}: {}", report.reason);
        let kept = report.plan.iter().filter_map(|entry| entry.kv.as_deref());
        assert!(kept.clone().count() > 0 && kept.clone().all(|kv| kv == "q8_0"), "{name}: {}", report.reason);
        assert!(report.reason.contains("K/V q8_0") && !report.reason.contains("finer"), "{name}: {}", report.reason);
    }
}

#[test]
fn types_of_keys_and_values_are_refused_where_they_are_not_to_be_had() {
    let fixture = Fixture::open("llama");
    let open = |options: LoadOptions| match Llm::open(&fixture.source, &options, &|_, _| {}) {
        Ok(_) => panic!("it opens"),
        Err(error) => error.to_string(),
    };
    let asked = LoadOptions { kv_dtype: Some(KvDtype::Q8_0), ..LoadOptions::default() };
    let standard = open(LoadOptions { kernels: Kernels::Standard, ..asked.clone() });
    assert!(standard.contains("kv_dtype") && standard.contains("standard") && standard.contains("q8_0"), "{standard}");
    let f16 = LoadOptions { kernels: Kernels::Standard, kv_dtype: Some(KvDtype::F16), ..LoadOptions::default() };
    assert!(open(f16).contains("f32, their own"));
    let exact = open(LoadOptions { precision: Precision::Exact, ..asked.clone() });
    assert!(exact.contains("kv_dtype") && exact.contains("f32 or f16"), "{exact}");
    let forced = LoadOptions { kernels: Kernels::Fused, force: true, ..asked };
    let llm = Llm::open(&fixture.source, &forced, &|_, _| {}).expect("it is used as asked");
    assert!(llm.notes().iter().any(|note| note.contains("keys and values in q8_0")), "{:?}", llm.notes());
}

#[test]
fn the_extreme_model_is_predicted_bad_and_measured_good() {
    let fixture = Fixture::open("qwen3-extreme");
    let report = check(&fixture, &mut fixture.fused(fastest()));
    let predicted = &report.predicted;
    assert!(predicted.score < 0.05, "{}", predicted.score);
    assert_eq!(predicted.max_weight, Some(96.5));
    let ratio = predicted.max_ratio.expect("there are norms on keys");
    assert!((ratio - 42.0).abs() < 1.0, "{ratio}");
    let kl = |kind| report.run(kind).expect("the run was made").divergence.kl_mean;
    assert!(1000.0 * kl(RunKind::Plan) < kl(RunKind::Checkpoint), "{:e}", kl(RunKind::Plan));

    let options = LoadOptions { kernels: Kernels::Auto, ..LoadOptions::default() };
    let mut llm = Llm::open(&fixture.source, &options, &|_, _| {}).expect("the fixture opens");
    assert_eq!(llm.kernels(), ActiveKernels::Fused);
    for prompt in &fixture.prompts {
        let params = SamplingParams {
            temperature: 0.0,
            max_tokens: Some(prompt.greedy.len()),
            ignore_eos: true,
            ..SamplingParams::default()
        };
        let answers = llm.generate(&[Prompt::Ids(prompt.ids.clone())], &params).expect("the prompt runs");
        assert_eq!(answers[0].ids, prompt.greedy);
    }
}

/// As in Qwen2.5 0.5B: eight bits of large keys that hardly differ leave little of what sets them apart.
#[test]
fn the_layer_with_large_keys_keeps_finer_ones() {
    let fixture = Fixture::open("qwen2");
    for (layer, factor) in [(0, 100.0), (0, 1e4), (1, 1000.0)] {
        let folder = tempfile::tempdir().expect("there is room");
        let source = altered(&fixture, folder.path(), |name, values| {
            if name.contains(&format!("layers.{layer}.")) && name.contains("k_proj.bias") {
                scale(values, factor);
            }
        });
        let options = LoadOptions { kv_dtype: Some(KvDtype::Q8_0), ..LoadOptions::default() };
        let depth = braidinfer::CheckDepth::Measured(Thoroughness::Normal);
        let report = braidinfer::check(&source, &options, depth, &|_, _| {}).expect("the check runs").0;
        assert_eq!(report.status, Status::Compatible, "{layer} {factor}: {}", report.reason);
        let kept: Vec<bool> =
            report.plan.iter().filter_map(|entry| entry.kv.as_deref()).map(|kv| kv == "q8_0").collect();
        assert_eq!(kept, [layer != 0, layer != 1], "{factor}: {}", report.reason);
        let said = format!("K/V finer than q8_0 in 1 of 2 layers ({layer})");
        assert!(report.reason.contains(&said), "{factor}: {}", report.reason);
    }
}

/// The first activations that a fault may change.
fn expected_place(fault: &str) -> &'static [&'static str] {
    match fault {
        _ if fault.starts_with("RoPE") || fault.starts_with("longrope") || fault.starts_with("yarn") => {
            &["attn.q_rope"]
        }
        "rope_theta of another family" | "one rotary table for all layers" | "rotary tables swapped" => {
            &["attn.q_rope"]
        }
        "dynamic: as if never longer than the original" | "NoPE layers inverted" => &["attn.q_rope"],
        "full instead of partial rotation" | "query scale by position left out" => &["attn.q_rope"],
        // After RoPE in some architectures.
        "query/key norm left out" => &["attn.q_norm", "attn.q_rope"],
        "query/key norm on the other side of RoPE" => &["attn.q_norm", "attn.q_rope"],
        "query and key norm swapped" => &["attn.q_norm"],
        "proportional RoPE as a partial rotation" => &["attn.q_rope"],
        "norm of values left out" | "keys and values of another earlier layer" => &["attn.heads"],
        "inputs for each layer left out" | "factor at the end of a layer left out" => &["output"],
        _ if fault.ends_with("for each layer left out") => &["per_layer.input"],
        "norm of the router's input left out" | "factor of the router's norm left out" => &["ffn.router"],
        "factor of each expert left out" => &["ffn.routing"],
        "norms before dense network and experts swapped" => &["ffn.norm"],
        "norms of dense network and experts left out" | "norms after dense network and experts swapped" => &["ffn.out"],
        "norm after a layer's input swapped" => &["ffn.out"],
        // Queries are computed from narrower vectors in some architectures only.
        _ if fault.starts_with("norms within latent attention") => &["attn.q", "attn.k"],
        "biases of q, k, v left out" => &["attn.q"],
        "key and value projection swapped" => &["attn.k"],
        "strength and decay of a delta net swapped" => &["delta.b"],
        "bias of the attention output left out" => &["attn.out"],
        // Inputs of all layers are computed from embeddings, before them.
        "embedding scale left out" | "embedding scaled where it is not" => &["embed", "per_layer.input"],
        _ if fault.contains("logit soft cap") || fault.contains("logits_scaling") => &["logits"],
        "bias of the output head left out" => &["logits"],
        _ if fault.starts_with("window") || fault.starts_with("attention s") => &["attn.heads"],
        "layer pattern inverted" => &["attn.heads"],
        _ if fault.starts_with("halves") => &["ffn.norm"],
        "residual multiplier left out" | "norm on the attention output left out" => &["attn.residual"],
        "norms after the halves swapped" => &["attn.residual"],
        "norms before the halves swapped" | "RMS instead of layer norm" => &["input_norm"],
        // Where a block has no norm before its halves, those on queries come first; where there are several residual
        // streams, that of their router, which they are predicted with.
        _ if fault.starts_with("norm weight") => &["input_norm", "attn.q_norm", "altup.predicted"],
        // Small enough in some models to show only where the softmax amplifies it.
        _ if fault.starts_with("norm eps") => &["input_norm", "attn.q_norm", "attn.heads", "altup.predicted"],
        "the first residual stream is the active one" | "factor of the streams' router left out" => {
            &["altup.predicted"]
        }
        "norm of the streams' router swapped" => &["altup.predicted"],
        "projections between streams divided by no less than 1" => &["embed"],
        // It is part of what gates the layer's further input.
        "factor of the corrected stream left out" => &["per_layer.out"],
        "norm of the low-rank branch swapped" => &["laurel.out"],
        _ if fault.contains("low-rank branch left out") => &["attn.residual"],
        "gates of heads left out" => &["attn.out"],
        "sparsity left out" | "values cut at their mean" => &["ffn.out"],
        "norm on the feed-forward output left out" | "biases of the feed-forward part left out" => &["ffn.out"],
        "gate and up projection swapped"
        | "erf instead of tanh GELU"
        | "tanh GELU instead of SiLU"
        | "ReLU that is not squared"
        | "tanh GELU instead of xIELU"
        | "slope of clamped SwiGLU left out"
        | "limit of clamped SwiGLU left out" => &["ffn.out"],
        "attention sinks left out" => &["attn.heads"],
        "biases of short convolutions left out" => &["conv.bcx"],
        "value heads of delta nets in another order" => &["delta.heads"],
        _ if fault.starts_with("norm of Mamba-2") => &["mamba.gated"],
        "biases of Mamba-2's projections left out" | "factors of Mamba-2's inputs left out" => &["mamba.zxbcdt"],
        _ if fault.contains("Mamba-2's") || fault.starts_with("rates of decay") => &["mamba.heads"],
        "factors of branches left out" => &["attn.residual"],
        "factor of the gate left out" => &["ffn.out"],
        "bias of the router left out" => &["ffn.router"],
        "scores by another function" | "correction of the choice left out" => &["ffn.choice_scores", "ffn.routing"],
        "one expert fewer" | "SparseMixer's noise of another model" => &["ffn.routing"],
        _ if fault.starts_with("weights of experts") || fault.starts_with("factor of the experts") => &["ffn.routing"],
        _ if fault.starts_with("groups of experts") => &["ffn.routing"],
        _ if fault.contains("shared expert") => &["ffn.out"],
        _ => &[],
    }
}

/// Of the weights of each fixture: as they are, and in two other orders, which are other models of the same kind.
const SEEDS: [Option<u64>; 3] = [None, Some(31), Some(32)];

#[test]
fn faults_in_the_description_are_found_in_their_place() {
    let mut missed = Vec::new();
    for fixture in Fixture::all() {
        for seed in SEEDS {
            let folder = tempfile::tempdir().expect("there is room");
            match seed {
                None => note_missed(&fixture, seed, &mut missed),
                // Its values are no 16-bit ones.
                Some(_) if fixture.name == "llama-f32" => {}
                Some(seed_of_order) => {
                    let mut rng = Pcg64::seed_from_u64(seed_of_order);
                    let source = altered(&fixture, folder.path(), |_, values| values.shuffle(&mut rng));
                    let name = fixture.name.clone();
                    let reseeded = Fixture { name, source, prompts: Vec::new(), logits: Vec::new() };
                    note_missed(&reseeded, seed, &mut missed);
                }
            }
        }
    }
    assert!(missed.is_empty(), "not found:\n{}", missed.join("\n"));
}

/// Plants every fault that a model can have, and notes those that are not found where they are.
fn note_missed(fixture: &Fixture, seed: Option<u64>, missed: &mut Vec<String>) {
    let Description { spec, names } = fixture.description();
    let mut note = |fault: &'static str, mut fused: Decoder<'static>| {
        // What loading does, for the models that were made here.
        let how = if seed.is_some() { Thoroughness::Brief } else { Thoroughness::Normal };
        let weights = Weights::open(&fixture.source, &spec, &names).expect("the fixture is whole");
        let report = verdict(&spec, &weights, &mut fused, how);
        let place = place(&report);
        if !expected_place(fault).contains(&place.split(' ').next_back().unwrap_or_default()) {
            missed.push(format!("{fault} in {} {seed:?}: at `{place}`", fixture.name));
        }
        if report.status != Status::Incompatible || report.kernels() == ActiveKernels::Fused {
            missed.push(format!("{fault} in {} {seed:?}: {}", fixture.name, report.reason));
        }
    };
    for (fault, plant) in FAULTS {
        let mut faulty = spec.clone();
        plant(&mut faulty);
        // Fixtures are made so that groups matter; with other weights they need not change any choice.
        let may_not_matter = seed.is_some() && fault.starts_with("groups of experts");
        // What is checked is given positions that only models without recurrent states can jump to, and the residual
        // streams of the reference.
        let keeps = |spec: &DecoderSpec| {
            let recurrent = (0..spec.layers.len()).filter(|layer| spec.is_recurrent(*layer)).count();
            (recurrent, spec.streams())
        };
        if faulty != spec && !may_not_matter && keeps(&faulty) == keeps(&spec) {
            let weights = Weights::open(&fixture.source, &faulty, &names).expect("there is enough for the fault");
            note(fault, fixture.fused_over(fastest(), faulty, &weights));
        }
    }
    for (fault, a, b) in SWAPS {
        let Some(names) = swapped(fixture, *a, *b) else { continue };
        let weights = Weights::open(&fixture.source, &spec, &names).expect("both have one shape");
        note(fault, fixture.fused_over(fastest(), spec.clone(), &weights));
    }
}

/// A copy of a fixture with other values in the tensors that `change` replaces.
fn altered(fixture: &Fixture, folder: &Path, mut change: impl FnMut(&str, &mut [u16])) -> ModelSource {
    let ModelSource::Directory(dir) = &fixture.source else { panic!("fixtures are directories") };
    for entry in fs::read_dir(dir).expect("the fixture can be listed") {
        let path = entry.expect("the fixture can be listed").path();
        let name = path.file_name().expect("files have names").to_owned();
        let mut bytes = fs::read(&path).expect("the file can be read");
        if path.extension().is_some_and(|extension| extension == "safetensors") && name != "expected.safetensors" {
            alter(&mut bytes, &mut change);
        }
        fs::write(folder.join(name), bytes).expect("the copy can be written");
    }
    ModelSource::open(folder).expect("the copy is a model")
}

/// Hands every tensor of a safetensors file with 16-bit values to `change`, and codes of 4 bits as words of four of them.
/// Corrections of routers have 32 bits; scales of codes stay.
fn alter(file: &mut [u8], change: &mut impl FnMut(&str, &mut [u16])) {
    let (len, header) = safetensors::SafeTensors::read_metadata(file).expect("the file is safetensors");
    // In one order in every run, so that a seed gives one model.
    let tensors: BTreeMap<_, _> = header.tensors().into_iter().collect();
    for (name, info) in tensors {
        if info.dtype.bitsize() != 16 && !name.ends_with("_blocks") {
            let others = ["mlp.gate", "correction_bias", "expert_bias", "_scales"];
            assert!(others.iter().any(|other| name.contains(other)), "{name}");
            continue;
        }
        let (start, end) = info.data_offsets;
        let data = &mut file[8 + len..][start..end];
        let mut values: Vec<u16> = data.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
        change(&name, &mut values);
        for (to, value) in data.as_chunks_mut().0.iter_mut().zip(values) {
            *to = value.to_le_bytes();
        }
    }
}

fn scale(values: &mut [u16], factor: f32) {
    for value in values {
        *value = half::bf16::from_f32(half::bf16::from_bits(*value).to_f32() * factor).to_bits();
    }
}

fn verdict_of(source: &ModelSource, quantize: Option<FileType>) -> CompatReport {
    verdict_at(source, quantize, Precision::Auto, Thoroughness::Normal)
}

fn verdict_at(
    source: &ModelSource,
    quantize: Option<FileType>,
    precision: Precision,
    how: Thoroughness,
) -> CompatReport {
    let options = LoadOptions { quantize, precision, ..LoadOptions::default() };
    let depth = braidinfer::CheckDepth::Measured(how);
    braidinfer::check(source, &options, depth, &|_, _| {}).expect("the check runs").0
}

#[test]
fn reseeded_models_raise_no_alarm() {
    const SEEDS: u64 = 20;
    for fixture in Fixture::all() {
        // The keys of one are meant to be extreme, and have a test of their own; another one has no 16-bit values.
        if ["qwen3-extreme", "llama-f32"].contains(&&*fixture.name) {
            continue;
        }
        for seed in 0..SEEDS {
            let folder = tempfile::tempdir().expect("there is room");
            let mut rng = Pcg64::seed_from_u64(seed);
            // The same values in another order are another model of the same kind.
            let source = altered(&fixture, folder.path(), |_, values| values.shuffle(&mut rng));
            let quantize = (seed % 2 == 1).then_some(FileType::Q8_0);
            let precision = if seed % 4 < 2 { Precision::Exact } else { Precision::Auto };
            let report = verdict_at(&source, quantize, precision, Thoroughness::Brief);
            assert_eq!(report.status, Status::Compatible, "{} seed {seed}: {}", fixture.name, report.reason);
            let found = report.measured_divergence().expect("the plan was measured");
            assert_eq!(found.disagreements, 0, "{} seed {seed}: {}", fixture.name, report.reason);
        }
    }
}

/// What multiplies the key norm of the bad layer.
const INFLATED: f32 = 40.0;

#[test]
fn one_bad_layer_is_raised_alone() {
    let fixture = Fixture::open("qwen3");
    let folder = tempfile::tempdir().expect("there is room");
    let source = altered(&fixture, folder.path(), |name, values| {
        if name.contains("layers.0.") && name.contains("k_norm") {
            scale(values, INFLATED);
        }
    });
    let report = verdict_of(&source, None);
    assert_eq!(report.status, Status::Compatible, "{}", report.reason);
    let kv: Vec<&str> = report.plan.iter().filter_map(|entry| entry.kv.as_deref()).collect();
    assert!(kv[0] == "f32" && kv[1..].iter().all(|kv| *kv == "f16"), "{kv:?}: {}", report.reason);
    let kl = |kind| report.run(kind).expect("the run was made").divergence.kl_mean;
    assert!(5.0 * kl(RunKind::Plan) < kl(RunKind::Fastest), "{:e}", kl(RunKind::Plan));
    let speed = report.measured.as_ref().and_then(|measured| measured.speed).expect("a plan's speed is measured");
    assert!(speed.fastest_tok_s > 0.0 && speed.plan_tok_s > 0.0);
}

/// What multiplies the biases of keys; those of Qwen2 are in the hundreds.
const BIASES: [f32; 2] = [100.0, 1000.0];

#[test]
fn large_biases_of_keys_are_no_fault() {
    let fixture = Fixture::open("qwen2");
    for factor in BIASES {
        let folder = tempfile::tempdir().expect("there is room");
        let source = altered(&fixture, folder.path(), |name, values| {
            if name.contains("k_proj.bias") {
                scale(values, factor);
            }
        });
        let report = verdict_of(&source, None);
        assert!(report.layers.iter().all(|layer| layer.fault.is_none()), "{factor}: {}", report.reason);
        assert_eq!(report.status, Status::Compatible, "{factor}: {}", report.reason);
    }
}
