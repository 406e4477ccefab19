//! `teeny_stream`: generated text, pulled piece by piece.

use std::ffi::c_char;
use std::sync::{Arc, Mutex};

use teeny_runtime::TextStream;

use crate::arg::{self, teeny_text};
use crate::generate::{next, read_options, sampler_or_default, teeny_generate_options};
use crate::handle;
use crate::sampler::{SamplerObject, teeny_sampler};
use crate::session::{SessionObject, teeny_end_reason, teeny_session};
use crate::status::{call, lock, teeny_status};

/// Text that is being generated, for programs that ask for the next piece instead of being called.
/// Used by one call at a time, on any thread; a second one at the same time fails with TEENY_BUSY.
pub struct teeny_stream;

pub(crate) struct StreamObject {
    session: Arc<SessionObject>,
    sampler: Arc<SamplerObject>,
    stream: Mutex<TextStream>,
}

impl handle::Kind for StreamObject {
    type Handle = teeny_stream;
    const NAME: &'static str = "teeny_stream";
    const TAG: usize = 4;
}

/// Prepares to continue a session as `teeny_session_generate` does, with the same arguments. Nothing
/// is fed before the first `teeny_stream_next`.
///
/// The stream keeps session and sampler alive. Both may be used between its pieces; what is fed
/// then becomes part of the text that it continues.
///
/// `*out` is set on success; `teeny_stream_free` frees it. Fails with TEENY_TOKENIZER for a character
/// that the model does not know.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_stream_new(
    session: *mut teeny_session,
    sampler: *mut teeny_sampler,
    prompt: *const c_char,
    prompt_len: usize,
    options: *const teeny_generate_options,
    out: *mut *mut teeny_stream,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        let sampler = sampler_or_default(sampler)?;
        // SAFETY: the caller's promise.
        let prompt = unsafe { arg::maybe_text(prompt, prompt_len, "prompt") }?;
        // SAFETY: the caller's promise.
        let options = unsafe { read_options(options, true) }?;
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(out, "out") }?;
        let prompt = session.model.model.tokenizer().encode(prompt)?;
        let stream = Mutex::new(TextStream::new(prompt, options));
        out.write(handle::new(StreamObject { session, sampler, stream })?);
        Ok(())
    })
}

/// Generates until there is a piece of text, most often one token, and the first time the prompt.
/// The text is the stream's: it lives until the next call for this stream. At the end `piece->len`
/// is 0, then and ever after.
///
/// The session holds every token whose text was handed out. Fails as `teeny_session_generate`; the
/// stream has ended then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_stream_next(
    stream: *mut teeny_stream,
    piece: *mut teeny_text,
) -> teeny_status {
    call(|| {
        let stream = handle::get::<StreamObject>(stream, "stream")?;
        // SAFETY: the caller's promise.
        let piece = unsafe { arg::output(piece, "piece") }?;
        let mut text = lock(&stream.stream, "stream")?;
        let mut state = stream.session.lock()?;
        let mut sampler = stream.sampler.lock()?;
        let found = next(&mut state, &mut sampler, &mut text)?;
        piece.write(teeny_text::of(found.unwrap_or_default()));
        Ok(())
    })
}

/// Why the stream has ended, a teeny_end_reason; TEENY_END_NONE while it goes on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_stream_end_reason(
    stream: *const teeny_stream,
    reason: *mut i32,
) -> teeny_status {
    call(|| {
        let stream = handle::get::<StreamObject>(stream, "stream")?;
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(reason, "reason") }?;
        let end = lock(&stream.stream, "stream")?.end_reason();
        out.write(teeny_end_reason::from(end) as i32);
        Ok(())
    })
}

/// Frees a stream, ended or not. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_stream_free(stream: *mut teeny_stream) {
    call(|| handle::free::<StreamObject>(stream, "stream"));
}
