//! One value for each row, computed in parallel.

use braidinfer_kernels::{Chunks, Pool};

/// Rows per task.
const ROWS_PER_TASK: usize = 8;

/// Sets `values` to the results of `of` for every row.
pub(super) fn each_row<T: Clone + Send>(
    pool: &mut Pool,
    values: &mut Vec<T>,
    rows: usize,
    empty: T,
    of: impl Fn(usize) -> T + Sync,
) {
    values.resize(rows, empty);
    pool.for_each(Chunks::new(values, ROWS_PER_TASK), |task, values, _| {
        for (row, value) in values.iter_mut().enumerate() {
            *value = of(task * ROWS_PER_TASK + row);
        }
    });
}
