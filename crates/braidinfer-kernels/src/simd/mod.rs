//! The SIMD abstraction: sixteen lanes, over which all kernels are written.
//!
//! Every instruction set does the same IEEE operations on the same lanes in the same order, so that results are bitwise
//! equal; the exceptions are [`Simd::dot_bf16`] and [`tile_unit::BfloatTiles`]. [`Scalar`] is the reference implementation.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;
pub(crate) mod tile_unit;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::{Avx2, Avx2Vnni};
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, Avx512Bf16};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{Neon, NeonDotprod, NeonI8mm};
pub(crate) use scalar::Scalar;
use tile_unit::TileUnit;

/// Lanes per vector, and rows per panel.
pub const LANES: usize = 16;

/// Most panels that a single row of activations is multiplied by at once.
pub(crate) const ROW_PANELS: usize = 4;

/// A part of a kernel that is compiled apart, since the compiler takes far more time for one large function than for several
/// small ones. `run` must be `#[inline(always)]`.
pub(crate) trait Part<S: Simd> {
    fn run(self, simd: S);
}

/// An instruction set that this processor has: values exist only after detection.
///
/// Implementations and everything generic over this trait must be inlined into a function compiled for the
/// instruction set, see [`crate::isa::dispatched`]. Where a branch depends on constants alone, `const { .. }` around the
/// condition keeps the other side from being compiled, inlined and thrown away, which takes most of the time otherwise.
pub(crate) trait Simd: Copy {
    /// 16 values in binary32.
    type F32: Copy;
    /// 16 values of 32 bits.
    type I32: Copy;
    /// What multiplies whole tiles of activations.
    type Unit: TileUnit;

    /// Number of panels multiplied at once.
    const PANELS: usize;
    /// Most rows of activations multiplied at once: `PANELS * TILE` sums must fit in the registers.
    const TILE: usize;
    /// Whether [`Simd::dot_codes`] treats 8-bit codes above 127 as signed.
    const SIGNED_BYTES: bool = false;

    /// Panels that a single row of activations is multiplied by at once, 1 or [`ROW_PANELS`]: each is a stream from memory,
    /// and how many of them a thread reads fastest differs between processors. More than 1 only where [`Simd::PANELS`] is 2.
    #[inline(always)]
    fn panels_of_row(self) -> usize {
        1
    }

    /// Runs a part of a kernel as a function of its own.
    #[inline(always)]
    fn call(self, part: impl Part<Self>) {
        #[inline(never)]
        fn compiled<S: Simd>(simd: S, part: impl Part<S>) {
            part.run(simd);
        }
        compiled(self, part);
    }

    /// The unit that multiplies whole tiles, if the processor has one.
    #[inline(always)]
    fn unit(self) -> Option<Self::Unit> {
        None
    }

    fn splat(self, value: f32) -> Self::F32;
    fn load(self, values: &[f32; LANES]) -> Self::F32;
    fn store(self, value: Self::F32, to: &mut [f32; LANES]);
    /// Prefetches the cache line of a value.
    fn prefetch<T>(self, value: &T);
    fn load_f16(self, values: &[u16; LANES]) -> Self::F32;
    /// Loads 16 values of f16, little-endian.
    fn load_f16_bytes(self, bytes: &[u8; 32]) -> Self::F32;
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `if a > b { a } else { b }`.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if a < b { a } else { b }`.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if x < y { a } else { b }`.
    fn select_less(self, x: Self::F32, y: Self::F32, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Rounds to the nearest integer, ties to even; values must be in the range of `i32`.
    fn round(self, a: Self::F32) -> Self::I32;
    fn bits_of(self, a: Self::F32) -> Self::I32;

    fn splat_i32(self, value: i32) -> Self::I32;
    fn load_i32(self, bytes: &[u8; 64]) -> Self::I32;
    fn store_i32(self, value: Self::I32, to: &mut [u8; 64]);
    /// Zero-extends bytes to lanes.
    fn widen_u8(self, bytes: &[u8; LANES]) -> Self::I32;
    /// Sign-extends bytes to lanes.
    fn widen_i8(self, bytes: &[u8; LANES]) -> Self::I32;
    /// Stores the lowest byte of each lane.
    fn store_i8(self, value: Self::I32, to: &mut [u8; LANES]);
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn sub_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn max_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn and(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn or(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn shl<const BY: u32>(self, a: Self::I32) -> Self::I32;
    /// Logical shift right.
    fn shr<const BY: u32>(self, a: Self::I32) -> Self::I32;
    /// Arithmetic shift right.
    fn sar(self, a: Self::I32, by: u32) -> Self::I32;
    /// The entries of a table that the bytes of `a`, which must be below 16, are the indices of.
    fn look_up(self, table: &[u8; 16], a: Self::I32) -> Self::I32;
    /// Exact for magnitudes below 2^24.
    fn to_f32(self, a: Self::I32) -> Self::F32;
    fn float_of(self, a: Self::I32) -> Self::F32;

    /// Adds to each lane of `acc` the four products of its unsigned bytes in `a` and its signed bytes in `b`, which
    /// must be at least -127.
    fn dot_u8_i8(self, acc: Self::I32, a: Self::I32, b: Self::I32) -> Self::I32;
    /// [`Simd::dot_u8_i8`] for levels of `BITS` bits in `a`.
    #[inline(always)]
    fn dot_codes<const BITS: usize>(self, acc: Self::I32, a: Self::I32, b: Self::I32) -> Self::I32 {
        self.dot_u8_i8(acc, a, b)
    }
    /// [`Simd::dot_codes`] of one vector of codes of each panel with each word of `x`.
    #[inline(always)]
    fn dot_tile<const P: usize, const N: usize, const BITS: usize>(
        self,
        dots: &mut [[Self::I32; N]; P],
        codes: [Self::I32; P],
        x: &[u32; N],
    ) {
        dot_each::<_, P, N, BITS>(self, dots, codes, x);
    }
    /// Adds to each lane of `acc` the products of its two bf16 values in `a` and `b`: the upper ones first, each sum
    /// rounded to nearest even. The only operation that differs between instruction sets: AVX-512 BF16 flushes
    /// denormal inputs and results, below 1.2e-38, to zero.
    #[inline(always)]
    fn dot_bf16(self, acc: Self::F32, a: Self::I32, b: Self::I32) -> Self::F32 {
        // Products of bf16 values are exact in f32, so a fused multiply-add rounds only the sum.
        let upper = self.splat_i32(0xffff_0000_u32 as i32);
        let (a_upper, b_upper) = (self.float_of(self.and(a, upper)), self.float_of(self.and(b, upper)));
        let (a_lower, b_lower) = (self.float_of(self.shl::<16>(a)), self.float_of(self.shl::<16>(b)));
        self.fma(a_lower, b_lower, self.fma(a_upper, b_upper, acc))
    }
    /// Packs two bf16 per lane, `low` in the lower half, rounded to nearest even.
    #[inline(always)]
    fn pair_bf16(self, low: Self::F32, high: Self::F32) -> Self::I32 {
        let round = |value: Self::F32| {
            let bits = self.bits_of(value);
            let odd = self.and(self.shr::<16>(bits), self.splat_i32(1));
            self.add_i32(self.add_i32(bits, odd), self.splat_i32(0x7fff))
        };
        let (low, high) = (round(low), round(high));
        self.or(self.shr::<16>(low), self.and(high, self.splat_i32(0xffff_0000_u32 as i32)))
    }

    /// The sum of all lanes, added in halves: 8 and 8, 4 and 4, 2 and 2, 1 and 1.
    #[inline(always)]
    fn sum(self, a: Self::F32) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The sum of all lanes, wrapping.
    fn sum_i32(self, a: Self::I32) -> i32;
    /// The largest lane.
    fn largest_i32(self, a: Self::I32) -> i32;

    /// The largest lane.
    #[inline(always)]
    fn largest(self, a: Self::F32) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(a, &mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] = if lanes[lane] > lanes[lane + width] { lanes[lane] } else { lanes[lane + width] };
            }
            width /= 2;
        }
        lanes[0]
    }
}

/// Defines [`Simd::call`] for an instruction set with these features.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! call_with {
    ($features:literal) => {
        #[inline(always)]
        fn call(self, part: impl $crate::simd::Part<Self>) {
            #[inline(never)]
            #[target_feature(enable = $features)]
            fn compiled<S: Simd>(simd: S, part: impl $crate::simd::Part<S>) {
                part.run(simd);
            }
            // SAFETY: `self` exists, so the processor has the features.
            unsafe { compiled(self, part) };
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use call_with;

/// Defines methods that consist of one intrinsic each.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! instructions {
    ($($(#[$attribute:meta])* fn $name:ident$(<const $by:ident: $of:ty>)?($self:ident $(, $arg:ident: $type:ty)*) $(-> $result:ty)? = $body:expr;)*) => {
        $(
            $(#[$attribute])*
            #[inline(always)]
            fn $name$(<const $by: $of>)?($self $(, $arg: $type)*) $(-> $result)? {
                // SAFETY: `self` exists, so the processor has the instructions; pointers come from references to
                // arrays of exactly the size that is read or written, and no alignment is asked for.
                unsafe { $body }
            }
        )*
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use instructions;

/// [`Simd::dot_tile`], one product at a time.
#[inline(always)]
fn dot_each<S: Simd, const P: usize, const N: usize, const BITS: usize>(
    simd: S,
    dots: &mut [[S::I32; N]; P],
    codes: [S::I32; P],
    x: &[u32; N],
) {
    for row in 0..N {
        let quad = simd.splat_i32(x[row] as i32);
        for panel in 0..P {
            dots[panel][row] = simd.dot_codes::<BITS>(dots[panel][row], codes[panel], quad);
        }
    }
}
