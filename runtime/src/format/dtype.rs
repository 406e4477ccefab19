//! Element types, and what a tensor of each looks like in a file.

use safetensors::tensor::Dtype as FileDtype;

use super::TensorSpec;
use crate::quant::{BLOCK, Blocks, PIECE, ROWS, q4, q8};
use crate::tokenizer::{Table, TableDtype};

/// Element type of the tensors of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// Matrices in blocks of 8 bits ([`crate::quant::q8`]), all else in single precision.
    Q8,
    /// Matrices of the layers in blocks of 4 bits ([`crate::quant::q4`]), embedding and output
    /// projection in blocks of 8, all else in single precision.
    Q4,
}

impl Dtype {
    /// Every element type.
    pub const ALL: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8, Dtype::Q4];

    /// Name in a configuration: `f32`, `f16`, `bf16`, `q8` or `q4`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::Q8 => "q8",
            Dtype::Q4 => "q4",
        }
    }

    /// Whether it stores matrices in blocks.
    pub fn is_quantised(self) -> bool {
        match self {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => false,
            Dtype::Q8 | Dtype::Q4 => true,
        }
    }

    /// The element type of one tensor in a file of this type.
    pub fn of(self, spec: &TensorSpec) -> Dtype {
        match self {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => self,
            Dtype::Q8 | Dtype::Q4 if !spec.is_quantisable() => Dtype::F32,
            Dtype::Q8 => Dtype::Q8,
            Dtype::Q4 if spec.is_vocabulary() => Dtype::Q8,
            Dtype::Q4 => Dtype::Q4,
        }
    }

    /// What a tensor of this element type looks like in a file. Only matrices are in blocks.
    pub(crate) fn stored(self, shape: &[usize]) -> Stored {
        let plain = |dtype, size| Stored {
            values: Part { dtype, shape: shape.to_vec() },
            scales: None,
            unit: Unit { values: 1, bytes: size, scale_bytes: 0 },
        };
        let (rows, columns) = match shape {
            [rows, columns] => (*rows, *columns),
            other => (1, other.iter().product()),
        };
        let Blocks { groups, blocks } = Blocks::new(rows, columns);
        let in_blocks = |dtype, pieces, scales: &[usize], block_bytes| Stored {
            values: Part { dtype, shape: vec![groups, blocks, pieces, ROWS, PIECE] },
            scales: Some(Part {
                dtype: FileDtype::F16,
                shape: [&[groups, blocks], scales].concat(),
            }),
            unit: Unit {
                values: ROWS * columns,
                bytes: blocks * block_bytes,
                scale_bytes: blocks * 2 * scales.iter().product::<usize>(),
            },
        };
        match self {
            Dtype::F32 => plain(FileDtype::F32, 4),
            Dtype::F16 => plain(FileDtype::F16, 2),
            Dtype::Bf16 => plain(FileDtype::BF16, 2),
            Dtype::Q8 => in_blocks(FileDtype::I8, BLOCK / PIECE, &[ROWS], q8::BYTES),
            Dtype::Q4 => in_blocks(FileDtype::U8, BLOCK / PIECE / 2, &[2, ROWS], q4::BYTES),
        }
    }
}

/// A tensor in a file: its numbers, and for blocks their scales in a tensor beside it.
pub(crate) struct Stored {
    pub values: Part,
    pub scales: Option<Part>,
    pub unit: Unit,
}

/// One tensor of the safetensors header.
pub(crate) struct Part {
    pub dtype: FileDtype,
    pub shape: Vec<usize>,
}

/// The least of a tensor that can be encoded by itself: a number, or a group of rows in blocks.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    /// Numbers in it; fewer at the end of a matrix.
    pub values: usize,
    /// What they take.
    pub bytes: usize,
    /// What their scales take.
    pub scale_bytes: usize,
}

impl Stored {
    /// Bytes of both parts.
    pub fn n_bytes(&self) -> usize {
        self.values.n_bytes() + self.scales.as_ref().map_or(0, Part::n_bytes)
    }
}

impl Part {
    /// A table of the tokenizer.
    pub fn of_table(table: &Table<'_>) -> Part {
        let dtype = match table.dtype {
            TableDtype::U8 => FileDtype::U8,
            TableDtype::U32 => FileDtype::U32,
            TableDtype::F32 => FileDtype::F32,
        };
        Part { dtype, shape: table.shape.clone() }
    }

    /// Its size, which for hostile shapes is no more than the largest number.
    pub fn n_bytes(&self) -> usize {
        self.shape.iter().fold(self.alignment(), |bytes, n| bytes.saturating_mul(*n))
    }

    /// What its place in memory must be a multiple of: the size of an element.
    pub fn alignment(&self) -> usize {
        self.dtype.bitsize() / 8
    }
}
