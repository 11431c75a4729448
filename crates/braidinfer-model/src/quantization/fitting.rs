//! Common parts of the searches for scales: arithmetic over short arrays that compilers vectorize, and the choice of a
//! super-block's f16 scale.

use half::f16;

const LANES: usize = 16;

/// 1.5·2²³: adding it to an f32 of magnitude below 2²² rounds that to an integer.
const ROUNDER: f32 = 12_582_912.0;

/// The sum of `weight·term(value)`, in an order that does not depend on the machine.
#[inline]
pub fn sum<const N: usize>(values: &[f32; N], weights: &[f32; N], term: impl Fn(f32) -> f32) -> f32 {
    const { assert!(N.is_multiple_of(LANES)) };
    let mut sums = [0.0; LANES];
    for (values, weights) in values.as_chunks::<LANES>().0.iter().zip(weights.as_chunks::<LANES>().0) {
        for ((sum, value), weight) in sums.iter_mut().zip(values).zip(weights) {
            *sum += weight * term(*value);
        }
    }
    sums.iter().sum()
}

/// `value`, or 1 for 0: a divisor of what is 0 as well.
pub fn nonzero(value: f64) -> f64 {
    if value == 0.0 { 1.0 } else { value }
}

/// The integer nearest to `value` (ties to even) within `low..=high`.
///
/// Uses comparisons, because `f32::clamp` and `f32::round_ties_even` compile to calls or long sequences on baseline
/// x86-64.
#[inline]
pub fn nearest(value: f32, low: f32, high: f32) -> f32 {
    let value = if value > low { value } else { low };
    let value = if value < high { value } else { high };
    (value + ROUNDER) - ROUNDER
}

/// `1/value`, or 0 for 0: if the step is 0, all codes are equally good.
#[inline]
pub fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}

/// The value of largest magnitude, the first if there are several; 0 if there are no values.
pub fn largest(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().fold(0.0, |largest: f32, value| if value.abs() > largest.abs() { value } else { largest })
}

/// An f16 scale near `wanted / divisor`, of which a multiple by an integer up to `reach` is within half a scale of
/// `wanted`. `None` if no such scale is finite.
pub fn super_scale(wanted: f32, divisor: f32, reach: f32) -> Option<f16> {
    let scale = saturating_f16(f64::from(wanted) / f64::from(divisor));
    let covers = scale.to_f32().abs() * (reach.abs() + 0.5) >= wanted.abs();
    // Near zero, f16 is so coarse that rounding down would lose much of the range.
    let scale = if covers { scale } else { f16::from_bits(scale.to_bits() + 1) };
    scale.is_finite().then_some(scale)
}

/// The nearest finite f16. It keeps the sign of `value` even if it rounds to 0; but −0 becomes 0.
pub fn saturating_f16(value: f64) -> f16 {
    let limit = f64::from(f16::MAX.to_f32());
    f16::from_f32(value.clamp(-limit, limit) as f32 + 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn super_scales_cover_the_wanted_value() {
        for wanted in [1e-9, 4e-8, 3.5e-6, 1e-4, 0.3, -0.3, 1.0, 1e4, 4.1e6, -4.1e6] {
            for divisor in [60.0, 63.0] {
                let scale = super_scale(wanted, divisor, 63.0).expect("the scale fits").to_f32();
                assert!((scale * 63.5).abs() >= wanted.abs(), "{wanted} / {divisor}: {scale}");
                assert!(scale * wanted > 0.0, "{wanted} / {divisor}: {scale}");
            }
        }
        assert_eq!(super_scale(4.2e6, 60.0, 63.0), None);
        assert_eq!(super_scale(f32::INFINITY, 60.0, 63.0), None);
    }

    #[test]
    fn signs_are_kept_near_zero() {
        assert_eq!(super_scale(-0.0, 60.0, 63.0).map(f16::to_bits), Some(0x0000));
        assert_eq!(super_scale(1e-30, 60.0, 63.0).map(f16::to_bits), Some(0x0001));
        assert_eq!(super_scale(-1e-30, 60.0, 63.0).map(f16::to_bits), Some(0x8001));
    }
}
