//! Weights of 8 bits: `w = scale * q`, q from -127 to 127, one scale (f16) for each [`BLOCK`] weights of a
//! row: 8.5 bits a weight. The numbers are those of GGML's Q8_0.

use half::f16;

use super::{BLOCK, Blocks, PIECE, ROWS};

/// Bytes of the blocks of one group of rows: (BLOCK / PIECE, ROWS, PIECE).
pub const BYTES: usize = ROWS * BLOCK;

/// A matrix as it lies in the file.
#[derive(Clone, Copy, Debug)]
pub struct Q8<'a> {
    /// (groups, blocks, BLOCK / PIECE, ROWS, PIECE)
    pub q: &'a [i8],
    /// (groups, blocks, ROWS)
    pub scales: &'a [f16],
    /// Columns of the matrix; those up to whole blocks are zeros.
    pub columns: usize,
}

impl Q8<'_> {
    /// The weights of a row in a block of columns, and their scale.
    pub fn block(&self, row: usize, block: usize) -> ([i8; BLOCK], f16) {
        let place = row / ROWS * self.columns.div_ceil(BLOCK) + block;
        let (q, lane) = (&self.q[place * BYTES..][..BYTES], row % ROWS);
        let weight = |i: usize| q[(i / PIECE * ROWS + lane) * PIECE + i % PIECE];
        (std::array::from_fn(weight), self.scales[place * ROWS + lane])
    }

    /// Writes the weights of a row from column `from` on.
    pub fn read_row(&self, row: usize, from: usize, out: &mut [f32]) {
        let blocks = self.columns.div_ceil(BLOCK);
        for (column, out) in (from..).zip(out) {
            let block = row / ROWS * blocks + column / BLOCK;
            let (piece, lane) = (column % BLOCK / PIECE, row % ROWS);
            let q = self.q[block * BYTES + (piece * ROWS + lane) * PIECE + column % PIECE];
            *out = self.scales[block * ROWS + lane].to_f32() * f32::from(q);
        }
    }
}

/// Quantises a row into its places in `q` and `scales`, which hold the whole group of rows: (blocks, ..).
/// Returns a number that is not finite or whose scale f16 cannot hold, if there is one.
pub fn write_row(row: &[f32], lane: usize, q: &mut [i8], scales: &mut [f16]) -> Option<f32> {
    debug_assert_eq!(scales.len(), Blocks::new(1, row.len()).blocks * ROWS);
    let mut refused = None;
    for (block, weights) in row.chunks(BLOCK).enumerate() {
        let max = weights.iter().fold(0.0f32, |max, w| max.max(w.abs()));
        let scale = f16::from_f32(max / 127.0);
        scales[block * ROWS + lane] = scale;
        if let Some(wrong) = weights.iter().find(|w| !w.is_finite()) {
            refused = Some(*wrong);
        } else if scale.is_infinite() {
            refused = Some(max);
        }
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        for (column, w) in weights.iter().enumerate() {
            let (piece, rest) = (column / PIECE, column % PIECE);
            // The scale was rounded, so the largest weight can lie just above 127 of them.
            let rounded = (w * inverse).round_ties_even().clamp(-127.0, 127.0);
            q[block * BYTES + (piece * ROWS + lane) * PIECE + rest] = rounded as i8;
        }
    }
    refused
}
