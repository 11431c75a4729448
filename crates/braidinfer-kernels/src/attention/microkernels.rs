//! The two matrix products of attention, on as many rows and columns at once as registers hold.
//!
//! Every sum is one chain of fused multiply-adds in the order of dimensions or positions, so that results of a row are
//! bitwise independent of how many rows and columns are computed together. If keys and values are read from memory
//! (`AHEAD`), the cache lines of the next block are prefetched meanwhile.

use super::block::{KeyBlock, block_scales};
use super::kv::KvElement;
use super::{BLOCK, BLOCK_TILES};
use crate::simd::{LANES, Simd};

/// How many of `left` remaining rows to compute together: 6, 4, 2 or 1.
const fn group(left: usize) -> usize {
    match left {
        // Two groups of four are faster than a six and a two, because two rows have too few independent chains.
        8 => 4,
        6.. => 6,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Calls `$function::<.., rows, columns>` with `$rows` from [`group`] and as many columns as fit in registers.
macro_rules! for_group {
    ($simd:ident: $S:ty, $rows:expr, $function:ident::<$E:ty, $ahead:ident>($($arg:expr),*)) => {
        if const { <$S>::PANELS > 1 } {
            match $rows {
                6 => $function::<$S, $E, $ahead, 6, 4>($simd, $($arg),*),
                4 => $function::<$S, $E, $ahead, 4, 4>($simd, $($arg),*),
                2 => $function::<$S, $E, $ahead, 2, 4>($simd, $($arg),*),
                _ => $function::<$S, $E, $ahead, 1, 4>($simd, $($arg),*),
            }
        } else {
            match $rows {
                6 => $function::<$S, $E, $ahead, 6, 1>($simd, $($arg),*),
                4 => $function::<$S, $E, $ahead, 4, 1>($simd, $($arg),*),
                2 => $function::<$S, $E, $ahead, 2, 2>($simd, $($arg),*),
                _ => $function::<$S, $E, $ahead, 1, 4>($simd, $($arg),*),
            }
        }
    };
}

/// Lines that one cache line holds.
const fn lines_at_once<E: KvElement>() -> usize {
    64 / (LANES * size_of::<E::Code>())
}

/// `scores[row][position] = q[row] · k[position]` for as many rows as there are scores.
#[inline(always)]
pub(super) fn score<S: Simd, E: KvElement, const AHEAD: bool>(
    simd: S,
    block: &KeyBlock<'_, E>,
    queries: &[f32],
    scores: &mut [[f32; BLOCK]],
) {
    let mut row = 0;
    while row < scores.len() {
        let rows = group(scores.len() - row);
        let queries = &queries[row * block.shape.head_dim..];
        for_group!(simd: S, rows, score_rows::<E, AHEAD>(block, queries, &mut scores[row..]));
        row += rows;
    }
}

#[inline(always)]
fn score_rows<S: Simd, E: KvElement, const AHEAD: bool, const R: usize, const C: usize>(
    simd: S,
    block: &KeyBlock<'_, E>,
    queries: &[f32],
    scores: &mut [[f32; BLOCK]],
) {
    let head_dim = block.shape.head_dim;
    let mut rows: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        rows[r] = &queries[r * head_dim..][..head_dim];
    }
    for first in (0..BLOCK_TILES).step_by(C) {
        let mut sums = [[simd.splat(0.0); C]; R];
        for half in 0..head_dim.div_ceil(LANES) {
            let dims = half * LANES..head_dim.min((half + 1) * LANES);
            let lines = E::group(half) * LANES..E::group(half) * LANES + dims.len();
            let mut columns: [&[[E::Code; LANES]]; C] = [&[]; C];
            let mut next: [&[[E::Code; LANES]]; C] = [&[]; C];
            let mut scales = [simd.splat(0.0); C];
            for c in 0..C {
                columns[c] = &block.tiles.keys[first + c].codes.as_chunks::<LANES>().0[lines.clone()];
                next[c] = &block.next.keys[first + c].codes.as_chunks::<LANES>().0[lines.clone()];
                scales[c] = block_scales(simd, block.tiles.keys[first + c], half / 2);
            }
            let mut parts: [&[f32]; R] = [&[]; R];
            for r in 0..R {
                parts[r] = &rows[r][dims.clone()];
            }
            for d in 0..dims.len() {
                let mut keys = [simd.splat(0.0); C];
                for c in 0..C {
                    keys[c] = E::load(simd, &columns[c][d], half, scales[c]);
                    if AHEAD && d.is_multiple_of(lines_at_once::<E>()) {
                        simd.prefetch(&next[c][d]);
                    }
                }
                for r in 0..R {
                    let query = simd.splat(parts[r][d]);
                    for c in 0..C {
                        sums[r][c] = simd.fma(query, keys[c], sums[r][c]);
                    }
                }
            }
        }
        for r in 0..R {
            let (to, _) = scores[r].as_chunks_mut::<LANES>();
            for c in 0..C {
                simd.store(sums[r][c], &mut to[first + c]);
            }
        }
    }
}

/// `acc[row] = acc[row] * corrections[row] + sum of weights[row][position] * v[position]` over visible positions.
#[inline(always)]
pub(super) fn accumulate<S: Simd, E: KvElement, const AHEAD: bool>(
    simd: S,
    block: &KeyBlock<'_, E>,
    visible: (usize, usize),
    weights: &[[f32; BLOCK]],
    corrections: &[f32],
    acc: &mut [f32],
) {
    let padded_dim = block.shape.padded_dim();
    let mut row = 0;
    while row < weights.len() {
        let rows = group(weights.len() - row);
        let acc = &mut acc[row * padded_dim..];
        for_group!(
            simd: S,
            rows,
            accumulate_rows::<E, AHEAD>(block, visible, &weights[row..], &corrections[row..], acc)
        );
        row += rows;
    }
}

#[inline(always)]
fn accumulate_rows<S: Simd, E: KvElement, const AHEAD: bool, const R: usize, const C: usize>(
    simd: S,
    block: &KeyBlock<'_, E>,
    visible: (usize, usize),
    weights: &[[f32; BLOCK]],
    corrections: &[f32],
    acc: &mut [f32],
) {
    let columns = block.shape.padded_dim() / LANES;
    let mut column = 0;
    while columns - column >= C {
        accumulate_columns::<S, E, AHEAD, R, C>(simd, block, visible, weights, corrections, acc, column);
        column += C;
    }
    while C > 2 && columns - column >= 2 {
        accumulate_columns::<S, E, AHEAD, R, 2>(simd, block, visible, weights, corrections, acc, column);
        column += 2;
    }
    while C > 1 && columns - column >= 1 {
        accumulate_columns::<S, E, AHEAD, R, 1>(simd, block, visible, weights, corrections, acc, column);
        column += 1;
    }
}

#[inline(always)]
fn accumulate_columns<S: Simd, E: KvElement, const AHEAD: bool, const R: usize, const C: usize>(
    simd: S,
    block: &KeyBlock<'_, E>,
    visible: (usize, usize),
    weights: &[[f32; BLOCK]],
    corrections: &[f32],
    acc: &mut [f32],
    column: usize,
) {
    let columns = block.shape.padded_dim() / LANES;
    let stride = E::codes(columns * LANES) / LANES;
    let weights: &[[f32; BLOCK]; R] = weights.first_chunk().expect("a row of weights for each");
    let (acc, _) = acc.as_chunks_mut::<LANES>();
    let mut sums = [[simd.splat(0.0); C]; R];
    for r in 0..R {
        let correction = simd.splat(corrections[r]);
        for c in 0..C {
            sums[r][c] = simd.mul(simd.load(&acc[r * columns + column + c]), correction);
        }
    }
    for tile in 0..BLOCK_TILES {
        let first = tile * LANES;
        let (values, _) = block.tiles.values[tile].codes.as_chunks::<LANES>();
        let (next, _) = block.next.values[tile].codes.as_chunks::<LANES>();
        // Columns begin with a block of dimensions, or are a single one.
        let mut scales = [[0.0; LANES]; 2];
        if E::SCALED {
            #[expect(clippy::needless_range_loop, reason = "blocks of the tile and their scales go together")]
            for b in 0..C.div_ceil(2) {
                simd.store(block_scales(simd, block.tiles.values[tile], column / 2 + b), &mut scales[b]);
            }
        }
        for position in visible.0.max(first)..visible.1.min(first + LANES) {
            let from = (position - first) * stride + E::group(column);
            let lines = E::group(column + C - 1) - E::group(column) + 1;
            let (values, next) = (&values[from..][..lines], &next[from..][..lines]);
            let mut lanes = [simd.splat(0.0); C];
            for c in 0..C {
                let line = E::group(column + c) - E::group(column);
                let scale = simd.splat(scales[c / 2][position - first]);
                lanes[c] = E::load(simd, &values[line], column + c, scale);
                if AHEAD && c.is_multiple_of(lines_at_once::<E>()) {
                    simd.prefetch(&next[line]);
                }
            }
            for r in 0..R {
                let weight = simd.splat(weights[r][position]);
                for c in 0..C {
                    sums[r][c] = simd.fma(weight, lanes[c], sums[r][c]);
                }
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            simd.store(sums[r][c], &mut acc[r * columns + column + c]);
        }
    }
}
