//! The tensors of a checkpoint, which may be in several files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use crate::dtype::{Dtype, TensorData, TensorView};
use crate::file::FileBytes;
use crate::{ModelError, Result};

/// All tensors of a checkpoint, from one or several files. Before a file is added, the caller must have checked that
/// every tensor lies inside it and has as many bytes as its shape and type need.
#[derive(Debug, Default)]
pub struct Checkpoint {
    files: Vec<CheckpointFile>,
    tensors: BTreeMap<String, Stored>,
}

#[derive(Debug)]
struct CheckpointFile {
    path: String,
    bytes: FileBytes,
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
        let Some((name, Stored { file, record })) = self.tensors.get_key_value(name) else { return Ok(None) };
        let file = &self.files[*file];
        let dtype = record.dtype.as_ref().map_err(|unsupported| ModelError::Tensor {
            path: file.path.clone(),
            tensor: name.clone(),
            expected: format!("values of type {}", unsupported.supported),
            found: unsupported.name.clone(),
        })?;
        let data = TensorData::in_file(&file.bytes, record.range.clone());
        Ok(Some(TensorView { name, path: &file.path, dtype: *dtype, shape: record.shape.clone(), data }))
    }

    /// File index and byte range of the tensor called `name`.
    pub(crate) fn place(&self, name: &str) -> Option<(usize, Range<usize>)> {
        self.tensors.get(name).map(|stored| (stored.file, stored.record.range.clone()))
    }

    /// Bytes of a file, addressed as in [`Checkpoint::place`]; fails if the file has changed.
    pub(crate) fn read(&self, file: usize, range: Range<usize>) -> Result<Cow<'_, [u8]>> {
        self.files[file].bytes.read(range)
    }

    /// Total bytes of tensor data.
    pub fn size(&self) -> usize {
        self.tensors.values().map(|stored| stored.record.range.len()).sum()
    }

    /// Adds a file and its tensors. Fails on a duplicate tensor name.
    pub(super) fn add_file(
        &mut self,
        path: String,
        bytes: FileBytes,
        records: impl IntoIterator<Item = (String, Record)>,
    ) -> Result<()> {
        let file = self.files.len();
        for (name, record) in records {
            let Some(earlier) = self.tensors.insert(name.clone(), Stored { file, record }) else { continue };
            let first = self.files.get(earlier.file).map_or(&path, |file| &file.path);
            let found = format!("a second one, after that in {first}");
            return Err(ModelError::Tensor { path, tensor: name, expected: "one tensor of this name".into(), found });
        }
        self.files.push(CheckpointFile { path, bytes });
        Ok(())
    }
}
