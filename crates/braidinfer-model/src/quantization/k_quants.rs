//! Decoding of super-blocks: 256 values in sub-blocks of 16 or 32, whose small integer scales are multiplied by f16
//! scales of the super-block.
//!
//! The order of operations is that of the `gguf` Python package: super-block scale times sub-block scale, times code,
//! minus the offset; each step is rounded to f32.

use half::f16;

/// Values per super-block.
pub const LEN: usize = 256;

/// `d·scale·q − dmin·min` with 2-bit codes and 4-bit scales and minima for each 16 values.
pub fn dequantize_q2_k(block: &[u8; 84], out: &mut [f32; LEN]) {
    let scales = part::<16>(block, 0);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let qs = part::<32>(block, 16 + 32 * half);
        for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = scales[8 * half + i];
            let (step, offset) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
            let qs = part::<16>(qs, 16 * (i % 2));
            for (out, q) in out.iter_mut().zip(qs) {
                *out = step * f32::from(q >> (i / 2 * 2) & 3) - offset;
            }
        }
    }
}

/// `d·(scale − 32)·q` with codes from −4 to 3 and 6-bit scales for each 16 values.
pub fn dequantize_q3_k(block: &[u8; 110], out: &mut [f32; LEN]) {
    let high = part::<32>(block, 0);
    let scales = q3_k_scales(part(block, 96));
    let d = half_at(block, 108);
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let qs = part::<32>(block, 32 + 32 * half);
        for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let step = d * f32::from(scales[8 * half + i]);
            let bit = 1 << (4 * half + i / 2);
            let (qs, high) = (part::<16>(qs, 16 * (i % 2)), part::<16>(high, 16 * (i % 2)));
            for ((out, q), high) in out.iter_mut().zip(qs).zip(high) {
                let below = if high & bit == 0 { 4 } else { 0 };
                *out = step * f32::from((q >> (i / 2 * 2) & 3) as i8 - below);
            }
        }
    }
}

/// `d·scale·q − dmin·min` with 4-bit codes and 6-bit scales and minima for each 32 values.
pub fn dequantize_q4_k(block: &[u8; 144], out: &mut [f32; LEN]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, mins) = unpacked_scales(part(block, 4));
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (step, offset) = (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
        let qs = part::<32>(block, 16 + 32 * (j / 2));
        for (out, q) in out.iter_mut().zip(qs) {
            *out = step * f32::from(q >> (4 * (j % 2)) & 15) - offset;
        }
    }
}

/// `d·scale·q − dmin·min` with 5-bit codes and 6-bit scales and minima for each 32 values.
pub fn dequantize_q5_k(block: &[u8; 176], out: &mut [f32; LEN]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, mins) = unpacked_scales(part(block, 4));
    let high = part::<32>(block, 16);
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (step, offset) = (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
        let qs = part::<32>(block, 48 + 32 * (j / 2));
        for ((out, q), high) in out.iter_mut().zip(qs).zip(high) {
            *out = step * f32::from(q >> (4 * (j % 2)) & 15 | (high >> j & 1) << 4) - offset;
        }
    }
}

/// `d·scale·q` with codes from −32 to 31 and signed 8-bit scales for each 16 values.
pub fn dequantize_q6_k(block: &[u8; 210], out: &mut [f32; LEN]) {
    let scales = part::<16>(block, 192);
    let d = half_at(block, 208);
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let step = d * f32::from(scales[j].cast_signed());
        let (half, quarter, at) = (j / 8, j / 2 % 4, 16 * (j % 2));
        let low = part::<16>(block, 64 * half + 32 * (quarter % 2) + at);
        let high = part::<16>(block, 128 + 32 * half + at);
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            let q = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
            *out = step * f32::from(q as i8 - 32);
        }
    }
}

/// Unpacks eight 6-bit scales and eight 6-bit minima. The first four of each are in the low bits of eight bytes. The
/// last four have their low halves in four more bytes, and their upper two bits in the high bits of the first eight.
pub fn unpacked_scales(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let [scales, mins, low] = [part::<4>(packed, 0), part::<4>(packed, 4), part::<4>(packed, 8)];
    let unpacked = |first: &[u8; 4], shift: usize| {
        std::array::from_fn(|j| match first.get(j) {
            Some(byte) => byte & 63,
            None => low[j - 4] >> shift & 15 | first[j - 4] >> 6 << 4,
        })
    };
    (unpacked(scales, 0), unpacked(mins, 4))
}

/// The inverse of [`unpacked_scales`]; all values must be below 64.
pub fn packed_scales(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for j in 0..4 {
        packed[j] = scales[j] | scales[j + 4] >> 4 << 6;
        packed[j + 4] = mins[j] | mins[j + 4] >> 4 << 6;
        packed[j + 8] = scales[j + 4] & 15 | mins[j + 4] << 4;
    }
    packed
}

/// Sixteen 6-bit scales minus 32: low halves in eight bytes, upper two bits in four.
fn q3_k_scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = packed[j % 8] >> (4 * (j / 8)) & 15;
        let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// The inverse of [`q3_k_scales`]; all values must be from −32 to 31.
pub fn packed_q3_k_scales(scales: &[i8; 16]) -> [u8; 12] {
    let mut packed = [0; 12];
    for (j, scale) in scales.iter().enumerate() {
        let scale = (scale + 32).cast_unsigned();
        packed[j % 8] |= (scale & 15) << (4 * (j / 8));
        packed[8 + j % 4] |= (scale >> 4) << (2 * (j / 4));
    }
    packed
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes(*part(block, at)).to_f32()
}

/// The `N` bytes at offset `at`, which the callers' blocks have.
fn part<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..].first_chunk().expect("the layout of the block has bytes here")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packed_scales_unpack(scales in prop::array::uniform8(0u8..64), mins in prop::array::uniform8(0u8..64)) {
            prop_assert_eq!(unpacked_scales(&packed_scales(&scales, &mins)), (scales, mins));
        }

        #[test]
        fn packed_scales_of_q3_k_unpack(scales in prop::array::uniform16(-32i8..32)) {
            prop_assert_eq!(q3_k_scales(&packed_q3_k_scales(&scales)), scales);
        }
    }
}
