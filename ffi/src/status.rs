//! Status codes, the message of the last error, and the wall that no panic passes.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char};
use std::io::ErrorKind;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, MutexGuard, Once, TryLockError};

use teeny_runtime::Error;

use crate::log::{log, teeny_log_level as Level};

/// What became of a call. `teeny_last_error()` says more about all but the first.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum teeny_status {
    /// It succeeded.
    TEENY_OK = 0,
    /// An argument that cannot work, such as a negative temperature or text that is not UTF-8.
    TEENY_INVALID_ARGUMENT = 1,
    /// A pointer was NULL that must not be.
    TEENY_NULL_POINTER = 2,
    /// A file could not be opened, read or written.
    TEENY_IO = 3,
    /// A file or memory that holds no model or no saved session, or a damaged one.
    TEENY_FORMAT = 4,
    /// Text or tokens that the model's vocabulary does not cover.
    TEENY_TOKENIZER = 5,
    /// More tokens than the model's context holds, where that is not to be exceeded.
    TEENY_CONTEXT_FULL = 6,
    /// Memory could not be allocated.
    TEENY_OUT_OF_MEMORY = 7,
    /// A callback or `teeny_session_cancel` asked to stop.
    TEENY_CANCELLED = 8,
    /// A fault in teeny. The library still works; what the fault has interrupted gives this status
    /// until it is reset or freed. Please report the message.
    TEENY_PANIC = 9,
    /// A failure that has no status of its own.
    TEENY_OTHER = 10,
    /// An object that is freed, of another type, or none of teeny's.
    TEENY_INVALID_HANDLE = 11,
    /// The object is in use: by a call on another thread, or by the one whose callback this is.
    TEENY_BUSY = 12,
    /// The buffer is too small for the result, whose length was written; nothing else was.
    TEENY_BUFFER_TOO_SMALL = 13,
    /// There is nothing of this key or index.
    TEENY_NOT_FOUND = 14,
    /// This build of the library or this machine lacks what was asked for.
    TEENY_UNSUPPORTED = 15,
    /// A saved session of another model.
    TEENY_MISMATCH = 16,
    /// A GPU failed while it was in use. What it was doing has not happened; if the device is lost, so
    /// are the models and sessions on it, each of whose calls gives this status until they are freed.
    TEENY_DEVICE = 17,
}

const NAMES: [&CStr; 18] = [
    c"TEENY_OK",
    c"TEENY_INVALID_ARGUMENT",
    c"TEENY_NULL_POINTER",
    c"TEENY_IO",
    c"TEENY_FORMAT",
    c"TEENY_TOKENIZER",
    c"TEENY_CONTEXT_FULL",
    c"TEENY_OUT_OF_MEMORY",
    c"TEENY_CANCELLED",
    c"TEENY_PANIC",
    c"TEENY_OTHER",
    c"TEENY_INVALID_HANDLE",
    c"TEENY_BUSY",
    c"TEENY_BUFFER_TOO_SMALL",
    c"TEENY_NOT_FOUND",
    c"TEENY_UNSUPPORTED",
    c"TEENY_MISMATCH",
    c"TEENY_DEVICE",
];

/// Name of a status, such as "TEENY_IO", ending in a zero byte; "unknown status" for a number that
/// is none. It lives as long as the library is loaded.
#[unsafe(no_mangle)]
pub extern "C" fn teeny_status_name(status: i32) -> *const c_char {
    let name = usize::try_from(status).ok().and_then(|status| NAMES.get(status));
    name.map_or(c"unknown status", |name| *name).as_ptr()
}

/// Why a call failed.
#[derive(Debug)]
pub(crate) struct Failure {
    status: teeny_status,
    message: String,
}

impl Failure {
    pub(crate) fn null(name: &str) -> Failure {
        let message = format!("{name}: found NULL, expected a pointer");
        Failure::new(teeny_status::TEENY_NULL_POINTER, message)
    }

    pub(crate) fn argument(name: &str, found: impl Into<String>, expected: &str) -> Failure {
        let found = found.into();
        let message = format!("{name}: found {found}, expected {expected}");
        Failure::new(teeny_status::TEENY_INVALID_ARGUMENT, message)
    }

    pub(crate) fn cancelled(answer: i32) -> Failure {
        Failure::new(
            teeny_status::TEENY_CANCELLED,
            format!("cancelled: the callback returned {answer}"),
        )
    }

    pub(crate) fn new(status: teeny_status, message: impl Into<String>) -> Failure {
        Failure { status, message: message.into() }
    }

    /// The same failure, of this thing.
    pub(crate) fn with_context(self, thing: &str) -> Failure {
        Failure { message: format!("{thing}: {}", self.message), ..self }
    }

    /// What a panic carried, and where it came from.
    fn panicked(payload: &(dyn Any + Send)) -> Failure {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let place = PANIC_PLACE.try_with(RefCell::take).unwrap_or_default();
        let message = format!("fault in teeny{place}: {}", text.unwrap_or("no message"));
        Failure::new(teeny_status::TEENY_PANIC, message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        // The runtime may add kinds of errors, so the last arm has to be there.
        #[allow(clippy::wildcard_enum_match_arm)]
        let status = match error {
            Error::Io { ref source, .. } if source.kind() == ErrorKind::OutOfMemory => {
                teeny_status::TEENY_OUT_OF_MEMORY
            }
            Error::Io { .. } => teeny_status::TEENY_IO,
            Error::Format { .. } | Error::State { .. } => teeny_status::TEENY_FORMAT,
            Error::OtherModel => teeny_status::TEENY_MISMATCH,
            Error::Tokenizer(_) => teeny_status::TEENY_TOKENIZER,
            Error::ContextFull { .. } => teeny_status::TEENY_CONTEXT_FULL,
            Error::Argument { .. } => teeny_status::TEENY_INVALID_ARGUMENT,
            Error::OutOfMemory { .. } => teeny_status::TEENY_OUT_OF_MEMORY,
            Error::NoDevice { .. } => teeny_status::TEENY_UNSUPPORTED,
            Error::Device { .. } => teeny_status::TEENY_DEVICE,
            Error::Cancelled => teeny_status::TEENY_CANCELLED,
            _ => teeny_status::TEENY_OTHER,
        };
        Failure::new(status, error.to_string())
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
    /// Calls that this thread is in; more than one where a callback calls teeny.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static PANIC_PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What went wrong in the last call on this thread, in words, ending in a zero byte; empty if
/// nothing did. Never NULL.
///
/// The text lives until this thread calls any other function of teeny but `teeny_version`,
/// `teeny_abi_version`, `teeny_build_info` and `teeny_status_name`: each call clears it, and one that
/// fails sets it anew. Copy what is to live longer.
#[unsafe(no_mangle)]
pub extern "C" fn teeny_last_error() -> *const c_char {
    // Without `call`, which clears the message. The borrow cannot fail: whoever changes the message
    // calls nothing that leads here. The thread local is gone only while the thread ends.
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The state of an object that one call uses at a time.
pub(crate) fn lock<'a, T>(state: &'a Mutex<T>, name: &str) -> Result<MutexGuard<'a, T>, Failure> {
    state.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Failure::new(
            teeny_status::TEENY_BUSY,
            format!("{name}: it is in use by another call, on another thread or around this one"),
        ),
        TryLockError::Poisoned(_) => Failure::new(
            teeny_status::TEENY_PANIC,
            format!(
                "{name}: a fault in teeny has interrupted an earlier call; reset it or free it"
            ),
        ),
    })
}

/// Runs the body of an exported function: whatever happens becomes a status and a message.
pub(crate) fn call(body: impl FnOnce() -> Result<(), Failure>) -> teeny_status {
    match enter(body) {
        Ok(()) => teeny_status::TEENY_OK,
        Err(status) => status,
    }
}

/// As [`call`], for functions that return a value: `otherwise` on failure.
pub(crate) fn call_or<T>(otherwise: T, body: impl FnOnce() -> Result<T, Failure>) -> T {
    enter(body).unwrap_or(otherwise)
}

fn enter<T>(body: impl FnOnce() -> Result<T, Failure>) -> Result<T, teeny_status> {
    keep_panics_quiet();
    forget();
    let depth = DEPTH.try_with(|depth| depth.replace(depth.get() + 1));
    // A body owns what it changes, or has locked it, and then the lock is poisoned: nobody sees the
    // half-done work of one that panicked.
    let result = panic::catch_unwind(AssertUnwindSafe(body));
    let result = result.unwrap_or_else(|payload| Err(Failure::panicked(&*payload)));
    if let Ok(depth) = depth {
        // The thread local was there before, and the thread cannot have ended since.
        let _ = DEPTH.try_with(|current| current.set(depth));
    }
    match result {
        Ok(value) => {
            // A callback may have made a call that failed.
            forget();
            Ok(value)
        }
        Err(failure) => {
            let fault = failure.status == teeny_status::TEENY_PANIC;
            let level = if fault { Level::TEENY_LOG_ERROR } else { Level::TEENY_LOG_DEBUG };
            log(level, || failure.message.clone());
            // After the log callback, which may have called teeny.
            remember(failure.message);
            Err(failure.status)
        }
    }
}

fn remember(message: String) {
    // A zero byte would end the message early for C.
    let message = CString::new(message.replace('\0', "\u{fffd}")).unwrap_or_default();
    let _ = LAST_ERROR.try_with(|last| last.replace(message));
}

fn forget() {
    let _ = LAST_ERROR.try_with(|last| {
        let mut last = last.borrow_mut();
        if !last.is_empty() {
            *last = CString::default();
        }
    });
}

/// Panics inside of a call are reported as a status, not printed to standard error. All others go
/// where they went before.
fn keep_panics_quiet() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if DEPTH.try_with(Cell::get).unwrap_or(0) == 0 {
                return previous(info);
            }
            let place = info.location().map(|place| format!(" at {place}")).unwrap_or_default();
            let _ = PANIC_PLACE.try_with(|last| last.replace(place));
        }));
    });
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn last_error() -> String {
        // SAFETY: it is never NULL and ends in a zero byte.
        let message = unsafe { CStr::from_ptr(teeny_last_error()) };
        message.to_str().expect("UTF-8").to_owned()
    }

    #[test]
    fn a_panic_becomes_a_status_and_the_library_still_works() {
        let number = String::from("seven");
        assert_eq!(call(|| panic!("wrong {number}")), teeny_status::TEENY_PANIC);
        let message = last_error();
        // Only the hook that prints nothing knows the place.
        assert!(message.starts_with("fault in teeny at ffi"), "{message}");
        assert!(message.ends_with(": wrong seven"), "{message}");
        assert_eq!(call_or(7, || panic!("constant")), 7);
        assert!(last_error().ends_with(": constant"));
        assert_eq!(call(|| panic::panic_any(5)), teeny_status::TEENY_PANIC);
        assert!(last_error().ends_with(": no message"));
        assert_eq!(call(|| Ok(())), teeny_status::TEENY_OK);
        assert_eq!(last_error(), "");
        assert_eq!(DEPTH.get(), 0);
    }

    #[test]
    fn the_message_is_that_of_the_outer_call() {
        let inner = || call(|| Err(Failure::null("inner")));
        assert_eq!(
            call(|| {
                inner();
                Ok(())
            }),
            teeny_status::TEENY_OK
        );
        assert_eq!(last_error(), "");
        assert_eq!(
            call(|| {
                inner();
                Err(Failure::cancelled(3))
            }),
            teeny_status::TEENY_CANCELLED
        );
        assert_eq!(last_error(), "cancelled: the callback returned 3");
    }

    #[test]
    fn a_zero_byte_does_not_cut_the_message() {
        call(|| Err(Failure::argument("a\0b", "c", "d")));
        assert_eq!(last_error(), "a\u{fffd}b: found c, expected d");
    }

    #[test]
    fn every_thread_has_its_own_message() {
        call(|| Err(Failure::null("here")));
        let there = std::thread::spawn(last_error).join().expect("no panic");
        assert_eq!(there, "");
        assert_eq!(last_error(), "here: found NULL, expected a pointer");
    }
}
