//! Multiplication of integer panels: codes with scales.

use super::{Ahead, ChunkKernel, GroupKernel, NoPrefetch, Panels, each, for_each_group, for_each_tile};
use crate::activations::{Activations, NumericLevel, f32_words, integer_words, times_high_byte};
use crate::format::{
    BLOCK, CHUNK_BLOCKS, CodeBits, IntFormat, PanelFormat, chunk_blocks, chunk_bytes, chunk_range, chunks,
};
use crate::isa::{Isa, dispatched_products};
use crate::prepare::{ChunkCodes, ChunkScales, IDENTITY, chunk_codes, code_vector, prepare_codes, prepare_scales};
use crate::simd::{LANES, ROW_PANELS, Simd};

/// Vectors of codes per block: four columns in each lane.
pub(super) const VECTORS: usize = BLOCK / 4;

/// Up to this many rows, codes of fewer than 8 bits are unpacked in registers for each tile; for more rows they are
/// unpacked once for all tiles, through the CPU cache. Instruction sets that multiply bytes differently from smaller
/// codes always unpack in registers.
const FEW_ROWS: usize = 8;

/// Bits per code when codes of `format` are multiplied: as in the panels, or 8.
pub(super) fn bits(isa: Isa, format: IntFormat, x: &Activations<'_>) -> CodeBits {
    let in_registers = x.level != NumericLevel::F32 && (x.rows <= FEW_ROWS || has_signed_bytes(isa));
    if in_registers { format.bits } else { CodeBits::Eight }
}

dispatched_products! {
    fn has_signed_bytes() -> bool = signed_bytes;
}

#[inline(always)]
fn signed_bytes<S: Simd>(_: S) -> bool {
    S::SIGNED_BYTES
}

/// `[panels][rows][16]`.
///
/// `BITS`: result of [`bits`]. `BYTES`: bytes per rounded activation, 1 or 2; 0 if activations are not rounded. `MIN`:
/// weights have minima instead of a zero point. `HALVES`: a group of weights is half a block. `LEVELS`: bits of the
/// levels that codes of `BITS` bits stand for; if they are more, codes are looked up in the table of the format.
#[inline(always)]
pub(super) fn multiply<
    S: Simd,
    const BITS: usize,
    const BYTES: usize,
    const MIN: bool,
    const HALVES: bool,
    const LEVELS: usize,
>(
    simd: S,
    panels: Panels<'_>,
    x: &Activations<'_>,
    out: &mut [f32],
) {
    let PanelFormat::Int(format) = panels.format else { panic!("{:?} has no codes", panels.format) };
    let mut scales = [const { ChunkScales::ZERO }; ROW_PANELS];
    let mut codes;
    let mut widened = None;
    if const { BITS == 8 } && format.bits != CodeBits::Eight {
        codes = [ChunkCodes::ZERO, ChunkCodes::ZERO];
        widened = Some(&mut codes);
    }
    let kernel = IntKernel::<'_, BITS, BYTES, MIN, HALVES, LEVELS> { panels, format, scales: &mut scales, widened };
    for_each_group(simd, kernel, panels, x, out);
}

/// Multiplies codes of `BITS` bits: those in the panels, or those unpacked to `widened`.
struct IntKernel<'a, const BITS: usize, const BYTES: usize, const MIN: bool, const HALVES: bool, const LEVELS: usize> {
    panels: Panels<'a>,
    format: IntFormat,
    scales: &'a mut [ChunkScales; ROW_PANELS],
    widened: Option<&'a mut [ChunkCodes; 2]>,
}

impl<S: Simd, const BITS: usize, const BYTES: usize, const MIN: bool, const HALVES: bool, const LEVELS: usize>
    GroupKernel<S> for IntKernel<'_, BITS, BYTES, MIN, HALVES, LEVELS>
{
    // Codes that are widened first, and activations that are not rounded, are slower than memory.
    const MULTIPLIES_ROWS: bool = BYTES > 0;

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
        let (zero, table) = (format.zero, format.levels.table().unwrap_or(&IDENTITY));
        let full = chunk_bytes(PanelFormat::Int(format), CHUNK_BLOCKS);
        let scales: &mut [ChunkScales; P] = self.scales.first_chunk_mut().expect("scales for as many panels");
        for chunk in 0..chunks(x.columns) {
            let blocks = chunk_blocks(x.columns, chunk);
            let range = chunk_range(PanelFormat::Int(format), x.columns, chunk);
            let bytes = each(data, |panel| &panel[range.clone()]);
            for (bytes, scales) in bytes.iter().zip(scales.iter_mut()) {
                prepare_scales(simd, format, bytes, blocks, scales);
            }
            let mut codes = each(bytes, |bytes| chunk_codes(format, bytes, blocks));
            if let Some(widened) = &mut self.widened {
                for ((bytes, widened), codes) in bytes.iter().zip(widened.iter_mut()).zip(&mut codes) {
                    prepare_codes(simd, format, bytes, blocks, widened);
                    *codes = &widened.0[..blocks * VECTORS];
                }
            }
            let ahead = self.panels.lines_ahead::<P>(first, range.end, full);
            let codes = Codes::<P, BITS, BYTES, MIN, HALVES, LEVELS> { codes, table, scales: scales.each_ref(), zero };
            for_each_tile(simd, &codes, x, chunk, ahead, &mut out);
        }
    }
}

/// One chunk of `P` panels.
pub(super) struct Codes<
    'a,
    const P: usize,
    const BITS: usize,
    const BYTES: usize,
    const MIN: bool,
    const HALVES: bool,
    const LEVELS: usize,
> {
    /// [`BITS`] vectors for each block.
    pub codes: [&'a [[u8; 64]]; P],
    /// The levels of 4-bit codes.
    pub table: &'a [u8; 16],
    pub scales: [&'a ChunkScales; P],
    pub zero: u8,
}

impl<
    S: Simd,
    const P: usize,
    const BITS: usize,
    const BYTES: usize,
    const MIN: bool,
    const HALVES: bool,
    const LEVELS: usize,
> ChunkKernel<S, P> for Codes<'_, P, BITS, BYTES, MIN, HALVES, LEVELS>
{
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
        mut sums: [&mut [[f32; LANES]; N]; P],
    ) {
        let words = if BYTES > 0 { integer_words::len(BYTES) } else { f32_words::LEN };
        let codes = each(self.codes, |codes| codes.as_chunks::<BITS>().0);
        for (block, x) in x.chunks_exact(words * N).enumerate() {
            // Prefetch a line for each line of codes, and one for the scales.
            ahead.next(simd);
            let mut vectors = [&[[0; 64]; BITS]; P];
            for panel in 0..P {
                vectors[panel] = &codes[panel][block];
            }
            if HALVES {
                self.group::<S, N, 0>(simd, vectors, 2 * block, x, ahead, &mut sums);
                self.group::<S, N, 1>(simd, vectors, 2 * block + 1, x, ahead, &mut sums);
            } else {
                self.group::<S, N, 0>(simd, vectors, block, x, ahead, &mut sums);
            }
        }
    }
}

impl<const P: usize, const BITS: usize, const BYTES: usize, const MIN: bool, const HALVES: bool, const LEVELS: usize>
    Codes<'_, P, BITS, BYTES, MIN, HALVES, LEVELS>
{
    /// Vectors of codes per group.
    const LEN: usize = if HALVES { VECTORS / 2 } else { VECTORS };

    /// Adds the products of one group: half `HALF` of its block, or the whole block. `codes` and `x` cover the whole
    /// block.
    #[inline(always)]
    fn group<S: Simd, const N: usize, const HALF: usize>(
        &self,
        simd: S,
        codes: [&[[u8; 64]; BITS]; P],
        group: usize,
        x: &[u32],
        ahead: &mut impl Ahead<S>,
        sums: &mut [&mut [[f32; LANES]; N]; P],
    ) {
        if const { BYTES > 0 } {
            self.integer_group::<S, N, HALF>(simd, codes, group, x, ahead, sums);
        } else {
            self.f32_group::<S, N, HALF>(simd, codes, group, x, ahead, sums);
        }
    }

    /// Offset of the scale of a block, in words.
    const SCALE: usize = BYTES * integer_words::BYTES + integer_words::SCALE;

    /// Sums the products of codes and rounded activations exactly, then scales. With two-byte activations the products
    /// of the high bytes are summed first, in the same registers: there are no registers for a second set of sums, and
    /// the codes are still in the CPU cache.
    #[inline(always)]
    fn integer_group<S: Simd, const N: usize, const HALF: usize>(
        &self,
        simd: S,
        codes: [&[[u8; 64]; BITS]; P],
        group: usize,
        x: &[u32],
        ahead: &mut impl Ahead<S>,
        sums: &mut [&mut [[f32; LANES]; N]; P],
    ) {
        let mut dots = [[simd.splat_i32(0); N]; P];
        let (bytes, sums_of) = x.split_at(BYTES * integer_words::BYTES * N);
        if const { BYTES == 2 } {
            let (high, _) = bytes.split_at(integer_words::BYTES * N);
            self.dot_group::<S, N, HALF, true>(simd, codes, high, ahead, &mut dots);
            for dots in &mut dots {
                for dot in dots {
                    *dot = times_high_byte(simd, *dot);
                }
            }
        }
        if !(MIN || S::SIGNED_BYTES && LEVELS == 8) {
            // Levels are `zero` too large. The activations have the correction for 128, which is shifted to that for
            // `zero`.
            let by = 7 - self.zero.trailing_zeros();
            let offsets = if HALVES { integer_words::HALF_OFFSETS + HALF } else { integer_words::OFFSET };
            for row in 0..N {
                let offset = simd.sar(simd.splat_i32(sums_of[offsets * N + row] as i32), by);
                for dots in &mut dots {
                    dots[row] = if BYTES == 2 { simd.add_i32(dots[row], offset) } else { offset };
                }
            }
        }
        let low = &bytes[(BYTES - 1) * integer_words::BYTES * N..];
        if const { BYTES == 2 } {
            // Every line was already prefetched with the high bytes.
            self.dot_group::<S, N, HALF, false>(simd, codes, low, &mut NoPrefetch, &mut dots);
        } else {
            self.dot_group::<S, N, HALF, false>(simd, codes, low, ahead, &mut dots);
        }
        if const { HALVES && HALF == 0 } {
            self.scale_last::<S, N, HALF, 3>(simd, codes, group, x, dots, sums);
        } else {
            self.scale_last::<S, N, HALF, 7>(simd, codes, group, x, dots, sums);
        }
    }

    /// Adds the products of a group to `dots`: all of them, or all except those of the last four columns. `x` has one
    /// byte of each activation of the block.
    #[inline(always)]
    fn dot_group<S: Simd, const N: usize, const HALF: usize, const ALL: bool>(
        &self,
        simd: S,
        codes: [&[[u8; 64]; BITS]; P],
        x: &[u32],
        ahead: &mut impl Ahead<S>,
        dots: &mut [[S::I32; N]; P],
    ) {
        if const { BITS == 8 } {
            // Nothing to unpack. In a loop the compiler does not interleave the steps; interleaving costs 2 to 5 % with
            // AVX2.
            for vector in HALF * Self::LEN..(HALF + 1) * Self::LEN - usize::from(!ALL) {
                ahead.next(simd);
                let mut vectors = [simd.splat_i32(0); P];
                for (to, codes) in vectors.iter_mut().zip(codes) {
                    *to = simd.load_i32(&codes[vector]);
                }
                simd.dot_tile::<P, N, LEVELS>(dots, vectors, &x.as_chunks().0[vector]);
            }
        } else {
            if const { !HALVES || HALF == 0 } {
                dot_vector::<S, P, N, BITS, LEVELS, 0>(simd, codes, self.table, x, ahead, dots);
                dot_vector::<S, P, N, BITS, LEVELS, 1>(simd, codes, self.table, x, ahead, dots);
                dot_vector::<S, P, N, BITS, LEVELS, 2>(simd, codes, self.table, x, ahead, dots);
            }
            if const { !HALVES || ALL && HALF == 0 } {
                dot_vector::<S, P, N, BITS, LEVELS, 3>(simd, codes, self.table, x, ahead, dots);
            }
            if const { !HALVES || HALF == 1 } {
                dot_vector::<S, P, N, BITS, LEVELS, 4>(simd, codes, self.table, x, ahead, dots);
                dot_vector::<S, P, N, BITS, LEVELS, 5>(simd, codes, self.table, x, ahead, dots);
                dot_vector::<S, P, N, BITS, LEVELS, 6>(simd, codes, self.table, x, ahead, dots);
            }
            if const { ALL && (!HALVES || HALF == 1) } {
                dot_vector::<S, P, N, BITS, LEVELS, 7>(simd, codes, self.table, x, ahead, dots);
            }
        }
        if !ALL {
            ahead.next(simd);
        }
    }

    /// Adds the last four columns of a group to `dots` row by row, and adds each row, scaled, to its sum. Interleaved
    /// with these products, the scaling stalls less than in a block of its own.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "a part of the function above")]
    fn scale_last<S: Simd, const N: usize, const HALF: usize, const VECTOR: usize>(
        &self,
        simd: S,
        codes: [&[[u8; 64]; BITS]; P],
        group: usize,
        x: &[u32],
        mut dots: [[S::I32; N]; P],
        sums: &mut [&mut [[f32; LANES]; N]; P],
    ) {
        let (mut last, mut scales, mut mins) = ([simd.splat_i32(0); P], [simd.splat(0.0); P], [simd.splat(0.0); P]);
        for panel in 0..P {
            last[panel] = code_vector::<S, BITS, LEVELS, VECTOR>(simd, codes[panel], self.table);
            scales[panel] = simd.load(&self.scales[panel].scales[group]);
            if MIN {
                mins[panel] = simd.load(&self.scales[panel].mins[group]);
            }
        }
        let last_bytes = (BYTES - 1) * integer_words::BYTES + VECTOR;
        let sums_at = Self::SCALE + if HALVES { integer_words::HALF_SUMS + HALF } else { integer_words::SUM };
        for row in 0..N {
            let quad = simd.splat_i32(x[last_bytes * N + row] as i32);
            for panel in 0..P {
                dots[panel][row] = simd.dot_codes::<LEVELS>(dots[panel][row], last[panel], quad);
            }
            for panel in 0..P {
                let scale = simd.mul(scales[panel], simd.splat(f32::from_bits(x[Self::SCALE * N + row])));
                let mut sum = simd.load(&sums[panel][row]);
                if MIN {
                    sum = simd.fma(mins[panel], simd.splat(f32::from_bits(x[sums_at * N + row])), sum);
                }
                sum = simd.fma(simd.to_f32(dots[panel][row]), scale, sum);
                simd.store(sum, &mut sums[panel][row]);
            }
        }
    }

    /// Multiplies levels, expanded to bytes, minus the zero point by f32 activations; the sum of a group is scaled
    /// once.
    #[inline(always)]
    fn f32_group<S: Simd, const N: usize, const HALF: usize>(
        &self,
        simd: S,
        codes: [&[[u8; 64]; BITS]; P],
        group: usize,
        x: &[u32],
        ahead: &mut impl Ahead<S>,
        sums: &mut [&mut [[f32; LANES]; N]; P],
    ) {
        let mut dots = [[simd.splat(0.0); N]; P];
        let (byte, zero) = (simd.splat_i32(255), simd.splat_i32(-i32::from(self.zero)));
        for vector in HALF * Self::LEN..(HALF + 1) * Self::LEN {
            ahead.next(simd);
            let mut words = [simd.splat_i32(0); P];
            for (words, codes) in words.iter_mut().zip(codes) {
                *words = simd.load_i32(&codes[vector]);
            }
            for place in 0..4 {
                let column = 4 * vector + place;
                let mut weights = [simd.splat(0.0); P];
                for (weights, words) in weights.iter_mut().zip(&mut words) {
                    *weights = simd.to_f32(simd.add_i32(simd.and(*words, byte), zero));
                    *words = simd.shr::<8>(*words);
                }
                for row in 0..N {
                    let x = simd.splat(f32::from_bits(x[column * N + row]));
                    for panel in 0..P {
                        dots[panel][row] = simd.fma(weights[panel], x, dots[panel][row]);
                    }
                }
            }
        }
        for panel in 0..P {
            let scale = simd.load(&self.scales[panel].scales[group]);
            for row in 0..N {
                let mut sum = simd.fma(dots[panel][row], scale, simd.load(&sums[panel][row]));
                if MIN {
                    let min = simd.load(&self.scales[panel].mins[group]);
                    let sums_at = if HALVES { f32_words::HALF_SUMS + HALF } else { f32_words::SUM };
                    sum = simd.fma(min, simd.splat(f32::from_bits(x[sums_at * N + row])), sum);
                }
                simd.store(sum, &mut sums[panel][row]);
            }
        }
    }
}

/// Adds the products of four columns of a block. `VECTOR` is a constant, so that unpacking codes takes a few
/// instructions without branches.
#[inline(always)]
fn dot_vector<S: Simd, const P: usize, const N: usize, const BITS: usize, const LEVELS: usize, const VECTOR: usize>(
    simd: S,
    codes: [&[[u8; 64]; BITS]; P],
    table: &[u8; 16],
    x: &[u32],
    ahead: &mut impl Ahead<S>,
    dots: &mut [[S::I32; N]; P],
) {
    // True `BITS` times per block.
    if VECTOR * BITS / 8 != (VECTOR + 1) * BITS / 8 {
        ahead.next(simd);
    }
    // A plain loop, because a closure would not be compiled for the instruction set.
    let mut vectors = [simd.splat_i32(0); P];
    for (vector, codes) in vectors.iter_mut().zip(codes) {
        *vector = code_vector::<S, BITS, LEVELS, VECTOR>(simd, codes, table);
    }
    simd.dot_tile::<P, N, LEVELS>(dots, vectors, &x.as_chunks().0[VECTOR]);
}
