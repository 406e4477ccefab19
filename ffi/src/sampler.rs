//! `teeny_sampler`: logits to a token.

use std::ffi::c_char;
use std::mem::offset_of;
use std::sync::{Mutex, MutexGuard};

use teeny_runtime::sampler::Stage;
use teeny_runtime::{Error, Sampler, SamplerOptions};

use crate::arg;
use crate::handle;
use crate::options::{self, Versioned};
use crate::status::{Failure, call, lock, teeny_status};

/// Draws tokens: a chain of stages that change logits or drop tokens, in the order in which they
/// were added, and then a draw from what is left. Used by one call at a time; a second one at the
/// same time fails with TEENY_BUSY.
pub struct teeny_sampler;

pub(crate) struct SamplerObject(Mutex<Sampler>);

impl SamplerObject {
    pub(crate) fn new(sampler: Sampler) -> SamplerObject {
        SamplerObject(Mutex::new(sampler))
    }

    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, Sampler>, Failure> {
        lock(&self.0, "sampler")
    }
}

impl handle::Kind for SamplerObject {
    type Handle = teeny_sampler;
    const NAME: &'static str = "teeny_sampler";
    const TAG: usize = 3;
}

/// The usual chain: penalties, top-k, top-p, min-p, temperature. `teeny_sampler_options_init` fills
/// it with the defaults; then set what is to differ. Later versions of teeny may add members at the
/// end, and programs built with this header go on working.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct teeny_sampler_options {
    /// `sizeof(teeny_sampler_options)`, which says which members are there.
    pub size: usize,
    /// The same seed, options, prompt and model give the same text on every machine. Default 0.
    pub seed: u64,
    /// Draw from this many most likely tokens only; 0 is off. Default 40.
    pub top_k: usize,
    /// How many of the newest tokens, the prompt's included, the penalties look at, at most 1048576.
    /// Default 64.
    pub penalty_last_n: usize,
    /// Divides the logits: lower is safer, 0 always takes the most likely token. Default 0.8.
    pub temperature: f32,
    /// Draw from the most likely tokens that together reach this probability; 1 is off.
    /// Default 0.95.
    pub top_p: f32,
    /// Draw only tokens of at least this share of the most likely one's probability; 0 is off.
    /// Default 0.05.
    pub min_p: f32,
    /// Divides positive logits of recent tokens and multiplies negative ones; 1 is off. Default 1.
    pub repeat_penalty: f32,
    /// Subtracted from a token's logit for each time it is among the recent ones; 0 is off.
    /// Default 0.
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of any recent token; 0 is off. Default 0.
    pub presence_penalty: f32,
}

// SAFETY: repr(C), `size` first, and the assertions below.
unsafe impl Versioned for teeny_sampler_options {
    const NAME: &'static str = "teeny_sampler_options";
    const FIRST_SIZE: usize =
        offset_of!(teeny_sampler_options, presence_penalty) + size_of::<f32>();
}

// The layout is part of the ABI. Its end has no padding, so that a new member changes the size.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(teeny_sampler_options::SIZE == 56 && align_of::<teeny_sampler_options>() == 8);
    assert!(offset_of!(teeny_sampler_options, presence_penalty) + 4 == 56);
    assert!(size_of::<teeny_logit_bias>() == 8);
};

impl teeny_sampler_options {
    fn defaults(size: usize) -> teeny_sampler_options {
        let default = SamplerOptions::default();
        teeny_sampler_options {
            size,
            seed: default.seed,
            top_k: default.top_k,
            penalty_last_n: default.penalty_last_n,
            temperature: default.temperature,
            top_p: default.top_p,
            min_p: default.min_p,
            repeat_penalty: default.repeat_penalty,
            frequency_penalty: default.frequency_penalty,
            presence_penalty: default.presence_penalty,
        }
    }
}

/// A sampler of a caller's options, or the usual one for NULL.
///
/// # Safety
/// A pointer that is not NULL points to as many bytes as its `size` says.
pub(crate) unsafe fn from_options(
    options: *const teeny_sampler_options,
) -> Result<Sampler, Failure> {
    let defaults = teeny_sampler_options::defaults(teeny_sampler_options::SIZE);
    // SAFETY: the caller's promise.
    let options = unsafe { options::read(options, defaults) }?;
    Ok(Sampler::new(SamplerOptions {
        temperature: options.temperature,
        top_k: options.top_k,
        top_p: options.top_p,
        min_p: options.min_p,
        repeat_penalty: options.repeat_penalty,
        frequency_penalty: options.frequency_penalty,
        presence_penalty: options.presence_penalty,
        penalty_last_n: options.penalty_last_n,
        seed: options.seed,
    })?)
}

/// Fills options with the defaults. `size` is `sizeof(teeny_sampler_options)`.
///
/// Fails with TEENY_INVALID_ARGUMENT for a size that no version of the options has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_options_init(
    options: *mut teeny_sampler_options,
    size: usize,
) -> teeny_status {
    call(|| {
        // SAFETY: the caller's promise.
        unsafe { options::output(options, "options", size) }?
            .write(teeny_sampler_options::defaults);
        Ok(())
    })
}

/// Makes a sampler with the usual chain. `options` may be NULL for the defaults.
///
/// `*out` is set on success; `teeny_sampler_free` frees it. Fails with TEENY_INVALID_ARGUMENT for a
/// number out of its range.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_new(
    options: *const teeny_sampler_options,
    out: *mut *mut teeny_sampler,
) -> teeny_status {
    call(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(out, "out") }?;
        // SAFETY: the caller's promise.
        let sampler = unsafe { from_options(options) }?;
        out.write(handle::new(SamplerObject::new(sampler))?);
        Ok(())
    })
}

/// Makes a sampler without any stage yet: it draws each token with the probability that the model
/// gives it. `*out` is set on success; `teeny_sampler_free` frees it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_new_chain(
    seed: u64,
    out: *mut *mut teeny_sampler,
) -> teeny_status {
    call(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(out, "out") }?;
        out.write(handle::new(SamplerObject::new(Sampler::chain(seed)))?);
        Ok(())
    })
}

/// Makes a sampler that always takes the most likely token, of equal ones the first. `*out` is set
/// on success; `teeny_sampler_free` frees it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_new_greedy(out: *mut *mut teeny_sampler) -> teeny_status {
    call(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(out, "out") }?;
        out.write(handle::new(SamplerObject::new(Sampler::greedy()))?);
        Ok(())
    })
}

/// A number to be added to the logit of a token.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct teeny_logit_bias {
    pub token: u32,
    /// -INFINITY forbids the token.
    pub bias: f32,
}

/// Adds a stage that adds to the logits of `n` tokens. They are copied; several biases of one token
/// add up.
///
/// Fails with TEENY_INVALID_ARGUMENT for a bias that is NaN or +INFINITY. A token that the logits
/// lack makes sampling fail, because only then their number is known.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_add_logit_bias(
    sampler: *mut teeny_sampler,
    biases: *const teeny_logit_bias,
    n: usize,
) -> teeny_status {
    push(sampler, || {
        // SAFETY: the caller's promise.
        let biases = unsafe { arg::maybe_slice(biases, n, "biases") }?;
        let mut copy = Vec::new();
        copy.try_reserve_exact(n)
            .map_err(|_| Error::OutOfMemory { what: "logit biases", bytes: size_of_val(biases) })?;
        copy.extend(biases.iter().map(|b| (b.token, b.bias)));
        Ok(Stage::LogitBias(copy))
    })
}

/// Adds a stage that makes the `last_n` newest tokens, at most 1048576, less likely: those accepted
/// or drawn after it was added. `repeat` divides their logits
/// where they are positive and multiplies them where they are negative, 1 is off; `frequency` is
/// subtracted for each time a token is among them, `presence` once, 0 is off.
///
/// Fails with TEENY_INVALID_ARGUMENT for a number out of its range.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_add_penalties(
    sampler: *mut teeny_sampler,
    last_n: usize,
    repeat: f32,
    frequency: f32,
    presence: f32,
) -> teeny_status {
    push(sampler, || Ok(Stage::Penalties { last_n, repeat, frequency, presence }))
}

/// Adds a stage that keeps the `k` most likely tokens; 0 keeps all.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_add_top_k(
    sampler: *mut teeny_sampler,
    k: usize,
) -> teeny_status {
    push(sampler, || Ok(Stage::TopK(k)))
}

/// Adds a stage that keeps the most likely tokens that together reach probability `p`, at least one.
///
/// Fails with TEENY_INVALID_ARGUMENT unless 0 < p <= 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_add_top_p(
    sampler: *mut teeny_sampler,
    p: f32,
) -> teeny_status {
    push(sampler, || Ok(Stage::TopP(p)))
}

/// Adds a stage that keeps the tokens of at least the share `p` of the most likely one's
/// probability.
///
/// Fails with TEENY_INVALID_ARGUMENT unless 0 <= p <= 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_add_min_p(
    sampler: *mut teeny_sampler,
    p: f32,
) -> teeny_status {
    push(sampler, || Ok(Stage::MinP(p)))
}

/// Adds a stage that divides the logits; 0 keeps only the most likely token.
///
/// Fails with TEENY_INVALID_ARGUMENT unless 0 <= temperature <= 100.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_add_temperature(
    sampler: *mut teeny_sampler,
    temperature: f32,
) -> teeny_status {
    push(sampler, || Ok(Stage::Temperature(temperature)))
}

fn push(
    sampler: *mut teeny_sampler,
    stage: impl FnOnce() -> Result<Stage, Failure>,
) -> teeny_status {
    call(|| {
        let sampler = handle::get::<SamplerObject>(sampler, "sampler")?;
        sampler.lock()?.push(stage()?)?;
        Ok(())
    })
}

/// The chain in words, such as "seed 0: top_k 40, top_p 0.95, min_p 0.05, temperature 0.8". `text`
/// has room for `capacity` bytes, and `*len` becomes their number, as in `teeny_model_encode`. No
/// zero byte is added.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_describe(
    sampler: *const teeny_sampler,
    text: *mut c_char,
    capacity: usize,
    len: *mut usize,
) -> teeny_status {
    call(|| {
        let sampler = handle::get::<SamplerObject>(sampler, "sampler")?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { arg::buffer(text.cast::<u8>(), capacity, "text", len) }?;
        let text = sampler.lock()?.to_string();
        buffer.write(text.as_bytes())
    })
}

/// Makes a second sampler with the same chain in the same state: both draw the same tokens from the
/// same logits. `*out` is set on success; `teeny_sampler_free` frees it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_clone(
    sampler: *const teeny_sampler,
    out: *mut *mut teeny_sampler,
) -> teeny_status {
    call(|| {
        let sampler = handle::get::<SamplerObject>(sampler, "sampler")?;
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(out, "out") }?;
        let clone = sampler.lock()?.try_clone()?;
        out.write(handle::new(SamplerObject::new(clone))?);
        Ok(())
    })
}

/// Draws a token from `n_logits` logits of any origin, and takes it in as `teeny_sampler_accept`
/// does. NaN counts as impossible, +INFINITY as the largest number.
///
/// Fails with TEENY_INVALID_ARGUMENT if no token is possible.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_sample(
    sampler: *mut teeny_sampler,
    logits: *const f32,
    n_logits: usize,
    token: *mut u32,
) -> teeny_status {
    call(|| {
        let sampler = handle::get::<SamplerObject>(sampler, "sampler")?;
        // SAFETY: the caller's promise.
        let logits = unsafe { arg::slice(logits, n_logits, "logits") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(token, "token") }?;
        out.write(sampler.lock()?.sample(logits)?);
        Ok(())
    })
}

/// Tells a sampler of a token that it did not draw, such as one of the prompt, for the penalties.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_accept(
    sampler: *mut teeny_sampler,
    token: u32,
) -> teeny_status {
    call(|| {
        let sampler = handle::get::<SamplerObject>(sampler, "sampler")?;
        sampler.lock()?.accept(token);
        Ok(())
    })
}

/// Forgets all tokens and begins the random numbers anew, as if nothing had been drawn.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_reset(sampler: *mut teeny_sampler) -> teeny_status {
    call(|| {
        let sampler = handle::get::<SamplerObject>(sampler, "sampler")?;
        // All that a fault may have left half done is forgotten.
        sampler.0.clear_poison();
        sampler.lock()?.reset();
        Ok(())
    })
}

/// Frees a sampler. NULL is fine. A stream that uses it keeps it alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_sampler_free(sampler: *mut teeny_sampler) {
    call(|| handle::free::<SamplerObject>(sampler, "sampler"));
}
