//! NEON, with and without the dot products of bytes that came after it. A vector of 16 lanes is four registers.
//!
//! Inline assembly stands where intrinsics are not stable: conversion from f16, `sdot`, `usdot`, prefetching.
//!
//! With I8MM there are matrix products of bytes (`usmmla`), too, which are not used. They take eight bytes of each row where
//! panels have four, so for every eight columns of a tile ten `zip`s come with 16 products that replace 32 `usdot`, and sums are
//! in an order that has to be undone: by `llvm-mca` 30 cycles instead of 32 for a block of 32 columns.
//! `bfdot` rounds in another way than [`Simd::dot_bf16`].

#![allow(unsafe_code, reason = "the home of `unsafe`: vector instructions")]

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::tile_unit::NoUnit;
use super::{LANES, Simd, call_with, instructions};

/// Proof that the processor has NEON.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

/// Proof that the processor also has dot products of signed bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NeonDotprod(());

/// Proof that the processor also has I8MM: dot products of unsigned with signed bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NeonI8mm(());

impl Neon {
    pub(crate) fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

impl NeonDotprod {
    pub(crate) fn detect() -> Option<Self> {
        Neon::detect().filter(|_| is_aarch64_feature_detected!("dotprod")).map(|_| Self(()))
    }
}

impl NeonI8mm {
    pub(crate) fn detect() -> Option<Self> {
        NeonDotprod::detect().filter(|_| is_aarch64_feature_detected!("i8mm")).map(|_| Self(()))
    }
}

impl From<NeonDotprod> for Neon {
    fn from(NeonDotprod(()): NeonDotprod) -> Self {
        Self(())
    }
}

impl From<NeonI8mm> for Neon {
    fn from(NeonI8mm(()): NeonI8mm) -> Self {
        Self(())
    }
}

type Floats = [float32x4_t; 4];
type Ints = [int32x4_t; 4];

// What the methods below take as given of the arrays that they are passed: four registers are a whole array.
const _: () = assert!(size_of::<[f32; LANES]>() == size_of::<Floats>() && size_of::<[u8; 64]>() == size_of::<Ints>());
const _: () = assert!(
    size_of::<[u16; LANES]>() == 2 * size_of::<uint16x8_t>() && size_of::<[u8; 32]>() == 2 * size_of::<uint16x8_t>()
);
const _: () = assert!(size_of::<[u8; LANES]>() == size_of::<uint8x16_t>());

/// Applies `$op` to each quarter, giving four registers.
macro_rules! quarters {
    ($op:ident($($arg:ident),*)) => {
        [$op($($arg[0]),*), $op($($arg[1]),*), $op($($arg[2]),*), $op($($arg[3]),*)]
    };
}

/// Defines functions of single registers that consist of intrinsics.
macro_rules! registers {
    ($($(#[$attribute:meta])* fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty = $body:expr;)*) => {
        $(
            $(#[$attribute])*
            #[inline]
            #[target_feature(enable = "neon")]
            fn $name($($arg: $type),*) -> $result {
                $body
            }
        )*
    };
}

registers! {
    /// `if a > b { a } else { b }`, where `fmax` would prefer NaN, and 0 to -0.
    fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t = vbslq_f32(vcgtq_f32(a, b), a, b);
    fn smaller(a: float32x4_t, b: float32x4_t) -> float32x4_t = vbslq_f32(vcltq_f32(a, b), a, b);
    fn select_less(x: float32x4_t, y: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t =
        vbslq_f32(vcltq_f32(x, y), a, b);
    fn shift(a: int32x4_t, by: int32x4_t) -> int32x4_t = vshlq_s32(a, by);
    fn shift_logical(a: int32x4_t, by: int32x4_t) -> int32x4_t =
        vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), by));
    fn look_up(table: uint8x16_t, a: int32x4_t) -> int32x4_t =
        vreinterpretq_s32_u8(vqtbl1q_u8(table, vreinterpretq_u8_s32(a)));
    /// Bytes less 128, as signed ones.
    fn less_128(a: int32x4_t) -> int32x4_t =
        vreinterpretq_s32_u8(veorq_u8(vreinterpretq_u8_s32(a), vdupq_n_u8(0x80)));
    /// Each lane 128 times the sum of its signed bytes.
    fn sum_times_128(a: int32x4_t) -> int32x4_t = vshlq_n_s32::<7>(vpaddlq_s16(vpaddlq_s8(vreinterpretq_s8_s32(a))));
}

/// Adds to each lane of `acc` the products of its signed bytes in `a` and `b`, without an instruction for it. A sum of two
/// products fits in 16 bits, because the bytes of `b` are at least -127: its magnitude is at most 128 * 127 * 2.
///
/// In assembly, because the compiler reorders the steps of a tile until its sums no longer fit in registers.
#[inline]
#[target_feature(enable = "neon")]
fn add_products(acc: Ints, a: Ints, b: Ints) -> Ints {
    let [a, b] = [quarters!(vreinterpretq_s8_s32(a)), quarters!(vreinterpretq_s8_s32(b))];
    let first = add_products_of_two([acc[0], acc[1]], [a[0], a[1]], [b[0], b[1]]);
    let second = add_products_of_two([acc[2], acc[3]], [a[2], a[3]], [b[2], b[3]]);
    [first[0], first[1], second[0], second[1]]
}

#[inline]
#[target_feature(enable = "neon")]
fn add_products_of_two([mut acc0, mut acc1]: [int32x4_t; 2], a: [int8x16_t; 2], b: [int8x16_t; 2]) -> [int32x4_t; 2] {
    // SAFETY: every processor with NEON has the instructions, which change the named registers only.
    unsafe {
        asm!(
            "smull {low0:v}.8h, {a0:v}.8b, {b0:v}.8b",
            "smull {low1:v}.8h, {a1:v}.8b, {b1:v}.8b",
            "smull2 {high0:v}.8h, {a0:v}.16b, {b0:v}.16b",
            "smull2 {high1:v}.8h, {a1:v}.16b, {b1:v}.16b",
            "addp {low0:v}.8h, {low0:v}.8h, {high0:v}.8h",
            "addp {low1:v}.8h, {low1:v}.8h, {high1:v}.8h",
            "sadalp {acc0:v}.4s, {low0:v}.8h",
            "sadalp {acc1:v}.4s, {low1:v}.8h",
            acc0 = inout(vreg) acc0,
            acc1 = inout(vreg) acc1,
            a0 = in(vreg) a[0],
            a1 = in(vreg) a[1],
            b0 = in(vreg) b[0],
            b1 = in(vreg) b[1],
            low0 = out(vreg) _,
            low1 = out(vreg) _,
            high0 = out(vreg) _,
            high1 = out(vreg) _,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [acc0, acc1]
}

/// Codes as signed bytes: those of 8 bits less 128.
#[inline]
#[target_feature(enable = "neon")]
fn signed_codes<const BITS: usize>(codes: Ints) -> Ints {
    if BITS < 8 { codes } else { quarters!(less_128(codes)) }
}

/// Four values of f16 in the lower or upper half of a register.
macro_rules! widen_f16 {
    ($name:ident, $instruction:literal, $half:literal) => {
        #[inline]
        #[target_feature(enable = "neon")]
        fn $name(halves: uint16x8_t) -> float32x4_t {
            let wide: float32x4_t;
            // SAFETY: every processor with NEON has the instruction, which changes the named register only.
            unsafe {
                asm!(
                    concat!($instruction, " {wide:v}.4s, {halves:v}.", $half),
                    wide = lateout(vreg) wide,
                    halves = in(vreg) halves,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            wide
        }
    };
}

widen_f16!(widen_f16_low, "fcvtl", "4h");
widen_f16!(widen_f16_high, "fcvtl2", "8h");

/// Defines two functions for an instruction that adds to each lane of `acc` the four products of its bytes in `a`, and of
/// its own bytes in `b`, or of those in word `WORD` of `b`.
macro_rules! dot_instruction {
    ($feature:literal, $instruction:literal, $dot:ident, $dot_word:ident) => {
        #[inline]
        #[target_feature(enable = $feature)]
        fn $dot(mut acc: Ints, a: Ints, b: Ints) -> Ints {
            for quarter in 0..4 {
                // SAFETY: the processor has the instruction, which changes the named register only.
                unsafe {
                    asm!(
                        concat!($instruction, " {acc:v}.4s, {a:v}.16b, {b:v}.16b"),
                        acc = inlateout(vreg) acc[quarter],
                        a = in(vreg) a[quarter],
                        b = in(vreg) b[quarter],
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
            }
            acc
        }

        #[inline]
        #[target_feature(enable = $feature)]
        fn $dot_word<const WORD: usize>(mut acc: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
            // SAFETY: as above.
            unsafe {
                asm!(
                    concat!($instruction, " {acc:v}.4s, {a:v}.16b, {b:v}.4b[{word}]"),
                    acc = inlateout(vreg) acc,
                    a = in(vreg) a,
                    b = in(vreg) b,
                    word = const WORD,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            acc
        }
    };
}

dot_instruction!("neon,dotprod", "sdot", sdot, sdot_word);
dot_instruction!("neon,i8mm", "usdot", usdot, usdot_word);

/// The words of up to four rows in one register.
#[inline]
#[target_feature(enable = "neon")]
fn load_words<const N: usize>(x: &[u32; N]) -> int32x4_t {
    assert!(N <= 4);
    let mut words = [0; 4];
    words[..N].copy_from_slice(x);
    // SAFETY: an array of four words is read.
    vreinterpretq_s32_u32(unsafe { vld1q_u32(words.as_ptr()) })
}

/// Defines [`Simd::dot_tile`] by an instruction that takes one word of a register: all rows of a tile are one load.
macro_rules! dot_tile_by_words {
    ($dot_word:ident) => {
        #[inline(always)]
        fn dot_tile<const P: usize, const N: usize, const BITS: usize>(
            self,
            dots: &mut [[Ints; N]; P],
            codes: [Ints; P],
            x: &[u32; N],
        ) {
            // SAFETY: `self` exists, so the processor has the instructions.
            unsafe {
                let x = load_words(x);
                for panel in 0..P {
                    let codes = if Self::SIGNED_BYTES { signed_codes::<BITS>(codes[panel]) } else { codes[panel] };
                    for quarter in 0..4 {
                        let (dots, codes) = (&mut dots[panel], codes[quarter]);
                        dots[0][quarter] = $dot_word::<0>(dots[0][quarter], codes, x);
                        if N > 1 {
                            dots[1][quarter] = $dot_word::<1>(dots[1][quarter], codes, x);
                        }
                        if N > 2 {
                            dots[2][quarter] = $dot_word::<2>(dots[2][quarter], codes, x);
                            dots[3][quarter] = $dot_word::<3>(dots[3][quarter], codes, x);
                        }
                    }
                }
            }
        }
    };
}

macro_rules! methods {
    ($($dot:item)*) => {
        type F32 = Floats;
        type I32 = Ints;
        type Unit = NoUnit;

        // 16 registers of sums, and as many for all else.
        const PANELS: usize = 1;
        const TILE: usize = 4;

        $($dot)*

        #[inline(always)]
        fn prefetch<T>(self, value: &T) {
            // SAFETY: prefetching reads nothing, and every 64-bit ARM processor has the instruction.
            unsafe {
                asm!("prfm pldl1keep, [{}]", in(reg) std::ptr::from_ref(value), options(readonly, nostack, preserves_flags));
            }
        }

        instructions! {
            fn splat(self, value: f32) -> Floats = [vdupq_n_f32(value); 4];
            fn load(self, values: &[f32; LANES]) -> Floats = {
                let from = values.as_ptr();
                [vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))]
            };
            fn store(self, value: Floats, to: &mut [f32; LANES]) = {
                let to = to.as_mut_ptr();
                vst1q_f32(to, value[0]);
                vst1q_f32(to.add(4), value[1]);
                vst1q_f32(to.add(8), value[2]);
                vst1q_f32(to.add(12), value[3]);
            };
            fn load_f16(self, values: &[u16; LANES]) -> Floats = {
                let halves = [vld1q_u16(values.as_ptr()), vld1q_u16(values.as_ptr().add(8))];
                [widen_f16_low(halves[0]), widen_f16_high(halves[0]), widen_f16_low(halves[1]), widen_f16_high(halves[1])]
            };
            fn load_f16_bytes(self, bytes: &[u8; 32]) -> Floats = {
                let bytes = [vld1q_u8(bytes.as_ptr()), vld1q_u8(bytes.as_ptr().add(16))];
                let halves = [vreinterpretq_u16_u8(bytes[0]), vreinterpretq_u16_u8(bytes[1])];
                [widen_f16_low(halves[0]), widen_f16_high(halves[0]), widen_f16_low(halves[1]), widen_f16_high(halves[1])]
            };
            fn add(self, a: Floats, b: Floats) -> Floats = quarters!(vaddq_f32(a, b));
            fn sub(self, a: Floats, b: Floats) -> Floats = quarters!(vsubq_f32(a, b));
            fn mul(self, a: Floats, b: Floats) -> Floats = quarters!(vmulq_f32(a, b));
            fn div(self, a: Floats, b: Floats) -> Floats = quarters!(vdivq_f32(a, b));
            fn fma(self, a: Floats, b: Floats, c: Floats) -> Floats = quarters!(vfmaq_f32(c, a, b));
            fn max(self, a: Floats, b: Floats) -> Floats = quarters!(larger(a, b));
            fn min(self, a: Floats, b: Floats) -> Floats = quarters!(smaller(a, b));
            fn select_less(self, x: Floats, y: Floats, a: Floats, b: Floats) -> Floats =
                quarters!(select_less(x, y, a, b));
            fn round(self, a: Floats) -> Ints = quarters!(vcvtnq_s32_f32(a));
            fn bits_of(self, a: Floats) -> Ints = quarters!(vreinterpretq_s32_f32(a));

            fn splat_i32(self, value: i32) -> Ints = [vdupq_n_s32(value); 4];
            fn load_i32(self, bytes: &[u8; 64]) -> Ints = {
                let from = bytes.as_ptr();
                let bytes =
                    [vld1q_u8(from), vld1q_u8(from.add(16)), vld1q_u8(from.add(32)), vld1q_u8(from.add(48))];
                quarters!(vreinterpretq_s32_u8(bytes))
            };
            fn store_i32(self, value: Ints, to: &mut [u8; 64]) = {
                let (bytes, to) = (quarters!(vreinterpretq_u8_s32(value)), to.as_mut_ptr());
                vst1q_u8(to, bytes[0]);
                vst1q_u8(to.add(16), bytes[1]);
                vst1q_u8(to.add(32), bytes[2]);
                vst1q_u8(to.add(48), bytes[3]);
            };
            fn widen_u8(self, bytes: &[u8; LANES]) -> Ints = {
                let bytes = vld1q_u8(bytes.as_ptr());
                let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
                let wide =
                    [vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)];
                quarters!(vreinterpretq_s32_u32(wide))
            };
            fn widen_i8(self, bytes: &[u8; LANES]) -> Ints = {
                let bytes = vreinterpretq_s8_u8(vld1q_u8(bytes.as_ptr()));
                let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
                [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)]
            };
            fn store_i8(self, value: Ints, to: &mut [u8; LANES]) = {
                // The even ones of the halves of lanes, then of their bytes.
                let halves = quarters!(vreinterpretq_u16_s32(value));
                let pairs = [vuzp1q_u16(halves[0], halves[1]), vuzp1q_u16(halves[2], halves[3])];
                let bytes = vuzp1q_u8(vreinterpretq_u8_u16(pairs[0]), vreinterpretq_u8_u16(pairs[1]));
                vst1q_u8(to.as_mut_ptr(), bytes);
            };
            fn add_i32(self, a: Ints, b: Ints) -> Ints = quarters!(vaddq_s32(a, b));
            fn sub_i32(self, a: Ints, b: Ints) -> Ints = quarters!(vsubq_s32(a, b));
            fn max_i32(self, a: Ints, b: Ints) -> Ints = quarters!(vmaxq_s32(a, b));
            fn sum_i32(self, a: Ints) -> i32 =
                vaddvq_s32(vaddq_s32(vaddq_s32(a[0], a[1]), vaddq_s32(a[2], a[3])));
            fn largest_i32(self, a: Ints) -> i32 =
                vmaxvq_s32(vmaxq_s32(vmaxq_s32(a[0], a[1]), vmaxq_s32(a[2], a[3])));
            fn and(self, a: Ints, b: Ints) -> Ints = quarters!(vandq_s32(a, b));
            fn or(self, a: Ints, b: Ints) -> Ints = quarters!(vorrq_s32(a, b));
            fn shl<const BY: u32>(self, a: Ints) -> Ints = {
                let by = [vdupq_n_s32(BY as i32); 4];
                quarters!(shift(a, by))
            };
            fn shr<const BY: u32>(self, a: Ints) -> Ints = {
                let by = [vdupq_n_s32(-(BY as i32)); 4];
                quarters!(shift_logical(a, by))
            };
            fn sar(self, a: Ints, by: u32) -> Ints = {
                let by = [vdupq_n_s32(-(by as i32)); 4];
                quarters!(shift(a, by))
            };
            fn look_up(self, table: &[u8; 16], a: Ints) -> Ints = {
                let table = [vld1q_u8(table.as_ptr()); 4];
                quarters!(look_up(table, a))
            };
            fn to_f32(self, a: Ints) -> Floats = quarters!(vcvtq_f32_s32(a));
            fn float_of(self, a: Ints) -> Floats = quarters!(vreinterpretq_f32_s32(a));
            fn sum(self, a: Floats) -> f32 = {
                let quarter = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
                vpadds_f32(vadd_f32(vget_low_f32(quarter), vget_high_f32(quarter)))
            };
            fn largest(self, a: Floats) -> f32 = {
                let quarter = larger(larger(a[0], a[2]), larger(a[1], a[3]));
                let pair = larger(quarter, vextq_f32::<2>(quarter, quarter));
                vgetq_lane_f32::<0>(larger(pair, vdupq_laneq_f32::<1>(pair)))
            };
        }
    };
}

/// [`Simd::dot_u8_i8`] by sums of products of signed bytes: 128 less in each of `a`, and 128 times the sum of `b` more.
macro_rules! dot_shifted {
    ($dot:ident($acc:ident, $a:ident, $b:ident)) => {{
        let (a, corrections) = (quarters!(less_128($a)), quarters!(sum_times_128($b)));
        let sums = $dot($acc, a, $b);
        quarters!(vaddq_s32(sums, corrections))
    }};
}

impl Simd for Neon {
    call_with!("neon");

    const SIGNED_BYTES: bool = true;

    methods! {
        #[inline(always)]
        fn dot_u8_i8(self, acc: Ints, a: Ints, b: Ints) -> Ints {
            // SAFETY: `self` exists, so the processor has the instructions.
            unsafe { dot_shifted!(add_products(acc, a, b)) }
        }

        #[inline(always)]
        fn dot_codes<const BITS: usize>(self, acc: Ints, a: Ints, b: Ints) -> Ints {
            // SAFETY: as above.
            unsafe { add_products(acc, signed_codes::<BITS>(a), b) }
        }
    }
}

impl Simd for NeonDotprod {
    call_with!("neon,dotprod");

    const SIGNED_BYTES: bool = true;

    methods! {
        #[inline(always)]
        fn dot_u8_i8(self, acc: Ints, a: Ints, b: Ints) -> Ints {
            // SAFETY: `self` exists, so the processor has the instructions.
            unsafe { dot_shifted!(sdot(acc, a, b)) }
        }

        #[inline(always)]
        fn dot_codes<const BITS: usize>(self, acc: Ints, a: Ints, b: Ints) -> Ints {
            // SAFETY: as above.
            unsafe { sdot(acc, signed_codes::<BITS>(a), b) }
        }

        dot_tile_by_words!(sdot_word);
    }
}

impl Simd for NeonI8mm {
    call_with!("neon,dotprod,i8mm");

    methods! {
        #[inline(always)]
        fn dot_u8_i8(self, acc: Ints, a: Ints, b: Ints) -> Ints {
            // SAFETY: `self` exists, so the processor has the instructions.
            unsafe { usdot(acc, a, b) }
        }

        dot_tile_by_words!(usdot_word);
    }
}
