//! Importance matrices in `quantize`, and making them.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::support::{BLOCK_SIZE, Fixture, fixtures};
use braidinfer::executor::{Batch, Recorder, SequenceSlice};
use braidinfer::model::format::gguf::Gguf;
use braidinfer::model::format::imatrix::{InputSums, TensorSums};
use braidinfer::model::quantization::{self, FileType, Importance, uses_importance};
use braidinfer::model::{Description, Dtype, ExpertSlot, LayerSlot, ModelSource, Param, Slot, Weights, describe};
use braidinfer::{
    Calibration, Error, Prompt, QuantizeOptions, QuantizeReport, Threads, input_sums, quantize_with, write_imatrix,
};
use tempfile::TempDir;

fn threads() -> Threads {
    Threads::new(Some(2)).expect("two threads")
}

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder can be made")
}

fn write(
    source: &ModelSource,
    path: &Path,
    file_type: FileType,
    imatrix: Option<&Path>,
) -> Result<QuantizeReport, Error> {
    let options = QuantizeOptions { file_type, overwrite: true, imatrix };
    quantize_with(source, path, options, &threads(), &mut |_, _| ControlFlow::Continue(()))
}

fn gguf(path: &Path) -> Gguf {
    Gguf::open(path).unwrap_or_else(|error| panic!("{error}"))
}

/// Matrices of a file by name, with how many experts they have (or one) and the width of their rows.
fn matrices(file: &Gguf) -> BTreeMap<String, (usize, usize)> {
    let shape = |name: &str| {
        let view = file.checkpoint().tensor(name).expect("the type is known").expect("the name is the file's own");
        match view.shape[..] {
            [_, columns] => Some((name.to_owned(), (1, columns))),
            [experts, _, columns] => Some((name.to_owned(), (experts, columns))),
            _ => None,
        }
    };
    file.checkpoint().names().filter_map(shape).collect()
}

/// Sums for every matrix of a file: some columns are a hundred times as important as others.
fn sums_for(file: &Gguf) -> InputSums {
    let sums = |(name, (experts, columns)): (String, (usize, usize))| {
        let len = name.len();
        let sum = |i: usize| if (i + len).is_multiple_of(5) { 100.0 } else { 1.0 + (i % 3) as f32 };
        (name, TensorSums { sums: (0..experts * columns).map(sum).collect(), counts: vec![2; experts] })
    };
    let tensors = matrices(file).into_iter().map(sums).collect();
    InputSums { tensors, datasets: vec!["prose.txt".into(), "code.txt".into()], chunks: 3, chunk_size: 512 }
}

fn save(sums: &InputSums, path: &Path) -> PathBuf {
    let file = fs::File::create(path).expect("the file can be made");
    sums.write(file).expect("the file can be written to");
    path.to_owned()
}

/// What a tensor of a file must hold: the values of the f32 file, quantized with these sums, if there are any.
fn expected(exact: &Gguf, name: &str, dtype: Dtype, sums: Option<&TensorSums>) -> Vec<u8> {
    let view = exact.checkpoint().tensor(name).expect("the type is known").expect("both files have it");
    let values = view.read::<f32>().unwrap_or_else(|error| panic!("{error}"));
    let experts = if view.shape.len() == 3 { view.shape[0] } else { 1 };
    let mut blocks = Vec::new();
    for (expert, values) in values.chunks(values.len() / experts).enumerate() {
        let columns = view.shape.last().expect("a matrix has columns");
        let counted = sums.filter(|sums| sums.counts[expert] > 0);
        let written = match counted {
            Some(sums) => {
                let columns = sums.sums[expert * columns..(expert + 1) * columns].to_vec();
                let importance = Importance::new(columns).expect("no sum is negative");
                quantization::quantize_rows(dtype, values, &importance, &mut blocks)
            }
            None => quantization::quantize(dtype, values, &mut blocks),
        };
        written.expect("the values are in range");
    }
    blocks
}

/// How many tensors of `written` have types that make use of importance, and how many of them are not what quantizing
/// without would give, after checking each.
fn check_tensors(exact: &Gguf, written: &Gguf, sums: &InputSums) -> (usize, usize) {
    let (mut able, mut weighted) = (0, 0);
    for name in matrices(exact).keys() {
        let view = written.checkpoint().tensor(name).expect("the type is known").expect("both files have it");
        let bytes = view.data.read().unwrap_or_else(|error| panic!("{error}"));
        assert!(*bytes == expected(exact, name, view.dtype, sums.tensors.get(name))[..], "{name}");
        let changed = *bytes != expected(exact, name, view.dtype, None)[..];
        assert!(!changed || uses_importance(view.dtype), "{name}");
        able += usize::from(uses_importance(view.dtype));
        weighted += usize::from(changed);
    }
    (able, weighted)
}

#[test]
fn tensors_are_quantized_with_their_importance() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    for (name, file_type) in [("llama3", FileType::Q4_0), ("llama3", FileType::Q2K), ("qwen3_moe", FileType::Q4KM)] {
        let source = Fixture::open(name).source;
        write(&source, &path("exact.gguf"), FileType::F32, None).unwrap_or_else(|error| panic!("{error}"));
        let exact = gguf(&path("exact.gguf"));
        let sums = sums_for(&exact);
        let imatrix = save(&sums, &path("importance.gguf"));
        let report = write(&source, &path("quantized.gguf"), file_type, Some(&imatrix));
        let report = report.unwrap_or_else(|error| panic!("{error}"));
        let written = gguf(&path("quantized.gguf"));
        let (able, weighted) = check_tensors(&exact, &written, &sums);
        assert!(able > 10 && weighted == able, "{name}: {weighted} of {able} tensors: {:?}", report.tensors);
        let metadata = written.metadata();
        let text = |key: &str| metadata.text(key).expect("a text").map(str::to_owned);
        let number = |key: &str| metadata.unsigned(key).expect("a number");
        assert_eq!(text("quantize.imatrix.file"), Some(imatrix.display().to_string()));
        assert_eq!(text("quantize.imatrix.dataset").as_deref(), Some("prose.txt"));
        assert_eq!(number("quantize.imatrix.entries_count"), Some(sums.tensors.len() as u64));
        assert_eq!(number("quantize.imatrix.chunks_count"), Some(3));
        assert!(!report.notes.iter().any(|note| note.contains("importance")), "{:?}", report.notes);
    }
}

#[test]
fn experts_and_tensors_without_data_are_named_and_quantized_without() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let source = Fixture::open("qwen3_moe").source;
    write(&source, &path("exact.gguf"), FileType::F32, None).unwrap_or_else(|error| panic!("{error}"));
    let exact = gguf(&path("exact.gguf"));
    let mut sums = sums_for(&exact);
    let experts = "blk.2.ffn_up_exps.weight";
    let found = sums.tensors.get_mut(experts).expect("the fixture has experts");
    (found.counts[2], found.counts[5]) = (0, 0);
    sums.tensors.remove("token_embd.weight");
    sums.tensors.remove("blk.0.attn_q.weight");
    sums.tensors.insert("blk.9.attn_q.weight".into(), TensorSums { sums: vec![1.0], counts: vec![1] });
    let imatrix = save(&sums, &path("importance.gguf"));
    let report = write(&source, &path("quantized.gguf"), FileType::Q4_0, Some(&imatrix));
    let notes = report.unwrap_or_else(|error| panic!("{error}")).notes;
    for expected in [
        "the importance matrix has no data for blk.0.attn_q.weight, token_embd.weight: quantized without",
        "the importance matrix has no data for blk.2.ffn_up_exps.weight (experts 2, 5): quantized without",
        "the importance matrix has data for tensors that the model lacks: blk.9.attn_q.weight",
    ] {
        assert!(notes.iter().any(|note| note == expected), "{notes:?}");
    }
    check_tensors(&exact, &gguf(&path("quantized.gguf")), &sums);
    let report = write(&source, &path("quantized.gguf"), FileType::Q8_0, Some(&imatrix));
    let notes = report.unwrap_or_else(|error| panic!("{error}")).notes;
    assert!(notes.iter().any(|note| note.starts_with("the importance matrix changes nothing")), "{notes:?}");
}

#[test]
fn down_projections_of_the_first_layers_are_q4_1() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let source = Fixture::open("qwen3-extreme").source;
    let types = |imatrix: Option<&Path>| {
        write(&source, &path("quantized.gguf"), FileType::Q4_0, imatrix).unwrap_or_else(|error| panic!("{error}"));
        let file = gguf(&path("quantized.gguf"));
        let dtype = |name: &str| file.checkpoint().tensor(name).ok().flatten().expect("the file has it").dtype;
        (0..28).map(|layer| dtype(&format!("blk.{layer}.ffn_down.weight"))).collect::<Vec<_>>()
    };
    let without = types(None);
    assert_eq!(without, [Dtype::Q4_0; 28]);
    let imatrix = save(&sums_for(&gguf(&path("quantized.gguf"))), &path("importance.gguf"));
    assert_eq!(types(Some(&imatrix)), [&[Dtype::Q4_1; 3][..], &[Dtype::Q4_0; 25]].concat());
}

#[test]
fn an_importance_matrix_for_another_model_is_refused() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let source = Fixture::open("llama3").source;
    let refused = |sums: &[(&str, usize)]| {
        let tensor =
            |(name, len): &(&str, usize)| ((*name).to_owned(), TensorSums { sums: vec![1.0; *len], counts: vec![1] });
        let sums = InputSums { tensors: sums.iter().map(tensor).collect(), ..InputSums::default() };
        let imatrix = save(&sums, &path("importance.gguf"));
        let error = write(&source, &path("quantized.gguf"), FileType::Q4_0, Some(&imatrix)).expect_err("another model");
        assert!(!path("quantized.gguf").exists());
        error.to_string()
    };
    let error = refused(&[("blk.0.attn_q.weight", 64), ("blk.1.ffn_down.weight", 64)]);
    let expected =
        "tensor `blk.1.ffn_down.weight`: expected numbers for the 96 columns of the model's tensor, found 64";
    assert!(error.contains(expected), "{error}");
    let error = refused(&[("blk.0.ssm_in.weight", 64)]);
    let expected = "expected an importance matrix for tensors of the model, found one for 1 others";
    assert!(error.contains(expected), "{error}");
    let nothing = write(&source, &path("quantized.gguf"), FileType::Q4_0, Some(&path("none.gguf")));
    assert!(nothing.expect_err("there is no file").to_string().contains("none.gguf: "));
}

/// Tokens in a chunk.
const CHUNK: usize = 24;

fn sums_of(source: &ModelSource, prompt: &Prompt, chunk: usize) -> Result<(InputSums, Vec<String>), Error> {
    let reading = Calibration { prompt, name: "text", chunk, chunks: None };
    input_sums(source, reading, Some(2), &mut |_, _| ControlFlow::Continue(()))
}

/// Two chunks and some tokens more.
fn ids(vocab_size: usize) -> Vec<u32> {
    (0..2 * CHUNK as u32 + 5).map(|i| (i * i * 7 + 11 * i + 3) % vocab_size as u32).collect()
}

/// Sums by tensor, added up one row after the other.
#[derive(Default)]
struct Plain(BTreeMap<String, (Vec<f64>, u64)>);

impl Plain {
    fn add(&mut self, tensor: String, row: &[f32]) {
        let (sums, rows) = self.0.entry(tensor).or_default();
        sums.resize(row.len(), 0.0);
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value) * f64::from(*value));
        *rows += 1;
    }
}

/// The weights of a model, as plain matrices.
struct Matrices {
    weights: Weights,
}

impl Matrices {
    /// The product of the matrix in `slot` with a vector.
    fn times(&self, slot: Slot, x: &[f32]) -> Vec<f32> {
        let view = self.weights.get(slot, Param::Weight).expect("the model has it");
        let values = view.read::<f32>().unwrap_or_else(|error| panic!("{error}"));
        let product = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32;
        values.chunks(x.len()).map(product).collect()
    }

    /// What goes into a down projection: `silu(gate x)·up x`.
    fn inner(&self, gate: Slot, up: Slot, x: &[f32]) -> Vec<f32> {
        let (gate, up) = (self.times(gate, x), self.times(up, x));
        gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
    }
}

/// The sums of a model with plain attention and SwiGLU, from what its layers record.
fn plain_sums(fixture: &Fixture, ids: &[u32]) -> Plain {
    let Description { spec, names } = fixture.description();
    let weights = Weights::open(&fixture.source, &spec, &names).unwrap_or_else(|error| panic!("{error}"));
    let matrices = Matrices { weights };
    let mut decoder = fixture.standard();
    let mut sums = Plain::default();
    for chunk in ids.chunks_exact(CHUNK) {
        let mut batch = Batch::default();
        let blocks = (0..CHUNK.div_ceil(BLOCK_SIZE) as u32).collect();
        batch.push(chunk, SequenceSlice::new(0, CHUNK, blocks), 0);
        let mut recorder = Recorder::new(|_| true);
        decoder.forward(&batch, &mut recorder).expect("the batch runs");
        let recorded: BTreeMap<String, Vec<Vec<f32>>> = recorder
            .activations
            .into_iter()
            .map(|found| {
                (found.name, found.values.chunks(found.values.len() / found.rows).map(<[f32]>::to_vec).collect())
            })
            .collect();
        for layer in 0..spec.layers.len() {
            add_layer(&mut sums, layer, &recorded, &matrices);
        }
    }
    sums
}

fn add_layer(sums: &mut Plain, layer: usize, recorded: &BTreeMap<String, Vec<Vec<f32>>>, matrices: &Matrices) {
    let rows = |name: &str| recorded.get(&format!("layer.{layer}.{name}"));
    let mut add = |tensor: &str, row: &[f32]| sums.add(format!("blk.{layer}.{tensor}.weight"), row);
    for row in rows("input_norm").expect("it is recorded") {
        ["attn_q", "attn_k", "attn_v"].into_iter().for_each(|tensor| add(tensor, row));
    }
    rows("attn.heads").expect("it is recorded").iter().for_each(|row| add("attn_output", row));
    for (token, row) in rows("ffn.norm").expect("it is recorded").iter().enumerate() {
        let Some(routing) = rows("ffn.routing") else {
            let slot = |slot| Slot::Layer(layer, slot);
            ["ffn_gate", "ffn_up"].into_iter().for_each(|tensor| add(tensor, row));
            add("ffn_down", &matrices.inner(slot(LayerSlot::GateProj), slot(LayerSlot::UpProj), row));
            continue;
        };
        add("ffn_gate_inp", row);
        for (expert, _) in routing[token].iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
            let slot = |slot| Slot::Expert(layer, expert, slot);
            let inner = matrices.inner(slot(ExpertSlot::GateProj), slot(ExpertSlot::UpProj), row);
            ["ffn_gate_exps", "ffn_up_exps"].into_iter().for_each(|tensor| add(&format!("{tensor}.{expert}"), row));
            add(&format!("ffn_down_exps.{expert}"), &inner);
        }
    }
}

/// What is collected, by tensor and by expert, in the names of [`plain_sums`].
fn by_matrix(sums: &InputSums) -> BTreeMap<String, (Vec<f32>, u64)> {
    let parts = sums.tensors.iter().flat_map(|(name, TensorSums { sums, counts })| {
        let columns = sums.len() / counts.len();
        sums.chunks(columns).zip(counts).enumerate().map(move |(expert, (sums, count))| {
            let name = match name.strip_suffix("_exps.weight") {
                Some(start) => format!("{start}_exps.{expert}.weight"),
                None => name.clone(),
            };
            (name, (sums.to_vec(), *count))
        })
    });
    parts.filter(|(_, (_, count))| *count > 0).collect()
}

/// Largest difference of two lists of sums, as a part of the largest sum.
fn difference<T: Copy + Into<f64>>(a: &[f32], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0.0, |largest: f64, sum| largest.max((*sum).into()));
    a.iter().zip(b).fold(0.0, |most: f64, (a, b)| most.max((f64::from(*a) - (*b).into()).abs())) / largest
}

#[test]
fn sums_are_those_of_what_layers_are_given() {
    for name in ["llama3", "llama", "qwen3", "qwen3_moe", "mixtral", "olmoe"] {
        let fixture = Fixture::open(name);
        let ids = ids(fixture.spec().vocab_size);
        let (collected, _) =
            sums_of(&fixture.source, &Prompt::Ids(ids.clone()), CHUNK).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((collected.chunks, collected.chunk_size), (2, CHUNK as u32));
        let (found, Plain(expected)) = (by_matrix(&collected), plain_sums(&fixture, &ids));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, (expected, rows)) in &expected {
            let (sums, count) = &found[tensor];
            assert_eq!(count, rows, "{name} {tensor}");
            let difference = difference(sums, expected);
            assert!(difference < 1e-5, "{name} {tensor}: {difference:e}");
        }
    }
}

/// The file of a model has its columns in another order, or its parts in other tensors; the sums are those of the file.
#[test]
fn sums_of_a_model_and_of_its_file_are_the_same() {
    let mut compared = 0;
    for entry in fs::read_dir(fixtures().join("gguf/models")).expect("the fixtures are in the repository") {
        let path = entry.expect("the folder can be listed").path();
        let name = path.file_stem().expect("files have names").to_string_lossy().into_owned();
        let folder = fixtures().join("models").join(&name);
        // A file that says something else than the folder has its own expectations.
        let differs = path.with_extension("expected.json").exists();
        if path.extension().is_none_or(|extension| extension != "gguf") || !folder.exists() || differs {
            continue;
        }
        let (folder, file) = (ModelSource::Directory(folder), ModelSource::open(&path).expect("the file is valid"));
        let vocab_size = describe(&file).expect("the file is valid").0.spec.vocab_size;
        let prompt = Prompt::Ids(ids(vocab_size));
        let Ok((expected, _)) = sums_of(&folder, &prompt, CHUNK) else { continue };
        let (found, _) = sums_of(&file, &prompt, CHUNK).unwrap_or_else(|error| panic!("{name}: {error}"));
        // llama.cpp's file has queries, keys, values and gate of recurrent layers by kind here.
        let by_kind = |tensor: &&String| name != "qwen3_next" || !tensor.contains("ssm_in");
        let common: Vec<&String> = expected.tensors.keys().filter(by_kind).collect();
        assert!(common.iter().all(|tensor| found.tensors.contains_key(*tensor)), "{name}: {:?}", found.tensors.keys());
        for tensor in common {
            let (found, expected) = (&found.tensors[tensor], &expected.tensors[tensor]);
            assert_eq!(found.counts, expected.counts, "{name} {tensor}");
            // Falcon-H1's multipliers are part of the weights of its file, so that inputs differ by a factor.
            let total = |sums: &[f32]| if name.starts_with("falcon_h1") { sums.iter().sum() } else { 1.0 };
            let parts = |sums: &[f32]| sums.iter().map(|sum| sum / total(sums)).collect::<Vec<f32>>();
            let difference = difference(&parts(&found.sums), &parts(&expected.sums));
            assert!(difference < 1e-3, "{name} {tensor}: {difference:e}");
        }
        compared += 1;
    }
    assert!(compared >= 30, "{compared} models were compared");
}

#[test]
fn a_text_becomes_a_file_that_quantize_takes() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../braidinfer-cli/demo-model");
    let source = ModelSource::open(&demo).unwrap_or_else(|error| panic!("{error}"));
    let folder = folder();
    let path = folder.path().join("imatrix.gguf");
    let prompt = Prompt::Text("One day a small blue fish looked out of its well and saw the sun. ".repeat(12));
    let reading = Calibration { prompt: &prompt, name: "fish.txt", chunk: 64, chunks: Some(2) };
    let mut seen = Vec::new();
    let report = write_imatrix(&source, &path, reading, false, Some(2), &mut |done, all| {
        seen.push((done, all));
        ControlFlow::Continue(())
    });
    let report = report.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(seen, [(0, 2), (1, 2)]);
    assert_eq!((report.tensors, report.chunks), (4 * 7, 2));
    let quantized = folder.path().join("quantized.gguf");
    let notes = write(&source, &quantized, FileType::Q4KM, Some(&path)).unwrap_or_else(|error| panic!("{error}")).notes;
    // The embedding, for which there is no data, is in q8_0, which makes no use of any.
    assert!(!notes.iter().any(|note| note.contains("importance")), "{notes:?}");
    let dataset = gguf(&quantized).metadata().text("quantize.imatrix.dataset").expect("a text").map(str::to_owned);
    assert_eq!(dataset.as_deref(), Some("fish.txt"));

    let again = |reading, overwrite, progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>| {
        let refused = write_imatrix(&source, &path, reading, overwrite, Some(2), progress);
        refused.expect_err("it is refused")
    };
    let go_on = &mut |_, _| ControlFlow::Continue(());
    assert!(matches!(again(reading, false, go_on), Error::AlreadyThere { .. }));
    assert!(matches!(again(reading, true, &mut |_, _| ControlFlow::Break(())), Error::Cancelled));
    let error = again(Calibration { chunk: 500, ..reading }, true, go_on).to_string();
    assert!(error.starts_with("fish.txt: expected at least one chunk of 500 tokens, found "), "{error}");
    assert_eq!(
        again(Calibration { chunks: Some(0), ..reading }, true, go_on).to_string(),
        "chunks: expected at least 1, found 0"
    );
    assert_eq!(
        again(Calibration { chunk: 0, ..reading }, true, go_on).to_string(),
        "chunk: expected at least 1, found 0"
    );
    let nothing = Fixture::open("llama3").source;
    let error = sums_of(&nothing, &prompt, 8).expect_err("the model has no tokenizer").to_string();
    assert!(error.contains("expected a model with a tokenizer, found none"), "{error}");
}
