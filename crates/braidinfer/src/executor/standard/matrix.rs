//! Weight matrices: tensors in the compute type, or checkpoint bytes that are converted to f32 a few rows at a time.

use braidinfer_model::quantization::dequantize;
use braidinfer_model::{Dtype, WeightBytes};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::slice::HalfFloatSliceExt;

use crate::Result;

/// A matrix `[rows, columns]`. Clones share memory.
#[derive(Debug, Clone)]
pub(super) enum Matrix {
    /// In the compute type, on any device.
    Dense(Tensor),
    /// In the data type of the checkpoint, on the CPU.
    Stored(StoredMatrix),
}

/// Rows of quantized blocks, or of plain values.
#[derive(Debug, Clone)]
pub(super) struct StoredMatrix {
    dtype: Dtype,
    rows: usize,
    columns: usize,
    blocks: WeightBytes,
}

impl StoredMatrix {
    /// `blocks` has `rows` rows of `columns` values.
    pub(super) fn new(dtype: Dtype, rows: usize, columns: usize, blocks: WeightBytes) -> Self {
        Self { dtype, rows, columns, blocks }
    }

    /// The exact values of `count` rows, beginning at row `start`.
    fn values(&self, start: usize, count: usize) -> Result<Vec<f32>> {
        let row = self.blocks.size() / self.rows;
        let mut values = vec![0.0; count * self.columns];
        dequantize(self.dtype, &self.blocks.part(start * row..(start + count) * row)?, &mut values);
        Ok(values)
    }
}

impl Matrix {
    /// Number of rows.
    pub(super) fn rows(&self) -> Result<usize> {
        match self {
            Self::Dense(tensor) => Ok(tensor.dim(0)?),
            Self::Stored(matrix) => Ok(matrix.rows),
        }
    }

    /// Size in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            Self::Stored(matrix) => matrix.blocks.size(),
        }
    }

    /// The whole matrix, if its data type is f32.
    pub(super) fn as_f32(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(tensor) if tensor.dtype() == DType::F32 => Some(tensor),
            _ => None,
        }
    }

    /// `count` rows in f32, beginning at row `start`.
    pub(super) fn rows_f32(&self, start: usize, count: usize) -> Result<Tensor> {
        Ok(match self {
            Self::Dense(tensor) => widened(&tensor.narrow(0, start, count)?)?,
            Self::Stored(matrix) => {
                Tensor::from_vec(matrix.values(start, count)?, (count, matrix.columns), &Device::Cpu)?
            }
        })
    }

    /// The rows `indices` in `dtype`; all must be inside the matrix.
    pub(super) fn select(&self, indices: &[u32], dtype: DType) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => {
                Ok(tensor.index_select(&Tensor::new(indices, tensor.device())?, 0)?.to_dtype(dtype)?)
            }
            Self::Stored(matrix) => {
                let mut values = Vec::with_capacity(indices.len() * matrix.columns);
                for index in indices {
                    values.extend(matrix.values(*index as usize, 1)?);
                }
                let rows = Tensor::from_vec(values, (indices.len(), matrix.columns), &Device::Cpu)?;
                Ok(rows.to_dtype(dtype)?)
            }
        }
    }
}

/// `tensor` in f32. Candle converts value by value, which takes most of the time of a product with one row.
fn widened(tensor: &Tensor) -> Result<Tensor> {
    match widened_halves(tensor) {
        Some(values) => Ok(Tensor::from_vec(values, tensor.shape(), tensor.device())?),
        None => Ok(tensor.to_dtype(DType::F32)?),
    }
}

/// The values of a tensor of bf16 or f16 on the CPU, if they are contiguous.
fn widened_halves(tensor: &Tensor) -> Option<Vec<f32>> {
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = layout.contiguous_offsets()?;
    match &*storage {
        // A bf16 is the upper half of an f32, and a shift is what the compiler makes vectors of.
        Storage::Cpu(CpuStorage::BF16(halves)) => {
            Some(halves[start..end].iter().map(|half| f32::from_bits(u32::from(half.to_bits()) << 16)).collect())
        }
        Storage::Cpu(CpuStorage::F16(halves)) => Some(halves[start..end].to_f32_vec()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_widened_to_their_values() {
        let values: Vec<f32> = (0..40).map(|index| (index as f32 - 17.0) * 1.37e-3_f32.powi(index % 5)).collect();
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let tensor = Tensor::from_slice(&values, (5, 8), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let rows = Matrix::Dense(tensor.clone()).rows_f32(1, 3).unwrap();
            let expected = tensor.narrow(0, 1, 3).unwrap().to_dtype(DType::F32).unwrap();
            assert_eq!(rows.to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap(), "{dtype:?}");
        }
    }
}
