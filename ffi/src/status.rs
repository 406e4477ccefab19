//! Status codes, the message of the last error, and the wall that no panic passes.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use teeny_runtime::Error;

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
    /// A file could not be opened or read.
    TEENY_IO = 3,
    /// The file is no model, or a damaged one.
    TEENY_FORMAT = 4,
    /// Text that the model's vocabulary does not cover.
    TEENY_TOKENIZER = 5,
    /// More tokens than the model's context holds, where that is not to be exceeded.
    TEENY_CONTEXT_FULL = 6,
    /// Memory could not be allocated.
    TEENY_OUT_OF_MEMORY = 7,
    /// The callback asked to stop.
    TEENY_CANCELLED = 8,
    /// A fault in teeny. The library still works; please report the message.
    TEENY_PANIC = 9,
    /// A failure that has no status of its own.
    TEENY_OTHER = 10,
}

/// Why a call failed.
#[derive(Debug)]
pub(crate) struct Failure {
    status: teeny_status,
    message: String,
}

impl Failure {
    pub(crate) fn null(name: &str) -> Failure {
        Failure {
            status: teeny_status::TEENY_NULL_POINTER,
            message: format!("{name}: found NULL, expected a pointer"),
        }
    }

    pub(crate) fn argument(name: &str, found: impl Into<String>, expected: &str) -> Failure {
        let found = found.into();
        Failure {
            status: teeny_status::TEENY_INVALID_ARGUMENT,
            message: format!("{name}: found {found}, expected {expected}"),
        }
    }

    pub(crate) fn cancelled(answer: i32) -> Failure {
        Failure {
            status: teeny_status::TEENY_CANCELLED,
            message: format!("cancelled: the callback returned {answer}"),
        }
    }

    /// What a panic carried, and where it came from.
    fn panicked(payload: &(dyn Any + Send)) -> Failure {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let place = PANIC_PLACE.try_with(RefCell::take).unwrap_or_default();
        let message = format!("fault in teeny{place}: {}", text.unwrap_or("no message"));
        Failure { status: teeny_status::TEENY_PANIC, message }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        // The runtime may add kinds of errors, so the last arm has to be there.
        #[allow(clippy::wildcard_enum_match_arm)]
        let status = match error {
            Error::Io { .. } => teeny_status::TEENY_IO,
            Error::Format { .. } => teeny_status::TEENY_FORMAT,
            Error::Tokenizer(_) => teeny_status::TEENY_TOKENIZER,
            Error::ContextFull { .. } => teeny_status::TEENY_CONTEXT_FULL,
            Error::Argument { .. } => teeny_status::TEENY_INVALID_ARGUMENT,
            Error::OutOfMemory { .. } => teeny_status::TEENY_OUT_OF_MEMORY,
            _ => teeny_status::TEENY_OTHER,
        };
        Failure { status, message: error.to_string() }
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
/// The text lives until this thread calls any other function of teeny but `teeny_version` and
/// `teeny_abi_version`: each call clears it, and one that fails sets it anew. Copy what is to live
/// longer.
#[unsafe(no_mangle)]
pub extern "C" fn teeny_last_error() -> *const c_char {
    // Without `call`, which clears the message. The borrow cannot fail: whoever changes the message
    // calls nothing that leads here. The thread local is gone only while the thread ends.
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
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
    // A body owns what it changes, and what it shares with other calls is immutable, so nobody sees
    // the half-done work of one that panicked.
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
