//! The C interface: `libteeny.so`, `libteeny.a` and `include/teeny.h`, which is generated from the
//! comments and types here.
//!
//! | file | holds | may import |
//! |---|---|---|
//! | `lib.rs` | versions, the setting of the log callback | log, status |
//! | `status.rs` | status codes, the last error, the wall that no panic passes | log |
//! | `log.rs` | messages for the log callback | – |
//! | `reserve.rs` | memory for messages when there is none | – |
//! | `arg.rs`, `options.rs` | pointers and structs from C, checked | status |
//! | `handle.rs` | what C holds instead of objects | status |
//! | `model.rs` | `teeny_model` | handle |
//! | `text.rs` | text to tokens and back | model |
//! | `sampler.rs` | `teeny_sampler` | handle |
//! | `session.rs` | `teeny_session` | model, sampler |
//! | `state.rs` | saving and restoring a session | session |
//! | `generate.rs` | text in one call | session |
//! | `stream.rs` | `teeny_stream`, text piece by piece | generate |
//! | `score.rs` | how likely a text is | session |
//!
//! Public items have the names that C sees. Their comments are the header's and speak to a reader
//! of C. All of them rest on what the header's introduction asks of a caller: a pointer that is not
//! NULL points to what the function asks for and stays valid during the call. SAFETY sentences say
//! "the caller's promise" for that. Objects are handles and need no such promise.
#![allow(unsafe_code)]
#![allow(non_camel_case_types)] // the names of C
#![allow(clippy::missing_safety_doc)] // the header says it once for all functions

#[cfg(all(panic = "abort", not(test)))]
compile_error!("a panic must become TEENY_PANIC, so the library needs panic = \"unwind\"");

// In the order of the header, which the blank lines keep.
mod status;

mod log;

mod reserve;

mod arg;

mod options;

mod handle;

mod model;

mod text;

mod sampler;

mod session;

mod state;

mod generate;

mod stream;

mod score;

#[cfg(feature = "fault-injection")]
mod fault;

use std::ffi::{CString, c_char, c_void};
use std::sync::OnceLock;

use teeny_runtime::cpu::Isa;

use crate::log::{teeny_log_callback, teeny_log_level as Level};
use crate::status::{Failure, call, teeny_status};

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

/// The library in one line for a report: its version, what it was built for, its backends, and the
/// instruction sets that it has found on this machine, the one that it uses last. It ends in a zero
/// byte and lives as long as the library is loaded.
#[unsafe(no_mangle)]
pub extern "C" fn teeny_build_info() -> *const c_char {
    static INFO: OnceLock<CString> = OnceLock::new();
    let info = INFO.get_or_init(|| {
        let isas: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
        let info = format!(
            "teeny {} (ABI {TEENY_ABI_VERSION}), {} {}, backends: cpu, cpu instruction sets: {}",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::OS,
            std::env::consts::ARCH,
            isas.join(" ")
        );
        CString::new(info).unwrap_or_default()
    });
    info.as_ptr()
}

/// Sets where log messages of `level` (a teeny_log_level) and below go, for the whole process;
/// `callback` NULL switches logging off, as it is at first. `user_data` is passed to each call, on
/// any thread that uses teeny. A call on another thread that has begun already may still reach the
/// callback that was set before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_set_log_callback(
    level: i32,
    callback: teeny_log_callback,
    user_data: *mut c_void,
) -> teeny_status {
    call(|| {
        let known = Level::TEENY_LOG_ERROR as i32..=Level::TEENY_LOG_DEBUG as i32;
        if callback.is_some() && !known.contains(&level) {
            return Err(Failure::argument("level", level.to_string(), "a teeny_log_level, 1 to 4"));
        }
        log::set_sink(callback.map(|callback| log::Sink { level, callback, user_data }));
        Ok(())
    })
}
