//! Number types of checkpoints, and checked reading of a tensor's values.

use std::fmt;

use half::{bf16, f16};
use serde::Serialize;

use crate::{ModelError, Result};

/// How a tensor's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    BF16,
}

impl Dtype {
    /// Bytes per value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        })
    }
}

/// A number type that tensor values can be read into.
pub trait Element: Copy + Send + Sync + 'static {
    /// The type's name.
    const DTYPE: Dtype;
    /// Rounds to nearest even.
    fn from_f32(value: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    fn from_f32(value: f32) -> Self {
        value
    }
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::BF16;
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

/// A named tensor inside a file: row-major little-endian values, not necessarily aligned.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// Name in the checkpoint.
    pub name: &'a str,
    /// File it stands in, for messages.
    pub path: &'a str,
    /// Type of its values.
    pub dtype: Dtype,
    /// Extent of each dimension, outermost first.
    pub shape: Vec<usize>,
    /// Its bytes: the product of `shape` times the size of `dtype`.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// Whether the tensor has no values.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// All values as `T`, in order.
    ///
    /// Fails on a NaN or an infinity, in the file or after rounding to `T`, naming the tensor and the index.
    pub fn read<T: Element>(&self) -> Result<Vec<T>> {
        let values: Vec<T> = match self.dtype {
            Dtype::F32 => convert(self.data, |b: [u8; 4]| f32::from_le_bytes(b)),
            Dtype::F16 => convert(self.data, |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => convert(self.data, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
        };
        match values.iter().position(|value| !value.to_f32().is_finite()) {
            None => Ok(values),
            Some(index) => Err(self.not_finite(index, T::DTYPE)),
        }
    }

    fn not_finite(&self, index: usize, target: Dtype) -> ModelError {
        let size = self.dtype.size();
        let bytes = &self.data[index * size..(index + 1) * size];
        let stored = match self.dtype {
            Dtype::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Dtype::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Dtype::BF16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        };
        let expected =
            if stored.is_finite() { format!("values within the range of {target}") } else { "finite values".into() };
        self.error(expected, format!("{stored} at index {index}"))
    }

    /// An error about this tensor.
    pub fn error(&self, expected: impl Into<String>, found: impl Into<String>) -> ModelError {
        ModelError::Tensor {
            path: self.path.to_owned(),
            tensor: self.name.to_owned(),
            expected: expected.into(),
            found: found.into(),
        }
    }
}

fn convert<const N: usize, T: Element>(data: &[u8], decode: impl Fn([u8; N]) -> f32) -> Vec<T> {
    let (chunks, _) = data.as_chunks::<N>();
    chunks.iter().map(|bytes| T::from_f32(decode(*bytes))).collect()
}
