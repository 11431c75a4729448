//! One value for each row, computed in parallel.

use braidinfer_kernels::norm::Row;
use braidinfer_kernels::{Chunks, LANES, Pool};

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

/// The sum of `of` over the values of a row, in sixteen lanes that are added in order.
pub(super) fn row_sum(row: Row<'_>, of: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    for chunk in 0..row.width.div_ceil(LANES) {
        let values = &row.chunk(chunk)[..LANES.min(row.width - chunk * LANES)];
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += of(*value));
    }
    sums.iter().sum()
}
