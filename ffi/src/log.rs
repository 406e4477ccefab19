//! The log callback: the one setting of the whole process.

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::sync::{PoisonError, RwLock};

/// How much a message matters.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum teeny_log_level {
    /// A fault in teeny.
    TEENY_LOG_ERROR = 1,
    /// Something works, but not as well as it could.
    TEENY_LOG_WARN = 2,
    /// What was loaded.
    TEENY_LOG_INFO = 3,
    /// Every call that fails, with its message.
    TEENY_LOG_DEBUG = 4,
}

/// Receives a log message: UTF-8 of `len` bytes without a zero byte at the end, valid during the
/// call. It runs on the thread whose call has something to say. It may call teeny; nothing is
/// logged meanwhile.
pub type teeny_log_callback = Option<
    unsafe extern "C" fn(user_data: *mut c_void, level: i32, message: *const c_char, len: usize),
>;

#[derive(Clone, Copy)]
pub(crate) struct Sink {
    pub(crate) level: i32,
    pub(crate) callback: unsafe extern "C" fn(*mut c_void, i32, *const c_char, usize),
    pub(crate) user_data: *mut c_void,
}

// SAFETY: that user_data may be used on every thread that calls teeny is the caller's promise.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

thread_local! {
    static LOGGING: Cell<bool> = const { Cell::new(false) };
}

/// Where messages go from now on; `None` for nowhere.
pub(crate) fn set_sink(sink: Option<Sink>) {
    *SINK.write().unwrap_or_else(PoisonError::into_inner) = sink;
}

/// Hands a message to the callback, if there is one that wants it.
pub(crate) fn log(level: teeny_log_level, message: impl FnOnce() -> String) {
    let sink = *SINK.read().unwrap_or_else(PoisonError::into_inner);
    let Some(sink) = sink.filter(|sink| level as i32 <= sink.level) else { return };
    if LOGGING.try_with(|logging| logging.replace(true)).unwrap_or(true) {
        return;
    }
    let message = message();
    // SAFETY: that it is a function of this type is the caller's promise; the message lives longer
    // than the call.
    unsafe {
        (sink.callback)(sink.user_data, level as i32, message.as_ptr().cast(), message.len())
    };
    let _ = LOGGING.try_with(|logging| logging.set(false));
}
