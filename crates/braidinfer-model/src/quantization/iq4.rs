//! Blocks with 4-bit indices into a table of levels that are denser near zero.

use half::f16;

/// The levels, in units of the scale (llama.cpp's `kvalues_iq4nl`).
const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 values `d·level`.
pub fn dequantize_iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let [d0, d1, qs @ ..] = block;
    look_up(f16::from_le_bytes([*d0, *d1]).to_f32(), qs, out);
}

/// 256 values `d·(scale − 32)·level` with a 6-bit scale per 32 values: its lower 4 bits are packed in four bytes, its
/// upper 2 bits in a 16-bit number.
pub fn dequantize_iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let [d0, d1, high0, high1, l0, l1, l2, l3, qs @ ..] = block;
    let d = f16::from_le_bytes([*d0, *d1]).to_f32();
    let high = u16::from_le_bytes([*high0, *high1]);
    let low = u32::from_le_bytes([*l0, *l1, *l2, *l3]);
    for (j, (out, qs)) in out.as_chunks_mut().0.iter_mut().zip(qs.as_chunks().0).enumerate() {
        let scale = (low >> (4 * j) & 15) as i8 | ((high >> (2 * j) & 3) as i8) << 4;
        look_up(d * f32::from(scale - 32), qs, out);
    }
}

/// Looks up the low halves of all bytes, then the high halves.
fn look_up(step: f32, qs: &[u8; 16], out: &mut [f32; 32]) {
    let values = LEVELS.map(|level| step * f32::from(level));
    for (i, byte) in qs.iter().enumerate() {
        out[i] = values[usize::from(byte & 15)];
        out[i + 16] = values[usize::from(byte >> 4)];
    }
}
