//! NEON: four registers for [`LANES`] numbers; products of 8 bits by the dot product instructions where
//! those are there.
#![allow(unsafe_code)]

use std::arch::aarch64::*;
use std::arch::asm;

use half::{bf16, f16};

use super::scalar::{Element, LANES};
use super::simd::{PIECE, Simd};

/// Exists only where `neon` does, which is on every 64-bit Arm processor, and `dotprod` for DOT.
#[derive(Clone, Copy, Debug)]
pub struct Neon<const DOT: bool>(());

impl<const DOT: bool> Neon<DOT> {
    /// # Safety
    /// The machine has the features named above, and the caller is compiled for them.
    #[inline(always)]
    pub unsafe fn new() -> Neon<DOT> {
        Neon(())
    }
}

/// Four quarters.
#[inline(always)]
fn each<T>(f: impl FnMut(usize) -> T) -> [T; 4] {
    std::array::from_fn(f)
}

// SAFETY, for all blocks of this file: a `Neon` says that the instructions are there, and every address is
// that of a reference to at least as many bytes as are read or written.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const DOT: bool> Simd for Neon<DOT> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type W8 = [int8x16_t; 4];
    type W4 = [int8x16_t; 4];
    type I4 = [int32x4_t; 4];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        unsafe { [vdupq_n_f32(x); 4] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        unsafe { each(|i| vld1q_f32(from.as_ptr().add(4 * i))) }
    }

    /// In integers, as [`Element::to_f32`]: the conversion instruction has no stable name.
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::F {
        self.load(&from.map(Element::to_f32))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F {
        unsafe {
            each(|i| {
                let four = vld1_u16(from.as_ptr().cast::<u16>().add(4 * i));
                vreinterpretq_f32_u32(vshll_n_u16::<16>(four))
            })
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::F {
        unsafe {
            let bytes = vld1q_s8(from.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ]
            .map(|four| vcvtq_f32_s32(four))
        }
    }

    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        for (i, x) in x.into_iter().enumerate() {
            unsafe { vst1q_f32(to.as_mut_ptr().add(4 * i), x) }
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { each(|i| vaddq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { each(|i| vmulq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { each(|i| vfmaq_f32(c[i], a[i], b[i])) }
    }

    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        unsafe {
            let x = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            let x = vadd_f32(vget_low_f32(x), vget_high_f32(x));
            vget_lane_f32::<0>(x) + vget_lane_f32::<1>(x)
        }
    }

    #[inline(always)]
    fn w8(self, from: &[i8; LANES * PIECE]) -> Self::W8 {
        unsafe { each(|i| vld1q_s8(from.as_ptr().add(16 * i))) }
    }

    #[inline(always)]
    fn begin(self, _sum_x: i32) -> Self::I {
        self.begin4()
    }

    #[inline(always)]
    fn dot8(self, sum: Self::I, w: Self::W8, x: [i8; PIECE]) -> Self::I {
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(i32::from_ne_bytes(x.map(|x| x as u8))));
            each(|i| dot::<DOT>(sum[i], w[i], x))
        }
    }

    #[inline(always)]
    fn i_to_f(self, sum: Self::I) -> Self::F {
        sum.map(|sum| unsafe { vcvtq_f32_s32(sum) })
    }

    #[inline(always)]
    fn w4(self, from: &[u8; LANES * PIECE]) -> [Self::W4; 2] {
        unsafe {
            let w: [uint8x16_t; 4] = each(|i| vld1q_u8(from.as_ptr().add(16 * i)));
            let mask = vdupq_n_u8(15);
            [
                each(|i| vreinterpretq_s8_u8(vandq_u8(w[i], mask))),
                each(|i| vreinterpretq_s8_u8(vshrq_n_u8::<4>(w[i]))),
            ]
        }
    }

    #[inline(always)]
    fn begin4(self) -> Self::I4 {
        unsafe { [vdupq_n_s32(0); 4] }
    }

    #[inline(always)]
    fn dot4(self, sum: Self::I4, w: Self::W4, x: [i8; PIECE]) -> Self::I4 {
        self.dot8(sum, w, x)
    }

    #[inline(always)]
    fn i4_to_f(self, sum: Self::I4) -> Self::F {
        self.i_to_f(sum)
    }
}

/// Adds the products of four bytes each to four sums.
///
/// # Safety
/// `dotprod` is there for DOT.
#[inline(always)]
unsafe fn dot<const DOT: bool>(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    if DOT {
        let mut out = sum;
        // The intrinsic, vdotq_s32, is not stable.
        // SAFETY: the instruction reads and writes registers only.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {out:v}.4s, {w:v}.16b, {x:v}.16b",
                out = inout(vreg) out, w = in(vreg) w, x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        return out;
    }
    // SAFETY: NEON is there.
    unsafe {
        let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
        let high = vmull_high_s8(w, x);
        // Pairs of 16 bits to 32, then pairs of those, four for the four sums.
        vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))
    }
}
