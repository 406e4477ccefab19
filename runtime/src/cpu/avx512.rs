//! AVX-512: one register for [`LANES`] numbers; products of 8 bits by VNNI where that is there.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::avx2;
use super::columns::{Columns, store};
use super::products::Rows;
use super::scalar::LANES;
use super::simd::{PIECE, Simd};

/// Exists only where `avx512f`, `avx512bw`, `avx512dq` and `avx512vl` do, and `avx512vnni` for VNNI.
#[derive(Clone, Copy, Debug)]
pub struct Avx512<const VNNI: bool>(());

impl<const VNNI: bool> Avx512<VNNI> {
    /// # Safety
    /// The machine has the features named above, and the caller is compiled for them.
    #[inline(always)]
    pub unsafe fn new() -> Avx512<VNNI> {
        Avx512(())
    }
}

/// Weights of 8 bits: biased by 128 for VNNI, which multiplies unsigned with signed bytes; else their
/// magnitudes, and which are negative.
#[derive(Clone, Copy)]
pub struct Weights8 {
    bytes: __m512i,
    negative: __mmask64,
}

// SAFETY, for all blocks of this file: an `Avx512` says that the instructions are there, and every address
// is that of a reference to at least as many bytes as are read or written.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const VNNI: bool> Simd for Avx512<VNNI> {
    type F = __m512;
    type I = __m512i;
    type W8 = Weights8;
    type W4 = __m512i;
    /// With VNNI as `I`, else pairs of sums of 16 bits.
    type I4 = __m512i;

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        avx2::sum(halved(x))
    }

    #[inline(always)]
    fn sum4(self, x: [__m512; 4]) -> [f32; 4] {
        let [a, b, c, d] = x;
        avx2::sum4([halved(a), halved(b), halved(c), halved(d)])
    }

    #[inline(always)]
    fn w8(self, from: &[i8; LANES * PIECE]) -> Weights8 {
        unsafe {
            let w = _mm512_loadu_si512(from.as_ptr().cast());
            if VNNI {
                Weights8 { bytes: _mm512_xor_si512(w, _mm512_set1_epi8(-128)), negative: 0 }
            } else {
                Weights8 { bytes: _mm512_abs_epi8(w), negative: _mm512_movepi8_mask(w) }
            }
        }
    }

    /// The bias of the weights is taken off first.
    #[inline(always)]
    fn begin(self, sum_x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(if VNNI { -128 * sum_x } else { 0 }) }
    }

    #[inline(always)]
    fn dot8(self, sum: __m512i, w: Weights8, x: [i8; PIECE]) -> __m512i {
        unsafe {
            let x = _mm512_set1_epi32(avx2::four(x));
            if VNNI {
                return _mm512_dpbusd_epi32(sum, w.bytes, x);
            }
            // As in `avx2.rs`.
            let signed = _mm512_mask_sub_epi8(x, w.negative, _mm512_setzero_si512(), x);
            let pairs = _mm512_maddubs_epi16(w.bytes, signed);
            _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }

    #[inline(always)]
    fn i_to_f(self, sum: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(sum) }
    }

    #[inline(always)]
    fn w4(self, from: &[u8; LANES * PIECE]) -> [__m512i; 2] {
        unsafe {
            let w = _mm512_loadu_si512(from.as_ptr().cast());
            let mask = _mm512_set1_epi8(15);
            let upper = _mm512_srli_epi16::<4>(w);
            [_mm512_and_si512(w, mask), _mm512_and_si512(upper, mask)]
        }
    }

    #[inline(always)]
    fn begin4(self) -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn dot4(self, sum: __m512i, w: __m512i, x: [i8; PIECE]) -> __m512i {
        unsafe {
            let x = _mm512_set1_epi32(avx2::four(x));
            if VNNI {
                _mm512_dpbusd_epi32(sum, w, x)
            } else {
                _mm512_add_epi16(sum, _mm512_maddubs_epi16(w, x))
            }
        }
    }

    #[inline(always)]
    fn i4_to_f(self, sum: __m512i) -> __m512 {
        unsafe {
            if VNNI {
                _mm512_cvtepi32_ps(sum)
            } else {
                _mm512_cvtepi32_ps(_mm512_madd_epi16(sum, _mm512_set1_epi16(1)))
            }
        }
    }
}

/// Lanes i + 8 added to lanes i.
#[inline(always)]
fn halved(x: __m512) -> __m256 {
    // SAFETY: as above.
    unsafe { _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)) }
}

/// [`scalar::matmul`](super::scalar::matmul) with activations rounded to bf16 and two products added at
/// once: faster, and close to it.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn matmul_bf16(
    out: &mut Columns<'_>,
    add: bool,
    x: &[f32],
    n_rows: usize,
    Rows { w, bias, width }: Rows<'_, bf16>,
) {
    let n = w.len() / width;
    let mut first = 0;
    while first < n {
        let r = if first + 4 <= n { 4 } else { 1 };
        let bias = bias.map(|bias| &bias[first..][..r]);
        let w = &w[first * width..][..r * width];
        let mut t = 0;
        while t < n_rows {
            let rows = if t + 4 <= n_rows { 4 } else { 1 };
            let x = &x[t * width..][..rows * width];
            let mut sums = [[0.0; 4]; 4];
            match (r, rows) {
                (4, 4) => dots_bf16::<4, 4>(&mut sums, w, x, width),
                (4, _) => dots_bf16::<4, 1>(&mut sums, w, x, width),
                (_, 4) => dots_bf16::<1, 4>(&mut sums, w, x, width),
                (..) => dots_bf16::<1, 1>(&mut sums, w, x, width),
            }
            for (i, sums) in sums[..rows].iter().enumerate() {
                store(&mut out.row(t + i)[first..][..r], &sums[..r], bias, add);
            }
            t += rows;
        }
        first += r;
    }
}

/// Products of R rows of weights with T rows of activations. `sums`: (T, R)
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn dots_bf16<const R: usize, const T: usize>(
    sums: &mut [[f32; 4]; 4],
    w: &[bf16],
    x: &[f32],
    width: usize,
) {
    const STEP: usize = 2 * LANES;
    let mut lanes = [[_mm512_setzero_ps(); R]; T];
    let mut column = 0;
    while column < width {
        // Masks end the row: what is not loaded is zero.
        let left = width - column;
        let mask = if left >= STEP { u32::MAX } else { (1 << left) - 1 };
        let (low, high) = (mask as u16, (mask >> LANES) as u16);
        let mut rows = [_mm512_setzero_ps(); R].map(cast);
        for r in 0..R {
            let from = w[r * width + column..].as_ptr().cast::<i16>();
            // SAFETY: the mask leaves out what lies behind the row.
            let loaded = unsafe { _mm512_maskz_loadu_epi16(mask, from) };
            rows[r] = cast(_mm512_castsi512_ps(loaded));
        }
        for t in 0..T {
            let from = x[t * width + column..].as_ptr();
            // SAFETY: as above.
            let (a, b) = unsafe {
                let second = from.wrapping_add(LANES);
                (_mm512_maskz_loadu_ps(low, from), _mm512_maskz_loadu_ps(high, second))
            };
            let x = _mm512_cvtne2ps_pbh(b, a);
            for r in 0..R {
                lanes[t][r] = _mm512_dpbf16_ps(lanes[t][r], rows[r], x);
            }
        }
        column += STEP;
    }
    for t in 0..T {
        for r in 0..R {
            sums[t][r] = avx2::sum(halved(lanes[t][r]));
        }
    }
}

#[inline(always)]
fn cast(x: __m512) -> __m512bh {
    // SAFETY: both are 512 bits, and every pattern of them is a value.
    unsafe { std::mem::transmute(x) }
}
