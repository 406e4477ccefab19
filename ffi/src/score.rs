//! How likely a text is.

use std::ffi::c_char;
use std::mem::offset_of;

use teeny_runtime::{AnySession, Overflow, TokenScore, on_device, score};

use crate::arg;
use crate::handle;
use crate::model::{ModelObject, teeny_model};
use crate::options::{self, Versioned};
use crate::session::{SessionObject, teeny_session};
use crate::status::{Failure, call, teeny_status};

/// Feeds `n` tokens as `teeny_session_feed` does, and says how likely each of them was given all
/// before it: `log_probs[i]` becomes the natural logarithm of the probability of `tokens[i]`. For the
/// first token of an empty session, which nothing precedes, it is NaN.
///
/// `top_tokens` and `top_log_probs` receive the `top_n` likeliest tokens in the place of each, most
/// likely first: n rows of `top_n`. Where there are none, because the vocabulary is smaller or nothing
/// precedes, the token is UINT32_MAX and its logarithm NaN. With `top_n` 0 both may be NULL.
///
/// Fails as `teeny_session_feed`; the buffers may be written in part then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_session_score(
    session: *mut teeny_session,
    tokens: *const u32,
    n: usize,
    log_probs: *mut f32,
    top_n: usize,
    top_tokens: *mut u32,
    top_log_probs: *mut f32,
) -> teeny_status {
    call(|| {
        let session = handle::get::<SessionObject>(session, "session")?;
        // SAFETY: the caller's promise.
        let tokens = unsafe { arg::maybe_slice(tokens, n, "tokens") }?;
        // SAFETY: the caller's promise.
        let mut log_probs = unsafe { arg::output_slice(log_probs, n, "log_probs") }?;
        let mut top = None;
        if top_n > 0 {
            let Some(len) = n.checked_mul(top_n) else {
                let found = format!("{top_n} for each of {n} tokens");
                return Err(Failure::argument("top_n", found, "a number that fits in memory"));
            };
            top = Some((
                // SAFETY: the caller's promise.
                unsafe { arg::output_slice(top_tokens, len, "top_tokens") }?,
                // SAFETY: the caller's promise.
                unsafe { arg::output_slice(top_log_probs, len, "top_log_probs") }?,
            ));
        }
        let mut state = session.lock()?;
        let on_token = &mut |token: TokenScore<'_>| {
            log_probs.write(token.index, token.log_prob.map_or(f32::NAN, |p| p as f32));
            if let Some((tokens, log_probs)) = &mut top {
                let found = token.top.iter().map(|(token, p)| (*token, *p as f32));
                let none = std::iter::repeat((u32::MAX, f32::NAN));
                for (i, (id, p)) in found.chain(none).take(top_n).enumerate() {
                    tokens.write(token.index * top_n + i, id);
                    log_probs.write(token.index * top_n + i, p);
                }
            }
        };
        on_device!(AnySession, &mut state.session, s => score(s, tokens, top_n, on_token))?;
        Ok(())
    })
}

/// How likely a text is. Later versions of teeny may add members at the end, and programs built with
/// this header go on working.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct teeny_score {
    /// `sizeof(teeny_score)`, which says which members are there.
    pub size: usize,
    /// Tokens of the text.
    pub n_tokens: usize,
    /// Tokens that something precedes: all but the first.
    pub n_scored: usize,
    /// Sum of the natural logarithms of their probabilities.
    pub log_prob: f64,
    /// exp(-log_prob / n_scored)
    pub perplexity: f64,
}

// SAFETY: repr(C), `size` first, and the assertions below.
unsafe impl Versioned for teeny_score {
    const NAME: &'static str = "teeny_score";
    const FIRST_SIZE: usize = offset_of!(teeny_score, perplexity) + size_of::<f64>();
}

// The layout is part of the ABI. Its end has no padding, so that a new member changes the size.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(teeny_score::SIZE == 40 && align_of::<teeny_score>() == 8);
    assert!(offset_of!(teeny_score, perplexity) + 8 == 40);
};

/// How likely the model finds UTF-8 text of `text_len` bytes, at least two tokens: all in one. Past
/// the context each token is judged by those that the context still holds. The token that begins a text
/// comes first, where the model has one. `size` is `sizeof(teeny_score)`.
///
/// Fails with TEENY_TOKENIZER for a character that the model does not know.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_score_text(
    model: *const teeny_model,
    text: *const c_char,
    text_len: usize,
    score: *mut teeny_score,
    size: usize,
) -> teeny_status {
    call(|| {
        let model = handle::get::<ModelObject>(model, "model")?;
        // SAFETY: the caller's promise.
        let text = unsafe { arg::text(text, text_len, "text") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { options::output(score, "score", size) }?;
        let tokens = model.model.tokenizer().encode_prompt(text)?;
        if tokens.len() < 2 {
            let found = format!("{} tokens", tokens.len());
            return Err(Failure::argument("text", found, "at least two"));
        }
        let mut session = AnySession::new(&model.model, Overflow::Slide)?;
        let total = on_device!(AnySession, &mut session, s => {
            teeny_runtime::score(s, &tokens, 0, &mut |_| {})
        })?;
        out.write(|size| teeny_score {
            size,
            n_tokens: tokens.len(),
            n_scored: total.n_scored,
            log_prob: total.log_prob,
            perplexity: total.perplexity(),
        });
        Ok(())
    })
}
