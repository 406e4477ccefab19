//! Weights of 4 bits: `w = scale * q + minimum`, q from 0 to 15, scale and minimum (f16) for each
//! [`BLOCK`] weights of a row: 5 bits a weight. The numbers are those of GGML's Q4_1.

use half::f16;

use super::{BLOCK, Blocks, PIECE, ROWS, padded, round, row_blocks};

/// Bytes of the blocks of one group of rows: (BLOCK / PIECE / 2, ROWS, PIECE).
pub const BYTES: usize = ROWS * BLOCK / 2;

/// Steps into which the range of a block is divided, one try each.
const STEPS: [f32; 8] = [13.0, 13.5, 14.0, 14.5, 15.0, 15.5, 16.0, 17.0];

/// A matrix as it lies in the file.
#[derive(Clone, Copy, Debug)]
pub struct Q4<'a> {
    /// (groups, blocks, BLOCK / PIECE / 2, ROWS, PIECE): the lower half of a byte is of the piece of twice
    /// that number, the upper half of the piece after it.
    pub q: &'a [u8],
    /// Scales and minima. (groups, blocks, 2, ROWS)
    pub scales: &'a [f16],
    /// Columns of the matrix; those up to whole blocks are zeros.
    pub columns: usize,
}

impl Q4<'_> {
    /// The weights of a row in a block of columns, their scale and their minimum.
    pub fn block(&self, row: usize, block: usize) -> ([u8; BLOCK], f16, f16) {
        let place = row / ROWS * self.columns.div_ceil(BLOCK) + block;
        let (q, lane) = (&self.q[place * BYTES..][..BYTES], row % ROWS);
        let weight = |i: usize| {
            let byte = q[(i / PIECE / 2 * ROWS + lane) * PIECE + i % PIECE];
            if i / PIECE % 2 == 0 { byte & 15 } else { byte >> 4 }
        };
        let scales = &self.scales[place * 2 * ROWS..];
        (std::array::from_fn(weight), scales[lane], scales[ROWS + lane])
    }

    /// Writes the weights of a row from column `from` on.
    pub fn read_row(&self, row: usize, from: usize, out: &mut [f32]) {
        let (blocks, lane) = (self.columns.div_ceil(BLOCK), row % ROWS);
        row_blocks(from, out, &mut |block, out| {
            let block = row / ROWS * blocks + block;
            let scale = self.scales[block * 2 * ROWS + lane].to_f32();
            let minimum = self.scales[block * 2 * ROWS + ROWS + lane].to_f32();
            let pieces = self.q[block * BYTES..][..BYTES].chunks_exact(PIECE).skip(lane);
            for (out, q) in out.chunks_exact_mut(2 * PIECE).zip(pieces.step_by(ROWS)) {
                let (low, high) = out.split_at_mut(PIECE);
                for ((low, high), q) in low.iter_mut().zip(high).zip(q) {
                    *low = scale * f32::from(q & 15) + minimum;
                    *high = scale * f32::from(q >> 4) + minimum;
                }
            }
        });
    }
}

/// Quantises a row into its places in `q` and `scales`, which hold the whole group of rows: (blocks, ..).
/// Returns a number that is not finite or whose scale f16 cannot hold, if there is one.
pub fn write_row(row: &[f32], lane: usize, q: &mut [u8], scales: &mut [f16]) -> Option<f32> {
    debug_assert_eq!(scales.len(), Blocks::new(1, row.len()).blocks * 2 * ROWS);
    let mut refused = None;
    let places = q.chunks_exact_mut(BYTES).zip(scales.chunks_exact_mut(2 * ROWS));
    for (weights, (q, scales)) in row.chunks(BLOCK).zip(places) {
        let block = Block::new(weights);
        let fit = block.best();
        scales[lane] = fit.scale;
        scales[ROWS + lane] = fit.minimum;
        if let Some(wrong) = weights.iter().find(|w| !w.is_finite()) {
            refused = Some(*wrong);
        } else if fit.scale.is_infinite() || fit.minimum.is_infinite() {
            refused = Some(if block.max > -block.min { block.max } else { block.min });
        }
        let places = q[lane * PIECE..].chunks_mut(ROWS * PIECE);
        for (place, quants) in places.zip(fit.q.chunks_exact(2 * PIECE)) {
            for (i, byte) in place[..PIECE].iter_mut().enumerate() {
                *byte = quants[i] as u8 | (quants[PIECE + i] as u8) << 4;
            }
        }
    }
    refused
}

/// Weights that are to share a scale and a minimum.
struct Block {
    w: [f32; BLOCK],
    /// 1 where there is a column, else 0.
    there: [f32; BLOCK],
    n: f32,
    min: f32,
    max: f32,
}

/// One way to write a block.
struct Fit {
    scale: f16,
    minimum: f16,
    /// Whole numbers from 0 to 15.
    q: [f32; BLOCK],
    /// Sum of the squares of what it is off.
    error: f32,
}

impl Block {
    fn new(weights: &[f32]) -> Block {
        let mut there = [0.0; BLOCK];
        there[..weights.len()].fill(1.0);
        Block {
            w: padded(weights),
            there,
            n: weights.len() as f32,
            min: weights.iter().fold(f32::INFINITY, |min, w| min.min(*w)),
            max: weights.iter().fold(f32::NEG_INFINITY, |max, w| max.max(*w)),
        }
    }

    /// The range from the least weight to the largest in 15 steps wastes them on the two ends. So ranges
    /// that begin at the least and have shorter or longer steps are tried as well; the numbers that each
    /// gives get the scale and minimum of least squares, and the try that is off least is taken.
    fn best(&self) -> Fit {
        let range = self.max - self.min;
        let mut best = self.fit(range / 15.0, self.min);
        // A constant block is exact but for rounding, and one that is to be refused stays as it is.
        if range == 0.0 || !best.error.is_finite() {
            return best;
        }
        for steps in STEPS {
            let q = self.quantise(range / steps, self.min);
            let Some((scale, minimum)) = self.least_squares(&q) else { continue };
            let fit = self.fit(scale, minimum);
            if fit.error < best.error {
                best = fit;
            }
        }
        best
    }

    /// Rounds scale and minimum, and then the weights with those.
    fn fit(&self, scale: f32, minimum: f32) -> Fit {
        let (scale, minimum) = (f16::from_f32(scale), f16::from_f32(minimum));
        let (s, m) = (scale.to_f32(), minimum.to_f32());
        let q = self.quantise(s, m);
        let error = sum(|i| {
            let off = (self.w[i] - (s * q[i] + m)) * self.there[i];
            off * off
        });
        Fit { scale, minimum, q, error }
    }

    fn quantise(&self, scale: f32, minimum: f32) -> [f32; BLOCK] {
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let mut q = [0.0; BLOCK];
        for (i, q) in q.iter_mut().enumerate() {
            let exact = ((self.w[i] - minimum) * inverse).clamp(0.0, 15.0);
            *q = round(exact) as f32 * self.there[i];
        }
        q
    }

    /// Scale and minimum for given numbers, if these differ.
    fn least_squares(&self, q: &[f32; BLOCK]) -> Option<(f32, f32)> {
        let (sum_q, sum_qq) = (sum(|i| q[i]), sum(|i| q[i] * q[i]));
        let (sum_w, sum_qw) = (sum(|i| self.w[i]), sum(|i| q[i] * self.w[i]));
        let determinant = self.n * sum_qq - sum_q * sum_q;
        if determinant <= 0.0 {
            return None;
        }
        let scale = (self.n * sum_qw - sum_q * sum_w) / determinant;
        Some((scale, (sum_w - scale * sum_q) / self.n))
    }
}

/// Adds a block's terms, eight at a time and in the same order everywhere.
fn sum(term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; 8];
    for i in (0..BLOCK).step_by(8) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(i + lane);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}
