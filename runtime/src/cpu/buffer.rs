//! Memory for activations: it begins at a cache line, so that the parts of several threads share none, and
//! costs nothing until it is used.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};
use std::ops::{Deref, DerefMut};

use crate::error::{Error, Result};

/// Numbers in a cache line.
const LINE: usize = 16;

/// A fixed number of f32.
pub struct Buffer {
    /// With a line more than asked for.
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zeros; `what` they are, for the message.
    ///
    /// # Errors
    /// No memory.
    pub fn zeros(what: &'static str, len: usize) -> Result<Buffer> {
        let none = || Error::OutOfMemory { what, bytes: len.saturating_mul(4) };
        let capacity = len.checked_add(LINE).ok_or_else(none)?;
        let layout = Layout::array::<f32>(capacity).map_err(|_| none())?;
        // SAFETY: the layout is not empty. The system has zeros at hand, which it does not write.
        let start = unsafe { alloc_zeroed(layout) }.cast::<f32>();
        if start.is_null() {
            return Err(none());
        }
        // SAFETY: allocated just so, and zero is a number.
        let values = unsafe { Vec::from_raw_parts(start, capacity, capacity) };
        let start = (start as usize).wrapping_neg() % (4 * LINE) / 4;
        Ok(Buffer { values, start, len })
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..][..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..][..self.len]
    }
}
