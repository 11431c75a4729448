//! Weighted encoding of the blocks of `legacy`: scales with the least weighted sum of squared errors.
//!
//! From several initial scales, rounding to codes and least squares alternate until the error no longer decreases. The
//! scale that encoders without weights take is one of them, so that the weighted error is never larger than theirs.

use half::f16;

use super::fitting::{inverse, largest, nearest, nonzero, saturating_f16, sum};
use super::legacy::{LEN, packed_q4_0, packed_q4_1, packed_q5_0, packed_q5_1};

const TURNS: usize = 4;

/// Quantizes 32 values to an 18-byte block. `None` if the scale exceeds the range of f16.
pub fn quantize_q4_0(values: &[f32; LEN], weights: &[f32; LEN]) -> Option<[u8; 18]> {
    let block = Block { values, weights, low: -8.0, high: 7.0, offset: false };
    let fit = block.fit(symmetric_starts(values, weights, -8.0))?;
    Some(packed_q4_0(fit.d, &block.codes(&fit)))
}

/// Quantizes 32 values to a 20-byte block. `None` if a scale exceeds the range of f16.
pub fn quantize_q4_1(values: &[f32; LEN], weights: &[f32; LEN]) -> Option<[u8; 20]> {
    let block = Block { values, weights, low: 0.0, high: 15.0, offset: true };
    let fit = block.fit(affine_starts(values, 15.0))?;
    Some(packed_q4_1(fit.d, fit.m, &block.codes(&fit)))
}

/// Quantizes 32 values to a 22-byte block. `None` if the scale exceeds the range of f16.
pub fn quantize_q5_0(values: &[f32; LEN], weights: &[f32; LEN]) -> Option<[u8; 22]> {
    let block = Block { values, weights, low: -16.0, high: 15.0, offset: false };
    let fit = block.fit(symmetric_starts(values, weights, -16.0))?;
    Some(packed_q5_0(fit.d, &block.codes(&fit)))
}

/// Quantizes 32 values to a 24-byte block. `None` if a scale exceeds the range of f16.
pub fn quantize_q5_1(values: &[f32; LEN], weights: &[f32; LEN]) -> Option<[u8; 24]> {
    let block = Block { values, weights, low: 0.0, high: 31.0, offset: true };
    let fit = block.fit(affine_starts(values, 31.0))?;
    Some(packed_q5_1(fit.d, fit.m, &block.codes(&fit)))
}

/// Scales with which the largest value, or the one that weighs most, has code `low`, or is beyond or within it.
fn symmetric_starts(values: &[f32; LEN], weights: &[f32; LEN], low: f32) -> impl Iterator<Item = (f32, f32)> {
    let heavy = largest(values.iter().zip(weights).map(|(value, weight)| weight.sqrt() * value));
    let heaviest = values.iter().zip(weights).find(|(value, weight)| weight.sqrt() * **value == heavy);
    let heaviest = heaviest.map_or(0.0, |(value, _)| *value);
    // The first is the one that encoders without weights take.
    let parts = [0.0].into_iter().chain((-8..=8).map(|step| step as f32 / 32.0));
    let largest = largest(values.iter().copied());
    parts.flat_map(move |part| [largest, heaviest].map(|value| (value / (low * (1.0 + part)), 0.0)))
}

/// Steps and offsets with which codes span the values, or more, or less of them, from the smallest or in the middle.
fn affine_starts(values: &[f32; LEN], top: f32) -> impl Iterator<Item = (f32, f32)> {
    let (min, max) = values.iter().fold((f32::MAX, f32::MIN), |(min, max), x| (min.min(*x), max.max(*x)));
    let parts = [0.0].into_iter().chain((-4..=8).map(|step| step as f32 / 32.0));
    parts.flat_map(move |part| {
        let d = (max - min) / (top * (1.0 + part));
        [(d, min), (d, (min + max - d * top) / 2.0)]
    })
}

/// The values to quantize: `x ≈ d·q + m`, where `q` is an integer from `low` to `high`.
struct Block<'a> {
    values: &'a [f32; LEN],
    /// Factors of squared errors.
    weights: &'a [f32; LEN],
    low: f32,
    high: f32,
    /// Whether there is an `m`; otherwise it is 0.
    offset: bool,
}

/// Scales of a block.
#[derive(Clone, Copy)]
struct Fit {
    d: f16,
    m: f16,
    /// Weighted sum of squared errors with the best codes.
    error: f32,
}

impl Block<'_> {
    /// The best result of several initial values. `None` if a scale exceeds the range of f16.
    fn fit(&self, starts: impl Iterator<Item = (f32, f32)>) -> Option<Fit> {
        let mut best: Option<Fit> = None;
        for (d, m) in starts {
            let (d, m) = (f16::from_f32(d), f16::from_f32(m));
            if !(d.is_finite() && m.is_finite()) {
                // The first start: what an encoder without weights refuses is refused with weights, too.
                best?;
                continue;
            }
            let fit = self.settle(self.judged(d, m));
            if best.is_none_or(|best| fit.error < best.error) {
                best = Some(fit);
            }
        }
        best
    }

    /// Alternates until the error no longer decreases.
    fn settle(&self, mut fit: Fit) -> Fit {
        for _ in 0..TURNS {
            let (d, m) = self.least_squares(&fit);
            let next = self.judged(d, m);
            // Errors of values far beyond f16 are not finite.
            if next.error >= fit.error || !next.error.is_finite() {
                break;
            }
            fit = next;
        }
        fit
    }

    fn judged(&self, d: f16, m: f16) -> Fit {
        let (step, offset) = (d.to_f32(), m.to_f32());
        let error = sum(self.values, self.weights, |x| {
            let difference = step * self.code(x, step, offset) + offset - x;
            difference * difference
        });
        Fit { d, m, error }
    }

    /// The `d` and `m` with the least error for the codes of `fit`.
    fn least_squares(&self, fit: &Fit) -> (f16, f16) {
        let (step, offset) = (fit.d.to_f32(), fit.m.to_f32());
        let q = |x: f32| self.code(x, step, offset);
        let total = |term: &dyn Fn(f32) -> f32| f64::from(sum(self.values, self.weights, term));
        let (qq, qx) = (total(&|x| q(x) * q(x)), total(&|x| q(x) * x));
        if !self.offset {
            return (saturating_f16(qx / nonzero(qq)), fit.m);
        }
        let (weight, q_sum, x_sum) = (total(&|_| 1.0), total(&q), total(&|x| x));
        let determinant = weight * qq - q_sum * q_sum;
        // Where nearly all that counts has one code, the step stays.
        let d =
            if determinant > 1e-6 * weight * qq { (weight * qx - q_sum * x_sum) / determinant } else { step.into() };
        let d = saturating_f16(d);
        // `m` is fitted to the rounded `d`, to compensate its rounding.
        (d, saturating_f16((x_sum - f64::from(d.to_f32()) * q_sum) / nonzero(weight)))
    }

    fn code(&self, x: f32, step: f32, offset: f32) -> f32 {
        nearest((x - offset) * inverse(step), self.low, self.high)
    }

    /// Codes minus the smallest one.
    fn codes(&self, fit: &Fit) -> [u8; LEN] {
        let (step, offset) = (fit.d.to_f32(), fit.m.to_f32());
        self.values.map(|x| (self.code(x, step, offset) - self.low) as u8)
    }
}
