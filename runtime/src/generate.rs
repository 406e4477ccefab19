//! The streaming loop: prompt in, pieces of text out, with stop conditions.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::error::Result;
use crate::sampler::Sampler;
use crate::session::{Overflow, Session};

/// When to end.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Texts that end generation; the one found is not part of the output. Empty ones are ignored.
    pub stop: Vec<String>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// `max_tokens` were generated.
    Length,
    /// A stop text was found.
    StopText,
    /// The context is full and the session's policy is [`Overflow::Stop`].
    ContextFull,
    /// The caller's function asked for it.
    Cancelled,
}

/// What was done, and how long it took.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Why it ended.
    pub reason: EndReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub tokens: usize,
    /// From the call to the first logits.
    pub prefill_time: Duration,
    /// From there to the end.
    pub decode_time: Duration,
    /// Single-token passes in `decode_time`: one fewer than tokens, the last is not fed.
    pub decode_steps: usize,
}

/// Feeds `prompt` and generates, handing out text as soon as it can no longer change: whole UTF-8
/// characters only, and nothing that may turn out to begin a stop text.
///
/// # Errors
/// An empty prompt, tokens outside the vocabulary, a context that is full under
/// [`Overflow::Error`], or weights that give no usable logits.
pub fn generate<B: Backend>(
    session: &mut Session<B>,
    sampler: &mut Sampler,
    prompt: &[u32],
    options: &GenerateOptions,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generation> {
    let start = Instant::now();
    session.reserve(prompt.len().saturating_add(options.max_tokens))?;
    session.prefill(prompt)?;
    for token in prompt {
        sampler.accept(*token);
    }
    let prefilled = Instant::now();
    let mut output = Output::new(&options.stop);
    let mut tokens = 0;
    let mut decode_steps = 0;
    let mut reason = EndReason::Length;
    while tokens < options.max_tokens {
        let token = sampler.sample(session.logits())?;
        tokens += 1;
        let model = session.model();
        output.push(model.tokenizer().token_bytes(token).unwrap_or_default());
        if output.stopped() {
            reason = EndReason::StopText;
            break;
        }
        if output.hand_out(on_text).is_break() {
            reason = EndReason::Cancelled;
            break;
        }
        if tokens == options.max_tokens {
            break;
        }
        if session.room() == Some(0) && session.overflow() == Overflow::Stop {
            reason = EndReason::ContextFull;
            break;
        }
        session.decode(token)?;
        decode_steps += 1;
    }
    let rest = output.finish();
    if reason != EndReason::Cancelled && !rest.is_empty() && on_text(&rest).is_break() {
        reason = EndReason::Cancelled;
    }
    Ok(Generation {
        reason,
        prompt_tokens: prompt.len(),
        tokens,
        prefill_time: prefilled - start,
        decode_time: prefilled.elapsed(),
        decode_steps,
    })
}

/// Text on its way out.
struct Output<'a> {
    stop: Vec<&'a str>,
    /// Bytes that are not yet a whole character.
    bytes: Vec<u8>,
    /// Whole characters not yet handed out.
    text: String,
    stopped: bool,
}

impl<'a> Output<'a> {
    fn new(stop: &'a [String]) -> Output<'a> {
        let stop: Vec<&str> =
            stop.iter().map(String::as_str).filter(|stop| !stop.is_empty()).collect();
        // Room for a long token beyond the longest text that is held back.
        let room = 256 + stop.iter().map(|stop| stop.len()).max().unwrap_or(0);
        Output {
            stop,
            bytes: Vec::with_capacity(room),
            text: String::with_capacity(room),
            stopped: false,
        }
    }

    /// Adds the bytes of a token; bytes that no continuation can make valid become U+FFFD.
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let mut used = 0;
        for chunk in self.bytes.utf8_chunks() {
            self.text.push_str(chunk.valid());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            // The last chunk may be the beginning of a character that the next token completes.
            if used + invalid.len() == self.bytes.len() && begins_character(invalid) {
                break;
            }
            if !invalid.is_empty() {
                self.text.push(char::REPLACEMENT_CHARACTER);
                used += invalid.len();
            }
        }
        self.bytes.drain(..used);
        if let Some(at) = self.stop.iter().filter_map(|stop| self.text.find(stop)).min() {
            self.text.truncate(at);
            self.stopped = true;
        }
    }

    fn stopped(&self) -> bool {
        self.stopped
    }

    /// Gives the text that no stop text can reach any more, if there is any.
    fn hand_out(&mut self, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
        let held = self.stop.iter().map(|stop| overlap(&self.text, stop)).max().unwrap_or(0);
        let ready = self.text.len() - held;
        if ready == 0 {
            return ControlFlow::Continue(());
        }
        let answer = on_text(&self.text[..ready]);
        self.text.drain(..ready);
        answer
    }

    /// Everything left; an unfinished character becomes U+FFFD.
    fn finish(mut self) -> String {
        if !self.bytes.is_empty() && !self.stopped {
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        self.text
    }
}

/// Whether more bytes could make this one character.
fn begins_character(bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => false,
        Err(e) => e.valid_up_to() == 0 && e.error_len().is_none(),
    }
}

/// Length of the longest end of `text` with which `stop` begins.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len())
        .rev()
        .find(|n| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(tokens: &[&[u8]], stop: &[&str]) -> (Vec<String>, bool) {
        let stop: Vec<String> = stop.iter().map(|s| (*s).to_owned()).collect();
        let mut output = Output::new(&stop);
        let mut pieces = Vec::new();
        for token in tokens {
            output.push(token);
            if output.stopped() {
                break;
            }
            let _ = output.hand_out(&mut |text| {
                pieces.push(text.to_owned());
                ControlFlow::Continue(())
            });
        }
        let stopped = output.stopped();
        let rest = output.finish();
        if !rest.is_empty() {
            pieces.push(rest);
        }
        (pieces, stopped)
    }

    #[test]
    fn only_whole_characters_come_out() {
        assert_eq!(stream(&[b"a\xc3", b"\xa9b"], &[]).0, ["a", "éb"]);
        assert_eq!(stream(&[b"\xf0\x9f", b"\x98", b"\x80"], &[]).0, ["😀"]);
        assert_eq!(stream(&[b"x\xff", b"y\xe2\x82"], &[]).0, ["x\u{fffd}", "y", "\u{fffd}"]);
        assert_eq!(stream(&[b"\xe2", b"\x28"], &[]).0, ["\u{fffd}("]);
    }

    #[test]
    fn a_stop_text_across_tokens_is_found_and_held_back() {
        assert_eq!(
            stream(&[b"one", b" E", b"N", b"D two"], &["END"]),
            (vec!["one".into(), " ".into()], true)
        );
        assert_eq!(stream(&[b" E", b"N", b"d"], &["END"]).0, [" ", "ENd"]);
        assert_eq!(stream(&[b" E", b"N"], &["END"]).0, [" ", "EN"]);
        assert_eq!(stream(&[b"abc"], &["c", "b", ""]), (vec!["a".into()], true));
    }
}
