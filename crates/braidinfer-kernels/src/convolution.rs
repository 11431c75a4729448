//! Causal depthwise convolutions over the last few tokens.

use crate::isa::dispatched;
use crate::simd::{LANES, Simd};

dispatched! {
    /// Adds a convolution for one token to `out`, `[width]`: `rows` are the inputs of the last tokens up to and including
    /// this one, `[kernel][width]`, as are `weights`. The width is a multiple of 16.
    pub fn convolve(rows: &[f32], weights: &[f32], out: &mut [f32]) = convolve_lanes;
}

#[inline(always)]
fn convolve_lanes<S: Simd>(simd: S, rows: &[f32], weights: &[f32], out: &mut [f32]) {
    assert_eq!(rows.len(), weights.len());
    assert!(rows.len().is_multiple_of(out.len()) && out.len().is_multiple_of(LANES));
    let (rows, weights, out) = (rows.as_chunks().0, weights.as_chunks().0, out.as_chunks_mut().0);
    let width = out.len();
    for (column, out) in out.iter_mut().enumerate() {
        let mut sum = simd.load(out);
        for (row, weight) in rows[column..].iter().step_by(width).zip(weights[column..].iter().step_by(width)) {
            sum = simd.fma(simd.load(weight), simd.load(row), sum);
        }
        simd.store(sum, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_of_the_last_tokens_are_added(
            lines in 1usize..4,
            (rows, weights) in (1usize..6).prop_flat_map(|kernel| {
                let values = || prop::collection::vec(-2f32..2.0, kernel * 3 * LANES);
                (values(), values())
            }),
            start in -1f32..1.0,
        ) {
            let kernel = rows.len() / (3 * LANES);
            let width = lines * LANES;
            let (rows, weights) = (&rows[..kernel * width], &weights[..kernel * width]);
            let mut expected = vec![start; width];
            convolve(Isa::SCALAR, rows, weights, &mut expected);
            for (column, value) in expected.iter().enumerate() {
                let term = |row: usize| f64::from(rows[row * width + column]) * f64::from(weights[row * width + column]);
                let sum: f64 = f64::from(start) + (0..kernel).map(term).sum::<f64>();
                prop_assert!((f64::from(*value) - sum).abs() < 1e-5);
            }
            for isa in Isa::available() {
                let mut found = vec![start; width];
                convolve(isa, rows, weights, &mut found);
                prop_assert_eq!(&found, &expected, "{}", isa.name());
            }
        }
    }
}
