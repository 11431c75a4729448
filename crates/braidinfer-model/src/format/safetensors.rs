//! safetensors: one file, or shards with an index.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::tensor::{Dtype as FileDtype, Metadata, SafeTensorError, SafeTensors};
use serde_json::Value;

use crate::dtype::{Dtype, TensorView};
use crate::source::FileBytes;
use crate::{JsonFile, ModelError, ModelSource, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// All tensors of a checkpoint, from one file or many.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Record>,
}

#[derive(Debug)]
struct MappedFile {
    path: String,
    bytes: FileBytes,
}

#[derive(Debug)]
struct Record {
    file: usize,
    dtype: FileDtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or every shard that `model.safetensors.index.json` names.
    pub fn open(source: &ModelSource) -> Result<Self> {
        let mut checkpoint = Self { files: Vec::new(), tensors: BTreeMap::new() };
        if let Some(bytes) = source.map(SINGLE)? {
            checkpoint.add_file(source.path_of(SINGLE), bytes)?;
            return Ok(checkpoint);
        }
        let Some(index) = JsonFile::read(source, INDEX)? else {
            return Err(ModelError::Missing {
                path: source.label(),
                expected: format!("`{SINGLE}` or `{INDEX}`"),
                found: "neither".into(),
            });
        };
        checkpoint.add_shards(source, &index)?;
        Ok(checkpoint)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether a tensor of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor called `name`, or `None`; an error if its values are not of a supported type.
    pub fn tensor(&self, name: &str) -> Result<Option<TensorView<'_>>> {
        let Some((name, record)) = self.tensors.get_key_value(name) else { return Ok(None) };
        let file = &self.files[record.file];
        let dtype = match record.dtype {
            FileDtype::F32 => Dtype::F32,
            FileDtype::F16 => Dtype::F16,
            FileDtype::BF16 => Dtype::BF16,
            other => {
                return Err(ModelError::Tensor {
                    path: file.path.clone(),
                    tensor: name.clone(),
                    expected: "values of type F32, F16 or BF16".into(),
                    found: format!("{other:?}"),
                });
            }
        };
        let data = &file.bytes.as_slice()[record.range.clone()];
        Ok(Some(TensorView { name, path: &file.path, dtype, shape: record.shape.clone(), data }))
    }

    /// Lets go of memory that only caches a part of the tensor called `name`, given in bytes of its data.
    pub(crate) fn release(&self, name: &str, part: Range<usize>) {
        if let Some(record) = self.tensors.get(name) {
            let start = record.range.start;
            self.files[record.file].bytes.release(start + part.start..start + part.end);
        }
    }

    /// Total bytes of tensor data.
    pub fn size(&self) -> usize {
        self.tensors.values().map(|record| record.range.len()).sum()
    }

    fn add_shards(&mut self, source: &ModelSource, index: &JsonFile) -> Result<()> {
        let map = index
            .object("weight_map")?
            .ok_or_else(|| index.error("weight_map", "an object from tensor to file", "nothing"))?;
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for name in map.fields() {
            let shard = map.text(name)?.ok_or_else(|| map.error(name, "a file name", "null"))?;
            // A name with a separator could point anywhere on the disk.
            if shard.contains(['/', '\\']) {
                return Err(map.error(name, "a file name without a path", format!("`{shard}`")));
            }
            shards.entry(shard).or_default().push(name);
        }
        for (shard, names) in shards {
            let path = source.path_of(shard);
            let Some(bytes) = source.map(shard)? else {
                let expected = format!("the shard that `{INDEX}` names for `{}`", names[0]);
                return Err(ModelError::Missing { path, expected, found: "no such file".into() });
            };
            self.add_file(path.clone(), bytes)?;
            let found = "none of this name in the shard that the index names".to_owned();
            if let Some(missing) = names.iter().find(|name| !self.contains(name)) {
                return Err(ModelError::Tensor {
                    path,
                    tensor: (*missing).to_owned(),
                    expected: "a tensor".into(),
                    found,
                });
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: String, bytes: FileBytes) -> Result<()> {
        let (header_len, metadata) = read_header(&path, bytes.as_slice())?;
        let file = self.files.len();
        let data_start = header_len + size_of::<u64>();
        for (name, info) in metadata.tensors() {
            let (begin, end) = info.data_offsets;
            let range = data_start + begin..data_start + end;
            let record = Record { file, dtype: info.dtype, shape: info.shape.clone(), range };
            if let Some(earlier) = self.tensors.insert(name.clone(), record) {
                let found = format!("a second one, after that in {}", self.files[earlier.file].path);
                return Err(ModelError::Tensor {
                    path,
                    tensor: name,
                    expected: "one tensor of this name".into(),
                    found,
                });
            }
        }
        self.files.push(MappedFile { path, bytes });
        Ok(())
    }
}

/// Header length and checked metadata of a safetensors file.
fn read_header(path: &str, bytes: &[u8]) -> Result<(usize, Metadata)> {
    SafeTensors::read_metadata(bytes).map_err(|error| explain(path, bytes, error))
}

/// Says what is wrong in terms of the file: the library's errors lack sizes.
fn explain(path: &str, bytes: &[u8], error: SafeTensorError) -> ModelError {
    let malformed = |expected: String, found: String| ModelError::Malformed { path: path.to_owned(), expected, found };
    let tensor = |tensor: String, expected: &str, found: String| ModelError::Tensor {
        path: path.to_owned(),
        tensor,
        expected: expected.into(),
        found,
    };
    let header = "a safetensors header".to_owned();
    match error {
        SafeTensorError::HeaderTooSmall => malformed(header, format!("a file of {} bytes", bytes.len())),
        SafeTensorError::HeaderTooLarge => malformed(
            "a safetensors header of at most 100 MB".into(),
            format!("a header length of {} bytes", declared_header_len(bytes)),
        ),
        SafeTensorError::InvalidHeaderLength => malformed(
            "a header that ends inside the file".into(),
            format!("a header length of {} bytes in a file of {} bytes", declared_header_len(bytes), bytes.len()),
        ),
        SafeTensorError::MetadataIncompleteBuffer => {
            let data = bytes.len().saturating_sub(8 + declared_header_len(bytes) as usize);
            let expected = match declared_data_len(bytes) {
                Some(len) => format!("{len} bytes of tensor data after the header"),
                None => "tensor data that the header covers exactly".into(),
            };
            let hint = "the file is cut short, or has bytes that no tensor owns";
            malformed(expected, format!("{data} bytes ({hint})"))
        }
        SafeTensorError::InvalidOffset(name) => {
            let found = declared_offsets(bytes, &name).unwrap_or_else(|| "others".into());
            tensor(name, "data offsets that begin where the tensor before ends", found)
        }
        SafeTensorError::TensorInvalidInfo => match first_size_mismatch(bytes) {
            Some((name, found)) => tensor(name, "as many bytes as its shape and type need", found),
            None => malformed("tensors with as many bytes as their shape and type need".into(), "another size".into()),
        },
        other => malformed("a valid safetensors file".into(), other.to_string()),
    }
}

fn declared_header_len(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |len| u64::from_le_bytes(*len))
}

/// The header as loose JSON, for messages only.
fn loose_header(bytes: &[u8]) -> Option<serde_json::Map<String, Value>> {
    let end = usize::try_from(declared_header_len(bytes)).ok()?.checked_add(8)?;
    serde_json::from_slice(bytes.get(8..end)?).ok()
}

fn declared_data_len(bytes: &[u8]) -> Option<u64> {
    let header = loose_header(bytes)?;
    header.values().filter_map(|info| info["data_offsets"][1].as_u64()).max()
}

fn declared_offsets(bytes: &[u8], name: &str) -> Option<String> {
    let header = loose_header(bytes)?;
    header.get(name).map(|info| format!("data offsets {}", info["data_offsets"]))
}

fn first_size_mismatch(bytes: &[u8]) -> Option<(String, String)> {
    let header = loose_header(bytes)?;
    header.into_iter().find_map(|(name, info)| {
        let shape: Option<Vec<u64>> = info["shape"].as_array()?.iter().map(Value::as_u64).collect();
        let values = shape?.iter().try_fold(1u64, |product, extent| product.checked_mul(*extent))?;
        let size = match info["dtype"].as_str()? {
            "F64" | "I64" | "U64" => 8,
            "F32" | "I32" | "U32" => 4,
            "F16" | "BF16" | "I16" | "U16" => 2,
            _ => 1,
        };
        let (begin, end) = (info["data_offsets"][0].as_u64()?, info["data_offsets"][1].as_u64()?);
        let fits = values.checked_mul(size) == end.checked_sub(begin);
        let found = format!("shape {} of {} in data offsets [{begin}, {end}]", info["shape"], info["dtype"]);
        (!fits).then_some((name, found))
    })
}
