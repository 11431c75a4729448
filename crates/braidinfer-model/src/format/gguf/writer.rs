//! Writing GGUF, version 3.

use std::io::{self, Write};

use super::metadata::{Array, Metadata, Scalar, Value};
use super::tensor_type;
use crate::Dtype;

const ALIGNMENT: u64 = 32;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    /// Its name.
    pub name: String,
    /// Outermost dimension first; rows are whole blocks of `dtype`.
    pub shape: Vec<usize>,
    /// Data type.
    pub dtype: Dtype,
}

impl TensorHeader {
    /// Size of its data in bytes.
    pub fn size(&self) -> u64 {
        let values: usize = self.shape.iter().product();
        self.dtype.bytes(values).unwrap_or(0) as u64
    }
}

/// Writes a GGUF file: first the header, then the tensors in the order of the header.
#[derive(Debug)]
pub struct GgufWriter<W: Write> {
    out: W,
    sizes: std::vec::IntoIter<u64>,
}

impl<W: Write> GgufWriter<W> {
    /// Writes the header of a file with these key-value pairs and tensors.
    pub fn begin(mut out: W, metadata: &Metadata, tensors: &[TensorHeader]) -> io::Result<Self> {
        let mut header = Vec::new();
        header.extend(b"GGUF");
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.iter().count() as u64).to_le_bytes());
        // General keys come first, because tools list keys in the order of the file.
        let general = |key: &str| key.starts_with("general.");
        for (key, value) in metadata.iter().filter(|(key, _)| general(key)) {
            push_pair(&mut header, key, value);
        }
        for (key, value) in metadata.iter().filter(|(key, _)| !general(key)) {
            push_pair(&mut header, key, value);
        }
        let mut offset = 0;
        for tensor in tensors {
            push_tensor(&mut header, tensor, offset);
            offset += tensor.size().next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        out.write_all(&header)?;
        let sizes: Vec<u64> = tensors.iter().map(TensorHeader::size).collect();
        Ok(Self { out, sizes: sizes.into_iter() })
    }

    /// Writes the data of the next tensor, in parts.
    pub fn tensor<E: From<io::Error>>(&mut self, parts: impl IntoIterator<Item = Result<Vec<u8>, E>>) -> Result<(), E> {
        let size = self.sizes.next().ok_or_else(|| io::Error::other("a tensor beyond those of the header"))?;
        let mut written = 0;
        for part in parts {
            let part = part?;
            written += part.len() as u64;
            self.out.write_all(&part)?;
        }
        if written != size {
            return Err(io::Error::other("a tensor's data differs in size from what its header says").into());
        }
        let padding = (size.next_multiple_of(ALIGNMENT) - size) as usize;
        Ok(self.out.write_all(&[0; ALIGNMENT as usize][..padding])?)
    }

    /// Returns the underlying writer after all tensors are written.
    pub fn finish(mut self) -> io::Result<W> {
        match self.sizes.next() {
            None => self.out.flush().map(|()| self.out),
            Some(_) => Err(io::Error::other("tensors are missing")),
        }
    }
}

fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

fn push_pair(out: &mut Vec<u8>, key: &str, value: &Value) {
    push_text(out, key.as_bytes());
    match value {
        Value::Scalar(scalar) => {
            out.extend(kind(*scalar).to_le_bytes());
            out.extend(scalar.encode());
        }
        Value::Text(text) => {
            out.extend(8u32.to_le_bytes());
            push_text(out, text);
        }
        Value::Array(array) => {
            out.extend(9u32.to_le_bytes());
            push_array(out, array);
        }
    }
}

fn push_array(out: &mut Vec<u8>, array: &Array) {
    let len = (array.len() as u64).to_le_bytes();
    match array {
        Array::Texts(texts) => {
            out.extend(8u32.to_le_bytes());
            out.extend(len);
            texts.iter().for_each(|text| push_text(out, text));
        }
        Array::Numbers { kind: of, bytes } => {
            out.extend(kind(*of).to_le_bytes());
            out.extend(len);
            out.extend(bytes);
        }
    }
}

fn push_tensor(out: &mut Vec<u8>, tensor: &TensorHeader, offset: u64) {
    push_text(out, tensor.name.as_bytes());
    out.extend((tensor.shape.len() as u32).to_le_bytes());
    for extent in tensor.shape.iter().rev() {
        out.extend((*extent as u64).to_le_bytes());
    }
    out.extend(tensor_type::id(tensor.dtype).to_le_bytes());
    out.extend(offset.to_le_bytes());
}

/// GGUF's number for the type of a scalar.
fn kind(scalar: Scalar) -> u32 {
    match scalar {
        Scalar::U8(_) => 0,
        Scalar::I8(_) => 1,
        Scalar::U16(_) => 2,
        Scalar::I16(_) => 3,
        Scalar::U32(_) => 4,
        Scalar::I32(_) => 5,
        Scalar::F32(_) => 6,
        Scalar::Bool(_) => 7,
        Scalar::U64(_) => 10,
        Scalar::I64(_) => 11,
        Scalar::F64(_) => 12,
    }
}
