//! Layouts of the ternary types and of those with 4-bit floats.

use std::array::from_fn;

use super::blocks::{Codes, Header, Layout};
use super::layouts::{LOW, ONE, nibbles, part, words};
use crate::LANES;
use crate::format::WeightType;

/// One scale, of all groups of a block.
const ONES: [u8; LANES] = [1; LANES];

/// Five values in each of 48 bytes and four in each of the next four, as digits of base three; then `d`.
pub(super) struct Tq1_0;

impl Layout<54> for Tq1_0 {
    const TYPE: WeightType = WeightType::Tq1_0;

    #[inline(always)]
    fn header(block: &[u8; 54]) -> Header {
        Header { halves: [part(block, 52), [0; 2]], scales: ONES, ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 54], part: usize) -> Codes {
        let code = |column: usize| {
            let (byte, digit) = match column {
                0..160 => (block[column % 32], column / 32),
                160..240 => (block[32 + column % 16], (column - 160) / 16),
                _ => (block[48 + column % 4], (column - 240) / 4),
            };
            3 + ternary_digit(byte, digit)
        };
        from_fn(|j| u32::from_le_bytes(from_fn(|i| code(32 * part + 4 * j + i))))
    }
}

/// Digit `digit` of a fraction in units of 1/256, to base three: what a product with three carries over, after the
/// digits before it were carried away.
#[inline(always)]
fn ternary_digit(byte: u8, digit: usize) -> u8 {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    ((u16::from(byte.wrapping_mul(POWERS[digit])) * 3) >> 8) as u8
}

/// 2-bit codes as in `q2_k`, then `d`.
pub(super) struct Tq2_0;

impl Layout<66> for Tq2_0 {
    const TYPE: WeightType = WeightType::Tq2_0;

    #[inline(always)]
    fn header(block: &[u8; 66]) -> Header {
        Header { halves: [part(block, 64), [0; 2]], scales: ONES, ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 66], part: usize) -> Codes {
        let (half, quarter) = (part / 4, part % 4);
        // Bytes of at most 3, plus 3, do not carry.
        words(block, 32 * half).map(|word| (word >> (2 * quarter) & (3 * ONE)) + 3 * ONE)
    }
}

/// The exponent of the scale, then codes as in `q4_0`.
pub(super) struct Mxfp4;

impl Layout<17> for Mxfp4 {
    const TYPE: WeightType = WeightType::Mxfp4;

    #[inline(always)]
    fn header(block: &[u8; 17]) -> Header {
        let mut scales = [0; LANES];
        scales[0] = block[0];
        Header { scales, ..Header::default() }
    }

    #[inline(always)]
    fn overflow(block: &[u8; 17], _: &Header) -> u16 {
        if block[0] > LARGEST_EXPONENT && exceeds_f32(block) { 0x8000 } else { 0 }
    }

    #[inline(always)]
    fn codes(block: &[u8; 17], _: usize) -> Codes {
        nibbles(words(block, 1))
    }
}

/// With exponents up to this one, every value of a block of `mxfp4` is in the range of f32.
const LARGEST_EXPONENT: u8 = 252;

/// Whether a value of a block is not in the range of f32: twelve codes are, depending on the exponent.
#[cold]
fn exceeds_f32(block: &[u8; 17]) -> bool {
    // The first code whose level, times the scale, is 2^128: level 8, 4 or 2.
    let first = match block[0] {
        0..=LARGEST_EXPONENT => return false,
        253 => 6,
        254 => 4,
        255 => 2,
    };
    block[1..].iter().any(|byte| byte & 7 >= first || byte >> 4 & 7 >= first)
}

/// Four scales, then for each group of 16 its codes: those of columns `i` and `8 + i` in one byte.
pub(super) struct Nvfp4;

impl Layout<36> for Nvfp4 {
    const TYPE: WeightType = WeightType::Nvfp4;

    #[inline(always)]
    fn header(block: &[u8; 36]) -> Header {
        let mut scales = [0; LANES];
        for (to, scale) in scales.iter_mut().zip(part::<4>(block, 0)) {
            // The sign is ignored, and the code of the NaN means zero.
            *to = if scale == 0x7f { 0 } else { scale & 0x7f };
        }
        Header { scales, ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 36], part: usize) -> Codes {
        let words: [u32; 4] = words(block, 4 + 16 * part);
        from_fn(|j| words[j / 4 * 2 + j % 2] >> (j / 2 % 2 * 4) & LOW)
    }
}
