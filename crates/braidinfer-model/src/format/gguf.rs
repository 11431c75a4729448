//! GGUF: metadata and tensors in one file, or in numbered shards.
//!
//! The layout is that of ggml's `docs/gguf.md`, versions 2 and 3: a magic number, counts, key-value pairs, one
//! description per tensor, then aligned data. Every count, length and offset is checked against the file before it is
//! used, and no allocation is larger than the file's size justifies.

mod metadata;
mod reader;
mod shards;
mod tensor_type;
mod writer;

use std::path::Path;
use std::sync::Arc;

use self::reader::{Header, TensorInfo};
use super::checkpoint::{Checkpoint, Record};
use super::split_heads;
use crate::file::FileBytes;
use crate::{Dtype, ModelError, Result};

pub use self::metadata::{Array, Metadata, Scalar, Value};
pub use self::writer::{GgufWriter, TensorHeader};

/// A GGUF model: metadata and tensors.
#[derive(Debug)]
pub struct Gguf {
    metadata: Metadata,
    checkpoint: Arc<Checkpoint>,
}

impl Gguf {
    /// Opens the file at `path` and, if it is the first of several shards, the others.
    pub fn open(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let mut gguf = Builder::new(label, FileBytes::open(path)?)?;
        for shard in shards::others(path, &gguf.metadata)? {
            gguf.add_shard(&shard)?;
        }
        gguf.finish()
    }

    /// The paths of the file and of its other shards, or the labels of those in memory.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.checkpoint.paths()
    }

    /// Reads a file that is already in memory; `label` replaces its path in messages.
    pub fn from_bytes(label: &str, bytes: Arc<[u8]>) -> Result<Self> {
        let gguf = Builder::new(label.to_owned(), FileBytes::Shared(bytes))?;
        match shards::count(&gguf.metadata)? {
            1 => gguf.finish(),
            count => Err(gguf.metadata.error("split.count", "a file that is whole", format!("{count} shards"))),
        }
    }

    /// An in-memory model of a file that is not written: its key-value pairs and shapes, and the data of small tensors
    /// only.
    pub(crate) fn sketch(
        metadata: &Metadata,
        tensors: &[TensorHeader],
        settings: &[(&'static str, Vec<f32>)],
    ) -> Result<Self> {
        let mut bytes = Vec::new();
        let shape_only = |tensor: &TensorHeader| {
            (tensor.name.clone(), Record { dtype: Ok(tensor.dtype), shape: tensor.shape.clone(), range: 0..0 })
        };
        let mut records: Vec<(String, Record)> = tensors.iter().map(shape_only).collect();
        for (name, values) in settings {
            let start = bytes.len();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            let record = Record { dtype: Ok(Dtype::F32), shape: vec![values.len()], range: start..bytes.len() };
            records.push(((*name).to_owned(), record));
        }
        let mut checkpoint = Checkpoint::default();
        checkpoint.add_file(metadata.path().to_owned(), FileBytes::Shared(bytes.into()), records)?;
        Ok(Self { metadata: metadata.clone(), checkpoint: Arc::new(checkpoint) })
    }

    /// The key-value pairs; of the first shard if there are several.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors of all shards.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }
}

/// A model that is being assembled from shards.
struct Builder {
    metadata: Metadata,
    checkpoint: Checkpoint,
    tensors: usize,
}

impl Builder {
    fn new(label: String, bytes: FileBytes) -> Result<Self> {
        let (header, records) = read_file(&label, &bytes)?;
        let tensors = records.len();
        let mut checkpoint = Checkpoint::default();
        checkpoint.add_file(label, bytes, records)?;
        Ok(Self { metadata: header.metadata, checkpoint, tensors })
    }

    fn add_shard(&mut self, shard: &shards::Shard) -> Result<()> {
        let label = shard.path.display().to_string();
        let bytes = FileBytes::open(&shard.path)?;
        let (header, records) = read_file(&label, &bytes)?;
        shard.check(&header.metadata)?;
        self.tensors += records.len();
        self.checkpoint.add_file(label, bytes, records)
    }

    fn finish(mut self) -> Result<Gguf> {
        const KEY: &str = "split.tensors.count";
        match self.metadata.unsigned(KEY)? {
            Some(count) if count != self.tensors as u64 => {
                Err(self.metadata.error(KEY, format!("the {} tensors of all shards", self.tensors), count.to_string()))
            }
            _ => {
                split_heads::join(&mut self.checkpoint)?;
                Ok(Gguf { metadata: self.metadata, checkpoint: Arc::new(self.checkpoint) })
            }
        }
    }
}

/// The header of a file, and a record of each tensor.
fn read_file(path: &str, bytes: &FileBytes) -> Result<(Header, Vec<(String, Record)>)> {
    let header = reader::read(path, bytes)?;
    let len = bytes.len();
    let mut records = Vec::with_capacity(header.tensors.len());
    for tensor in &header.tensors {
        records.push((tensor.name.clone(), record(path, tensor, header.data_start, len)?));
    }
    check_overlaps(path, &records)?;
    Ok((header, records))
}

fn record(path: &str, tensor: &TensorInfo, data_start: usize, file_len: usize) -> Result<Record> {
    let error = |expected: String, found: String| ModelError::Tensor {
        path: path.to_owned(),
        tensor: tensor.name.clone(),
        expected,
        found,
    };
    let values = tensor.shape.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent));
    let values =
        values.ok_or_else(|| error("a shape whose product fits the memory".into(), format!("{:?}", tensor.shape)))?;
    let start = usize::try_from(tensor.offset).ok().and_then(|offset| data_start.checked_add(offset));
    let dtype = match tensor_type::dtype(tensor.type_id) {
        Ok(dtype) => dtype,
        // The size of an unknown type is unknown. The error with the type's name is returned when the tensor is
        // accessed.
        Err(unsupported) => return Ok(Record { dtype: Err(unsupported), shape: tensor.shape.clone(), range: 0..0 }),
    };
    let row = tensor.shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(dtype.block_len()) {
        let expected = format!("rows of whole blocks of {} values, since the type is {dtype}", dtype.block_len());
        return Err(error(expected, format!("rows of {row} values")));
    }
    let bytes = dtype.bytes(values);
    let range = start.and_then(|start| Some(start..start.checked_add(bytes?)?)).filter(|range| range.end <= file_len);
    let range = range.ok_or_else(|| {
        let need = bytes.map_or("more bytes than there can be".into(), |bytes| format!("{bytes} bytes"));
        let found = format!(
            "offset {} with data that starts at byte {data_start} of {file_len} (is the file cut short?)",
            tensor.offset
        );
        error(format!("{need} of data inside the file"), found)
    })?;
    Ok(Record { dtype: Ok(dtype), shape: tensor.shape.clone(), range })
}

/// Rejects overlapping tensors, with which a small file could require much memory.
fn check_overlaps(path: &str, records: &[(String, Record)]) -> Result<()> {
    let mut sorted: Vec<_> = records.iter().filter(|(_, record)| !record.range.is_empty()).collect();
    sorted.sort_by_key(|(_, record)| record.range.start);
    let overlap = sorted.windows(2).find(|pair| pair[1].1.range.start < pair[0].1.range.end);
    let Some([(first, _), (second, record)]) = overlap else { return Ok(()) };
    Err(ModelError::Tensor {
        path: path.to_owned(),
        tensor: second.clone(),
        expected: format!("data after that of `{first}`"),
        found: format!("data at byte {}, which belongs to it", record.range.start),
    })
}
