//! Weights of 4 bits: `w = scale * q + minimum`, q from 0 to 15, scale and minimum (f16) for each
//! [`BLOCK`] weights of a row: 5 bits a weight. The numbers are those of GGML's Q4_1.

use half::f16;

use super::{BLOCK, Blocks, PIECE, ROWS, padded, round, row_blocks};

/// Bytes of the blocks of one group of rows: (BLOCK / PIECE / 2, ROWS, PIECE).
pub const BYTES: usize = ROWS * BLOCK / 2;

/// Steps into which the range of a block is divided, one try each. More of them gain little.
const STEPS: [f32; 4] = [14.0, 14.7, 15.3, 16.0];

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
            if (i / PIECE).is_multiple_of(2) { byte & 15 } else { byte >> 4 }
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
        let sum_w = sum(|i| self.w[i]);
        for steps in STEPS {
            let q = self.quantise(range / steps, self.min);
            let Some((scale, minimum)) = self.least_squares(&q, sum_w) else { continue };
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
    fn least_squares(&self, q: &[f32; BLOCK], sum_w: f32) -> Option<(f32, f32)> {
        let (sum_q, sum_qq) = (sum(|i| q[i]), sum(|i| q[i] * q[i]));
        let sum_qw = sum(|i| q[i] * self.w[i]);
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

#[cfg(test)]
mod tests {
    use super::*;

    // What gguf 0.19 (PyPI) makes of 32 weights, and what it reads from that:
    //     w = (((np.arange(32) * 37 + 11) % 64 - 30.5) ** 3 / 4096).astype(np.float32)
    //     b = gguf.quants.quantize(w, gguf.GGMLQuantizationType.Q4_1)
    //     b.tobytes().hex(), gguf.quants.dequantize(b, gguf.GGMLQuantizationType.Q4_1).view(np.uint32)
    const BYTES_OF_GGUF: [u8; 20] = [
        0x64, 0x3b, 0xed, 0xc6, 0x76, 0x09, 0x87, 0x5d, 0x98, 0x73, 0xc8, 0x76, 0x2a, 0x87, 0x6f,
        0x98, 0x74, 0xe8, 0x87, 0x4b,
    ];
    const READ_BY_GGUF: [u32; BLOCK] = [
        0xbfb10000, 0x3fb1c000, 0xbeeb0000, 0x40a2b000, 0x3eee0000, 0xc084f000, 0x3eee0000,
        0xbfb10000, 0x40140000, 0xbeeb0000, 0x40ddd000, 0x3eee0000, 0xc04ec000, 0x3eee0000,
        0xbeeb0000, 0x404f2000, 0xbeeb0000, 0xc0dda000, 0x3eee0000, 0xc013a000, 0x3fb1c000,
        0xbeeb0000, 0x40852000, 0xbeeb0000, 0xc0a28000, 0x3eee0000, 0xbfb10000, 0x3fb1c000,
        0xbeeb0000, 0x40c04000, 0x3eee0000, 0xc04ec000,
    ];

    fn weights() -> [f32; BLOCK] {
        std::array::from_fn(|i| (((i * 37 + 11) % 64) as f32 - 30.5).powi(3) / 4096.0)
    }

    fn read(q: &[u8], scales: &[f16], row: usize, columns: usize) -> Vec<f32> {
        let mut read = vec![0.0; columns];
        Q4 { q, scales, columns }.read_row(row, 0, &mut read);
        read
    }

    fn error(read: &[f32], weights: &[f32]) -> f32 {
        read.iter().zip(weights).map(|(read, w)| (read - w) * (read - w)).sum()
    }

    /// GGML has the first 16 numbers in the lower halves of its bytes.
    #[test]
    fn numbers_are_read_as_gguf_reads_them_and_written_better() {
        let (mut q, mut scales) = ([0; BYTES], [f16::ZERO; 2 * ROWS]);
        let half = |i: usize| f16::from_le_bytes([BYTES_OF_GGUF[i], BYTES_OF_GGUF[i + 1]]);
        (scales[3], scales[ROWS + 3]) = (half(0), half(2));
        for i in 0..BLOCK {
            let number = BYTES_OF_GGUF[4 + i % 16] >> (4 * (i / 16)) & 15;
            let at = (i / (2 * PIECE) * ROWS + 3) * PIECE + i % PIECE;
            q[at] |= number << (4 * (i / PIECE % 2));
        }
        let of_gguf = read(&q, &scales, 3, BLOCK);
        assert_eq!(of_gguf.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), READ_BY_GGUF);

        let (mut q, mut scales) = ([0xFF; BYTES], [f16::ZERO; 2 * ROWS]);
        assert_eq!(write_row(&weights(), 3, &mut q, &mut scales), None);
        let ours = read(&q, &scales, 3, BLOCK);
        let (ours, theirs) = (error(&ours, &weights()), error(&of_gguf, &weights()));
        assert!(ours < 0.95 * theirs, "{ours} {theirs}");
        assert_eq!(q.iter().filter(|byte| **byte != 0xFF).count(), BLOCK / 2, "only its own bytes");
    }

    /// The plain way: the least weight is 0, the largest is 15. It is one of the tries.
    #[test]
    fn no_block_is_off_by_more_than_with_its_ends_exact() {
        let mut random = 1u32;
        for n in (1..=BLOCK).cycle().take(2000) {
            let weights: Vec<f32> = (0..n)
                .map(|_| {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ((random >> 8) as f32 / 16_777_216.0 - 0.3).powi(3)
                })
                .collect();
            let (mut q, mut scales) = ([0; BYTES], [f16::ZERO; 2 * ROWS]);
            assert_eq!(write_row(&weights, 0, &mut q, &mut scales), None);
            let block = Block::new(&weights);
            let plain = block.fit((block.max - block.min) / 15.0, block.min);
            let found = error(&read(&q, &scales, 0, n), &weights);
            assert!(found <= plain.error * 1.0001, "{found} {} {weights:?}", plain.error);
            // Columns that are not there are 0.
            let all = read(&q, &[f16::ONE; 2 * ROWS], 0, BLOCK);
            assert!(all[n..].iter().all(|q| *q == 1.0), "{all:?}");
        }
    }

    #[test]
    fn numbers_that_have_no_place_are_named() {
        for wrong in [f32::NAN, f32::INFINITY, f32::MAX, -65520.0] {
            let mut row = [1.0; BLOCK];
            row[30] = wrong;
            let refused = write_row(&row, 0, &mut [0; BYTES], &mut [f16::ZERO; 2 * ROWS]);
            assert_eq!(refused.map(f32::to_bits), Some(wrong.to_bits()), "{wrong}");
        }
        for row in [[0.1; 5], [65504.0; 5], [-65504.0, 65504.0, 0.0, 0.0, 1.0], [1e-9; 5]] {
            let (mut q, mut scales) = ([0; BYTES], [f16::ZERO; 2 * ROWS]);
            assert_eq!(write_row(&row, 0, &mut q, &mut scales), None);
            for (read, w) in read(&q, &scales, 0, 5).iter().zip(row) {
                let range = row[1] - row[0];
                assert!((read - w).abs() <= range / 29.0 + w.abs() / 2000.0 + 1e-8, "{read} {w}");
            }
        }
    }
}
