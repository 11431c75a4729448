//! Elementwise kernels: activation functions, residual sums, soft caps.
//!
//! Slices may have any length; the remainder after whole vectors is computed in a padded copy.

use crate::isa::dispatched;
use crate::math::{erf, exp, exp_in_range, exp_minus_tangent, tanh};
use crate::simd::{LANES, Simd};

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ActivationFunction {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) / 2`.
    GeluTanh,
    /// `x (1 + erf(x / sqrt(2))) / 2`.
    GeluErf,
    /// `max(x, 0)`.
    Relu,
    /// `y / (1 + e^(-alpha y))` with `y = min(x, limit)`; in [`gated`], the other factor is clamped and increased, too.
    ClampedSwiglu {
        /// Slope of the logistic function.
        alpha: f32,
        /// Largest value.
        limit: f32,
    },
    /// `max(x, 0)²`.
    Relu2,
    /// SiLU of `factor * x`.
    ScaledSilu {
        /// The factor.
        factor: f32,
    },
    /// `positive x² + beta x` for positive `x` and `negative (e^x - 1 - x) + beta x` for others (arXiv:2411.13010).
    Xielu {
        /// Curvature of positive values.
        positive: f32,
        /// Factor of the exponential of negative values.
        negative: f32,
        /// Slope at zero.
        beta: f32,
    },
}

/// `1 / (1 + e^-x)`.
pub fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

dispatched! {
    /// `up = activation(gate) * up`; both have the same length. With [`ActivationFunction::ClampedSwiglu`],
    /// `up = activation(gate) * (1 + max(-limit, min(up, limit)))`.
    pub fn gated(activation: ActivationFunction, gate: &[f32], up: &mut [f32]) = gate_lanes;
}
dispatched! {
    /// `x = x / (1 + e^-gate)`; both have the same length.
    pub fn gated_by_logistic(gate: &[f32], x: &mut [f32]) = logistic_gate_lanes;
}
dispatched! {
    /// `x = x * y`; both have the same length.
    pub fn multiply(x: &mut [f32], y: &[f32]) = multiply_lanes;
}
dispatched! {
    /// `x = activation(x)`.
    pub fn activate(activation: ActivationFunction, x: &mut [f32]) = activate_lanes;
}
dispatched! {
    /// `x = x + factor * y`, rounded once; both have the same length.
    pub fn add_scaled(x: &mut [f32], y: &[f32], factor: f32) = add_scaled_lanes;
}
dispatched! {
    /// `x = cap * tanh(x / cap)`.
    pub fn softcap(x: &mut [f32], cap: f32) = softcap_lanes;
}
dispatched! {
    /// `x = e^y` with `y = factor (x - largest)`, and a relative error below `(1 + |y|) 2^-22`; no value may be larger than
    /// `largest`. Results below the smallest normal number are 0.
    pub fn exponentials(x: &mut [f32], largest: f32, factor: f32) = exponentials_lanes;
}
dispatched! {
    /// `x = factor * x`.
    pub fn scale(x: &mut [f32], factor: f32) = scale_lanes;
}

/// Up to sixteen values, padded with zeros.
#[inline(always)]
pub(crate) fn padded(values: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}

/// Defines a function that sets every lane `$x` of a slice, given the lanes `$y` of further slices, to `$value`.
macro_rules! for_lanes {
    ($simd:ident, $x:ident $(, $y:ident)* => $value:expr) => {{
        $(assert_eq!($y.len(), $x.len());)*
        let (chunks, tail) = $x.as_chunks_mut::<LANES>();
        for i in 0..chunks.len() {
            let $x = $simd.load(&chunks[i]);
            $(let $y = $simd.load(&$y.as_chunks::<LANES>().0[i]);)*
            $simd.store($value, &mut chunks[i]);
        }
        if !tail.is_empty() {
            let mut to = padded(tail);
            let $x = $simd.load(&to);
            $(let $y = $simd.load(&padded($y.as_chunks::<LANES>().1));)*
            $simd.store($value, &mut to);
            tail.copy_from_slice(&to[..tail.len()]);
        }
    }};
}

#[inline(always)]
fn gate_lanes<S: Simd>(simd: S, activation: ActivationFunction, gate: &[f32], up: &mut [f32]) {
    if let ActivationFunction::ClampedSwiglu { limit, .. } = activation {
        let (one, least, most) = (simd.splat(1.0), simd.splat(-limit), simd.splat(limit));
        for_lanes!(simd, up, gate => {
            let up = simd.add(one, simd.max(least, simd.min(most, up)));
            simd.mul(activated(simd, activation, gate), up)
        });
        return;
    }
    for_lanes!(simd, up, gate => simd.mul(activated(simd, activation, gate), up));
}

#[inline(always)]
fn logistic_gate_lanes<S: Simd>(simd: S, gate: &[f32], x: &mut [f32]) {
    for_lanes!(simd, x, gate => silu(simd, x, gate));
}

#[inline(always)]
fn multiply_lanes<S: Simd>(simd: S, x: &mut [f32], y: &[f32]) {
    for_lanes!(simd, x, y => simd.mul(x, y));
}

#[inline(always)]
fn activate_lanes<S: Simd>(simd: S, activation: ActivationFunction, x: &mut [f32]) {
    for_lanes!(simd, x => activated(simd, activation, x));
}

#[inline(always)]
fn add_scaled_lanes<S: Simd>(simd: S, x: &mut [f32], y: &[f32], factor: f32) {
    let factor = simd.splat(factor);
    for_lanes!(simd, x, y => simd.fma(y, factor, x));
}

#[inline(always)]
fn softcap_lanes<S: Simd>(simd: S, x: &mut [f32], cap: f32) {
    for_lanes!(simd, x => capped(simd, x, cap));
}

#[inline(always)]
fn exponentials_lanes<S: Simd>(simd: S, x: &mut [f32], largest: f32, factor: f32) {
    let (largest, factor) = (simd.splat(largest), simd.splat(factor));
    for_lanes!(simd, x => exp_in_range(simd, simd.mul(factor, simd.sub(x, largest))));
}

#[inline(always)]
fn scale_lanes<S: Simd>(simd: S, x: &mut [f32], factor: f32) {
    let factor = simd.splat(factor);
    for_lanes!(simd, x => simd.mul(x, factor));
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub(crate) fn capped<S: Simd>(simd: S, x: S::F32, cap: f32) -> S::F32 {
    let cap = simd.splat(cap);
    simd.mul(cap, tanh(simd, simd.div(x, cap)))
}

#[inline(always)]
pub(crate) fn activated<S: Simd>(simd: S, activation: ActivationFunction, x: S::F32) -> S::F32 {
    match activation {
        ActivationFunction::Silu => silu(simd, x, x),
        ActivationFunction::ScaledSilu { factor } => {
            let x = simd.mul(simd.splat(factor), x);
            silu(simd, x, x)
        }
        ActivationFunction::GeluTanh => gelu_tanh(simd, x),
        ActivationFunction::GeluErf => gelu_erf(simd, x),
        ActivationFunction::Relu => simd.max(simd.splat(0.0), x),
        ActivationFunction::ClampedSwiglu { alpha, limit } => {
            let x = simd.min(simd.splat(limit), x);
            silu(simd, x, simd.mul(simd.splat(alpha), x))
        }
        ActivationFunction::Relu2 => {
            let x = simd.max(simd.splat(0.0), x);
            simd.mul(x, x)
        }
        ActivationFunction::Xielu { positive, negative, beta } => {
            let zero = simd.splat(0.0);
            let above = simd.mul(simd.mul(x, x), simd.splat(positive));
            let below = simd.mul(exp_minus_tangent(simd, x), simd.splat(negative));
            simd.fma(x, simd.splat(beta), simd.select_less(zero, x, above, below))
        }
    }
}

/// `x / (1 + e^-y)`.
#[inline(always)]
fn silu<S: Simd>(simd: S, x: S::F32, y: S::F32) -> S::F32 {
    simd.div(x, simd.add(simd.splat(1.0), exp(simd, simd.sub(simd.splat(0.0), y))))
}

/// `(1 + tanh(u)) / 2` is `1 / (1 + e^-2u)`, which does not cancel for negative `u`.
#[inline(always)]
fn gelu_tanh<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    const TWICE_SQRT_2_BY_PI: f32 = 1.595_769_2;
    let square = simd.mul(x, x);
    let slope = simd.fma(square, simd.splat(TWICE_SQRT_2_BY_PI * 0.044_715), simd.splat(TWICE_SQRT_2_BY_PI));
    silu(simd, x, simd.mul(x, slope))
}

#[inline(always)]
fn gelu_erf<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let integral = erf(simd, simd.mul(x, simd.splat(std::f32::consts::FRAC_1_SQRT_2)));
    let half = simd.mul(x, simd.splat(0.5));
    simd.fma(half, integral, half)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa::Isa;
    use crate::math::tests::{erf_by_series, hostile};

    const ACTIVATIONS: [ActivationFunction; 8] = [
        ActivationFunction::Silu,
        ActivationFunction::GeluTanh,
        ActivationFunction::GeluErf,
        ActivationFunction::Relu,
        ActivationFunction::ClampedSwiglu { alpha: 1.702, limit: 7.0 },
        ActivationFunction::Relu2,
        ActivationFunction::ScaledSilu { factor: 0.6 },
        ActivationFunction::Xielu { positive: 0.8, negative: 1.1, beta: 0.5 },
    ];

    fn exact(activation: ActivationFunction, x: f64) -> f64 {
        match activation {
            ActivationFunction::Silu => x / (1.0 + (-x).exp()),
            ActivationFunction::ScaledSilu { factor } => {
                let x = f64::from(factor) * x;
                x / (1.0 + (-x).exp())
            }
            ActivationFunction::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            ActivationFunction::GeluErf => 0.5 * x * (1.0 + erf_by_series(x / 2.0_f64.sqrt())),
            ActivationFunction::Relu => x.max(0.0),
            ActivationFunction::ClampedSwiglu { alpha, limit } => {
                let x = x.min(f64::from(limit));
                x / (1.0 + (-f64::from(alpha) * x).exp())
            }
            ActivationFunction::Relu2 => x.max(0.0).powi(2),
            ActivationFunction::Xielu { positive, beta, .. } if x > 0.0 => {
                f64::from(positive) * x * x + f64::from(beta) * x
            }
            ActivationFunction::Xielu { negative, beta, .. } => {
                f64::from(negative) * (x.exp_m1() - x) + f64::from(beta) * x
            }
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    fn every_kernel(isa: Isa, x: &[f32], y: &[f32]) -> Vec<u32> {
        let mut all = Vec::new();
        let mut run = |kernel: &dyn Fn(&mut [f32])| {
            let mut values = x.to_vec();
            kernel(&mut values);
            all.extend(bits(&values));
        };
        for activation in ACTIVATIONS {
            run(&|x| gated(isa, activation, y, x));
            run(&|x| activate(isa, activation, x));
        }
        run(&|x| gated_by_logistic(isa, y, x));
        run(&|x| multiply(isa, x, y));
        run(&|x| add_scaled(isa, x, y, 0.22));
        run(&|x| softcap(isa, x, 30.0));
        run(&|x| scale(isa, x, -0.7));
        run(&|x| exponentials(isa, x, x.iter().copied().fold(f32::MIN, f32::max), 0.7));
        all
    }

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_same_bits(
            pairs in prop::collection::vec((hostile(), -1e4_f32..1e4), 0..70),
        ) {
            let (x, y): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let expected = every_kernel(Isa::SCALAR, &x, &y);
            for isa in Isa::available() {
                prop_assert_eq!(&every_kernel(isa, &x, &y), &expected, "{}", isa.name());
            }
        }

        #[test]
        fn activations_are_close_to_their_definitions(x in prop::collection::vec(hostile(), 1..40)) {
            for activation in ACTIVATIONS {
                let (mut plain, mut up) = (x.clone(), vec![2.0; x.len()]);
                activate(Isa::SCALAR, activation, &mut plain);
                gated(Isa::SCALAR, activation, &x, &mut up);
                for ((x, plain), up) in x.iter().zip(plain).zip(up) {
                    let exact = exact(activation, f64::from(*x));
                    if exact > f64::from(f32::MAX) {
                        prop_assert_eq!((plain, up), (f32::INFINITY, f32::INFINITY));
                        continue;
                    }
                    let error = (f64::from(plain) - exact).abs();
                    let size = f64::from(x.abs()).min(30.0).max(exact.abs());
                    prop_assert!(error <= 4e-7 * size + 1e-37, "{:?} of {}: {}, not {}", activation, x, plain, exact);
                    let clamped = matches!(activation, ActivationFunction::ClampedSwiglu { .. });
                    prop_assert_eq!(up, if clamped { 3.0 } else { 2.0 } * plain);
                }
            }
            let mut ones = vec![1.0; x.len()];
            gated_by_logistic(Isa::SCALAR, &x, &mut ones);
            for (x, gate) in x.iter().zip(ones) {
                prop_assert!((f64::from(gate) - 1.0 / (1.0 + (-f64::from(*x)).exp())).abs() <= 4e-7);
            }
        }

        #[test]
        fn the_other_factor_of_clamped_swiglu_is_clamped(up in prop::collection::vec(hostile(), 1..40)) {
            let activation = ActivationFunction::ClampedSwiglu { alpha: 1.702, limit: 2.5 };
            let (mut found, gate) = (up.clone(), vec![1.0; up.len()]);
            gated(Isa::SCALAR, activation, &gate, &mut found);
            for (up, found) in up.into_iter().zip(found) {
                let exact = exact(activation, 1.0) * (1.0 + f64::from(up).clamp(-2.5, 2.5));
                prop_assert!((f64::from(found) - exact).abs() <= 1e-6, "{}: {}, not {}", up, found, exact);
            }
        }

        #[test]
        fn caps_scales_and_sums(x in prop::collection::vec(-200.0_f32..200.0, 1..40), cap in 1.0_f32..60.0) {
            let mut capped = x.clone();
            softcap(Isa::SCALAR, &mut capped, cap);
            let (mut sum, mut scaled) = (x.clone(), x.clone());
            add_scaled(Isa::SCALAR, &mut sum, &capped, 1.0);
            scale(Isa::SCALAR, &mut scaled, cap);
            let mut product = x.clone();
            multiply(Isa::SCALAR, &mut product, &capped);
            let mut powers = x.clone();
            exponentials(Isa::SCALAR, &mut powers, 200.0, cap);
            for i in 0..x.len() {
                let exact = f64::from(cap) * (f64::from(x[i]) / f64::from(cap)).tanh();
                prop_assert!((f64::from(capped[i]) - exact).abs() <= 4e-7 * exact.abs());
                prop_assert_eq!(sum[i], x[i] + capped[i]);
                prop_assert_eq!(scaled[i], x[i] * cap);
                prop_assert_eq!(product[i], x[i] * capped[i]);
                let exponent = f64::from(cap) * (f64::from(x[i]) - 200.0);
                let error = (f64::from(powers[i]) - exponent.exp()).abs();
                prop_assert!(error <= (1.0 - exponent) * 2.4e-7 * exponent.exp() + 1.2e-38, "{}: {}", exponent, error);
            }
        }
    }
}
