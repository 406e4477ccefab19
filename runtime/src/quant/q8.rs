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

#[cfg(test)]
mod tests {
    use super::*;

    // What gguf 0.19 (PyPI) makes of 32 weights, and what it reads from that:
    //     w = (((np.arange(32) * 37 + 11) % 64 - 30.5) ** 3 / 4096).astype(np.float32)
    //     b = gguf.quants.quantize(w, gguf.GGMLQuantizationType.Q8_0)
    //     b.tobytes().hex(), gguf.quants.dequantize(b, gguf.GGMLQuantizationType.Q8_0).view(np.uint32)
    const BYTES_OF_GGUF: [u8; 34] = [
        0xfb, 0x2a, 0xdf, 0x18, 0xfc, 0x5d, 0x00, 0xad, 0x05, 0xec, 0x27, 0xff, 0x7f, 0x00, 0xc6,
        0x0b, 0xf5, 0x3a, 0x00, 0x81, 0x01, 0xd9, 0x14, 0xfb, 0x53, 0x00, 0xa3, 0x04, 0xe8, 0x21,
        0xfe, 0x73, 0x00, 0xbe,
    ];
    const READ_BY_GGUF: [u32; BLOCK] = [
        0xbfe65b00, 0x3fa78800, 0xbe5f6000, 0x40a24bc0, 0x00000000, 0xc090d840, 0x3e8b9c00,
        0xbf8b9c00, 0x40081e80, 0xbd5f6000, 0x40dda140, 0x00000000, 0xc04a6f00, 0x3f199200,
        0xbf199200, 0x404a6f00, 0x00000000, 0xc0dda140, 0x3d5f6000, 0xc0081e80, 0x3f8b9c00,
        0xbe8b9c00, 0x4090d840, 0x00000000, 0xc0a24bc0, 0x3e5f6000, 0xbfa78800, 0x3fe65b00,
        0xbddf6000, 0x40c8b040, 0x00000000, 0xc0665b00,
    ];

    fn weights() -> [f32; BLOCK] {
        std::array::from_fn(|i| (((i * 37 + 11) % 64) as f32 - 30.5).powi(3) / 4096.0)
    }

    /// The third row of a group, in the second of its blocks.
    #[test]
    fn scale_and_numbers_are_those_of_gguf() {
        let row = [&[0.0; BLOCK][..], &weights()].concat();
        let (mut q, mut scales) = ([0; 2 * BYTES], [f16::ZERO; 2 * ROWS]);
        assert_eq!(write_row(&row, 2, &mut q, &mut scales), None);
        assert_eq!(scales[ROWS + 2].to_le_bytes(), BYTES_OF_GGUF[..2]);
        for (i, expected) in BYTES_OF_GGUF[2..].iter().enumerate() {
            let at = BYTES + (i / PIECE * ROWS + 2) * PIECE + i % PIECE;
            assert_eq!(q[at] as u8, *expected, "{i}");
        }
        let matrix = Q8 { q: &q, scales: &scales, columns: 2 * BLOCK };
        let mut read = [0.0; BLOCK];
        matrix.read_row(2, BLOCK, &mut read);
        assert_eq!(read.map(f32::to_bits), READ_BY_GGUF);
        let mut piece = [0.0; 39];
        matrix.read_row(2, 5, &mut piece);
        assert_eq!(piece[..27], [0.0; 27]);
        assert_eq!(piece[27..], read[..12]);
    }

    #[test]
    fn numbers_that_have_no_place_are_named() {
        for (wrong, named) in [
            (f32::NAN, f32::NAN),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            (-f32::MAX, f32::MAX),
            (65520.0 * 127.0, 65520.0 * 127.0),
        ] {
            let mut row = [1.0; BLOCK];
            row[30] = wrong;
            let refused = write_row(&row, 0, &mut [0; BYTES], &mut [f16::ZERO; ROWS]);
            assert_eq!(refused.map(f32::to_bits), Some(named.to_bits()), "{wrong}");
        }
        // The largest scale, one that rounds to less than a weight needs, and one that rounds to 0.
        for (fits, close) in [(65504.0 * 127.0, 1e-6), (1.0e-5, 0.3), (-1e-7, 1.0)] {
            let (mut q, mut scales) = ([0; BYTES], [f16::ZERO; ROWS]);
            assert_eq!(write_row(&[fits; 3], 0, &mut q, &mut scales), None);
            let mut read = [0.0; 1];
            Q8 { q: &q, scales: &scales, columns: 3 }.read_row(0, 0, &mut read);
            assert!((read[0] / fits - 1.0).abs() <= close, "{fits} {}", read[0]);
        }
    }
}
