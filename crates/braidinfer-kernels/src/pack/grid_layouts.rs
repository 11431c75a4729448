//! Layouts of the types that store points of a grid: [`super::iq_grids`].

use std::array::from_fn;

use super::blocks::{Codes, Header, Layout};
use super::iq_grids::{IQ1, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
use super::layouts::{ONE, part};
use crate::LANES;
use crate::format::WeightType;

/// `d`, low bytes of the points, then for each 32 columns 16 bits: four times three upper bits, a 3-bit scale and the
/// sign of the eighth.
pub(super) struct Iq1S;

impl Layout<50> for Iq1S {
    const TYPE: WeightType = WeightType::Iq1S;

    #[inline(always)]
    fn header(block: &[u8; 50]) -> Header {
        let scale = |group| 2 * (u16_at(block, 34 + 2 * group) >> 12 & 7) as u8 + 1;
        Header { halves: [part(block, 0), [0; 2]], scales: scales(8, scale), ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 50], part: usize) -> Codes {
        let rest = u16_at(block, 34 + 2 * part);
        eights(|l| {
            let point = IQ1[usize::from(block[2 + 4 * part + l]) | usize::from(rest >> (3 * l) & 7) << 8];
            with_eighth(point, rest >> 15 == 1)
        })
    }
}

/// Low bytes of the points, half a byte for each with three upper bits and the sign of the eighth, then four times 16
/// bits with four 3-bit scales and a quarter of `d` each.
pub(super) struct Iq1M;

impl Layout<56> for Iq1M {
    const TYPE: WeightType = WeightType::Iq1M;

    #[inline(always)]
    fn header(block: &[u8; 56]) -> Header {
        let parts: [u16; 4] = from_fn(|i| u16_at(block, 48 + 2 * i));
        let d = parts[0] >> 12 | parts[1] >> 12 << 4 | parts[2] >> 12 << 8 | parts[3] >> 12 << 12;
        let scale = |group: usize| 2 * (parts[group / 4] >> (3 * (group % 4)) & 7) as u8 + 1;
        Header { halves: [d.to_le_bytes(), [0; 2]], scales: scales(16, scale), ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 56], part: usize) -> Codes {
        eights(|l| {
            let i = 4 * part + l;
            let rest = nibble(block, 32, i);
            with_eighth(IQ1[usize::from(block[i]) | usize::from(rest & 7) << 8], rest & 8 != 0)
        })
    }
}

/// `d`, then for each 32 columns four points, and 32 bits with four times seven signs and a scale.
pub(super) struct Iq2Xxs;

impl Layout<66> for Iq2Xxs {
    const TYPE: WeightType = WeightType::Iq2Xxs;

    #[inline(always)]
    fn header(block: &[u8; 66]) -> Header {
        let scale = |group| 2 * (u32_at(block, 6 + 8 * group) >> 28) as u8 + 1;
        Header { halves: [part(block, 0), [0; 2]], scales: scales(8, scale), ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 66], part: usize) -> Codes {
        let rest = u32_at(block, 6 + 8 * part);
        eights(|l| signed_eight(IQ2_XXS[usize::from(block[2 + 8 * part + l])], seven_signs(rest >> (7 * l))))
    }
}

/// `d`, for each eight columns 16 bits with a point and seven signs, then a scale for each 16 columns.
pub(super) struct Iq2Xs;

impl Layout<74> for Iq2Xs {
    const TYPE: WeightType = WeightType::Iq2Xs;

    #[inline(always)]
    fn header(block: &[u8; 74]) -> Header {
        let scale = |group| 2 * nibble(block, 66, group) + 1;
        Header { halves: [part(block, 0), [0; 2]], scales: scales(16, scale), ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 74], part: usize) -> Codes {
        eights(|l| {
            let stored = u16_at(block, 2 + 8 * part + 2 * l);
            signed_eight(IQ2_XS[usize::from(stored & 511)], seven_signs(u32::from(stored >> 9)))
        })
    }
}

/// `d`, low bytes of the points, signs, upper two bits of the points, then a scale for each 16 columns.
pub(super) struct Iq2S;

impl Layout<82> for Iq2S {
    const TYPE: WeightType = WeightType::Iq2S;

    #[inline(always)]
    fn header(block: &[u8; 82]) -> Header {
        let scale = |group| 2 * nibble(block, 74, group) + 1;
        Header { halves: [part(block, 0), [0; 2]], scales: scales(16, scale), ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 82], part: usize) -> Codes {
        eights(|l| {
            let i = 4 * part + l;
            let high = block[66 + part] >> (2 * l) & 3;
            signed_eight(IQ2_S[usize::from(block[2 + i]) | usize::from(high) << 8], block[34 + i])
        })
    }
}

/// `d`, a point for each four columns, then for each 32 columns four times seven signs and a scale.
pub(super) struct Iq3Xxs;

impl Layout<98> for Iq3Xxs {
    const TYPE: WeightType = WeightType::Iq3Xxs;

    #[inline(always)]
    fn header(block: &[u8; 98]) -> Header {
        let scale = |group| 2 * (u32_at(block, 66 + 4 * group) >> 28) as u8 + 1;
        Header { halves: [part(block, 0), [0; 2]], scales: scales(8, scale), ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 98], part: usize) -> Codes {
        let rest = u32_at(block, 66 + 4 * part);
        eights(|l| {
            let points = [0, 1].map(|half| IQ3_XXS[usize::from(block[2 + 8 * part + 2 * l + half])]);
            signed_fours(points, seven_signs(rest >> (7 * l)))
        })
    }
}

/// `d`, low bytes of the points of four columns, their upper bits, signs, then a scale for each 32 columns.
pub(super) struct Iq3S;

impl Layout<110> for Iq3S {
    const TYPE: WeightType = WeightType::Iq3S;

    #[inline(always)]
    fn header(block: &[u8; 110]) -> Header {
        let scale = |group| 2 * nibble(block, 106, group) + 1;
        Header { halves: [part(block, 0), [0; 2]], scales: scales(8, scale), ..Header::default() }
    }

    #[inline(always)]
    fn codes(block: &[u8; 110], part: usize) -> Codes {
        eights(|l| {
            let points = [0, 1].map(|half| {
                let high = block[66 + part] >> (2 * l + half) & 1;
                IQ3_S[usize::from(block[2 + 8 * part + 2 * l + half]) | usize::from(high) << 8]
            });
            signed_fours(points, block[74 + 4 * part + l])
        })
    }
}

/// The codes of 32 columns from those of eight.
#[inline(always)]
fn eights(codes: impl Fn(usize) -> u64) -> Codes {
    let eights: [u64; 4] = from_fn(codes);
    from_fn(|j| (eights[j / 2] >> (j % 2 * 32)) as u32)
}

/// A point of the `iq1` grid, and whether the eighth is subtracted.
#[inline(always)]
fn with_eighth(point: u16, minus: bool) -> u64 {
    pairs(point) | if minus { 4 * EVERY } else { 0 }
}

/// A point of an `iq2` grid, with a bit for each minus sign.
#[inline(always)]
fn signed_eight(point: u16, signs: u8) -> u64 {
    pairs(point) | bits(signs) << 2
}

/// Two points of an `iq3` grid, with a bit for each minus sign.
#[inline(always)]
fn signed_fours(points: [u16; 2], signs: u8) -> u64 {
    fours(points[0]) | fours(points[1]) << 32 | bits(signs) << 3
}

/// The lowest bit of every byte.
const EVERY: u64 = ONE as u64 * 0x1_0000_0001;

/// Eight pairs of bits in eight bytes. Each step moves the upper half of every part to the middle of a part twice as
/// wide.
#[inline(always)]
fn pairs(point: u16) -> u64 {
    let halves = u64::from(point);
    let halves = (halves | halves << 24) & 0x0000_00ff_0000_00ff;
    let quarters = (halves | halves << 12) & 0x000f_000f_000f_000f;
    (quarters | quarters << 6) & (3 * EVERY)
}

/// Four times four bits in four bytes.
#[inline(always)]
fn fours(point: u16) -> u64 {
    let halves = u64::from(point);
    let halves = (halves | halves << 8) & 0x00ff_00ff;
    (halves | halves << 4) & 0x0f0f_0f0f
}

/// Eight bits in eight bytes.
#[inline(always)]
fn bits(byte: u8) -> u64 {
    let halves = u64::from(byte);
    let halves = (halves | halves << 28) & 0x0000_000f_0000_000f;
    let quarters = (halves | halves << 14) & 0x0003_0003_0003_0003;
    (quarters | quarters << 7) & EVERY
}

/// Eight signs of which seven bits are stored: the number of minus signs is even.
#[inline(always)]
fn seven_signs(bits: u32) -> u8 {
    let stored = (bits & 127) as u8;
    stored | (stored.count_ones() as u8 & 1) << 7
}

/// Scales of `groups` groups.
#[inline(always)]
fn scales(groups: usize, scale: impl Fn(usize) -> u8) -> [u8; LANES] {
    from_fn(|group| if group < groups { scale(group) } else { 0 })
}

/// Half byte `i` of those from offset `at` on; the low half of each byte comes first.
#[inline(always)]
fn nibble(block: &[u8], at: usize, i: usize) -> u8 {
    block[at + i / 2] >> (4 * (i % 2)) & 15
}

#[inline(always)]
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(part(block, at))
}

#[inline(always)]
fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(part(block, at))
}
