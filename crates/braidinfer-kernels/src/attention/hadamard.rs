//! The Hadamard transform of heads, which spreads a large value over all others.
//!
//! Products of two heads are the same before and after it, so that keys (with queries) and values (with outputs) can be
//! stored transformed. No dimension then has a range of its own, and rounding to few bits costs least.

use crate::isa::dispatched;
use crate::simd::{LANES, Simd};

dispatched! {
    /// Transforms every head `[width]` of `heads` by the orthonormal Hadamard matrix, block by block of as many
    /// dimensions as the largest power of two that divides `width`. The transform is its own inverse.
    pub fn hadamard(heads: &mut [f32], width: usize) = transform;
}

#[inline(always)]
fn transform<S: Simd>(simd: S, heads: &mut [f32], width: usize) {
    let size = 1 << width.trailing_zeros();
    assert!(heads.len().is_multiple_of(width), "{} values for heads of {width}", heads.len());
    let factor = (1.0 / (size as f64).sqrt()) as f32;
    for start in (0..heads.len()).step_by(size) {
        let block = &mut heads[start..start + size];
        if size < LANES {
            transform_few(block, factor);
        } else {
            transform_lines(simd, block.as_chunks_mut::<LANES>().0, factor);
        }
    }
}

/// Strides from 1 up: sums of pairs, then of their sums, and so on.
#[inline(always)]
fn transform_few(block: &mut [f32], factor: f32) {
    let mut stride = 1;
    while stride < block.len() {
        for pair in 0..block.len() / 2 {
            let i = pair / stride * 2 * stride + pair % stride;
            (block[i], block[i + stride]) = (block[i] + block[i + stride], block[i] - block[i + stride]);
        }
        stride *= 2;
    }
    for value in block {
        *value *= factor;
    }
}

#[inline(always)]
fn transform_lines<S: Simd>(simd: S, lines: &mut [[f32; LANES]], factor: f32) {
    for line in &mut *lines {
        step::<1>(line);
        step::<2>(line);
        step::<4>(line);
        step::<8>(line);
    }
    let mut stride = 1;
    while stride < lines.len() {
        for pair in 0..lines.len() / 2 {
            let i = pair / stride * 2 * stride + pair % stride;
            let (a, b) = (simd.load(&lines[i]), simd.load(&lines[i + stride]));
            simd.store(simd.add(a, b), &mut lines[i]);
            simd.store(simd.sub(a, b), &mut lines[i + stride]);
        }
        stride *= 2;
    }
    for line in lines {
        simd.store(simd.mul(simd.load(line), simd.splat(factor)), line);
    }
}

#[inline(always)]
fn step<const STRIDE: usize>(line: &mut [f32; LANES]) {
    let mut pair = 0;
    while pair < LANES / 2 {
        let i = pair / STRIDE * 2 * STRIDE + pair % STRIDE;
        (line[i], line[i + STRIDE]) = (line[i] + line[i + STRIDE], line[i] - line[i + STRIDE]);
        pair += 1;
    }
}
