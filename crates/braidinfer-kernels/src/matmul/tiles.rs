//! Multiplication of integer panels by a unit that multiplies whole tiles of rows.

use std::cell::RefCell;

use super::integer::{Codes, VECTORS};
use super::{
    Ahead, ChunkKernel, GroupKernel, Panels, each, for_each_group, for_each_tile, lines_per_block, load_sums,
    store_sums,
};
use crate::activations::{Activations, integer_words, times_high_byte};
use crate::format::{
    BLOCK, CHUNK_BLOCKS, CodeBits, IntFormat, PanelFormat, chunk_blocks, chunk_bytes, chunk_range, chunks,
};
use crate::prepare::{ChunkCodes, ChunkScales, IDENTITY, chunk_codes, prepare_codes, prepare_scales};
use crate::simd::tile_unit::{ByteTiles, ROWS, TileDots, TileUnit};
use crate::simd::{LANES, Simd};

/// `[panels][rows][16]`. `BYTES`, `MIN` and `HALVES` are those of [`super::integer::multiply`]; codes of any number of bits are
/// unpacked to bytes.
///
/// # Panics
///
/// If the processor has no such unit.
#[inline(always)]
pub(super) fn multiply<S: Simd, const BYTES: usize, const MIN: bool, const HALVES: bool>(
    simd: S,
    panels: Panels<'_>,
    x: &Activations<'_>,
    out: &mut [f32],
) {
    let PanelFormat::Int(format) = panels.format else { panic!("{:?} has no codes", panels.format) };
    if const { !S::Unit::EXISTS } {
        panic!("the instruction set has no unit for tiles");
    }
    let unit = simd.unit().expect("a processor with a unit for tiles");
    let tiles = unit.bytes(if HALVES { BLOCK / 2 } else { BLOCK });
    let mut chunks = [Chunk::ZERO, Chunk::ZERO];
    let dots = RefCell::new([TileDots::ZERO; 2 * SLOTS]);
    let kernel = TileKernel::<S::Unit, BYTES, MIN, HALVES> { panels, format, unit, tiles, chunks: &mut chunks, dots };
    for_each_group(simd, kernel, panels, x, out);
}

/// What a chunk of a panel is unpacked to.
struct Chunk {
    scales: ChunkScales,
    /// Of codes of fewer than 8 bits.
    levels: ChunkCodes,
    /// The levels less the zero point.
    signed: ChunkCodes,
}

impl Chunk {
    const ZERO: Self = Self { scales: ChunkScales::ZERO, levels: ChunkCodes::ZERO, signed: ChunkCodes::ZERO };
}

struct TileKernel<'a, U: TileUnit, const BYTES: usize, const MIN: bool, const HALVES: bool> {
    panels: Panels<'a>,
    format: IntFormat,
    unit: U,
    tiles: U::Bytes,
    chunks: &'a mut [Chunk; 2],
    dots: RefCell<Dots>,
}

impl<S: Simd, const BYTES: usize, const MIN: bool, const HALVES: bool> GroupKernel<S>
    for TileKernel<'_, S::Unit, BYTES, MIN, HALVES>
{
    const MULTIPLIES_ROWS: bool = false;

    #[inline(always)]
    fn multiply<const P: usize>(
        &mut self,
        simd: S,
        first: usize,
        data: [&[u8]; P],
        x: &Activations<'_>,
        mut out: [&mut [[f32; LANES]]; P],
    ) {
        let format = self.format;
        let full = chunk_bytes(PanelFormat::Int(format), CHUNK_BLOCKS);
        let unpacked: &mut [Chunk; P] = self.chunks.first_chunk_mut().expect("there is room for two panels");
        for chunk in 0..chunks(x.columns) {
            let blocks = chunk_blocks(x.columns, chunk);
            let range = chunk_range(PanelFormat::Int(format), x.columns, chunk);
            let bytes = each(data, |panel| &panel[range.clone()]);
            let stored = each(bytes, |bytes| chunk_codes(format, bytes, blocks));
            let are_levels = format.bits == CodeBits::Eight;
            for ((bytes, unpacked), stored) in bytes.iter().zip(unpacked.iter_mut()).zip(stored) {
                let Chunk { scales, levels, signed } = unpacked;
                prepare_scales(simd, format, bytes, blocks, scales);
                if !are_levels {
                    prepare_codes(simd, format, bytes, blocks, levels);
                }
                if !MIN {
                    let levels = if are_levels { stored } else { &levels.0[..blocks * VECTORS] };
                    self.unit.subtract(levels, format.zero, &mut signed.0);
                }
            }
            let ahead = self.panels.lines_ahead::<P>(first, range.end, full);
            let unpacked = unpacked.each_ref();
            let codes =
                if are_levels { stored } else { each(unpacked, |unpacked| &unpacked.levels.0[..blocks * VECTORS]) };
            let scales = each(unpacked, |unpacked| &unpacked.scales);
            // With minima the zero point is zero.
            let signed = if MIN { codes } else { each(unpacked, |unpacked| &unpacked.signed.0[..blocks * VECTORS]) };
            let rest = Codes::<P, 8, BYTES, MIN, HALVES, 8> { codes, table: &IDENTITY, scales, zero: format.zero };
            let lines = lines_per_block(ahead[0].len(), blocks, x.rows);
            for_each_tile(
                simd,
                &TiledCodes { tiles: &self.tiles, dots: &self.dots, signed, lines, rest },
                x,
                chunk,
                ahead,
                &mut out,
            );
        }
    }
}

/// One chunk of `P` panels.
struct TiledCodes<'a, T, const P: usize, const BYTES: usize, const MIN: bool, const HALVES: bool> {
    tiles: &'a T,
    dots: &'a RefCell<Dots>,
    /// Levels less the zero point.
    signed: [&'a [[u8; 64]]; P],
    /// Lines of each panel to prefetch in a block.
    lines: usize,
    /// For smaller tiles.
    rest: Codes<'a, P, 8, BYTES, MIN, HALVES, 8>,
}

impl<'a, S: Simd, T: ByteTiles, const P: usize, const BYTES: usize, const MIN: bool, const HALVES: bool>
    ChunkKernel<S, P> for TiledCodes<'a, T, P, BYTES, MIN, HALVES>
{
    const LARGE_TILES: bool = true;

    type Small = Codes<'a, P, 8, BYTES, MIN, HALVES, 8>;

    #[inline(always)]
    fn small(&self) -> &Self::Small {
        &self.rest
    }

    #[inline(always)]
    fn accumulate<const N: usize>(
        &self,
        simd: S,
        x: &[u32],
        ahead: &mut impl Ahead<S>,
        sums: [&mut [[f32; LANES]; N]; P],
    ) {
        self.accumulate_tile(simd, x, ahead, sums.map(|sums| sums.first_chunk_mut().expect("16 rows")));
    }
}

/// Dot products that are kept for each panel until they are scaled: 16 KiB for two panels, which fit the nearest cache
/// beside codes and activations. Scaling several blocks at once is faster than one after the other, because tiles and
/// vectors hardly overlap.
const SLOTS: usize = 8;

/// Those of two panels.
type Dots = [TileDots; 2 * SLOTS];

impl<T: ByteTiles, const P: usize, const BYTES: usize, const MIN: bool, const HALVES: bool>
    TiledCodes<'_, T, P, BYTES, MIN, HALVES>
{
    /// Groups per block.
    const GROUPS: usize = if HALVES { 2 } else { 1 };
    /// Slots per block.
    const PARTS: usize = Self::GROUPS * BYTES;

    #[inline(always)]
    fn accumulate_tile<S: Simd>(
        &self,
        simd: S,
        x: &[u32],
        ahead: &mut impl Ahead<S>,
        mut sums: [&mut [[f32; LANES]; ROWS]; P],
    ) {
        let mut dots = self.dots.borrow_mut();
        let dots: &mut [[TileDots; P]; SLOTS] = dots.as_chunks_mut().0.first_chunk_mut().expect("slots for each panel");
        let words = integer_words::len(BYTES) * ROWS;
        let blocks = x.len() / words;
        let mut first = 0;
        // Plain loops, because iterators would not be compiled for the instruction set.
        while first < blocks {
            let count = (SLOTS / Self::PARTS).min(blocks - first);
            for block in 0..count {
                let x = &x[(first + block) * words..][..words];
                let dots = &mut dots[block * Self::PARTS..][..Self::PARTS];
                self.multiply_block(simd, first + block, x, ahead, dots);
            }
            let x = &x[first * words..][..count * words];
            for (panel, sums) in sums.iter_mut().enumerate() {
                self.scale(simd, panel, first, x, dots, sums);
            }
            first += count;
        }
    }

    /// The dot products of one block: `[groups][bytes][panels]`.
    #[inline(always)]
    fn multiply_block<S: Simd>(
        &self,
        simd: S,
        block: usize,
        x: &[u32],
        ahead: &mut impl Ahead<S>,
        dots: &mut [[TileDots; P]],
    ) {
        for _ in 0..self.lines {
            ahead.next(simd);
        }
        let mut codes = [&[[0; 64]; VECTORS]; P];
        for (codes, signed) in codes.iter_mut().zip(self.signed) {
            *codes = signed[block * VECTORS..].first_chunk().expect("whole blocks of codes");
        }
        let (digits, _) = x.as_chunks::<{ integer_words::BYTES }>().0.as_chunks::<ROWS>();
        for part in 0..Self::PARTS {
            self.tiles.dot(part / BYTES, &digits[part % BYTES], codes, &mut dots[part]);
        }
    }

    /// Adds the dot products of the blocks of `x`, the first of which is block `first` of the chunk, to the sums of one
    /// panel.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "a part of the function above")]
    fn scale<S: Simd>(
        &self,
        simd: S,
        panel: usize,
        first: usize,
        x: &[u32],
        dots: &[[TileDots; P]; SLOTS],
        sums: &mut [[f32; LANES]; ROWS],
    ) {
        let scale_at = BYTES * integer_words::BYTES + integer_words::SCALE;
        let [mut totals] = load_sums(simd, &[&mut *sums]);
        let words = integer_words::len(BYTES) * ROWS;
        for block in 0..x.len() / words {
            let x = &x[block * words..][..words];
            let x_scales: &[u32; ROWS] = x[scale_at * ROWS..].first_chunk().expect("a scale for each row");
            for half in 0..Self::GROUPS {
                let group = (first + block) * Self::GROUPS + half;
                let dots = &dots[block * Self::PARTS + half * BYTES..][..BYTES];
                let (high, low) = (&dots[0][panel].0, &dots[BYTES - 1][panel].0);
                let scales = simd.load(&self.rest.scales[panel].scales[group]);
                let mins = simd.load(&self.rest.scales[panel].mins[group]);
                let sum = if HALVES { integer_words::HALF_SUMS + half } else { integer_words::SUM };
                let x_sums_at = BYTES * integer_words::BYTES + sum;
                let x_sums: &[u32; ROWS] = x[x_sums_at * ROWS..].first_chunk().expect("a sum for each row");
                for row in 0..ROWS {
                    let mut dot = simd.load_i32(&low[row]);
                    if BYTES == 2 {
                        dot = simd.add_i32(dot, times_high_byte(simd, simd.load_i32(&high[row])));
                    }
                    let scale = simd.mul(scales, simd.splat(f32::from_bits(x_scales[row])));
                    if MIN {
                        totals[row] = simd.fma(mins, simd.splat(f32::from_bits(x_sums[row])), totals[row]);
                    }
                    totals[row] = simd.fma(simd.to_f32(dot), scale, totals[row]);
                }
            }
        }
        store_sums(simd, [totals], [sums]);
    }
}
