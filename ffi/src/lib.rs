//! The C interface: `libteeny.so`, `libteeny.a` and `include/teeny.h`, which is generated from the
//! comments and types here.
//!
//! | file | holds | may import |
//! |---|---|---|
//! | `lib.rs` | versions | – |
//! | `status.rs` | status codes, the last error, the wall that no panic passes | – |
//! | `arg.rs` | pointers from C, checked | status |
//! | `model.rs` | `teeny_model` | arg |
//! | `generate.rs` | `teeny_generate` and its options | model |
//!
//! Public items have the names that C sees. Their comments are the header's and speak to a reader
//! of C. All of them rest on what the header's introduction asks of a caller: a pointer that is not
//! NULL points to what the function asks for and stays valid during the call. SAFETY sentences say
//! "the caller's promise" for that.
#![allow(unsafe_code)]
#![allow(non_camel_case_types)] // the names of C

#[cfg(all(panic = "abort", not(test)))]
compile_error!("a panic must become TEENY_PANIC, so the library needs panic = \"unwind\"");

// In the order of the header, which the blank lines keep.
mod status;

mod arg;

mod model;

mod generate;

use std::ffi::c_char;

/// Version of the interface that this header describes. The library has the same interface if
/// `teeny_abi_version()` returns the same number.
pub const TEENY_ABI_VERSION: u32 = 1;

/// Version of the interface that the library has, to be compared with `TEENY_ABI_VERSION`.
#[unsafe(no_mangle)]
pub extern "C" fn teeny_abi_version() -> u32 {
    TEENY_ABI_VERSION
}

/// Version of the library, such as "0.1.0", ending in a zero byte. It lives as long as the library
/// is loaded.
#[unsafe(no_mangle)]
pub extern "C" fn teeny_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}
