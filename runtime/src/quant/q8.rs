//! Weights of 8 bits: `w = scale * q`, q from -127 to 127, one scale (f16) for each [`BLOCK`] weights of a
//! row: 8.5 bits a weight. The numbers are those of GGML's Q8_0.

use half::f16;

use super::{BLOCK, Blocks, PIECE, ROWS, padded, round, row_blocks};

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
        let (blocks, lane) = (self.columns.div_ceil(BLOCK), row % ROWS);
        row_blocks(from, out, &mut |block, out| {
            let block = row / ROWS * blocks + block;
            let scale = self.scales[block * ROWS + lane].to_f32();
            let pieces = self.q[block * BYTES..][..BYTES].chunks_exact(PIECE).skip(lane);
            for (out, q) in out.chunks_exact_mut(PIECE).zip(pieces.step_by(ROWS)) {
                out.iter_mut().zip(q).for_each(|(out, q)| *out = scale * f32::from(*q));
            }
        });
    }
}

/// Quantises a row into its places in `q` and `scales`, which hold the whole group of rows: (blocks, ..).
/// Returns a number that is not finite or whose scale f16 cannot hold, if there is one.
pub fn write_row(row: &[f32], lane: usize, q: &mut [i8], scales: &mut [f16]) -> Option<f32> {
    debug_assert_eq!(scales.len(), Blocks::new(1, row.len()).blocks * ROWS);
    let mut refused = None;
    let places = q.chunks_exact_mut(BYTES).zip(scales.chunks_exact_mut(ROWS));
    for (weights, (q, scales)) in row.chunks(BLOCK).zip(places) {
        let w = padded(weights);
        // Bits of positive numbers have the order of the numbers; infinity and NaN are above all.
        let max = f32::from_bits(w.iter().fold(0, |max, w| max.max(w.abs().to_bits())));
        let scale = f16::from_f32(max / 127.0);
        scales[lane] = scale;
        if !max.is_finite() {
            refused = weights.iter().copied().find(|w| !w.is_finite());
        } else if scale.is_infinite() {
            refused = Some(max);
        }
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        // The scale was rounded, so the largest weight can lie just above 127 of them.
        let quants = w.map(|w| round((w * inverse).clamp(-127.0, 127.0)) as i8);
        for (q, quants) in
            q[lane * PIECE..].chunks_mut(ROWS * PIECE).zip(quants.chunks_exact(PIECE))
        {
            q[..PIECE].copy_from_slice(quants);
        }
    }
    refused
}
