//! Text to tokens and back.

use std::ffi::c_char;

use crate::arg::{self, teeny_text};
use crate::handle;
use crate::model::{ModelObject, teeny_model};
use crate::status::{Failure, call, teeny_status};

/// The tokens of UTF-8 text of `text_len` bytes; none for none.
///
/// `tokens` has room for `capacity` of them, and `*len` becomes their number: with `capacity` 0
/// nothing else happens (`tokens` may be NULL), so a first call can ask how much room a second one
/// needs. With characters as tokens there is one for each. The token that begins a text, where a model has
/// one, is not among them. With too little room the call fails with TEENY_BUFFER_TOO_SMALL, `*len` says how
/// many there are, and `tokens` is as before.
///
/// Fails with TEENY_TOKENIZER for a character that the model does not know.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_encode(
    model: *const teeny_model,
    text: *const c_char,
    text_len: usize,
    tokens: *mut u32,
    capacity: usize,
    len: *mut usize,
) -> teeny_status {
    call(|| {
        let model = handle::get::<ModelObject>(model, "model")?;
        // SAFETY: the caller's promise.
        let text = unsafe { arg::maybe_text(text, text_len, "text") }?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { arg::buffer(tokens, capacity, "tokens", len) }?;
        buffer.write(&model.model.tokenizer().encode(text)?)
    })
}

/// The bytes of `n_tokens` tokens, one after the other. The bytes of one token need not be whole
/// characters.
///
/// `text` has room for `capacity` bytes, and `*len` becomes their number, as in
/// `teeny_model_encode`. No zero byte is added.
///
/// Fails with TEENY_TOKENIZER for a token that the vocabulary lacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_decode(
    model: *const teeny_model,
    tokens: *const u32,
    n_tokens: usize,
    text: *mut c_char,
    capacity: usize,
    len: *mut usize,
) -> teeny_status {
    call(|| {
        let model = handle::get::<ModelObject>(model, "model")?;
        // SAFETY: the caller's promise.
        let tokens = unsafe { arg::maybe_slice(tokens, n_tokens, "tokens") }?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { arg::buffer(text.cast::<u8>(), capacity, "text", len) }?;
        buffer.write(&model.model.tokenizer().decode(tokens)?)
    })
}

/// The bytes that a token stands for, which need not be whole characters. They are the model's: they
/// live as long as it or a session of it.
///
/// Fails with TEENY_INVALID_ARGUMENT for a token that the vocabulary lacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_token_bytes(
    model: *const teeny_model,
    token: u32,
    bytes: *mut teeny_text,
) -> teeny_status {
    call(|| {
        let model = handle::get::<ModelObject>(model, "model")?;
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(bytes, "bytes") }?;
        let tokenizer = model.model.tokenizer();
        let Some(bytes) = tokenizer.token_bytes(token) else {
            let expected = format!("an id below vocab_size = {}", tokenizer.vocab_size());
            return Err(Failure::argument("token", token.to_string(), &expected));
        };
        out.write(teeny_text::of(bytes));
        Ok(())
    })
}
