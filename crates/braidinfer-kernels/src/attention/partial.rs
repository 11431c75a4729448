//! Partial attention results over some of the keys, and merging them.

use super::AttentionShape;
use crate::elementwise::padded;
use crate::isa::dispatched;
use crate::math::exp_in_range;
use crate::simd::{LANES, Simd};

/// Attention of `rows` rows over some of the keys that they see.
#[derive(Debug)]
pub struct Partial<'a> {
    /// `[rows][padded_dim]`: sums of `exp(score - max)` times values.
    pub acc: &'a mut [f32],
    /// `[rows]`: the largest score, or minus infinity if no key was seen.
    pub max: &'a mut [f32],
    /// `[rows]`: sums of `exp(score - max)`.
    pub sum: &'a mut [f32],
}

impl<'a> Partial<'a> {
    /// Length of a buffer for `rows` rows.
    pub fn len(shape: &AttentionShape, rows: usize) -> usize {
        rows * (shape.padded_dim() + 2)
    }

    /// Splits a buffer of [`Partial::len`] values.
    pub fn new(shape: &AttentionShape, rows: usize, buffer: &'a mut [f32]) -> Self {
        assert_eq!(buffer.len(), Self::len(shape, rows));
        let (acc, rest) = buffer.split_at_mut(rows * shape.padded_dim());
        let (max, sum) = rest.split_at_mut(rows);
        Self { acc, max, sum }
    }

    /// Resets to the result without keys.
    pub(super) fn clear(&mut self) {
        self.acc.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }
}

dispatched! {
    /// Merges the result over the next keys into `into`. Rows that saw no key in `next` stay bitwise unchanged.
    pub fn merge(into: &mut Partial<'_>, next: &Partial<'_>) = merge_rows;
}
dispatched! {
    /// Merges a further key with a value of zeros and, for row `i`, the score `sinks[i % sinks.len()]`.
    pub fn add_sinks(partial: &mut Partial<'_>, sinks: &[f32]) = add_sink_rows;
}
dispatched! {
    /// `acc / sum` for every row, as `[rows][head_dim]`; zeros for rows that saw no key.
    pub fn finish(partial: &Partial<'_>, head_dim: usize, out: &mut [f32]) = finish_rows;
}

/// The offset of scores: the largest score, or 0 if all are minus infinity, since their difference would be NaN.
#[inline(always)]
pub(super) fn base(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// `exp(x)` for `x <= 0`.
#[inline(always)]
pub(super) fn exp_one<S: Simd>(simd: S, x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    simd.store(exp_in_range(simd, simd.splat(x)), &mut lanes);
    lanes[0]
}

#[inline(always)]
fn merge_rows<S: Simd>(simd: S, into: &mut Partial<'_>, next: &Partial<'_>) {
    let rows = into.max.len();
    assert_eq!((into.sum.len(), next.max.len(), next.sum.len()), (rows, rows, rows));
    assert_eq!(into.acc.len(), next.acc.len());
    let stride = into.acc.len().checked_div(rows * LANES).unwrap_or(0);
    for row in 0..rows {
        // A row that saw a key has a sum of at least 1, or a NaN, which must not be lost.
        if next.sum[row] == 0.0 {
            continue;
        }
        let to = &mut into.acc.as_chunks_mut::<LANES>().0[row * stride..][..stride];
        let from = &next.acc.as_chunks::<LANES>().0[row * stride..][..stride];
        if into.sum[row] == 0.0 {
            // Exactly as if the spans that are invisible to this row had been skipped, including the signs of zeros.
            to.copy_from_slice(from);
            (into.max[row], into.sum[row]) = (next.max[row], next.sum[row]);
            continue;
        }
        let max = if next.max[row] > into.max[row] { next.max[row] } else { into.max[row] };
        let old = exp_one(simd, into.max[row] - base(max));
        let new = exp_one(simd, next.max[row] - base(max));
        into.max[row] = max;
        into.sum[row] = into.sum[row] * old + next.sum[row] * new;
        for (to, from) in to.iter_mut().zip(from) {
            let kept = simd.mul(simd.load(to), simd.splat(old));
            simd.store(simd.fma(simd.load(from), simd.splat(new), kept), to);
        }
    }
}

#[inline(always)]
fn add_sink_rows<S: Simd>(simd: S, partial: &mut Partial<'_>, sinks: &[f32]) {
    let rows = partial.max.len();
    assert!(rows.is_multiple_of(sinks.len()), "{rows} rows with {} sinks", sinks.len());
    let stride = partial.acc.len().checked_div(rows * LANES).unwrap_or(0);
    for row in 0..rows {
        let sink = sinks[row % sinks.len()];
        let max = if sink > partial.max[row] { sink } else { partial.max[row] };
        let old = exp_one(simd, partial.max[row] - base(max));
        partial.sum[row] = partial.sum[row] * old + exp_one(simd, sink - base(max));
        partial.max[row] = max;
        for acc in &mut partial.acc.as_chunks_mut::<LANES>().0[row * stride..][..stride] {
            simd.store(simd.mul(simd.load(acc), simd.splat(old)), acc);
        }
    }
}

#[inline(always)]
fn finish_rows<S: Simd>(simd: S, partial: &Partial<'_>, head_dim: usize, out: &mut [f32]) {
    let rows = partial.sum.len();
    let stride = head_dim.div_ceil(LANES);
    assert_eq!((partial.acc.len(), out.len()), (rows * stride * LANES, rows * head_dim));
    for row in 0..rows {
        let sum = partial.sum[row];
        let sum = simd.splat(if sum == 0.0 { 1.0 } else { sum });
        let from = &partial.acc.as_chunks::<LANES>().0[row * stride..][..stride];
        let (to, tail) = out[row * head_dim..][..head_dim].as_chunks_mut::<LANES>();
        for (to, from) in to.iter_mut().zip(from) {
            simd.store(simd.div(simd.load(from), sum), to);
        }
        if !tail.is_empty() {
            let mut last = padded(&[]);
            simd.store(simd.div(simd.load(&from[stride - 1]), sum), &mut last);
            tail.copy_from_slice(&last[..tail.len()]);
        }
    }
}
