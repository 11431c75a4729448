//! Blocks of 32 values with an f16 scale, and in the `_1` types a minimum.
//!
//! Every encoder derives the scale from the extreme values of the block, and its output is byte-identical to that of
//! the `gguf` Python package (`gguf/quants.py`, version 0.19.0).

use half::f16;

/// Values per block.
pub const LEN: usize = 32;

/// Values of 4 bits: `d·(q − 8)`.
pub fn dequantize_q4_0(block: &[u8; 18], out: &mut [f32; LEN]) {
    let [d0, d1, qs @ ..] = block;
    let d = scale([*d0, *d1]);
    for (out, q) in out.iter_mut().zip(nibbles(qs)) {
        *out = d * f32::from(q as i8 - 8);
    }
}

/// Values of 4 bits: `d·q + m`.
pub fn dequantize_q4_1(block: &[u8; 20], out: &mut [f32; LEN]) {
    let [d0, d1, m0, m1, qs @ ..] = block;
    let (d, m) = (scale([*d0, *d1]), scale([*m0, *m1]));
    for (out, q) in out.iter_mut().zip(nibbles(qs)) {
        *out = d * f32::from(q) + m;
    }
}

/// Values of 5 bits: `d·(q − 16)`.
pub fn dequantize_q5_0(block: &[u8; 22], out: &mut [f32; LEN]) {
    let [d0, d1, h0, h1, h2, h3, qs @ ..] = block;
    let d = scale([*d0, *d1]);
    let fifth = fifth_bits([*h0, *h1, *h2, *h3]);
    for ((out, q), high) in out.iter_mut().zip(nibbles(qs)).zip(fifth) {
        *out = d * f32::from((q | high) as i8 - 16);
    }
}

/// Values of 5 bits: `d·q + m`.
pub fn dequantize_q5_1(block: &[u8; 24], out: &mut [f32; LEN]) {
    let [d0, d1, m0, m1, h0, h1, h2, h3, qs @ ..] = block;
    let (d, m) = (scale([*d0, *d1]), scale([*m0, *m1]));
    let fifth = fifth_bits([*h0, *h1, *h2, *h3]);
    for ((out, q), high) in out.iter_mut().zip(nibbles(qs)).zip(fifth) {
        *out = d * f32::from(q | high) + m;
    }
}

/// Values of 8 bits: `q·d`.
pub fn dequantize_q8_0(block: &[u8; 34], out: &mut [f32; LEN]) {
    let [d0, d1, qs @ ..] = block;
    let d = scale([*d0, *d1]);
    for (out, q) in out.iter_mut().zip(qs) {
        *out = f32::from(q.cast_signed()) * d;
    }
}

/// Four bits per value, with the value of largest magnitude at code 0. `None` if the scale exceeds the range of f16.
pub fn quantize_q4_0(values: &[f32; LEN]) -> Option<[u8; 18]> {
    let d = largest(values) / -8.0;
    let q = codes(values, 0.0, d, 8.5, 15);
    Some(packed_q4_0(finite(d)?, &q))
}

/// Four bits per value, from the smallest to the largest value. `None` if a scale exceeds the range of f16.
pub fn quantize_q4_1(values: &[f32; LEN]) -> Option<[u8; 20]> {
    let (min, max) = extremes(values);
    let d = (max - min) / 15.0;
    let q = codes(values, min, d, 0.5, 15);
    Some(packed_q4_1(finite(d)?, finite(min)?, &q))
}

/// Five bits per value, with the value of largest magnitude at code 0. `None` if the scale exceeds the range of f16.
pub fn quantize_q5_0(values: &[f32; LEN]) -> Option<[u8; 22]> {
    let d = largest(values) / -16.0;
    let q = codes(values, 0.0, d, 16.5, 31);
    Some(packed_q5_0(finite(d)?, &q))
}

/// Five bits per value, from the smallest to the largest value. `None` if a scale exceeds the range of f16.
pub fn quantize_q5_1(values: &[f32; LEN]) -> Option<[u8; 24]> {
    let (min, max) = extremes(values);
    let d = (max - min) / 31.0;
    let q = codes(values, min, d, 0.5, 31);
    Some(packed_q5_1(finite(d)?, finite(min)?, &q))
}

/// Eight bits per value, with the largest magnitude at 127, halves rounded away from zero. `None` if the scale exceeds
/// the range of f16.
pub fn quantize_q8_0(values: &[f32; LEN]) -> Option<[u8; 34]> {
    let d = largest(values).abs() / 127.0;
    let inverse = inverse(d);
    let mut block = [0; 34];
    if inverse.is_infinite() {
        return Some(block);
    }
    block[..2].copy_from_slice(&finite(d)?.to_le_bytes());
    for (q, value) in block[2..].iter_mut().zip(values) {
        let scaled = value * inverse;
        let whole = scaled as i32;
        let beyond = scaled - whole as f32;
        *q = (whole + i32::from(beyond >= 0.5) - i32::from(beyond <= -0.5)) as u8;
    }
    Some(block)
}

fn scale(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

/// Rounds to f16, if that is finite.
fn finite(scale: f32) -> Option<f16> {
    Some(f16::from_f32(scale)).filter(|scale| scale.is_finite())
}

/// A block of scale and codes plus 8.
pub fn packed_q4_0(d: f16, q: &[u8; LEN]) -> [u8; 18] {
    let mut block = [0; 18];
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..].copy_from_slice(&packed_nibbles(q));
    block
}

/// A block of scale, minimum and codes.
pub fn packed_q4_1(d: f16, m: f16, q: &[u8; LEN]) -> [u8; 20] {
    let mut block = [0; 20];
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..4].copy_from_slice(&m.to_le_bytes());
    block[4..].copy_from_slice(&packed_nibbles(q));
    block
}

/// A block of scale and codes plus 16.
pub fn packed_q5_0(d: f16, q: &[u8; LEN]) -> [u8; 22] {
    let mut block = [0; 22];
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..6].copy_from_slice(&packed_fifth_bits(q));
    block[6..].copy_from_slice(&packed_nibbles(q));
    block
}

/// A block of scale, minimum and codes.
pub fn packed_q5_1(d: f16, m: f16, q: &[u8; LEN]) -> [u8; 24] {
    let mut block = [0; 24];
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..4].copy_from_slice(&m.to_le_bytes());
    block[4..8].copy_from_slice(&packed_fifth_bits(q));
    block[8..].copy_from_slice(&packed_nibbles(q));
    block
}

/// `1/d`, or 0 for 0.
///
/// Infinite for the smallest subnormal numbers. In that case any code would do, because the scale is 0 in f16, but the
/// reference has code 0 (it converts infinities to integers).
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The first value with the largest magnitude.
fn largest(values: &[f32; LEN]) -> f32 {
    let (first, rest) = values.split_first().expect("blocks have values");
    *rest.iter().fold(first, |largest, value| if value.abs() > largest.abs() { value } else { largest })
}

fn extremes(values: &[f32; LEN]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), value| {
        (if *value < min { *value } else { min }, if *value > max { *value } else { max })
    })
}

/// `(value − min)/d + bias`, truncated and clamped to an integer from 0 to `top`.
fn codes(values: &[f32; LEN], min: f32, d: f32, bias: f32, top: i32) -> [u8; LEN] {
    let inverse = inverse(d);
    if inverse.is_infinite() {
        return [0; LEN];
    }
    values.map(|value| (((value - min) * inverse + bias) as i32).clamp(0, top) as u8)
}

/// The low halves of all bytes, then the high halves.
fn nibbles(qs: &[u8; LEN / 2]) -> [u8; LEN] {
    let mut nibbles = [0; LEN];
    for (i, byte) in qs.iter().enumerate() {
        nibbles[i] = byte & 15;
        nibbles[i + LEN / 2] = byte >> 4;
    }
    nibbles
}

/// Codes of 4 bits, those of the first half in the low halves of the bytes.
pub(crate) fn packed_nibbles(q: &[u8; LEN]) -> [u8; LEN / 2] {
    std::array::from_fn(|i| q[i] & 15 | q[i + LEN / 2] << 4)
}

/// 16 for each set bit, otherwise 0.
fn fifth_bits(high: [u8; LEN / 8]) -> [u8; LEN] {
    const BITS: [u8; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
    let mut fifth = [0; LEN];
    for (eight, byte) in fifth.as_chunks_mut::<8>().0.iter_mut().zip(high) {
        *eight = BITS.map(|bit| if byte & bit == 0 { 0 } else { 16 });
    }
    fifth
}

fn packed_fifth_bits(q: &[u8; LEN]) -> [u8; LEN / 8] {
    let bits = q.iter().rev().fold(0u32, |bits, q| bits << 1 | u32::from(q >> 4 & 1));
    bits.to_le_bytes()
}
