//! Multiplication of float panels.

use super::{
    Ahead, ChunkKernel, GroupKernel, Panels, each, for_each_group, for_each_tile, lines_per_block, load_sums,
    store_sums,
};
use crate::activations::{Activations, NumericLevel, f32_words};
use crate::format::{BLOCK, CHUNK};
use crate::simd::tile_unit::{self, BfloatBlock, BfloatRows, BfloatTiles, TileUnit};
use crate::simd::{LANES, Simd};

/// How a few columns of a panel are multiplied.
pub(super) trait Weights: Copy + Default {
    /// Columns per step.
    const COLUMNS: usize;
    /// Bytes per step: these columns of 16 rows.
    const BYTES: usize;
    /// The level of the activations.
    const LEVEL: NumericLevel;
    /// Words of activations per step and row.
    const WORDS: usize;
    /// Whether matrix units multiply them.
    const TILES: bool = false;

    /// The weights of a step.
    type Loaded<S: Simd>: Copy;

    fn load<S: Simd>(self, simd: S, bytes: &[u8]) -> Self::Loaded<S>;

    /// Adds the products of a step; `x` has the word of each column or pair of columns.
    fn add<S: Simd>(self, simd: S, weights: Self::Loaded<S>, x: [u32; 2], sum: S::F32) -> S::F32;
}

#[derive(Clone, Copy, Default)]
pub(super) struct F32;
#[derive(Clone, Copy, Default)]
pub(super) struct F16;
#[derive(Clone, Copy, Default)]
pub(super) struct Bf16;
/// bf16 weights with bf16 activations.
#[derive(Clone, Copy, Default)]
pub(super) struct Bf16Dot;

impl Weights for F32 {
    const COLUMNS: usize = 1;
    const BYTES: usize = 64;
    const LEVEL: NumericLevel = NumericLevel::F32;
    const WORDS: usize = 1;
    type Loaded<S: Simd> = S::F32;

    #[inline(always)]
    fn load<S: Simd>(self, simd: S, bytes: &[u8]) -> S::F32 {
        simd.float_of(simd.load_i32(bytes.first_chunk().expect("a step has 64 bytes")))
    }
    #[inline(always)]
    fn add<S: Simd>(self, simd: S, weights: S::F32, x: [u32; 2], sum: S::F32) -> S::F32 {
        simd.fma(weights, simd.splat(f32::from_bits(x[0])), sum)
    }
}

impl Weights for F16 {
    const COLUMNS: usize = 1;
    const BYTES: usize = 32;
    const LEVEL: NumericLevel = NumericLevel::F32;
    const WORDS: usize = 1;
    type Loaded<S: Simd> = S::F32;

    #[inline(always)]
    fn load<S: Simd>(self, simd: S, bytes: &[u8]) -> S::F32 {
        simd.load_f16_bytes(bytes.first_chunk().expect("a step has 32 bytes"))
    }
    #[inline(always)]
    fn add<S: Simd>(self, simd: S, weights: S::F32, x: [u32; 2], sum: S::F32) -> S::F32 {
        simd.fma(weights, simd.splat(f32::from_bits(x[0])), sum)
    }
}

impl Weights for Bf16 {
    const COLUMNS: usize = 2;
    const BYTES: usize = 64;
    const LEVEL: NumericLevel = NumericLevel::F32;
    const WORDS: usize = 2;
    type Loaded<S: Simd> = [S::F32; 2];

    #[inline(always)]
    fn load<S: Simd>(self, simd: S, bytes: &[u8]) -> [S::F32; 2] {
        let pairs = simd.load_i32(bytes.first_chunk().expect("a step has 64 bytes"));
        let upper = simd.splat_i32(0xffff_0000_u32 as i32);
        [simd.float_of(simd.shl::<16>(pairs)), simd.float_of(simd.and(pairs, upper))]
    }
    #[inline(always)]
    fn add<S: Simd>(self, simd: S, weights: [S::F32; 2], x: [u32; 2], sum: S::F32) -> S::F32 {
        let sum = simd.fma(weights[0], simd.splat(f32::from_bits(x[0])), sum);
        simd.fma(weights[1], simd.splat(f32::from_bits(x[1])), sum)
    }
}

impl Weights for Bf16Dot {
    const COLUMNS: usize = 2;
    const BYTES: usize = 64;
    const LEVEL: NumericLevel = NumericLevel::Bf16;
    const WORDS: usize = 1;
    const TILES: bool = true;
    type Loaded<S: Simd> = S::I32;

    #[inline(always)]
    fn load<S: Simd>(self, simd: S, bytes: &[u8]) -> S::I32 {
        simd.load_i32(bytes.first_chunk().expect("a step has 64 bytes"))
    }
    #[inline(always)]
    fn add<S: Simd>(self, simd: S, weights: S::I32, x: [u32; 2], sum: S::F32) -> S::F32 {
        simd.dot_bf16(sum, weights, simd.splat_i32(x[0] as i32))
    }
}

/// `[panels][rows][16]`.
#[inline(always)]
pub(super) fn multiply<S: Simd, W: Weights>(simd: S, panels: Panels<'_>, x: &Activations<'_>, out: &mut [f32]) {
    let unit = simd.unit().filter(|_| W::TILES);
    let tiles = unit.map(TileUnit::bfloats);
    for_each_group(simd, FloatKernel::<S, W> { panels, weights: W::default(), tiles }, panels, x, out);
}

struct FloatKernel<'a, S: Simd, W> {
    panels: Panels<'a>,
    weights: W,
    tiles: Option<<S::Unit as TileUnit>::Bfloats>,
}

impl<S: Simd, W: Weights> GroupKernel<S> for FloatKernel<'_, S, W> {
    #[inline(always)]
    fn multiply<const P: usize>(
        &mut self,
        simd: S,
        first: usize,
        data: [&[u8]; P],
        x: &Activations<'_>,
        mut out: [&mut [[f32; LANES]]; P],
    ) {
        let chunk_bytes = CHUNK / W::COLUMNS * W::BYTES;
        for chunk in 0..x.columns.div_ceil(CHUNK) {
            let start = chunk * chunk_bytes;
            let panels = each(data, |panel| &panel[start..panel.len().min(start + chunk_bytes)]);
            let ahead = self.panels.lines_ahead::<P>(first, start + panels[0].len(), chunk_bytes);
            match &self.tiles {
                Some(tiles) if const { W::TILES && S::Unit::EXISTS } => {
                    let blocks = panels[0].len() / size_of::<BfloatBlock>();
                    let lines = lines_per_block(ahead[0].len(), blocks, x.rows);
                    for_each_tile(simd, &TiledChunk { tiles, panels, lines }, x, chunk, ahead, &mut out);
                }
                _ => for_each_tile(simd, &Chunk { weights: self.weights, panels }, x, chunk, ahead, &mut out),
            }
        }
    }
}

/// A chunk of bf16 panels, which a matrix unit multiplies.
struct TiledChunk<'a, T, const P: usize> {
    tiles: &'a T,
    panels: [&'a [u8]; P],
    /// Lines of each panel to prefetch in a block of a tile of 16 rows.
    lines: usize,
}

impl<S: Simd, T: BfloatTiles, const P: usize> ChunkKernel<S, P> for TiledChunk<'_, T, P> {
    const LARGE_TILES: bool = true;

    type Small = Self;

    #[inline(always)]
    fn small(&self) -> &Self {
        self
    }

    /// Tiles of fewer rows are multiplied with rows of zeros beside them.
    #[inline(always)]
    fn accumulate<const N: usize>(
        &self,
        simd: S,
        x: &[u32],
        ahead: &mut impl Ahead<S>,
        sums: [&mut [[f32; LANES]; N]; P],
    ) {
        let (rows, _) = x.as_chunks::<LANES>();
        let (blocks, _) = rows.as_chunks::<N>();
        if const { N <= FEW_ROWS } {
            return self.few(simd, blocks, ahead, sums);
        }
        let mut padded: BfloatRows = [[0; LANES]; tile_unit::ROWS];
        let mut padded_sums = [[[0.0; LANES]; tile_unit::ROWS]; P];
        if const { N == tile_unit::ROWS } {
            self.tiles.begin(sums.each_ref().map(|sums| sums.first_chunk().expect("16 rows")));
        } else {
            for panel in 0..P {
                padded_sums[panel][..N].copy_from_slice(sums[panel]);
            }
            self.tiles.begin(padded_sums.each_ref());
        }
        for (block, rows) in blocks.iter().enumerate() {
            let mut weights: [&BfloatBlock; P] = [&[[0; 64]; BLOCK / 2]; P];
            for (weights, panel) in weights.iter_mut().zip(self.panels) {
                let (vectors, _) = panel.as_chunks::<64>();
                *weights = vectors[block * BLOCK / 2..].first_chunk().expect("as many weights as activations");
            }
            for _ in 0..self.lines {
                ahead.next(simd);
            }
            if let Some(rows) = rows.first_chunk() {
                self.tiles.add(rows, weights);
            } else {
                padded[..N].copy_from_slice(rows);
                self.tiles.add(&padded, weights);
            }
        }
        if const { N == tile_unit::ROWS } {
            self.tiles.end(sums.map(|sums| sums.first_chunk_mut().expect("16 rows")));
        } else {
            self.tiles.end(padded_sums.each_mut());
            for panel in 0..P {
                sums[panel].copy_from_slice(&padded_sums[panel][..N]);
            }
        }
    }
}

/// Up to this many rows, bf16 are multiplied by vectors in the order of the matrix unit, which reads weights from memory
/// more slowly.
const FEW_ROWS: usize = 2;

impl<T, const P: usize> TiledChunk<'_, T, P> {
    /// What tiles compute, with vectors: even and odd columns of a block apart, then both together.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "blocks, pairs and panels of several arrays go together")]
    fn few<S: Simd, const N: usize>(
        &self,
        simd: S,
        blocks: &[[[u32; LANES]; N]],
        ahead: &mut impl Ahead<S>,
        sums: [&mut [[f32; LANES]; N]; P],
    ) {
        let (lower, upper) = (0x0000_ffff_u32, 0xffff_0000_u32);
        let masks = [simd.splat_i32(lower as i32), simd.splat_i32(upper as i32)];
        let mut totals = load_sums(simd, &sums);
        for block in 0..blocks.len() {
            let mut parts = [[[simd.splat(0.0); 2]; N]; P];
            for pair in 0..BLOCK / 2 {
                ahead.next(simd);
                for panel in 0..P {
                    let at = (block * BLOCK / 2 + pair) * 64;
                    let weights = simd.load_i32(self.panels[panel][at..].first_chunk().expect("a pair of each row"));
                    let weights = [simd.and(weights, masks[0]), simd.and(weights, masks[1])];
                    for row in 0..N {
                        // The other half is zero on both sides: infinity times zero would be NaN.
                        let x = blocks[block][row][pair];
                        let x = [simd.splat_i32((x & lower) as i32), simd.splat_i32((x & upper) as i32)];
                        for half in 0..2 {
                            parts[panel][row][half] = simd.dot_bf16(parts[panel][row][half], weights[half], x[half]);
                        }
                    }
                }
            }
            for panel in 0..P {
                for row in 0..N {
                    let [even, odd] = parts[panel][row];
                    totals[panel][row] = simd.add(totals[panel][row], simd.add(even, odd));
                }
            }
        }
        store_sums(simd, totals, sums);
    }
}

struct Chunk<'a, W, const P: usize> {
    weights: W,
    panels: [&'a [u8]; P],
}

impl<S: Simd, W: Weights, const P: usize> ChunkKernel<S, P> for Chunk<'_, W, P> {
    type Small = Self;

    #[inline(always)]
    fn small(&self) -> &Self {
        self
    }

    #[inline(always)]
    fn accumulate<const N: usize>(
        &self,
        simd: S,
        x: &[u32],
        ahead: &mut impl Ahead<S>,
        sums: [&mut [[f32; LANES]; N]; P],
    ) {
        let mut totals = load_sums(simd, &sums);
        let mut steps = self.panels.map(|panel| panel.chunks_exact(W::BYTES));
        let own = if W::LEVEL == NumericLevel::F32 { f32_words::SUM } else { BLOCK / 2 };
        for block in x.chunks_exact(W::LEVEL.block_words() * N) {
            for x in block[..own * N].chunks_exact(W::WORDS * N) {
                let mut weights = [self.weights.load(simd, &[0; 64]); P];
                for (weights, steps) in weights.iter_mut().zip(&mut steps) {
                    *weights = self.weights.load(simd, steps.next().expect("as many weights as activations"));
                }
                ahead.next(simd);
                for row in 0..N {
                    let x = [x[row], x[(W::WORDS - 1) * N + row]];
                    for panel in 0..P {
                        totals[panel][row] = self.weights.add(simd, weights[panel], x, totals[panel][row]);
                    }
                }
            }
        }
        store_sums(simd, totals, sums);
    }
}
