//! Functions of sixteen f32 values.
//!
//! The polynomials were fitted in 40-digit arithmetic: weighted least squares at Chebyshev nodes, reweighted (Lawson)
//! to minimise the largest relative error. The comment of each constant states that error.

use crate::simd::Simd;

const SIGN: i32 = i32::MIN;
const MAGNITUDE: i32 = i32::MAX;

/// The largest argument whose exponential is finite.
const EXP_LARGEST: f32 = 88.722_83;
/// The smallest argument whose exponential is a normal number, rounded up.
const EXP_SMALLEST: f32 = -87.336_5;
/// ln 2 in two parts: products of the first part with integers below 2^9 are exact.
const LN_2: [f32; 2] = [0.693_145_75, 1.428_606_8e-6];
/// `(exp(r) - 1 - r) / r²` for `|r| <= ln(2) / 2`; relative error of exp: 3e-9.
const EXP: [f32; 5] = [0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_746, 0.001_381_452_8];

/// Below this magnitude tanh is a polynomial, above it a quotient.
const TANH_SPLIT: f32 = 0.625;
/// `(tanh(x) / x - 1) / x²` as a function of `x²`, below the split; relative error of tanh: 4e-9.
const TANH: [f32; 5] = [-0.333_332_8, 0.133_314_4, -0.053_739_585, 0.020_638_647, -0.005_704_482];

/// Below this magnitude erf is a polynomial, above it 1 - exp of a polynomial.
const ERF_SPLIT: f32 = 0.875;
/// `erf(x) / x - 1` as a function of `x²`, below the split; relative error of erf: 9e-9.
const ERF_INNER: [f32; 6] = [0.128_379_15, -0.376_125_5, 0.112_824_544, -0.026_791_43, 0.005_032_131, -0.000_620_299_4];
/// `-ln(1 - erf(x)) / x` from the split to 4; relative error of erf: 1e-9.
const ERF_OUTER: [f32; 7] =
    [1.128_622_4, 0.635_259_2, 0.106_055_71, -0.023_603_741, 0.003_566_587_6, -0.000_303_908_83, 9.321_541e-6];
/// From here on erf is 1 in f32.
const ERF_ONE: f32 = 4.0;

/// `coefficients[0] + coefficients[1] x + ..`, by Horner's scheme.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, x: S::F32, coefficients: &[f32; N]) -> S::F32 {
    let mut sum = simd.splat(coefficients[N - 1]);
    for i in 1..N {
        sum = simd.fma(sum, x, simd.splat(coefficients[N - 1 - i]));
    }
    sum
}

#[inline(always)]
fn magnitude<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    simd.float_of(simd.and(simd.bits_of(x), simd.splat_i32(MAGNITUDE)))
}

/// `magnitude`, which is not negative, with the sign of `x`.
#[inline(always)]
fn with_sign<S: Simd>(simd: S, magnitude: S::F32, x: S::F32) -> S::F32 {
    simd.float_of(simd.or(simd.bits_of(magnitude), simd.and(simd.bits_of(x), simd.splat_i32(SIGN))))
}

/// `a` where `x < limit`, else (NaN included) `b`.
#[inline(always)]
fn below<S: Simd>(simd: S, x: S::F32, limit: f32, a: S::F32, b: S::F32) -> S::F32 {
    simd.select_less(x, simd.splat(limit), a, b)
}

/// e^x for arguments with a finite result, with a relative error below 2^-23; NaN stays NaN; denormal results become 0.
///
/// Cody and Waite: `x = n ln 2 + r` with an integer `n`, a polynomial in `r`, and `n` added to the exponent.
#[inline(always)]
pub(crate) fn exp_in_range<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let reduced = simd.max(simd.splat(EXP_SMALLEST), x);
    let n = simd.round(simd.mul(reduced, simd.splat(std::f32::consts::LOG2_E)));
    let whole = simd.to_f32(n);
    let r = simd.fma(whole, simd.splat(-LN_2[0]), reduced);
    let r = simd.fma(whole, simd.splat(-LN_2[1]), r);
    let series = simd.fma(simd.mul(r, r), polynomial(simd, r, &EXP), r);
    let mantissa = simd.add(series, simd.splat(1.0));
    let scaled = simd.float_of(simd.add_i32(simd.bits_of(mantissa), simd.shl::<23>(n)));
    below(simd, x, EXP_SMALLEST, simd.splat(0.0), scaled)
}

/// e^x with a relative error below 2^-23; denormal results become 0, too large ones infinite; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let largest = simd.splat(EXP_LARGEST);
    let finite = exp_in_range(simd, simd.min(largest, x));
    simd.select_less(largest, x, simd.splat(f32::INFINITY), finite)
}

/// `e^x - 1 - x` for `x <= 0`: the polynomial of [`exp_in_range`] near zero, where the difference would cancel.
/// Values above zero are unspecified.
#[inline(always)]
pub(crate) fn exp_minus_tangent<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let near = simd.mul(simd.mul(x, x), polynomial(simd, x, &EXP));
    let far = simd.sub(simd.sub(exp_in_range(simd, x), simd.splat(1.0)), x);
    simd.select_less(x, simd.splat(-0.346_573_6), far, near)
}

/// The hyperbolic tangent: an odd polynomial near zero, elsewhere `1 - 2 / (e^2x + 1)`, where no digits cancel.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let (one, two) = (simd.splat(1.0), simd.splat(2.0));
    let size = magnitude(simd, x);
    let square = simd.mul(size, size);
    let inner = simd.fma(simd.mul(size, square), polynomial(simd, square, &TANH), size);
    let outer = simd.sub(one, simd.div(two, simd.add(exp(simd, simd.mul(size, two)), one)));
    with_sign(simd, below(simd, size, TANH_SPLIT, inner, outer), x)
}

/// The error function: an odd polynomial near zero, elsewhere `1 - e^-p(x)` with a polynomial for its logarithm.
#[inline(always)]
pub(crate) fn erf<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let size = magnitude(simd, x);
    let square = simd.mul(size, size);
    let inner = simd.fma(size, polynomial(simd, square, &ERF_INNER), size);
    let limited = simd.min(simd.splat(ERF_ONE), size);
    let logarithm = simd.mul(limited, polynomial(simd, limited, &ERF_OUTER));
    let complement = exp_in_range(simd, simd.sub(simd.splat(0.0), logarithm));
    let outer = simd.sub(simd.splat(1.0), complement);
    with_sign(simd, below(simd, size, ERF_SPLIT, inner, outer), x)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa::{Isa, dispatched};
    use crate::simd::LANES;

    /// Values of every magnitude, of both signs, including zeros.
    pub(crate) fn hostile() -> impl Strategy<Value = f32> {
        prop_oneof![
            4 => -4.0_f32..4.0,
            2 => -100.0_f32..100.0,
            1 => prop::sample::select(vec![
                0.0, -0.0, 1e-40, -1e-40, 1e-30, -1e-20, 1e10, -1e10, 3e38, -3e38, 88.722_83, -87.336_54, -87.0, 0.625,
            ]),
        ]
    }

    dispatched! { fn all_exp(x: &mut [f32; LANES]) = all::<_, 0>; }
    dispatched! { fn all_tanh(x: &mut [f32; LANES]) = all::<_, 1>; }
    dispatched! { fn all_erf(x: &mut [f32; LANES]) = all::<_, 2>; }

    const ALL: [fn(Isa, &mut [f32; LANES]); 3] = [all_exp, all_tanh, all_erf];

    #[inline(always)]
    fn all<S: Simd, const FUNCTION: u8>(simd: S, x: &mut [f32; LANES]) {
        let value = simd.load(x);
        let value = match FUNCTION {
            0 => exp(simd, value),
            1 => tanh(simd, value),
            _ => erf(simd, value),
        };
        simd.store(value, x);
    }

    /// The error function by its series (Abramowitz and Stegun 7.1.6), whose terms are all positive.
    pub(crate) fn erf_by_series(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        if x.abs() > 6.0 { x.signum() } else { 2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum }
    }

    /// The largest relative error over a fine grid of `[from, to]`.
    fn largest_error(function: usize, exact: fn(f64) -> f64, from: f32, to: f32) -> f64 {
        let points = 40_000;
        let mut largest = 0.0_f64;
        for first in (0..points).step_by(LANES) {
            let x: [f32; LANES] =
                std::array::from_fn(|lane| from + (to - from) * ((first + lane) as f32 / points as f32));
            let mut y = x;
            ALL[function](Isa::available()[0], &mut y);
            for (x, y) in x.into_iter().zip(y) {
                let exact = exact(f64::from(x));
                if exact != 0.0 {
                    largest = largest.max(((f64::from(y) - exact) / exact).abs());
                }
            }
        }
        largest
    }

    #[test]
    fn functions_are_close_to_their_definitions() {
        let ulp = f64::from(f32::EPSILON);
        for (from, to) in [(-87.3, 88.7), (-1.0, 1.0), (-1e-3, 1e-3)] {
            let error = largest_error(0, f64::exp, from, to);
            assert!(error < ulp, "exp from {from} to {to}: {error:e}");
            let error = largest_error(1, f64::tanh, from, to);
            assert!(error < 2.0 * ulp, "tanh from {from} to {to}: {error:e}");
            let error = largest_error(2, erf_by_series, from, to);
            assert!(error < 1.5 * ulp, "erf from {from} to {to}: {error:e}");
        }
    }

    #[test]
    fn ends_of_the_range() {
        let of = |function: usize, x: f32| {
            let mut lanes = [x; LANES];
            ALL[function](Isa::SCALAR, &mut lanes);
            lanes[0]
        };
        assert_eq!(of(0, 0.0), 1.0);
        assert_eq!(of(0, f32::NEG_INFINITY), 0.0);
        assert_eq!(of(0, -87.4), 0.0);
        assert!(of(0, -87.336).is_normal());
        assert!(of(0, EXP_LARGEST).is_finite());
        assert_eq!(of(0, EXP_LARGEST.next_up()), f32::INFINITY);
        assert_eq!(of(0, f32::INFINITY), f32::INFINITY);
        for function in 0..ALL.len() {
            assert!(of(function, f32::NAN).is_nan(), "function {function}");
            assert!(of(function, -f32::NAN).is_nan(), "function {function}");
        }
        assert_eq!((of(1, f32::INFINITY), of(1, -1e30)), (1.0, -1.0));
        assert_eq!((of(2, f32::INFINITY), of(2, -5.0)), (1.0, -1.0));
    }

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_same_bits(x in prop::array::uniform16(hostile())) {
            for (index, function) in ALL.iter().enumerate() {
                let mut expected = x;
                function(Isa::SCALAR, &mut expected);
                for isa in Isa::available() {
                    let mut found = x;
                    function(isa, &mut found);
                    prop_assert_eq!(found.map(f32::to_bits), expected.map(f32::to_bits), "{} {}", index, isa.name());
                }
            }
        }
    }
}
