//! Products with weights in blocks of 8 and 4 bits.
//!
//! Activations are brought to 8 bits too, in blocks of the same columns, so that a block's product is a sum
//! of integers and exact; only the sum of the scaled blocks rounds, in the order of the blocks. All paths
//! therefore give the same bits. A lane is a row: no sum crosses a vector.

use super::columns::{Columns, store};
use super::scalar::LANES;
use super::simd::{AHEAD, PIECE, Simd};
use crate::quant::q4::{self, Q4};
use crate::quant::q8::{self, Q8};
use crate::quant::{BLOCK, ROWS};

const _: () = assert!(ROWS == LANES);
const PIECES: usize = BLOCK / PIECE;

/// Rows of activations in blocks of 8 bits; see [`scalar::quantise`](super::scalar::quantise).
#[derive(Clone, Copy)]
pub struct Quantised<'a> {
    /// (rows, blocks, BLOCK)
    pub q: &'a [[i8; BLOCK]],
    /// Scale and sum of each block. (rows, blocks)
    pub scales: &'a [BlockScale],
    /// Blocks of a row.
    pub blocks: usize,
}

/// What belongs to a block of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BlockScale {
    /// x = scale * q
    pub scale: f32,
    /// Σ q
    pub sum: i32,
}

impl<'a> Quantised<'a> {
    /// The blocks of one row.
    #[inline(always)]
    pub fn row(self, t: usize) -> (&'a [[i8; BLOCK]], &'a [BlockScale]) {
        let range = t * self.blocks..(t + 1) * self.blocks;
        (&self.q[range.clone()], &self.scales[range])
    }
}

/// Asks for what lies [`AHEAD`] of a block, as many bytes as the block has.
#[inline(always)]
fn ask_ahead<S: Simd, T>(s: S, block: &T) {
    let from = std::ptr::from_ref(block).cast::<u8>();
    for line in (0..size_of::<T>()).step_by(64) {
        s.prefetch(from.wrapping_add(AHEAD + line));
    }
}

/// A matrix in blocks.
pub trait Blocks: Copy {
    /// G groups of rows from `group` on by T rows of activations. Result: (T, G)
    fn dots<S: Simd, const G: usize, const T: usize>(
        self,
        s: S,
        group: usize,
        x: [(&[[i8; BLOCK]], &[BlockScale]); T],
    ) -> [[S::F; G]; T];
}

impl Blocks for Q8<'_> {
    #[inline(always)]
    fn dots<S: Simd, const G: usize, const T: usize>(
        self,
        s: S,
        group: usize,
        x: [(&[[i8; BLOCK]], &[BlockScale]); T],
    ) -> [[S::F; G]; T] {
        let blocks = x[0].0.len();
        // Unrolled, a block of many sums would run out of registers.
        let pieces = if G * T > 2 { std::hint::black_box(PIECES) } else { PIECES };
        let x = x.map(|(q, scales)| (&q[..blocks], &scales[..blocks]));
        let (q, _) = self.q.as_chunks::<{ q8::BYTES }>();
        let (scales, _) = self.scales.as_chunks::<LANES>();
        let q: [&[[i8; q8::BYTES]]; G] =
            std::array::from_fn(|g| &q[(group + g) * blocks..][..blocks]);
        let scales: [&[_]; G] = std::array::from_fn(|g| &scales[(group + g) * blocks..][..blocks]);
        let mut lanes = [[s.splat(0.0); G]; T];
        for b in 0..blocks {
            if T == 1 {
                for q in &q {
                    ask_ahead(s, &q[b]);
                }
            }
            let mut sums = [[s.begin(0); G]; T];
            for t in 0..T {
                sums[t] = [s.begin(x[t].1[b].sum); G];
            }
            for p in 0..pieces {
                for g in 0..G {
                    let w = s.w8(&q[g][b].as_chunks().0[p]);
                    for t in 0..T {
                        sums[t][g] = s.dot8(sums[t][g], w, x[t].0[b].as_chunks().0[p]);
                    }
                }
            }
            for g in 0..G {
                let scale = s.load_f16(&scales[g][b]);
                for t in 0..T {
                    let scale = s.mul(scale, s.splat(x[t].1[b].scale));
                    lanes[t][g] = s.mul_add(s.i_to_f(sums[t][g]), scale, lanes[t][g]);
                }
            }
        }
        lanes
    }
}

impl Blocks for Q4<'_> {
    #[inline(always)]
    fn dots<S: Simd, const G: usize, const T: usize>(
        self,
        s: S,
        group: usize,
        x: [(&[[i8; BLOCK]], &[BlockScale]); T],
    ) -> [[S::F; G]; T] {
        let blocks = x[0].0.len();
        // Unrolled, a block of many sums would run out of registers.
        let pieces = if G * T > 2 { std::hint::black_box(PIECES) } else { PIECES };
        let x = x.map(|(q, scales)| (&q[..blocks], &scales[..blocks]));
        let (q, _) = self.q.as_chunks::<{ q4::BYTES }>();
        let (scales, _) = self.scales.as_chunks::<LANES>();
        let q: [&[[u8; q4::BYTES]]; G] =
            std::array::from_fn(|g| &q[(group + g) * blocks..][..blocks]);
        let scales: [&[_]; G] =
            std::array::from_fn(|g| &scales[(group + g) * blocks * 2..][..blocks * 2]);
        let mut lanes = [[s.splat(0.0); G]; T];
        for b in 0..blocks {
            if T == 1 {
                for q in &q {
                    ask_ahead(s, &q[b]);
                }
            }
            let mut sums = [[s.begin4(); G]; T];
            for p in 0..pieces / 2 {
                for g in 0..G {
                    let w = s.w4(&q[g][b].as_chunks().0[p]);
                    for t in 0..T {
                        let x = x[t].0[b].as_chunks().0;
                        sums[t][g] = s.dot4(sums[t][g], w[0], x[2 * p]);
                        sums[t][g] = s.dot4(sums[t][g], w[1], x[2 * p + 1]);
                    }
                }
            }
            for g in 0..G {
                let scale = s.load_f16(&scales[g][2 * b]);
                let minimum = s.load_f16(&scales[g][2 * b + 1]);
                for t in 0..T {
                    let BlockScale { scale: x, sum } = x[t].1[b];
                    let product = s.mul(scale, s.splat(x));
                    let with_scale = s.mul_add(s.i4_to_f(sums[t][g]), product, lanes[t][g]);
                    lanes[t][g] = s.mul_add(minimum, s.splat(x * sum as f32), with_scale);
                }
            }
        }
        lanes
    }
}

/// `out[t] = w · x[t] + bias` for the rows of weights from `first` on, a multiple of [`ROWS`], by `n_rows`
/// rows of activations: G groups of rows at once where there is one row of activations, else T of those.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub fn matmul<S: Simd, W: Blocks, const G: usize, const T: usize>(
    s: S,
    out: &mut Columns<'_>,
    add: bool,
    first: usize,
    x: Quantised<'_>,
    n_rows: usize,
    w: W,
    bias: Option<&[f32]>,
) {
    let n = out.width();
    let (group, groups) = (first / ROWS, n.div_ceil(ROWS));
    let mut g = 0;
    if n_rows == 1 {
        while g + G <= groups {
            let [lanes] = w.dots::<S, G, 1>(s, group + g, [x.row(0)]);
            for (i, lanes) in lanes.into_iter().enumerate() {
                finish(s, out, 0, (g + i) * ROWS, lanes, bias, add);
            }
            g += G;
        }
    }
    while g < groups {
        let mut t = 0;
        while t + T <= n_rows {
            let rows: [_; T] = std::array::from_fn(|i| x.row(t + i));
            let lanes = w.dots::<S, 1, T>(s, group + g, rows);
            for (i, [lanes]) in lanes.into_iter().enumerate() {
                finish(s, out, t + i, g * ROWS, lanes, bias, add);
            }
            t += T;
        }
        while t < n_rows {
            let [[lanes]] = w.dots::<S, 1, 1>(s, group + g, [x.row(t)]);
            finish(s, out, t, g * ROWS, lanes, bias, add);
            t += 1;
        }
        g += 1;
    }
}

/// The results of one group of rows, of which the last may have fewer.
#[inline(always)]
fn finish<S: Simd>(
    s: S,
    out: &mut Columns<'_>,
    t: usize,
    from: usize,
    lanes: S::F,
    bias: Option<&[f32]>,
    add: bool,
) {
    let mut sums = [0.0; LANES];
    s.store(lanes, &mut sums);
    let len = LANES.min(out.width() - from);
    let bias = bias.map(|bias| &bias[from..][..len]);
    store(&mut out.row(t)[from..][..len], &sums[..len], bias, add);
}
