//! Encoding of `q6_k`: `x ≈ d·scale·q` with `q` from −32 to 31 and a signed 8-bit `scale` per 16 values.
//!
//! As in `affine_k`: for a given `d`, every sub-block tries the scales in a window; then least squares gives `d`.

use std::array;
use std::ops::RangeInclusive;

use half::f16;

use super::fitting::{inverse, largest, nearest, saturating_f16, sum, super_scale};
use super::k_quants::LEN;

const SUBS: usize = 16;
const SUB_LEN: usize = LEN / SUBS;
const LOW: f32 = -32.0;
const HIGH: f32 = 31.0;
/// The scale of largest magnitude; its product with code −32 is a power of two, hence exact.
const REACH: f32 = -128.0;
const TURNS: usize = 4;

/// Quantizes 256 values to a 210-byte block. `None` if the scale exceeds the range of f16.
pub fn quantize_q6_k(values: &[f32; LEN]) -> Option<[u8; 210]> {
    let values = SuperBlock { subs: array::from_fn(|j| array::from_fn(|i| values[SUB_LEN * j + i])) };
    let fit = values.fit()?;
    let q = values.codes(&fit);
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

/// The values to quantize.
struct SuperBlock {
    subs: [[f32; SUB_LEN]; SUBS],
}

/// Scales of a super-block.
#[derive(Clone, Copy)]
struct Fit {
    d: f16,
    scales: [i8; SUBS],
    /// Sum of squared errors with the best codes.
    error: f32,
}

impl SuperBlock {
    /// The best result of several initial values. `None` if the scale exceeds the range of f16.
    fn fit(&self) -> Option<Fit> {
        let level = self.subs[0][0].abs();
        let flat = self.subs.as_flattened().iter().all(|x| x.abs() == level);
        // 128 is exact for a constant that is an f16, and 120 leaves room for larger scales. Other constants are
        // represented by the best of many products with an f16.
        let (first, apart) = if flat { (97, 1) } else { (120, 8) };
        let mut best: Option<Fit> = None;
        for start in (first..=128u8).step_by(apart) {
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

    /// Searches near the scales that map the largest value of each sub-block to code −32.
    fn start(&self, divisor: f32) -> Option<Fit> {
        let steps = self.subs.map(|x| largest(x) / LOW);
        let d = super_scale(largest(steps), divisor, REACH)?;
        let per_d = inverse(d.to_f32());
        Some(self.search(d, |j| {
            let scale = steps[j] * per_d;
            let margin = (0.12 * scale.abs()).max(1.0);
            window(scale - margin, scale + margin)
        }))
    }

    /// Alternates until the error no longer decreases.
    fn settle(&self, mut fit: Fit) -> Fit {
        for _ in 0..TURNS {
            let near = |scale: i8| window(f32::from(scale) - 2.0, f32::from(scale) + 2.0);
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
        for (j, x) in self.subs.iter().enumerate() {
            // If no scale is better than 0, as for zeros, it stays 0.
            let mut least = squared_error(x, 0.0);
            for scale in windows(j) {
                let error = squared_error(x, d.to_f32() * f32::from(scale));
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
            let q = |x: f32| nearest(x * per_step, LOW, HIGH);
            let scale = f64::from(fit.scales[j]);
            products += scale * f64::from(sum(x, |x| q(x) * x));
            squares += scale * scale * f64::from(sum(x, |x| q(x) * q(x)));
        }
        // The sum is an integer, so `max(1.0)` only replaces 0.
        saturating_f16(products / squares.max(1.0))
    }

    /// Codes plus 32.
    fn codes(&self, fit: &Fit) -> [u8; LEN] {
        array::from_fn(|i| {
            let (j, i) = (i / SUB_LEN, i % SUB_LEN);
            (nearest(self.subs[j][i] * inverse(fit.step(j)), LOW, HIGH) - LOW) as u8
        })
    }
}

impl Fit {
    /// Step of a sub-block, rounded as in decoders.
    fn step(&self, j: usize) -> f32 {
        self.d.to_f32() * f32::from(self.scales[j])
    }
}

/// Integers from about `first` to about `last`, limited to eight bits.
fn window(first: f32, last: f32) -> RangeInclusive<i8> {
    nearest(first, REACH, 127.0) as i8..=nearest(last, REACH, 127.0) as i8
}

fn squared_error(x: &[f32; SUB_LEN], step: f32) -> f32 {
    let per_step = inverse(step);
    sum(x, |x| {
        let difference = step * nearest(x * per_step, LOW, HIGH) - x;
        difference * difference
    })
}
