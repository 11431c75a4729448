//! One value for each row, computed in parallel.

use braidinfer_kernels::{Chunks, Pool};

/// Rows that make a piece of work.
const ROWS: usize = 8;

/// Replaces `values` by what `of` says of every row.
pub(super) fn each_row<T: Clone + Send>(
    pool: &mut Pool,
    values: &mut Vec<T>,
    rows: usize,
    empty: T,
    of: impl Fn(usize) -> T + Sync,
) {
    values.resize(rows, empty);
    pool.for_each(Chunks::new(values, ROWS), |piece, values, _| {
        for (row, value) in values.iter_mut().enumerate() {
            *value = of(piece * ROWS + row);
        }
    });
}
