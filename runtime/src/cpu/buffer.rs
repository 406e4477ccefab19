//! Numbers that begin at a cache line, so that the parts of several threads share none.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut};

use crate::alloc::reserve;
use crate::error::Result;

const LINE: usize = 16;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// A fixed number of f32.
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    /// `len` zeros; `what` they are, for the message.
    ///
    /// # Errors
    /// No memory.
    pub fn zeros(what: &'static str, len: usize) -> Result<Buffer> {
        let mut lines = Vec::new();
        reserve(&mut lines, len.div_ceil(LINE), what)?;
        lines.resize(len.div_ceil(LINE), Line([0.0; LINE]));
        Ok(Buffer { lines, len })
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a line is 16 numbers without padding, and there are enough of them for `len`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
