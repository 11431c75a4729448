//! What an importance matrix says of the tensors of a file that is being written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use braidinfer_model::arch::gguf::GgufModel;
use braidinfer_model::format::imatrix::ImportanceMatrix;
use braidinfer_model::quantization::{Importance, uses_importance};
use braidinfer_model::{Dtype, ModelError, Slot, Stack};

use crate::{Error, Result};

/// Most names in a note.
const NAMES: usize = 8;

/// Memory for reading a file, in bytes: once as it is stored, and once by tensor.
pub(super) fn bytes(path: &Path) -> Result<usize> {
    let len = fs::metadata(path).map_err(|source| Error::File { path: path.display().to_string(), source })?.len();
    Ok(usize::try_from(len).unwrap_or(usize::MAX).saturating_mul(2))
}

/// The importance of the columns of tensors whose type makes use of it.
#[derive(Debug)]
pub(super) struct TensorImportance {
    /// By name of the tensor, and by expert; `None` for those without data.
    tensors: BTreeMap<String, Vec<Option<Importance>>>,
}

impl TensorImportance {
    /// Reads the file at `path`, and names it in the metadata of `model`, with llama.cpp's keys. `dtype` is the type that
    /// a tensor gets. Returns notes, too, one line each: on tensors that are quantized without.
    ///
    /// Fails on an importance matrix for other widths, or for none of the model's tensors.
    pub(super) fn read(
        path: &Path,
        model: &mut GgufModel,
        dtype: impl Fn(&Stack) -> Dtype,
    ) -> Result<(Self, Vec<String>)> {
        let matrix = ImportanceMatrix::open(path)?;
        check_model(path, &matrix, model)?;
        let mut found = Self { tensors: BTreeMap::new() };
        for stack in model.tensors.iter().filter(|stack| uses_importance(dtype(stack))) {
            let shape = stack.shape();
            let columns = shape.last().copied().unwrap_or(0);
            let experts = if shape.len() > 2 { shape[0] } else { 1 };
            found.tensors.insert(stack.tensor.clone(), matrix.of(&stack.tensor, experts, columns)?);
        }
        let notes = found.notes(&matrix, model);
        name_in(model, path, &matrix);
        Ok((found, notes))
    }

    /// The importance of the columns of a parameter in `tensor`, if there is data for it.
    pub(super) fn of(&self, tensor: &str, slot: Slot) -> Option<&Importance> {
        let expert = if let Slot::Expert(_, expert, _) = slot { expert } else { 0 };
        let matrices = self.tensors.get(tensor)?;
        // A tensor may be that of a single expert.
        matrices.get(if matrices.len() == 1 { 0 } else { expert })?.as_ref()
    }

    fn notes(&self, matrix: &ImportanceMatrix, model: &GgufModel) -> Vec<String> {
        if self.tensors.is_empty() {
            return vec!["the importance matrix changes nothing: no tensor gets a type that makes use of one".into()];
        }
        let without = self.tensors.iter().filter(|(_, matrices)| matrices.iter().all(Option::is_none));
        let experts = self.tensors.iter().filter_map(|(tensor, matrices)| {
            let without: Vec<String> =
                (0..matrices.len()).filter(|i| matrices[*i].is_none()).map(|i| i.to_string()).collect();
            let some = !without.is_empty() && without.len() < matrices.len();
            some.then(|| format!("{tensor} (experts {})", some_of(without)))
        });
        let names: BTreeSet<&str> = model.tensors.iter().map(|stack| stack.tensor.as_str()).collect();
        let others = matrix.names().filter(|name| !names.contains(name)).map(str::to_owned);
        let note = |start: &str, names: Vec<String>, end: &str| {
            (!names.is_empty()).then(|| format!("{start} {}{end}", some_of(names)))
        };
        let lacking = "the importance matrix has no data for";
        let plainly = ": quantized without";
        let notes = [
            note(lacking, without.map(|(tensor, _)| tensor.clone()).collect(), plainly),
            note(lacking, experts.collect(), plainly),
            note("the importance matrix has data for tensors that the model lacks:", others.collect(), ""),
        ];
        notes.into_iter().flatten().collect()
    }
}

/// The first names, and how many there are besides.
fn some_of(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(NAMES);
    let first = names.into_iter().take(NAMES).collect::<Vec<_>>().join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

/// Fails if an importance matrix is for none of the model's tensors.
fn check_model(path: &Path, matrix: &ImportanceMatrix, model: &GgufModel) -> Result<()> {
    let names: BTreeSet<&str> = matrix.names().collect();
    if model.tensors.iter().any(|stack| names.contains(stack.tensor.as_str())) {
        return Ok(());
    }
    let first = names.first().copied().unwrap_or_default();
    Err(ModelError::Malformed {
        path: path.display().to_string(),
        expected: "an importance matrix for tensors of the model".into(),
        found: format!("one for {} others, such as `{first}`", names.len()),
    }
    .into())
}

/// Adds llama.cpp's keys about the importance matrix.
fn name_in(model: &mut GgufModel, path: &Path, matrix: &ImportanceMatrix) {
    let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let metadata = &mut model.metadata;
    metadata.insert("quantize.imatrix.file", path.display().to_string().as_str());
    if let Some(dataset) = matrix.datasets().first() {
        metadata.insert("quantize.imatrix.dataset", dataset.as_str());
    }
    metadata.insert("quantize.imatrix.entries_count", count(matrix.names().len() as u64));
    if matrix.chunks() > 0 {
        metadata.insert("quantize.imatrix.chunks_count", count(matrix.chunks()));
    }
}
