//! One tensor of a foreign file: where its numbers lie, how they are written, and which of them make a
//! tensor of ours.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::gguf::dequant::{Kind, MAX_LEN};
use super::refuse;
use crate::alloc::zeros;
use crate::error::Result;
use crate::format::{Dtype, Encoded, Part, TensorSpec, encode, refused};
use crate::quant::{BLOCK, PIECE, ROWS, q4, q8};
use crate::weights::{AlignedBytes, Bytes, Place, Tensor};

/// Numbers that are converted at a time, where a group of rows is not longer.
const AT_A_TIME: usize = 1 << 16;

/// How numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    F32,
    F16,
    Bf16,
    /// All numbers as signed bytes, then a scale in single precision for each so many of them.
    Bytes {
        group: usize,
    },
    /// Blocks within rows.
    Ggml(Kind),
}

impl Encoding {
    /// Bytes of a tensor, if its shape allows this encoding and the sum is a number.
    fn n_bytes(self, rows: usize, columns: usize) -> Option<usize> {
        let n = rows.checked_mul(columns)?;
        match self {
            Encoding::F32 => n.checked_mul(4),
            Encoding::F16 | Encoding::Bf16 => n.checked_mul(2),
            Encoding::Bytes { group } => {
                let scales = n.checked_div(group).filter(|_| n.is_multiple_of(group))?;
                n.checked_add(scales.checked_mul(4)?)
            }
            Encoding::Ggml(kind) => {
                let blocks = columns / kind.len();
                let whole = columns.is_multiple_of(kind.len());
                rows.checked_mul(blocks)?.checked_mul(kind.n_bytes()).filter(|_| whole)
            }
        }
    }

    /// The element type of ours that is nearest and no coarser, for a matrix that may be in blocks.
    fn dtype(self) -> Dtype {
        match self {
            Encoding::F32 => Dtype::F32,
            Encoding::F16 => Dtype::F16,
            Encoding::Bf16 => Dtype::Bf16,
            Encoding::Ggml(Kind::Q4_0 | Kind::Q4_1 | Kind::Q4K) => Dtype::Q4,
            // Some have fewer bits, but scales for 16 numbers, which 4 bits with one for 32 cannot follow.
            Encoding::Bytes { .. }
            | Encoding::Ggml(
                Kind::Q5_0
                | Kind::Q5_1
                | Kind::Q8_0
                | Kind::Q2K
                | Kind::Q3K
                | Kind::Q5K
                | Kind::Q6K,
            ) => Dtype::Q8,
        }
    }
}

/// A tensor where it lies in a file.
#[derive(Clone, Debug)]
pub(super) struct Values {
    bytes: Arc<Bytes>,
    place: Range<usize>,
    encoding: Encoding,
    /// Outermost dimension first, one or two of them.
    shape: Vec<usize>,
    /// As a matrix; a vector has one column.
    rows: usize,
    columns: usize,
}

impl Values {
    /// A tensor that begins at byte `start`.
    ///
    /// # Errors
    /// Naming it: a shape of no or more than two dimensions or that the encoding does not divide, or
    /// an end beyond that of the file.
    pub fn new(
        name: &str,
        bytes: &Arc<Bytes>,
        start: usize,
        encoding: Encoding,
        shape: &[usize],
    ) -> Result<Values> {
        let (rows, columns) = match shape {
            [n] => (*n, 1),
            [rows, columns] => (*rows, *columns),
            _ => {
                return Err(refuse(name, format!("shape {shape:?}"), "one or two dimensions"));
            }
        };
        // Blocks of a vector run along it.
        let (block_rows, block_columns) =
            if shape.len() == 1 { (1, rows) } else { (rows, columns) };
        let end = encoding
            .n_bytes(block_rows, block_columns)
            .and_then(|n| start.checked_add(n))
            .filter(|end| *end <= bytes.get().len());
        let Some(end) = end else {
            return Err(refuse(
                name,
                format!("shape {shape:?} of {encoding:?} at byte {start}"),
                format!("whole blocks within the file's {} bytes", bytes.get().len()),
            ));
        };
        let (bytes, shape) = (Arc::clone(bytes), shape.to_vec());
        Ok(Values { bytes, place: start..end, encoding, shape, rows, columns })
    }

    /// Outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Where it ends in its file.
    pub fn end(&self) -> usize {
        self.place.end
    }

    /// The bytes where they lie.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes.get()[self.place.clone()]
    }

    /// Whether both are the same bytes, read in the same way.
    pub fn is_same(&self, other: &Values) -> bool {
        let kind = |values: &Values| (values.encoding, values.rows, values.columns);
        kind(self) == kind(other) && self.bytes() == other.bytes()
    }

    /// All numbers.
    ///
    /// # Errors
    /// No memory.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = zeros("a tensor as f32", self.rows * self.columns)?;
        self.read(0, &mut out);
        Ok(out)
    }

    /// Numbers in row order from `from` on, as many as `out` is long.
    fn read(&self, from: usize, out: &mut [f32]) {
        fn plain<const N: usize>(bytes: &[u8], out: &mut [f32], number: impl Fn([u8; N]) -> f32) {
            let (numbers, _) = bytes.as_chunks::<N>();
            out.iter_mut().zip(numbers).for_each(|(out, bytes)| *out = number(*bytes));
        }
        let bytes = self.bytes();
        match self.encoding {
            Encoding::F32 => plain(&bytes[4 * from..], out, f32::from_le_bytes),
            Encoding::F16 => plain(&bytes[2 * from..], out, |b| f16::from_le_bytes(b).to_f32()),
            Encoding::Bf16 => plain(&bytes[2 * from..], out, |b| bf16::from_le_bytes(b).to_f32()),
            Encoding::Bytes { group } => {
                let (numbers, scales) = bytes.split_at(self.rows * self.columns);
                let (scales, _) = scales.as_chunks::<4>();
                for (i, (out, q)) in (from..).zip(out.iter_mut().zip(&numbers[from..])) {
                    *out = f32::from(*q as i8) * f32::from_le_bytes(scales[i / group]);
                }
            }
            Encoding::Ggml(kind) => {
                let mut block = [0.0; MAX_LEN];
                let block = &mut block[..kind.len()];
                let (mut at, mut rest) = (from, out);
                while !rest.is_empty() {
                    let place = at / kind.len() * kind.n_bytes();
                    kind.read(&bytes[place..][..kind.n_bytes()], block);
                    let part = &block[at % kind.len()..];
                    let out;
                    (out, rest) = rest.split_at_mut(part.len().min(rest.len()));
                    out.copy_from_slice(&part[..out.len()]);
                    at += out.len();
                }
            }
        }
    }
}

/// Which numbers of a foreign tensor make one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// Rows from this one on.
    Rows(usize),
    /// Columns from this one on, as rows: an (in, out) weight.
    Columns(usize),
    /// Rows of heads of this width whose pairs of RoPE lie side by side, so that the first of each come
    /// first.
    Pairs(usize),
}

/// A tensor of ours, as a foreign file has it.
#[derive(Clone, Debug)]
pub(super) struct Mapped {
    pub values: Values,
    pub view: View,
}

impl Mapped {
    /// The element type of ours that loses nothing, or least.
    pub fn dtype(&self, spec: &TensorSpec) -> Dtype {
        let dtype = self.values.encoding.dtype();
        if dtype.is_quantised() && !spec.is_quantisable() { Dtype::F32 } else { dtype }
    }

    /// The row of the foreign matrix that is row `row` of ours.
    fn source_row(&self, row: usize) -> usize {
        match self.view {
            View::Rows(from) | View::Columns(from) => from + row,
            View::Pairs(head_dim) => {
                let (head, i) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + 2 * (i % half) + i / half
            }
        }
    }

    /// Rows of ours from `first` on, as many as `out` holds. `out`: (.., columns)
    fn read(&self, first: usize, columns: usize, out: &mut [f32]) {
        match self.view {
            View::Rows(from) => self.values.read((from + first) * columns, out),
            View::Pairs(_) => {
                for (row, out) in (first..).zip(out.chunks_mut(columns)) {
                    self.values.read(self.source_row(row) * columns, out);
                }
            }
            View::Columns(from) => {
                let n = out.len() / columns;
                // A foreign row has a number for each row of ours, few of which lie here.
                let mut row = [0.0; 64];
                for start in (0..n).step_by(row.len()) {
                    let row = &mut row[..64.min(n - start)];
                    for column in 0..columns {
                        let place = column * self.values.columns + from + first + start;
                        self.values.read(place, row);
                        for (i, value) in row.iter().enumerate() {
                            out[(start + i) * columns + column] = *value;
                        }
                    }
                }
            }
        }
    }

    /// Bytes that are those of a file of ours as they lie there.
    fn as_they_are(&self, spec: &TensorSpec, dtype: Dtype) -> Option<Range<usize>> {
        let plain = !dtype.is_quantised() && self.values.encoding.dtype() == dtype;
        match self.view {
            View::Rows(from) if plain => {
                let size = dtype.stored(&[1]).values.n_bytes();
                let start = self.values.place.start + from * self.values.columns * size;
                Some(start..start + spec.len() * size)
            }
            View::Rows(_) | View::Columns(_) | View::Pairs(_) => None,
        }
    }

    /// The tensor as it lies in a file of ours.
    ///
    /// # Errors
    /// A number that the element type cannot hold; no memory.
    pub fn encoded(&self, spec: &TensorSpec, dtype: Dtype) -> Result<Encoded<'_>> {
        if let Some(place) = self.as_they_are(spec, dtype) {
            let values = Cow::Borrowed(&self.values.bytes.get()[place]);
            return Ok(Encoded { values, scales: Cow::Borrowed(&[]) });
        }
        let mut encoded = Encoded::zeroed(&dtype.stored(&spec.shape))?;
        self.encode(spec, dtype, encoded.values.to_mut(), encoded.scales.to_mut())?;
        Ok(encoded)
    }

    /// The tensor in memory: where it lies, if it can be used there, else as its own copy.
    ///
    /// # Errors
    /// As [`encoded`](Self::encoded).
    pub fn tensor(&self, spec: &TensorSpec, dtype: Dtype) -> Result<Tensor> {
        let stored = dtype.stored(&spec.shape);
        if let Some(values) = self.as_they_are(spec, dtype) {
            let address = self.values.bytes.get().as_ptr() as usize + values.start;
            if address.is_multiple_of(stored.values.alignment()) {
                let place = Place { values, scales: 0..0 };
                let bytes = Arc::clone(&self.values.bytes);
                return Ok(Tensor::new(bytes, place, spec.shape.clone(), dtype));
            }
        }
        let n = stored.values.n_bytes();
        let n_scales = stored.scales.as_ref().map_or(0, Part::n_bytes);
        // Blocks take whole lines, so their scales may lie right behind them.
        let mut bytes = AlignedBytes::new(n.saturating_add(n_scales))?;
        let (values, scales) = bytes.grow(n + n_scales).split_at_mut(n);
        self.encode(spec, dtype, values, scales)?;
        let place = Place { values: 0..n, scales: n..n + n_scales };
        Ok(Tensor::new(Arc::new(Bytes::Owned(bytes)), place, spec.shape.clone(), dtype))
    }

    fn encode(
        &self,
        spec: &TensorSpec,
        dtype: Dtype,
        out: &mut [u8],
        scales: &mut [u8],
    ) -> Result<()> {
        let (rows, columns) = match spec.shape[..] {
            [rows, columns] => (rows, columns),
            _ => (spec.len(), 1),
        };
        if let Encoding::Ggml(kind @ (Kind::Q8_0 | Kind::Q4_0 | Kind::Q4_1)) = self.values.encoding
            && kind_of_ours(kind) == dtype
        {
            return self.copy_blocks(spec, kind, out, scales);
        }
        let unit = dtype.stored(&[ROWS, columns]).unit;
        let at_a_time = (AT_A_TIME / columns / ROWS).max(1) * ROWS;
        let mut values = zeros("a part of a tensor", at_a_time.min(rows) * columns)?;
        let (mut out, mut scales) = (out, scales);
        for first in (0..rows).step_by(at_a_time) {
            let n = at_a_time.min(rows - first) * columns;
            let values = &mut values[..n];
            self.read(first, columns, values);
            let units = n.div_ceil(unit.values);
            let (part, part_of_scales);
            (part, out) = out.split_at_mut(units * unit.bytes);
            (part_of_scales, scales) = scales.split_at_mut(units * unit.scale_bytes);
            if let Some(value) = encode(values, columns, dtype, part, part_of_scales) {
                return Err(refused(value, &spec.name, dtype));
            }
        }
        Ok(())
    }

    /// Blocks whose numbers ours have too, in our order.
    fn copy_blocks(
        &self,
        spec: &TensorSpec,
        kind: Kind,
        out: &mut [u8],
        scales: &mut [u8],
    ) -> Result<()> {
        let (rows, columns) = (spec.shape[0], spec.shape[1]);
        let n = columns / BLOCK;
        let (block_bytes, block_scales) = match kind_of_ours(kind) {
            Dtype::Q4 => (q4::BYTES, 2 * 2 * ROWS),
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::Q8 => (q8::BYTES, 2 * ROWS),
        };
        for row in 0..rows {
            let place = self.source_row(row) * n * kind.n_bytes();
            let from = &self.values.bytes()[place..][..n * kind.n_bytes()];
            let lane = row % ROWS;
            for (i, block) in from.chunks_exact(kind.n_bytes()).enumerate() {
                let place = row / ROWS * n + i;
                let out = &mut out[place * block_bytes..][..block_bytes];
                let scales = &mut scales[place * block_scales..][..block_scales];
                let halves = if kind == Kind::Q4_1 { 2 } else { 1 };
                for half in block.as_chunks::<2>().0.iter().take(halves) {
                    let half = f16::from_le_bytes(*half);
                    if !half.is_finite() {
                        return Err(refused(half.to_f32(), &spec.name, kind_of_ours(kind)));
                    }
                }
                scales[2 * lane..][..2].copy_from_slice(&block[..2]);
                let minimum = &mut scales[block_scales / 2..];
                match kind {
                    Kind::Q4_0 => {
                        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                        let least = f16::from_f32(-8.0 * scale);
                        if least.is_infinite() {
                            return Err(refused(-8.0 * scale, &spec.name, Dtype::Q4));
                        }
                        minimum[2 * lane..][..2].copy_from_slice(&least.to_le_bytes());
                        copy_nibbles(&block[2..], lane, out);
                    }
                    Kind::Q4_1 => {
                        minimum[2 * lane..][..2].copy_from_slice(&block[2..4]);
                        copy_nibbles(&block[4..], lane, out);
                    }
                    Kind::Q8_0
                    | Kind::Q5_0
                    | Kind::Q5_1
                    | Kind::Q2K
                    | Kind::Q3K
                    | Kind::Q4K
                    | Kind::Q5K
                    | Kind::Q6K => {
                        let places = out[lane * PIECE..].chunks_mut(ROWS * PIECE);
                        for (out, q) in places.zip(block[2..].chunks_exact(PIECE)) {
                            out[..PIECE].copy_from_slice(q);
                        }
                        if block[2..].contains(&0x80) {
                            return Err(refuse(&spec.name, "-128 in a block", "-127 to 127"));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// The element type of ours that has the numbers of a kind of blocks.
fn kind_of_ours(kind: Kind) -> Dtype {
    Encoding::Ggml(kind).dtype()
}

/// The 16 bytes of a block of GGML's, the lower halves of which are the first numbers, to the places of
/// a row in a block of ours.
fn copy_nibbles(from: &[u8], lane: usize, out: &mut [u8]) {
    let number = |i: usize| from[i % 16] >> (4 * (i / 16)) & 15;
    let places = out[lane * PIECE..].chunks_mut(ROWS * PIECE);
    for (pair, out) in places.enumerate() {
        for (i, byte) in out[..PIECE].iter_mut().enumerate() {
            let low = 2 * PIECE * pair + i;
            *byte = number(low) | number(low + PIECE) << 4;
        }
    }
}
