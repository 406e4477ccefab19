//! `teeny_generate`, `teeny_session_generate`: a prompt in, pieces of text out, in one call.

use std::ffi::{c_char, c_void};
use std::mem::offset_of;
use std::ptr;

use teeny_runtime::{
    AnySession, EndReason, Error, GenerateOptions, Overflow, Sampler, TextStream, on_device,
};

use crate::arg::{self, teeny_text};
use crate::handle;
use crate::model::{ModelObject, teeny_model};
use crate::options::{self, Versioned};
use crate::sampler::{SamplerObject, from_options, teeny_sampler, teeny_sampler_options};
use crate::session::{SessionObject, State, teeny_end_reason, teeny_session};
use crate::status::{Failure, call, teeny_status};

/// When to end and what to hand out. `teeny_generate_options_init` fills it with the defaults; then
/// set what is to differ. Later versions of teeny may add members at the end, and programs built
/// with this header go on working.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct teeny_generate_options {
    /// `sizeof(teeny_generate_options)`, which says which members are there.
    pub size: usize,
    /// Most tokens to generate; SIZE_MAX for no limit. Default 256.
    pub max_tokens: usize,
    /// `n_stop` texts of UTF-8 that end generating; the one found is not handed out. Default NULL.
    pub stop: *const teeny_text,
    /// Default 0.
    pub n_stop: usize,
    /// 1 hands out the bytes of tokens as they are, parts of characters too; 0 waits for whole
    /// characters, with U+FFFD for what is none. Default 0.
    pub raw_bytes: u32,
    /// 1 goes on behind a token that ends a text; 0 ends there, with TEENY_END_TOKEN. Models of characters
    /// have no such token. Default 0.
    pub ignore_end: u32,
}

// SAFETY: repr(C), `size` first, and the assertions below.
unsafe impl Versioned for teeny_generate_options {
    const NAME: &'static str = "teeny_generate_options";
    const FIRST_SIZE: usize = offset_of!(teeny_generate_options, ignore_end) + size_of::<u32>();
}

// The layout is part of the ABI. Its end has no padding, so that a new member changes the size.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(teeny_generate_options::SIZE == 40 && align_of::<teeny_generate_options>() == 8);
    assert!(offset_of!(teeny_generate_options, ignore_end) + 4 == 40);
};

impl teeny_generate_options {
    fn defaults(size: usize) -> teeny_generate_options {
        let stop = ptr::null();
        teeny_generate_options {
            size,
            max_tokens: 256,
            stop,
            n_stop: 0,
            raw_bytes: 0,
            ignore_end: 0,
        }
    }

    /// # Safety
    /// `stop` is NULL or points to `n_stop` texts.
    unsafe fn stop(&self) -> Result<Vec<String>, Failure> {
        if self.n_stop == 0 {
            return Ok(Vec::new());
        }
        // SAFETY: the caller's promise.
        let texts = unsafe { arg::slice(self.stop, self.n_stop, "options.stop") }?;
        let text = |(i, text): (usize, &teeny_text)| {
            // SAFETY: the caller's promise.
            unsafe { arg::text(text.data, text.len, &format!("options.stop[{i}]")) }
                .map(str::to_owned)
        };
        texts.iter().enumerate().map(text).collect()
    }
}

/// The options of a caller, or the defaults for NULL.
///
/// # Safety
/// A pointer that is not NULL points to as many bytes as its `size` says, and its `stop` to `n_stop`
/// texts.
pub(crate) unsafe fn read_options(
    options: *const teeny_generate_options,
    feed_last: bool,
) -> Result<GenerateOptions, Failure> {
    let defaults = teeny_generate_options::defaults(teeny_generate_options::SIZE);
    // SAFETY: the caller's promise.
    let options = unsafe { options::read(options, defaults) }?;
    let switch = |name: &str, value: u32| match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Failure::argument(name, other.to_string(), "0 or 1")),
    };
    let raw_bytes = switch("options.raw_bytes", options.raw_bytes)?;
    let ignore_end = switch("options.ignore_end", options.ignore_end)?;
    // SAFETY: the caller's promise.
    let stop = unsafe { options.stop() }?;
    Ok(GenerateOptions {
        max_tokens: options.max_tokens,
        stop,
        raw_bytes,
        feed_last,
        ignore_end,
        end_tokens: Vec::new(),
        begin_text: true,
    })
}

/// Fills options with the defaults. `size` is `sizeof(teeny_generate_options)`.
///
/// Fails with TEENY_INVALID_ARGUMENT for a size that no version of the options has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_generate_options_init(
    options: *mut teeny_generate_options,
    size: usize,
) -> teeny_status {
    call(|| {
        // SAFETY: the caller's promise.
        unsafe { options::output(options, "options", size) }?
            .write(teeny_generate_options::defaults);
        Ok(())
    })
}

/// Receives a piece of text as it is generated: whole UTF-8 characters (unless `raw_bytes` is set),
/// at least one byte, `len` bytes without a zero byte at the end, valid during the call. `user_data`
/// is what was given with the callback. Return 0 to go on, anything else to stop.
pub type teeny_text_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, text: *const c_char, len: usize) -> i32>;

/// Continues a prompt and hands each piece of the new text to `callback`, on this thread: all in
/// one, with a sequence of its own that goes on without end past the model's context.
///
/// `prompt` is UTF-8 of `prompt_len` bytes, at least one character, each in the model's vocabulary.
/// `sampler_options` and `options` may be NULL for the defaults. `callback` may call teeny;
/// `user_data` is passed through to it.
///
/// Fails with TEENY_TOKENIZER for a character that the model does not know, TEENY_CANCELLED when
/// the callback asked to stop. What was handed out before a failure is good text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_generate(
    model: *const teeny_model,
    prompt: *const c_char,
    prompt_len: usize,
    sampler_options: *const teeny_sampler_options,
    options: *const teeny_generate_options,
    callback: teeny_text_callback,
    user_data: *mut c_void,
) -> teeny_status {
    call(|| {
        let model = handle::get::<ModelObject>(model, "model")?;
        // SAFETY: the caller's promise.
        let prompt = unsafe { arg::text(prompt, prompt_len, "prompt") }?;
        // SAFETY: the caller's promise.
        let mut sampler = unsafe { from_options(sampler_options) }?;
        // SAFETY: the caller's promise.
        let options = unsafe { read_options(options, false) }?;
        let callback = callback.ok_or_else(|| Failure::null("callback"))?;
        if prompt.is_empty() {
            return Err(Failure::argument("prompt", "no text", "at least one character"));
        }
        let prompt = model.model.tokenizer().encode(prompt)?;
        let mut state = State::new(AnySession::new(&model.model, Overflow::Slide)?);
        let mut stream = TextStream::new(prompt, options);
        run(&mut state, &mut sampler, &mut stream, |text| {
            // SAFETY: that it is a function of this type is the caller's promise; the text lives
            // longer than the call.
            unsafe { callback(user_data, text.as_ptr().cast(), text.len()) }
        })
    })
}

/// Continues a session: feeds a prompt, generates, and hands each piece of the new text to
/// `callback`, on this thread. Afterwards the session holds the prompt and every token that was
/// drawn, those of a stop text included (but for the last one, if the context had no room for it):
/// the next call goes on from there.
///
/// `prompt` is UTF-8 of `prompt_len` bytes, each character in the model's vocabulary; none (it may
/// be NULL then) goes on after what the session holds. `sampler` NULL stands for a new one with the
/// defaults, `options` NULL for the defaults. `callback` may call teeny, but neither with this
/// session nor with this sampler.
///
/// Fails with TEENY_TOKENIZER for a character that the model does not know, TEENY_CANCELLED when
/// the callback or `teeny_session_cancel` asked to stop, TEENY_CONTEXT_FULL as the session's
/// overflow says. What was handed out before a failure is good text and is held by the session; of a
/// prompt that was cancelled, as with `teeny_session_feed`, the first part.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_generate(
    session: *mut teeny_session,
    sampler: *mut teeny_sampler,
    prompt: *const c_char,
    prompt_len: usize,
    options: *const teeny_generate_options,
    callback: teeny_text_callback,
    user_data: *mut c_void,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        let sampler = sampler_or_default(sampler)?;
        // SAFETY: the caller's promise.
        let prompt = unsafe { arg::maybe_text(prompt, prompt_len, "prompt") }?;
        // SAFETY: the caller's promise.
        let options = unsafe { read_options(options, true) }?;
        let callback = callback.ok_or_else(|| Failure::null("callback"))?;
        let prompt = session.model.model.tokenizer().encode(prompt)?;
        let mut state = session.lock()?;
        let mut sampler = sampler.lock()?;
        let mut stream = TextStream::new(prompt, options);
        run(&mut state, &mut sampler, &mut stream, |text| {
            // SAFETY: as above.
            unsafe { callback(user_data, text.as_ptr().cast(), text.len()) }
        })
    })
}

/// The sampler of a handle, or a new one with the defaults for NULL.
pub(crate) fn sampler_or_default(
    sampler: *mut teeny_sampler,
) -> Result<std::sync::Arc<SamplerObject>, Failure> {
    if sampler.is_null() {
        return Ok(SamplerObject::new(Sampler::new(Default::default())?).into());
    }
    handle::get::<SamplerObject>(sampler, "sampler")
}

/// Hands out the pieces of a stream until it ends or the callback returns something else than 0.
fn run(
    state: &mut State,
    sampler: &mut Sampler,
    stream: &mut TextStream,
    mut callback: impl FnMut(&[u8]) -> i32,
) -> Result<(), Failure> {
    // Nobody else has the session before this function returns.
    stream.run_ahead();
    let mut result = Ok(());
    loop {
        match next(state, sampler, stream) {
            Ok(Some(text)) => {
                let answer = callback(text);
                if answer != 0 {
                    state.end_reason = teeny_end_reason::TEENY_END_CANCELLED;
                    result = Err(Failure::cancelled(answer));
                    break;
                }
            }
            Ok(None) => break,
            Err(failure) => {
                result = Err(failure);
                break;
            }
        }
    }
    let settled = on_device!(AnySession, &mut state.session, s => stream.settle(s));
    result.and(settled.map_err(Failure::from))
}

/// The next piece of a stream, keeping the session's account of it.
pub(crate) fn next<'a>(
    state: &mut State,
    sampler: &mut Sampler,
    stream: &'a mut TextStream,
) -> Result<Option<&'a [u8]>, Failure> {
    let had_ended = stream.end_reason().is_some();
    let result = on_device!(AnySession, &mut state.session, s => {
        stream.next(s, sampler).map(|piece| piece.is_some())
    });
    state.end_reason = stream.end_reason().into();
    state.first_token_time = stream.first_token_time();
    if result? {
        return Ok(Some(stream.piece()));
    }
    match stream.end_reason() {
        Some(EndReason::Cancelled) if !had_ended => Err(Error::Cancelled.into()),
        Some(_) | None => Ok(None),
    }
}
