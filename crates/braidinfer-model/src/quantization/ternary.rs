//! `tq1_0` and `tq2_0`: 256 values `d·q` with `q` from −1 to 1 and one f16 scale.
//!
//! Both encoders give every block the scale of its largest magnitude, and their output is byte-identical to that of the
//! `gguf` Python package (`gguf/quants.py`, version 0.19.0).

use half::f16;

use super::fitting::{inverse, largest};

const LEN: usize = 256;
/// Powers of three, from that of the first value in a byte on.
const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// Parts of a `tq1_0` block: offset of its bytes and of its values, number of bytes, and values in each byte. The
/// `i`-th value of byte `j` follows that of byte `j − 1`.
const PARTS: [(usize, usize, usize, usize); 3] = [(0, 0, 32, 5), (32, 160, 16, 5), (48, 240, 4, 4)];

/// Five values in a byte, as digits of base three. A byte is the fraction `Σ digit·3⁻ⁱ` in units of 1/256, rounded up,
/// so that a digit is what a product with three carries over, after the digits before it were carried away.
pub fn dequantize_tq1_0(block: &[u8; 54], out: &mut [f32; LEN]) {
    let d = scale(block[52], block[53]);
    for (at, first, bytes, digits) in PARTS {
        for (i, power) in POWERS.iter().take(digits).enumerate() {
            for j in 0..bytes {
                let rest = block[at + j].wrapping_mul(*power);
                let digit = ((u16::from(rest) * 3) >> 8) as u8;
                out[first + i * bytes + j] = d * f32::from(digit as i8 - 1);
            }
        }
    }
}

/// Four values in a byte, two bits each: those of columns `i`, `32 + i`, `64 + i` and `96 + i` of one half of the
/// block.
pub fn dequantize_tq2_0(block: &[u8; 66], out: &mut [f32; LEN]) {
    let d = scale(block[64], block[65]);
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        for (quarter, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (out, byte) in out.iter_mut().zip(&block[32 * half..]) {
                *out = d * f32::from((byte >> (2 * quarter) & 3) as i8 - 1);
            }
        }
    }
}

/// Five values in a byte. `None` if the scale exceeds the range of f16.
pub fn quantize_tq1_0(values: &[f32; LEN]) -> Option<[u8; 54]> {
    let (d, q) = rounded(values)?;
    let mut block = [0; 54];
    for (at, first, bytes, digits) in PARTS {
        for j in 0..bytes {
            let number = (0..digits).fold(0, |sum, i| sum + u16::from(q[first + i * bytes + j] * POWERS[4 - i]));
            block[at + j] = (number * 256).div_ceil(243) as u8;
        }
    }
    block[52..].copy_from_slice(&d);
    Some(block)
}

/// Two bits per value. `None` if the scale exceeds the range of f16.
pub fn quantize_tq2_0(values: &[f32; LEN]) -> Option<[u8; 66]> {
    let (d, q) = rounded(values)?;
    let mut block = [0; 66];
    for (i, q) in q.iter().enumerate() {
        block[32 * (i / 128) + i % 32] |= q << (i % 128 / 32 * 2);
    }
    block[64..].copy_from_slice(&d);
    Some(block)
}

/// The scale, and the values in units of it plus one: 0, 1 or 2. Halves are rounded away from zero.
fn rounded(values: &[f32; LEN]) -> Option<([u8; 2], [u8; LEN])> {
    let d = largest(values.iter().copied()).abs();
    let half = f16::from_f32(d);
    let per_d = inverse(d);
    // Infinite for the smallest subnormal numbers, whose scale is 0 in f16; the reference has zeros then.
    let per_d = if per_d.is_finite() { per_d } else { 0.0 };
    let q = values.map(|value| {
        let scaled = value * per_d;
        1 + u8::from(scaled >= 0.5) - u8::from(scaled <= -0.5)
    });
    half.is_finite().then(|| (half.to_le_bytes(), q))
}

fn scale(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}
