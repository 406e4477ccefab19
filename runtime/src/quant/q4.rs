//! Weights of 4 bits: `w = scale * q + minimum`, q from 0 to 15, scale and minimum (f16) for each
//! [`BLOCK`] weights of a row: 5 bits a weight. The numbers are those of GGML's Q4_1.

use half::f16;

use super::{BLOCK, Blocks, PIECE, ROWS};

/// Bytes of the blocks of one group of rows: (BLOCK / PIECE / 2, ROWS, PIECE).
pub const BYTES: usize = ROWS * BLOCK / 2;

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
        let blocks = self.columns.div_ceil(BLOCK);
        for (column, out) in (from..).zip(out) {
            let block = row / ROWS * blocks + column / BLOCK;
            let (piece, lane) = (column % BLOCK / PIECE, row % ROWS);
            let byte = self.q[block * BYTES + (piece / 2 * ROWS + lane) * PIECE + column % PIECE];
            let q = if piece % 2 == 0 { byte & 15 } else { byte >> 4 };
            let scale = self.scales[block * 2 * ROWS + lane].to_f32();
            let minimum = self.scales[block * 2 * ROWS + ROWS + lane].to_f32();
            *out = scale * f32::from(q) + minimum;
        }
    }
}

/// Quantises a row into its places in `q` and `scales`, which hold the whole group of rows: (blocks, ..).
/// `q` must be zeros there. Returns a number that is not finite or whose scale f16 cannot hold, if there is
/// one.
pub fn write_row(row: &[f32], lane: usize, q: &mut [u8], scales: &mut [f16]) -> Option<f32> {
    debug_assert_eq!(scales.len(), Blocks::new(1, row.len()).blocks * 2 * ROWS);
    let mut refused = None;
    for (block, weights) in row.chunks(BLOCK).enumerate() {
        let min = weights.iter().fold(f32::INFINITY, |min, w| min.min(*w));
        let max = weights.iter().fold(f32::NEG_INFINITY, |max, w| max.max(*w));
        let minimum = f16::from_f32(min);
        let scale = f16::from_f32((max - min) / 15.0);
        scales[block * 2 * ROWS + lane] = scale;
        scales[block * 2 * ROWS + ROWS + lane] = minimum;
        if let Some(wrong) = weights.iter().find(|w| !w.is_finite()) {
            refused = Some(*wrong);
        } else if scale.is_infinite() || minimum.is_infinite() {
            refused = Some(if max > -min { max } else { min });
        }
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        for (column, w) in weights.iter().enumerate() {
            let (piece, rest) = (column / PIECE, column % PIECE);
            let rounded = ((w - minimum.to_f32()) * inverse).round_ties_even().clamp(0.0, 15.0);
            let half = (rounded as u8) << (4 * (piece % 2));
            q[block * BYTES + (piece / 2 * ROWS + lane) * PIECE + rest] |= half;
        }
    }
    refused
}
