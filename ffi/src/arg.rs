//! Pointers from C, checked for what can be checked: NULL, alignment, length and UTF-8.

use std::ffi::{CStr, c_char};

use crate::status::Failure;

/// What a pointer points to.
///
/// # Safety
/// One that is not NULL points to a `T` that nobody changes during `'a`.
pub(crate) unsafe fn reference<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    check(pointer, name)?;
    // SAFETY: not NULL and aligned; the rest is the caller's promise.
    Ok(unsafe { &*pointer })
}

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
