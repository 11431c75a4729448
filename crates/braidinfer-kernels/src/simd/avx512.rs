//! AVX-512: F, BW, DQ, VL and VNNI, with and without BF16.

#![allow(unsafe_code, reason = "the home of `unsafe`: vector instructions")]

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::transmute;

use super::amx::Amx;
use super::{LANES, ROW_PANELS, Simd, call_with, dot_each, instructions};

/// Proof that the processor has what [`Avx512::detect`] asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512 {
    tiles: Option<Amx>,
    panels_of_row: usize,
}

/// Proof that the processor also has AVX-512 BF16. Only products of bf16 are compiled for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Bf16(Avx512);

/// Measured: on a Xeon (Sapphire Rapids class) four streams of a thread read memory 10 to 20 % faster than one; on Zen 4 and
/// 5 one is the fastest.
fn panels_of_row() -> usize {
    let vendor = __cpuid(0);
    let is_intel = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel";
    if is_intel { ROW_PANELS } else { 1 }
}

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then(|| Self { tiles: None, panels_of_row: panels_of_row() })
    }
}

impl Avx512Bf16 {
    pub(crate) fn detect() -> Option<Self> {
        Avx512::detect().filter(|_| is_x86_feature_detected!("avx512bf16")).map(Self)
    }

    /// With AMX, if the processor has it.
    pub(crate) fn with_tiles(self) -> Option<Self> {
        Amx::detect().map(|tiles| Self(Avx512 { tiles: Some(tiles), ..self.0 }))
    }

    pub(crate) fn has_tiles(self) -> bool {
        self.0.tiles.is_some()
    }
}

impl From<Avx512Bf16> for Avx512 {
    fn from(Avx512Bf16(avx512): Avx512Bf16) -> Self {
        avx512
    }
}

/// Defines a function that reduces the lanes of a register: 4 and 4, 2 and 2, 1 and 1, the lower ones first.
macro_rules! reduction {
    ($name:ident, $packed:ident, $single:ident) => {
        #[inline]
        #[target_feature(enable = "avx2")]
        pub(super) fn $name(a: __m256) -> f32 {
            let a = $packed(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = $packed(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32($single(a, _mm_movehdup_ps(a)))
        }
    };
}

reduction!(sum_256, _mm_add_ps, _mm_add_ss);
reduction!(largest_256, _mm_max_ps, _mm_max_ss);

/// Multiplies one vector of codes of two panels by eight words.
///
/// In assembly, because the compiler unrolls and reorders the steps of a block until sixteen sums no longer fit in
/// registers, or loads each word again for every use; either costs a third of the speed.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_pair_by_eight(dots: &mut [[__m512i; 8]; 2], codes: [__m512i; 2], x: &[u32; 8]) {
    // An untyped operand would be printed with another register name in the assembly text.
    let mut _scratch = _mm512_setzero_si512();
    // SAFETY: the instructions read the 32 bytes of `x`, and change the named
    // registers only.
    unsafe {
        asm!(
            "vpbroadcastd {x}, dword ptr [{words} + 0]",
            "vpdpbusd {a0}, {w0}, {x}",
            "vpdpbusd {b0}, {w1}, {x}",
            "vpbroadcastd {x}, dword ptr [{words} + 4]",
            "vpdpbusd {a1}, {w0}, {x}",
            "vpdpbusd {b1}, {w1}, {x}",
            "vpbroadcastd {x}, dword ptr [{words} + 8]",
            "vpdpbusd {a2}, {w0}, {x}",
            "vpdpbusd {b2}, {w1}, {x}",
            "vpbroadcastd {x}, dword ptr [{words} + 12]",
            "vpdpbusd {a3}, {w0}, {x}",
            "vpdpbusd {b3}, {w1}, {x}",
            "vpbroadcastd {x}, dword ptr [{words} + 16]",
            "vpdpbusd {a4}, {w0}, {x}",
            "vpdpbusd {b4}, {w1}, {x}",
            "vpbroadcastd {x}, dword ptr [{words} + 20]",
            "vpdpbusd {a5}, {w0}, {x}",
            "vpdpbusd {b5}, {w1}, {x}",
            "vpbroadcastd {x}, dword ptr [{words} + 24]",
            "vpdpbusd {a6}, {w0}, {x}",
            "vpdpbusd {b6}, {w1}, {x}",
            "vpbroadcastd {x}, dword ptr [{words} + 28]",
            "vpdpbusd {a7}, {w0}, {x}",
            "vpdpbusd {b7}, {w1}, {x}",
            words = in(reg) x,
            w0 = in(zmm_reg) codes[0],
            w1 = in(zmm_reg) codes[1],
            x = out(zmm_reg) _scratch,
            a0 = inout(zmm_reg) dots[0][0],
            a1 = inout(zmm_reg) dots[0][1],
            a2 = inout(zmm_reg) dots[0][2],
            a3 = inout(zmm_reg) dots[0][3],
            a4 = inout(zmm_reg) dots[0][4],
            a5 = inout(zmm_reg) dots[0][5],
            a6 = inout(zmm_reg) dots[0][6],
            a7 = inout(zmm_reg) dots[0][7],
            b0 = inout(zmm_reg) dots[1][0],
            b1 = inout(zmm_reg) dots[1][1],
            b2 = inout(zmm_reg) dots[1][2],
            b3 = inout(zmm_reg) dots[1][3],
            b4 = inout(zmm_reg) dots[1][4],
            b5 = inout(zmm_reg) dots[1][5],
            b6 = inout(zmm_reg) dots[1][6],
            b7 = inout(zmm_reg) dots[1][7],
            options(pure, readonly, nostack, preserves_flags),
        );
    }
}

// What the methods below take as given of the arrays that they are passed: one register of each width is a whole array.
const _: () =
    assert!(size_of::<[f32; LANES]>() == size_of::<__m512>() && size_of::<[u8; 64]>() == size_of::<__m512i>());
const _: () =
    assert!(size_of::<[u16; LANES]>() == size_of::<__m256i>() && size_of::<[u8; 32]>() == size_of::<__m256i>());
const _: () = assert!(size_of::<[u8; LANES]>() == size_of::<__m128i>());

/// What both have in common: all but products of bf16.
macro_rules! methods {
    () => {
        type F32 = __m512;
        type I32 = __m512i;
        type Unit = Amx;

        const PANELS: usize = 2;
        const TILE: usize = 8;

        #[inline(always)]
        fn panels_of_row(self) -> usize {
            Avx512::from(self).panels_of_row
        }

        #[inline(always)]
        fn unit(self) -> Option<Amx> {
            Avx512::from(self).tiles
        }

        #[inline(always)]
        fn prefetch<T>(self, value: &T) {
            // SAFETY: prefetching reads nothing, and every x86-64 processor has the instruction.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
        }

        #[inline(always)]
        fn dot_tile<const P: usize, const N: usize, const BITS: usize>(
            self,
            dots: &mut [[__m512i; N]; P],
            codes: [__m512i; P],
            x: &[u32; N],
        ) {
            if P == 2 && N == 8 {
                debug_assert_eq!(size_of_val(dots), size_of::<[[__m512i; 8]; 2]>());
                debug_assert_eq!(size_of_val(x), size_of::<[u32; 8]>());
                // SAFETY: the types are the same, and the processor has the instructions.
                unsafe {
                    let dots = &mut *std::ptr::from_mut(dots).cast::<[[__m512i; 8]; 2]>();
                    let x = &*std::ptr::from_ref(x).cast::<[u32; 8]>();
                    dot_pair_by_eight(dots, [codes[0], codes[P - 1]], x);
                }
            } else {
                dot_each::<_, P, N, BITS>(self, dots, codes, x);
            }
        }

        instructions! {
            fn splat(self, value: f32) -> __m512 = _mm512_set1_ps(value);
            fn load(self, values: &[f32; LANES]) -> __m512 = _mm512_loadu_ps(values.as_ptr());
            fn store(self, value: __m512, to: &mut [f32; LANES]) = _mm512_storeu_ps(to.as_mut_ptr(), value);
            fn load_f16(self, values: &[u16; LANES]) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast()));
            fn load_f16_bytes(self, bytes: &[u8; 32]) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast()));
            fn add(self, a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
            fn sub(self, a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
            fn mul(self, a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
            fn div(self, a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
            fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
            fn max(self, a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
            fn min(self, a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
            fn select_less(self, x: __m512, y: __m512, a: __m512, b: __m512) -> __m512 =
                _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, y), b, a);
            fn round(self, a: __m512) -> __m512i = _mm512_cvtps_epi32(a);
            fn bits_of(self, a: __m512) -> __m512i = _mm512_castps_si512(a);

            fn splat_i32(self, value: i32) -> __m512i = _mm512_set1_epi32(value);
            fn load_i32(self, bytes: &[u8; 64]) -> __m512i = _mm512_loadu_si512(bytes.as_ptr().cast());
            fn store_i32(self, value: __m512i, to: &mut [u8; 64]) = _mm512_storeu_si512(to.as_mut_ptr().cast(), value);
            fn widen_u8(self, bytes: &[u8; LANES]) -> __m512i = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            fn widen_i8(self, bytes: &[u8; LANES]) -> __m512i = _mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            fn store_i8(self, value: __m512i, to: &mut [u8; LANES]) =
                _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(value));
            fn add_i32(self, a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
            fn sub_i32(self, a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
            fn max_i32(self, a: __m512i, b: __m512i) -> __m512i = _mm512_max_epi32(a, b);
            fn sum_i32(self, a: __m512i) -> i32 = _mm512_reduce_add_epi32(a);
            fn largest_i32(self, a: __m512i) -> i32 = _mm512_reduce_max_epi32(a);
            fn and(self, a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
            fn or(self, a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
            fn shl<const BY: u32>(self, a: __m512i) -> __m512i = _mm512_slli_epi32::<BY>(a);
            fn shr<const BY: u32>(self, a: __m512i) -> __m512i = _mm512_srli_epi32::<BY>(a);
            fn sar(self, a: __m512i, by: u32) -> __m512i = _mm512_sra_epi32(a, _mm_cvtsi32_si128(by as i32));
            fn look_up(self, table: &[u8; 16], a: __m512i) -> __m512i =
                _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), a);
            fn to_f32(self, a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
            fn float_of(self, a: __m512i) -> __m512 = _mm512_castsi512_ps(a);

            fn sum(self, a: __m512) -> f32 =
                sum_256(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)));
            fn largest(self, a: __m512) -> f32 =
                largest_256(_mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)));

            fn dot_u8_i8(self, acc: __m512i, a: __m512i, b: __m512i) -> __m512i = _mm512_dpbusd_epi32(acc, a, b);
        }
    };
}

impl Simd for Avx512 {
    call_with!("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c");

    methods!();
}

impl Simd for Avx512Bf16 {
    call_with!("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c");

    methods!();

    #[inline(always)]
    fn dot_bf16(self, acc: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: `self` exists, so the processor has the instruction; the types are all of 512 bits.
        unsafe { _mm512_dpbf16_ps(acc, transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)) }
    }
}
