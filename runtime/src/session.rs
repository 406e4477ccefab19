//! One sequence of tokens with its KV cache: prefill, decode, and what happens past the context.

use std::sync::Arc;

use crate::backend::{Backend, Span, zeros};
use crate::config::PositionalEncoding;
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::kv_cache::MAX_ROWS;
use crate::model::{Activations, LogitRows, Model};

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

/// A sequence of tokens that a model has seen, and the logits for the next one.
///
/// The logits depend on the sequence alone: feeding it at once, token by token, or in any pieces
/// gives the same bits.
pub struct Session<B: Backend = Cpu> {
    model: Arc<Model<B>>,
    overflow: Overflow,
    cache: B::Cache,
    activations: Activations<B>,
    logits: Vec<f32>, // (vocab_size)
    /// Position of the next token in the cache.
    pos: usize,
    /// Tokens fed since the start.
    n_tokens: usize,
    /// The tokens in the cache; kept only where sliding must run them again.
    history: Vec<u32>,
}

impl<B: Backend> Session<B> {
    /// Starts an empty sequence.
    ///
    /// # Errors
    /// No memory for the activations.
    pub fn new(model: &Arc<Model<B>>, overflow: Overflow) -> Result<Session<B>> {
        Ok(Session {
            overflow,
            cache: model.cache()?,
            activations: model.activations()?,
            logits: zeros("logits", model.config().vocab_size)?,
            pos: 0,
            n_tokens: 0,
            history: Vec::new(),
            model: Arc::clone(model),
        })
    }

    /// Allocates for `n_tokens` further tokens, so that feeding them allocates nothing.
    ///
    /// # Errors
    /// No memory.
    pub fn reserve(&mut self, n_tokens: usize) -> Result<()> {
        let n_tokens = n_tokens.min(self.max_seq_len() + MAX_ROWS);
        self.model.reserve(&mut self.cache, self.pos, n_tokens)?;
        if self.restarts() {
            self.history.reserve(n_tokens.min(self.max_seq_len()));
        }
        Ok(())
    }

    /// Feeds tokens and returns the logits for the one that follows them. (vocab_size)
    ///
    /// # Errors
    /// No token at all, a token outside the vocabulary, more tokens than the overflow policy allows,
    /// or no memory. Nothing is fed then.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        if tokens.is_empty() {
            return Err(Error::Argument {
                name: "tokens",
                found: "none".into(),
                expected: "at least one".into(),
            });
        }
        self.model.check_tokens(tokens)?;
        match self.room() {
            Some(room) if room < tokens.len() => {
                return Err(Error::ContextFull {
                    max_seq_len: self.max_seq_len(),
                    requested: self.n_tokens.saturating_add(tokens.len()),
                });
            }
            Some(_) | None => {}
        }
        // All memory first: should there be none, nothing has changed yet.
        let rows = tokens.len().min(self.max_seq_len() + MAX_ROWS);
        self.model.reserve(&mut self.cache, self.pos, rows)?;
        if self.restarts() {
            self.feed_absolute(tokens)?;
        } else {
            self.feed(tokens)?;
        }
        self.n_tokens += tokens.len();
        self.model.read_logits(&mut self.logits, &self.activations);
        Ok(&self.logits)
    }

    /// Feeds one token and returns the logits for the next. (vocab_size)
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode(&mut self, token: u32) -> Result<&[f32]> {
        self.prefill(&[token])
    }

    /// Runs tokens through the model at the positions that follow, in passes of limited size.
    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        for tokens in tokens.chunks(self.activations.rows()) {
            let mut spans = [Span { rows: tokens.len(), pos: self.pos, cache: &mut self.cache }];
            self.model.forward(tokens, &mut spans, LogitRows::Last, &mut self.activations)?;
            self.pos += tokens.len();
        }
        Ok(())
    }

    /// As `feed`, for encodings whose positions end at `max_seq_len`: a token that finds the
    /// context full leaves its newest half. A long prompt skips straight to where that ends.
    fn feed_absolute(&mut self, tokens: &[u32]) -> Result<()> {
        let full = self.max_seq_len();
        let forgotten = full - full / 2;
        let n = self.history.len() + tokens.len();
        let start = n.saturating_sub(full).div_ceil(forgotten) * forgotten;
        if start == 0 {
            self.history.extend_from_slice(tokens);
            return self.feed(tokens);
        }
        let old = self.history.len().min(start);
        self.history.drain(..old);
        self.history.extend_from_slice(&tokens[start - old..]);
        self.pos = 0;
        let history = std::mem::take(&mut self.history);
        let result = self.feed(&history);
        self.history = history;
        result
    }

    /// Whether sliding runs tokens again, because their encoding is absolute.
    fn restarts(&self) -> bool {
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
            Overflow::Stop | Overflow::Error => Some(self.max_seq_len() - self.n_tokens),
        }
    }

    /// Logits for the token that follows what was fed; zeros before anything was. (vocab_size)
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Tokens fed since the start.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Forgets every token and keeps the memory.
    pub fn reset(&mut self) {
        self.pos = 0;
        self.n_tokens = 0;
        self.history.clear();
        self.logits.fill(0.0);
    }

    /// The policy given at the start.
    pub fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model<B>> {
        &self.model
    }

    fn max_seq_len(&self) -> usize {
        self.model.config().max_seq_len
    }
}
