//! Converting floats from and to bytes.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Decodes little-endian f32.
pub fn read_f32(bytes: &[u8; 4], [out]: &mut [f32; 1]) {
    *out = f32::from_le_bytes(*bytes);
}

/// Decodes little-endian bf16, exactly.
pub fn read_bf16(bytes: &[u8; 2], [out]: &mut [f32; 1]) {
    *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
}

/// Decodes little-endian f16, exactly.
///
/// Uses a buffer, because the conversion instruction converts many values at once.
pub fn read_f16(bytes: &[u8], out: &mut [f32]) {
    const LEN: usize = 64;
    let mut halves = [f16::ZERO; LEN];
    for (bytes, out) in bytes.chunks(2 * LEN).zip(out.chunks_mut(LEN)) {
        for (half, pair) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(*pair);
        }
        halves[..out.len()].convert_to_f32_slice(out);
    }
}

/// Encodes an f32.
pub fn write_f32([value]: &[f32; 1]) -> Option<[u8; 4]> {
    Some(value.to_le_bytes())
}

/// Encodes the nearest f16 (ties to even). `None` if it is not finite.
pub fn write_f16([value]: &[f32; 1]) -> Option<[u8; 2]> {
    let half = f16::from_f32(*value);
    half.is_finite().then(|| half.to_le_bytes())
}

/// Encodes the nearest bf16 (ties to even). `None` if it is not finite.
pub fn write_bf16([value]: &[f32; 1]) -> Option<[u8; 2]> {
    let half = bf16::from_f32(*value);
    half.is_finite().then(|| half.to_le_bytes())
}
