//! Layouts of codes and scales in the block types (llama.cpp's `ggml-common.h`).

use std::array::from_fn;

use super::blocks::{Codes, Header, Layout};
use crate::LANES;
use crate::format::WeightType;

/// The low half of every byte.
pub(super) const LOW: u32 = 0x0f0f_0f0f;
/// The lowest bit of every byte.
pub(super) const ONE: u32 = 0x0101_0101;

/// `d`, then one byte for each pair of columns `i` and `16 + i`.
pub(super) struct Q4_0;

impl Layout<18> for Q4_0 {
    const TYPE: WeightType = WeightType::Q4_0;

    #[inline(always)]
    fn header(block: &[u8; 18]) -> Header {
        Header { halves: [part(block, 0), [0; 2]], ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 18], _: usize) -> Codes {
        nibbles(words(block, 2))
    }
}

/// `d` and `m`, then codes as in `q4_0`.
pub(super) struct Q4_1;

impl Layout<20> for Q4_1 {
    const TYPE: WeightType = WeightType::Q4_1;

    #[inline(always)]
    fn header(block: &[u8; 20]) -> Header {
        Header { halves: [part(block, 0), part(block, 2)], ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 20], _: usize) -> Codes {
        nibbles(words(block, 4))
    }
}

/// `d`, the fifth bits of all columns, then codes as in `q4_0`.
pub(super) struct Q5_0;

impl Layout<22> for Q5_0 {
    const TYPE: WeightType = WeightType::Q5_0;

    #[inline(always)]
    fn header(block: &[u8; 22]) -> Header {
        Header { halves: [part(block, 0), [0; 2]], ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 22], _: usize) -> Codes {
        with_fifth_bits(nibbles(words(block, 6)), words(block, 2))
    }
}

/// `d` and `m`, then codes as in `q5_0`.
pub(super) struct Q5_1;

impl Layout<24> for Q5_1 {
    const TYPE: WeightType = WeightType::Q5_1;

    #[inline(always)]
    fn header(block: &[u8; 24]) -> Header {
        Header { halves: [part(block, 0), part(block, 2)], ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 24], _: usize) -> Codes {
        with_fifth_bits(nibbles(words(block, 8)), words(block, 4))
    }
}

/// `d`, then signed byte codes.
pub(super) struct Q8_0;

impl Layout<34> for Q8_0 {
    const TYPE: WeightType = WeightType::Q8_0;

    #[inline(always)]
    fn header(block: &[u8; 34]) -> Header {
        Header { halves: [part(block, 0), [0; 2]], ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 34], _: usize) -> Codes {
        words(block, 2).map(|word| word ^ 0x8080_8080)
    }
}

/// Scale and minimum of each group in one byte, 2-bit codes, `d` and `dmin`.
///
/// A byte of codes has columns `i`, `32 + i`, `64 + i` and `96 + i` of one half of the block.
pub(super) struct Q2K;

impl Layout<84> for Q2K {
    const TYPE: WeightType = WeightType::Q2K;

    #[inline(always)]
    fn header(block: &[u8; 84]) -> Header {
        let bytes: [u8; LANES] = part(block, 0);
        Header {
            halves: [part(block, 80), part(block, 82)],
            scales: bytes.map(|byte| byte & 15),
            mins: bytes.map(|byte| byte >> 4),
        }
    }

    #[inline(always)]
    fn codes(block: &[u8; 84], part: usize) -> Codes {
        let (half, quarter) = (part / 4, part % 4);
        words(block, 16 + 32 * half).map(|word| word >> (2 * quarter) & (3 * ONE))
    }
}

/// Third bits of the codes, low bits as in `q2_k`, 6-bit scales, and `d`.
///
/// A byte of third bits has those of column `i` of all eight 32-column blocks.
pub(super) struct Q3K;

impl Layout<110> for Q3K {
    const TYPE: WeightType = WeightType::Q3K;

    #[inline(always)]
    fn header(block: &[u8; 110]) -> Header {
        let packed: [u8; 12] = part(block, 96);
        let scales = from_fn(|j| {
            let low = packed[j % 8] >> (4 * (j / 8)) & 15;
            let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
            (low | high << 4).wrapping_sub(32)
        });
        Header { halves: [part(block, 108), [0; 2]], scales, ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 110], part: usize) -> Codes {
        let (half, quarter) = (part / 4, part % 4);
        let (low, high): (Codes, Codes) = (words(block, 32 + 32 * half), words(block, 0));
        from_fn(|j| low[j] >> (2 * quarter) & (3 * ONE) | (high[j] >> part & ONE) << 2)
    }
}

/// `d` and `dmin`, 6-bit scales and minima, then codes.
///
/// A byte of codes has column `i` of two consecutive 32-column blocks.
pub(super) struct Q4K;

impl Layout<144> for Q4K {
    const TYPE: WeightType = WeightType::Q4K;

    #[inline(always)]
    fn header(block: &[u8; 144]) -> Header {
        affine_header(part(block, 0))
    }

    #[inline(always)]
    fn codes(block: &[u8; 144], part: usize) -> Codes {
        words(block, 16 + 32 * (part / 2)).map(|word| word >> (4 * (part % 2)) & LOW)
    }
}

/// Like `q4_k`, with the fifth bits stored like the third bits of `q3_k`.
pub(super) struct Q5K;

impl Layout<176> for Q5K {
    const TYPE: WeightType = WeightType::Q5K;

    #[inline(always)]
    fn header(block: &[u8; 176]) -> Header {
        affine_header(part(block, 0))
    }

    #[inline(always)]
    fn codes(block: &[u8; 176], part: usize) -> Codes {
        let (low, high): (Codes, Codes) = (words(block, 48 + 32 * (part / 2)), words(block, 16));
        from_fn(|j| low[j] >> (4 * (part % 2)) & LOW | (high[j] >> part & ONE) << 4)
    }
}

/// Low halves of the codes, upper two bits, signed scales and `d`.
///
/// In one half of the block, a byte of low halves has columns `i` and `64 + i`; a byte of upper bits has columns `i`,
/// `32 + i`, `64 + i` and `96 + i`.
pub(super) struct Q6K;

impl Layout<210> for Q6K {
    const TYPE: WeightType = WeightType::Q6K;

    #[inline(always)]
    fn header(block: &[u8; 210]) -> Header {
        Header { halves: [part(block, 208), [0; 2]], scales: part(block, 192), ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 210], part: usize) -> Codes {
        let (half, quarter) = (part / 4, part % 4);
        let low: Codes = words(block, 64 * half + 32 * (quarter % 2));
        let high: Codes = words(block, 128 + 32 * half);
        from_fn(|j| low[j] >> (4 * (quarter / 2)) & LOW | (high[j] >> (2 * quarter) & (3 * ONE)) << 4)
    }
}

/// `d`, then codes, stored like the codes of `q4_0`.
pub(super) struct Iq4Nl;

impl Layout<18> for Iq4Nl {
    const TYPE: WeightType = WeightType::Iq4Nl;

    #[inline(always)]
    fn header(block: &[u8; 18]) -> Header {
        Header { halves: [part(block, 0), [0; 2]], ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 18], _: usize) -> Codes {
        nibbles(words(block, 2))
    }
}

/// `d`, high and low parts of the scales, then codes, stored like the codes of `q4_0`.
pub(super) struct Iq4Xs;

impl Layout<136> for Iq4Xs {
    const TYPE: WeightType = WeightType::Iq4Xs;

    #[inline(always)]
    fn header(block: &[u8; 136]) -> Header {
        let (high, low) = (u16::from_le_bytes(part(block, 2)), u32::from_le_bytes(part(block, 4)));
        let mut scales = [0; LANES];
        for (j, scale) in scales.iter_mut().take(8).enumerate() {
            *scale = ((low >> (4 * j) & 15) as u8 | ((high >> (2 * j) & 3) as u8) << 4).wrapping_sub(32);
        }
        Header { halves: [part(block, 0), [0; 2]], scales, ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 136], part: usize) -> Codes {
        nibbles(words(block, 8 + 16 * part))
    }
}

/// `d`, `dmin`, and twelve bytes with 6-bit scales and minima. The first four of each are in the low bits of eight
/// bytes. Of the last four, the low halves are in the other four bytes, and the upper two bits on top of the first
/// eight.
#[inline(always)]
fn affine_header(bytes: [u8; 16]) -> Header {
    let [d0, d1, min0, min1, packed @ ..] = bytes;
    let (mut scales, mut mins) = ([0; LANES], [0; LANES]);
    for j in 0..4 {
        let (scale, min, low) = (packed[j], packed[4 + j], packed[8 + j]);
        (scales[j], scales[4 + j]) = (scale & 63, low & 15 | scale >> 6 << 4);
        (mins[j], mins[4 + j]) = (min & 63, low >> 4 | min >> 6 << 4);
    }
    Header { halves: [[d0, d1], [min0, min1]], scales, mins }
}

/// The low halves of all bytes, then the high halves.
#[inline(always)]
pub(super) fn nibbles(words: [u32; 4]) -> Codes {
    from_fn(|j| words[j % 4] >> (4 * (j / 4)) & LOW)
}

/// Sets bit 4 of the codes of those columns whose bit in `fifth` is set.
#[inline(always)]
fn with_fifth_bits(codes: Codes, [fifth]: [u32; 1]) -> Codes {
    // Bit k of four, times 1 + 2^7 + 2^14 + 2^21, moves to bit 8k; the other bits are masked out.
    from_fn(|j| codes[j] | ((((fifth >> (4 * j)) & 15) * 0x0020_4081) & ONE) << 4)
}

/// The `N` bytes at offset `at`, which every layout has.
#[inline(always)]
pub(super) fn part<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    *block[at..].first_chunk().expect("the layout of the block has bytes here")
}

/// The `N` 32-bit words at offset `at`.
#[inline(always)]
pub(super) fn words<const N: usize>(block: &[u8], at: usize) -> [u32; N] {
    let (words, _) = block[at..].as_chunks();
    from_fn(|j| u32::from_le_bytes(words[j]))
}
