//! Pointers from C, checked for what can be checked: NULL, alignment, length and UTF-8. Objects come
//! as handles instead.

use std::ffi::{CStr, c_char};

use crate::status::{Failure, teeny_status};

/// Text or bytes of length `len`, without a zero byte at the end.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct teeny_text {
    pub data: *const c_char,
    pub len: usize,
}

impl teeny_text {
    pub(crate) fn of(bytes: &[u8]) -> teeny_text {
        // The address of an empty slice is none that C would expect.
        let data = if bytes.is_empty() { c"".as_ptr() } else { bytes.as_ptr().cast() };
        teeny_text { data, len: bytes.len() }
    }
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<teeny_text>() == 16);

/// `len` things from a pointer on.
///
/// # Safety
/// One that is not NULL points to `len` values of `T` that nobody changes during `'a`.
pub(crate) unsafe fn slice<'a, T>(
    pointer: *const T,
    len: usize,
    name: &str,
) -> Result<&'a [T], Failure> {
    check(pointer, name)?;
    if len > isize::MAX as usize / size_of::<T>() {
        return Err(Failure::argument(name, format!("length {len}"), "one that fits in memory"));
    }
    // SAFETY: not NULL, aligned, and of a length that a slice may have; the rest is the caller's
    // promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
}

/// UTF-8 text of `len` bytes.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn text<'a>(
    pointer: *const c_char,
    len: usize,
    name: &str,
) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    utf8(unsafe { slice(pointer.cast(), len, name) }?, name)
}

/// As [`text`], where NULL with length 0 is none.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn maybe_text<'a>(
    pointer: *const c_char,
    len: usize,
    name: &str,
) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    utf8(unsafe { maybe_slice(pointer.cast(), len, name) }?, name)
}

/// UTF-8 text up to a zero byte.
///
/// # Safety
/// A pointer that is not NULL points to text that ends in a zero byte and that nobody changes
/// during `'a`.
pub(crate) unsafe fn terminated_text<'a>(
    pointer: *const c_char,
    name: &str,
) -> Result<&'a str, Failure> {
    check(pointer, name)?;
    // SAFETY: not NULL; the rest is the caller's promise.
    utf8(unsafe { CStr::from_ptr(pointer) }.to_bytes(), name)
}

/// As [`slice`], where NULL with length 0 is none.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn maybe_slice<'a, T>(
    pointer: *const T,
    len: usize,
    name: &str,
) -> Result<&'a [T], Failure> {
    if pointer.is_null() && len == 0 {
        return Ok(&[]);
    }
    // SAFETY: the caller's promise.
    unsafe { slice(pointer, len, name) }
}

/// A caller's buffer for a result whose length the caller may not know, with a place for the length.
/// No capacity at all asks for the length only.
pub(crate) struct Buffer<T> {
    pointer: *mut T,
    capacity: usize,
    len: Output<usize>,
}

/// # Safety
/// A buffer that is not NULL has memory for `capacity` values, and `len` is a place for a result.
pub(crate) unsafe fn buffer<T>(
    pointer: *mut T,
    capacity: usize,
    name: &str,
    len: *mut usize,
) -> Result<Buffer<T>, Failure> {
    if capacity > 0 {
        check(pointer, name)?;
    }
    // SAFETY: the caller's promise.
    let len = unsafe { output(len, "len") }?;
    Ok(Buffer { pointer, capacity, len })
}

impl<T: Copy> Buffer<T> {
    /// Whether the result itself is wanted and of this length would fit. If not, it is made only to
    /// be measured.
    pub(crate) fn fits(&self, len: usize) -> bool {
        len <= self.capacity
    }

    /// Writes the length, and the values if there is room.
    pub(crate) fn write(self, values: &[T]) -> Result<(), Failure> {
        let Buffer { pointer, capacity, len } = self;
        len.write(values.len());
        if capacity == 0 {
            return Ok(());
        }
        if values.len() > capacity {
            return Err(too_small(capacity, values.len()));
        }
        // SAFETY: `buffer` has checked the pointer and has the promise for `capacity` values.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), pointer, values.len()) };
        Ok(())
    }

    /// Writes the length of a result that is not made because it would not fit.
    pub(crate) fn write_len(self, n: usize) -> Result<(), Failure> {
        let capacity = self.capacity;
        self.len.write(n);
        if capacity == 0 { Ok(()) } else { Err(too_small(capacity, n)) }
    }
}

fn too_small(capacity: usize, len: usize) -> Failure {
    let message = format!("capacity: found {capacity}, expected at least {len}");
    Failure::new(teeny_status::TEENY_BUFFER_TOO_SMALL, message)
}

/// `len` values that are to be written one by one.
///
/// # Safety
/// One that is not NULL points to memory for `len` values of `T`, which need not be values yet.
pub(crate) unsafe fn output_slice<T: Copy>(
    pointer: *mut T,
    len: usize,
    name: &str,
) -> Result<OutputSlice<T>, Failure> {
    check(pointer, name)?;
    if len > isize::MAX as usize / size_of::<T>() {
        return Err(Failure::argument(name, format!("length {len}"), "one that fits in memory"));
    }
    Ok(OutputSlice { pointer, len })
}

/// A checked place for several results.
pub(crate) struct OutputSlice<T> {
    pointer: *mut T,
    len: usize,
}

impl<T: Copy> OutputSlice<T> {
    /// Writes one value; beyond the end, nothing.
    pub(crate) fn write(&mut self, index: usize, value: T) {
        if index < self.len {
            // SAFETY: within what `output_slice` has been promised.
            unsafe { self.pointer.add(index).write(value) }
        }
    }
}

/// Where a result may be written.
///
/// # Safety
/// A pointer that is not NULL points to memory for a `T`. What lies there need not be a `T` yet.
pub(crate) unsafe fn output<T>(pointer: *mut T, name: &str) -> Result<Output<T>, Failure> {
    check(pointer, name)?;
    Ok(Output(pointer))
}

/// A checked place for a result, so that a call can refuse it before the work and write after.
pub(crate) struct Output<T>(*mut T);

impl<T> Output<T> {
    pub(crate) fn write(self, value: T) {
        // SAFETY: `output` has checked the pointer and has the caller's promise for the memory.
        unsafe { self.0.write(value) }
    }
}

/// Refuses NULL and what no object of this type can have as its address.
pub(crate) fn check<T>(pointer: *const T, name: &str) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::null(name));
    }
    if !pointer.is_aligned() {
        let expected = format!("a multiple of {}", align_of::<T>());
        return Err(Failure::argument(name, format!("address {pointer:p}"), &expected));
    }
    Ok(())
}

fn utf8<'a>(bytes: &'a [u8], name: &str) -> Result<&'a str, Failure> {
    std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        Failure::argument(name, format!("byte {:#04x} at {at}", bytes[at]), "UTF-8")
    })
}
