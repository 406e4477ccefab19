//! Weights in blocks of 8 and 4 bits.
//!
//! | file | holds |
//! |---|---|
//! | `mod.rs` | what the formats share: the order of the blocks |
//! | [`q8`] | a scale for 32 weights of 8 bits |
//! | [`q4`] | a scale and a minimum for 32 weights of 4 bits |
//!
//! A block is [`BLOCK`] weights of one row. The blocks of [`ROWS`] rows lie together, in pieces of four
//! weights of each row in turn, so that one vector instruction multiplies four weights of many rows with
//! the same four activations and no sum ever crosses a vector: 64 bytes are four columns of 16 rows in 8
//! bits, eight in 4. Rows and columns that are missing to whole blocks are zeros.

pub mod q4;
pub mod q8;

/// Rows whose blocks lie together.
pub const ROWS: usize = 16;
/// Weights of a row that share a scale.
pub const BLOCK: usize = 32;
/// Columns that lie together within a row.
pub const PIECE: usize = 4;

/// How many groups of rows and blocks of columns a matrix has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Rows by [`ROWS`], rounded up.
    pub groups: usize,
    /// Columns by [`BLOCK`], rounded up.
    pub blocks: usize,
}

impl Blocks {
    /// Those of a (rows, columns) matrix.
    pub fn new(rows: usize, columns: usize) -> Blocks {
        Blocks { groups: rows.div_ceil(ROWS), blocks: columns.div_ceil(BLOCK) }
    }

    /// Their number.
    pub fn len(self) -> usize {
        self.groups * self.blocks
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// A block's weights, with zeros behind the last column.
fn padded(weights: &[f32]) -> [f32; BLOCK] {
    let mut block = [0.0; BLOCK];
    block[..weights.len()].copy_from_slice(weights);
    block
}

/// Rounds to the nearest integer, to the even one of two. For |x| below 2^22 a plain addition does it,
/// on every machine and many numbers at a time: the last bit of a number about 1.5 * 2^23 is 1.
fn round(x: f32) -> i32 {
    const LARGE: f32 = 12_582_912.0;
    (x + LARGE).to_bits() as i32 - LARGE.to_bits() as i32
}

/// Calls `read` for each block of a row that `out` has room for, from column `from` on: with its number
/// in the row, for all its columns. Those that were asked for are in `out` then.
fn row_blocks(from: usize, out: &mut [f32], read: &mut dyn FnMut(usize, &mut [f32; BLOCK])) {
    let mut block = [0.0; BLOCK];
    let (mut column, mut rest) = (from, out);
    while !rest.is_empty() {
        read(column / BLOCK, &mut block);
        let part = &block[column % BLOCK..];
        let out;
        (out, rest) = rest.split_at_mut(part.len().min(rest.len()));
        out.copy_from_slice(&part[..out.len()]);
        column += out.len();
    }
}
