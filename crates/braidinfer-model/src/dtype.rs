//! Data types of checkpoints, and checked reading of tensor values.

use std::fmt;
use std::ops::Range;

use half::{bf16, f16};
use serde::{Serialize, Serializer};

use crate::quantization::dequantize;
use crate::tensor_data::{READ, TensorData};
use crate::{ModelError, Result};

/// Data type of a tensor: plain floats, or quantized blocks whose values share scales.
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
    /// 256 values near -1, 0 and 1 in groups from a grid of 2048, 3-bit scale per 32: 1.5625 bits per value.
    Iq1S,
    /// 256 values from the same grid, 3-bit scale per 16: 1.75 bits per value.
    Iq1M,
    /// 256 values of three magnitudes in groups from a grid of 256, 4-bit scale per 32: 2.0625 bits per value.
    Iq2Xxs,
    /// 256 values of three magnitudes in groups from a grid of 512, 4-bit scale per 16: 2.3125 bits per value.
    Iq2Xs,
    /// 256 values of three magnitudes in groups from a grid of 1024, 4-bit scale per 16: 2.5625 bits per value.
    Iq2S,
    /// 256 values of eight magnitudes in groups from a grid of 256, 4-bit scale per 32: 3.0625 bits per value.
    Iq3Xxs,
    /// 256 values of eight magnitudes in groups from a grid of 512, 4-bit scale per 32: 3.4375 bits per value.
    Iq3S,
    /// 256 values -1, 0 or 1, five in a byte, with a scale: 1.6875 bits per value.
    Tq1_0,
    /// 256 values -1, 0, 1 or 2, four in a byte, with a scale: 2.0625 bits per value.
    Tq2_0,
    /// 32 floats of 4 bits with a power of two as scale: 4.25 bits per value.
    Mxfp4,
    /// 64 floats of 4 bits with an 8-bit float as scale per 16: 4.5 bits per value.
    Nvfp4,
}

impl Dtype {
    /// All types.
    pub const ALL: [Self; 26] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Iq1S,
        Self::Iq1M,
        Self::Iq2Xxs,
        Self::Iq2Xs,
        Self::Iq2S,
        Self::Iq3Xxs,
        Self::Iq3S,
        Self::Tq1_0,
        Self::Tq2_0,
        Self::Mxfp4,
        Self::Nvfp4,
    ];

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
            Self::Iq1S => "iq1_s",
            Self::Iq1M => "iq1_m",
            Self::Iq2Xxs => "iq2_xxs",
            Self::Iq2Xs => "iq2_xs",
            Self::Iq2S => "iq2_s",
            Self::Iq3Xxs => "iq3_xxs",
            Self::Iq3S => "iq3_s",
            Self::Tq1_0 => "tq1_0",
            Self::Tq2_0 => "tq2_0",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// Values per block; 1 for floats.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl => 32,
            Self::Mxfp4 => 32,
            Self::Nvfp4 => 64,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
            Self::Iq1S | Self::Iq1M | Self::Iq2Xxs | Self::Iq2Xs | Self::Iq2S | Self::Iq3Xxs | Self::Iq3S => 256,
            Self::Tq1_0 | Self::Tq2_0 => 256,
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
            Self::Mxfp4 => 17,
            Self::Nvfp4 => 36,
            Self::Iq1S => 50,
            Self::Tq1_0 => 54,
            Self::Iq1M => 56,
            Self::Iq2Xxs | Self::Tq2_0 => 66,
            Self::Iq2Xs => 74,
            Self::Iq2S => 82,
            Self::Q2K => 84,
            Self::Iq3Xxs => 98,
            Self::Q3K | Self::Iq3S => 110,
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

    /// Size of this many values in bytes, or `None` if they are not whole blocks (or exceed the address space).
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

/// A float type as which tensor values can be read.
pub trait Element: Copy + Send + Sync + 'static {
    /// The type's name.
    const DTYPE: Dtype;
    /// Rounds to nearest even.
    fn from_f32(value: f32) -> Self;
    /// Converts exactly.
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
    /// Path of its file, for messages.
    pub path: &'a str,
    /// Type of its values.
    pub dtype: Dtype,
    /// Extent of each dimension, outermost first.
    pub shape: Vec<usize>,
    /// Its bytes, as many as `dtype` needs for the product of `shape`.
    pub data: TensorData<'a>,
}

/// Number of values converted at a time: whole blocks of every type, and few enough for the CPU cache.
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

    /// All values converted to `T`, in order.
    ///
    /// Fails on a NaN or an infinity, in the file or after rounding to `T`, naming the tensor and the index.
    pub fn read<T: Element>(&self) -> Result<Vec<T>> {
        self.read_blocks(0..self.data.len() / self.dtype.block_size())
    }

    /// The values of some rows of a matrix, like [`TensorView::read`]. The rows must be inside the matrix.
    pub fn read_rows<T: Element>(&self, rows: Range<usize>) -> Result<Vec<T>> {
        let row = self.shape[1..].iter().product::<usize>() / self.dtype.block_len();
        self.read_blocks(rows.start * row..rows.end * row)
    }

    fn read_blocks<T: Element>(&self, blocks: Range<usize>) -> Result<Vec<T>> {
        let first = blocks.start * self.dtype.block_len();
        let mut values = Vec::with_capacity(blocks.len() * self.dtype.block_len());
        self.decode(blocks, |start, exact| {
            values.extend(exact.iter().map(|value| T::from_f32(*value)));
            match values[start - first..].iter().position(|value| !value.to_f32().is_finite()) {
                None => Ok(()),
                Some(at) => Err(self.not_finite(start + at, exact[at], T::DTYPE)),
            }
        })?;
        Ok(values)
    }

    /// Fails on a NaN or an infinity like [`TensorView::read`], without storing the values.
    pub fn check(&self) -> Result<()> {
        let blocks = 0..self.data.len() / self.dtype.block_size();
        self.decode(blocks, |start, exact| match exact.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => Err(self.not_finite(start + at, exact[at], Dtype::F32)),
        })
    }

    /// Passes the exact values to `take` in chunks, each with the index of its first value.
    fn decode(&self, blocks: Range<usize>, mut take: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        let len = self.shape.iter().try_fold(1, |len: usize, extent| len.checked_mul(*extent));
        if len.and_then(|len| self.dtype.bytes(len)) != Some(self.data.len()) {
            let found = format!("shape {:?} of {} in {} bytes", self.shape, self.dtype, self.data.len());
            return Err(self.error("as many bytes as its shape and type need", found));
        }
        let (len, size) = (self.dtype.block_len(), self.dtype.block_size());
        let mut buffer = [0.0; CHUNK];
        let mut start = blocks.start * len;
        let chunk = CHUNK / len * size;
        let (end, at_once) = (blocks.end * size, READ / chunk * chunk);
        for first in (blocks.start * size..end).step_by(at_once) {
            let bytes = self.data.read_part(first..end.min(first + at_once))?;
            for blocks in bytes.chunks(chunk) {
                let exact = &mut buffer[..blocks.len() / size * len];
                dequantize(self.dtype, blocks, exact);
                take(start, exact)?;
                start += exact.len();
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn view(dtype: Dtype, shape: &[usize], data: &[u8]) -> Result<Vec<f32>> {
        TensorView { name: "weight", path: "model.gguf", dtype, shape: shape.to_vec(), data: data.into() }.read()
    }

    #[test]
    fn sizes_are_those_of_whole_blocks() {
        assert_eq!(Dtype::Q4K.bytes(512), Some(288));
        assert_eq!(Dtype::Q4K.bytes(128), None);
        assert_eq!(Dtype::BF16.bytes(3), Some(6));
        assert_eq!(Dtype::F32.bytes(usize::MAX / 2), None);
    }

    #[test]
    fn quantized_values_are_read_across_chunks() {
        let one: [u8; 2] = f16::ONE.to_le_bytes();
        let blocks: Vec<u8> = (0..100).flat_map(|i| [&one[..], &[i; 32]].concat()).collect();
        let values = view(Dtype::Q8_0, &[50, 64], &blocks).expect("the blocks are whole");
        let expected: Vec<f32> = (0..100).flat_map(|i: u8| [f32::from(i); 32]).collect();
        assert_eq!(values, expected);
    }

    #[test]
    fn non_finite_values_are_named_in_errors() {
        let mut blocks = vec![1; 34 * 64];
        blocks[34 * 40..][..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
        let error = view(Dtype::Q8_0, &[64, 32], &blocks).expect_err("a scale is infinite").to_string();
        assert!(error.contains("`weight`: expected finite values, found inf at index 1280"), "{error}");
    }

    #[test]
    fn data_of_the_wrong_size_is_rejected() {
        for shape in [&[3, 32][..], &[33], &[usize::MAX, 32]] {
            let error = view(Dtype::Q8_0, shape, &[0; 68]).expect_err("the shape has another size").to_string();
            assert!(error.contains("of q8_0 in 68 bytes"), "{error}");
        }
    }
}
