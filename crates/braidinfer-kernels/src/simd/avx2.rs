//! AVX2 with FMA and F16C, with and without AVX-VNNI. A vector of 16 lanes is two registers.

#![allow(unsafe_code, reason = "the home of `unsafe`: vector instructions")]

use std::arch::x86_64::*;

use super::avx512::{largest_256, sum_256};
use super::tile_unit::NoUnit;
use super::{LANES, Simd, call_with, instructions};

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

/// Proof that the processor also has AVX-VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2Vnni(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        let found =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

impl Avx2Vnni {
    pub(crate) fn detect() -> Option<Self> {
        Avx2::detect().filter(|_| is_x86_feature_detected!("avxvnni")).map(|_| Self(()))
    }
}

impl From<Avx2Vnni> for Avx2 {
    fn from(Avx2Vnni(()): Avx2Vnni) -> Self {
        Self(())
    }
}

// What the methods below take as given of the arrays that they are passed: two registers are a whole array.
const _: () =
    assert!(size_of::<[f32; LANES]>() == 2 * size_of::<__m256>() && size_of::<[u8; 64]>() == 2 * size_of::<__m256i>());
const _: () =
    assert!(size_of::<[u16; LANES]>() == 2 * size_of::<__m128i>() && size_of::<[u8; 32]>() == 2 * size_of::<__m128i>());
const _: () =
    assert!(size_of::<[u8; LANES]>() == 2 * size_of::<u64>() && size_of::<[u8; 16]>() == size_of::<__m128i>());

/// Applies `$op` to each half, giving a pair of registers.
macro_rules! halves {
    ($op:ident($($arg:ident),*)) => { [$op($($arg[0]),*), $op($($arg[1]),*)] };
}

macro_rules! methods {
    ($dot:item) => {
        type F32 = [__m256; 2];
        type I32 = [__m256i; 2];
        type Unit = NoUnit;

        const PANELS: usize = 1;
        const TILE: usize = 4;

        $dot

        #[inline(always)]
        fn prefetch<T>(self, value: &T) {
            // SAFETY: prefetching reads nothing, and every x86-64 processor has the instruction.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
        }

        instructions! {
            fn splat(self, value: f32) -> [__m256; 2] = [_mm256_set1_ps(value); 2];
            fn load(self, values: &[f32; LANES]) -> [__m256; 2] =
                [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))];
            fn store(self, value: [__m256; 2], to: &mut [f32; LANES]) = {
                _mm256_storeu_ps(to.as_mut_ptr(), value[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), value[1]);
            };
            fn load_f16(self, values: &[u16; LANES]) -> [__m256; 2] = {
                let from: *const __m128i = values.as_ptr().cast();
                [_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))]
            };
            fn load_f16_bytes(self, bytes: &[u8; 32]) -> [__m256; 2] = {
                let from: *const __m128i = bytes.as_ptr().cast();
                [_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))]
            };
            fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] = halves!(_mm256_add_ps(a, b));
            fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] = halves!(_mm256_sub_ps(a, b));
            fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] = halves!(_mm256_mul_ps(a, b));
            fn div(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] = halves!(_mm256_div_ps(a, b));
            fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] =
                halves!(_mm256_fmadd_ps(a, b, c));
            fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] = halves!(_mm256_max_ps(a, b));
            fn min(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] = halves!(_mm256_min_ps(a, b));
            fn select_less(self, x: [__m256; 2], y: [__m256; 2], a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] = [
                _mm256_blendv_ps(b[0], a[0], _mm256_cmp_ps::<_CMP_LT_OQ>(x[0], y[0])),
                _mm256_blendv_ps(b[1], a[1], _mm256_cmp_ps::<_CMP_LT_OQ>(x[1], y[1])),
            ];
            fn round(self, a: [__m256; 2]) -> [__m256i; 2] = halves!(_mm256_cvtps_epi32(a));
            fn bits_of(self, a: [__m256; 2]) -> [__m256i; 2] = halves!(_mm256_castps_si256(a));

            fn splat_i32(self, value: i32) -> [__m256i; 2] = [_mm256_set1_epi32(value); 2];
            fn load_i32(self, bytes: &[u8; 64]) -> [__m256i; 2] = {
                let from: *const __m256i = bytes.as_ptr().cast();
                [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))]
            };
            fn store_i32(self, value: [__m256i; 2], to: &mut [u8; 64]) = {
                let to: *mut __m256i = to.as_mut_ptr().cast();
                _mm256_storeu_si256(to, value[0]);
                _mm256_storeu_si256(to.add(1), value[1]);
            };
            fn widen_u8(self, bytes: &[u8; LANES]) -> [__m256i; 2] = {
                let from = bytes.as_ptr();
                [
                    _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())),
                    _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8).cast())),
                ]
            };
            fn widen_i8(self, bytes: &[u8; LANES]) -> [__m256i; 2] = {
                let from = bytes.as_ptr();
                [
                    _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())),
                    _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast())),
                ]
            };
            fn store_i8(self, value: [__m256i; 2], to: &mut [u8; LANES]) = {
                let mut lanes = [0; LANES];
                _mm256_storeu_si256(lanes.as_mut_ptr().cast(), value[0]);
                _mm256_storeu_si256(lanes.as_mut_ptr().add(8).cast(), value[1]);
                *to = lanes.map(|lane: i32| lane as u8);
            };
            fn add_i32(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] = halves!(_mm256_add_epi32(a, b));
            fn sub_i32(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] = halves!(_mm256_sub_epi32(a, b));
            fn max_i32(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] = halves!(_mm256_max_epi32(a, b));
            fn sum_i32(self, a: [__m256i; 2]) -> i32 = {
                let quarters = _mm256_add_epi32(a[0], a[1]);
                let pairs = _mm_add_epi32(_mm256_castsi256_si128(quarters), _mm256_extracti128_si256::<1>(quarters));
                let pairs = _mm_add_epi32(pairs, _mm_shuffle_epi32::<0b1110>(pairs));
                _mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_shuffle_epi32::<1>(pairs)))
            };
            fn largest_i32(self, a: [__m256i; 2]) -> i32 = {
                let quarters = _mm256_max_epi32(a[0], a[1]);
                let pairs = _mm_max_epi32(_mm256_castsi256_si128(quarters), _mm256_extracti128_si256::<1>(quarters));
                let pairs = _mm_max_epi32(pairs, _mm_shuffle_epi32::<0b1110>(pairs));
                _mm_cvtsi128_si32(_mm_max_epi32(pairs, _mm_shuffle_epi32::<1>(pairs)))
            };
            fn and(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] = halves!(_mm256_and_si256(a, b));
            fn or(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] = halves!(_mm256_or_si256(a, b));
            fn shl<const BY: u32>(self, a: [__m256i; 2]) -> [__m256i; 2] = {
                let by = _mm_cvtsi32_si128(BY as i32);
                [_mm256_sll_epi32(a[0], by), _mm256_sll_epi32(a[1], by)]
            };
            fn shr<const BY: u32>(self, a: [__m256i; 2]) -> [__m256i; 2] = {
                let by = _mm_cvtsi32_si128(BY as i32);
                [_mm256_srl_epi32(a[0], by), _mm256_srl_epi32(a[1], by)]
            };
            fn sar(self, a: [__m256i; 2], by: u32) -> [__m256i; 2] = {
                let by = _mm_cvtsi32_si128(by as i32);
                [_mm256_sra_epi32(a[0], by), _mm256_sra_epi32(a[1], by)]
            };
            fn look_up(self, table: &[u8; 16], a: [__m256i; 2]) -> [__m256i; 2] = {
                let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
                [_mm256_shuffle_epi8(table, a[0]), _mm256_shuffle_epi8(table, a[1])]
            };
            fn to_f32(self, a: [__m256i; 2]) -> [__m256; 2] = halves!(_mm256_cvtepi32_ps(a));
            fn float_of(self, a: [__m256i; 2]) -> [__m256; 2] = halves!(_mm256_castsi256_ps(a));
            fn sum(self, a: [__m256; 2]) -> f32 = sum_256(_mm256_add_ps(a[0], a[1]));
            fn largest(self, a: [__m256; 2]) -> f32 = largest_256(_mm256_max_ps(a[0], a[1]));
        }
    };
}

impl Simd for Avx2 {
    call_with!("avx2,fma,f16c");

    const SIGNED_BYTES: bool = true;

    #[inline(always)]
    fn dot_codes<const BITS: usize>(self, acc: [__m256i; 2], a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        let sums = [self.dot_codes_half::<BITS>(a[0], b[0]), self.dot_codes_half::<BITS>(a[1], b[1])];
        self.add_i32(acc, sums)
    }

    methods! {
        #[inline(always)]
        fn dot_u8_i8(self, acc: [__m256i; 2], a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            [self.dot_half(acc[0], a[0], b[0]), self.dot_half(acc[1], a[1], b[1])]
        }
    }
}

impl Avx2 {
    instructions! {
        /// Sums pairs of 16-bit products. Bytes are widened first, because a sum of two byte products may overflow 16
        /// bits.
        fn dot_half(self, acc: __m256i, a: __m256i, b: __m256i) -> __m256i = {
            let low = _mm256_set1_epi16(0xff);
            // Even bytes in one register, odd bytes in another, each as 16-bit values.
            let even = _mm256_madd_epi16(_mm256_and_si256(a, low), _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)));
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(a), _mm256_srai_epi16::<8>(b));
            _mm256_add_epi32(acc, _mm256_add_epi32(even, odd))
        };
        /// A sum of two products fits in 16 bits if bytes are below 128, or have a sign: its magnitude is at most
        /// 128 * 127 * 2.
        fn dot_codes_half<const BITS: usize>(self, a: __m256i, b: __m256i) -> __m256i = {
            let pairs = if BITS < 8 {
                _mm256_maddubs_epi16(a, b)
            } else {
                let signed = _mm256_xor_si256(a, _mm256_set1_epi8(i8::MIN));
                _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(b, signed))
            };
            _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
        };
    }
}

impl Simd for Avx2Vnni {
    call_with!("avx2,fma,f16c,avxvnni");

    methods! {
        #[inline(always)]
        fn dot_u8_i8(self, acc: [__m256i; 2], a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            [self.dot_half(acc[0], a[0], b[0]), self.dot_half(acc[1], a[1], b[1])]
        }
    }
}

impl Avx2Vnni {
    instructions! {
        fn dot_half(self, acc: __m256i, a: __m256i, b: __m256i) -> __m256i = _mm256_dpbusd_avx_epi32(acc, a, b);
    }
}
