//! Saving a session and restoring it.

use std::ffi::{c_char, c_void};
use std::path::Path;

use crate::arg;
use crate::handle;
use crate::session::{SessionObject, teeny_session};
use crate::status::{call, teeny_status};

/// Saves the session's tokens, keys and values, so that a long prompt need be computed only once.
///
/// `data` has room for `capacity` bytes, and `*len` becomes their number, as in
/// `teeny_model_encode`: a first call with capacity 0 asks for it, and costs nothing. The first time
/// that a model's session is saved or restored the whole model is read, for its fingerprint.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_save(
    session: *const teeny_session,
    data: *mut c_void,
    capacity: usize,
    len: *mut usize,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { arg::buffer(data.cast::<u8>(), capacity, "data", len) }?;
        let state = session.lock()?;
        let needed = state.session.saved_len();
        if !buffer.fits(needed) {
            return buffer.write_len(needed);
        }
        let saved = state.session.save()?;
        buffer.write(&saved)
    })
}

/// Saves the session as `teeny_session_save` does, to a file: a temporary one beside it that is
/// renamed when it is whole. `path` is UTF-8 that ends in a zero byte.
///
/// Fails with TEENY_IO for a file that cannot be written; what was there before is unchanged then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_save_file(
    session: *const teeny_session,
    path: *const c_char,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        // SAFETY: the caller's promise.
        let path = unsafe { arg::terminated_text(path, "path") }?;
        session.lock()?.session.save_file(Path::new(path))?;
        Ok(())
    })
}

/// Becomes the session that was saved: it goes on bit for bit as that one would have, with its own
/// overflow; on another device than the one that saved it, to rounding. The bytes may come from anyone.
///
/// Fails with TEENY_FORMAT for bytes that are damaged or no saved session, TEENY_MISMATCH for one of
/// another model (or of another `dtype` or `max_seq_len` of it), TEENY_CONTEXT_FULL for one with more
/// tokens than this session's overflow allows. Nothing has changed then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_restore(
    session: *mut teeny_session,
    data: *const c_void,
    len: usize,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        // SAFETY: the caller's promise.
        let data = unsafe { arg::slice(data.cast::<u8>(), len, "data") }?;
        session.lock()?.session.restore(data)?;
        Ok(())
    })
}

/// Restores what `teeny_session_save_file` wrote. `path` is UTF-8 that ends in a zero byte.
///
/// Fails as `teeny_session_restore`, and with TEENY_IO for a file that cannot be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_restore_file(
    session: *mut teeny_session,
    path: *const c_char,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        // SAFETY: the caller's promise.
        let path = unsafe { arg::terminated_text(path, "path") }?;
        session.lock()?.session.restore_file(Path::new(path))?;
        Ok(())
    })
}
