//! AVX2 with FMA and F16C: two registers for [`LANES`] numbers.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::scalar::LANES;
use super::simd::{PIECE, Simd};

/// Exists only where `avx2`, `fma` and `f16c` do.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The machine has `avx2`, `fma` and `f16c`, and the caller is compiled for them.
    #[inline(always)]
    pub unsafe fn new() -> Avx2 {
        Avx2(())
    }
}

/// The sum of 8 lanes, upper half to lower half until one is left.
#[inline(always)]
pub(super) fn sum(x: __m256) -> f32 {
    // SAFETY: called by implementations of `Simd` only, which know that the instructions are there.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }
}

/// Four such sums.
#[inline(always)]
pub(super) fn sum4([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    // SAFETY: as above; the store goes to four numbers.
    unsafe {
        // Lanes i + 4 of a row to its lanes i, two rows side by side.
        let low = _mm256_permute2f128_ps::<0x20>(a, b);
        let ab = _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b));
        let low = _mm256_permute2f128_ps::<0x20>(c, d);
        let cd = _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(c, d));
        // Lanes i + 2 to i, a0 a1 c0 c1 | b0 b1 d0 d1; then 1 to 0.
        let x = _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd);
        let x = _mm256_add_ps(x, _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd));
        let x = _mm256_hadd_ps(x, x);
        let (ac, bd) = (_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let mut sums = [0.0; 4];
        _mm_storeu_ps(sums.as_mut_ptr(), _mm_unpacklo_ps(ac, bd));
        sums
    }
}

/// Four bytes as they lie in memory.
#[inline(always)]
pub(super) fn four([a, b, c, d]: [i8; PIECE]) -> i32 {
    i32::from_ne_bytes([a as u8, b as u8, c as u8, d as u8])
}

// No closures here: one that a compiler does not inline is compiled without the instructions.

// SAFETY, for all blocks of this file: an `Avx2` says that the instructions are there, and every address
// is that of a reference to at least as many bytes as are read or written.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    /// Weights, and their magnitudes.
    type W8 = [[__m256i; 2]; 2];
    type W4 = [__m256i; 2];
    /// Pairs of sums of 16 bits for each lane.
    type I4 = [__m256i; 2];

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        let x = unsafe { _mm256_set1_ps(x) };
        [x, x]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        let from = from.as_ptr();
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::F {
        let from = from.as_ptr().cast::<__m128i>();
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))]
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F {
        let from = from.as_ptr().cast::<__m128i>();
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(1)));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::F {
        let from = from.as_ptr();
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast()));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }

    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        let to = to.as_mut_ptr();
        unsafe {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        sum(unsafe { _mm256_add_ps(x[0], x[1]) })
    }

    #[inline(always)]
    fn sum4(self, x: [Self::F; 4]) -> [f32; 4] {
        let [a, b, c, d] = x;
        unsafe {
            sum4([
                _mm256_add_ps(a[0], a[1]),
                _mm256_add_ps(b[0], b[1]),
                _mm256_add_ps(c[0], c[1]),
                _mm256_add_ps(d[0], d[1]),
            ])
        }
    }

    #[inline(always)]
    fn w8(self, from: &[i8; LANES * PIECE]) -> Self::W8 {
        let from = from.as_ptr().cast::<__m256i>();
        unsafe {
            let w = [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))];
            [w, [_mm256_abs_epi8(w[0]), _mm256_abs_epi8(w[1])]]
        }
    }

    #[inline(always)]
    fn begin(self, _sum_x: i32) -> Self::I {
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    /// Products of an unsigned and a signed byte are added in pairs, so the magnitude of the weight goes
    /// with the activation under the weight's sign: 2 * 128 * 127 is below 2^15.
    #[inline(always)]
    fn dot8(self, sum: Self::I, w: Self::W8, x: [i8; PIECE]) -> Self::I {
        unsafe {
            let (x, one) = (_mm256_set1_epi32(four(x)), _mm256_set1_epi16(1));
            let low = _mm256_maddubs_epi16(w[1][0], _mm256_sign_epi8(x, w[0][0]));
            let high = _mm256_maddubs_epi16(w[1][1], _mm256_sign_epi8(x, w[0][1]));
            [
                _mm256_add_epi32(sum[0], _mm256_madd_epi16(low, one)),
                _mm256_add_epi32(sum[1], _mm256_madd_epi16(high, one)),
            ]
        }
    }

    #[inline(always)]
    fn i_to_f(self, sum: Self::I) -> Self::F {
        unsafe { [_mm256_cvtepi32_ps(sum[0]), _mm256_cvtepi32_ps(sum[1])] }
    }

    #[inline(always)]
    fn w4(self, from: &[u8; LANES * PIECE]) -> [Self::W4; 2] {
        let from = from.as_ptr().cast::<__m256i>();
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let w = [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))];
            let upper = [_mm256_srli_epi16::<4>(w[0]), _mm256_srli_epi16::<4>(w[1])];
            [
                [_mm256_and_si256(w[0], mask), _mm256_and_si256(w[1], mask)],
                [_mm256_and_si256(upper[0], mask), _mm256_and_si256(upper[1], mask)],
            ]
        }
    }

    #[inline(always)]
    fn begin4(self) -> Self::I4 {
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    /// 16 bits are enough for a block: 2 * 15 * 127 * (32 / 4) is below 2^15.
    #[inline(always)]
    fn dot4(self, sum: Self::I4, w: Self::W4, x: [i8; PIECE]) -> Self::I4 {
        unsafe {
            let x = _mm256_set1_epi32(four(x));
            [
                _mm256_add_epi16(sum[0], _mm256_maddubs_epi16(w[0], x)),
                _mm256_add_epi16(sum[1], _mm256_maddubs_epi16(w[1], x)),
            ]
        }
    }

    #[inline(always)]
    fn i4_to_f(self, sum: Self::I4) -> Self::F {
        unsafe {
            let one = _mm256_set1_epi16(1);
            let sum = [_mm256_madd_epi16(sum[0], one), _mm256_madd_epi16(sum[1], one)];
            [_mm256_cvtepi32_ps(sum[0]), _mm256_cvtepi32_ps(sum[1])]
        }
    }
}
