//! One sequence of tokens with its KV cache: prefill, decode, rollback, fork, and what happens past
//! the context.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::alloc::zeros;
use crate::backend::{Activations, Backend, LogitRows, Span};
use crate::config::PositionalEncoding;
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::kv_cache::LEAST_ROWS;
use crate::model::Model;

/// What a session does with a token for which `max_seq_len` has no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// Goes on without end. Encodings that are relative or absent (`rope`, `alibi`, `none`) keep the
    /// newest `max_seq_len` positions in a ring. Absolute ones (`learned`, `sinusoidal`,
    /// `learned_sinusoidal`) forget all but the newest `max_seq_len / 2` tokens and run those
    /// through the model again from position 0: one slower step in every `max_seq_len / 2`.
    #[default]
    Slide,
    /// Refuses the token; [`generate`](crate::generate::generate) then ends as if that were wanted.
    Stop,
    /// Refuses the token; [`generate`](crate::generate::generate) then fails.
    Error,
}

impl Overflow {
    /// Every policy with its name.
    pub const ALL: &[(&str, Overflow)] =
        &[("slide", Overflow::Slide), ("stop", Overflow::Stop), ("error", Overflow::Error)];
}

/// What a session has done so far, forks and restored sessions counting from their own start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionStats {
    /// Tokens fed by [`Session::prefill`] and [`Session::prefill_each`].
    pub prefill_tokens: u64,
    /// Time that took.
    pub prefill_time: Duration,
    /// Tokens fed by [`Session::decode`].
    pub decode_tokens: u64,
    /// Time that took.
    pub decode_time: Duration,
}

/// Ends a session's work from another thread.
///
/// Prefill looks at it before each pass of up to 64 tokens (1,024 on a GPU), generating before each token.
/// Whoever notices it takes it back and fails with [`Error::Cancelled`], so no request is lost, and
/// none ends two calls.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// Asks for the end of what runs, or of what comes next.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Takes the request back; true if there was one.
    pub fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Acquire)
    }
}

/// A sequence of tokens that a model has seen, and the logits for the next one.
///
/// The logits depend on the sequence alone: feeding it at once, token by token, or in any pieces
/// gives the same bits on the CPU, and so does going back to an earlier token. On a GPU pieces of
/// different sizes run different kernels, and agree to rounding.
pub struct Session<B: Backend = Cpu> {
    pub(crate) model: Arc<Model<B>>,
    overflow: Overflow,
    pub(crate) cache: B::Cache,
    pub(crate) logits: Vec<f32>, // (vocab_size)
    pub(crate) hidden: Vec<f32>, // (n_embd)
    pub(crate) sequence: Sequence,
    /// Memory for the tokens of before a restart, should it fail.
    spare: VecDeque<u32>,
    cancel: CancelFlag,
    pub(crate) stats: SessionStats,
}

/// Which tokens a session has seen and which of them the cache holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// Tokens fed since the start.
    pub(crate) n_tokens: usize,
    /// The token at position 0 of the cache; above 0 only after an absolute encoding has restarted.
    pub(crate) start: usize,
    /// Positions of the cache that hold what they should, from `start` on: all of them, unless
    /// restarting was cancelled. The next pass then begins with the rest.
    pub(crate) cached: usize,
    /// One more than the highest position that was written, which rollback does not lower: its
    /// ring has lost the positions more than its size below.
    pub(crate) reach: usize,
    /// The newest tokens, back to the oldest position that the ring holds.
    pub(crate) newest: VecDeque<u32>,
}

impl Sequence {
    /// The oldest token whose keys and values the ring still holds.
    pub(crate) fn oldest(&self, slots: usize) -> usize {
        self.start + self.reach.saturating_sub(slots)
    }

    /// Adds tokens that are in the cache now.
    fn push(&mut self, tokens: &[u32], slots: usize) {
        self.n_tokens += tokens.len();
        self.cached = self.n_tokens - self.start;
        self.reach = self.reach.max(self.cached);
        self.newest.extend(tokens);
        let kept = self.n_tokens - self.oldest(slots);
        self.newest.drain(..self.newest.len() - kept);
    }
}

/// Which passes' logits and hidden states become the session's. Those that run tokens again keep
/// none, so that one that fails half way leaves what belongs to the last token.
#[derive(Clone, Copy)]
enum Keep {
    EachPass,
    Last,
    Nothing,
}

/// Receives the logits after each token: its index and (vocab_size) numbers.
pub type OnLogits<'a> = &'a mut dyn FnMut(usize, &[f32]);

impl<B: Backend> Session<B> {
    /// Starts an empty sequence.
    ///
    /// # Errors
    /// No memory for the activations.
    pub fn new(model: &Arc<Model<B>>, overflow: Overflow) -> Result<Session<B>> {
        // Sooner rather than with the first token.
        model.give_activations(model.take_activations()?);
        Ok(Session {
            overflow,
            cache: model.cache()?,
            logits: zeros("logits", model.config().vocab_size)?,
            hidden: zeros("hidden state", model.config().n_embd)?,
            sequence: Sequence::default(),
            spare: VecDeque::new(),
            cancel: CancelFlag::default(),
            stats: SessionStats::default(),
            model: Arc::clone(model),
        })
    }

    /// A second session at the same point, from which both go on by themselves. Keys and values are
    /// shared, page by page, until one of them writes there: many characters that begin with the
    /// same prompt hold it once.
    ///
    /// # Errors
    /// No memory.
    pub fn fork(&self) -> Result<Session<B>> {
        let mut fork = Session::new(&self.model, self.overflow)?;
        fork.cache = self.model.fork(&self.cache)?;
        fork.logits.copy_from_slice(&self.logits);
        fork.hidden.copy_from_slice(&self.hidden);
        fork.sequence = self.sequence.clone();
        Ok(fork)
    }

    /// Allocates for `n_tokens` further tokens, so that feeding them allocates nothing (but for
    /// pages shared with a fork, which are copied when they are written).
    ///
    /// # Errors
    /// No memory.
    pub fn reserve(&mut self, n_tokens: usize) -> Result<()> {
        let slots = self.slots();
        // Beyond the ring's end all pages are there already.
        let pos = self.sequence.reach.min(slots);
        let rows = n_tokens.min(slots - pos);
        self.model.reserve(&mut self.cache, pos, rows)?;
        let known = self.sequence.newest.len();
        let more = n_tokens.min(slots + LEAST_ROWS - known.min(slots));
        let tokens = if self.restarts() { self.max_seq_len() } else { 0 };
        let reserved = self.sequence.newest.try_reserve(more);
        reserved.and_then(|()| self.spare.try_reserve(tokens)).map_err(|_| Error::OutOfMemory {
            what: "tokens",
            bytes: (more + tokens).saturating_mul(size_of::<u32>()),
        })
    }

    /// Feeds tokens and returns the logits for the one that follows them. (vocab_size)
    ///
    /// # Errors
    /// No token at all, a token outside the vocabulary, or more tokens than the overflow policy
    /// allows: nothing is fed then. No memory, or [`Error::Cancelled`]: the tokens of the passes
    /// that were done are fed, [`Session::n_tokens`] says how many, and all is as if just those had
    /// been asked for.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.timed_prefill(tokens, None)?;
        Ok(&self.logits)
    }

    /// As [`Session::prefill`], with the logits after every token.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn prefill_each(&mut self, tokens: &[u32], on_logits: OnLogits<'_>) -> Result<()> {
        self.timed_prefill(tokens, Some(on_logits))
    }

    fn timed_prefill(&mut self, tokens: &[u32], on_logits: Option<OnLogits<'_>>) -> Result<()> {
        self.check(tokens)?;
        let (start, before) = (Instant::now(), self.sequence.n_tokens);
        let result = self.extend(tokens, true, on_logits);
        self.stats.prefill_tokens += (self.sequence.n_tokens - before) as u64;
        self.stats.prefill_time += start.elapsed();
        result
    }

    /// Feeds one token and returns the logits for the next. (vocab_size)
    ///
    /// # Errors
    /// As [`Session::prefill`], but it is never cancelled.
    pub fn decode(&mut self, token: u32) -> Result<&[f32]> {
        self.check(&[token])?;
        let start = Instant::now();
        self.extend(&[token], false, None)?;
        self.stats.decode_tokens += 1;
        self.stats.decode_time += start.elapsed();
        Ok(&self.logits)
    }

    /// Becomes a session that was also fed `tokens`, whose keys and values a pass has stored.
    pub(crate) fn take_step(&mut self, tokens: &[u32], logits: &[f32], hidden: &[f32]) {
        self.sequence.push(tokens, self.slots());
        self.logits.copy_from_slice(logits);
        self.hidden.copy_from_slice(hidden);
    }

    /// Tokens that may be fed before the context begins anew, without end where it never does; 0 if
    /// something is to be run first.
    pub(crate) fn steps_before_restart(&self) -> usize {
        let Sequence { n_tokens, start, cached, .. } = self.sequence;
        if start + cached != n_tokens {
            return 0;
        }
        if self.restarts() { self.max_seq_len() - cached } else { usize::MAX }
    }

    /// Refuses more tokens than the overflow policy allows.
    pub(crate) fn check_room(&self, n_tokens: usize) -> Result<()> {
        match self.room() {
            Some(room) if room < n_tokens => Err(Error::ContextFull {
                max_seq_len: self.max_seq_len(),
                requested: self.n_tokens().saturating_add(n_tokens),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses tokens that cannot be fed.
    pub(crate) fn check(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::Argument {
                name: "tokens",
                found: "none".into(),
                expected: "at least one".into(),
            });
        }
        self.model.check_tokens(tokens)?;
        self.check_room(tokens.len())
    }

    /// Feeds checked tokens, restarting where the encoding asks for it.
    pub(crate) fn extend(
        &mut self,
        tokens: &[u32],
        may_cancel: bool,
        mut on_logits: Option<OnLogits<'_>>,
    ) -> Result<()> {
        self.catch_up(may_cancel)?;
        let full = self.max_seq_len();
        if !self.restarts() {
            return self.run(tokens, may_cancel, on_logits, 0, Keep::EachPass);
        }
        let mut done = 0;
        while done < tokens.len() {
            let rest = &tokens[done..];
            let room = full - self.sequence.cached;
            let step = match &on_logits {
                // Each token's logits are those of the context that it alone would have found.
                Some(_) => rest.len().min(room.max(1)),
                // What a long prompt pushes out again need not be run.
                None => rest.len(),
            };
            let (step, index) = (&rest[..step], done);
            done += step.len();
            // A closure that is borrowed anew for each step.
            let mut each = on_logits.as_mut().map(|each| |i, logits: &[f32]| each(i, logits));
            let each = each.as_mut().map(|each| each as OnLogits<'_>);
            if step.len() <= room {
                self.run(step, may_cancel, each, index, Keep::EachPass)?;
            } else {
                self.restart(step, may_cancel)?;
                if let Some(each) = each {
                    each(index, &self.logits);
                }
            }
        }
        Ok(())
    }

    /// Runs what a cancelled restart has left out.
    fn catch_up(&mut self, may_cancel: bool) -> Result<()> {
        let Sequence { n_tokens, start, cached, .. } = self.sequence;
        if start + cached == n_tokens {
            return Ok(());
        }
        let all: Vec<u32> = self.sequence.newest.drain(..).collect();
        self.sequence = Sequence { n_tokens: start, start, ..Sequence::default() };
        // The logits are still those of the last token.
        let result = self.run(&all, may_cancel, None, 0, Keep::Nothing);
        if result.is_err() {
            self.sequence = Sequence {
                n_tokens,
                start,
                cached: 0,
                reach: n_tokens - start,
                newest: all.into(),
            };
        }
        result
    }

    /// Feeds tokens to a context of absolute positions that has no room for all of them: it begins
    /// anew with the newest half, or with as much later a token as a long prompt needs. Should that
    /// fail, the tokens are as before, and the cache is made up for with the next pass.
    fn restart(&mut self, tokens: &[u32], may_cancel: bool) -> Result<()> {
        let Sequence { n_tokens, start: start_before, .. } = self.sequence;
        let start = self.start_of(n_tokens + tokens.len());
        let newest = std::mem::take(&mut self.spare);
        let mut old = std::mem::replace(
            &mut self.sequence,
            Sequence { n_tokens: start, start, newest, ..Sequence::default() },
        )
        .newest;
        let kept = old.len().min(start - start_before);
        let (again, new) =
            (&old.make_contiguous()[kept..], &tokens[start.saturating_sub(n_tokens)..]);
        let result = self
            .run(again, may_cancel, None, 0, Keep::Nothing)
            .and_then(|()| self.run(new, may_cancel, None, 0, Keep::Last));
        if result.is_err() {
            let (start, reach) = (start_before, n_tokens - start_before);
            std::mem::swap(&mut self.sequence.newest, &mut old);
            let newest = std::mem::take(&mut self.sequence.newest);
            self.sequence = Sequence { n_tokens, start, cached: 0, reach, newest };
        }
        old.clear();
        self.spare = old;
        result
    }

    /// Runs tokens through the model at the positions that follow, in passes of limited size.
    /// `index` is that of the first token, for `on_logits`.
    fn run(
        &mut self,
        tokens: &[u32],
        may_cancel: bool,
        mut on_logits: Option<OnLogits<'_>>,
        index: usize,
        keep: Keep,
    ) -> Result<()> {
        let mut a = self.model.take_activations()?;
        let result = self.passes(tokens, may_cancel, &mut on_logits, index, keep, &mut a);
        self.model.give_activations(a);
        result
    }

    fn passes(
        &mut self,
        tokens: &[u32],
        may_cancel: bool,
        on_logits: &mut Option<OnLogits<'_>>,
        mut index: usize,
        keep: Keep,
        a: &mut Activations<B>,
    ) -> Result<()> {
        let vocab_size = self.model.config().vocab_size;
        let wanted = if on_logits.is_some() { LogitRows::All } else { LogitRows::Last };
        let most = match wanted {
            LogitRows::All => self.span_rows().min(a.shape.logit_rows),
            LogitRows::Last => self.span_rows().min(a.shape.rows),
        };
        let mut rows = match wanted {
            LogitRows::All => zeros("logits", most.min(tokens.len()) * vocab_size)?,
            LogitRows::Last => Vec::new(),
        };
        let slots = self.slots();
        let mut passes = tokens.chunks(most).peekable();
        while let Some(tokens) = passes.next() {
            if may_cancel && self.cancel.take() {
                return Err(Error::Cancelled);
            }
            let pos = self.sequence.cached;
            let mut spans = [Span { rows: tokens.len(), pos, cache: &mut self.cache }];
            self.model.forward(tokens, &mut spans, wanted, a)?;
            match on_logits {
                Some(on_logits) => {
                    let rows = &mut rows[..tokens.len() * vocab_size];
                    self.model.read(a, rows, &mut self.hidden, tokens.len() - 1)?;
                    self.sequence.push(tokens, slots);
                    for row in rows.chunks_exact(vocab_size) {
                        on_logits(index, row);
                        index += 1;
                    }
                    self.logits.copy_from_slice(&rows[rows.len() - vocab_size..]);
                }
                None if match keep {
                    Keep::EachPass => true,
                    Keep::Last => passes.peek().is_none(),
                    Keep::Nothing => false,
                } =>
                {
                    self.model.read(a, &mut self.logits, &mut self.hidden, 0)?;
                    self.sequence.push(tokens, slots);
                }
                None => {
                    // Waits: another pass may run on activations of its own.
                    self.model.read(a, &mut [], &mut [], 0)?;
                    self.sequence.push(tokens, slots);
                }
            }
        }
        Ok(())
    }

    /// Goes back to the first `n_tokens` tokens, as if no more had been fed: one pass of one token
    /// brings back its logits.
    ///
    /// # Errors
    /// [`Error::Argument`] for more tokens than there are, or so few that what they need has left
    /// the context. No memory. Nothing has changed then.
    pub fn truncate(&mut self, n_tokens: usize) -> Result<()> {
        if n_tokens == self.sequence.n_tokens {
            return Ok(());
        }
        if n_tokens == 0 {
            self.reset();
            return Ok(());
        }
        let oldest = self.truncate_limit();
        if n_tokens > self.sequence.n_tokens || n_tokens < oldest {
            return Err(Error::Argument {
                name: "position",
                found: n_tokens.to_string(),
                expected: format!(
                    "0, or one from {oldest} to {}: what earlier ones need has left the context",
                    self.sequence.n_tokens
                ),
            });
        }
        self.catch_up(false)?;
        let last = n_tokens - 1;
        let pos = last - self.sequence.start;
        // Should there be no memory to write to, it shows before anything has changed.
        self.model.reserve(&mut self.cache, pos, 1)?;
        let mut a = self.model.take_activations()?;
        let front = self.sequence.n_tokens - self.sequence.newest.len();
        let token = self.sequence.newest[last - front];
        self.sequence.newest.truncate(last - front);
        self.sequence.n_tokens = last;
        self.sequence.cached = pos;
        let result = self.passes(&[token], false, &mut None, 0, Keep::Last, &mut a);
        self.model.give_activations(a);
        result
    }

    /// The fewest tokens above 0 to which [`Session::truncate`] can go back.
    pub fn truncate_limit(&self) -> usize {
        let s = &self.sequence;
        let full = self.max_seq_len();
        if s.n_tokens == 0 {
            return 0;
        }
        if self.restarts() {
            // With fewer tokens it would have started earlier.
            return if s.start == 0 { 1 } else { s.start + self.kept_on_restart() + 1 };
        }
        // The last token left sees from `n - full` on.
        match s.oldest(self.slots()) {
            0 => 1,
            oldest => oldest + full,
        }
    }

    /// The token at position 0 for a sequence of `n_tokens`, where the encoding is absolute.
    pub(crate) fn start_of(&self, n_tokens: usize) -> usize {
        let full = self.max_seq_len();
        let forgotten = full - self.kept_on_restart();
        n_tokens.saturating_sub(full).div_ceil(forgotten) * forgotten
    }

    fn kept_on_restart(&self) -> usize {
        self.max_seq_len() / 2
    }

    /// Whether sliding runs tokens again, because their encoding is absolute.
    pub(crate) fn restarts(&self) -> bool {
        match self.model.config().positional_encoding {
            PositionalEncoding::Learned
            | PositionalEncoding::Sinusoidal
            | PositionalEncoding::LearnedSinusoidal => true,
            PositionalEncoding::None | PositionalEncoding::Alibi | PositionalEncoding::Rope => {
                false
            }
        }
    }

    /// Tokens that may still be fed, without end for [`Overflow::Slide`].
    pub fn room(&self) -> Option<usize> {
        match self.overflow {
            Overflow::Slide => None,
            Overflow::Stop | Overflow::Error => Some(self.max_seq_len() - self.n_tokens()),
        }
    }

    /// Logits for the token that follows what was fed; zeros before anything was. (vocab_size)
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The last token's hidden state after the final norm, which the logits are computed from: an
    /// embedding of what was fed. Zeros before anything was. (n_embd)
    pub fn hidden(&self) -> &[f32] {
        &self.hidden
    }

    /// Tokens fed since the start.
    pub fn n_tokens(&self) -> usize {
        self.sequence.n_tokens
    }

    /// Forgets every token and keeps the memory.
    pub fn reset(&mut self) {
        self.sequence.newest.clear();
        let newest = std::mem::take(&mut self.sequence.newest);
        self.sequence = Sequence { newest, ..Sequence::default() };
        self.logits.fill(0.0);
        self.hidden.fill(0.0);
        self.cancel.take();
    }

    /// What ends this session's work from another thread.
    pub fn cancel_flag(&self) -> &CancelFlag {
        &self.cancel
    }

    /// What was done and how long it took.
    pub fn stats(&self) -> SessionStats {
        self.stats
    }

    /// Bytes of keys and values, and how many of them are shared with forks.
    pub fn kv_bytes(&self) -> (usize, usize) {
        self.model.backend().cache_bytes(&self.cache)
    }

    /// The policy given at the start.
    pub fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model<B>> {
        &self.model
    }

    pub(crate) fn slots(&self) -> usize {
        self.model.kv_shape().slots
    }

    /// Most tokens of one pass, for which the ring has room beyond the window.
    fn span_rows(&self) -> usize {
        self.slots() + 1 - self.max_seq_len()
    }

    fn max_seq_len(&self) -> usize {
        self.model.config().max_seq_len
    }
}
