//! Encoding of `q6_k`: `x ≈ d·scale·q` with `q` from −32 to 31 and a signed 8-bit `scale` per 16 values.

use std::array;

use half::f16;

use super::k_quants::LEN;
use super::lanes::{inverse, nearest, sum};

const SUBS: usize = 16;
type Sub = [f32; LEN / SUBS];

#[derive(Clone, Copy)]
struct Fit {
    d: f16,
    scales: [i8; SUBS],
    error: f32,
}

fn env(name: &str, default: f32) -> f32 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

struct Params {
    tops: Vec<f32>,
    w: f32,
    rounds: usize,
    w2: i32,
    opp: bool,
}

static PARAMS: std::sync::LazyLock<Params> = std::sync::LazyLock::new(|| Params {
    tops: std::env::var("TOPS6").unwrap_or("-128".into()).split(',').map(|v| v.parse().unwrap()).collect(),
    w: env("W6", 0.04),
    rounds: env("ROUNDS6", 4.0) as usize,
    w2: env("W26", 1.0) as i32,
    opp: env("OPP6", 1.0) > 0.0,
});

pub fn quantize_q6_k(values: &[f32; LEN]) -> Option<[u8; 210]> {
    let x: [Sub; SUBS] = array::from_fn(|j| array::from_fn(|i| values[16 * j + i]));
    let fit = best_fit(&x)?;
    let mut q = [0u8; LEN];
    for j in 0..SUBS {
        let inv = inverse(fit.d.to_f32() * f32::from(fit.scales[j]));
        for i in 0..16 {
            q[16 * j + i] = (nearest(x[j][i] * inv, -32.0, 31.0) as i8 + 32) as u8;
        }
    }
    let mut block = [0; 210];
    for h in 0..2 {
        let q = &q[128 * h..][..128];
        for i in 0..32 {
            block[64 * h + i] = q[i] & 15 | q[64 + i] << 4;
            block[64 * h + 32 + i] = q[32 + i] & 15 | q[96 + i] << 4;
            block[128 + 32 * h + i] = q[i] >> 4 | q[32 + i] >> 4 << 2 | q[64 + i] >> 4 << 4 | q[96 + i] >> 4 << 6;
        }
    }
    for j in 0..SUBS {
        block[192 + j] = fit.scales[j] as u8;
    }
    block[208..].copy_from_slice(&fit.d.to_le_bytes());
    Some(block)
}

fn best_fit(x: &[Sub; SUBS]) -> Option<Fit> {
    let extremes: [f32; SUBS] =
        array::from_fn(|j| x[j].iter().copied().fold(0.0, |a: f32, b| if b.abs() > a.abs() { b } else { a }));
    let extreme = extremes.iter().copied().fold(0.0, |a: f32, b| if b.abs() > a.abs() { b } else { a });
    let mut best: Option<Fit> = None;
    for t in &PARAMS.tops {
        let ideal = extreme / -32.0 / t;
        let mut d = f16::from_f32(ideal);
        if (d.to_f32() * 128.5 * 32.0).abs() < extreme.abs() {
            d = f16::from_bits(d.to_bits() + 1);
        }
        if !d.is_finite() {
            return None;
        }
        let mut fit = Fit { d, scales: [0; SUBS], error: 0.0 };
        let di = inverse(d.to_f32());
        fit.search(
            x,
            |j| {
                let c = extremes[j] / -32.0 * di;
                (c, (c.abs() * PARAMS.w).max(1.0))
            },
            PARAMS.opp,
        );
        for _ in 0..PARAMS.rounds {
            let mut refined = fit.refit(x);
            refined.search(x, |j| (f32::from(fit.scales[j]), PARAMS.w2 as f32), false);
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

impl Fit {
    fn search(&mut self, x: &[Sub; SUBS], windows: impl Fn(usize) -> (f32, f32), opp: bool) {
        let d = self.d.to_f32();
        self.error = 0.0;
        for (j, x) in x.iter().enumerate() {
            let (c, w) = windows(j);
            let mut best = f32::MAX;
            let mut go = |c: f32| {
                for scale in (c - w).round() as i8..=(c + w).round() as i8 {
                    let error = squared_error(x, d * f32::from(scale));
                    if error < best {
                        (best, self.scales[j]) = (error, scale);
                    }
                }
            };
            go(c);
            if opp {
                go(-c);
            }
            self.error += best;
        }
    }

    fn refit(&self, x: &[Sub; SUBS]) -> Fit {
        let [mut aa, mut xa] = [0.0f64; 2];
        for (j, x) in x.iter().enumerate() {
            let scale = f64::from(self.scales[j]);
            let inv = inverse(self.d.to_f32() * f32::from(self.scales[j]));
            let code = |x: f32| nearest(x * inv, -32.0, 31.0);
            aa += scale * scale * f64::from(sum(x, |x| code(x) * code(x)));
            xa += scale * f64::from(sum(x, |x| x * code(x)));
        }
        let d = if aa > 0.0 { xa / aa } else { 0.0 };
        Fit { d: f16::from_f32((d as f32).clamp(-65504.0, 65504.0)), ..*self }
    }
}

fn squared_error(x: &Sub, step: f32) -> f32 {
    let inv = inverse(step);
    sum(x, |x| {
        let diff = step * nearest(x * inv, -32.0, 31.0) - x;
        diff * diff
    })
}
