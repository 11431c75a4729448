//! Encoding of `q3_k` and `q6_k`: `x ≈ d·scale·q` with a signed `scale` per 16 values.
//!
//! As in `affine_k`: for a given `d`, every sub-block tries the scales in a window; then least squares gives `d`.

use std::array;
use std::ops::RangeInclusive;

use half::f16;

use super::fitting::{inverse, largest, nearest, nonzero, saturating_f16, sum, super_scale};
use super::k_quants::{LEN, packed_q3_k_scales};

const SUBS: usize = 16;
const SUB_LEN: usize = LEN / SUBS;
const TURNS: usize = 4;

/// The integers of a type.
#[derive(Clone, Copy)]
struct Ranges {
    /// Smallest code, for the value of largest magnitude.
    low: f32,
    /// Largest code.
    high: f32,
    /// The scale of largest magnitude; its product with the smallest code is a power of two, hence exact.
    reach: i8,
    /// Magnitudes that the largest scale begins with, and their distance.
    starts: (u8, usize),
    /// How far from the scale that maps the largest value to the smallest code a better one may be, in units of it.
    margin: f32,
}

const Q3_K: Ranges = Ranges { low: -4.0, high: 3.0, reach: -32, starts: (24, 4), margin: 2.0 };
const Q6_K: Ranges = Ranges { low: -32.0, high: 31.0, reach: -128, starts: (120, 8), margin: 0.12 };

/// Quantizes 256 values to a 110-byte block. `None` if the scale exceeds the range of f16.
pub fn quantize_q3_k(values: &[f32; LEN], weights: Option<&[f32; LEN]>) -> Option<[u8; 110]> {
    let (fit, q) = fitted(values, weights, Q3_K)?;
    let mut block = [0; 110];
    for (i, q) in q.iter().enumerate() {
        let (half, quarter, i) = (i / 128, i % 128 / 32, i % 32);
        block[i] |= (q >> 2) << (4 * half + quarter);
        block[32 + 32 * half + i] |= (q & 3) << (2 * quarter);
    }
    block[96..108].copy_from_slice(&packed_q3_k_scales(&fit.scales));
    block[108..].copy_from_slice(&fit.d.to_le_bytes());
    Some(block)
}

/// Quantizes 256 values to a 210-byte block. `None` if the scale exceeds the range of f16.
pub fn quantize_q6_k(values: &[f32; LEN], weights: Option<&[f32; LEN]>) -> Option<[u8; 210]> {
    let (fit, q) = fitted(values, weights, Q6_K)?;
    let mut block = [0; 210];
    for half in 0..2 {
        let q = |quarter: usize, i: usize| q[128 * half + 32 * quarter + i];
        for i in 0..32 {
            block[64 * half + i] = q(0, i) & 15 | q(2, i) << 4;
            block[64 * half + 32 + i] = q(1, i) & 15 | q(3, i) << 4;
            block[128 + 32 * half + i] = (0..4).fold(0, |high, quarter| high | q(quarter, i) >> 4 << (2 * quarter));
        }
    }
    block[192..208].copy_from_slice(&fit.scales.map(i8::cast_unsigned));
    block[208..].copy_from_slice(&fit.d.to_le_bytes());
    Some(block)
}

/// The scales of the least error, and the codes minus the smallest one. `None` if a scale exceeds the range of f16.
fn fitted(values: &[f32; LEN], weights: Option<&[f32; LEN]>, ranges: Ranges) -> Option<(Fit, [u8; LEN])> {
    let subs = |values: &[f32; LEN]| array::from_fn(|j| array::from_fn(|i| values[SUB_LEN * j + i]));
    let plain = SuperBlock { subs: subs(values), weights: [[1.0; SUB_LEN]; SUBS], ranges };
    let fit = plain.fit()?;
    let Some(weights) = weights else { return Some((fit, plain.codes(&fit))) };
    let weighted = SuperBlock { weights: subs(weights), ..plain };
    let fit = weighted.improve(fit);
    Some((fit, weighted.codes(&fit)))
}

/// The values to quantize.
struct SuperBlock {
    subs: [[f32; SUB_LEN]; SUBS],
    /// Factors of squared errors.
    weights: [[f32; SUB_LEN]; SUBS],
    ranges: Ranges,
}

/// Scales of a super-block.
#[derive(Clone, Copy)]
struct Fit {
    d: f16,
    scales: [i8; SUBS],
    /// Weighted sum of squared errors with the best codes.
    error: f32,
}

impl SuperBlock {
    /// The best of `plain`, which was fitted without weights, of what alternation makes of it, and of a fit of its own.
    /// So the weighted error is never larger than without weights.
    fn improve(&self, plain: Fit) -> Fit {
        let settled = self.settle(self.search(plain.d, |j| plain.scales[j]..=plain.scales[j]));
        self.fit().filter(|own| own.error < settled.error).unwrap_or(settled)
    }

    /// The best result of several initial values. `None` if the scale exceeds the range of f16.
    fn fit(&self) -> Option<Fit> {
        let level = self.subs[0][0].abs();
        let flat = self.subs.as_flattened().iter().all(|x| x.abs() == level);
        // A power of two is exact for a constant that is an f16, and less leaves room for larger scales. Other constants
        // are represented by the best of many products with an f16.
        let reach = self.ranges.reach.unsigned_abs();
        let (first, apart) = if flat { (reach - reach / 4 + 1, 1) } else { self.ranges.starts };
        let mut best: Option<Fit> = None;
        for start in (first..=reach).step_by(apart) {
            let fit = self.settle(self.start(-f32::from(start))?);
            if best.is_none_or(|best| fit.error < best.error) {
                best = Some(fit);
            }
            if fit.error == 0.0 {
                break;
            }
        }
        best
    }

    /// Searches near the scales that map the largest value of each sub-block to the smallest code.
    fn start(&self, divisor: f32) -> Option<Fit> {
        let steps = self.subs.map(|x| largest(x) / self.ranges.low);
        let d = super_scale(largest(steps), divisor, f32::from(self.ranges.reach))?;
        let per_d = inverse(d.to_f32());
        Some(self.search(d, |j| {
            let scale = steps[j] * per_d;
            let margin = (self.ranges.margin * scale.abs()).max(1.0);
            self.window(scale - margin, scale + margin)
        }))
    }

    /// Alternates until the error no longer decreases.
    fn settle(&self, mut fit: Fit) -> Fit {
        for _ in 0..TURNS {
            let near = |scale: i8| self.window(f32::from(scale) - 2.0, f32::from(scale) + 2.0);
            let next = self.search(self.least_squares(&fit), |j| near(fit.scales[j]));
            if next.error >= fit.error {
                break;
            }
            fit = next;
        }
        fit
    }

    /// The best scale of each sub-block within its window.
    fn search(&self, d: f16, windows: impl Fn(usize) -> RangeInclusive<i8>) -> Fit {
        let mut fit = Fit { d, scales: [0; SUBS], error: 0.0 };
        for j in 0..SUBS {
            // If no scale is better than 0, as for zeros, it stays 0.
            let mut least = self.squared_error(j, 0.0);
            for scale in windows(j) {
                let error = self.squared_error(j, d.to_f32() * f32::from(scale));
                if error < least {
                    (least, fit.scales[j]) = (error, scale);
                }
            }
            fit.error += least;
        }
        fit
    }

    /// The `d` with the least squared error for the codes and scales of `fit`: `Σ x·scale·q / Σ (scale·q)²`.
    fn least_squares(&self, fit: &Fit) -> f16 {
        let (mut products, mut squares) = (0.0, 0.0);
        for (j, x) in self.subs.iter().enumerate() {
            let per_step = inverse(fit.step(j));
            let q = |x: f32| nearest(x * per_step, self.ranges.low, self.ranges.high);
            let (scale, weights) = (f64::from(fit.scales[j]), &self.weights[j]);
            products += scale * f64::from(sum(x, weights, |x| q(x) * x));
            squares += scale * scale * f64::from(sum(x, weights, |x| q(x) * q(x)));
        }
        saturating_f16(products / nonzero(squares))
    }

    fn squared_error(&self, j: usize, step: f32) -> f32 {
        let Ranges { low, high, .. } = self.ranges;
        let per_step = inverse(step);
        sum(&self.subs[j], &self.weights[j], |x| {
            let difference = step * nearest(x * per_step, low, high) - x;
            difference * difference
        })
    }

    /// Integers from about `first` to about `last`, within the range of scales.
    fn window(&self, first: f32, last: f32) -> RangeInclusive<i8> {
        let (low, high) = (f32::from(self.ranges.reach), f32::from(-1 - self.ranges.reach));
        nearest(first, low, high) as i8..=nearest(last, low, high) as i8
    }

    /// Codes minus the smallest one.
    fn codes(&self, fit: &Fit) -> [u8; LEN] {
        let Ranges { low, high, .. } = self.ranges;
        array::from_fn(|i| {
            let (j, i) = (i / SUB_LEN, i % SUB_LEN);
            (nearest(self.subs[j][i] * inverse(fit.step(j)), low, high) - low) as u8
        })
    }
}

impl Fit {
    /// Step of a sub-block, rounded as in decoders.
    fn step(&self, j: usize) -> f32 {
        self.d.to_f32() * f32::from(self.scales[j])
    }
}
