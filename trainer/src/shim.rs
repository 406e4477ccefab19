//! What `cuda_graph.rs` and `distributed.rs` share of the C interface in `shim/shim.h`.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};

unsafe extern "C" {
    fn teeny_shim_free_message(message: *mut c_char);
}

/// The message of a failure, or `Ok` for none; takes the message.
///
/// # Safety
/// `message` is NULL or what a function of the shim returned, and nobody else frees it.
pub(crate) unsafe fn check(message: *mut c_char) -> Result<(), String> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: by the contract above this is a string of the shim's, not yet freed.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().trim().to_owned();
    // SAFETY: as above; `text` is a copy.
    unsafe { teeny_shim_free_message(message) };
    Err(text)
}
