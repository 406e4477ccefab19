//! What the kernels need of an instruction set: [`LANES`] numbers at a time, whatever the width of the
//! registers. A kernel is written once over [`Simd`]; an instruction set is a small file that implements it,
//! and [`Portable`] is plain Rust for machines that have none of them.
//!
//! Every operation is exact or rounds once, as IEEE 754 says, so that all implementations give the same
//! bits. Implementations are values that exist only where the instructions do.

use half::{bf16, f16};

use super::scalar::{Element, LANES, sum_lanes};

/// Columns of a row that one step of a product in 8 or 4 bits takes.
pub const PIECE: usize = crate::quant::PIECE;

/// How many bytes before they are needed weights are asked for: a page, at whose end the processor's own
/// guesses stop. Half and twice as many were about as fast, a quarter and four times were slower.
pub const AHEAD: usize = 4096;

/// One instruction set.
pub trait Simd: Copy {
    /// [`LANES`] numbers of single precision.
    type F: Copy;
    /// [`LANES`] sums of products of 8 bits.
    type I: Copy;
    /// [`PIECE`] weights of 8 bits of each of [`LANES`] rows, made ready for products.
    type W8: Copy;
    /// [`PIECE`] weights of 4 bits of each of [`LANES`] rows, made ready for products.
    type W4: Copy;
    /// Sums of products of 4 bits, for no more than one block.
    type I4: Copy;

    /// Asks for the cache line at an address, which need not be one, to be brought near.
    #[inline(always)]
    fn prefetch<T>(self, _address: *const T) {}

    /// The same number in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// Numbers from memory.
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// The same from half precision.
    fn load_f16(self, from: &[f16; LANES]) -> Self::F;
    /// The same from the upper halves of singles.
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F;
    /// The same from integers of 8 bits.
    fn load_i8(self, from: &[i8; LANES]) -> Self::F;
    /// Numbers to memory.
    fn store(self, x: Self::F, to: &mut [f32; LANES]);
    /// a + b
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The sum of the lanes, in the order of [`sum_lanes`].
    fn sum(self, x: Self::F) -> f32;
    /// Four such sums.
    #[inline(always)]
    fn sum4(self, x: [Self::F; 4]) -> [f32; 4] {
        x.map(|x| self.sum(x))
    }

    /// Weights of 8 bits. (LANES, PIECE)
    fn w8(self, from: &[i8; LANES * PIECE]) -> Self::W8;
    /// The beginning of a sum over activations whose sum is `sum_x`.
    fn begin(self, sum_x: i32) -> Self::I;
    /// Adds the products of each lane's weights with the same activations.
    fn dot8(self, sum: Self::I, w: Self::W8, x: [i8; PIECE]) -> Self::I;
    /// A finished sum; it is exact, being below 2^24.
    fn i_to_f(self, sum: Self::I) -> Self::F;

    /// Weights of 4 bits: the lower halves of the bytes, then the upper ones. (LANES, PIECE)
    fn w4(self, from: &[u8; LANES * PIECE]) -> [Self::W4; 2];
    /// The beginning of a sum.
    fn begin4(self) -> Self::I4;
    /// Adds the products of each lane's weights with the same activations.
    fn dot4(self, sum: Self::I4, w: Self::W4, x: [i8; PIECE]) -> Self::I4;
    /// A finished sum.
    fn i4_to_f(self, sum: Self::I4) -> Self::F;
}

/// Plain Rust, which a compiler turns into whatever the target always has.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

/// The numbers of `f`, lane by lane.
#[inline(always)]
fn lanes<T>(f: impl FnMut(usize) -> T) -> [T; LANES] {
    std::array::from_fn(f)
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type W8 = [i8; LANES * PIECE];
    type W4 = [u8; LANES * PIECE];
    type I4 = [i32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::F {
        from.map(Element::to_f32)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F {
        from.map(Element::to_f32)
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::F {
        from.map(f32::from)
    }

    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        *to = x;
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        lanes(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        lanes(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        lanes(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        sum_lanes(x)
    }

    #[inline(always)]
    fn w8(self, from: &[i8; LANES * PIECE]) -> Self::W8 {
        *from
    }

    #[inline(always)]
    fn begin(self, _sum_x: i32) -> Self::I {
        [0; LANES]
    }

    #[inline(always)]
    fn dot8(self, sum: Self::I, w: Self::W8, x: [i8; PIECE]) -> Self::I {
        lanes(|i| {
            let products = (0..PIECE).map(|j| i32::from(w[i * PIECE + j]) * i32::from(x[j]));
            sum[i] + products.sum::<i32>()
        })
    }

    #[inline(always)]
    fn i_to_f(self, sum: Self::I) -> Self::F {
        sum.map(|sum| sum as f32)
    }

    #[inline(always)]
    fn w4(self, from: &[u8; LANES * PIECE]) -> [Self::W4; 2] {
        [from.map(|byte| byte & 15), from.map(|byte| byte >> 4)]
    }

    #[inline(always)]
    fn begin4(self) -> Self::I4 {
        [0; LANES]
    }

    #[inline(always)]
    fn dot4(self, sum: Self::I4, w: Self::W4, x: [i8; PIECE]) -> Self::I4 {
        lanes(|i| {
            let products = (0..PIECE).map(|j| i32::from(w[i * PIECE + j]) * i32::from(x[j]));
            sum[i] + products.sum::<i32>()
        })
    }

    #[inline(always)]
    fn i4_to_f(self, sum: Self::I4) -> Self::F {
        sum.map(|sum| sum as f32)
    }
}
