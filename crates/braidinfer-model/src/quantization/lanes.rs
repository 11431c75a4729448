//! Arithmetic over short arrays that compilers turn into vector instructions, with a fixed order of summation.

const LANES: usize = 8;

/// Adding it to an f32 of magnitude below 2²² leaves no bits for a fraction: 1.5·2²³.
const ROUNDER: f32 = 12_582_912.0;

/// The sum of `term` over `values`.
#[inline]
pub fn sum<const N: usize>(values: &[f32; N], term: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    for values in values.as_chunks::<LANES>().0 {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += term(*value);
        }
    }
    sums.iter().sum()
}

/// The integer nearest to `value` (ties to even) within `low..=high`.
#[inline]
pub fn nearest(value: f32, low: f32, high: f32) -> f32 {
    let value = if value > low { value } else { low };
    let value = if value < high { value } else { high };
    (value + ROUNDER) - ROUNDER
}

/// `1/value`, or 0 for 0.
#[inline]
pub fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}
