//! Packing floats into panels: a transposition.

use super::NotFinite;
use crate::LANES;
use crate::format::{BLOCK, CHUNK};

/// Mask of the exponent bits of the one or two floats in a 32-bit word. Non-finite values have all of their exponent
/// bits set.
#[derive(Clone, Copy)]
pub(super) struct Exponents(u32);

impl Exponents {
    pub(super) const F32: Self = Self(0x7f80_0000);
    pub(super) const F16: Self = Self(0x7c00_7c00);
    pub(super) const BF16: Self = Self(0x7f80_7f80);

    /// Has a sign bit set if a float of `word` is not finite: adding one to the largest exponent carries into the sign
    /// bit.
    #[inline(always)]
    fn overflow(self, word: u32) -> u32 {
        let lowest = self.0 & !(self.0 << 1);
        (word & self.0) + lowest
    }

    /// The sign bits.
    fn signs(self) -> u32 {
        (self.0 << 1) & !self.0
    }

    /// Whether a single float is finite.
    fn finite<const SIZE: usize>(self, bytes: &[u8; SIZE]) -> bool {
        let mut word = [0; 4];
        word[..SIZE].copy_from_slice(bytes);
        self.overflow(u32::from_le_bytes(word)) & self.signs() == 0
    }
}

/// Packs rows of floats in units of `GRANULE` bytes; a block of columns has `WIDTH` bytes per row.
pub(super) fn pack_floats<const GRANULE: usize, const WIDTH: usize>(
    exponents: Exponents,
    rows: &[u8],
    cols: usize,
    panel: &mut [u8],
) -> Option<NotFinite> {
    let chunk_width = CHUNK / BLOCK * WIDTH;
    let row_bytes = cols * WIDTH / BLOCK;
    let mut overflow = 0;
    for (chunk, out) in panel.chunks_mut(LANES * chunk_width).enumerate() {
        let out = out.as_chunks_mut::<GRANULE>().0.as_chunks_mut::<LANES>().0;
        for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
            let bytes = &bytes[chunk * chunk_width..];
            let (blocks, tail) = bytes[..bytes.len().min(chunk_width)].as_chunks::<WIDTH>();
            let mut out = out.chunks_exact_mut(WIDTH / GRANULE);
            for (block, out) in blocks.iter().zip(&mut out) {
                overflow |= put_block::<GRANULE, WIDTH>(exponents, block, row, out);
            }
            if let Some(out) = out.next() {
                let mut block = [0; WIDTH];
                block[..tail.len()].copy_from_slice(tail);
                overflow |= put_block::<GRANULE, WIDTH>(exponents, &block, row, out);
            }
        }
    }
    (overflow & exponents.signs() != 0).then(|| match WIDTH / BLOCK {
        2 => first_not_finite::<2>(exponents, rows, cols),
        _ => first_not_finite::<4>(exponents, rows, cols),
    })
}

/// Writes a block of one row, and returns whether a value is not finite.
#[inline(always)]
fn put_block<const GRANULE: usize, const WIDTH: usize>(
    exponents: Exponents,
    block: &[u8; WIDTH],
    row: usize,
    out: &mut [[[u8; GRANULE]; LANES]],
) -> u32 {
    for (granule, vector) in block.as_chunks::<GRANULE>().0.iter().zip(out) {
        vector[row] = *granule;
    }
    let words = block.as_chunks().0.iter().map(|word| exponents.overflow(u32::from_le_bytes(*word)));
    words.fold(0, |all, overflow| all | overflow)
}

#[cold]
fn first_not_finite<const SIZE: usize>(exponents: Exponents, rows: &[u8], cols: usize) -> NotFinite {
    let mut values = rows.as_chunks::<SIZE>().0.iter();
    let at = values.position(|value| !exponents.finite(value)).expect("a value has just been found not to be finite");
    NotFinite { row: at / cols, column: at % cols }
}
