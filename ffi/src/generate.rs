//! `teeny_generate`: a prompt in, pieces of text out, in one call.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::ptr;

use teeny_runtime::{
    EndReason, GenerateOptions, Overflow, Sampler, SamplerOptions, Session, generate,
};

use crate::arg;
use crate::model::teeny_model;
use crate::status::{Failure, call, teeny_status};

/// What happens to a token for which the model's context has no room.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum teeny_overflow {
    /// The oldest tokens are forgotten and the text goes on without end.
    TEENY_OVERFLOW_SLIDE = 0,
    /// The text ends there.
    TEENY_OVERFLOW_STOP = 1,
    /// The call fails with TEENY_CONTEXT_FULL.
    TEENY_OVERFLOW_ERROR = 2,
}

/// UTF-8 text of `len` bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct teeny_text {
    pub data: *const c_char,
    pub len: usize,
}

/// How to generate. `teeny_generate_options_init` fills it with the defaults; then set what is to
/// differ. Later versions of teeny may add members at the end, and programs built with this header
/// go on working.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct teeny_generate_options {
    /// `sizeof(teeny_generate_options)`, which says which members are there.
    pub size: usize,
    /// Most tokens to generate; SIZE_MAX for no limit. Default 256.
    pub max_tokens: usize,
    /// `n_stop` texts that end generation; the one found is not handed out. Default NULL.
    pub stop: *const teeny_text,
    /// Default 0.
    pub n_stop: usize,
    /// Draw from this many most likely tokens only; 0 is off. Default 40.
    pub top_k: usize,
    /// The same seed, options, prompt and model give the same text on every machine. Default 0.
    pub seed: u64,
    /// Divides the logits: lower is safer, 0 always takes the most likely token. Default 0.8.
    pub temperature: f32,
    /// Draw from the most likely tokens that together reach this probability; 1 is off.
    /// Default 0.95.
    pub top_p: f32,
    /// Draw only tokens of at least this share of the most likely one's probability; 0 is off.
    /// Default 0.05.
    pub min_p: f32,
    /// Makes recent tokens less likely; 1 is off. Default 1.
    pub repeat_penalty: f32,
    /// How many tokens are recent, for `repeat_penalty`. Default 64.
    pub repeat_last_n: u32,
    /// A teeny_overflow. Default TEENY_OVERFLOW_SLIDE.
    pub overflow: i32,
}

const SIZE: usize = size_of::<teeny_generate_options>();
/// No version of the options will be larger; a size above it was never set.
const MAX_SIZE: usize = 4096;

// The layout is part of the ABI. Its end has no padding, so that a new member changes the size.
#[cfg(target_pointer_width = "64")]
const _: () = {
    use std::mem::offset_of;
    assert!(SIZE == 72 && align_of::<teeny_generate_options>() == 8);
    assert!(offset_of!(teeny_generate_options, seed) == 40);
    assert!(offset_of!(teeny_generate_options, overflow) + size_of::<i32>() == SIZE);
    assert!(size_of::<teeny_text>() == 16);
};

impl teeny_generate_options {
    /// The defaults, for options of `size` bytes.
    fn defaults(size: usize) -> teeny_generate_options {
        let sampler = SamplerOptions::default();
        teeny_generate_options {
            size,
            max_tokens: 256,
            stop: ptr::null(),
            n_stop: 0,
            top_k: sampler.top_k,
            seed: sampler.seed,
            temperature: sampler.temperature,
            top_p: sampler.top_p,
            min_p: sampler.min_p,
            repeat_penalty: sampler.repeat_penalty,
            repeat_last_n: sampler.penalty_last_n as u32,
            overflow: teeny_overflow::TEENY_OVERFLOW_SLIDE as i32,
        }
    }

    /// The options of a caller, or the defaults for NULL.
    ///
    /// # Safety
    /// A pointer that is not NULL points to as many bytes as its `size` says.
    unsafe fn read(
        options: *const teeny_generate_options,
    ) -> Result<teeny_generate_options, Failure> {
        if options.is_null() {
            return Ok(teeny_generate_options::defaults(SIZE));
        }
        arg::check(options, "options")?;
        // SAFETY: not NULL and aligned; `size` comes first in every version.
        let size = unsafe { options.cast::<usize>().read() };
        check_size(size, "options.size")?;
        // SAFETY: the caller's promise; `check_size` has seen that it is at least ours.
        let bytes = unsafe { arg::slice(options.cast::<u8>(), size, "options") }?;
        if let Some(at) = bytes[SIZE..].iter().position(|byte| *byte != 0) {
            return Err(Failure::argument(
                "options",
                format!("a value at byte {}", SIZE + at),
                &format!(
                    "only the {SIZE} bytes that teeny {} knows: it is older than the program's teeny.h",
                    env!("CARGO_PKG_VERSION")
                ),
            ));
        }
        // SAFETY: as above.
        Ok(unsafe { options.read() })
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

    fn sampler(&self) -> SamplerOptions {
        SamplerOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            penalty_last_n: self.repeat_last_n as usize,
            seed: self.seed,
            ..SamplerOptions::default()
        }
    }
}

fn check_size(size: usize, name: &str) -> Result<(), Failure> {
    if (SIZE..=MAX_SIZE).contains(&size) {
        return Ok(());
    }
    let expected = format!("sizeof(teeny_generate_options) = {SIZE}");
    Err(Failure::argument(name, size.to_string(), &expected))
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
        let out = unsafe { arg::output(options, "options") }?;
        check_size(size, "size")?;
        // SAFETY: memory of `size` bytes is the caller's promise. Members that a newer header has
        // become 0, which asks for nothing.
        unsafe { options.cast::<u8>().write_bytes(0, size) };
        out.write(teeny_generate_options::defaults(size));
        Ok(())
    })
}

/// Receives a piece of text as it is generated: whole UTF-8 characters, at least one, `len` bytes
/// without a zero byte at the end, valid during the call. `user_data` is what was given with the
/// callback. Return 0 to go on, anything else to stop.
pub type teeny_text_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, text: *const c_char, len: usize) -> i32>;

/// Continues a prompt and hands each piece of the new text to `callback`, on this thread.
///
/// `prompt` is UTF-8 of `prompt_len` bytes, at least one character, each in the model's vocabulary.
/// `options` may be NULL for the defaults. `callback` may call teeny; `user_data` is passed through
/// to it.
///
/// Fails with TEENY_TOKENIZER for a character that the model does not know, TEENY_CANCELLED when
/// the callback asked to stop, TEENY_CONTEXT_FULL as `overflow` says and for a prompt longer than
/// the context unless that slides. What was handed out before a failure is good text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_generate(
    model: *const teeny_model,
    prompt: *const c_char,
    prompt_len: usize,
    options: *const teeny_generate_options,
    callback: teeny_text_callback,
    user_data: *mut c_void,
) -> teeny_status {
    call(|| {
        // SAFETY: the caller's promise.
        let model = unsafe { arg::reference(model, "model") }?.share();
        // SAFETY: the caller's promise.
        let prompt = unsafe { arg::text(prompt, prompt_len, "prompt") }?;
        // SAFETY: the caller's promise.
        let options = unsafe { teeny_generate_options::read(options) }?;
        // SAFETY: the caller's promise.
        let stop = unsafe { options.stop() }?;
        let callback = callback.ok_or_else(|| Failure::null("callback"))?;
        if prompt.is_empty() {
            return Err(Failure::argument("prompt", "no text", "at least one character"));
        }
        let prompt = model.tokenizer().encode(prompt)?;
        let mut sampler = Sampler::new(options.sampler())?;
        let mut session = Session::new(&model, options.overflow()?)?;
        let options =
            GenerateOptions { max_tokens: options.max_tokens, stop, ..GenerateOptions::default() };

        let mut answer = 0;
        let done = generate(&mut session, &mut sampler, &prompt, &options, &mut |text| {
            // SAFETY: that it is a function of this type is the caller's promise; the text lives
            // longer than the call.
            answer = unsafe { callback(user_data, text.as_ptr().cast(), text.len()) };
            if answer == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        match done.reason {
            EndReason::Length | EndReason::StopText | EndReason::ContextFull => Ok(()),
            EndReason::Cancelled | EndReason::Failed => Err(Failure::cancelled(answer)),
        }
    })
}
