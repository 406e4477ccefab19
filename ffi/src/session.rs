//! `teeny_session`: one sequence of tokens with its KV cache.

use std::mem::offset_of;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use teeny_runtime::{AnySession, CancelFlag, EndReason, Overflow};

use crate::arg;
use crate::handle;
use crate::model::{ModelObject, teeny_model};
use crate::options::{self, Versioned};
use crate::sampler::{SamplerObject, teeny_sampler};
use crate::status::{Failure, call, call_or, lock, teeny_status};

/// One sequence of tokens that a model has seen. It keeps its model alive. Used by one call at a
/// time, on any thread; a second one at the same time fails with TEENY_BUSY.
pub struct teeny_session;

pub(crate) struct SessionObject {
    pub(crate) model: Arc<ModelObject>,
    /// Apart from the session, because it is for those who do not have it.
    cancel: CancelFlag,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub(crate) session: AnySession,
    pub(crate) first_token_time: Option<Duration>,
    pub(crate) end_reason: teeny_end_reason,
}

impl SessionObject {
    fn new(model: Arc<ModelObject>, session: AnySession) -> SessionObject {
        let cancel = session.cancel_flag().clone();
        SessionObject { model, cancel, state: Mutex::new(State::new(session)) }
    }

    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, State>, Failure> {
        lock(&self.state, "session")
    }
}

impl handle::Kind for SessionObject {
    type Handle = teeny_session;
    const NAME: &'static str = "teeny_session";
    const TAG: usize = 2;
}

impl State {
    pub(crate) fn new(session: AnySession) -> State {
        let end_reason = teeny_end_reason::TEENY_END_NONE;
        State { session, first_token_time: None, end_reason }
    }
}

/// What happens to a token for which the model's context has no room.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum teeny_overflow {
    /// The oldest tokens are forgotten and the text goes on without end.
    TEENY_OVERFLOW_SLIDE = 0,
    /// Generating ends there; feeding fails with TEENY_CONTEXT_FULL.
    TEENY_OVERFLOW_STOP = 1,
    /// Both fail with TEENY_CONTEXT_FULL.
    TEENY_OVERFLOW_ERROR = 2,
}

/// Why generating ended.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum teeny_end_reason {
    /// It has not ended, or never begun.
    TEENY_END_NONE = 0,
    /// There are as many tokens as asked for.
    TEENY_END_LENGTH = 1,
    /// A stop text was found.
    TEENY_END_STOP_TEXT = 2,
    /// The context is full, and the session's overflow is TEENY_OVERFLOW_STOP.
    TEENY_END_CONTEXT_FULL = 3,
    /// A callback or `teeny_session_cancel` asked for it.
    TEENY_END_CANCELLED = 4,
    /// The call failed.
    TEENY_END_FAILED = 5,
    /// The model drew a token that ends a text.
    TEENY_END_TOKEN = 6,
}

impl From<Option<EndReason>> for teeny_end_reason {
    fn from(reason: Option<EndReason>) -> teeny_end_reason {
        match reason {
            None => teeny_end_reason::TEENY_END_NONE,
            Some(EndReason::Length) => teeny_end_reason::TEENY_END_LENGTH,
            Some(EndReason::StopText) => teeny_end_reason::TEENY_END_STOP_TEXT,
            Some(EndReason::EndToken) => teeny_end_reason::TEENY_END_TOKEN,
            Some(EndReason::ContextFull) => teeny_end_reason::TEENY_END_CONTEXT_FULL,
            Some(EndReason::Cancelled) => teeny_end_reason::TEENY_END_CANCELLED,
            Some(EndReason::Failed) => teeny_end_reason::TEENY_END_FAILED,
        }
    }
}

/// How a session begins. `teeny_session_options_init` fills it with the defaults; then set what is
/// to differ. Later versions of teeny may add members at the end, and programs built with this
/// header go on working.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct teeny_session_options {
    /// `sizeof(teeny_session_options)`, which says which members are there.
    pub size: usize,
    /// Tokens to make room for at once, so that feeding them allocates nothing; more than the
    /// context count as the context. Default 0: memory is allocated every 64 tokens.
    pub reserve: usize,
    /// A teeny_overflow. Default TEENY_OVERFLOW_SLIDE.
    pub overflow: i32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C), `size` first, and the assertions below.
unsafe impl Versioned for teeny_session_options {
    const NAME: &'static str = "teeny_session_options";
    const FIRST_SIZE: usize = offset_of!(teeny_session_options, reserved) + size_of::<u32>();
}

/// What a session has done and what it holds. Later versions of teeny may add members at the end,
/// and programs built with this header go on working.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct teeny_session_stats {
    /// `sizeof(teeny_session_stats)`, which says which members are there.
    pub size: usize,
    /// Tokens fed at once: by feed, score and as prompts.
    pub prefill_tokens: u64,
    /// Nanoseconds that took.
    pub prefill_ns: u64,
    /// Tokens fed one by one: by decode and generate.
    pub decode_tokens: u64,
    /// Nanoseconds that took, without sampling.
    pub decode_ns: u64,
    /// Nanoseconds from the beginning of the last `teeny_session_generate`, or the first
    /// `teeny_stream_next` of the last stream, to its first token; 0 before any.
    pub first_token_ns: u64,
    /// Bytes of keys and values.
    pub kv_bytes: usize,
    /// How many of them are shared with forks.
    pub kv_shared_bytes: usize,
    /// Why the last generating ended, a teeny_end_reason.
    pub end_reason: i32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C), `size` first, and the assertions below.
unsafe impl Versioned for teeny_session_stats {
    const NAME: &'static str = "teeny_session_stats";
    const FIRST_SIZE: usize = offset_of!(teeny_session_stats, reserved) + size_of::<u32>();
}

// The layouts are part of the ABI. Their ends have no padding, so that a new member changes a size.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(teeny_session_options::SIZE == 24 && align_of::<teeny_session_options>() == 8);
    assert!(offset_of!(teeny_session_options, reserved) + 4 == 24);
    assert!(teeny_session_stats::SIZE == 72 && align_of::<teeny_session_stats>() == 8);
    assert!(offset_of!(teeny_session_stats, reserved) + 4 == 72);
};

impl teeny_session_options {
    fn defaults(size: usize) -> teeny_session_options {
        let overflow = teeny_overflow::TEENY_OVERFLOW_SLIDE as i32;
        teeny_session_options { size, reserve: 0, overflow, reserved: 0 }
    }

    fn overflow(&self) -> Result<Overflow, Failure> {
        const SLIDE: i32 = teeny_overflow::TEENY_OVERFLOW_SLIDE as i32;
        const STOP: i32 = teeny_overflow::TEENY_OVERFLOW_STOP as i32;
        const ERROR: i32 = teeny_overflow::TEENY_OVERFLOW_ERROR as i32;
        match self.overflow {
            SLIDE => Ok(Overflow::Slide),
            STOP => Ok(Overflow::Stop),
            ERROR => Ok(Overflow::Error),
            other => {
                Err(Failure::argument("options.overflow", other.to_string(), "a teeny_overflow"))
            }
        }
    }
}

/// Fills options with the defaults. `size` is `sizeof(teeny_session_options)`.
///
/// Fails with TEENY_INVALID_ARGUMENT for a size that no version of the options has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_options_init(
    options: *mut teeny_session_options,
    size: usize,
) -> teeny_status {
    call(|| {
        // SAFETY: the caller's promise.
        unsafe { options::output(options, "options", size) }?
            .write(teeny_session_options::defaults);
        Ok(())
    })
}

/// Starts an empty sequence. `options` may be NULL for the defaults.
///
/// `*out` is set on success; `teeny_session_free` frees it, before or after the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_new(
    model: *const teeny_model,
    options: *const teeny_session_options,
    out: *mut *mut teeny_session,
) -> teeny_status {
    call(|| {
        let model = handle::get::<ModelObject>(model, "model")?;
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(out, "out") }?;
        let defaults = teeny_session_options::defaults(teeny_session_options::SIZE);
        // SAFETY: the caller's promise.
        let options = unsafe { options::read(options, defaults) }?;
        options::check_reserved(options.reserved)?;
        let mut session = AnySession::new(&model.model, options.overflow()?)?;
        if options.reserve > 0 {
            session.reserve(options.reserve)?;
        }
        out.write(handle::new(SessionObject::new(model, session))?);
        Ok(())
    })
}

/// Frees a session. NULL is fine. A stream of it, or a call that it is in, keeps it alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_free(session: *mut teeny_session) {
    call(|| handle::free::<SessionObject>(session, "session"));
}

/// Feeds `n` tokens: afterwards the logits are those for the token that follows them.
///
/// Fails with TEENY_INVALID_ARGUMENT for no token or one outside the vocabulary and with
/// TEENY_CONTEXT_FULL as the session's overflow says, and has fed nothing then; with TEENY_CANCELLED
/// or TEENY_OUT_OF_MEMORY it has fed the first tokens, `teeny_session_position` says how many, and
/// all is as if just those had been asked for. Cancelling is noticed every 64 tokens, on a GPU every
/// 1,024.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_feed(
    session: *mut teeny_session,
    tokens: *const u32,
    n: usize,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        // SAFETY: the caller's promise.
        let tokens = unsafe { arg::maybe_slice(tokens, n, "tokens") }?;
        session.lock()?.session.prefill(tokens)?;
        Ok(())
    })
}

/// Feeds one token: the step of a decoding loop. It gives the same logits as feeding it together with
/// those before it: bit for bit on the CPU, to rounding on a GPU.
///
/// Fails as `teeny_session_feed`, and has fed nothing then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_decode(
    session: *mut teeny_session,
    token: u32,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        let mut state = session.lock()?;
        if state.session.cancel_flag().take() {
            return Err(teeny_runtime::Error::Cancelled.into());
        }
        state.session.decode(token)?;
        Ok(())
    })
}

/// The logits for the token that follows what was fed: `*len`, the size of the vocabulary, numbers.
/// They are the session's: the next call that feeds or goes back changes them, and they go with it.
///
/// Fails with TEENY_INVALID_ARGUMENT before any token was fed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_logits(
    session: *const teeny_session,
    logits: *mut *const f32,
    len: *mut usize,
) -> teeny_status {
    // SAFETY: the caller's promise.
    unsafe { borrow(session, logits, "logits", len, AnySession::logits) }
}

/// The last token's hidden state after the final norm, from which the logits are made: an embedding
/// of the text so far, `*len` = `teeny_model_n_embd` numbers. They are the session's, as the logits
/// are.
///
/// Fails with TEENY_INVALID_ARGUMENT before any token was fed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_hidden(
    session: *const teeny_session,
    hidden: *mut *const f32,
    len: *mut usize,
) -> teeny_status {
    // SAFETY: the caller's promise.
    unsafe { borrow(session, hidden, "hidden", len, AnySession::hidden) }
}

/// # Safety
/// As of the functions above.
unsafe fn borrow(
    session: *const teeny_session,
    values: *mut *const f32,
    name: &str,
    len: *mut usize,
    of: fn(&AnySession) -> &[f32],
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        // SAFETY: the caller's promise.
        let values = unsafe { arg::output(values, name) }?;
        // SAFETY: the caller's promise.
        let len = unsafe { arg::output(len, "len") }?;
        let state = session.lock()?;
        check_not_empty(&state.session)?;
        // The memory does not move as long as the session lives.
        let found = of(&state.session);
        values.write(found.as_ptr());
        len.write(found.len());
        Ok(())
    })
}

fn check_not_empty(session: &AnySession) -> Result<(), Failure> {
    if session.n_tokens() > 0 {
        return Ok(());
    }
    Err(Failure::argument("session", "no tokens", "a session that was fed some"))
}

/// Draws the next token from the session's logits with a sampler. It is not fed:
/// `teeny_session_decode` does that.
///
/// Fails with TEENY_INVALID_ARGUMENT before any token was fed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_sample(
    session: *mut teeny_session,
    sampler: *mut teeny_sampler,
    token: *mut u32,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        let sampler = handle::get::<SamplerObject>(sampler, "sampler")?;
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(token, "token") }?;
        let state = session.lock()?;
        check_not_empty(&state.session)?;
        out.write(sampler.lock()?.sample(state.session.logits())?);
        Ok(())
    })
}

/// Number of tokens fed since the start, those that have left the context included. 0 for what is no
/// session or is in use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_position(session: *const teeny_session) -> usize {
    call_or(0, || {
        let session = handle::get::<SessionObject>(session, "session")?;
        let n_tokens = session.lock()?.session.n_tokens();
        Ok(n_tokens)
    })
}

/// Goes back to the first `position` tokens: all is as if no more had been fed, the logits included, on
/// the CPU bit for bit. Takes the time of one token; 0 is `teeny_session_reset`.
///
/// Fails with TEENY_INVALID_ARGUMENT for more tokens than there are, or so few that what they need
/// has left the context; nothing has changed then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_truncate(
    session: *mut teeny_session,
    position: usize,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        session.lock()?.session.truncate(position)?;
        Ok(())
    })
}

/// Makes a second session at the same point, from which both go on by themselves. Keys and values
/// are shared until one of them writes there, 64 tokens at a time: many characters that begin with
/// the same prompt hold it once, and nobody computes it again.
///
/// `*out` is set on success; `teeny_session_free` frees it, in any order.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_fork(
    session: *const teeny_session,
    out: *mut *mut teeny_session,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(out, "out") }?;
        let fork = session.lock()?.session.fork()?;
        out.write(handle::new(SessionObject::new(Arc::clone(&session.model), fork))?);
        Ok(())
    })
}

/// Forgets all tokens and a wish to cancel, and keeps the memory. A session that a fault has
/// interrupted works again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_reset(session: *mut teeny_session) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        // All that a fault may have left half done is forgotten.
        session.state.clear_poison();
        session.lock()?.session.reset();
        Ok(())
    })
}

/// Asks, from any thread, that the call which is feeding, scoring or generating in the session end
/// with TEENY_CANCELLED, or the next such call if there is none. The wish lasts until one call has
/// noticed it; `on` is 1 to ask and 0 to take it back. What the session then holds is said with each
/// function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_cancel(
    session: *const teeny_session,
    on: i32,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        match on {
            0 => drop(session.cancel.take()),
            1 => session.cancel.cancel(),
            other => return Err(Failure::argument("on", other.to_string(), "0 or 1")),
        }
        Ok(())
    })
}

/// What the session has done, how long it took, and what memory it holds. `size` is
/// `sizeof(teeny_session_stats)`. A fork or restored session counts from its own beginning.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_get_stats(
    session: *const teeny_session,
    stats: *mut teeny_session_stats,
    size: usize,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        // SAFETY: the caller's promise.
        let out = unsafe { options::output(stats, "stats", size) }?;
        let state = session.lock()?;
        let stats = state.session.stats();
        let (kv_bytes, kv_shared_bytes) = state.session.kv_bytes();
        out.write(|size| teeny_session_stats {
            size,
            prefill_tokens: stats.prefill_tokens,
            prefill_ns: nanoseconds(stats.prefill_time),
            decode_tokens: stats.decode_tokens,
            decode_ns: nanoseconds(stats.decode_time),
            first_token_ns: nanoseconds(state.first_token_time.unwrap_or_default()),
            kv_bytes,
            kv_shared_bytes,
            end_reason: state.end_reason as i32,
            reserved: 0,
        });
        Ok(())
    })
}

/// 584 years fit.
fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos() as u64
}
