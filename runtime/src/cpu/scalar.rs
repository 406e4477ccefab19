//! The specification of every CPU kernel: short, safe, one number at a time.
//!
//! Sums run in [`LANES`] lanes: element i goes to lane i % LANES by a fused multiply-add, and the
//! lanes are added in halves at the end. The faster kernels keep this order whatever the width of
//! the machine's registers, so all of them give the same bits.

use half::{bf16, f16};

use super::blocks::{BlockScale, Quantised};
use super::columns::{Columns, store};
use super::products::Rows;
use crate::quant::BLOCK;
use crate::quant::q4::Q4;
use crate::quant::q8::Q8;

/// Lanes of a sum: one AVX-512 register, two of AVX2, four of NEON.
pub const LANES: usize = 16;

/// A weight as it lies in the file.
pub trait Element: Copy + Send + Sync + 'static {
    /// Zero.
    const ZERO: Self;
    /// Its exact value.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    const ZERO: f32 = 0.0;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    const ZERO: bf16 = bf16::ZERO;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Element for f16 {
    const ZERO: f16 = f16::ZERO;

    /// Without branches, so that it can be vectorised: exponent and fraction are moved into place
    /// and rescaled by 2^112, which also normalises subnormals; infinity and NaN keep their exponent.
    #[inline(always)]
    fn to_f32(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
        let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
        f32::from_bits(scaled | special | (bits & 0x8000) << 16)
    }
}

/// Adds the lanes of a sum: upper half to lower half until one is left.
#[inline(always)]
pub fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `Σ w[i] x[i]`, as if both went on with zeros up to a multiple of [`LANES`].
#[inline(always)]
pub fn dot<E: Element>(w: &[E], x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for i in 0..w.len().next_multiple_of(LANES) {
        let w = w.get(i).map_or(0.0, |w| w.to_f32());
        let x = x.get(i).copied().unwrap_or(0.0);
        lanes[i % LANES] = w.mul_add(x, lanes[i % LANES]);
    }
    sum_lanes(lanes)
}

/// `out[t][i] = w[first + i] · x[t] + bias[i]`, added to what is there for `add`. `x`: (T, width)
pub fn matmul<E: Element>(
    out: &mut Columns<'_>,
    add: bool,
    x: &[f32],
    n_rows: usize,
    rows: Rows<'_, E>,
) {
    for (t, x) in x.chunks_exact(rows.width).take(n_rows).enumerate() {
        for (i, w) in rows.w.chunks_exact(rows.width).enumerate() {
            let bias = rows.bias.map(|bias| &bias[i..][..1]);
            store(&mut out.row(t)[i..][..1], &[dot(w, x)], bias, add);
        }
    }
}

/// Activations as integers of 8 bits: each block of 32 by the scale that makes its largest magnitude 127,
/// rounded to nearest even. A block with a number that is not finite has a scale that is none; one of
/// numbers below the smallest normal ones counts as zeros. `q`, `scales`: one for each block; columns
/// beyond the row are zeros.
#[inline(always)]
pub fn quantise(q: &mut [[i8; BLOCK]], scales: &mut [BlockScale], x: &[f32]) {
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    for ((q, scale), x) in q.iter_mut().zip(scales).zip(x.chunks(BLOCK)) {
        let mut block = [0.0; BLOCK];
        block[..x.len()].copy_from_slice(x);
        // Magnitudes are in the order of their bits, NaN last.
        let max = block.iter().fold(0, |max, x| u32::max(max, x.to_bits() & 0x7fff_ffff));
        let max = f32::from_bits(max);
        if !max.is_finite() || max < 127.0 * f32::MIN_POSITIVE {
            *q = [0; BLOCK];
            *scale = BlockScale { scale: if max.is_finite() { 0.0 } else { f32::NAN }, sum: 0 };
            continue;
        }
        let inverse = 127.0 / max;
        let mut sum = 0;
        for (q, x) in q.iter_mut().zip(block) {
            *q = (x * inverse + ROUND).to_bits() as i8;
            sum += i32::from(*q);
        }
        *scale = BlockScale { scale: max / 127.0, sum };
    }
}

/// As [`matmul`] with weights of 8 bits and activations that [`quantise`] has made: `Σ over the blocks of
/// scale(w) scale(x) Σ w x`, in their order.
pub fn matmul_q8(
    out: &mut Columns<'_>,
    add: bool,
    first: usize,
    x: Quantised<'_>,
    n_rows: usize,
    w: Q8<'_>,
    bias: Option<&[f32]>,
) {
    for t in 0..n_rows {
        let (q, scales) = x.row(t);
        for i in 0..out.width() {
            let mut sum = 0.0f32;
            for (b, (q, x)) in q.iter().zip(scales).enumerate() {
                let (w, scale) = w.block(first + i, b);
                let product: i32 =
                    w.iter().zip(q).map(|(w, x)| i32::from(*w) * i32::from(*x)).sum();
                sum = (product as f32).mul_add(scale.to_f32() * x.scale, sum);
            }
            let bias = bias.map(|bias| &bias[i..][..1]);
            store(&mut out.row(t)[i..][..1], &[sum], bias, add);
        }
    }
}

/// The same with weights of 4 bits: `Σ over the blocks of (scale(w) scale(x) Σ w x, then minimum(w)
/// scale(x) Σ x)`.
pub fn matmul_q4(
    out: &mut Columns<'_>,
    add: bool,
    first: usize,
    x: Quantised<'_>,
    n_rows: usize,
    w: Q4<'_>,
    bias: Option<&[f32]>,
) {
    for t in 0..n_rows {
        let (q, scales) = x.row(t);
        for i in 0..out.width() {
            let mut sum = 0.0f32;
            for (b, (q, x)) in q.iter().zip(scales).enumerate() {
                let (w, scale, minimum) = w.block(first + i, b);
                let product: i32 =
                    w.iter().zip(q).map(|(w, x)| i32::from(*w) * i32::from(*x)).sum();
                sum = (product as f32).mul_add(scale.to_f32() * x.scale, sum);
                sum = minimum.to_f32().mul_add(x.scale * x.sum as f32, sum);
            }
            let bias = bias.map(|bias| &bias[i..][..1]);
            store(&mut out.row(t)[i..][..1], &[sum], bias, add);
        }
    }
}

/// (x - mean) / sqrt(variance + eps) * weight + bias for one row; without `subtract_mean` the mean
/// counts as zero (RMSNorm). The variance is taken about the mean in a second pass.
#[inline(always)]
pub fn norm(
    out: &mut [f32],
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    subtract_mean: bool,
) {
    let n = x.len() as f32;
    let mean = if subtract_mean { sum(x, |x| x) / n } else { 0.0 };
    let variance = sum(x, |x| (x - mean) * (x - mean)) / n;
    let scale = 1.0 / (variance + eps).sqrt();
    match bias {
        Some(bias) => {
            for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = ((x - mean) * scale).mul_add(*weight, *bias);
            }
        }
        None => {
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = (x - mean) * scale * weight;
            }
        }
    }
}

/// As [`norm`] without mean and bias, where the numbers lie.
#[inline(always)]
pub fn norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    let variance = sum(x, |x| x * x) / x.len() as f32;
    let scale = 1.0 / (variance + eps).sqrt();
    for (x, weight) in x.iter_mut().zip(weight) {
        *x = *x * scale * weight;
    }
}

/// `Σ f(x[i])`, in lanes.
#[inline(always)]
pub fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += f(*x);
    }
    sum_lanes(lanes)
}

/// e^x to about one unit in the last place, the same bits on every machine (the polynomial of
/// Cephes' expf, S. Moshier). Below -87.3 it stays at e^-87.3, above 88.3 at e^88.3; NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(exponent)
}

/// max(x, 0)
#[inline(always)]
pub fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// max(x, 0)² (arXiv:2109.08668)
#[inline(always)]
pub fn relu2(x: f32) -> f32 {
    relu(x) * relu(x)
}

/// The hyperbolic tangent to two units in the last place, the same bits on every machine (the
/// polynomial and the bound of Cephes' tanhf, S. Moshier). ±1 far out; NaN stays NaN.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let square = x * x;
    let p = -5.704_988_7e-3_f32;
    let p = p.mul_add(square, 2.063_909e-2);
    let p = p.mul_add(square, -5.373_971_6e-2);
    let p = p.mul_add(square, 1.333_144_2e-1);
    let p = p.mul_add(square, -3.333_328e-1);
    let near = (p * square).mul_add(x, x);
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

/// cap tanh(x / cap) (arXiv:2408.00118)
#[inline(always)]
pub fn softcap(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}

/// The error function to 5e-7, the same bits on every machine: a quotient of polynomials for |x| < 4, ±1 beyond
/// (the coefficients of Eigen's `erf` for single precision).
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let p = -2.726_142_3e-10_f32;
    let p = p.mul_add(square, 2.770_681_4e-8);
    let p = p.mul_add(square, -2.101_024e-6);
    let p = p.mul_add(square, -5.692_506_4e-5);
    let p = p.mul_add(square, -7.349_906_3e-4);
    let p = p.mul_add(square, -2.954_6e-3);
    let p = p.mul_add(square, -1.609_603_3e-2);
    let q = -1.456_607_2e-5_f32;
    let q = q.mul_add(square, -2.133_740_6e-4);
    let q = q.mul_add(square, -1.682_827e-3);
    let q = q.mul_add(square, -7.373_329e-3);
    let q = q.mul_add(square, -1.426_473_9e-2);
    x * p / q
}

/// x Φ(x), exact (arXiv:1606.08415)
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// GELU by tanh, as GPT-2 has it: x (1 + tanh(u)) / 2 = x σ(2u) with u = sqrt(2/π) (x + 0.044715 x³)
/// (arXiv:1606.08415, section 2)
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;
    let u2 = TWO_SQRT_2_OVER_PI * (0.044_715 * x * x).mul_add(x, x);
    x / (1.0 + exp(-u2))
}

/// x σ(x) (arXiv:1702.03118)
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Rotates the pairs (i, i + half) of one head. `x`: (2 * half), `rotation`: (half, 2)
#[inline(always)]
pub fn rotate(x: &mut [f32], rotation: &[f32]) {
    let (first, second) = x.split_at_mut(x.len() / 2);
    for ((a, b), cos_sin) in first.iter_mut().zip(second).zip(rotation.chunks_exact(2)) {
        let (cos, sin) = (cos_sin[0], cos_sin[1]);
        (*a, *b) = (a.mul_add(cos, -(*b * sin)), b.mul_add(cos, *a * sin));
    }
}

/// A score with its linear bias; slope 0 leaves the score as it is.
#[inline(always)]
pub fn biased(product: f32, scale: f32, slope: f32, distance: i32) -> f32 {
    (-slope).mul_add(distance as f32, product * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_f64() {
        let mut worst = 0.0f64;
        for i in -87_000..=88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2e-7, "relative error {worst}");
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-1e30) < 2e-38 && exp(1e30).is_finite());
    }

    #[test]
    fn tanh_is_close_to_f64() {
        let mut worst = 0.0f64;
        let far = (-20_000..=20_000).map(|i| i as f32 * 1e-3);
        let near = (-10_000..=10_000).map(|i| i as f32 * 1e-7);
        for x in far.chain(near).filter(|x| *x != 0.0) {
            let exact = f64::from(x).tanh();
            worst = worst.max((f64::from(tanh(x)) - exact).abs() / exact.abs());
            assert_eq!(tanh(-x), -tanh(x), "{x}");
        }
        assert!(worst < 2e-7, "relative error {worst}");
        assert!(tanh(f32::NAN).is_nan() && tanh(0.0) == 0.0);
        assert_eq!([tanh(f32::INFINITY), tanh(f32::MIN)], [1.0, -1.0]);
    }

    #[test]
    fn erf_is_close_to_f64() {
        let mut worst = 0.0f64;
        for i in -60_000..=60_000 {
            let x = i as f32 * 1e-4;
            worst = worst.max((f64::from(erf(x)) - libm::erf(f64::from(x))).abs());
        }
        assert!(worst < 5e-7, "error {worst}");
        assert!(erf(f32::NAN).is_nan() && (erf(f32::INFINITY) - 1.0).abs() < 5e-7);
    }

    /// The formula of the paper by the tanh of the standard library, and values of `gelu_new` in f64 of
    /// transformers 4.57.6.
    #[test]
    fn gelu_tanh_is_close_to_f64() {
        let mut worst = 0.0f64;
        for i in -100_000..=100_000 {
            let x = i as f32 * 1e-4;
            let y = f64::from(x);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (y + 0.044715 * y * y * y);
            let exact = 0.5 * y * (1.0 + u.tanh());
            worst = worst.max((f64::from(gelu_tanh(x)) - exact).abs() / exact.abs().max(1.0));
        }
        assert!(worst < 2e-7, "error {worst}");
        for (x, expected) in [
            (-5.0, -2.2917961972623857e-07),
            (-3.0, -0.0036373920817729943),
            (-0.5, -0.15428599017485606),
            (0.1, 0.05398275190898992),
            (2.5, 2.484915733910001),
        ] {
            let found = f64::from(gelu_tanh(x));
            assert!((found / expected - 1.0).abs() < 4e-6, "{x}: {found} {expected}");
        }
        assert!(gelu_tanh(f32::NAN).is_nan());
        // x³ is beyond single precision here.
        assert_eq!(gelu_tanh(1e20), 1e20);
        assert!(gelu_tanh(-1e20).abs() < 1e-17);
    }

    #[test]
    fn every_half_converts_as_in_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (h, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            let same = |found: f32, expected: f32| {
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan()
            };
            assert!(same(Element::to_f32(h), h.to_f32()), "f16 {bits:#06x}");
            assert!(same(Element::to_f32(b), b.to_f32()), "bf16 {bits:#06x}");
        }
    }
}
