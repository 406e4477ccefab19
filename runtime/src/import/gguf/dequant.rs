//! The blocks of GGML as numbers, with the operations of GGML's own reference in its order, so that
//! the numbers are equal bit for bit (`ggml-quants.c`; the tests compare with PyPI's `gguf`).

use half::f16;

/// A kind of blocks. `K` kinds have 256 numbers in a block, all others 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::import) enum Kind {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// The most numbers in a block.
pub(in crate::import) const MAX_LEN: usize = 256;

impl Kind {
    /// Every kind with its number in a file.
    const NUMBERS: &[(u32, Kind)] = &[
        (2, Kind::Q4_0),
        (3, Kind::Q4_1),
        (6, Kind::Q5_0),
        (7, Kind::Q5_1),
        (8, Kind::Q8_0),
        (10, Kind::Q2K),
        (11, Kind::Q3K),
        (12, Kind::Q4K),
        (13, Kind::Q5K),
        (14, Kind::Q6K),
    ];

    /// The kind of a number in a file.
    pub fn from_number(number: u32) -> Option<Kind> {
        Kind::NUMBERS.iter().find(|(known, _)| *known == number).map(|(_, kind)| *kind)
    }

    /// Numbers in a block.
    pub fn len(self) -> usize {
        match self {
            Kind::Q4_0 | Kind::Q4_1 | Kind::Q5_0 | Kind::Q5_1 | Kind::Q8_0 => 32,
            Kind::Q2K | Kind::Q3K | Kind::Q4K | Kind::Q5K | Kind::Q6K => MAX_LEN,
        }
    }

    /// Bytes of a block.
    pub fn n_bytes(self) -> usize {
        match self {
            Kind::Q4_0 => 2 + 16,
            Kind::Q4_1 => 2 + 2 + 16,
            Kind::Q5_0 => 2 + 4 + 16,
            Kind::Q5_1 => 2 + 2 + 4 + 16,
            Kind::Q8_0 => 2 + 32,
            Kind::Q2K => 16 + 64 + 2 + 2,
            Kind::Q3K => 32 + 64 + 12 + 2,
            Kind::Q4K => 2 + 2 + 12 + 128,
            Kind::Q5K => 2 + 2 + 12 + 32 + 128,
            Kind::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Writes the numbers of a block. `block`: as many bytes, `out`: as many numbers as the kind has.
    pub fn read(self, block: &[u8], out: &mut [f32]) {
        debug_assert_eq!((block.len(), out.len()), (self.n_bytes(), self.len()));
        match self {
            Kind::Q4_0 => {
                let d = half(block, 0);
                nibbles(&block[2..], out, |q| d * (f32::from(q) - 8.0));
            }
            Kind::Q4_1 => {
                let (d, m) = (half(block, 0), half(block, 2));
                nibbles(&block[4..], out, |q| d * f32::from(q) + m);
            }
            Kind::Q5_0 => {
                let d = half(block, 0);
                five_bits(&block[2..], out, |q| d * (f32::from(q) - 16.0));
            }
            Kind::Q5_1 => {
                let (d, m) = (half(block, 0), half(block, 2));
                five_bits(&block[4..], out, |q| d * f32::from(q) + m);
            }
            Kind::Q8_0 => {
                let d = half(block, 0);
                let numbers = out.iter_mut().zip(&block[2..]);
                numbers.for_each(|(out, q)| *out = f32::from(*q as i8) * d);
            }
            Kind::Q2K => q2_k(block, out),
            Kind::Q3K => q3_k(block, out),
            Kind::Q4K => {
                let (d, dmin) = (half(block, 0), half(block, 2));
                for (i, out) in out.chunks_exact_mut(32).enumerate() {
                    let (scale, minimum) = scale_and_minimum(&block[4..16], i);
                    let (scale, minimum) = (d * scale, dmin * minimum);
                    let shift = 4 * (i % 2);
                    for (out, q) in out.iter_mut().zip(&block[16 + i / 2 * 32..]) {
                        *out = scale * f32::from(q >> shift & 15) - minimum;
                    }
                }
            }
            Kind::Q5K => {
                let (d, dmin) = (half(block, 0), half(block, 2));
                let high = &block[16..48];
                for (i, out) in out.chunks_exact_mut(32).enumerate() {
                    let (scale, minimum) = scale_and_minimum(&block[4..16], i);
                    let (scale, minimum) = (d * scale, dmin * minimum);
                    let shift = 4 * (i % 2);
                    let low = &block[48 + i / 2 * 32..];
                    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
                        let q = low >> shift & 15 | (high >> i & 1) << 4;
                        *out = scale * f32::from(q) - minimum;
                    }
                }
            }
            Kind::Q6K => q6_k(block, out),
        }
    }
}

/// The half at a byte.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 numbers of four bits: the lower halves of 16 bytes, then the upper ones.
fn nibbles(bytes: &[u8], out: &mut [f32], number: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = number(byte & 15);
        *high = number(byte >> 4);
    }
}

/// 32 numbers of five bits: their fifth bits in four bytes, then the others as in [`nibbles`].
fn five_bits(bytes: &[u8], out: &mut [f32], number: impl Fn(u8) -> f32) {
    let fifth = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let bit = |i: usize| ((fifth >> i & 1) as u8) << 4;
    let (low, high) = out.split_at_mut(16);
    for (i, ((low, high), byte)) in low.iter_mut().zip(high).zip(&bytes[4..]).enumerate() {
        *low = number(byte & 15 | bit(i));
        *high = number(byte >> 4 | bit(16 + i));
    }
}

/// Scale and minimum of six bits each, of the 32 numbers `i` of `Q4_K` and `Q5_K`: eight of both in 12
/// bytes, the last four of which hold the lower bits of the upper four and lend their upper ones.
fn scale_and_minimum(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, minimum) = if i < 4 {
        (packed[i] & 63, packed[4 + i] & 63)
    } else {
        let (low, scale, minimum) = (packed[4 + i], packed[i - 4], packed[i]);
        (low & 15 | scale >> 2 & 0x30, low >> 4 | minimum >> 2 & 0x30)
    };
    (f32::from(scale), f32::from(minimum))
}

/// 16 groups of 16 numbers of two bits, each with a scale and a minimum of four.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(block, 80), half(block, 82));
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, minimum) = (f32::from(block[i] & 15), f32::from(block[i] >> 4));
        let (scale, minimum) = (d * scale, dmin * minimum);
        // 32 bytes hold 128 numbers, one after the other by two bits.
        let shift = 2 * (i / 2 % 4);
        let q = &block[16 + i / 8 * 32 + i % 2 * 16..];
        for (out, q) in out.iter_mut().zip(q) {
            *out = scale * f32::from(q >> shift & 3) - minimum;
        }
    }
}

/// 16 groups of 16 numbers of three bits, each with a scale of six.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, scales) = (&block[..32], &block[96..108]);
    let d = half(block, 108);
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        let low = scales[i % 8] >> (4 * (i / 8)) & 15;
        let scale = low | (scales[8 + i % 4] >> (2 * (i / 4)) & 3) << 4;
        let scale = d * (f32::from(scale) - 32.0);
        let shift = 2 * (i / 2 % 4);
        let q = &block[32 + i / 8 * 32 + i % 2 * 16..];
        let high = &high[i % 2 * 16..];
        for ((out, q), high) in out.iter_mut().zip(q).zip(high) {
            // The third bit says that nothing is subtracted.
            let minus = if high >> (i / 2) & 1 == 0 { 4.0 } else { 0.0 };
            *out = scale * (f32::from(q >> shift & 3) - minus);
        }
    }
}

/// 16 groups of 16 numbers of six bits, each with a scale of eight.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[i] as i8);
        // 128 numbers have their lower four bits in 64 bytes, their upper two in 32.
        let (part, within) = (i / 8, i % 8);
        let low = &low[64 * part + within % 4 * 16..];
        let high = &high[32 * part + within % 2 * 16..];
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            let q = low >> (4 * (within / 4)) & 15 | (high >> (2 * (within / 2)) & 3) << 4;
            *out = scale * (f32::from(q) - 32.0);
        }
    }
}
