//! Scales of quantized matrices.

use std::ops::Range;

use half::f16;

use super::super::checkpoint::{Checkpoint, Part, Place};
use super::error;
use crate::Result;
use crate::dtype::Dtype;
use crate::quantization::dequantize;

/// A matrix of scales, each of which belongs to a block of rows and columns.
#[derive(Debug)]
pub(super) struct Scales {
    place: Place,
    dtype: Dtype,
    /// Rows and columns of scales.
    grid: [usize; 2],
    /// Rows and columns of values that share a scale.
    block: [usize; 2],
}

impl Scales {
    /// The scales of a matrix `[rows, columns]`; `usual` is the block where the shape does not tell.
    pub(super) fn of(part: &Part<'_>, [rows, columns]: [usize; 2], usual: [usize; 2]) -> Result<Self> {
        let grid = match part.shape {
            [] => [1, 1],
            [one] => [*one, 1],
            [grid_rows, grid_columns] => [*grid_rows, *grid_columns],
            _ => return Err(error(part, "scales in rows and columns")),
        };
        let block = |size: usize, count: usize, usual: usize| match count {
            1 => Some(size),
            count if size.div_ceil(usual) == count => Some(usual),
            count if count > 0 && size.is_multiple_of(count) => Some(size / count),
            _ => None,
        };
        let dtype = part.dtype.filter(|dtype| !dtype.is_quantized());
        match (dtype, block(rows, grid[0], usual[0]), block(columns, grid[1], usual[1])) {
            (Some(dtype), Some(of_rows), Some(of_columns)) => {
                Ok(Self { place: part.place.clone(), dtype, grid, block: [of_rows.max(1), of_columns.max(1)] })
            }
            _ => Err(error(part, format!("F32, F16 or BF16 scales of parts of a matrix [{rows}, {columns}]"))),
        }
    }

    /// Number of columns that share a scale.
    pub(super) fn group(&self) -> usize {
        self.block[1]
    }

    /// Row of scales that the values of `row` have.
    pub(super) fn row_of(&self, row: usize) -> usize {
        row / self.block[0]
    }

    /// Some rows of scales, one after the other.
    pub(super) fn read(&self, checkpoint: &Checkpoint, rows: Range<usize>) -> Result<Vec<f32>> {
        let row_bytes = self.grid[1] * self.dtype.block_size();
        let bytes = checkpoint.data(&self.place).read_part(super::row_range(&rows, row_bytes))?;
        let mut scales = vec![0.0; rows.len() * self.grid[1]];
        dequantize(self.dtype, &bytes, &mut scales);
        Ok(scales)
    }

    /// Number of scales in a row.
    pub(super) fn columns(&self) -> usize {
        self.grid[1]
    }

    /// Number of rows of scales.
    pub(super) fn rows(&self) -> usize {
        self.grid[0]
    }

    /// Whether all of them are numbers of f16.
    pub(super) fn are_f16(&self, checkpoint: &Checkpoint) -> Result<bool> {
        if self.dtype == Dtype::F16 {
            return Ok(true);
        }
        for row in 0..self.rows() {
            if self.read(checkpoint, row..row + 1)?.into_iter().any(|scale| f16::from_f32(scale).to_f32() != scale) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
