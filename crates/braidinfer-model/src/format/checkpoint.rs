//! The tensors of a checkpoint, which may be in several files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::assembled::Assembled;
use crate::dtype::{Dtype, TensorView};
use crate::file::FileBytes;
use crate::rearranged::LastMatrix;
use crate::tensor_data::TensorData;
use crate::{ModelError, Result};

/// All tensors of a checkpoint, from one or several files. Before a file is added, the caller must have checked that
/// every tensor lies inside it and has as many bytes as its shape and type need.
#[derive(Debug, Default)]
pub struct Checkpoint {
    files: Vec<CheckpointFile>,
    tensors: BTreeMap<String, Stored>,
    last_matrix: LastMatrix,
}

#[derive(Debug)]
struct CheckpointFile {
    path: String,
    bytes: FileBytes,
    /// Bytes of tensors.
    data_len: usize,
}

/// A file of weights as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMark {
    /// Its path.
    pub path: String,
    /// Size, times of writing and of change, and number: what the system notes of a file whenever it is written to. Words
    /// to compare, not to read.
    pub mark: String,
}

/// Description of a stored tensor.
#[derive(Debug)]
pub(super) struct Record {
    /// Data type.
    pub(super) dtype: Result<Dtype, UnsupportedType>,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    /// Byte range in the file.
    pub(super) range: Range<usize>,
}

/// A data type that is not supported.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnsupportedType {
    /// The type's name in the format.
    pub(super) name: String,
    /// Names of the supported types of this format.
    pub(super) supported: &'static str,
}

#[derive(Debug)]
struct Stored {
    file: usize,
    record: Record,
    /// What the values are computed from, if they are not stored as they are.
    assembled: Option<Assembled>,
}

/// A byte range of one of the files.
#[derive(Debug, Clone)]
pub(super) struct Place {
    file: usize,
    range: Range<usize>,
}

/// A tensor as it is stored, which may be of a type that only parts of quantized matrices have.
pub(super) struct Part<'a> {
    pub(super) name: &'a str,
    pub(super) path: &'a str,
    /// The type's name in the format.
    pub(super) type_name: &'a str,
    /// The type, if tensors may have it.
    pub(super) dtype: Option<Dtype>,
    pub(super) shape: &'a [usize],
    pub(super) place: Place,
}

impl Checkpoint {
    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether a tensor with this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor called `name`, or `None`; fails if its data type is not supported.
    pub fn tensor(&self, name: &str) -> Result<Option<TensorView<'_>>> {
        let Some((name, Stored { file, record, assembled })) = self.tensors.get_key_value(name) else {
            return Ok(None);
        };
        let file = &self.files[*file];
        let dtype = record.dtype.as_ref().map_err(|unsupported| ModelError::Tensor {
            path: file.path.clone(),
            tensor: name.clone(),
            expected: format!("values of type {}", unsupported.supported),
            found: unsupported.name.clone(),
        })?;
        let data = TensorData::in_file(&file.bytes, record.range.clone());
        let data = match assembled {
            None => data,
            Some(matrix) => matrix.data(self, (name.clone(), 0)),
        };
        Ok(Some(TensorView { name, path: &file.path, dtype: *dtype, shape: record.shape.clone(), data }))
    }

    /// Total bytes of tensor data.
    pub fn size(&self) -> usize {
        self.files.iter().map(|file| file.data_len).sum()
    }

    /// Path of every file.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| Path::new(&file.path))
    }

    /// Path and mark of every file; `None` if one is in memory.
    pub(crate) fn file_marks(&self) -> Result<Option<Vec<FileMark>>> {
        let mark =
            |file: &CheckpointFile| Ok(file.bytes.mark()?.map(|mark| FileMark { path: file.path.clone(), mark }));
        self.files.iter().map(mark).collect()
    }

    /// The matrix that was put together last.
    pub(crate) fn last_matrix(&self) -> &LastMatrix {
        &self.last_matrix
    }

    /// A tensor as it is stored.
    pub(super) fn part(&self, name: &str) -> Option<Part<'_>> {
        let (name, Stored { file, record, assembled: None }) = self.tensors.get_key_value(name)? else { return None };
        let (type_name, dtype) = match &record.dtype {
            Ok(dtype) => (dtype.name(), Some(*dtype)),
            Err(unsupported) => (unsupported.name.as_str(), None),
        };
        let place = Place { file: *file, range: record.range.clone() };
        Some(Part { name, path: &self.files[*file].path, type_name, dtype, shape: &record.shape, place })
    }

    /// The bytes at a place.
    pub(super) fn data(&self, place: &Place) -> TensorData<'_> {
        TensorData::in_file(&self.files[place.file].bytes, place.range.clone())
    }

    /// Replaces the tensors called `parts` by a matrix that is computed from them.
    pub(super) fn replace(
        &mut self,
        name: String,
        parts: &[String],
        dtype: Dtype,
        shape: Vec<usize>,
        matrix: Assembled,
    ) {
        let part = || parts.first().and_then(|part| self.tensors.get(part));
        let first = self.tensors.get(&name).or_else(part);
        let Some(Stored { file, record, .. }) = first else { return };
        let (file, range) = (*file, record.range.clone());
        parts.iter().for_each(|part| drop(self.tensors.remove(part)));
        let record = Record { dtype: Ok(dtype), shape, range };
        self.tensors.insert(name, Stored { file, record, assembled: Some(matrix) });
    }

    /// Adds a file and its tensors. Fails on a duplicate tensor name.
    pub(super) fn add_file(
        &mut self,
        path: String,
        bytes: FileBytes,
        records: impl IntoIterator<Item = (String, Record)>,
    ) -> Result<()> {
        let file = self.files.len();
        let mut data_len = 0;
        for (name, record) in records {
            data_len += record.range.len();
            let Some(earlier) = self.tensors.insert(name.clone(), Stored { file, record, assembled: None }) else {
                continue;
            };
            let first = self.files.get(earlier.file).map_or(&path, |file| &file.path);
            let found = format!("a second one, after that in {first}");
            return Err(ModelError::Tensor { path, tensor: name, expected: "one tensor of this name".into(), found });
        }
        self.files.push(CheckpointFile { path, bytes, data_len });
        Ok(())
    }
}
