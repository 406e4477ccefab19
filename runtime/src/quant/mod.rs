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
