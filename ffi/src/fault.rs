//! A fault on purpose, in builds with the feature `fault-injection` only: tests show with it that a
//! panic comes back as a status and that the library goes on. Not in the header, and in no build that
//! is installed.

use crate::handle;
use crate::session::{SessionObject, teeny_session};
use crate::status::{call, teeny_status};

/// Panics while it uses the session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_test_panic(session: *mut teeny_session) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        let state = session.lock()?;
        panic!("on purpose, after {} tokens", state.session.n_tokens());
    })
}
