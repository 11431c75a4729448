//! Preparing panels for multiplication: f32 scales, and codes expanded to bytes. Also reading panels as plain values.

#[cfg(test)]
mod tests;

use half::{bf16, f16};

use crate::LANES;
use crate::format::{
    BLOCK, CHUNK, CHUNK_BLOCKS, CodeBits, IntFormat, Levels, PanelFormat, Scales, VECTOR, chunk_blocks, chunk_range,
    panel_bytes,
};
use crate::simd::{Part, Simd};

/// The expanded scales of one chunk of an integer panel.
#[repr(align(64))]
pub(crate) struct ChunkScales {
    /// `[groups][16 rows]`.
    pub scales: [[f32; LANES]; 2 * CHUNK_BLOCKS],
    /// `[groups][16 rows]`, for formats with minima.
    pub mins: [[f32; LANES]; 2 * CHUNK_BLOCKS],
}

impl ChunkScales {
    /// Zeros, to be overwritten.
    pub(crate) const ZERO: Self =
        Self { scales: [[0.0; LANES]; 2 * CHUNK_BLOCKS], mins: [[0.0; LANES]; 2 * CHUNK_BLOCKS] };
}

/// The levels of a chunk in the layout of [`CodeBits::Eight`]: `[blocks][8]` vectors.
#[repr(align(64))]
pub(crate) struct ChunkCodes(pub [[u8; VECTOR]; 8 * CHUNK_BLOCKS]);

impl ChunkCodes {
    /// Zeros, to be overwritten.
    pub(crate) const ZERO: Self = Self([[0; VECTOR]; 8 * CHUNK_BLOCKS]);
}

/// Expands the codes of a chunk of `blocks32` blocks to levels, one byte each.
#[inline(always)]
pub(crate) fn prepare_codes<S: Simd>(simd: S, format: IntFormat, chunk: &[u8], blocks32: usize, out: &mut ChunkCodes) {
    simd.call(Preparation { format, chunk, blocks32, out });
}

/// Expands codes or scales: for each of them one function, which all kernels share.
struct Preparation<'a, T> {
    format: IntFormat,
    chunk: &'a [u8],
    blocks32: usize,
    out: &'a mut T,
}

impl<S: Simd> Part<S> for Preparation<'_, ChunkCodes> {
    #[inline(always)]
    fn run(self, simd: S) {
        let Self { format, chunk, blocks32, out: ChunkCodes(out) } = self;
        let codes = chunk_codes(format, chunk, blocks32);
        match (format.bits, format.levels.table()) {
            (CodeBits::Eight, _) => out[..codes.len()].copy_from_slice(codes),
            (CodeBits::Four, None) => widen_codes::<S, 4, 4>(simd, codes, &IDENTITY, out),
            (CodeBits::Four, Some(table)) => widen_codes::<S, 4, 8>(simd, codes, table, out),
            (CodeBits::Six, _) => widen_codes::<S, 6, 6>(simd, codes, &IDENTITY, out),
        }
    }
}

/// The table of codes that are levels.
pub(crate) const IDENTITY: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Expands codes of `BITS` bits to bytes.
#[inline(always)]
fn widen_codes<S: Simd, const BITS: usize, const LEVELS: usize>(
    simd: S,
    packed: &[[u8; VECTOR]],
    table: &[u8; 16],
    codes: &mut [[u8; VECTOR]],
) {
    for (packed, codes) in packed.as_chunks::<BITS>().0.iter().zip(codes.as_chunks_mut::<8>().0) {
        simd.store_i32(code_vector::<S, BITS, LEVELS, 0>(simd, packed, table), &mut codes[0]);
        simd.store_i32(code_vector::<S, BITS, LEVELS, 1>(simd, packed, table), &mut codes[1]);
        simd.store_i32(code_vector::<S, BITS, LEVELS, 2>(simd, packed, table), &mut codes[2]);
        simd.store_i32(code_vector::<S, BITS, LEVELS, 3>(simd, packed, table), &mut codes[3]);
        simd.store_i32(code_vector::<S, BITS, LEVELS, 4>(simd, packed, table), &mut codes[4]);
        simd.store_i32(code_vector::<S, BITS, LEVELS, 5>(simd, packed, table), &mut codes[5]);
        simd.store_i32(code_vector::<S, BITS, LEVELS, 6>(simd, packed, table), &mut codes[6]);
        simd.store_i32(code_vector::<S, BITS, LEVELS, 7>(simd, packed, table), &mut codes[7]);
    }
}

/// The codes of a chunk as stored: [`IntFormat::code_vectors`] for each block.
#[inline(always)]
pub(crate) fn chunk_codes(format: IntFormat, chunk: &[u8], blocks32: usize) -> &[[u8; VECTOR]] {
    split_chunk(format, chunk, blocks32).1
}

/// Splits a chunk into scales and vectors of codes.
#[inline(always)]
fn split_chunk(format: IntFormat, chunk: &[u8], blocks32: usize) -> (&[u8], &[[u8; VECTOR]]) {
    assert!((1..=CHUNK_BLOCKS).contains(&blocks32));
    let (scales, codes) = chunk.split_at(format.scale_bytes(blocks32));
    (scales, &codes.as_chunks().0[..blocks32 * format.code_vectors()])
}

/// Expands the scales of a chunk of `blocks32` blocks. Entries that the chunk lacks (minima, further groups) stay
/// unchanged.
#[inline(always)]
pub(crate) fn prepare_scales<S: Simd>(
    simd: S,
    format: IntFormat,
    chunk: &[u8],
    blocks32: usize,
    out: &mut ChunkScales,
) {
    simd.call(Preparation { format, chunk, blocks32, out });
}

impl<S: Simd> Part<S> for Preparation<'_, ChunkScales> {
    #[inline(always)]
    fn run(self, simd: S) {
        let Self { format, chunk, blocks32, out } = self;
        let (bytes, _) = split_chunk(format, chunk, blocks32);
        match format.scales {
            Scales::F16 => widen_halves(simd, bytes, &mut out.scales[..blocks32]),
            Scales::F16Min => {
                let (scales, mins) = bytes.split_at(2 * LANES * blocks32);
                widen_halves(simd, scales, &mut out.scales[..blocks32]);
                widen_halves(simd, mins, &mut out.mins[..blocks32]);
            }
            Scales::Super => {
                let (d, groups) = half_vector(simd, bytes);
                let d = simd.mul(d, simd.splat(format.levels.unit()));
                for (scale, bytes) in out.scales.iter_mut().zip(&groups[..format.groups(blocks32)]) {
                    simd.store(simd.mul(d, simd.to_f32(simd.widen_i8(bytes))), scale);
                }
            }
            Scales::SuperMin => {
                let (d, rest) = half_vector(simd, bytes);
                let (dmin, groups) = half_vector(simd, rest.as_flattened());
                let (scales, mins) = groups.split_at(format.groups(blocks32));
                scale_groups(simd, d, scales, &mut out.scales);
                // Multiplying by the negated factor negates the products, including the signs of zeros.
                let minus = simd.mul(dmin, simd.splat(-1.0));
                scale_groups(simd, minus, &mins[..format.groups(blocks32)], &mut out.mins);
            }
            Scales::E8m0 => {
                for (scale, bytes) in out.scales.iter_mut().zip(&bytes.as_chunks().0[..format.groups(blocks32)]) {
                    simd.store(half_powers(simd, simd.widen_u8(bytes)), scale);
                }
            }
            Scales::Ue4m3 => {
                for (scale, bytes) in out.scales.iter_mut().zip(&bytes.as_chunks().0[..format.groups(blocks32)]) {
                    simd.store(half_minifloats(simd, simd.widen_u8(bytes)), scale);
                }
            }
        }
    }
}

/// 2^(e - 128), which is subnormal for `e` of 0 and 1.
#[inline(always)]
fn half_powers<S: Simd>(simd: S, e: S::I32) -> S::F32 {
    let normal = simd.shl::<23>(simd.sub_i32(e, simd.splat_i32(1)));
    // Exact for 0 and 1; for all others smaller than the normal numbers.
    let subnormal = simd.shl::<21>(simd.add_i32(e, simd.splat_i32(1)));
    simd.float_of(simd.max_i32(normal, subnormal))
}

/// Half of the numbers of [`Scales::Ue4m3`]. Taken as exponent and fraction of f32, their bits are numbers that are
/// 2^120 times too small, the subnormal ones, too.
#[inline(always)]
fn half_minifloats<S: Simd>(simd: S, codes: S::I32) -> S::F32 {
    simd.mul(simd.float_of(simd.shl::<20>(codes)), simd.splat(HALF_MINIFLOAT))
}

/// 2^119.
const HALF_MINIFLOAT: f32 = f32::from_bits((119 + 127) << 23);

#[inline(always)]
fn widen_halves<S: Simd>(simd: S, bytes: &[u8], out: &mut [[f32; LANES]]) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out) {
        simd.store(simd.load_f16_bytes(bytes), out);
    }
}

#[inline(always)]
fn scale_groups<S: Simd>(simd: S, factor: S::F32, groups: &[[u8; LANES]], out: &mut [[f32; LANES]]) {
    for (bytes, out) in groups.iter().zip(out) {
        simd.store(simd.mul(factor, simd.to_f32(simd.widen_u8(bytes))), out);
    }
}

/// The first f16 of each row, and the remaining bytes.
#[inline(always)]
fn half_vector<S: Simd>(simd: S, bytes: &[u8]) -> (S::F32, &[[u8; LANES]]) {
    let (first, rest) = bytes.split_first_chunk().expect("chunks begin with an f16 for each row");
    (simd.load_f16_bytes(first), rest.as_chunks().0)
}

/// Expands the codes of columns `4 * J..4 * J + 4` of a block to levels, one byte each. 16 rows of 32 codes of `BITS`
/// bits fill `BITS` vectors. If `LEVELS` is more than `BITS`, codes of 4 bits are looked up in `table`, which is not
/// used otherwise.
#[inline(always)]
pub(crate) fn code_vector<S: Simd, const BITS: usize, const LEVELS: usize, const J: usize>(
    simd: S,
    packed: &[[u8; VECTOR]; BITS],
    table: &[u8; 16],
) -> S::I32 {
    if BITS == 8 {
        return simd.load_i32(&packed[J]);
    }
    let nibbles = simd.load_i32(&packed[J % 4]);
    let nibbles = if J < 4 { nibbles } else { simd.shr::<4>(nibbles) };
    let lower = simd.and(nibbles, simd.splat_i32(0x0f0f_0f0f));
    if BITS == 4 {
        return if LEVELS > BITS { simd.look_up(table, lower) } else { lower };
    }
    let pairs = simd.load_i32(&packed[4 + J % 2]);
    let pairs = match J / 2 {
        0 => simd.shl::<4>(pairs),
        1 => simd.shl::<2>(pairs),
        2 => pairs,
        _ => simd.shr::<2>(pairs),
    };
    simd.or(lower, simd.and(pairs, simd.splat_i32(0x3030_3030)))
}

/// Reads one row, from 0 to 15, of a panel of `out.len()` columns. The values are bitwise those of the file: the
/// product of scale and code is rounded, then its sum with the minimum.
pub fn read_row(format: PanelFormat, panel: &[u8], cols: usize, row: usize, out: &mut [f32]) {
    assert_eq!(panel.len(), panel_bytes(format, cols), "bytes of a panel of {cols} columns");
    assert!(row < LANES && out.len() == cols, "row {row}, {} values for {cols} columns", out.len());
    match format {
        PanelFormat::Int(format) => read_integers(format, panel, row, out),
        PanelFormat::Bf16 => {
            let pairs = panel.as_chunks::<4>().0.as_chunks::<LANES>().0;
            for (out, pairs) in out.chunks_mut(2).zip(pairs) {
                for (out, half) in out.iter_mut().zip(pairs[row].as_chunks().0) {
                    *out = bf16::from_le_bytes(*half).to_f32();
                }
            }
        }
        PanelFormat::F16 => read_floats(panel, row, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        PanelFormat::F32 => read_floats(panel, row, out, f32::from_le_bytes),
    }
}

fn read_floats<const SIZE: usize>(panel: &[u8], row: usize, out: &mut [f32], read: impl Fn([u8; SIZE]) -> f32) {
    for (out, values) in out.iter_mut().zip(panel.as_chunks().0.as_chunks::<LANES>().0) {
        *out = read(values[row]);
    }
}

fn read_integers(format: IntFormat, panel: &[u8], row: usize, out: &mut [f32]) {
    let panel_format = PanelFormat::Int(format);
    let cols = out.len();
    for (chunk, out) in out.chunks_mut(CHUNK).enumerate() {
        let blocks32 = chunk_blocks(cols, chunk);
        let bytes = &panel[chunk_range(panel_format, cols, chunk)];
        let (scales, codes) = split_chunk(format, bytes, blocks32);
        let blocks = out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(codes.chunks_exact(format.code_vectors()));
        for (block, (out, vectors)) in blocks.enumerate() {
            let levels = row_codes(format.bits, vectors, row).map(|code| level(format.levels, code));
            let groups = format.groups(1);
            let parts = out.chunks_mut(BLOCK / groups).zip(levels.chunks(BLOCK / groups));
            for (i, (out, levels)) in parts.enumerate() {
                let scale = row_scale(format, scales, blocks32, block * groups + i, row);
                read_group(format, scale, levels, out);
            }
        }
    }
}

/// The level that a code stands for.
fn level(levels: Levels, code: u8) -> u8 {
    levels.table().map_or(code, |table| table[usize::from(code)])
}

fn read_group(format: IntFormat, (scale, min): (f32, Option<f32>), levels: &[u8], out: &mut [f32]) {
    for (out, level) in out.iter_mut().zip(levels) {
        let product = scale * f32::from(i16::from(*level) - i16::from(format.zero));
        // Without a minimum nothing is added, so that negative zeros are kept.
        *out = min.map_or(product, |min| product + min);
    }
}

/// The codes of a row in one block.
fn row_codes(bits: CodeBits, vectors: &[[u8; VECTOR]], row: usize) -> [u8; BLOCK] {
    std::array::from_fn(|column| {
        let (word, lane) = (column / 4, 4 * row + column % 4);
        let low = |vector: usize| vectors[vector % 4][lane] >> (4 * (vector / 4)) & 15;
        match bits {
            CodeBits::Eight => vectors[word][lane],
            CodeBits::Four => low(word),
            CodeBits::Six => low(word) | (vectors[4 + word % 2][lane] >> (2 * (word / 2)) & 3) << 4,
        }
    })
}

/// Scale and minimum of a row in one group of a chunk.
fn row_scale(format: IntFormat, scales: &[u8], blocks32: usize, group: usize, row: usize) -> (f32, Option<f32>) {
    let half = |vector: usize| f16::from_le_bytes(scales.as_chunks().0[vector * LANES + row]).to_f32();
    let byte = |halves: usize, vector: usize| scales[(2 * halves + vector) * LANES + row];
    match format.scales {
        Scales::F16 => (half(group), None),
        Scales::F16Min => (half(group), Some(half(blocks32 + group))),
        Scales::Super => (half(0) * format.levels.unit() * f32::from(byte(1, group).cast_signed()), None),
        Scales::E8m0 => match byte(0, group) {
            e @ 0..=1 => (f32::from_bits(0x0020_0000 << e), None),
            e => (f32::from_bits((u32::from(e) - 1) << 23), None),
        },
        Scales::Ue4m3 => (f32::from_bits(u32::from(byte(0, group)) << 20) * HALF_MINIFLOAT, None),
        Scales::SuperMin => {
            let min = half(1) * f32::from(byte(2, format.groups(blocks32) + group));
            (half(0) * f32::from(byte(2, group)), Some(-min))
        }
    }
}
