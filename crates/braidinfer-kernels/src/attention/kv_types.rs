//! The data types of stored keys and values: how a head is rounded, and how it is read.

use half::f16;

use crate::buffer::Zeroed;
use crate::simd::{LANES, Simd};

/// Dimensions of a head that share a scale in [`Q8_0`] and [`Q4_0`].
pub(crate) const BLOCK_DIMS: usize = 32;

/// 8 bits: for each 32 dimensions, an f16 scale and codes from -127 to 127. The scale is the smallest one that is not
/// below the largest magnitude / 127, and a code is its value / scale, rounded to nearest even.
#[derive(Debug, Clone, Copy)]
pub struct Q8_0;

/// 4 bits: for each 32 dimensions, an f16 scale and codes from 0 to 15 for -8 to 7. The scale is the value of the
/// largest magnitude / -8, rounded away from zero, and a code is value / scale + 8.5 in f32, rounded down: the nearest.
#[derive(Debug, Clone, Copy)]
pub struct Q4_0;

/// Conversion to and from f32. Codes are stored in lines of sixteen; dimensions are taken in halves (of a block) of
/// sixteen.
///
/// What is read back is a number of f32 without rounding: a code has at most 8 bits, and a scale 11.
pub(crate) trait Stored: Copy + Send + Sync + 'static {
    /// What lines hold.
    type Code: Zeroed + Send + Sync + 'static;
    /// Whether loading needs a conversion.
    const NARROW: bool;
    /// Whether every block of dimensions has a scale.
    const SCALED: bool;
    /// Whether a code holds a dimension in its lower four bits, and the one 16 further in its upper four.
    const PAIRED: bool;

    /// Rounds a block of at most [`BLOCK_DIMS`] values to codes, and returns the bits of their scale in f16.
    fn encode(values: &[f32], codes: &mut [Self::Code; BLOCK_DIMS]) -> u16;
    /// Loads sixteen codes of a half as f32.
    fn load<S: Simd>(simd: S, line: &[Self::Code; LANES], half: usize, scale: S::F32) -> S::F32;

    /// The group of lines that holds a half: sixteen lines of keys, or one line of the values of each position.
    #[inline(always)]
    fn group(half: usize) -> usize {
        if Self::PAIRED { half / 2 } else { half }
    }

    /// Codes of a head `width` wide.
    fn codes(width: usize) -> usize {
        if Self::PAIRED { width.div_ceil(BLOCK_DIMS) * LANES } else { width }
    }

    /// Scales of a head `width` wide.
    fn scales(width: usize) -> usize {
        if Self::SCALED { width.div_ceil(BLOCK_DIMS) } else { 0 }
    }
}

impl Stored for f32 {
    type Code = f32;
    const NARROW: bool = false;
    const SCALED: bool = false;
    const PAIRED: bool = false;

    fn encode(values: &[f32], codes: &mut [f32; BLOCK_DIMS]) -> u16 {
        codes[..values.len()].copy_from_slice(values);
        0
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, line: &[f32; LANES], _: usize, _: S::F32) -> S::F32 {
        simd.load(line)
    }
}

/// The bits of f16: rounded to nearest even, infinite beyond the range.
impl Stored for u16 {
    type Code = u16;
    const NARROW: bool = true;
    const SCALED: bool = false;
    const PAIRED: bool = false;

    fn encode(values: &[f32], codes: &mut [u16; BLOCK_DIMS]) -> u16 {
        for (code, value) in codes.iter_mut().zip(values) {
            *code = f16::from_f32(*value).to_bits();
        }
        0
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, line: &[u16; LANES], _: usize, _: S::F32) -> S::F32 {
        simd.load_f16(line)
    }
}

impl Stored for Q8_0 {
    type Code = u8;
    const NARROW: bool = true;
    const SCALED: bool = true;
    const PAIRED: bool = false;

    fn encode(values: &[f32], codes: &mut [u8; BLOCK_DIMS]) -> u16 {
        // Adding and taking away 1.5 * 2^23 rounds to nearest even.
        const WHOLE: f32 = 12_582_912.0;
        let (scale, bits) = scale_of(largest(values).abs() / 127.0);
        for (code, value) in codes.iter_mut().zip(values) {
            let whole = (value / scale + WHOLE) - WHOLE;
            // What is no number has a scale that makes it so again.
            *code = (whole as i32).clamp(-127, 127) as i8 as u8;
        }
        bits
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, line: &[u8; LANES], _: usize, scale: S::F32) -> S::F32 {
        simd.mul(simd.to_f32(simd.widen_i8(line)), scale)
    }
}

impl Stored for Q4_0 {
    type Code = u8;
    const NARROW: bool = true;
    const SCALED: bool = true;
    const PAIRED: bool = true;

    fn encode(values: &[f32], codes: &mut [u8; BLOCK_DIMS]) -> u16 {
        let (scale, bits) = scale_of(largest(values) / -8.0);
        codes.fill(0);
        for (i, value) in values.iter().enumerate() {
            let code = ((value / scale + 8.5) as i32).clamp(0, 15) as u8;
            codes[i % LANES] |= if i < LANES { code } else { code << 4 };
        }
        bits
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, line: &[u8; LANES], half: usize, scale: S::F32) -> S::F32 {
        let by = if half.is_multiple_of(2) { 0 } else { 4 };
        let codes = simd.and(simd.sar(simd.widen_u8(line), by), simd.splat_i32(15));
        simd.mul(simd.to_f32(simd.sub_i32(codes, simd.splat_i32(8))), scale)
    }
}

/// The first value of the largest magnitude, or NaN if any is not finite.
fn largest(values: &[f32]) -> f32 {
    let mut largest = 0.0_f32;
    for value in values {
        if !value.is_finite() {
            return f32::NAN;
        }
        largest = if value.abs() > largest.abs() { *value } else { largest };
    }
    largest
}

/// The f16 nearest to `scale` that is not nearer to zero, as a divisor and as bits: NaN beyond the range, so that what
/// cannot be stored is seen, and 1 as the divisor for zero.
fn scale_of(scale: f32) -> (f32, u16) {
    let nearest = f16::from_f32(scale);
    // The next one away from zero has the next bits.
    let bits = nearest.to_bits() + u16::from(nearest.to_f32().abs() < scale.abs());
    let rounded = f16::from_bits(bits);
    if !rounded.is_finite() {
        return (1.0, f16::NAN.to_bits());
    }
    (if rounded.to_f32() == 0.0 { 1.0 } else { rounded.to_f32() }, bits)
}
