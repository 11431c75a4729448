//! Packing quantized blocks of any type into integer panels.
//!
//! The codes of a row are unpacked to eight 32-bit words for each block of 32 columns, four codes in each. Only this
//! unpacking depends on the type ([`super::layouts`]).

use std::array::from_fn;

use super::NotFinite;
use crate::LANES;
use crate::format::{BLOCK, CHUNK_BLOCKS, IntFormat, PanelFormat, Scales, WeightType, chunk_bytes};

/// Codes of 32 columns; word `j` has those of columns `4j..4j + 4`, from its lowest byte upwards.
pub(super) type Codes = [u32; 8];

/// The scales and minima of a block; fields that a type lacks are zero.
#[derive(Default)]
pub(super) struct Header {
    /// f16 scale and minimum: of all values, or of the scales and minima of groups.
    pub halves: [[u8; 2]; 2],
    /// Scales of groups.
    pub scales: [u8; LANES],
    /// Minima of groups.
    pub mins: [u8; LANES],
}

/// A block type of `SIZE` bytes.
pub(super) trait Layout<const SIZE: usize> {
    const TYPE: WeightType;

    const FORMAT: IntFormat = match PanelFormat::of(Self::TYPE) {
        PanelFormat::Int(format) => format,
        _ => panic!("blocks are packed as integers"),
    };
    /// Number of 32-column blocks in a block of the file.
    const PARTS: usize = Self::TYPE.block_len() / BLOCK;

    fn header(block: &[u8; SIZE]) -> Header;

    /// Has the sign bit set if a value is not finite.
    #[inline(always)]
    fn overflow(_: &[u8; SIZE], header: &Header) -> u16 {
        half_overflow(header.halves[0]) | half_overflow(header.halves[1])
    }

    /// Unsigned codes of 32 columns, as in the panel: part `part` of [`Layout::PARTS`].
    fn codes(block: &[u8; SIZE], part: usize) -> Codes;
}

/// Packs rows of blocks; the codes of 32 columns take `VECTORS` vectors.
pub(super) fn pack_blocks<L: Layout<SIZE>, const SIZE: usize, const VECTORS: usize>(
    rows: &[u8],
    cols: usize,
    panel: &mut [u8],
) -> Option<NotFinite> {
    const { assert!(VECTORS == L::FORMAT.code_vectors() && SIZE == L::TYPE.block_size()) };
    let row_blocks = cols / BLOCK / L::PARTS;
    let chunk_len = CHUNK_BLOCKS / L::PARTS;
    let mut overflow = 0;
    for (chunk, out) in panel.chunks_mut(chunk_bytes(PanelFormat::Int(L::FORMAT), CHUNK_BLOCKS)).enumerate() {
        let first = chunk * chunk_len;
        let len = chunk_len.min(row_blocks - first);
        let (scales, codes) = out.split_at_mut(L::FORMAT.scale_bytes(len * L::PARTS));
        // Including the padding.
        scales.fill(0);
        let codes = codes.as_chunks_mut().0.as_chunks_mut().0.as_chunks_mut::<VECTORS>().0;
        for (row, blocks) in rows.as_chunks().0.chunks_exact(row_blocks).enumerate() {
            overflow |= pack_row::<L, SIZE, VECTORS>(&blocks[first..][..len], scales, codes, row);
        }
    }
    (overflow & 0x8000 != 0).then(|| first_not_finite::<L, SIZE>(rows, row_blocks))
}

/// Packs the blocks of one row into a chunk. The result has the sign bit set if a value is not finite.
#[inline(always)]
fn pack_row<L: Layout<SIZE>, const SIZE: usize, const VECTORS: usize>(
    blocks: &[[u8; SIZE]],
    scales: &mut [u8],
    codes: &mut [[[[u8; 4]; LANES]; VECTORS]],
    row: usize,
) -> u16 {
    let mut overflow = 0;
    for (i, (block, codes)) in blocks.iter().zip(codes.chunks_exact_mut(L::PARTS)).enumerate() {
        let header = L::header(block);
        overflow |= L::overflow(block, &header);
        put_header(L::FORMAT, &header, scales, (i, blocks.len(), L::PARTS), row);
        for (part, vectors) in codes.iter_mut().enumerate() {
            put_codes(L::codes(block, part), vectors, row);
        }
    }
    overflow
}

/// Has the sign bit set if the f16 is not finite: adding one to the largest exponent carries into the sign bit.
#[inline(always)]
fn half_overflow(half: [u8; 2]) -> u16 {
    (u16::from_le_bytes(half) & 0x7c00) + 0x400
}

/// Writes the scales of a row for file block `i` of `len`, each of which has `parts` blocks.
#[inline(always)]
fn put_header(format: IntFormat, header: &Header, out: &mut [u8], (i, len, parts): (usize, usize, usize), row: usize) {
    let [first, second] = header.halves;
    let groups = format.groups(parts);
    let put_half = |out: &mut [u8], vector: usize, half| out.as_chunks_mut().0[vector * LANES + row] = half;
    match format.scales {
        Scales::F16 => put_half(out, i, first),
        Scales::F16Min => {
            put_half(out, i, first);
            put_half(out, len + i, second);
        }
        Scales::Super => {
            put_half(out, 0, first);
            put_groups(&header.scales[..groups], &mut out[2 * LANES..], row);
        }
        Scales::SuperMin => {
            put_half(out, 0, first);
            put_half(out, 1, second);
            put_groups(&header.scales[..groups], &mut out[4 * LANES..], row);
            put_groups(&header.mins[..groups], &mut out[4 * LANES + LANES * groups..], row);
        }
        Scales::E8m0 | Scales::Ue4m3 => put_groups(&header.scales[..groups], &mut out[LANES * groups * i..], row),
    }
}

/// Writes one byte for each group.
#[inline(always)]
fn put_groups(bytes: &[u8], out: &mut [u8], row: usize) {
    for (byte, vector) in bytes.iter().zip(out.as_chunks_mut::<LANES>().0) {
        vector[row] = *byte;
    }
}

#[inline(always)]
fn put_codes<const VECTORS: usize>(codes: Codes, vectors: &mut [[[u8; 4]; LANES]; VECTORS], row: usize) {
    for (word, vector) in folded::<VECTORS>(codes).into_iter().zip(vectors) {
        vector[row] = word.to_le_bytes();
    }
}

/// Packs codes to 8, 6 or 4 bits, depending on the number of vectors.
#[inline(always)]
fn folded<const VECTORS: usize>(codes: Codes) -> [u32; VECTORS] {
    let upper = |j: usize| codes[j] >> 4 & 0x0303_0303;
    from_fn(|v| match (VECTORS, v) {
        (8, _) => codes[v],
        (_, 0..4) => codes[v] & 0x0f0f_0f0f | (codes[v + 4] & 0x0f0f_0f0f) << 4,
        _ => (0..4).fold(0, |word, i| word | upper(2 * i + v - 4) << (2 * i)),
    })
}

#[cold]
fn first_not_finite<L: Layout<SIZE>, const SIZE: usize>(rows: &[u8], row_blocks: usize) -> NotFinite {
    let finite = |block| L::overflow(block, &L::header(block)) & 0x8000 == 0;
    let at = rows.as_chunks().0.iter().position(|block| !finite(block));
    let at = at.expect("a block has just been found not to be finite");
    NotFinite { row: at / row_blocks, column: at % row_blocks * L::TYPE.block_len() }
}
