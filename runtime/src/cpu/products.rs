//! Products with weights of f32, f16 and bf16, row by row as they lie in the file.
//!
//! Every number of the result is a sum in [`LANES`] lanes, as the specification says; what is done side by
//! side are the sums of several rows, for as many rows of activations as there are.

use half::{bf16, f16};

use super::columns::{Columns, store};
use super::scalar::{Element, LANES};
use super::simd::{AHEAD, Simd};

/// A weight that an instruction set can load.
pub trait Weight: Element {
    /// Loads [`LANES`] of them.
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F;
    /// As f32 where they lie, if that is what they are.
    fn as_f32(weights: &[Self]) -> Option<&[f32]>;
}

impl Weight for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32; LANES]) -> S::F {
        s.load(from)
    }

    #[inline(always)]
    fn as_f32(weights: &[f32]) -> Option<&[f32]> {
        Some(weights)
    }
}

impl Weight for f16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f16; LANES]) -> S::F {
        s.load_f16(from)
    }

    #[inline(always)]
    fn as_f32(_weights: &[f16]) -> Option<&[f32]> {
        None
    }
}

impl Weight for bf16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[bf16; LANES]) -> S::F {
        s.load_bf16(from)
    }

    #[inline(always)]
    fn as_f32(_weights: &[bf16]) -> Option<&[f32]> {
        None
    }
}

/// A linear map of the rows of a matrix that one thread takes. The result goes to columns of the same
/// numbers.
#[derive(Clone, Copy)]
pub struct Rows<'a, E> {
    /// The rows. (n, width)
    pub w: &'a [E],
    /// One number for each row.
    pub bias: Option<&'a [f32]>,
    /// Columns of the matrix.
    pub width: usize,
}

/// Rows of weights that are brought to f32 at once, where many rows of activations need them.
pub const PANEL: usize = 16;
/// Numbers of activations that stay in the first cache beside the weights.
const RESIDENT: usize = 4096;

/// `out[t] = w · x[t] + bias`, for one row of activations.
#[inline(always)]
pub fn one<S: Simd, E: Weight>(
    s: S,
    out: &mut Columns<'_>,
    add: bool,
    x: &[f32],
    rows: Rows<'_, E>,
) {
    let Rows { w, bias, width } = rows;
    let n = w.len() / width;
    let out = out.row(0);
    let row = |i: usize| &w[i * width..][..width];
    let mut first = 0;
    while first + 4 <= n {
        let lanes = dots_ahead(s, [row(first), row(first + 1), row(first + 2), row(first + 3)], x);
        store(&mut out[first..][..4], &s.sum4(lanes), bias.map(|b| &b[first..][..4]), add);
        first += 4;
    }
    while first < n {
        let [[lanes]] = dots(s, [row(first)], [x]);
        store(&mut out[first..][..1], &[s.sum(lanes)], bias.map(|b| &b[first..][..1]), add);
        first += 1;
    }
}

/// The same for `n_rows` rows, in blocks of R rows of weights by T of activations. `x`: (n_rows, width);
/// `panel` holds [`PANEL`] rows.
#[inline(always)]
pub fn many<S: Simd, E: Weight, const R: usize, const T: usize>(
    s: S,
    out: &mut Columns<'_>,
    add: bool,
    x: &[f32],
    n_rows: usize,
    rows: Rows<'_, E>,
    panel: &mut [f32],
) {
    let Rows { w, bias, width } = rows;
    let n = w.len() / width;
    let step = (RESIDENT / width).clamp(T, 8 * T) / T * T;
    for first in (0..n).step_by(PANEL) {
        let n = PANEL.min(n - first);
        let w = &w[first * width..][..n * width];
        // Each weight is widened once, not once for each block of activations.
        let w = match E::as_f32(w) {
            Some(w) => w,
            None => {
                widen(s, &mut panel[..n * width], w);
                &panel[..n * width]
            }
        };
        let bias = bias.map(|bias| &bias[first..][..n]);
        let mut t = 0;
        while t < n_rows {
            let end = n_rows.min(t + step);
            let mut r = 0;
            while r + R <= n {
                strip::<S, R, T>(s, out, add, x, w, bias, width, t..end, (first, r));
                r += R;
            }
            while r < n {
                strip::<S, 1, T>(s, out, add, x, w, bias, width, t..end, (first, r));
                r += 1;
            }
            t = end;
        }
    }
}

/// R rows of weights, from row `r` of a panel that begins at column `first` of the result, by some rows of
/// activations.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn strip<S: Simd, const R: usize, const T: usize>(
    s: S,
    out: &mut Columns<'_>,
    add: bool,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    width: usize,
    rows: std::ops::Range<usize>,
    (first, r): (usize, usize),
) {
    let w: [&[f32]; R] = std::array::from_fn(|i| &w[(r + i) * width..][..width]);
    let bias = bias.map(|bias| &bias[r..][..R]);
    let mut t = rows.start;
    while t + T <= rows.end {
        let x: [&[f32]; T] = std::array::from_fn(|i| &x[(t + i) * width..][..width]);
        let lanes = dots(s, w, x);
        let sums = sums(s, lanes);
        for (i, sums) in sums.iter().enumerate() {
            store(&mut out.row(t + i)[first + r..][..R], sums, bias, add);
        }
        t += T;
    }
    while t < rows.end {
        let [sums] = sums(s, dots(s, w, [&x[t * width..][..width]]));
        store(&mut out.row(t)[first + r..][..R], &sums, bias, add);
        t += 1;
    }
}

/// The sums of the lanes, four at a time.
#[inline(always)]
fn sums<S: Simd, const R: usize, const T: usize>(s: S, lanes: [[S::F; R]; T]) -> [[f32; R]; T] {
    let mut sums = [[0.0; R]; T];
    let mut i = 0;
    while i + 4 <= R * T {
        let of = |i: usize| lanes[i / R][i % R];
        let four = s.sum4([of(i), of(i + 1), of(i + 2), of(i + 3)]);
        for (j, sum) in four.into_iter().enumerate() {
            sums[(i + j) / R][(i + j) % R] = sum;
        }
        i += 4;
    }
    while i < R * T {
        sums[i / R][i % R] = s.sum(lanes[i / R][i % R]);
        i += 1;
    }
    sums
}

// No closures around instructions: one that a compiler does not inline is compiled without them.

/// Products of R rows of weights with T rows of activations, all of one length, before their lanes are
/// added. Result: (T, R)
#[inline(always)]
pub fn dots<S: Simd, E: Weight, const R: usize, const T: usize>(
    s: S,
    w: [&[E]; R],
    x: [&[f32]; T],
) -> [[S::F; R]; T] {
    let n = w[0].len() / LANES;
    let (w, w_rest) = split(w.map(|w| w.as_chunks::<LANES>()), n);
    let (x, x_rest) = split(x.map(|x| x.as_chunks::<LANES>()), n);
    let mut lanes = [[s.splat(0.0); R]; T];
    for i in 0..n {
        let mut wide = [s.splat(0.0); R];
        for r in 0..R {
            wide[r] = E::load(s, &w[r][i]);
        }
        for t in 0..T {
            let x = s.load(&x[t][i]);
            for r in 0..R {
                lanes[t][r] = s.mul_add(wide[r], x, lanes[t][r]);
            }
        }
    }
    if !w_rest[0].is_empty() {
        for t in 0..T {
            let x = s.load(&padded(x_rest[t]));
            for r in 0..R {
                lanes[t][r] = s.mul_add(E::load(s, &padded(w_rest[r])), x, lanes[t][r]);
            }
        }
    }
    lanes
}

/// The same for four rows that lie together and one of activations. It asks for what lies [`AHEAD`] of the
/// next four rows in the order in which it lies, which the processor would not guess from reading four places
/// at once.
#[inline(always)]
fn dots_ahead<S: Simd, E: Weight>(s: S, w: [&[E]; 4], x: &[f32]) -> [S::F; 4] {
    let n = x.len() / LANES;
    let next = w[0].as_ptr().wrapping_add(4 * w[0].len()).wrapping_byte_add(AHEAD);
    let next = next.cast::<[E; LANES]>();
    let (w, w_rest) = split(w.map(|w| w.as_chunks::<LANES>()), n);
    let (x, x_rest) = x.as_chunks::<LANES>();
    let x = &x[..n];
    let mut lanes = [s.splat(0.0); 4];
    for i in 0..n {
        let x = s.load(&x[i]);
        for r in 0..4 {
            s.prefetch(next.wrapping_add(4 * i + r));
            lanes[r] = s.mul_add(E::load(s, &w[r][i]), x, lanes[r]);
        }
    }
    if !x_rest.is_empty() {
        let x = s.load(&padded(x_rest));
        for r in 0..4 {
            lanes[r] = s.mul_add(E::load(s, &padded(w_rest[r])), x, lanes[r]);
        }
    }
    lanes
}

/// The whole pieces of some rows, of which there are `n` in each, and what is left.
#[inline(always)]
fn split<'a, E, const N: usize>(
    rows: [(&'a [[E; LANES]], &'a [E]); N],
    n: usize,
) -> ([&'a [[E; LANES]]; N], [&'a [E]; N]) {
    (rows.map(|(whole, _)| &whole[..n]), rows.map(|(_, rest)| rest))
}

/// What is left of a row, with zeros up to a whole piece.
#[inline(always)]
fn padded<E: Element>(rest: &[E]) -> [E; LANES] {
    let mut whole = [E::ZERO; LANES];
    whole[..rest.len()].copy_from_slice(rest);
    whole
}

#[inline(always)]
fn widen<S: Simd, E: Weight>(s: S, out: &mut [f32], from: &[E]) {
    let (out, out_rest) = out.as_chunks_mut::<LANES>();
    let (from, from_rest) = from.as_chunks::<LANES>();
    for (out, from) in out.iter_mut().zip(from) {
        s.store(E::load(s, from), out);
    }
    for (out, from) in out_rest.iter_mut().zip(from_rest) {
        *out = from.to_f32();
    }
}
