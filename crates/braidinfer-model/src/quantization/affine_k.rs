//! Encoding of `q4_k` and `q5_k`: `x ≈ d·scale·q − dmin·min` with a `scale` and a `min` from 0 to 63 per 32 values.
//!
//! The sum of squared errors of a super-block is minimised by alternation: for given `d` and `dmin`, every sub-block
//! tries the pairs of `scale` and `min` in a window, each with the best rounded codes; for given codes, `scale` and
//! `min`, least squares gives `d` and `dmin`. Wider windows reduce the error by less than 1 % and double the time
//! (measured with `tools/quantization/against_llama_cpp.py`).

use std::array;
use std::ops::RangeInclusive;

use half::f16;

use super::fitting::{inverse, largest, nearest, saturating_f16, sum, super_scale};
use super::k_quants::{LEN, packed_scales};

const SUBS: usize = 8;
const SUB_LEN: usize = LEN / SUBS;
type Sub = [f32; SUB_LEN];
/// Largest `scale` and `min`.
const REACH: f32 = 63.0;
/// Initial value of the largest `scale`, so that a sub-block that needs a larger one has room.
const START: u8 = 60;
/// Number of alternations after which even super-blocks with outliers have converged.
const TURNS: usize = 8;

/// Quantizes 256 values to a 144-byte block. `None` if a scale exceeds the range of f16.
pub fn quantize_q4_k(values: &[f32; LEN]) -> Option<[u8; 144]> {
    let values = SuperBlock::new(values, 15.0);
    let fit = values.fit()?;
    let q = values.codes(&fit);
    let mut block = [0; 144];
    block[..16].copy_from_slice(&fit.header());
    for (g, qs) in block[16..].as_chunks_mut::<SUB_LEN>().0.iter_mut().enumerate() {
        *qs = array::from_fn(|i| q[2 * g][i] | q[2 * g + 1][i] << 4);
    }
    Some(block)
}

/// Quantizes 256 values to a 176-byte block. `None` if a scale exceeds the range of f16.
pub fn quantize_q5_k(values: &[f32; LEN]) -> Option<[u8; 176]> {
    let values = SuperBlock::new(values, 31.0);
    let fit = values.fit()?;
    let q = values.codes(&fit);
    let mut block = [0; 176];
    block[..16].copy_from_slice(&fit.header());
    for (i, high) in block[16..48].iter_mut().enumerate() {
        *high = (0..SUBS).fold(0, |high, j| high | (q[j][i] >> 4) << j);
    }
    for (g, qs) in block[48..].as_chunks_mut::<SUB_LEN>().0.iter_mut().enumerate() {
        *qs = array::from_fn(|i| q[2 * g][i] & 15 | q[2 * g + 1][i] << 4);
    }
    Some(block)
}

/// The values to quantize.
struct SuperBlock {
    subs: [Sub; SUBS],
    /// Largest code.
    top: f32,
}

/// Scales of a super-block.
#[derive(Clone, Copy)]
struct Fit {
    d: f16,
    dmin: f16,
    scales: [u8; SUBS],
    mins: [u8; SUBS],
    /// Sum of squared errors with the best codes.
    error: f32,
}

/// Unrounded step and offset of one sub-block: `x ≈ step·q − offset`.
#[derive(Clone, Copy)]
struct Line {
    step: f32,
    offset: f32,
}

/// Sums over a sub-block, of the codes `q` and of `y = x + offset`.
struct Sums {
    q: f64,
    qq: f64,
    y: f64,
    qy: f64,
}

impl SuperBlock {
    fn new(values: &[f32; LEN], top: f32) -> Self {
        Self { subs: array::from_fn(|j| array::from_fn(|i| values[SUB_LEN * j + i])), top }
    }

    /// The best result of several initial values. `None` if a scale exceeds the range of f16.
    fn fit(&self) -> Option<Fit> {
        let lines = self.lines();
        let flat = lines.iter().all(|line| line.step == 0.0);
        // A constant is represented by `dmin·min`, with the precision of f16, plus a small remainder. Each `min` gives
        // other representable constants, and `min` 32 is exact if the constant is an f16.
        let starts = if flat { 32..=63 } else { START..=START };
        let mut best: Option<Fit> = None;
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
    fn rest(&self, fit: &Fit) -> Option<Fit> {
        let steps: [f32; SUBS] = array::from_fn(|j| (self.subs[j][0] + fit.line(j).1).max(0.0) / self.top);
        let d = super_scale(largest(steps), f32::from(START), REACH)?;
        let per_d = inverse(d.to_f32());
        Some(self.search(d, fit.dmin, |j| {
            let [low, _, high] = around(six_bits(steps[j] * per_d));
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
            let step = (x.iter().copied().fold(f32::MIN, f32::max) - low) / self.top;
            let offset = -low;
            let sums = self.sums(x, step, offset);
            let determinant = SUB_LEN as f64 * sums.qq - sums.q * sums.q;
            if determinant <= 0.0 {
                return Line { step, offset };
            }
            let slope = (SUB_LEN as f64 * sums.qy - sums.q * sums.y) / determinant;
            let fitted = f64::from(offset) - (sums.y - slope * sums.q) / SUB_LEN as f64;
            if fitted * sign >= 0.0 {
                return Line { step: slope as f32, offset: fitted as f32 };
            }
            Line { step: ((sums.qy - f64::from(offset) * sums.q) / sums.qq) as f32, offset: 0.0 }
        })
    }

    /// Searches near the given lines, with a largest `scale` and `min` of about `divisor`.
    fn start(&self, lines: &[Line; SUBS], divisor: f32) -> Option<Fit> {
        let d = super_scale(largest(lines.map(|line| line.step)), divisor, REACH)?;
        let dmin = super_scale(largest(lines.map(|line| line.offset)), divisor, REACH)?;
        let (per_d, per_dmin) = (inverse(d.to_f32()), inverse(dmin.to_f32()));
        Some(self.search(d, dmin, |j| {
            let (scale, min) = (lines[j].step * per_d, lines[j].offset * per_dmin);
            let (below, above) = ((0.04 * scale).max(1.0), (0.1 * scale).max(1.0));
            // Half a step in both directions, because the best offset may be anywhere in that range.
            let stride = nearest((lines[j].step * per_dmin / 6.0).abs(), 1.0, REACH);
            let mins = [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0].map(|strides| six_bits(min + strides * stride));
            (six_bits(scale - below)..=six_bits(scale + above), mins)
        }))
    }

    /// Alternates until the error no longer decreases.
    fn settle(&self, mut fit: Fit) -> Fit {
        for _ in 0..TURNS {
            let (d, dmin) = self.least_squares(&fit);
            let next = self.search(d, dmin, |j| {
                let [low, _, high] = around(fit.scales[j]);
                (low..=high, around(fit.mins[j]))
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
    ) -> Fit {
        let mut fit = Fit { d, dmin, scales: [0; SUBS], mins: [0; SUBS], error: 0.0 };
        let (d, dmin) = (d.to_f32(), dmin.to_f32());
        for (j, x) in self.subs.iter().enumerate() {
            let (scales, mins) = windows(j);
            let mut least = f32::INFINITY;
            for scale in scales {
                for min in mins {
                    let error = self.squared_error(x, d * f32::from(scale), dmin * f32::from(min));
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
    fn least_squares(&self, fit: &Fit) -> (f16, f16) {
        let [mut aa, mut ab, mut bb, mut ax, mut bx] = [0.0; 5];
        for (j, x) in self.subs.iter().enumerate() {
            let (step, offset) = fit.line(j);
            let sums = self.sums(x, step, offset);
            let (scale, min, offset) = (f64::from(fit.scales[j]), f64::from(fit.mins[j]), f64::from(offset));
            aa += scale * scale * sums.qq;
            ab += scale * min * sums.q;
            bb += min * min * SUB_LEN as f64;
            ax += scale * (sums.qy - offset * sums.q);
            bx += min * (sums.y - offset * SUB_LEN as f64);
        }
        let determinant = aa * bb - ab * ab;
        // Nearly parallel `a` and `b` do not determine both. The sums of squares are integers, so `max(1.0)` only
        // replaces 0.
        let d = if determinant > 1e-6 * aa * bb {
            (ax * bb - ab * bx) / determinant
        } else {
            (ax + f64::from(fit.dmin.to_f32()) * ab) / aa.max(1.0)
        };
        let d = saturating_f16(d.max(0.0));
        // `dmin` is fitted to the rounded `d`, to compensate its rounding.
        (d, saturating_f16((f64::from(d.to_f32()) * ab - bx) / bb.max(1.0)))
    }

    fn sums(&self, x: &Sub, step: f32, offset: f32) -> Sums {
        let per_step = inverse(step);
        let q = |x: f32| nearest((x + offset) * per_step, 0.0, self.top);
        Sums {
            q: sum(x, q).into(),
            qq: sum(x, |x| q(x) * q(x)).into(),
            y: sum(x, |x| x + offset).into(),
            qy: sum(x, |x| q(x) * (x + offset)).into(),
        }
    }

    fn squared_error(&self, x: &Sub, step: f32, offset: f32) -> f32 {
        let per_step = inverse(step);
        sum(x, |x| {
            let difference = step * nearest((x + offset) * per_step, 0.0, self.top) - offset - x;
            difference * difference
        })
    }

    fn codes(&self, fit: &Fit) -> [[u8; SUB_LEN]; SUBS] {
        array::from_fn(|j| {
            let (step, offset) = fit.line(j);
            let per_step = inverse(step);
            self.subs[j].map(|x| nearest((x + offset) * per_step, 0.0, self.top) as u8)
        })
    }
}

impl Fit {
    /// Step and offset of a sub-block, rounded as in decoders.
    fn line(&self, j: usize) -> (f32, f32) {
        (self.d.to_f32() * f32::from(self.scales[j]), self.dmin.to_f32() * f32::from(self.mins[j]))
    }

    /// The common header of both types.
    fn header(&self) -> [u8; 16] {
        let mut header = [0; 16];
        header[..2].copy_from_slice(&self.d.to_le_bytes());
        header[2..4].copy_from_slice(&self.dmin.to_le_bytes());
        header[4..].copy_from_slice(&packed_scales(&self.scales, &self.mins));
        header
    }
}

/// Rounds to the nearest 6-bit integer.
fn six_bits(value: f32) -> u8 {
    nearest(value, 0.0, REACH) as u8
}

/// `scale` and its two neighbours, limited to six bits.
fn around(scale: u8) -> [u8; 3] {
    [-1.0, 0.0, 1.0].map(|steps| six_bits(f32::from(scale) + steps))
}
