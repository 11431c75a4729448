//! Importance matrices: files of llama.cpp's two formats, our own, and changed ones.

#[path = "support/mutations.rs"]
mod mutations;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use braidinfer_model::ModelError;
use braidinfer_model::format::gguf::{GgufWriter, Metadata, TensorHeader};
use braidinfer_model::format::imatrix::{ImportanceMatrix, InputSums, TensorSums};
use braidinfer_model::quantization::Importance;
use mutations::{File, GgufParts, changes, check_changed, gguf_changes};

const LABEL: &str = "changed.imatrix";
const QUERY: &str = "blk.0.attn_q.weight";
const EXPERTS: &str = "blk.0.ffn_down_exps.weight";

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/imatrix").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    fs::read(fixture(name)).expect("the fixture is in the repository")
}

fn read(bytes: Vec<u8>) -> Result<ImportanceMatrix, ModelError> {
    ImportanceMatrix::from_bytes(LABEL, bytes.into())
}

fn refused(bytes: Vec<u8>) -> String {
    let error = read(bytes).expect_err("the file is wrong").to_string();
    error.strip_prefix(&format!("{LABEL}: ")).expect("an error begins with the file").to_owned()
}

fn importance(columns: &[f32]) -> Option<Importance> {
    Importance::new(columns.to_vec()).ok()
}

/// Means that `tools/quantization/imatrix.py` wrote.
#[test]
fn files_of_llama_cpp_are_read() {
    let matrix = ImportanceMatrix::open(&fixture("small.gguf")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(matrix.names().collect::<Vec<_>>(), [QUERY, EXPERTS]);
    assert_eq!((matrix.datasets(), matrix.chunks()), (&["calibration.txt".into(), "more.txt".into()][..], 3));
    let of = |tensor, matrices, columns| matrix.of(tensor, matrices, columns).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(of(QUERY, 1, 8), [importance(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])]);
    // Nothing was routed to the second expert.
    assert_eq!(of(EXPERTS, 3, 4), [importance(&[1.0, 2.0, 3.0, 4.0]), None, importance(&[3.0, 4.0, 5.0, 6.0])]);
    assert_eq!(of("blk.0.attn_k.weight", 2, 8), [None, None]);
}

#[test]
fn files_of_older_llama_cpp_are_read() {
    let matrix = ImportanceMatrix::open(&fixture("small.dat")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((matrix.datasets(), matrix.chunks()), (&["calibration.txt".into()][..], 3));
    let of = |tensor, matrices, columns| matrix.of(tensor, matrices, columns).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(of(QUERY, 1, 8), [importance(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])]);
    let experts = [&[1.0, 2.0, 3.0, 4.0], &[1.0; 4], &[3.0, 4.0, 5.0, 6.0]].map(|columns| importance(columns));
    assert_eq!(of(EXPERTS, 3, 4), experts);
    // What follows the tensors may be missing.
    let all = bytes("small.dat");
    for end in [all.len() - 4 - "calibration.txt".len(), all.len() - 8 - "calibration.txt".len()] {
        assert!(read(all[..end].to_vec()).is_ok_and(|matrix| matrix.datasets().is_empty()));
    }
}

#[test]
fn other_widths_are_named() {
    for name in ["small.gguf", "small.dat"] {
        let matrix = ImportanceMatrix::open(&fixture(name)).unwrap_or_else(|error| panic!("{error}"));
        let error = |tensor, matrices, columns| matrix.of(tensor, matrices, columns).expect_err(name).to_string();
        assert_eq!(
            error(QUERY, 1, 16),
            format!(
                "{}: tensor `{QUERY}`: expected numbers for the 16 columns of the model's tensor, found 8 numbers",
                fixture(name).display()
            )
        );
        let expected = "expected numbers for the 4 columns of each of the model's 8 matrices, found 12 numbers";
        assert!(error(EXPERTS, 8, 4).ends_with(expected), "{}", error(EXPERTS, 8, 4));
    }
    let matrix = ImportanceMatrix::open(&fixture("small.gguf")).unwrap_or_else(|error| panic!("{error}"));
    let error = matrix.of(EXPERTS, 2, 6).expect_err("three are stored").to_string();
    assert!(
        error.ends_with(
            "expected numbers for the 6 columns of each of the model's 2 matrices, found those of 3 matrices"
        )
    );
}

fn sums(tensors: &[(&str, &[f32], &[u64])]) -> InputSums {
    let tensor = |(name, sums, counts): &(&str, &[f32], &[u64])| {
        ((*name).to_owned(), TensorSums { sums: sums.to_vec(), counts: counts.to_vec() })
    };
    InputSums {
        tensors: tensors.iter().map(tensor).collect(),
        datasets: vec!["a.txt".into()],
        chunks: 7,
        chunk_size: 512,
    }
}

fn written(sums: &InputSums) -> Vec<u8> {
    sums.write(Vec::new()).expect("memory can be written to")
}

#[test]
fn what_is_written_is_read() {
    let file = written(&sums(&[("a.weight", &[2.0, 8.0], &[2]), ("b.weight", &[1.0, 0.0, 5.0, 10.0], &[0, 5])]));
    let matrix = read(file).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((matrix.datasets(), matrix.chunks()), (&["a.txt".into()][..], 7));
    let of = |tensor, matrices| matrix.of(tensor, matrices, 2).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(of("a.weight", 1), [importance(&[1.0, 4.0])]);
    assert_eq!(of("b.weight", 2), [None, importance(&[1.0, 2.0])]);
}

#[test]
fn numbers_that_are_no_sums_are_refused() {
    for (wrong, found) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (-1.0, "-1")] {
        let error = refused(written(&sums(&[("a.weight", &[2.0, wrong], &[2])])));
        assert!(error.starts_with("tensor `a.weight.in_sum2`: expected finite "), "{error}");
        assert!(error.ends_with(&format!(", found {found} at index 1")), "{error}");
        let mut legacy = bytes("small.dat");
        let at = 4 + 4 + QUERY.len() + 8 + 4 * 2;
        legacy[at..at + 4].copy_from_slice(&wrong.to_le_bytes());
        let expected = "expected finite numbers that are not negative";
        assert_eq!(refused(legacy), format!("tensor `{QUERY}`: {expected}, found {found} at index 2"));
    }
}

/// A GGUF file with these keys and tensors of f32.
fn gguf(kind: Option<&str>, tensors: &[(&str, &[f32])]) -> Vec<u8> {
    let mut metadata = Metadata::new(LABEL.into());
    if let Some(kind) = kind {
        metadata.insert("general.type", kind);
    }
    let header = |(name, values): &(&str, &[f32])| TensorHeader {
        name: (*name).to_owned(),
        shape: vec![values.len()],
        dtype: braidinfer_model::Dtype::F32,
    };
    let headers: Vec<TensorHeader> = tensors.iter().map(header).collect();
    let mut writer = GgufWriter::begin(Vec::new(), &metadata, &headers).expect("memory can be written to");
    for (_, values) in tensors {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.tensor([Ok::<_, std::io::Error>(data)]).expect("the data is as long as it must be");
    }
    writer.finish().expect("all tensors are there")
}

#[test]
fn what_is_no_importance_matrix_is_named() {
    let imatrix = Some("imatrix");
    let two: &[f32] = &[1.0, 2.0];
    for (file, expected) in [
        (gguf(Some("model"), &[]), "field `general.type`: expected `imatrix`, for an importance matrix, found `model`"),
        (gguf(None, &[]), "field `general.type`: expected `imatrix`, for an importance matrix, found nothing"),
        (gguf(imatrix, &[]), "expected an importance matrix, found one without tensors"),
        (gguf(imatrix, &[("a.in_sum2", two)]), "tensor `a.in_sum2`: expected `a.counts` beside it, found none"),
        (gguf(imatrix, &[("a.counts", two)]), "tensor `a.counts`: expected `a.in_sum2` beside it, found none"),
        (
            gguf(imatrix, &[("a", two)]),
            "tensor `a`: expected a name that ends in `.in_sum2` or `.counts`, found another name",
        ),
        (
            gguf(imatrix, &[("a.in_sum2", &[1.0; 3]), ("a.counts", two)]),
            "tensor `a.in_sum2`: expected a multiple of the 2 counts beside them, found 3 sums",
        ),
        (
            gguf(imatrix, &[("a.in_sum2", two), ("a.counts", &[0.5])]),
            "tensor `a.counts`: expected whole numbers of tokens, found 0.5 at index 0",
        ),
        (
            b"GIF89a..".to_vec(),
            "expected an importance matrix, with the name of a tensor in at most 65536 bytes, found",
        ),
        (vec![0; 4], "expected an importance matrix, found one without tensors"),
        (vec![0xff; 4], "expected an importance matrix, with the number of tensors at byte 0, found -1"),
        (
            vec![1, 0],
            "expected an importance matrix, with 4 bytes of the number of tensors, found 2 bytes from byte 0 to",
        ),
        ([bytes("small.dat"), vec![0; 3]].concat(), "expected the end of the file, found 3 more bytes"),
    ] {
        let error = refused(file);
        assert!(error.starts_with(expected), "{error}");
    }
    let twice = [&2i32.to_le_bytes()[..], &entry("a"), &entry("a")].concat();
    assert_eq!(refused(twice), "tensor `a`: expected one entry of this name, found a second one");
}

/// A tensor of the older format with one number.
fn entry(name: &str) -> Vec<u8> {
    let number = |number: usize| (number as i32).to_le_bytes().to_vec();
    [number(name.len()), name.as_bytes().to_vec(), number(1), number(1), 1f32.to_le_bytes().to_vec()].concat()
}

/// Reads a file and asks it for what it has, and for what it does not have.
fn read_and_ask(bytes: Vec<u8>) -> Result<(), ModelError> {
    let matrix = read(bytes)?;
    for name in matrix.names() {
        for (matrices, columns) in [(1, 8), (3, 4), (0, 0), (1, 0), (2, usize::MAX)] {
            drop(matrix.of(name, matrices, columns));
        }
    }
    Ok(())
}

#[test]
fn changed_importance_matrices_never_panic() {
    let small = File::gguf("small.gguf", bytes("small.gguf"));
    check_changed(LABEL, 3000, changes(), |changes| read_and_ask(small.changed(changes)));
    let parts = GgufParts::of(&small);
    check_changed(LABEL, 3000, gguf_changes(), |changes| read_and_ask(parts.changed(changes)));
    let legacy = bytes("small.dat");
    let numbers = [0, 4, 8 + QUERY.len(), 12 + QUERY.len(), 16 + QUERY.len()];
    let numbers = numbers.into_iter().chain((0..2).map(|i| legacy.len() - 23 + 4 * i)).map(|at| at..at + 4);
    let legacy = File::binary("small.dat", legacy.clone(), numbers.collect());
    check_changed(LABEL, 4000, changes(), |changes| read_and_ask(legacy.changed(changes)));
}

#[test]
fn no_tensor_is_lost() {
    let tensors: BTreeMap<String, TensorSums> = (0..1000)
        .map(|i| (format!("blk.{i}.ffn_up.weight"), TensorSums { sums: vec![i as f32; 4], counts: vec![1] }))
        .collect();
    let matrix =
        read(written(&InputSums { tensors, ..InputSums::default() })).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(matrix.names().len(), 1000);
    let last = matrix.of("blk.999.ffn_up.weight", 1, 4).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(last, [importance(&[999.0; 4])]);
}
