//! `mxfp4` and `nvfp4`: 4-bit floats (e2m1: a sign, two bits of exponent, one of fraction) with a small float as scale.
//!
//! The formats are those of the OCP Microscaling Formats specification (MXFP4) and of NVIDIA (NVFP4); the order of
//! bytes is that of llama.cpp's files. As there, a code is twice the 4-bit float, and scales are halved to make up for
//! it.

/// Twice the numbers that the codes stand for; code 8 would be minus zero, but is zero.
const LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 32 values `2^(e − 128)·level`: the exponent, then the low halves of all bytes, and the high halves.
///
/// Every exponent is a number here, also 255, which the specification calls no number. Large levels with exponents
/// above 252 exceed the range of f32 and become infinite.
pub fn dequantize_mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let [exponent, qs @ ..] = block;
    look_up(half_power(*exponent), qs, out);
}

/// 64 values in four groups of 16, with a scale each; the groups come one after the other, each like a small block of
/// `mxfp4`.
pub fn dequantize_nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    let (scales, qs) = block.split_at(4);
    for ((out, qs), scale) in out.as_chunks_mut::<16>().0.iter_mut().zip(qs.as_chunks::<8>().0).zip(scales) {
        look_up(half_ue4m3(*scale), qs, out);
    }
}

/// The exponent of the largest magnitude, minus two so that it becomes 4 to 8 (in doubled levels 8 to 16, of which 12
/// is the largest there is), and for each value the nearest level, the first of equally near ones.
///
/// Byte-identical to `gguf.quants.quantize` of the `gguf` Python package (version 0.19.0).
pub fn quantize_mxfp4(values: &[f32; 32]) -> Option<[u8; 17]> {
    let exponent = shared_exponent(values);
    let step = half_power(exponent);
    let levels = LEVELS.map(|level| step * f32::from(level));
    let code = |value: f32| {
        let nearest = |best: usize, code: usize| {
            if (levels[code] - value).abs() < (levels[best] - value).abs() { code } else { best }
        };
        (1..16).fold(0, nearest) as u8
    };
    let mut block = [0; 17];
    block[0] = exponent;
    for (i, byte) in block[1..].iter_mut().enumerate() {
        *byte = code(values[i]) | code(values[i + 16]) << 4;
    }
    Some(block)
}

/// `⌊log₂ of the largest magnitude⌋ − 2`, biased by 127; 0 for zeros.
fn shared_exponent(values: &[f32; 32]) -> u8 {
    let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    if largest == 0.0 {
        return 0;
    }
    // The reference takes the logarithm in f32, so that it rounds up for numbers just below a power of two.
    let logarithm = f64::from(largest).log2() as f32;
    // Below 2^-125 the reference wraps around to a large exponent; the values are so far below its steps that all codes
    // are zero.
    (logarithm.floor() as i32 - 2 + 127) as u8
}

/// `2^(exponent − 128)`, half of what the specification calls the scale.
fn half_power(exponent: u8) -> f32 {
    let bits = match exponent {
        // Subnormal.
        0 | 1 => 0x0020_0000 << exponent,
        _ => (u32::from(exponent) - 1) << 23,
    };
    f32::from_bits(bits)
}

/// Half of an unsigned float with four bits of exponent (bias 7) and three of fraction. The code of its NaN means zero;
/// the sign bit is ignored.
fn half_ue4m3(code: u8) -> f32 {
    if code == 0x7f {
        return 0.0;
    }
    // As exponent and fraction of f32, the bits are 2^120 times too small; subnormal numbers are, too.
    f32::from_bits(u32::from(code & 0x7f) << 20) * 2f32.powi(119)
}

/// Looks up the low halves of all bytes, then the high halves.
fn look_up<const BYTES: usize, const LEN: usize>(step: f32, qs: &[u8; BYTES], out: &mut [f32; LEN]) {
    const { assert!(LEN == 2 * BYTES, "two values in a byte") };
    for (i, byte) in qs.iter().enumerate() {
        out[i] = step * f32::from(LEVELS[usize::from(byte & 15)]);
        out[i + BYTES] = step * f32::from(LEVELS[usize::from(byte >> 4)]);
    }
}
