//! The `iq1`, `iq2` and `iq3` types: 256 values in small groups, each stored as the number of a point of a grid
//! ([`super::iq_grids`]), with a small integer scale per 16 or 32 values and one f16 scale.
//!
//! Every value is a product of f16 with integers and powers of two that f32 holds exactly, so that the order of
//! operations does not matter.

use half::f16;

use super::iq_grids::{IQ1, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};

const LEN: usize = 256;
/// What the levels of the `iq2` types mean.
const IQ2_LEVELS: [u8; 4] = [8, 25, 43, 0];
/// What the levels of `iq3_xxs` mean.
const IQ3_XXS_LEVELS: [u8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
/// What the levels of `iq3_s` mean.
const IQ3_S_LEVELS: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

/// Eight values.
type Eight = [f32; 8];

/// `d·(scale + ½)·¼·±level`: for each 32 values four bytes with points, and 32 bits with four times seven signs and a
/// 4-bit scale.
pub fn dequantize_iq2_xxs(block: &[u8; 66], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for (j, out) in eights::<4>(out).enumerate() {
        let rest = u32::from_le_bytes(part(block, 6 + 8 * j));
        let step = d * (0.5 + (rest >> 28) as f32) * 0.25;
        for (l, out) in out.iter_mut().enumerate() {
            let point = IQ2_XXS[usize::from(block[2 + 8 * j + l])];
            *out = eight(step, point, seven_signs(rest >> (7 * l)));
        }
    }
}

/// `d·(scale + ½)·¼·±level`: for each eight values nine bits with a point and seven signs, then a 4-bit scale for each
/// 16 values.
pub fn dequantize_iq2_xs(block: &[u8; 74], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for (j, out) in eights::<2>(out).enumerate() {
        let step = d * (0.5 + f32::from(nibble(block, 66, j))) * 0.25;
        for (l, out) in out.iter_mut().enumerate() {
            let stored = u16::from_le_bytes(part(block, 2 + 4 * j + 2 * l));
            *out = eight(step, IQ2_XS[usize::from(stored & 511)], seven_signs(u32::from(stored >> 9)));
        }
    }
}

/// `d·(scale + ½)·¼·±level`: low bytes of the points, signs, upper two bits of the points, and a 4-bit scale for each
/// 16 values.
pub fn dequantize_iq2_s(block: &[u8; 82], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for (j, out) in eights::<2>(out).enumerate() {
        let step = d * (0.5 + f32::from(nibble(block, 74, j))) * 0.25;
        for (l, out) in out.iter_mut().enumerate() {
            let i = 2 * j + l;
            let high = block[66 + i / 4] >> (2 * (i % 4)) & 3;
            *out = eight(step, IQ2_S[index(block[2 + i], high)], block[34 + i]);
        }
    }
}

/// `d·(scale + ½)·½·±level`: a byte for each four values, then for each 32 values four times seven signs and a 4-bit
/// scale.
pub fn dequantize_iq3_xxs(block: &[u8; 98], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for (j, out) in eights::<4>(out).enumerate() {
        let rest = u32::from_le_bytes(part(block, 66 + 4 * j));
        let step = d * (0.5 + (rest >> 28) as f32) * 0.5;
        for (l, out) in out.iter_mut().enumerate() {
            let points = [0, 1].map(|half| IQ3_XXS[usize::from(block[2 + 8 * j + 2 * l + half])]);
            *out = fours(step, &IQ3_XXS_LEVELS, points, seven_signs(rest >> (7 * l)));
        }
    }
}

/// `d·(2·scale + 1)·±level`: low bytes of the points of four values, their upper bits, signs, and a 4-bit scale for
/// each 32 values.
pub fn dequantize_iq3_s(block: &[u8; 110], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for (j, out) in eights::<4>(out).enumerate() {
        let step = d * f32::from(2 * nibble(block, 106, j) + 1);
        for (l, out) in out.iter_mut().enumerate() {
            let points = [0, 1].map(|half| {
                let high = block[66 + j] >> (2 * l + half) & 1;
                IQ3_S[index(block[2 + 8 * j + 2 * l + half], high)]
            });
            *out = fours(step, &IQ3_S_LEVELS, points, block[74 + 4 * j + l]);
        }
    }
}

/// `d·(2·scale + 1)·(level ± ⅛)`: low bytes of the points, then for each 32 values 16 bits: four times the upper three
/// bits of a point, a 3-bit scale, and whether an eighth is subtracted.
pub fn dequantize_iq1_s(block: &[u8; 50], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for (j, out) in eights::<4>(out).enumerate() {
        let rest = u16::from_le_bytes(part(block, 34 + 2 * j));
        let step = d * f32::from(2 * (rest >> 12 & 7) + 1);
        for (l, out) in out.iter_mut().enumerate() {
            let high = (rest >> (3 * l) & 7) as u8;
            *out = ternary(step, IQ1[index(block[4 * j + l + 2], high)], rest >> 15 == 1);
        }
    }
}

/// As `iq1_s`, but with a scale for each 16 values and a sign of the eighth for each eight: low bytes of the points,
/// half a byte with their upper bits and that sign, and four 16-bit numbers with four 3-bit scales and a quarter of `d`
/// each.
pub fn dequantize_iq1_m(block: &[u8; 56], out: &mut [f32; LEN]) {
    let scales: [u16; 4] = [48, 50, 52, 54].map(|at| u16::from_le_bytes(part(block, at)));
    let d = (0..4).fold(0, |d, i| d | scales[i] >> 12 << (4 * i));
    let d = f16::from_bits(d).to_f32();
    for (j, out) in eights::<2>(out).enumerate() {
        let step = d * f32::from(2 * (scales[j / 4] >> (3 * (j % 4)) & 7) + 1);
        for (l, out) in out.iter_mut().enumerate() {
            let rest = nibble(block, 32, 2 * j + l);
            *out = ternary(step, IQ1[index(block[2 * j + l], rest & 7)], rest & 8 != 0);
        }
    }
}

/// The values in groups of `N` times eight.
fn eights<const N: usize>(out: &mut [f32; LEN]) -> impl Iterator<Item = &mut [Eight; N]> {
    out.as_chunks_mut::<8>().0.as_chunks_mut::<N>().0.iter_mut()
}

/// The number of a point from its low byte and its upper bits.
fn index(low: u8, high: u8) -> usize {
    usize::from(high) << 8 | usize::from(low)
}

/// Half byte `i` of those from offset `at` on; the low half of each byte comes first.
fn nibble(block: &[u8], at: usize, i: usize) -> u8 {
    block[at + i / 2] >> (4 * (i % 2)) & 15
}

/// Eight signs of which seven bits are stored: the number of minus signs is even.
fn seven_signs(bits: u32) -> u8 {
    let stored = (bits & 127) as u8;
    stored | (stored.count_ones() as u8 & 1) << 7
}

/// A point of an `iq2` grid, with a bit for each minus sign.
fn eight(step: f32, point: u16, signs: u8) -> Eight {
    std::array::from_fn(|i| signed(step * f32::from(IQ2_LEVELS[usize::from(point >> (2 * i) & 3)]), signs, i))
}

/// Two points of an `iq3` grid, with a bit for each minus sign.
fn fours(step: f32, levels: &[u8; 8], points: [u16; 2], signs: u8) -> Eight {
    std::array::from_fn(|i| {
        let level = levels[usize::from(points[i / 4] >> (4 * (i % 4)) & 7)];
        signed(step * f32::from(level), signs, i)
    })
}

fn signed(value: f32, signs: u8, i: usize) -> f32 {
    if signs >> i & 1 == 0 { value } else { -value }
}

/// A point of the `iq1` grid, and an eighth that is added or subtracted.
fn ternary(step: f32, point: u16, minus: bool) -> Eight {
    let eighth = if minus { -0.125 } else { 0.125 };
    std::array::from_fn(|i| step * (f32::from((point >> (2 * i) & 3) as i8 - 1) + eighth))
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes(part(block, at)).to_f32()
}

/// The `N` bytes at offset `at`, which the callers' blocks have.
fn part<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    *block[at..].first_chunk().expect("the layout of the block has bytes here")
}
