//! The reference implementation of every operation, in plain Rust.

use std::array::from_fn;

use half::{bf16, f16};

use super::tile_unit::NoUnit;
use super::{LANES, Simd};

/// No vector instructions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

fn zip<T: Copy, R>(a: [T; LANES], b: [T; LANES], f: impl Fn(T, T) -> R) -> [R; LANES] {
    from_fn(|lane| f(a[lane], b[lane]))
}

fn bytes(value: i32) -> [u8; 4] {
    value.to_le_bytes()
}

/// A bf16 half of `value`.
fn bf16_half(value: i32, upper: bool) -> f32 {
    bf16::from_bits((value >> (16 * i32::from(upper))) as u16).to_f32()
}

// Methods that are a call for every lane anyway, or a loop within one, are functions of their own: less to compile.
impl Simd for Scalar {
    type F32 = [f32; LANES];
    type I32 = [i32; LANES];
    type Unit = NoUnit;

    const PANELS: usize = 1;
    // Larger tiles are not faster, and take longer to compile.
    const TILE: usize = 2;

    fn splat(self, value: f32) -> Self::F32 {
        [value; LANES]
    }
    fn load(self, values: &[f32; LANES]) -> Self::F32 {
        *values
    }
    fn store(self, value: Self::F32, to: &mut [f32; LANES]) {
        *to = value;
    }
    fn prefetch<T>(self, _: &T) {}
    #[inline(never)]
    fn load_f16(self, values: &[u16; LANES]) -> Self::F32 {
        values.map(|bits| f16::from_bits(bits).to_f32())
    }
    #[inline(never)]
    fn load_f16_bytes(self, bytes: &[u8; 32]) -> Self::F32 {
        let (values, _) = bytes.as_chunks::<2>();
        from_fn(|lane| f16::from_le_bytes(values[lane]).to_f32())
    }
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a + b)
    }
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a - b)
    }
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a * b)
    }
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a / b)
    }
    #[inline(never)]
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    fn select_less(self, x: Self::F32, y: Self::F32, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|lane| if x[lane] < y[lane] { a[lane] } else { b[lane] })
    }
    #[inline(never)]
    fn round(self, a: Self::F32) -> Self::I32 {
        a.map(|value| value.round_ties_even() as i32)
    }
    fn bits_of(self, a: Self::F32) -> Self::I32 {
        a.map(|value| value.to_bits() as i32)
    }

    fn splat_i32(self, value: i32) -> Self::I32 {
        [value; LANES]
    }
    fn load_i32(self, bytes: &[u8; 64]) -> Self::I32 {
        let (words, _) = bytes.as_chunks::<4>();
        from_fn(|lane| i32::from_le_bytes(words[lane]))
    }
    fn store_i32(self, value: Self::I32, to: &mut [u8; 64]) {
        let (words, _) = to.as_chunks_mut::<4>();
        for (word, lane) in words.iter_mut().zip(value) {
            *word = bytes(lane);
        }
    }
    fn widen_u8(self, bytes: &[u8; LANES]) -> Self::I32 {
        bytes.map(i32::from)
    }
    fn widen_i8(self, bytes: &[u8; LANES]) -> Self::I32 {
        bytes.map(|byte| i32::from(byte as i8))
    }
    fn store_i8(self, value: Self::I32, to: &mut [u8; LANES]) {
        *to = value.map(|lane| lane as u8);
    }
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        zip(a, b, i32::wrapping_add)
    }
    fn sub_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        zip(a, b, i32::wrapping_sub)
    }
    fn max_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        zip(a, b, i32::max)
    }
    fn sum_i32(self, a: Self::I32) -> i32 {
        a.into_iter().fold(0, i32::wrapping_add)
    }
    fn largest_i32(self, a: Self::I32) -> i32 {
        a.into_iter().fold(i32::MIN, i32::max)
    }
    fn and(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        zip(a, b, |a, b| a & b)
    }
    fn or(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        zip(a, b, |a, b| a | b)
    }
    fn shl<const BY: u32>(self, a: Self::I32) -> Self::I32 {
        a.map(|value| value << BY)
    }
    fn shr<const BY: u32>(self, a: Self::I32) -> Self::I32 {
        a.map(|value| (value as u32 >> BY) as i32)
    }
    fn sar(self, a: Self::I32, by: u32) -> Self::I32 {
        a.map(|value| value >> by)
    }
    #[inline(never)]
    fn look_up(self, table: &[u8; 16], a: Self::I32) -> Self::I32 {
        a.map(|value| i32::from_le_bytes(bytes(value).map(|index| table[usize::from(index)])))
    }
    fn to_f32(self, a: Self::I32) -> Self::F32 {
        a.map(|value| value as f32)
    }
    fn float_of(self, a: Self::I32) -> Self::F32 {
        a.map(|value| f32::from_bits(value as u32))
    }

    #[inline(never)]
    fn dot_u8_i8(self, acc: Self::I32, a: Self::I32, b: Self::I32) -> Self::I32 {
        from_fn(|lane| {
            let (a, b) = (bytes(a[lane]), bytes(b[lane]));
            (0..4).fold(acc[lane], |sum, i| sum.wrapping_add(i32::from(a[i]) * i32::from(b[i] as i8)))
        })
    }
    #[inline(never)]
    fn dot_bf16(self, acc: Self::F32, a: Self::I32, b: Self::I32) -> Self::F32 {
        from_fn(|lane| {
            let add = |sum: f32, upper| bf16_half(a[lane], upper).mul_add(bf16_half(b[lane], upper), sum);
            add(add(acc[lane], true), false)
        })
    }
}
