//! Number types of checkpoints, and checked reading of a tensor's values.

use std::fmt;

use half::{bf16, f16};
use serde::{Serialize, Serializer};

use crate::quantization::dequantize;
use crate::{ModelError, Result};

/// How a tensor's values are stored: each as a float, or in blocks that share scales.
///
/// Names and layouts of the block types are llama.cpp's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    BF16,
    /// 32 values of 4 bits with a scale: 4.5 bits per value.
    Q4_0,
    /// 32 values of 4 bits with a scale and a minimum: 5 bits per value.
    Q4_1,
    /// 32 values of 5 bits with a scale: 5.5 bits per value.
    Q5_0,
    /// 32 values of 5 bits with a scale and a minimum: 6 bits per value.
    Q5_1,
    /// 32 values of 8 bits with a scale: 8.5 bits per value.
    Q8_0,
    /// 256 values of 2 bits, 4-bit scale and minimum per 16: 2.625 bits per value.
    Q2K,
    /// 256 values of 3 bits, 6-bit scale per 16: 3.4375 bits per value.
    Q3K,
    /// 256 values of 4 bits, 6-bit scale and minimum per 32: 4.5 bits per value.
    Q4K,
    /// 256 values of 5 bits, 6-bit scale and minimum per 32: 5.5 bits per value.
    Q5K,
    /// 256 values of 6 bits, 8-bit scale per 16: 6.5625 bits per value.
    Q6K,
    /// 32 values from a table of 16 uneven levels, with a scale: 4.5 bits per value.
    Iq4Nl,
    /// 256 values from the same table, 6-bit scale per 32: 4.25 bits per value.
    Iq4Xs,
}

impl Dtype {
    /// The name in messages and JSON: llama.cpp's, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
            Self::Iq4Nl => "iq4_nl",
            Self::Iq4Xs => "iq4_xs",
        }
    }

    /// Values per block; 1 for floats.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// Bytes per block.
    pub const fn block_size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Iq4Xs => 136,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Whether values share scales.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes that this many values take, or `None` if they are not whole blocks (or more than memory can hold).
    pub const fn bytes(self, values: usize) -> Option<usize> {
        if values.is_multiple_of(self.block_len()) {
            (values / self.block_len()).checked_mul(self.block_size())
        } else {
            None
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Dtype {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
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
    /// Its bytes: what `dtype` takes for the product of `shape`.
    pub data: &'a [u8],
}

/// Values converted at a time: whole blocks of every type, and few enough to stay in a core's cache.
const CHUNK: usize = 1024;

impl TensorView<'_> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values as `T`, in order.
    ///
    /// Fails on a NaN or an infinity, in the file or after rounding to `T`, naming the tensor and the index.
    pub fn read<T: Element>(&self) -> Result<Vec<T>> {
        let mut values = Vec::with_capacity(self.data.len() / self.dtype.block_size() * self.dtype.block_len());
        self.decode(|start, exact| {
            values.extend(exact.iter().map(|value| T::from_f32(*value)));
            match values[start..].iter().position(|value| !value.to_f32().is_finite()) {
                None => Ok(()),
                Some(at) => Err(self.not_finite(start + at, exact[at], T::DTYPE)),
            }
        })?;
        Ok(values)
    }

    /// Fails on a NaN or an infinity as [`TensorView::read`] does, keeping nothing.
    pub fn check(&self) -> Result<()> {
        self.decode(|start, exact| match exact.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => Err(self.not_finite(start + at, exact[at], Dtype::F32)),
        })
    }

    /// Hands over the exact values a few at a time, with the index of the first.
    fn decode(&self, mut take: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        let len = self.shape.iter().try_fold(1, |len: usize, extent| len.checked_mul(*extent));
        if len.and_then(|len| self.dtype.bytes(len)) != Some(self.data.len()) {
            let found = format!("shape {:?} of {} in {} bytes", self.shape, self.dtype, self.data.len());
            return Err(self.error("as many bytes as its shape and type need", found));
        }
        let mut buffer = [0.0; CHUNK];
        let mut start = 0;
        for blocks in self.data.chunks(CHUNK / self.dtype.block_len() * self.dtype.block_size()) {
            let exact = &mut buffer[..blocks.len() / self.dtype.block_size() * self.dtype.block_len()];
            dequantize(self.dtype, blocks, exact);
            take(start, exact)?;
            start += exact.len();
        }
        Ok(())
    }

    fn not_finite(&self, index: usize, stored: f32, target: Dtype) -> ModelError {
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
