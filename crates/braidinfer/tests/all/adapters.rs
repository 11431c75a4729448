//! Low-rank adapters: the logits of peft, the same bits in any company, and errors that name what is not supported.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::{Fixture, Fused, argmax, bits, distance, fixtures, read_json, slice};
use braidinfer::engine::Pooling;
use braidinfer::executor::{Batch, Decoder, Kernels, KvDtype, NoProbe, SequenceSlice};
use braidinfer::kernels::NumericLevel;
use braidinfer::model::quantization::FileType;
use braidinfer::model::{Adapter, LayerSlot, LowRank, ModelSource, Slot};
use braidinfer::{
    AdapterOptions, GenerateRequest, KvCacheRoom, Llm, LoadOptions, Output, SamplingParams, SavedPrefixes, Threads,
    quantize,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use serde_json::{Value, json};

/// Largest allowed difference of a logit from that of peft.
const TOLERANCE: f32 = 5e-4;
/// An adapter that moves no logit further than this would show nothing.
const LEAST_MOVE: f32 = 0.05;
/// Bytes that adapters may take.
const MOST: usize = 1 << 24;

#[derive(Deserialize)]
struct Expected {
    ids: Vec<u32>,
}

/// An adapter for a fixture, with what peft computed for both.
struct AdapterFixture {
    name: String,
    base: Fixture,
    adapter: Arc<Adapter>,
    ids: Vec<u32>,
    /// `[positions][vocab_size]`.
    logits: Vec<Vec<f32>>,
}

fn folder(name: &str) -> PathBuf {
    fixtures().join("adapters").join(name)
}

impl AdapterFixture {
    fn open(name: &str) -> Self {
        let base = Fixture::open(name);
        let adapter =
            Adapter::open(&folder(name), &base.source, MOST).unwrap_or_else(|error| panic!("{name}: {error}"));
        let Expected { ids } = read_json(folder(name).join("expected.json"));
        let bytes = fs::read(folder(name).join("expected.safetensors")).expect("there are expected logits");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("they are safetensors");
        let tensor = tensors.tensor("logits").expect("they have a name");
        let values = tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let logits = values.collect::<Vec<_>>().chunks(tensor.shape()[1]).map(<[f32]>::to_vec).collect();
        Self { name: name.to_owned(), base, adapter: Arc::new(adapter), ids, logits }
    }

    fn all() -> Vec<Self> {
        let entries = fs::read_dir(fixtures().join("adapters")).expect("the fixtures are in the repository");
        let names = entries.map(|entry| entry.expect("it can be listed").path()).filter(|path| path.is_dir());
        let mut names: Vec<String> =
            names.map(|path| path.file_name().expect("it has a name").to_string_lossy().into_owned()).collect();
        names.sort();
        assert!(names.len() >= 50, "expected at least 50 adapters, found {}", names.len());
        names.iter().map(|name| Self::open(name)).collect()
    }

    /// Logits of every position with an adapter of the decoder, or with none.
    fn read(&self, decoder: &mut Decoder<'_>, adapter: Option<u32>) -> Vec<Vec<f32>> {
        read(decoder, &self.ids, adapter)
    }

    /// An adapter of the same modules with other values.
    fn other(&self, seed: u64) -> Arc<Adapter> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut values = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.random_range(-0.3..0.3)).collect() };
        let mut modules: BTreeMap<Slot, LowRank> = BTreeMap::new();
        for (slot, low_rank) in self.adapter.modules() {
            // More columns than a panel has, in some.
            let rank = if modules.len().is_multiple_of(2) { 19 } else { 1 };
            let (inputs, outputs) = (low_rank.a.len() / low_rank.rank, low_rank.b.len() / low_rank.rank);
            let (a, b) = (values(rank * inputs), values(rank * outputs));
            modules.insert(*slot, LowRank { rank, scale: 0.7, a, b });
        }
        Arc::new(Adapter::of("other", modules))
    }
}

fn read(decoder: &mut Decoder<'_>, ids: &[u32], adapter: Option<u32>) -> Vec<Vec<f32>> {
    let mut batch = Batch::default();
    let slice = SequenceSlice { adapter, ..slice(0, 0, ids.len(), ids.len()) };
    batch.push(ids, slice, ids.len());
    let logits = decoder.forward(&batch, &mut NoProbe).expect("the batch runs").logits;
    (0..logits.rows()).map(|row| logits.row(row).to_vec()).collect()
}

fn largest_distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| distance(a, b)).fold(0.0, f32::max)
}

#[test]
fn logits_equal_those_of_peft_on_both_kinds_of_kernels() {
    for fixture in AdapterFixture::all() {
        let with = |decoder: Decoder<'static>| {
            decoder.with_adapters(std::slice::from_ref(&fixture.adapter)).expect("it is for this model")
        };
        let decoders =
            [("standard", with(fixture.base.standard())), ("fused", with(fixture.base.fused(Fused::exact())))];
        for (kernels, mut decoder) in decoders {
            let adapted = fixture.read(&mut decoder, Some(0));
            let found = largest_distance(&adapted, &fixture.logits);
            assert!(found <= TOLERANCE, "{}, {kernels} kernels: logits differ by {found:e}", fixture.name);
            let plain = fixture.read(&mut decoder, None);
            let moved = largest_distance(&adapted, &plain);
            assert!(moved > LEAST_MOVE, "{}, {kernels} kernels: the adapter moves logits by {moved:e}", fixture.name);
        }
    }
}

/// Two adapters and the model alone in one batch, in chunks of several sizes, on all kinds of layers.
#[test]
fn sequences_with_different_adapters_have_the_same_bits_as_alone() {
    let coarse = Fused { coarsest: NumericLevel::Int8, kv_dtype: KvDtype::F16, threads: 3, ..Fused::exact() };
    for name in
        ["llama", "qwen3", "gemma3n", "deepseek_v3", "gpt_oss", "qwen3_next", "falcon_h1", "lfm2", "phi3", "qwen2_moe"]
    {
        let fixture = AdapterFixture::open(name);
        for how in [Fused::exact(), coarse] {
            let adapters = [Arc::clone(&fixture.adapter), fixture.other(7)];
            let mut decoder = fixture.base.fused(how).with_adapters(&adapters).expect("they are for this model");
            let sequences = [Some(0), None, Some(1), Some(0), None];
            let ids: Vec<Vec<u32>> = (0..sequences.len())
                .map(|index| fixture.ids.iter().skip(index).chain(&fixture.ids[..index]).copied().collect())
                .collect();
            let alone: Vec<_> =
                sequences.iter().zip(&ids).map(|(adapter, ids)| read(&mut decoder, ids, *adapter)).collect();
            let mut together = vec![Vec::new(); sequences.len()];
            let (mut start, len) = (0, fixture.ids.len());
            while start < len {
                let end = len.min(start + 5);
                let mut batch = Batch::default();
                for (index, adapter) in sequences.iter().enumerate() {
                    let own = SequenceSlice { adapter: *adapter, ..slice(index, start, end - start, len) };
                    batch.push(&ids[index][start..end], own, end - start);
                }
                let logits = decoder.forward(&batch, &mut NoProbe).expect("the batch runs").logits;
                for row in 0..logits.rows() {
                    together[row / (end - start)].push(logits.row(row).to_vec());
                }
                start = end;
            }
            for (index, (alone, together)) in alone.iter().zip(&together).enumerate() {
                assert_eq!(bits(alone), bits(together), "{name}, sequence {index}, {:?}", how.coarsest);
            }
            assert!(largest_distance(&alone[0], &alone[3]) > LEAST_MOVE, "{name}: the prompts differ");
        }
    }
}

/// Standard kernels compute a batch adapter by adapter.
#[test]
fn standard_kernels_keep_sequences_apart() {
    for name in ["llama", "gemma3n", "falcon_h1"] {
        let fixture = AdapterFixture::open(name);
        let adapters = [Arc::clone(&fixture.adapter), fixture.other(3)];
        let mut decoder = fixture.base.standard().with_adapters(&adapters).expect("they are for this model");
        let (len, wanted) = (fixture.ids.len(), [Some(1), None, Some(0), None]);
        let alone = wanted.map(|adapter| read(&mut decoder, &fixture.ids, adapter));
        let mut batch = Batch::default();
        for (index, adapter) in wanted.into_iter().enumerate() {
            batch.push(&fixture.ids, SequenceSlice { adapter, ..slice(index, 0, len, len) }, len);
        }
        batch.hidden_rows = vec![len, 3 * len];
        let outputs = decoder.forward(&batch, &mut NoProbe).expect("the batch runs");
        for (index, alone) in alone.iter().enumerate() {
            let rows: Vec<Vec<f32>> = (0..len).map(|row| outputs.logits.row(index * len + row).to_vec()).collect();
            let found = largest_distance(alone, &rows);
            assert!(found <= TOLERANCE, "{name}, sequence {index}: logits differ by {found:e}");
        }
        // Both are the first token of the model alone.
        assert!(distance(&outputs.hidden[0], &outputs.hidden[1]) < TOLERANCE, "{name}: hidden states are mixed up");
    }
}

#[test]
fn a_batch_that_names_an_unknown_adapter_is_refused() {
    let fixture = AdapterFixture::open("llama");
    for mut decoder in [fixture.base.standard(), fixture.base.fused(Fused::exact())] {
        let mut batch = Batch::default();
        batch.push(&fixture.ids, SequenceSlice { adapter: Some(0), ..slice(0, 0, 12, 12) }, 1);
        let error = decoder.forward(&batch, &mut NoProbe).expect_err("there is none").to_string();
        assert!(error.contains("adapter"), "{error}");
    }
}

/// The model of a fixture as a GGUF file, in f32.
fn as_gguf(base: &ModelSource, to: &Path) -> ModelSource {
    let threads = Threads::new(Some(2)).expect("threads can be had");
    quantize(base, to, FileType::F32, false, &threads, &mut |_, _| ControlFlow::Continue(()))
        .expect("it can be written");
    ModelSource::open(to).expect("it was written")
}

#[test]
fn adapters_of_peft_fit_models_in_gguf_and_the_reverse() {
    let folder_of_models = tempfile::tempdir().expect("there is room");
    // With rows in another order, without, and with stacked projections.
    for name in ["llama", "granite", "qwen3", "gemma2", "phi3", "qwen2_moe"] {
        let fixture = AdapterFixture::open(name);
        let gguf = as_gguf(&fixture.base.source, &folder_of_models.path().join(format!("{name}.gguf")));
        let adapter = Adapter::open(&folder(name), &gguf, MOST).unwrap_or_else(|error| panic!("{name}: {error}"));
        let base = Fixture { name: name.to_owned(), source: gguf, prompts: Vec::new(), logits: Vec::new() };
        let decoder = base.fused(Fused::exact()).with_adapters(&[Arc::new(adapter)]);
        let found = largest_distance(&fixture.read(&mut decoder.expect("it fits"), Some(0)), &fixture.logits);
        assert!(found <= TOLERANCE, "{name}: logits differ by {found:e}");
    }
    let fixture = AdapterFixture::open("llama");
    let path = fixtures().join("adapters/llama.gguf");
    let gguf = as_gguf(&fixture.base.source, &folder_of_models.path().join("again.gguf"));
    for source in [fixture.base.source.clone(), gguf] {
        let adapter = Adapter::open(&path, &source, MOST).unwrap_or_else(|error| panic!("{}: {error}", source.label()));
        let base = Fixture { name: "llama".into(), source, prompts: Vec::new(), logits: Vec::new() };
        let decoder = base.fused(Fused::exact()).with_adapters(&[Arc::new(adapter)]);
        let found = largest_distance(&fixture.read(&mut decoder.expect("it fits"), Some(0)), &fixture.logits);
        assert!(found <= TOLERANCE, "a GGUF adapter: logits differ by {found:e}");
    }
    let other = Adapter::open(&path, &Fixture::open("qwen3").source, MOST).expect_err("it is for llama").to_string();
    assert!(other.contains("llama") && other.contains("qwen3"), "{other}");
    let recurrent = as_gguf(&Fixture::open("qwen3_next").source, &folder_of_models.path().join("recurrent.gguf"));
    let error = Adapter::open(&folder("qwen3_next"), &recurrent, MOST).expect_err("its rows lie otherwise").to_string();
    assert!(error.contains("layout"), "{error}");
}

/// A copy of the adapter for llama whose settings, or tensors, are changed.
fn changed(settings: impl Fn(&mut Value), rename: impl Fn(&str) -> String) -> tempfile::TempDir {
    let (from, to) = (folder("llama"), tempfile::tempdir().expect("there is room"));
    let mut config: Value = read_json(from.join("adapter_config.json"));
    settings(&mut config);
    fs::write(to.path().join("adapter_config.json"), config.to_string()).expect("it can be written");
    let bytes = fs::read(from.join("adapter_model.safetensors")).expect("it is there");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("they are safetensors");
    let renamed: Vec<_> = tensors.tensors().into_iter().map(|(name, view)| (rename(&name), view)).collect();
    safetensors::serialize_to_file(renamed, None, &to.path().join("adapter_model.safetensors"))
        .expect("it can be written");
    to
}

#[test]
fn what_is_not_supported_is_named() {
    let base = Fixture::open("llama").source;
    let error = |folder: &Path| Adapter::open(folder, &base, MOST).expect_err("it is not supported").to_string();
    let same = |name: &str| name.to_owned();
    let of_settings = [
        ("use_dora", json!(true)),
        ("bias", json!("lora_only")),
        ("lora_bias", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("layer_replication", json!([[0, 2]])),
        ("trainable_token_indices", json!([3])),
        ("peft_type", json!("IA3")),
        ("r", json!(5)),
        ("rank_pattern", json!({"q_proj(": 2})),
        ("alpha_pattern", json!({"q_proj": "many"})),
        ("use_something_of_next_year", json!(true)),
        ("target_parameters", json!("q_proj.weight")),
    ];
    for (field, value) in of_settings {
        let folder = changed(|settings| settings[field] = value.clone(), same);
        let found = error(folder.path());
        let names = if field == "r" { "rank" } else { field.trim_end_matches("_pattern") };
        assert!(found.contains(names) || found.contains("q_proj"), "{field}: {found}");
    }
    let of_tensors = [
        ("lora_A.weight", "lora_magnitude_vector", "another kind"),
        ("self_attn.q_proj", "self_attn.other_proj", "self_attn.other_proj"),
        ("layers.1.", "layers.7.", "layers.7."),
        ("lm_head.lora_A", "embed_tokens.lora_embedding_A", "another kind"),
        ("lm_head.lora_A", "model.extra.lora_A", "only this one"),
        // Numbers of layers and modules that no model has.
        ("layers.0.self_attn.q_proj", "layers.99999999999999999999.mlp.experts", "none or not supported"),
        ("layers.0.self_attn.q_proj", "layers.999.mlp.experts.base_layer", "none or not supported"),
        ("layers.0.self_attn.q_proj", "layers.0.nonsense.experts", "none or not supported"),
    ];
    for (from, to, says) in of_tensors {
        let folder = changed(|_| {}, |name| name.replace(from, to));
        let found = error(folder.path());
        assert!(found.contains("model.") && found.contains(says), "{to}: {found}");
    }
    let swapped = changed(
        |_| {},
        |name| name.replace("gate_proj", "x").replace("down_proj", "gate_proj").replace(".x.", ".down_proj."),
    );
    assert!(error(swapped.path()).contains("shape"), "{}", error(swapped.path()));
    let small = Adapter::open(&folder("llama"), &base, 1 << 10).expect_err("there is no memory for it").to_string();
    assert!(small.contains("at most 1024 bytes"), "{small}");
    let without_weights = tempfile::tempdir().expect("there is room");
    fs::write(without_weights.path().join("adapter_config.json"), "{}").expect("it can be written");
    assert!(error(without_weights.path()).contains("adapter_model.safetensors"));
    fs::write(without_weights.path().join("adapter_model.bin"), "pickle").expect("it can be written");
    assert!(error(without_weights.path()).contains("pickle"));
    assert!(error(&fixtures().join("models/llama")).contains("adapter_config.json"));
    let model = ModelSource::open(folder("llama")).expect_err("it is no model").to_string();
    assert!(model.contains("with this folder as its adapter"), "{model}");
}

/// peft saves the weights of an adapted head beside its matrices.
#[test]
fn copies_of_what_the_base_has_are_compared_and_change_nothing() {
    let base = Fixture::open("llama3");
    let plain = Adapter::open(&folder("llama3"), &base.source, MOST).expect("it is sound");
    let head = fs::read(fixtures().join("models/llama3/model.safetensors")).expect("the base is there");
    let head = safetensors::SafeTensors::deserialize(&head).expect("it is safetensors");
    let head = head.tensor("lm_head.weight").expect("the head has weights of its own");
    let with = |name: &str, shape: Vec<usize>, data: &[u8]| {
        let copy = tempfile::tempdir().expect("there is room");
        let (settings, weights) = ("adapter_config.json", "adapter_model.safetensors");
        fs::copy(folder("llama3").join(settings), copy.path().join(settings)).expect("it can be copied");
        let bytes = fs::read(folder("llama3").join(weights)).expect("it is there");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("they are safetensors");
        let mut tensors = tensors.tensors();
        let added = safetensors::tensor::TensorView::new(head.dtype(), shape, data).expect("it is a tensor");
        tensors.push((name.to_owned(), added));
        safetensors::serialize_to_file(tensors, None, &copy.path().join(weights)).expect("it can be written");
        copy
    };
    let open = |folder: &tempfile::TempDir| {
        Adapter::open(folder.path(), &base.source, MOST).map_err(|error| error.to_string())
    };
    let (name, shape) = ("base_model.model.lm_head.base_layer.weight", head.shape().to_vec());
    let same = open(&with(name, shape.clone(), head.data())).expect("it changes nothing");
    assert_eq!(same.modules(), plain.modules());
    let mut other = head.data().to_vec();
    let last = other.len() - 1;
    // A bit of the exponent of the last value.
    other[last] ^= 0x40;
    let error = open(&with(name, shape.clone(), &other)).map(|_| ()).expect_err("it is another head");
    let row = format!("another value in row {}", shape[0] - 1);
    assert!(error.contains(&row) && error.contains(name), "{error}");
    let error = open(&with(name, vec![shape[0] * shape[1] / 16, 16], head.data())).map(|_| ());
    assert!(error.expect_err("its shape is another one").contains("vocabulary may have been changed"));
    let of_none = "base_model.model.model.norm.base_layer.weight";
    let error = open(&with(of_none, shape, head.data())).map(|_| ()).expect_err("norms have no adapters");
    assert!(error.contains("another module"), "{error}");
    // Quantized weights are near, and no more.
    let quantized = tempfile::tempdir().expect("there is room");
    let path = quantized.path().join("q8_0.gguf");
    let threads = Threads::new(Some(2)).expect("threads can be had");
    quantize(&base.source, &path, FileType::Q8_0, false, &threads, &mut |_, _| ControlFlow::Continue(()))
        .expect("it can be written");
    let gguf = ModelSource::open(&path).expect("it was written");
    let folder = with(name, head.shape().to_vec(), head.data());
    let near = Adapter::open(folder.path(), &gguf, MOST).expect("it fits");
    assert!(near.notes().iter().any(|note| note.contains("cannot be compared")), "{:?}", near.notes());
}

fn options(adapters: &[(&str, PathBuf)]) -> LoadOptions {
    let named = |(name, path): &(&str, PathBuf)| AdapterOptions { name: (*name).to_owned(), path: path.clone() };
    let threads = Some(2);
    LoadOptions { adapters: adapters.iter().map(named).collect(), threads, ..LoadOptions::default() }
}

/// A second adapter for llama: the first with another factor.
fn stronger() -> tempfile::TempDir {
    changed(|settings| settings["lora_alpha"] = json!(-4), str::to_owned)
}

fn answer(llm: &mut Llm, prompt: &[u32], adapter: Option<u32>) -> Vec<u32> {
    let params = SamplingParams { max_tokens: Some(12), ignore_eos: true, ..SamplingParams::default() };
    let wanted = GenerateRequest { params, adapter, ..GenerateRequest::default() };
    let request = llm.add_request(prompt.to_vec(), &wanted).expect("the request is sound");
    let mut ids = Vec::new();
    while llm.has_unfinished() {
        for event in llm.step().expect("the step runs") {
            assert_eq!(event.request, request);
            match event.output.expect("it is sampled") {
                Output::Token(token) => ids.push(token.id),
                Output::Embedding(_) => panic!("no vector was asked for"),
            }
        }
    }
    ids
}

/// Keys and values of one adapter are never those of another one, or of the model alone: in memory, on the disk, or in files.
#[test]
fn prompts_with_different_adapters_share_no_blocks() {
    let (source, second) = (Fixture::open("llama").source, stronger());
    let named = [("first", folder("llama")), ("second", second.path().to_owned())];
    let mut rng = SmallRng::seed_from_u64(11);
    let prompt: Vec<u32> = (0..60).map(|_| rng.random_range(0..256)).collect();
    let folder_of_prefixes = tempfile::tempdir().expect("there is room");
    let saved = SavedPrefixes::Folder { folder: folder_of_prefixes.path().to_owned(), most_bytes: 1 << 24 };
    let open = |saved: Option<SavedPrefixes>| {
        let options = LoadOptions { saved_prefixes: saved, ..options(&named) };
        Llm::open(&source, &options, &|_, _| {}).expect("it opens")
    };
    let wanted = [None, Some(0), Some(1)];
    let alone = wanted.map(|adapter| answer(&mut open(None), &prompt, adapter));
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2], "adapters change answers: {alone:?}");
    let mut llm = open(Some(saved.clone()));
    for round in 0..2 {
        for (adapter, expected) in wanted.into_iter().zip(&alone) {
            let before = llm.stats().prefix_hits;
            assert_eq!(answer(&mut llm, &prompt, adapter), *expected, "round {round}, {adapter:?}");
            assert_eq!(llm.stats().prefix_hits > before, round > 0, "round {round}, {adapter:?}");
        }
    }
    drop(llm);
    let mut restarted = open(Some(saved));
    for (adapter, expected) in wanted.into_iter().zip(&alone) {
        let before = restarted.stats().restored_blocks;
        assert_eq!(answer(&mut restarted, &prompt, adapter), *expected, "from the disk, {adapter:?}");
        assert!(restarted.stats().restored_blocks > before, "{adapter:?}: nothing was restored");
    }
    let mut llm = open(Some(SavedPrefixes::Files));
    let file = folder_of_prefixes.path().join("prompt");
    answer(&mut llm, &prompt, Some(1));
    assert_eq!(llm.save_prompt(&file, &prompt, Some(1)).expect("it can be saved"), 48);
    let mut other = open(Some(SavedPrefixes::Files));
    assert!(
        other.restore_prompt(&file, &prompt, Some(0)).is_err() && other.restore_prompt(&file, &prompt, None).is_err()
    );
    assert_eq!(other.restore_prompt(&file, &prompt, Some(1)).expect("it is there"), 48);
    assert_eq!(answer(&mut other, &prompt, Some(1)), alone[2]);
}

#[test]
fn embeddings_and_logits_know_adapters() {
    let fixture = AdapterFixture::open("llama");
    let mut llm =
        Llm::open(&fixture.base.source, &options(&[("first", folder("llama"))]), &|_, _| {}).expect("it opens");
    let logits = llm.logits_with(&fixture.ids, true, Some(0)).expect("they are computed");
    let likeliest = |rows: &[Vec<f32>]| rows.iter().map(|row| argmax(row)).collect::<Vec<_>>();
    assert_eq!(likeliest(&logits), likeliest(&fixture.logits));
    let mut vector = |adapter| {
        llm.add_embedding_for(Default::default(), fixture.ids.clone(), Pooling::Mean, adapter).expect("it is sound");
        let mut events = llm.step().expect("the step runs");
        match events.remove(0).output.expect("it is computed") {
            Output::Embedding(embedding) => embedding.values,
            Output::Token(_) => panic!("a vector was asked for"),
        }
    };
    let (with, without) = (vector(Some(0)), vector(None));
    assert!(distance(&with, &without) > 1e-3, "the adapter changes nothing");
    let unknown = llm.logits_with(&fixture.ids, false, Some(1)).expect_err("there is one adapter").to_string();
    assert!(unknown.contains("adapter"), "{unknown}");
}

/// Each adapter has a verdict of its own, about the plan that runs.
#[test]
fn adapters_have_verdicts_about_the_plan_that_runs() {
    let (source, second) = (Fixture::open("llama").source, stronger());
    let folder_of_verdicts = tempfile::tempdir().expect("there is room");
    let named = [("first", folder("llama")), ("second", second.path().to_owned())];
    let options = LoadOptions { verdicts: Some(folder_of_verdicts.path().to_owned()), ..options(&named) };
    let llm = Llm::open(&source, &options, &|_, _| {}).expect("it opens");
    let base = llm.compat().expect("it was checked");
    for adapter in llm.adapters() {
        let verdict = adapter.compat.as_ref().expect("it was checked");
        assert_eq!(verdict.adapter.as_ref(), Some(&adapter.label));
        assert_eq!(verdict.plan, base.plan, "{}: one plan runs, and every verdict is about it", adapter.name);
        let (own, of_base) = (verdict.measured.as_ref().expect("it was"), base.measured.as_ref().expect("it was"));
        assert!(own.loss != of_base.loss, "{}: measured without it", adapter.name);
        assert!(llm.notes().iter().any(|note| note.starts_with(&format!("with adapter {}: ", adapter.name))));
    }
    let again = Llm::open(&source, &options, &|_, _| {}).expect("it opens");
    assert!(again.notes().iter().filter(|note| note.contains("measured earlier")).count() == 3, "{:?}", again.notes());
    let standard = LoadOptions { kernels: Kernels::Standard, ..options };
    let standard = Llm::open(&source, &standard, &|_, _| {}).expect("it opens");
    assert!(standard.adapters().iter().all(|adapter| adapter.compat.is_none()));
}

/// What peft knows by the name of a parameter has patterns for that name.
#[test]
fn factors_follow_the_names_that_peft_knows_modules_by() {
    let base = Fixture::open("llama").source;
    let scale = |settings: &dyn Fn(&mut Value)| {
        let folder = changed(|config| settings(config), str::to_owned);
        let adapter = Adapter::open(folder.path(), &base, MOST).expect("it is sound");
        adapter.modules()[&Slot::Layer(0, LayerSlot::QProj)].scale
    };
    let plain = scale(&|config| config["alpha_pattern"] = json!({}));
    let by_module = scale(&|config| config["alpha_pattern"] = json!({"layers.0.self_attn.q_proj": 30}));
    let by_end = scale(&|config| config["alpha_pattern"] = json!({"q_proj": 30, ".*k_proj": 7}));
    assert!(by_module == by_end && by_module == 10.0 * plain, "{plain}, {by_module}, {by_end}");
    let by_parameter = |pattern: &'static str| {
        scale(&move |config| {
            config["target_parameters"] = json!(["q_proj.weight"]);
            config["alpha_pattern"] = json!({pattern: 30});
        })
    };
    assert_eq!((by_parameter("q_proj.weight"), by_parameter("q_proj")), (by_end, plain));
    let stabilized = scale(&|config| config["use_rslora"] = json!(true));
    let unstabilized = scale(&|config| config["use_rslora"] = json!(false));
    assert!((stabilized - unstabilized * 2f32.sqrt()).abs() < 1e-6, "{stabilized}, {unstabilized}");
}

/// Several answers to one prompt share it, drafts are looked up, and sequences are preempted: each with its own adapter.
#[test]
fn adapters_go_through_drafts_leaders_and_preemption() {
    let (source, second) = (Fixture::open("llama").source, stronger());
    let named = [("first", folder("llama")), ("second", second.path().to_owned())];
    let prompt: Vec<u32> = [3, 9, 27, 81, 243].repeat(6);
    let params = SamplingParams {
        max_tokens: Some(40),
        ignore_eos: true,
        n: 2,
        temperature: 0.4,
        seed: Some(5),
        ..Default::default()
    };
    let answers = |options: LoadOptions, wanted: &[Option<u32>]| {
        let mut llm = Llm::open(&source, &options, &|_, _| {}).expect("it opens");
        let mut ids: BTreeMap<(usize, usize), Vec<u32>> = BTreeMap::new();
        for adapter in wanted {
            let wanted = GenerateRequest { params: params.clone(), adapter: *adapter, ..GenerateRequest::default() };
            llm.add_request(prompt.clone(), &wanted).expect("the request is sound");
        }
        while llm.has_unfinished() {
            for event in llm.step().expect("the step runs") {
                if let Output::Token(token) = event.output.expect("it is sampled") {
                    ids.entry((event.request, event.choice)).or_default().push(token.id);
                }
            }
        }
        (ids.into_values().collect::<Vec<_>>(), llm.stats())
    };
    let wanted = [Some(0), None, Some(1), Some(0)];
    let plain = || LoadOptions { prompt_lookup: false, ..options(&named) };
    let alone: Vec<Vec<u32>> = wanted.iter().flat_map(|adapter| answers(plain(), &[*adapter]).0).collect();
    // Room for about two sequences at a time.
    let narrow = LoadOptions {
        kv_cache: KvCacheRoom::Tokens(176),
        context: Some(80),
        max_sequences: 8,
        prompt_lookup: true,
        ..options(&named)
    };
    let (together, stats) = answers(narrow, &wanted);
    assert_eq!(together, alone);
    assert!(stats.preemptions > 0 && stats.draft_tokens > 0, "{stats:?}");
}
