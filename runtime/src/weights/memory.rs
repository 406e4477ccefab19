//! Where a model lies, and its tensors in there.
//!
//! Unsafe code lives here for two things: mapping a file and viewing checked bytes as numbers.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;

use crate::alloc::{reserve, zeros};
use crate::error::Result;
use crate::format::Dtype;
use crate::quant::q4::Q4;
use crate::quant::q8::Q8;

#[cfg(target_endian = "big")]
compile_error!("model files are little-endian and are used where they lie");

/// Memory that somebody else has given us. It is dropped when nothing needs the memory any more.
pub type Owner = Box<dyn AsRef<[u8]> + Send + Sync>;

/// A tensor that lies in a model file or in memory. Cloning it shares that.
#[derive(Clone)]
pub struct Tensor {
    bytes: Arc<Bytes>,
    place: Place,
    len: usize,
    shape: Vec<usize>,
    dtype: Dtype,
}

/// Where a tensor lies in the bytes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub values: Range<usize>,
    /// Empty for what has no scales.
    pub scales: Range<usize>,
}

/// The numbers of a tensor, where they lie.
#[derive(Clone, Copy, Debug)]
pub enum TensorData<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// Upper halves of singles.
    Bf16(&'a [bf16]),
    /// Blocks of 8 bits, rows interleaved.
    Q8(Q8<'a>),
    /// Blocks of 4 bits, rows interleaved.
    Q4(Q4<'a>),
}

impl Tensor {
    /// The caller has checked that the place lies within `bytes` and is as large as the shape makes it.
    pub(crate) fn new(bytes: Arc<Bytes>, place: Place, shape: Vec<usize>, dtype: Dtype) -> Tensor {
        let len = shape.iter().product();
        Tensor { bytes, place, len, shape, dtype }
    }

    /// Outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it begins in the memory that it lies in.
    pub(super) fn offset(&self) -> usize {
        self.place.values.start
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The elements as they lie there, little-endian; without the scales of blocks.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes.get()[self.place.values.clone()]
    }

    /// The scales of blocks as they lie there; else nothing.
    pub(crate) fn scale_bytes(&self) -> &[u8] {
        &self.bytes.get()[self.place.scales.clone()]
    }

    /// Columns of a matrix, elements of a vector.
    pub(super) fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The elements, borrowed from where they lie: in row order, or in blocks.
    pub fn data(&self) -> TensorData<'_> {
        let (values, scales) = (self.bytes(), self.scale_bytes());
        let columns = self.columns();
        match self.dtype {
            Dtype::F32 => TensorData::F32(numbers(values)),
            Dtype::F16 => TensorData::F16(numbers(values)),
            Dtype::Bf16 => TensorData::Bf16(numbers(values)),
            Dtype::Q8 => {
                TensorData::Q8(Q8 { q: numbers(values), scales: numbers(scales), columns })
            }
            Dtype::Q4 => TensorData::Q4(Q4 { q: values, scales: numbers(scales), columns }),
        }
    }

    /// The elements as single precision, copied.
    ///
    /// # Errors
    /// No memory.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut values = zeros("a tensor as f32", self.len)?;
        self.read_f32(0, &mut values);
        Ok(values)
    }

    /// Copies elements from index `from` on, as many as `out` is long.
    pub(super) fn read_f32(&self, from: usize, out: &mut [f32]) {
        fn read<E: Copy>(out: &mut [f32], data: &[E], to_f32: impl Fn(E) -> f32) {
            out.iter_mut().zip(data).for_each(|(out, value)| *out = to_f32(*value));
        }
        match self.data() {
            TensorData::F32(data) => read(out, &data[from..], |value| value),
            TensorData::F16(data) => read(out, &data[from..], f16::to_f32),
            TensorData::Bf16(data) => read(out, &data[from..], bf16::to_f32),
            TensorData::Q8(data) => by_rows(self.columns(), from, out, &mut |row, from, out| {
                data.read_row(row, from, out);
            }),
            TensorData::Q4(data) => by_rows(self.columns(), from, out, &mut |row, from, out| {
                data.read_row(row, from, out);
            }),
        }
    }
}

/// A type that any bytes are a value of.
trait Number {}
impl Number for i8 {}
impl Number for f16 {}
impl Number for bf16 {}
impl Number for f32 {}

/// Bytes as the numbers that they are.
fn numbers<E: Number>(bytes: &[u8]) -> &[E] {
    let start = bytes.as_ptr();
    // Loading has checked this too; here it holds even for an owner that moves its memory.
    assert!((start as usize).is_multiple_of(align_of::<E>()), "the tensor has moved");
    // SAFETY: the slice covers the elements and its alignment has just been checked; every bit pattern
    // is a valid `Number`; the bytes live as long as the result.
    unsafe { std::slice::from_raw_parts(start.cast(), bytes.len() / size_of::<E>()) }
}

/// Calls `read` with row, first column and place for each piece of a row that `out` has room for, from
/// element `from` of the matrix on.
fn by_rows(
    columns: usize,
    from: usize,
    out: &mut [f32],
    read: &mut dyn FnMut(usize, usize, &mut [f32]),
) {
    let first = out.len().min(columns - from % columns);
    let (first, rest) = out.split_at_mut(first);
    read(from / columns, from % columns, first);
    for (row, out) in (from / columns + 1..).zip(rest.chunks_mut(columns)) {
        read(row, 0, out);
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({:?} {})", self.shape, self.dtype.name())
    }
}

/// The bytes of a whole file, or of tensors that were converted.
pub(crate) enum Bytes {
    Mapped(Mmap),
    Owned(AlignedBytes),
    /// Somebody else's.
    Shared(Owner),
}

impl Bytes {
    /// Maps a file.
    pub(crate) fn map(file: &File) -> std::io::Result<Bytes> {
        // SAFETY: the mapping is private and read-only; its hazard, another process shortening the
        // file, is documented at `Weights::map`, and `Weights::read` is the way without it.
        Ok(Bytes::Mapped(unsafe { Mmap::map(file) }?))
    }

    pub(crate) fn get(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes.get(),
            Bytes::Shared(owner) => (**owner).as_ref(),
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.get().len())
    }
}

/// Bytes that begin at a multiple of 64, as a mapped file does, and grow within what was reserved.
pub(crate) struct AlignedBytes {
    lines: Vec<CacheLine>,
    len: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

impl AlignedBytes {
    /// Reserves memory for `capacity` bytes and touches none of it.
    pub(crate) fn new(capacity: usize) -> Result<AlignedBytes> {
        let mut lines = Vec::new();
        reserve(&mut lines, capacity.div_ceil(64), "the model")?;
        Ok(AlignedBytes { lines, len: 0 })
    }

    /// Adds `n` zeros at the next multiple of 64. The caller stays within the capacity, counting
    /// whole multiples.
    pub(crate) fn grow(&mut self, n: usize) -> &mut [u8] {
        let start = 64 * self.lines.len();
        self.lines.resize(self.lines.len() + n.div_ceil(64), CacheLine([0; 64]));
        self.len = start + n;
        // SAFETY: a CacheLine is 64 bytes without padding, and there are enough of them for `len`.
        let all =
            unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) };
        &mut all[start..]
    }

    fn get(&self) -> &[u8] {
        // SAFETY: as in `grow`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}
