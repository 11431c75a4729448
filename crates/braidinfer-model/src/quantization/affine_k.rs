//! Encoding of `q2_k`, `q4_k` and `q5_k`: `x ≈ d·scale·q − dmin·min` with a small `scale` and `min` for each sub-block.
//!
//! The weighted sum of squared errors of a super-block is minimised by alternation: for given `d` and `dmin`, every
//! sub-block tries the pairs of `scale` and `min` in a window, each with the best rounded codes; for given codes, `scale`
//! and `min`, least squares gives `d` and `dmin`. Wider windows reduce the error by less than 1 % and double the time
//! (measured with `tools/quantization/against_llama_cpp.py`).

use std::array;
use std::ops::RangeInclusive;

use half::f16;

use super::fitting::{inverse, largest, nearest, nonzero, saturating_f16, sum, super_scale};
use super::k_quants::{LEN, packed_scales};

/// Number of alternations after which even super-blocks with outliers have converged.
const TURNS: usize = 8;

/// The integers of a type.
#[derive(Clone, Copy)]
struct Ranges {
    /// Largest code.
    top: f32,
    /// Largest `scale` and `min`.
    reach: f32,
    /// Initial value of the largest `scale`, so that a sub-block that needs a larger one has room.
    start: u8,
}

const Q2_K: Ranges = Ranges { top: 3.0, reach: 15.0, start: 14 };
const Q4_K: Ranges = Ranges { top: 15.0, reach: 63.0, start: 60 };
const Q5_K: Ranges = Ranges { top: 31.0, reach: 63.0, start: 60 };

/// Quantizes 256 values to an 84-byte block. `None` if a scale exceeds the range of f16.
pub fn quantize_q2_k(values: &[f32; LEN], weights: Option<&[f32; LEN]>) -> Option<[u8; 84]> {
    let (fit, q) = fitted::<16, 16>(values, weights, Q2_K)?;
    let mut block = [0; 84];
    for (j, scales) in block[..16].iter_mut().enumerate() {
        *scales = fit.scales[j] | fit.mins[j] << 4;
    }
    for (i, qs) in block[16..80].iter_mut().enumerate() {
        let (half, i) = (i / 32, i % 32);
        *qs = (0..4).fold(0, |qs, quarter| qs | q[8 * half + 2 * quarter + i / 16][i % 16] << (2 * quarter));
    }
    block[80..82].copy_from_slice(&fit.d.to_le_bytes());
    block[82..].copy_from_slice(&fit.dmin.to_le_bytes());
    Some(block)
}

/// Quantizes 256 values to a 144-byte block. `None` if a scale exceeds the range of f16.
pub fn quantize_q4_k(values: &[f32; LEN], weights: Option<&[f32; LEN]>) -> Option<[u8; 144]> {
    let (fit, q) = fitted::<8, 32>(values, weights, Q4_K)?;
    let mut block = [0; 144];
    block[..16].copy_from_slice(&fit.header());
    for (g, qs) in block[16..].as_chunks_mut::<32>().0.iter_mut().enumerate() {
        *qs = array::from_fn(|i| q[2 * g][i] | q[2 * g + 1][i] << 4);
    }
    Some(block)
}

/// Quantizes 256 values to a 176-byte block. `None` if a scale exceeds the range of f16.
pub fn quantize_q5_k(values: &[f32; LEN], weights: Option<&[f32; LEN]>) -> Option<[u8; 176]> {
    let (fit, q) = fitted::<8, 32>(values, weights, Q5_K)?;
    let mut block = [0; 176];
    block[..16].copy_from_slice(&fit.header());
    for (i, high) in block[16..48].iter_mut().enumerate() {
        *high = (0..8).fold(0, |high, j| high | (q[j][i] >> 4) << j);
    }
    for (g, qs) in block[48..].as_chunks_mut::<32>().0.iter_mut().enumerate() {
        *qs = array::from_fn(|i| q[2 * g][i] & 15 | q[2 * g + 1][i] << 4);
    }
    Some(block)
}

/// The scales and the codes of the least error. `None` if a scale exceeds the range of f16.
fn fitted<const SUBS: usize, const SUB_LEN: usize>(
    values: &[f32; LEN],
    weights: Option<&[f32; LEN]>,
    ranges: Ranges,
) -> Option<(Fit<SUBS>, [[u8; SUB_LEN]; SUBS])> {
    const { assert!(SUBS * SUB_LEN == LEN) };
    let subs = |values: &[f32; LEN]| array::from_fn(|j| array::from_fn(|i| values[SUB_LEN * j + i]));
    let plain = SuperBlock { subs: subs(values), weights: [[1.0; SUB_LEN]; SUBS], ranges };
    let fit = plain.fit()?;
    let Some(weights) = weights else { return Some((fit, plain.codes(&fit))) };
    let weighted = SuperBlock { weights: subs(weights), ..plain };
    let fit = weighted.improve(fit);
    Some((fit, weighted.codes(&fit)))
}

/// The values to quantize.
struct SuperBlock<const SUBS: usize, const SUB_LEN: usize> {
    subs: [[f32; SUB_LEN]; SUBS],
    /// Factors of squared errors.
    weights: [[f32; SUB_LEN]; SUBS],
    ranges: Ranges,
}

/// Scales of a super-block.
#[derive(Clone, Copy)]
struct Fit<const SUBS: usize> {
    d: f16,
    dmin: f16,
    scales: [u8; SUBS],
    mins: [u8; SUBS],
    /// Weighted sum of squared errors with the best codes.
    error: f32,
}

/// Unrounded step and offset of one sub-block: `x ≈ step·q − offset`.
#[derive(Clone, Copy)]
struct Line {
    step: f32,
    offset: f32,
}

/// Weighted sums over a sub-block, of 1, the codes `q`, and `y = x + offset`.
struct Sums {
    weight: f64,
    q: f64,
    qq: f64,
    y: f64,
    qy: f64,
}

impl<const SUBS: usize, const SUB_LEN: usize> SuperBlock<SUBS, SUB_LEN> {
    /// The best of `plain`, which was fitted without weights, of what alternation makes of it, and of a fit of its own.
    /// So the weighted error is never larger than without weights.
    fn improve(&self, plain: Fit<SUBS>) -> Fit<SUBS> {
        let plain = self.search(plain.d, plain.dmin, |j| (plain.scales[j]..=plain.scales[j], [plain.mins[j]]));
        let settled = self.settle(plain);
        self.fit().filter(|own| own.error < settled.error).unwrap_or(settled)
    }

    /// The best result of several initial values. `None` if a scale exceeds the range of f16.
    fn fit(&self) -> Option<Fit<SUBS>> {
        let lines = self.lines();
        let flat = lines.iter().all(|line| line.step == 0.0);
        // A constant is represented by `dmin·min`, with the precision of f16, plus a small remainder. Each `min` gives
        // other representable constants, and a power of two is exact if the constant is an f16.
        let Ranges { reach, start, .. } = self.ranges;
        let starts = if flat { reach as u8 / 2 + 1..=reach as u8 } else { start..=start };
        let mut best: Option<Fit<SUBS>> = None;
        for start in starts {
            let fit = self.start(&lines, f32::from(start))?;
            let fit = if flat { self.rest(&fit)? } else { self.settle(fit) };
            if best.is_none_or(|best| fit.error < best.error) {
                best = Some(fit);
            }
            if fit.error == 0.0 {
                break;
            }
        }
        // Squares of values far beyond f16 overflow, and lines fitted to them may be NaN.
        best.filter(|fit| fit.error.is_finite())
    }

    /// Represents by `d·scale·q` the remainder of each sub-block's constant that the offsets of `fit` leave.
    fn rest(&self, fit: &Fit<SUBS>) -> Option<Fit<SUBS>> {
        let steps: [f32; SUBS] = array::from_fn(|j| (self.subs[j][0] + fit.line(j).1).max(0.0) / self.ranges.top);
        let d = super_scale(largest(steps), f32::from(self.ranges.start), self.ranges.reach)?;
        let per_d = inverse(d.to_f32());
        Some(self.search(d, fit.dmin, |j| {
            let [low, _, high] = self.around(self.rounded(steps[j] * per_d));
            (low..=high, [fit.mins[j]])
        }))
    }

    /// A line for each sub-block: the least squares fit for codes that span its values.
    ///
    /// `min` cannot be negative, so offsets are not negative either. But if all values are positive, all offsets may be
    /// negative, because `dmin` can be negative.
    fn lines(&self) -> [Line; SUBS] {
        let lows = self.subs.map(|x| x.into_iter().fold(f32::MAX, f32::min));
        let sign = if lows.iter().all(|low| *low > 0.0) { -1.0 } else { 1.0 };
        array::from_fn(|j| {
            let x = &self.subs[j];
            let low = if sign < 0.0 { lows[j] } else { lows[j].min(0.0) };
            let step = (x.iter().copied().fold(f32::MIN, f32::max) - low) / self.ranges.top;
            let offset = -low;
            let sums = self.sums(j, step, offset);
            let determinant = sums.weight * sums.qq - sums.q * sums.q;
            if determinant <= 0.0 {
                return Line { step, offset };
            }
            let slope = (sums.weight * sums.qy - sums.q * sums.y) / determinant;
            let fitted = f64::from(offset) - (sums.y - slope * sums.q) / sums.weight;
            if fitted * sign >= 0.0 {
                return Line { step: slope as f32, offset: fitted as f32 };
            }
            Line { step: ((sums.qy - f64::from(offset) * sums.q) / sums.qq) as f32, offset: 0.0 }
        })
    }

    /// Searches near the given lines, with a largest `scale` and `min` of about `divisor`.
    fn start(&self, lines: &[Line; SUBS], divisor: f32) -> Option<Fit<SUBS>> {
        let d = super_scale(largest(lines.map(|line| line.step)), divisor, self.ranges.reach)?;
        let dmin = super_scale(largest(lines.map(|line| line.offset)), divisor, self.ranges.reach)?;
        let (per_d, per_dmin) = (inverse(d.to_f32()), inverse(dmin.to_f32()));
        Some(self.search(d, dmin, |j| {
            let (scale, min) = (lines[j].step * per_d, lines[j].offset * per_dmin);
            let (below, above) = ((0.04 * scale).max(1.0), (0.1 * scale).max(1.0));
            // Half a step in both directions, because the best offset may be anywhere in that range.
            let stride = nearest((lines[j].step * per_dmin / 6.0).abs(), 1.0, self.ranges.reach);
            let mins = [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0].map(|strides| self.rounded(min + strides * stride));
            (self.rounded(scale - below)..=self.rounded(scale + above), mins)
        }))
    }

    /// Alternates until the error no longer decreases.
    fn settle(&self, mut fit: Fit<SUBS>) -> Fit<SUBS> {
        for _ in 0..TURNS {
            let (d, dmin) = self.least_squares(&fit);
            let next = self.search(d, dmin, |j| {
                let [low, _, high] = self.around(fit.scales[j]);
                (low..=high, self.around(fit.mins[j]))
            });
            if next.error >= fit.error {
                break;
            }
            fit = next;
        }
        fit
    }

    /// The best `scale` and `min` of each sub-block within its windows.
    fn search<const N: usize>(
        &self,
        d: f16,
        dmin: f16,
        windows: impl Fn(usize) -> (RangeInclusive<u8>, [u8; N]),
    ) -> Fit<SUBS> {
        let mut fit = Fit { d, dmin, scales: [0; SUBS], mins: [0; SUBS], error: 0.0 };
        let (d, dmin) = (d.to_f32(), dmin.to_f32());
        for j in 0..SUBS {
            let (scales, mins) = windows(j);
            let mut least = f32::INFINITY;
            for scale in scales {
                for min in mins {
                    let error = self.squared_error(j, d * f32::from(scale), dmin * f32::from(min));
                    if error < least {
                        (least, fit.scales[j], fit.mins[j]) = (error, scale, min);
                    }
                }
            }
            fit.error += least;
        }
        fit
    }

    /// The `d` and `dmin` with the least squared error for the codes, scales and minima of `fit`, from the normal
    /// equations of `x = d·a − dmin·b` with `a = scale·q` and `b = min`.
    fn least_squares(&self, fit: &Fit<SUBS>) -> (f16, f16) {
        let [mut aa, mut ab, mut bb, mut ax, mut bx] = [0.0; 5];
        for j in 0..SUBS {
            let (step, offset) = fit.line(j);
            let sums = self.sums(j, step, offset);
            let (scale, min, offset) = (f64::from(fit.scales[j]), f64::from(fit.mins[j]), f64::from(offset));
            aa += scale * scale * sums.qq;
            ab += scale * min * sums.q;
            bb += min * min * sums.weight;
            ax += scale * (sums.qy - offset * sums.q);
            bx += min * (sums.y - offset * sums.weight);
        }
        let determinant = aa * bb - ab * ab;
        // Nearly parallel `a` and `b` do not determine both.
        let d = if determinant > 1e-6 * aa * bb {
            (ax * bb - ab * bx) / determinant
        } else {
            (ax + f64::from(fit.dmin.to_f32()) * ab) / nonzero(aa)
        };
        let d = saturating_f16(d.max(0.0));
        // `dmin` is fitted to the rounded `d`, to compensate its rounding.
        (d, saturating_f16((f64::from(d.to_f32()) * ab - bx) / nonzero(bb)))
    }

    fn sums(&self, j: usize, step: f32, offset: f32) -> Sums {
        let (x, weights) = (&self.subs[j], &self.weights[j]);
        let per_step = inverse(step);
        let q = |x: f32| nearest((x + offset) * per_step, 0.0, self.ranges.top);
        Sums {
            weight: sum(x, weights, |_| 1.0).into(),
            q: sum(x, weights, q).into(),
            qq: sum(x, weights, |x| q(x) * q(x)).into(),
            y: sum(x, weights, |x| x + offset).into(),
            qy: sum(x, weights, |x| q(x) * (x + offset)).into(),
        }
    }

    fn squared_error(&self, j: usize, step: f32, offset: f32) -> f32 {
        let per_step = inverse(step);
        sum(&self.subs[j], &self.weights[j], |x| {
            let difference = step * nearest((x + offset) * per_step, 0.0, self.ranges.top) - offset - x;
            difference * difference
        })
    }

    /// The nearest `scale` or `min`.
    fn rounded(&self, value: f32) -> u8 {
        nearest(value, 0.0, self.ranges.reach) as u8
    }

    /// `scale` and its two neighbours, within their range.
    fn around(&self, scale: u8) -> [u8; 3] {
        [-1.0, 0.0, 1.0].map(|steps| self.rounded(f32::from(scale) + steps))
    }

    fn codes(&self, fit: &Fit<SUBS>) -> [[u8; SUB_LEN]; SUBS] {
        array::from_fn(|j| {
            let (step, offset) = fit.line(j);
            let per_step = inverse(step);
            self.subs[j].map(|x| nearest((x + offset) * per_step, 0.0, self.ranges.top) as u8)
        })
    }
}

impl<const SUBS: usize> Fit<SUBS> {
    /// Step and offset of a sub-block, rounded as in decoders.
    fn line(&self, j: usize) -> (f32, f32) {
        (self.d.to_f32() * f32::from(self.scales[j]), self.dmin.to_f32() * f32::from(self.mins[j]))
    }
}

impl Fit<8> {
    /// The common header of `q4_k` and `q5_k`.
    fn header(&self) -> [u8; 16] {
        let mut header = [0; 16];
        header[..2].copy_from_slice(&self.d.to_le_bytes());
        header[2..4].copy_from_slice(&self.dmin.to_le_bytes());
        header[4..].copy_from_slice(&packed_scales(&self.scales, &self.mins));
        header
    }
}
