//! Prompt in, pieces of text out, with stop conditions: pulled piece by piece from a [`TextStream`],
//! or pushed by [`generate`].

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::batch::{BatchEntry, MOST_STEPS, draw_ahead};
use crate::error::{Error, Result};
use crate::sampler::Sampler;
use crate::session::{Overflow, Session};
use crate::tokenizer::Decoder;

/// When to end, and what to hand out.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Texts that end generation; the one found is not part of the output. Empty ones are ignored.
    pub stop: Vec<String>,
    /// Hands out the bytes of tokens as they are, without waiting for whole characters.
    pub raw_bytes: bool,
    /// Feeds each token before its text is handed out, the last one too, so that the session can go
    /// on from there: it then holds the prompt and every token that was drawn, those of a stop text
    /// included, unless its context was full.
    pub feed_last: bool,
    /// Goes on behind a token that ends a text.
    pub ignore_end: bool,
    /// Tokens that end the text besides the model's own.
    pub end_tokens: Vec<u32>,
    /// In an empty session, puts the token that begins a text in front of the prompt, where the model was
    /// trained with one ([`Specials::add_bos`](crate::tokenizer::Specials)) and the prompt lacks it.
    pub begin_text: bool,
}

/// Most tokens for which keys and values are allocated before the first is drawn. Those beyond get
/// theirs as they come, 64 at a time: a large context costs nothing that is not used.
const AHEAD: usize = 1024;

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// `max_tokens` were generated.
    Length,
    /// A stop text was found.
    StopText,
    /// The model drew a token that ends a text ([`Specials::eos`](crate::tokenizer::Specials)), which has
    /// no text of its own.
    EndToken,
    /// The context is full and the session's policy is [`Overflow::Stop`].
    ContextFull,
    /// The caller's function or the session's [`CancelFlag`](crate::session::CancelFlag) asked for
    /// it.
    Cancelled,
    /// An error, which was returned.
    Failed,
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
    /// Single-token passes in `decode_time`: usually one fewer than tokens, the last is not fed.
    pub decode_steps: usize,
}

/// Feeds `prompt` and generates, handing out text as soon as it can no longer change: whole UTF-8
/// characters only (with `raw_bytes`, U+FFFD for what is none), and nothing that may turn out to
/// begin a stop text.
///
/// An empty prompt goes on after the tokens that the session holds.
///
/// # Errors
/// An empty prompt in an empty session, tokens outside the vocabulary, a context that is full under
/// [`Overflow::Error`], or weights that give no usable logits.
pub fn generate<B: Backend>(
    session: &mut Session<B>,
    sampler: &mut Sampler,
    prompt: &[u32],
    options: &GenerateOptions,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generation> {
    let start = Instant::now();
    let mut stream = TextStream::new(prompt.to_vec(), options.clone());
    // Nobody can look at the session before this function returns.
    stream.run_ahead();
    let mut reason = None;
    let ended = loop {
        match stream.next(session, sampler) {
            Ok(Some(piece)) => {
                if on_text(&String::from_utf8_lossy(piece)).is_break() {
                    reason = Some(EndReason::Cancelled);
                    break Ok(());
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    let settled = stream.settle(session);
    ended.and(settled)?;
    let first = stream.prefill_time.unwrap_or_else(|| start.elapsed());
    Ok(Generation {
        // The stream has ended, unless the caller's function has.
        reason: reason.or(stream.end).unwrap_or(EndReason::Cancelled),
        prompt_tokens: stream.prompt.len(),
        tokens: stream.drawn,
        prefill_time: first,
        decode_time: start.elapsed().saturating_sub(first),
        decode_steps: stream.decode_steps,
    })
}

/// Text as it is generated, one piece for each [`TextStream::next`].
#[derive(Clone, Debug)]
pub struct TextStream {
    prompt: Vec<u32>,
    options: GenerateOptions,
    output: Output,
    decoder: Decoder,
    /// Drawn and not yet fed.
    pending: Option<u32>,
    /// What the device has drawn beyond that, where it may.
    ahead: Option<Ahead>,
    drawn: usize,
    /// Whether the last token drawn ends the text.
    at_end: bool,
    decode_steps: usize,
    started: Option<Instant>,
    prefill_time: Option<Duration>,
    first_token_time: Option<Duration>,
    end: Option<EndReason>,
}

impl TextStream {
    /// Nothing is fed before the first piece is asked for.
    pub fn new(prompt: Vec<u32>, options: GenerateOptions) -> TextStream {
        TextStream {
            output: Output::new(&options),
            decoder: Decoder::after_text(),
            prompt,
            options,
            pending: None,
            ahead: None,
            drawn: 0,
            at_end: false,
            decode_steps: 0,
            started: None,
            prefill_time: None,
            first_token_time: None,
            end: None,
        }
    }

    /// The next piece, at least one byte; `None` when generation has ended, then and ever after.
    /// All calls must be given the same session and sampler.
    ///
    /// A cancelled prefill, like every other end, returns `None` with its reason.
    ///
    /// # Errors
    /// As [`generate`]. The stream has ended then.
    pub fn next<B: Backend>(
        &mut self,
        session: &mut Session<B>,
        sampler: &mut Sampler,
    ) -> Result<Option<&[u8]>> {
        self.output.drop_handed_out();
        while self.end.is_none() {
            match self.step(session, sampler) {
                Ok(()) => {}
                Err(Error::Cancelled) => self.end = Some(EndReason::Cancelled),
                Err(error) => {
                    self.end = Some(EndReason::Failed);
                    self.output.clear();
                    return Err(error);
                }
            }
            match self.end {
                None => {}
                // What was held back is not wanted any more.
                Some(EndReason::Cancelled | EndReason::Failed) => self.output.clear(),
                Some(
                    EndReason::Length
                    | EndReason::StopText
                    | EndReason::EndToken
                    | EndReason::ContextFull,
                ) => self.output.finish(),
            }
            if self.output.ready() > 0 {
                break;
            }
        }
        Ok(self.output.hand_out())
    }

    /// Draws one token, after feeding what has to be fed for that.
    fn step<B: Backend>(&mut self, session: &mut Session<B>, sampler: &mut Sampler) -> Result<()> {
        let started = *self.started.get_or_insert_with(Instant::now);
        if self.prefill_time.is_none() {
            self.feed_prompt(session, sampler)?;
            self.prefill_time = Some(started.elapsed());
        }
        if self.drawn >= self.options.max_tokens {
            self.end = Some(EndReason::Length);
            return Ok(());
        }
        if session.cancel_flag().take() {
            return Err(Error::Cancelled);
        }
        if self.pending.is_some()
            && session.room() == Some(0)
            && session.overflow() == Overflow::Stop
        {
            self.end = Some(EndReason::ContextFull);
            return Ok(());
        }
        let token = self.draw(session, sampler)?;
        self.drawn += 1;
        self.first_token_time.get_or_insert_with(|| started.elapsed());
        let (tokenizer, options) = (session.model().tokenizer(), &self.options);
        let of_model = tokenizer.specials().map_or(&[][..], |specials| &specials.eos);
        let ends = |token| of_model.contains(token) || options.end_tokens.contains(token);
        self.at_end = !options.ignore_end && ends(&token);
        if !self.at_end {
            self.output.push(self.decoder.bytes(tokenizer, token).unwrap_or_default());
        }
        if self.options.feed_last && session.room() != Some(0) {
            self.feed_pending(session, sampler)?;
        }
        if self.output.stopped {
            self.end = Some(EndReason::StopText);
        } else if self.at_end {
            self.end = Some(EndReason::EndToken);
        } else if self.drawn == self.options.max_tokens {
            self.end = Some(EndReason::Length);
        }
        Ok(())
    }

    fn feed_prompt<B: Backend>(
        &mut self,
        session: &mut Session<B>,
        sampler: &mut Sampler,
    ) -> Result<()> {
        if self.options.begin_text
            && session.n_tokens() == 0
            && let Some(specials) = session.model().tokenizer().specials()
            && specials.add_bos
            && let Some(bos) = specials.bos
            && self.prompt.first() != Some(&bos)
        {
            self.prompt.insert(0, bos);
        }
        if self.prompt.is_empty() && session.n_tokens() == 0 {
            return Err(Error::Argument {
                name: "prompt",
                found: "no text".into(),
                expected: "at least one character, or a session that holds some".into(),
            });
        }
        let tokenizer = session.model().tokenizer();
        if session.n_tokens() == 0 && self.prompt.iter().all(|token| tokenizer.is_special(*token)) {
            // The output is the beginning of the text.
            self.decoder = Decoder::new();
        }
        let ahead = self.options.max_tokens.min(AHEAD);
        session.reserve(self.prompt.len().saturating_add(ahead))?;
        if !self.prompt.is_empty() {
            session.prefill(&self.prompt)?;
        }
        for token in &self.prompt {
            sampler.accept(*token);
        }
        Ok(())
    }

    /// Feeds what is pending and draws the next token, which is pending then, unless the device has fed
    /// it already.
    fn draw<B: Backend>(&mut self, session: &mut Session<B>, sampler: &mut Sampler) -> Result<u32> {
        self.feed_pending(session, sampler)?;
        if let Some(ahead) = &mut self.ahead
            && let Some(token) = ahead.tokens.pop_front()
        {
            sampler.skip(1);
            self.pending = ahead.tokens.is_empty().then_some(token);
            return Ok(token);
        }
        let token = sampler.sample(session.logits())?;
        self.pending = Some(token);
        Ok(token)
    }

    /// Lets a device that draws by itself go on while the host looks at what it has drawn. The session
    /// may then be ahead of what [`TextStream::next`] has returned, until [`TextStream::settle`].
    pub fn run_ahead(&mut self) {
        self.ahead.get_or_insert_default();
    }

    /// Takes back what a device has fed beyond the text that was handed out: the session is then as
    /// if it had not run ahead. To be called when no further piece is wanted, whatever the reason.
    ///
    /// # Errors
    /// No memory, or a device that is lost.
    pub fn settle<B: Backend>(&mut self, session: &mut Session<B>) -> Result<()> {
        let Some(ahead) = &mut self.ahead else { return Ok(()) };
        let beyond = ahead.tokens.len();
        ahead.tokens.clear();
        if beyond == 0 {
            return Ok(());
        }
        // The last of them was not fed; the one before them was, which is not to be without `feed_last`.
        let fed = if self.options.feed_last { beyond - 1 } else { beyond };
        self.decode_steps -= fed;
        session.truncate(session.n_tokens() - fed)
    }

    /// Feeds what is pending; where the device may, it goes on from there.
    fn feed_pending<B: Backend>(
        &mut self,
        session: &mut Session<B>,
        sampler: &mut Sampler,
    ) -> Result<()> {
        let Some(token) = self.pending else { return Ok(()) };
        let over = self.output.stopped || self.at_end;
        let more = if over { 0 } else { self.options.max_tokens - self.drawn };
        let mut fed = 0;
        if let Some(ahead) = &mut self.ahead {
            fed = ahead.run(token, session, sampler, more)?;
        }
        if fed == 0 {
            session.decode(token)?;
            fed = 1;
        }
        self.pending = None;
        self.decode_steps += fed;
        Ok(())
    }

    /// What [`TextStream::next`] returned last; empty after `None`.
    pub fn piece(&self) -> &[u8] {
        self.output.handed_out()
    }

    /// Why it ended; `None` while it goes on.
    pub fn end_reason(&self) -> Option<EndReason> {
        self.end
    }

    /// From the first call of [`TextStream::next`] to the first token.
    pub fn first_token_time(&self) -> Option<Duration> {
        self.first_token_time
    }
}

/// Tokens that a device has drawn without waiting for the host to look at each.
#[derive(Clone, Debug, Default)]
struct Ahead {
    /// All but the last are fed.
    tokens: VecDeque<u32>,
    /// What is copied to `tokens`; kept for its memory.
    drawn: Vec<u32>,
    /// Steps to take at once, by how long the last ones took; 0 before any.
    steps: usize,
}

impl Ahead {
    /// Text comes in pieces of no more than this, so that it still flows.
    const AT_ONCE: Duration = Duration::from_millis(5);

    /// Feeds `token` and as many of those that follow, if the device draws as the sampler does. Returns
    /// how many were fed.
    fn run<B: Backend>(
        &mut self,
        token: u32,
        session: &mut Session<B>,
        sampler: &mut Sampler,
        most: usize,
    ) -> Result<usize> {
        let room = session.room().unwrap_or(usize::MAX);
        // A few at first, to see how long they take.
        let steps = if self.steps == 0 { 4 } else { self.steps };
        let steps = steps.min(MOST_STEPS).min(most).min(room);
        if steps < 2 {
            return Ok(0);
        }
        let start = Instant::now();
        self.drawn.clear();
        let entries = &mut [BatchEntry { session, sampler, token }];
        let fed = draw_ahead(entries, steps, &mut self.drawn)?;
        self.tokens.extend(&self.drawn);
        if fed > 0 {
            let step = start.elapsed().as_nanos().max(1) / fed as u128;
            let steps = (Ahead::AT_ONCE.as_nanos() / step).max(1);
            self.steps = usize::try_from(steps).unwrap_or(MOST_STEPS);
        }
        Ok(fed)
    }
}

/// Text on its way out.
#[derive(Clone, Debug)]
struct Output {
    stop: Vec<Vec<u8>>,
    raw: bool,
    /// Bytes that are not yet a whole character.
    bytes: Vec<u8>,
    /// What can be handed out, but for the part that may begin a stop text.
    text: Vec<u8>,
    /// How much of `text` was handed out with the last piece.
    handed_out: usize,
    stopped: bool,
    finished: bool,
}

impl Output {
    fn new(options: &GenerateOptions) -> Output {
        let stop: Vec<Vec<u8>> = options
            .stop
            .iter()
            .filter(|stop| !stop.is_empty())
            .map(|stop| stop.as_bytes().to_vec())
            .collect();
        // Room for a long token beyond the longest text that is held back.
        let room = 256 + stop.iter().map(Vec::len).max().unwrap_or(0);
        Output {
            stop,
            raw: options.raw_bytes,
            bytes: Vec::with_capacity(room),
            text: Vec::with_capacity(room),
            handed_out: 0,
            stopped: false,
            finished: false,
        }
    }

    /// Adds the bytes of a token; bytes that no continuation can make valid become U+FFFD.
    fn push(&mut self, bytes: &[u8]) {
        if self.raw {
            self.text.extend_from_slice(bytes);
        } else {
            self.push_characters(bytes);
        }
        if let Some(at) = self.stop.iter().filter_map(|stop| find(&self.text, stop)).min() {
            self.text.truncate(at);
            self.stopped = true;
        }
    }

    fn push_characters(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let mut used = 0;
        for chunk in self.bytes.utf8_chunks() {
            self.text.extend_from_slice(chunk.valid().as_bytes());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            // The last chunk may be the beginning of a character that the next token completes.
            if used + invalid.len() == self.bytes.len() && begins_character(invalid) {
                break;
            }
            if !invalid.is_empty() {
                self.text.extend_from_slice(REPLACEMENT);
                used += invalid.len();
            }
        }
        self.bytes.drain(..used);
    }

    /// Bytes that no stop text can reach any more.
    fn ready(&self) -> usize {
        let held = match self.finished {
            true => 0,
            false => self.stop.iter().map(|stop| overlap(&self.text, stop)).max().unwrap_or(0),
        };
        self.text.len() - held
    }

    /// Gives those bytes, which stay where they are until [`Output::drop_handed_out`].
    fn hand_out(&mut self) -> Option<&[u8]> {
        self.handed_out = self.ready();
        (self.handed_out > 0).then(|| self.handed_out())
    }

    fn handed_out(&self) -> &[u8] {
        &self.text[..self.handed_out]
    }

    fn drop_handed_out(&mut self) {
        self.text.drain(..self.handed_out);
        self.handed_out = 0;
    }

    /// Nothing follows: everything left may go, an unfinished character as U+FFFD.
    fn finish(&mut self) {
        if !self.bytes.is_empty() && !self.stopped {
            self.text.extend_from_slice(REPLACEMENT);
        }
        self.bytes.clear();
        self.finished = true;
    }

    /// Nothing follows, and what is left is not wanted.
    fn clear(&mut self) {
        self.text.clear();
        self.bytes.clear();
        self.finished = true;
    }
}

const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Whether more bytes could make this one character.
fn begins_character(bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => false,
        Err(e) => e.valid_up_to() == 0 && e.error_len().is_none(),
    }
}

/// Where `part`, which is not empty, first begins in `text`.
fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// Length of the longest end of `text` with which `stop` begins. Both are whole characters unless
/// they are raw, so such an end begins with a whole character too.
fn overlap(text: &[u8], stop: &[u8]) -> usize {
    (1..stop.len().min(text.len() + 1)).rev().find(|n| text.ends_with(&stop[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(tokens: &[&[u8]], stop: &[&str], raw_bytes: bool) -> (Vec<Vec<u8>>, bool) {
        let stop = stop.iter().map(|s| (*s).to_owned()).collect();
        let mut output =
            Output::new(&GenerateOptions { stop, raw_bytes, ..GenerateOptions::default() });
        let mut pieces = Vec::new();
        for token in tokens {
            output.push(token);
            if output.stopped {
                break;
            }
            pieces.extend(output.hand_out().map(<[u8]>::to_vec));
            output.drop_handed_out();
        }
        output.finish();
        pieces.extend(output.hand_out().map(<[u8]>::to_vec));
        (pieces, output.stopped)
    }

    fn text(tokens: &[&[u8]], stop: &[&str]) -> (Vec<String>, bool) {
        let (pieces, stopped) = stream(tokens, stop, false);
        (pieces.into_iter().map(|p| String::from_utf8(p).expect("UTF-8")).collect(), stopped)
    }

    #[test]
    fn only_whole_characters_come_out() {
        assert_eq!(text(&[b"a\xc3", b"\xa9b"], &[]).0, ["a", "éb"]);
        assert_eq!(text(&[b"\xf0\x9f", b"\x98", b"\x80"], &[]).0, ["😀"]);
        assert_eq!(text(&[b"x\xff", b"y\xe2\x82"], &[]).0, ["x\u{fffd}", "y", "\u{fffd}"]);
        assert_eq!(text(&[b"\xe2", b"\x28"], &[]).0, ["\u{fffd}("]);
    }

    #[test]
    fn raw_bytes_come_out_as_they_are() {
        let (pieces, stopped) = stream(&[b"a\xc3", b"\xa9b", b"\xff"], &[], true);
        assert_eq!(
            (pieces, stopped),
            (vec![b"a\xc3".into(), b"\xa9b".into(), b"\xff".into()], false)
        );
        let (pieces, stopped) = stream(&[b"a\xc3", b"\xa9b"], &["é"], true);
        assert_eq!((pieces, stopped), (vec![b"a".into()], true));
    }

    #[test]
    fn a_stop_text_across_tokens_is_found_and_held_back() {
        assert_eq!(
            text(&[b"one", b" E", b"N", b"D two"], &["END"]),
            (vec!["one".into(), " ".into()], true)
        );
        assert_eq!(text(&[b" E", b"N", b"d"], &["END"]).0, [" ", "ENd"]);
        assert_eq!(text(&[b" E", b"N"], &["END"]).0, [" ", "EN"]);
        assert_eq!(text(&[b"abc"], &["c", "b", ""]), (vec!["a".into()], true));
        assert_eq!(text(&[b"\xc3", b"\xa9"], &["éé"]).0, ["é"]);
    }
}
