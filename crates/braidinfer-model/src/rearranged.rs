//! Rows of matrices that a checkpoint stores in another order.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Result;
use crate::tensor_data::{Computed, TensorData};

/// Every `step`-th row of a matrix.
#[derive(Debug)]
pub(crate) struct EveryRow<'a> {
    /// Rows, the first of which belongs to this one.
    pub(crate) source: TensorData<'a>,
    /// Bytes of a row.
    pub(crate) row_bytes: usize,
    pub(crate) step: usize,
    pub(crate) rows: usize,
}

impl Computed for EveryRow<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    fn read_rows(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        let Self { row_bytes, step, .. } = *self;
        // One large read is faster than many small ones, even if it reads the rows in between.
        let source = rows.start * step * row_bytes..((rows.end - 1) * step + 1) * row_bytes;
        let source = self.source.read_part(source)?;
        Ok(source.chunks(step * row_bytes).flat_map(|rows| &rows[..row_bytes]).copied().collect())
    }
}

/// The matrix that was put together as a whole last, since its rows are read one after the other.
#[derive(Debug, Default)]
pub(crate) struct LastMatrix(Mutex<Option<(MatrixId, Arc<[u8]>)>>);

/// A matrix: the name of its tensor, and its index there.
pub(crate) type MatrixId = (String, usize);

impl LastMatrix {
    /// The bytes of a matrix, from `compute` unless it was the last one.
    pub(crate) fn get(&self, id: &MatrixId, compute: impl FnOnce() -> Result<Vec<u8>>) -> Result<Arc<[u8]>> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((last_id, bytes)) = &*last
            && last_id == id
        {
            return Ok(Arc::clone(bytes));
        }
        // Before the next one needs memory.
        *last = None;
        let bytes: Arc<[u8]> = compute()?.into();
        *last = Some((id.clone(), Arc::clone(&bytes)));
        Ok(bytes)
    }
}

/// A matrix whose columns are stored as rows.
#[derive(Debug)]
pub(crate) struct Transposed<'a> {
    /// `[columns, rows]`.
    pub(crate) source: TensorData<'a>,
    pub(crate) rows: usize,
    /// Bytes of a value.
    pub(crate) value_bytes: usize,
    pub(crate) id: MatrixId,
    pub(crate) last: &'a LastMatrix,
}

impl Computed for Transposed<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn row_bytes(&self) -> usize {
        self.source.len() / self.rows
    }

    fn read_rows(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        let whole = self.last.get(&self.id, || Ok(transpose(&self.source.read()?, self.rows, self.value_bytes)))?;
        Ok(whole[rows.start * self.row_bytes()..rows.end * self.row_bytes()].to_vec())
    }
}

/// `[columns, rows]` to `[rows, columns]`.
pub(crate) fn transpose(source: &[u8], rows: usize, value_bytes: usize) -> Vec<u8> {
    let columns = source.len() / (rows * value_bytes);
    let mut out = vec![0; source.len()];
    for (column, values) in source.chunks_exact(rows * value_bytes).enumerate() {
        for (row, value) in values.chunks_exact(value_bytes).enumerate() {
            out[(row * columns + column) * value_bytes..][..value_bytes].copy_from_slice(value);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_gives_any_part_of_its_rows() {
        let bytes: Vec<u8> = (0..60).collect();
        // Rows of three bytes, of which those with an odd index.
        let rows = EveryRow { source: TensorData::from(&bytes[3..]), row_bytes: 3, step: 2, rows: 10 };
        let expected: Vec<u8> = (0..10).flat_map(|row| (0..3).map(move |byte| (row * 2 + 1) * 3 + byte)).collect();
        let data = TensorData::computed(rows);
        for start in 0..=expected.len() {
            for end in start..=expected.len() {
                assert_eq!(*data.read_part(start..end).expect("in memory"), expected[start..end]);
            }
        }
    }

    #[test]
    fn a_transposed_matrix_is_kept_until_the_next_one() {
        let last = LastMatrix::default();
        let read = |bytes: &[u8], index: usize| {
            let id = ("experts".to_owned(), index);
            let matrix = Transposed { source: bytes.into(), rows: 3, value_bytes: 2, id, last: &last };
            TensorData::computed(matrix).read().expect("in memory").into_owned()
        };
        let source: Vec<u8> = (0..12).collect();
        let transposed = [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11];
        assert_eq!(read(&source, 0), transposed);
        // The same matrix is not read again, another one is.
        assert_eq!(read(&[9; 12], 0), transposed);
        assert_eq!(read(&[9; 12], 1), [9; 12]);
    }
}
