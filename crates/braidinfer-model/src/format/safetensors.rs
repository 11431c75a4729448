//! safetensors: a single file, or shards with an index.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype as FileDtype, Metadata, SafeTensorError, SafeTensors};
use serde_json::Value;

use super::checkpoint::{Checkpoint, Record, UnsupportedType};
use super::quantized;
use crate::dtype::Dtype;
use crate::file::FileBytes;
use crate::{JsonFile, ModelError, ModelSource, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Longest header that the format allows.
const LARGEST_HEADER: usize = 100_000_000;

/// Opens `model.safetensors`, or all shards that `model.safetensors.index.json` names.
pub fn open(source: &ModelSource) -> Result<Checkpoint> {
    let mut checkpoint = files(source)?;
    quantized::join(&mut checkpoint, quantized::Method::read(source)?.as_ref())?;
    Ok(checkpoint)
}

/// Opens a single file of unquantized tensors; `None` if there is no such file.
pub(crate) fn open_plain(source: &ModelSource, file: &str) -> Result<Option<Checkpoint>> {
    let Some(bytes) = source.open_file(file)? else { return Ok(None) };
    let mut checkpoint = Checkpoint::default();
    add_file(&mut checkpoint, source.path_of(file), bytes)?;
    Ok(Some(checkpoint))
}

fn files(source: &ModelSource) -> Result<Checkpoint> {
    let mut checkpoint = Checkpoint::default();
    if let Some(bytes) = source.open_file(SINGLE)? {
        add_file(&mut checkpoint, source.path_of(SINGLE), bytes)?;
        return Ok(checkpoint);
    }
    let Some(index) = JsonFile::read(source, INDEX)? else {
        return Err(ModelError::Missing {
            path: source.label(),
            expected: format!("`{SINGLE}` or `{INDEX}`"),
            found: "neither".into(),
        });
    };
    add_shards(&mut checkpoint, source, &index)?;
    Ok(checkpoint)
}

fn add_shards(checkpoint: &mut Checkpoint, source: &ModelSource, index: &JsonFile) -> Result<()> {
    let map = index
        .object("weight_map")?
        .ok_or_else(|| index.error("weight_map", "an object from tensor to file", "nothing"))?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in map.fields() {
        let shard = map.text(name)?.ok_or_else(|| map.error(name, "a file name", "null"))?;
        // A name with a separator could refer to any file on the disk.
        if shard.contains(['/', '\\']) {
            return Err(map.error(name, "a file name without a path", format!("`{shard}`")));
        }
        shards.entry(shard).or_default().push(name);
    }
    for (shard, names) in shards {
        let path = source.path_of(shard);
        let Some(bytes) = source.open_file(shard)? else {
            let expected = format!("the shard that `{INDEX}` names for `{}`", names[0]);
            return Err(ModelError::Missing { path, expected, found: "no such file".into() });
        };
        add_file(checkpoint, path.clone(), bytes)?;
        if let Some(missing) = names.iter().find(|name| !checkpoint.contains(name)) {
            let tensor = (*missing).to_owned();
            let found = "none of this name in the shard that the index names".to_owned();
            return Err(ModelError::Tensor { path, tensor, expected: "a tensor".into(), found });
        }
    }
    Ok(())
}

fn add_file(checkpoint: &mut Checkpoint, path: String, bytes: FileBytes) -> Result<()> {
    let header = Header::read(&bytes)?;
    let metadata = header.parse().map_err(|error| header.explain(&path, error))?;
    let data_start = header.bytes.len();
    let records = metadata.tensors().into_iter().map(|(name, info)| {
        let (begin, end) = info.data_offsets;
        let dtype = match info.dtype {
            FileDtype::F32 => Ok(Dtype::F32),
            FileDtype::F16 => Ok(Dtype::F16),
            FileDtype::BF16 => Ok(Dtype::BF16),
            other => Err(UnsupportedType { name: format!("{other:?}"), supported: "F32, F16 or BF16" }),
        };
        (name, Record { dtype, shape: info.shape.clone(), range: data_start + begin..data_start + end })
    });
    let records = records.collect::<Vec<_>>();
    checkpoint.add_file(path, bytes, records)
}

/// The length of the header, and the header.
struct Header {
    /// Less than the whole header if that is longer than the file, or than it may be.
    bytes: Vec<u8>,
    file_len: usize,
}

impl Header {
    fn read(file: &FileBytes) -> Result<Self> {
        let file_len = file.len();
        let start = file.read(0..file_len.min(size_of::<u64>()))?;
        let end = usize::try_from(declared_header_len(&start)).ok().and_then(|len| len.checked_add(start.len()));
        let whole = end.filter(|end| *end <= file_len && *end <= LARGEST_HEADER + start.len());
        let bytes = match whole {
            Some(end) => file.read(0..end)?.into_owned(),
            None => start.into_owned(),
        };
        Ok(Self { bytes, file_len })
    }

    /// The tensors, which have been checked to fill the file exactly, without gaps.
    fn parse(&self) -> Result<Metadata, SafeTensorError> {
        match SafeTensors::read_metadata(&self.bytes) {
            // The library checks the tensors and then compares their end with that of the buffer, which is the header only.
            Err(SafeTensorError::MetadataIncompleteBuffer) => {}
            Err(other) => return Err(other),
            Ok((_, metadata)) => return self.filled(metadata),
        }
        let json = self.bytes.get(size_of::<u64>()..).unwrap_or_default();
        let metadata = serde_json::from_slice(json).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
        self.filled(metadata)
    }

    fn filled(&self, metadata: Metadata) -> Result<Metadata, SafeTensorError> {
        match self.bytes.len().checked_add(metadata.data_len()) == Some(self.file_len) {
            true => Ok(metadata),
            false => Err(SafeTensorError::MetadataIncompleteBuffer),
        }
    }

    /// Describes an error in terms of the file, because the library's errors lack sizes.
    fn explain(&self, path: &str, error: SafeTensorError) -> ModelError {
        let Self { bytes, file_len } = self;
        let malformed =
            |expected: String, found: String| ModelError::Malformed { path: path.to_owned(), expected, found };
        let tensor = |tensor: String, expected: &str, found: String| ModelError::Tensor {
            path: path.to_owned(),
            tensor,
            expected: expected.into(),
            found,
        };
        let header = "a safetensors header".to_owned();
        match error {
            SafeTensorError::HeaderTooSmall => malformed(header, format!("a file of {file_len} bytes")),
            SafeTensorError::HeaderTooLarge => malformed(
                "a safetensors header of at most 100 MB".into(),
                format!("a header length of {} bytes", declared_header_len(bytes)),
            ),
            SafeTensorError::InvalidHeaderLength => malformed(
                "a header that ends inside the file".into(),
                format!("a header length of {} bytes in a file of {file_len} bytes", declared_header_len(bytes)),
            ),
            SafeTensorError::MetadataIncompleteBuffer => {
                let data = file_len.saturating_sub(bytes.len());
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
                None => {
                    malformed("tensors with as many bytes as their shape and type need".into(), "another size".into())
                }
            },
            other => malformed("a valid safetensors file".into(), other.to_string()),
        }
    }
}

fn declared_header_len(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |len| u64::from_le_bytes(*len))
}

/// The header as unchecked JSON, for messages only.
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
