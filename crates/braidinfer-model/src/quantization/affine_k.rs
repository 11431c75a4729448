//! Encoding of `q4_k` and `q5_k`: `x ≈ d·scale·q − dmin·min` with `scale` and `min` from 0 to 63 per 32 values.

use std::array;
use std::ops::RangeInclusive;

use half::f16;

use super::k_quants::{LEN, packed_scales};
use super::lanes::{inverse, nearest, sum};

const SUBS: usize = 8;
type Sub = [f32; LEN / SUBS];

#[derive(Clone, Copy)]
struct Fit {
    d: f16,
    dmin: f16,
    scales: [u8; SUBS],
    mins: [u8; SUBS],
    error: f32,
}

fn env(name: &str, default: f32) -> f32 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

pub struct Params {
    tops: Vec<f32>,
    down: f32,
    up: f32,
    mw: f32,
    rounds: usize,
    w2: i32,
}

pub static PARAMS: std::sync::LazyLock<Params> = std::sync::LazyLock::new(|| Params {
    tops: std::env::var("TOPS").unwrap_or("63".into()).split(',').map(|v| v.parse().unwrap()).collect(),
    down: env("DOWN", 0.12),
    up: env("UP", 0.04),
    mw: env("MW", 4.0),
    rounds: env("ROUNDS", 4.0) as usize,
    w2: env("W2", 1.0) as i32,
});

pub fn quantize_q4_k(values: &[f32; LEN]) -> Option<[u8; 144]> {
    let x = subs(values);
    let fit = best_fit(&x, 15.0)?;
    let q = fit.codes(&x, 15.0);
    let mut block = [0; 144];
    block[..16].copy_from_slice(&fit.header());
    for (g, qs) in block[16..].as_chunks_mut::<32>().0.iter_mut().enumerate() {
        *qs = array::from_fn(|i| q[2 * g][i] | q[2 * g + 1][i] << 4);
    }
    Some(block)
}

pub fn quantize_q5_k(values: &[f32; LEN]) -> Option<[u8; 176]> {
    let x = subs(values);
    let fit = best_fit(&x, 31.0)?;
    let q = fit.codes(&x, 31.0);
    let mut block = [0; 176];
    block[..16].copy_from_slice(&fit.header());
    for (i, high) in block[16..48].iter_mut().enumerate() {
        *high = (0..SUBS).fold(0, |high, j| high | (q[j][i] >> 4) << j);
    }
    for (g, qs) in block[48..].as_chunks_mut::<32>().0.iter_mut().enumerate() {
        *qs = array::from_fn(|i| q[2 * g][i] & 15 | q[2 * g + 1][i] << 4);
    }
    Some(block)
}

fn subs(values: &[f32; LEN]) -> [Sub; SUBS] {
    array::from_fn(|j| array::from_fn(|i| values[32 * j + i]))
}

/// Least f16 whose product with 63 does not fall short of `largest` by more than half of a scale.
fn super_scale(largest: f32, top: f32) -> Option<f16> {
    let ideal = largest / top;
    let mut d = f16::from_f32(ideal);
    if (d.to_f32() * 63.5).abs() < largest.abs() {
        d = f16::from_bits(d.to_bits() + 1);
    }
    d.is_finite().then_some(d)
}

fn best_fit(x: &[Sub; SUBS], top: f32) -> Option<Fit> {
    let lows: [f32; SUBS] = array::from_fn(|j| x[j].iter().copied().fold(f32::MAX, f32::min));
    let highs: [f32; SUBS] = array::from_fn(|j| x[j].iter().copied().fold(f32::MIN, f32::max));
    let shifted = lows.iter().all(|low| *low > 0.0);
    let lows = if shifted { lows } else { lows.map(|low| low.min(0.0)) };
    let steps: [f32; SUBS] = array::from_fn(|j| (highs[j] - lows[j]) / top);
    let widest = steps.iter().copied().fold(0.0, f32::max);
    let deepest = lows.iter().copied().fold(0.0, |a: f32, b| if b.abs() > a.abs() { b } else { a });
    let mut best: Option<Fit> = None;
    for t in &PARAMS.tops {
        let mut fit = Fit {
            d: super_scale(widest, *t)?,
            dmin: super_scale(-deepest, *t)?,
            scales: [0; SUBS],
            mins: [0; SUBS],
            error: 0.0,
        };
        let (di, mi) = (inverse(fit.d.to_f32()), inverse(fit.dmin.to_f32()));
        fit.search(x, top, |j| {
            let s = steps[j] * di;
            let m = -lows[j] * mi;
            (
                range((s - (s * PARAMS.down).max(1.0)).round(), (s + (s * PARAMS.up).max(1.0)).round()),
                range((m - PARAMS.mw).round(), (m + PARAMS.mw).round()),
            )
        });
        for _ in 0..PARAMS.rounds {
            let mut refined = fit.refit(x, top);
            let w = PARAMS.w2 as f32;
            refined.search(x, top, |j| {
                (
                    range(f32::from(fit.scales[j]) - w, f32::from(fit.scales[j]) + w),
                    range(f32::from(fit.mins[j]) - w, f32::from(fit.mins[j]) + w),
                )
            });
            if refined.error >= fit.error {
                break;
            }
            fit = refined;
        }
        if best.is_none_or(|best| fit.error < best.error) {
            best = Some(fit);
        }
    }
    best
}

fn range(a: f32, b: f32) -> RangeInclusive<u8> {
    a as u8..=b.min(63.0) as u8
}

impl Fit {
    fn line(&self, j: usize) -> (f32, f32) {
        (self.d.to_f32() * f32::from(self.scales[j]), self.dmin.to_f32() * f32::from(self.mins[j]))
    }

    fn search(
        &mut self,
        x: &[Sub; SUBS],
        top: f32,
        windows: impl Fn(usize) -> (RangeInclusive<u8>, RangeInclusive<u8>),
    ) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        self.error = 0.0;
        for (j, x) in x.iter().enumerate() {
            let (scales, mins) = windows(j);
            let mins = if dmin == 0.0 { 0..=0 } else { mins };
            let mut best = f32::MAX;
            for scale in scales {
                for min in mins.clone() {
                    let error = squared_error(x, d * f32::from(scale), dmin * f32::from(min), top);
                    if error < best {
                        (best, self.scales[j], self.mins[j]) = (error, scale, min);
                    }
                }
            }
            self.error += best;
        }
    }

    fn refit(&self, x: &[Sub; SUBS], top: f32) -> Fit {
        let [mut aa, mut ab, mut bb, mut xa, mut xb] = [0.0f64; 5];
        for (j, x) in x.iter().enumerate() {
            let (step, offset) = self.line(j);
            let inv = inverse(step);
            let code = |x: f32| nearest((x + offset) * inv, 0.0, top);
            let (scale, min) = (f64::from(self.scales[j]), f64::from(self.mins[j]));
            aa += scale * scale * f64::from(sum(x, |x| code(x) * code(x)));
            ab += scale * min * f64::from(sum(x, code));
            bb += min * min * x.len() as f64;
            xa += scale * f64::from(sum(x, |x| x * code(x)));
            xb += min * f64::from(sum(x, |x| x));
        }
        let det = aa * bb - ab * ab;
        let d = if det > 1e-6 * aa * bb {
            (xa * bb - ab * xb) / det
        } else if aa > 0.0 {
            (xa + f64::from(self.dmin.to_f32()) * ab) / aa
        } else {
            0.0
        };
        let d = f16::from_f32((d as f32).clamp(0.0, 65504.0));
        let dmin = if bb > 0.0 { ((f64::from(d.to_f32()) * ab - xb) / bb) as f32 } else { 0.0 };
        Fit { d, dmin: f16::from_f32(dmin.clamp(-65504.0, 65504.0)), ..*self }
    }

    fn codes(&self, x: &[Sub; SUBS], top: f32) -> [[u8; 32]; SUBS] {
        array::from_fn(|j| {
            let (step, offset) = self.line(j);
            let inv = inverse(step);
            x[j].map(|x| nearest((x + offset) * inv, 0.0, top) as u8)
        })
    }

    fn header(&self) -> [u8; 16] {
        let mut header = [0; 16];
        header[..2].copy_from_slice(&self.d.to_le_bytes());
        header[2..4].copy_from_slice(&self.dmin.to_le_bytes());
        header[4..].copy_from_slice(&packed_scales(&self.scales, &self.mins));
        header
    }
}

fn squared_error(x: &Sub, step: f32, offset: f32, top: f32) -> f32 {
    let inv = inverse(step);
    sum(x, |x| {
        let q = nearest((x + offset) * inv, 0.0, top);
        let diff = step * q - offset - x;
        diff * diff
    })
}
