//! Importance matrices in `quantize`, and making them.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use braidinfer::model::format::gguf::Gguf;
use braidinfer::model::format::imatrix::{InputSums, TensorSums};
use braidinfer::model::quantization::{self, FileType, Importance, uses_importance};
use braidinfer::model::{Dtype, ModelSource};
use braidinfer::{Error, QuantizeOptions, QuantizeReport, Threads, quantize_with};
use support::Fixture;
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
