//! Adding the products of low-rank adapters: `out += B low`, for some rows of a batch.

use crate::isa::dispatched;
use crate::simd::{LANES, Simd};

dispatched! {
    /// Adds the product of 16 rows of `B` and the vector `low` of each of `rows` to one panel of outputs, each sum in the order of
    /// the columns and rounded once for each.
    ///
    /// `b` is `[rank][16]`, `low` is `[panels of rank][all rows][16]`, `out` is `[all rows][16]`.
    ///
    /// # Panics
    ///
    /// If the sizes do not match, or if a row is none of `out`.
    pub fn add_low_rank(b: &[f32], low: &[f32], rows: &[u32], out: &mut [f32]) = add_rows;
}

#[inline(always)]
fn add_rows<S: Simd>(simd: S, b: &[f32], low: &[f32], rows: &[u32], out: &mut [f32]) {
    let ((b, _), (low, _), (out, _)) = (b.as_chunks::<LANES>(), low.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
    let count = out.len();
    assert_eq!(low.len(), b.len().div_ceil(LANES) * count, "a vector of each row");
    for row in rows {
        let row = *row as usize;
        let mut sum = simd.splat(0.0);
        for (panel, b) in b.chunks(LANES).enumerate() {
            let values = &low[panel * count + row];
            for (value, b) in values.iter().zip(b) {
                sum = simd.fma(simd.splat(*value), simd.load(b), sum);
            }
        }
        let out = &mut out[row];
        simd.store(simd.add(simd.load(out), sum), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn products_are_added_to_the_rows_that_are_named(
            rank in 1usize..40,
            count in 1usize..6,
            named in prop::collection::btree_set(0u32..6, 0..6),
            seed in prop::collection::vec(-2f32..2.0, 40 * LANES),
        ) {
            let rows: Vec<u32> = named.into_iter().filter(|row| (*row as usize) < count).collect();
            let value = |index: usize| seed[(index * 7) % seed.len()];
            let b: Vec<f32> = (0..rank * LANES).map(value).collect();
            let low: Vec<f32> = (0..rank.div_ceil(LANES) * count * LANES).map(|index| value(index + 3)).collect();
            let before: Vec<f32> = (0..count * LANES).map(|index| value(index + 11)).collect();
            let mut expected = before.clone();
            for row in rows.iter().map(|row| *row as usize) {
                for lane in 0..LANES {
                    let at = |column: usize| low[((column / LANES) * count + row) * LANES + column % LANES];
                    let sum = (0..rank).fold(0.0, |sum: f32, column| at(column).mul_add(b[column * LANES + lane], sum));
                    expected[row * LANES + lane] += sum;
                }
            }
            for isa in Isa::available() {
                let mut found = before.clone();
                add_low_rank(isa, &b, &low, &rows, &mut found);
                prop_assert_eq!(&found, &expected, "{}", isa.name());
            }
        }
    }
}
