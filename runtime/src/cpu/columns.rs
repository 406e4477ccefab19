//! Parts of a matrix that belong to one thread.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

/// Some columns of a matrix, to be written by one thread while others write the rest.
pub struct Columns<'a, T = f32> {
    start: *mut T,
    stride: usize,
    rows: usize,
    width: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable borrow of values that may go to another thread.
unsafe impl<T: Send> Send for Columns<'_, T> {}
// SAFETY: a shared one gives nothing but `part`, whose caller answers for what becomes of it.
unsafe impl<T: Send> Sync for Columns<'_, T> {}

impl<'a, T> Columns<'a, T> {
    /// All columns. `matrix`: (rows, width)
    pub fn all(matrix: &'a mut [T], width: usize) -> Columns<'a, T> {
        let rows = matrix.len() / width.max(1);
        Columns { start: matrix.as_mut_ptr(), stride: width, rows, width, matrix: PhantomData }
    }

    /// The columns of `range` only.
    ///
    /// # Safety
    /// As long as what is returned lives, nobody else uses the rows that are asked of it in these columns.
    pub unsafe fn part(&self, range: Range<usize>) -> Columns<'a, T> {
        assert!(range.start <= range.end && range.end <= self.width);
        // SAFETY: the start of the range lies within the first row, or at its end.
        let start = unsafe { self.start.add(range.start) };
        Columns { start, width: range.len(), ..*self }
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The columns in a row.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows);
        // SAFETY: `all` was given whole rows, of which `part` has left at most as many columns; whoever
        // made this one has promised that nobody else uses them.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.width) }
    }
}

/// A product, with the bias added to it, becomes the result, or is added to what is there.
#[inline(always)]
pub fn store(out: &mut [f32], products: &[f32], bias: Option<&[f32]>, add: bool) {
    for (i, (out, product)) in out.iter_mut().zip(products).enumerate() {
        let product = bias.map_or(*product, |bias| product + bias[i]);
        *out = if add { *out + product } else { product };
    }
}
