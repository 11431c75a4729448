//! Importance matrices: how large the inputs of each matrix of a model are, by column, measured on a text.
//!
//! llama.cpp's two formats are read: GGUF files, with sums of squares and the number of tokens they are over, and the
//! older binary files (usually `.dat`). GGUF files are written.

mod legacy;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use super::gguf::{Gguf, GgufWriter, Metadata, TensorHeader, Value};
use crate::file::FileBytes;
use crate::quantization::Importance;
use crate::{Dtype, ModelError, Result, TensorView};

const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
/// Counts are stored as f32, and beyond this not all are.
const MOST_TOKENS: f32 = 1e15;

/// An importance matrix: mean squares of inputs by tensor, in the names of GGUF.
#[derive(Debug)]
pub struct ImportanceMatrix {
    path: String,
    tensors: BTreeMap<String, Means>,
    datasets: Vec<String>,
    chunks: u64,
}

/// Mean squares of the inputs of one tensor.
#[derive(Debug)]
struct Means {
    /// Of all its matrices, one after the other. Numbers for a part without data mean nothing.
    values: Vec<f32>,
    /// Whether there is data: one entry for all matrices, or one for each.
    counted: Vec<bool>,
}

impl ImportanceMatrix {
    /// Reads a file in either format. It takes as much memory as the file is long.
    ///
    /// Fails on a number that is negative or not finite, naming the tensor and the index.
    pub fn open(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let bytes = FileBytes::open(path)?;
        match is_gguf(&bytes)? {
            true => Self::from_gguf(label, &Gguf::open(path)?),
            false => legacy::read(label, &bytes),
        }
    }

    /// Reads a file that is already in memory; `label` replaces its path in messages.
    pub fn from_bytes(label: &str, bytes: Arc<[u8]>) -> Result<Self> {
        let bytes = FileBytes::Shared(bytes);
        match (is_gguf(&bytes)?, &bytes) {
            (true, FileBytes::Shared(bytes)) => {
                Self::from_gguf(label.to_owned(), &Gguf::from_bytes(label, Arc::clone(bytes))?)
            }
            _ => legacy::read(label.to_owned(), &bytes),
        }
    }

    fn from_gguf(path: String, gguf: &Gguf) -> Result<Self> {
        const TYPE: &str = "general.type";
        let metadata = gguf.metadata();
        match metadata.text(TYPE)? {
            Some("imatrix") => {}
            other => {
                let found = other.map_or("nothing".to_owned(), |other| format!("`{other}`"));
                return Err(metadata.error(TYPE, "`imatrix`, for an importance matrix", found));
            }
        }
        let datasets = metadata.texts(DATASETS)?.unwrap_or_default().into_iter().map(str::to_owned).collect();
        let chunks = metadata.unsigned(CHUNK_COUNT)?.unwrap_or(0);
        let mut tensors = BTreeMap::new();
        for stored in gguf.checkpoint().names() {
            let view = tensor(gguf, stored)?;
            if let Some(name) = stored.strip_suffix(SUMS) {
                tensors.insert(name.to_owned(), means(&view, &partner(gguf, &view, name, COUNTS)?)?);
            } else if let Some(name) = stored.strip_suffix(COUNTS) {
                partner(gguf, &view, name, SUMS)?;
            } else {
                return Err(view.error(format!("a name that ends in `{SUMS}` or `{COUNTS}`"), "another name"));
            }
        }
        Self { path, tensors, datasets, chunks }.checked()
    }

    fn checked(self) -> Result<Self> {
        match self.tensors.is_empty() {
            false => Ok(self),
            true => Err(ModelError::Malformed {
                path: self.path,
                expected: "an importance matrix".into(),
                found: "one without tensors".into(),
            }),
        }
    }

    /// Names of the tensors.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Names of the texts that were read, as the file has them.
    pub fn datasets(&self) -> &[String] {
        &self.datasets
    }

    /// How many pieces of text were read; 0 if the file does not say.
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// The importance of the `columns` columns of each of the `matrices` matrices (experts, or one) of a tensor; `None`
    /// for those without data.
    ///
    /// Fails, naming the tensor, if the file has other numbers of columns or matrices for it.
    pub fn of(&self, tensor: &str, matrices: usize, columns: usize) -> Result<Vec<Option<Importance>>> {
        let Some(Means { values, counted }) = self.tensors.get(tensor) else { return Ok(vec![None; matrices]) };
        let error = |found: String| ModelError::Tensor {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            expected: match matrices {
                1 => format!("numbers for the {columns} columns of the model's tensor"),
                _ => format!("numbers for the {columns} columns of each of the model's {matrices} matrices"),
            },
            found,
        };
        if Some(values.len()) != columns.checked_mul(matrices) {
            return Err(error(format!("{} numbers", values.len())));
        }
        if counted.len() != 1 && counted.len() != matrices {
            return Err(error(format!("those of {} matrices", counted.len())));
        }
        let of_matrix = |(matrix, columns): (usize, &[f32])| {
            let counted = counted[if counted.len() == 1 { 0 } else { matrix }];
            // Every number was checked.
            if counted { Importance::new(columns.to_vec()).ok() } else { None }
        };
        Ok(values.chunks(columns.max(1)).enumerate().map(of_matrix).collect())
    }
}

/// Whether a file begins as GGUF files do.
fn is_gguf(bytes: &FileBytes) -> Result<bool> {
    Ok(bytes.len() >= 4 && *bytes.read(0..4)? == *b"GGUF")
}

fn tensor<'a>(gguf: &'a Gguf, name: &str) -> Result<TensorView<'a>> {
    let missing = || ModelError::Tensor {
        path: gguf.metadata().path().to_owned(),
        tensor: name.to_owned(),
        expected: "sums and counts for each tensor".into(),
        found: "none".into(),
    };
    let view = gguf.checkpoint().tensor(name)?.ok_or_else(missing)?;
    match view.dtype {
        Dtype::F32 => Ok(view),
        other => Err(view.error("values of type f32", other.to_string())),
    }
}

/// The counts beside the sums `view` of the tensor `name`, or the other way round.
fn partner<'a>(gguf: &'a Gguf, view: &TensorView<'_>, name: &str, suffix: &str) -> Result<TensorView<'a>> {
    match gguf.checkpoint().contains(&format!("{name}{suffix}")) {
        true => tensor(gguf, &format!("{name}{suffix}")),
        false => Err(view.error(format!("`{name}{suffix}` beside it"), "none")),
    }
}

/// Mean squares from sums and counts: the sums of each matrix divided by its count.
fn means(sums: &TensorView<'_>, counts: &TensorView<'_>) -> Result<Means> {
    let mut values = sums.read::<f32>()?;
    let tokens = counts.read::<f32>()?;
    check(sums, &values)?;
    let is_count = |count: &f32| (0.0..=MOST_TOKENS).contains(count) && count.fract() == 0.0;
    if let Some(index) = tokens.iter().position(|count| !is_count(count)) {
        return Err(counts.error("whole numbers of tokens", format!("{} at index {index}", tokens[index])));
    }
    if tokens.is_empty() || values.is_empty() || !values.len().is_multiple_of(tokens.len()) {
        let expected = format!("a multiple of the {} counts beside them", tokens.len());
        return Err(sums.error(expected, format!("{} sums", values.len())));
    }
    let columns = values.len() / tokens.len();
    for (values, count) in values.chunks_mut(columns).zip(&tokens) {
        values.iter_mut().for_each(|value| *value /= count.max(1.0));
    }
    Ok(Means { values, counted: tokens.iter().map(|count| *count > 0.0).collect() })
}

/// Fails on a number that is no sum of squares.
fn check(view: &TensorView<'_>, values: &[f32]) -> Result<()> {
    match wrong_number(values) {
        None => Ok(()),
        Some((index, value)) => Err(view.error(NUMBERS, format!("{value} at index {index}"))),
    }
}

const NUMBERS: &str = "finite numbers that are not negative";

/// The first number that is no sum of squares, and its index.
fn wrong_number(values: &[f32]) -> Option<(usize, f32)> {
    values.iter().copied().enumerate().find(|(_, value)| !(value.is_finite() && *value >= 0.0))
}

/// Sums of squares of inputs, to be written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InputSums {
    /// By tensor, in the names of GGUF.
    pub tensors: BTreeMap<String, TensorSums>,
    /// Names of the texts that were read.
    pub datasets: Vec<String>,
    /// How many pieces of text were read.
    pub chunks: u32,
    /// Tokens in each.
    pub chunk_size: u32,
}

/// Sums of squares of the inputs of one tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TensorSums {
    /// `[matrices, columns]`.
    pub sums: Vec<f32>,
    /// `[matrices]`: the number of tokens that each matrix was multiplied with.
    pub counts: Vec<u64>,
}

impl InputSums {
    /// Writes llama.cpp's GGUF form: `NAME.in_sum2` and `NAME.counts` for each tensor, in f32.
    pub fn write<W: Write>(&self, out: W) -> io::Result<W> {
        let mut metadata = Metadata::new(String::new());
        metadata.insert("general.type", "imatrix");
        metadata.insert(DATASETS, self.datasets.iter().collect::<Value>());
        metadata.insert(CHUNK_COUNT, self.chunks);
        metadata.insert(CHUNK_SIZE, self.chunk_size);
        let header = |name: String, shape| TensorHeader { name, shape, dtype: Dtype::F32 };
        let headers = self.tensors.iter().flat_map(|(name, TensorSums { sums, counts })| {
            let matrices = counts.len();
            [
                header(format!("{name}{SUMS}"), vec![matrices, sums.len() / matrices.max(1)]),
                header(format!("{name}{COUNTS}"), vec![matrices, 1]),
            ]
        });
        let mut writer = GgufWriter::begin(out, &metadata, &headers.collect::<Vec<_>>())?;
        for TensorSums { sums, counts } in self.tensors.values() {
            let bytes = |value: f32| value.to_le_bytes();
            writer.tensor([Ok::<_, io::Error>(sums.iter().copied().flat_map(bytes).collect())])?;
            writer.tensor([Ok::<_, io::Error>(counts.iter().map(|count| *count as f32).flat_map(bytes).collect())])?;
        }
        writer.finish()
    }
}
