//! Attention of many rows, one block of keys after another.

use std::ops::Range;

use super::kv::{KvElement, Tile};
use super::kv_types::Stored;
use super::microkernels::{accumulate, score};
use super::partial::{base, exp_one};
use super::{Attention, AttentionShape, BLOCK, BLOCK_TILES, Partial, SPAN, scratch_len};
use crate::elementwise::capped;
use crate::math::exp_in_range;
use crate::simd::{LANES, Part, Simd};

/// Up to this many rows read keys and values directly; for more rows, blocks are first converted to f32.
pub(super) const DIRECT_ROWS: usize = 8;

/// Rows whose scores are computed together: a multiple of the rows of every microkernel, and few enough for the CPU
/// cache.
const STRIP: usize = 24;

/// Keys and values of one block of [`BLOCK`] positions.
#[derive(Clone, Copy)]
pub(super) struct Tiles<'a, E: Stored> {
    pub(super) keys: [Tile<'a, E>; BLOCK_TILES],
    pub(super) values: [Tile<'a, E>; BLOCK_TILES],
}

/// The queries and one block of keys and values.
pub(super) struct KeyBlock<'a, E: Stored> {
    pub(super) shape: &'a AttentionShape,
    /// `[rows][head_dim]`.
    queries: &'a [f32],
    first_position: usize,
    /// The existing positions of the block, which starts at a multiple of [`BLOCK`].
    positions: Range<usize>,
    pub(super) tiles: Tiles<'a, E>,
    /// The tiles of the next block, if there is one, for prefetching.
    pub(super) next: Tiles<'a, E>,
}

/// Scores, later softmax weights, of some rows.
struct Strip {
    weights: [[f32; BLOCK]; STRIP],
    /// Factors that rescale the running sums.
    corrections: [f32; STRIP],
    /// Range of positions visible to each row, relative to the start of the block.
    visible: [(usize, usize); STRIP],
}

impl<'a, T: KvElement> Attention<'a, T> {
    fn rows(&self) -> usize {
        self.queries.len() / self.shape.head_dim
    }

    fn check(&self, scratch: &[f32], out: &Partial<'_>) {
        let (shape, rows) = (self.shape, self.rows());
        assert_eq!(self.queries.len(), rows * shape.head_dim);
        assert_eq!(rows % shape.per_group, 0);
        assert!(self.span.start.is_multiple_of(SPAN) && self.span.len() <= SPAN, "bad span {:?}", self.span);
        assert!(scratch.len() >= scratch_len(shape, rows));
        assert!(shape.window != Some(0), "a window of no keys");
        assert_eq!((out.max.len(), out.sum.len()), (rows, rows));
        assert_eq!(out.acc.len(), rows * shape.padded_dim());
    }

    /// The rows to which any key of `positions`, which must not be empty, is visible.
    fn rows_that_see(&self, positions: &Range<usize>) -> Range<usize> {
        let tokens = self.rows() / self.shape.per_group;
        // Key `j` is visible to positions from `j` to `j + window - 1`.
        let token = |position: usize| position.saturating_sub(self.first_position).min(tokens);
        let first = token(positions.start);
        let last = self.shape.window.map_or(tokens, |window| token(positions.end - 1 + window));
        first * self.shape.per_group..last * self.shape.per_group
    }

    /// The tiles of a block. Tiles that are visible to no row may not exist, and are replaced by others.
    fn tiles(&self, positions: &Range<usize>, rows: &Range<usize>) -> Tiles<'a, T> {
        let position = |row: usize| self.first_position + row / self.shape.per_group;
        let first = self.shape.visible(position(rows.start)).start.max(positions.start);
        let end = self.shape.visible(position(rows.end - 1)).end.min(positions.end);
        let mut indices = [positions.start / LANES; BLOCK_TILES];
        for (i, index) in indices.iter_mut().enumerate() {
            *index = (*index + i).clamp(first / LANES, (end - 1) / LANES);
        }
        Tiles { keys: indices.map(|index| self.kv.keys(index)), values: indices.map(|index| self.kv.values(index)) }
    }

    /// Positions of the block that starts at `start`, and the rows to which any of them is visible.
    fn block_at(&self, start: usize) -> Option<(Range<usize>, Range<usize>)> {
        let positions = start..self.span.end.min(start + BLOCK);
        let rows = if positions.is_empty() { 0..0 } else { self.rows_that_see(&positions) };
        (!rows.is_empty()).then_some((positions, rows))
    }

    fn block<'b, E: Stored>(
        &'b self,
        positions: Range<usize>,
        tiles: Tiles<'b, E>,
        next: Tiles<'b, E>,
    ) -> KeyBlock<'b, E> {
        let Self { shape, queries, first_position, .. } = *self;
        KeyBlock { shape, queries, first_position, positions, tiles, next }
    }
}

/// Implementation of [`super::attend`].
#[inline(always)]
pub(super) fn attend_span<S: Simd, T: KvElement>(
    simd: S,
    task: &Attention<'_, T>,
    scratch: &mut [f32],
    out: &mut Partial<'_>,
) {
    task.check(scratch, out);
    out.clear();
    let strip = &mut Strip { weights: [[0.0; BLOCK]; STRIP], corrections: [0.0; STRIP], visible: [(0, 0); STRIP] };
    for start in task.span.clone().step_by(BLOCK) {
        let Some((positions, rows)) = task.block_at(start) else { continue };
        let tiles = task.tiles(&positions, &rows);
        if task.rows() > DIRECT_ROWS {
            // Apart from the condition on rows, so that what never runs is not compiled either.
            if T::NARROW {
                let tiles = converted(simd, tiles, scratch, task.shape);
                let block = task.block(positions, tiles, tiles);
                simd.call(BlockOfRows::<f32, false> { block, rows, strip, out });
            } else {
                let block = task.block(positions, tiles, tiles);
                simd.call(BlockOfRows::<T, false> { block, rows, strip, out });
            }
        } else {
            let next = task.block_at(start + BLOCK).map_or(tiles, |(positions, rows)| task.tiles(&positions, &rows));
            let block = task.block(positions, tiles, next);
            simd.call(BlockOfRows::<T, true> { block, rows, strip, out });
        }
    }
}

/// The keys and values of a block, converted to f32 in `scratch`.
#[inline(always)]
fn converted<'a, S: Simd, T: KvElement>(
    simd: S,
    tiles: Tiles<'_, T>,
    scratch: &'a mut [f32],
    shape: &AttentionShape,
) -> Tiles<'a, f32> {
    let (keys, values) = scratch.split_at_mut(BLOCK * shape.head_dim);
    let (key_len, value_len) = (LANES * shape.head_dim, LANES * shape.padded_dim());
    for tile in 0..BLOCK_TILES {
        widen_keys(simd, tiles.keys[tile], &mut keys[tile * key_len..][..key_len]);
        widen_values(simd, tiles.values[tile], &mut values[tile * value_len..][..value_len]);
    }
    let (keys, values): (&[f32], &[f32]) = (keys, values);
    let part = |values: &'a [f32], i: usize, len: usize| Tile { codes: &values[i * len..][..len], scales: &[] };
    let indices = [0, 1, 2, 3];
    Tiles { keys: indices.map(|i| part(keys, i, key_len)), values: indices.map(|i| part(values, i, value_len)) }
}

/// The keys of a tile as f32, `[head_dim][16 positions]`.
#[inline(always)]
fn widen_keys<S: Simd, T: KvElement>(simd: S, tile: Tile<'_, T>, out: &mut [f32]) {
    let (out, _) = out.as_chunks_mut::<LANES>();
    let (lines, _) = tile.codes.as_chunks::<LANES>();
    for half in 0..out.len().div_ceil(LANES) {
        let scale = block_scales::<S, T>(simd, tile, half / 2);
        let first = half * LANES;
        let count = LANES.min(out.len() - first);
        let (from, to) = (&lines[T::group(half) * LANES..][..count], &mut out[first..][..count]);
        for i in 0..count {
            simd.store(T::load(simd, &from[i], half, scale), &mut to[i]);
        }
    }
}

/// The values of a tile as f32, `[16 positions][padded_dim]`.
#[inline(always)]
pub(super) fn widen_values<S: Simd, T: KvElement>(simd: S, tile: Tile<'_, T>, out: &mut [f32]) {
    let (out, _) = out.as_chunks_mut::<LANES>();
    let (lines, _) = tile.codes.as_chunks::<LANES>();
    let (columns, stride) = (out.len() / LANES, lines.len() / LANES);
    for column in 0..columns {
        let mut scales = [0.0; LANES];
        simd.store(block_scales::<S, T>(simd, tile, column / 2), &mut scales);
        for position in 0..LANES {
            let line = &lines[position * stride + T::group(column)];
            let value = T::load(simd, line, column, simd.splat(scales[position]));
            simd.store(value, &mut out[position * columns + column]);
        }
    }
}

/// The scales of a block of dimensions, for sixteen positions; zeros if there are none.
#[inline(always)]
pub(super) fn block_scales<S: Simd, T: Stored>(simd: S, tile: Tile<'_, T>, block: usize) -> S::F32 {
    if T::SCALED { simd.load_f16(&tile.scales.as_chunks::<LANES>().0[block]) } else { simd.splat(0.0) }
}

/// One block of keys for some rows. A function of its own, since that of f32 is also for blocks that were converted.
struct BlockOfRows<'a, 'b, E: Stored, const AHEAD: bool> {
    block: KeyBlock<'a, E>,
    rows: Range<usize>,
    strip: &'a mut Strip,
    out: &'a mut Partial<'b>,
}

impl<S: Simd, E: KvElement, const AHEAD: bool> Part<S> for BlockOfRows<'_, '_, E, AHEAD> {
    #[inline(always)]
    fn run(self, simd: S) {
        let Self { block, rows, strip, out } = self;
        let block = &block;
        let (head_dim, padded_dim) = (block.shape.head_dim, block.shape.padded_dim());
        for start in rows.clone().step_by(STRIP) {
            let count = STRIP.min(rows.end - start);
            score::<S, E, AHEAD>(simd, block, &block.queries[start * head_dim..], &mut strip.weights[..count]);
            for row in 0..count {
                strip.weigh(simd, block, row, start + row, out);
            }
            let mut row = 0;
            while row < count {
                let visible = strip.visible[row];
                let mut end = row + 1;
                while end < count && strip.visible[end] == visible {
                    end += 1;
                }
                let acc = &mut out.acc[(start + row) * padded_dim..(start + end) * padded_dim];
                accumulate::<S, E, AHEAD>(
                    simd,
                    block,
                    visible,
                    &strip.weights[row..end],
                    &strip.corrections[row..end],
                    acc,
                );
                row = end;
            }
        }
    }
}

impl Strip {
    /// Turns the scores of row `row` of the strip (row `of` of the task) into softmax weights: one step of online
    /// softmax.
    #[inline(always)]
    fn weigh<S: Simd, E: Stored>(
        &mut self,
        simd: S,
        block: &KeyBlock<'_, E>,
        row: usize,
        of: usize,
        out: &mut Partial<'_>,
    ) {
        let visible = block.visible(of);
        let (chunks, _) = self.weights[row].as_chunks_mut::<LANES>();
        let mut scores = [simd.splat(0.0); BLOCK_TILES];
        for i in 0..BLOCK_TILES {
            scores[i] = simd.mul(simd.load(&chunks[i]), simd.splat(block.shape.scale));
        }
        if let Some(cap) = block.shape.softcap {
            for score in &mut scores {
                *score = capped(simd, *score, cap);
            }
        }
        if visible != (0, BLOCK) {
            for (i, score) in scores.iter_mut().enumerate() {
                *score = masked(simd, *score, i * LANES, visible);
            }
        }
        let largest = simd.max(simd.max(scores[0], scores[1]), simd.max(scores[2], scores[3]));
        let largest = simd.largest(largest);
        let max = if largest > out.max[of] { largest } else { out.max[of] };
        for i in 0..BLOCK_TILES {
            scores[i] = exp_in_range(simd, simd.sub(scores[i], simd.splat(base(max))));
            simd.store(scores[i], &mut chunks[i]);
        }
        let correction = exp_one(simd, out.max[of] - base(max));
        let sum = simd.sum(simd.add(simd.add(scores[0], scores[1]), simd.add(scores[2], scores[3])));
        out.max[of] = max;
        out.sum[of] = out.sum[of] * correction + sum;
        self.corrections[row] = correction;
        self.visible[row] = visible;
    }
}

impl<E: Stored> KeyBlock<'_, E> {
    /// The positions visible to a row, relative to the start of the block.
    fn visible(&self, row: usize) -> (usize, usize) {
        let visible = self.shape.visible(self.first_position + row / self.shape.per_group);
        let start = self.positions.start;
        (visible.start.max(start) - start, visible.end.min(self.positions.end) - start)
    }
}

/// The scores, with minus infinity at masked positions; the first lane is position `first`.
#[inline(always)]
fn masked<S: Simd>(simd: S, score: S::F32, first: usize, visible: (usize, usize)) -> S::F32 {
    let lanes = simd.widen_u8(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    let positions = simd.to_f32(simd.add_i32(lanes, simd.splat_i32(first as i32)));
    let hidden = simd.splat(f32::NEG_INFINITY);
    let score = simd.select_less(positions, simd.splat(visible.0 as f32), hidden, score);
    simd.select_less(positions, simd.splat(visible.1 as f32), score, hidden)
}
