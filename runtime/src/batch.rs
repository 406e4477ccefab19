//! Many sessions that decode together: one pass over the weights serves all of them.

use std::sync::Arc;
use std::time::Instant;

use crate::alloc::{reserve, zeros};
use crate::backend::{Activations, Backend, DrawOptions, LogitRows, Span};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::sampler::Sampler;
use crate::session::Session;

/// One session of a [`Batch`], with what it is fed and how it goes on.
pub struct BatchEntry<'a, B: Backend = Cpu> {
    /// The session.
    pub session: &'a mut Session<B>,
    /// Draws the tokens that follow.
    pub sampler: &'a mut Sampler,
    /// The token to feed next; after [`Batch::generate`] the last that was drawn, not yet fed.
    pub token: u32,
}

/// Sessions of one model that take a step together, each at its own length. What a session returns is
/// what it would return alone: bit for bit on the CPU, to rounding on a GPU.
///
/// ```no_run
/// use std::sync::Arc;
/// use teeny_runtime::{Batch, BatchEntry, Cpu, Model, Overflow, Sampler, Session, Weights};
///
/// # fn main() -> teeny_runtime::Result<()> {
/// let weights = Weights::map("data/shakespeare.safetensors".as_ref())?;
/// let model = Arc::new(Model::load(Cpu::new(), &weights)?); // or Cuda::new(0)?
/// let mut first = Session::new(&model, Overflow::Slide)?;
/// let mut second = first.fork()?;
/// let mut batch = Batch::new(&model);
/// batch.decode(&mut [(&mut first, 17), (&mut second, 4)])?; // one token for each session
///
/// let (mut one, mut other) = (Sampler::greedy(), Sampler::new(Default::default())?);
/// let mut entries = [
///     BatchEntry { session: &mut first, sampler: &mut one, token: 5 },
///     BatchEntry { session: &mut second, sampler: &mut other, token: 6 },
/// ];
/// let tokens = batch.generate(&mut entries, 32)?; // 32 tokens for each: (32, 2)
/// # Ok(())
/// # }
/// ```
pub struct Batch<B: Backend = Cpu> {
    model: Arc<Model<B>>,
    logits: Vec<f32>, // (rows of a pass, vocab_size)
    hidden: Vec<f32>, // (rows of a pass, n_embd)
}

/// Most steps that a device takes before the host looks at the tokens.
pub(crate) const MOST_STEPS: usize = 32;

impl<B: Backend> Batch<B> {
    /// For sessions of this model.
    pub fn new(model: &Arc<Model<B>>) -> Batch<B> {
        Batch { model: Arc::clone(model), logits: Vec::new(), hidden: Vec::new() }
    }

    /// Feeds each session its token, as [`Session::decode`] does, all in one pass (or a few, for more
    /// sessions than fit in one).
    ///
    /// # Errors
    /// No session, a session of another model, a token outside the vocabulary, a session without room:
    /// nothing is fed then. No memory, or a device that is lost: some of the sessions are fed, as their
    /// [`Session::n_tokens`] says.
    pub fn decode(&mut self, entries: &mut [(&mut Session<B>, u32)]) -> Result<()> {
        self.check(entries.iter().map(|(session, token)| (&**session, *token)), 1)?;
        let start = Instant::now();
        // Sessions that begin their context anew have more than one row to run.
        let mut together = Vec::new();
        reserve(&mut together, entries.len(), "a batch")?;
        for (session, token) in entries.iter_mut() {
            if session.steps_before_restart() == 0 {
                session.extend(&[*token], false, None)?;
                session.stats.decode_tokens += 1;
                session.stats.decode_time += start.elapsed();
            } else {
                together.push((&mut **session, *token));
            }
        }
        if together.is_empty() {
            return Ok(());
        }
        let mut a = self.model.take_activations()?;
        let most = a.shape.logit_rows;
        let result =
            together.chunks_mut(most).try_for_each(|entries| self.pass(entries, start, &mut a));
        self.model.give_activations(a);
        result
    }

    /// One row of each session.
    fn pass(
        &mut self,
        entries: &mut [(&mut Session<B>, u32)],
        start: Instant,
        a: &mut Activations<B>,
    ) -> Result<()> {
        let n = entries.len();
        let (vocab_size, n_embd) = (self.model.config().vocab_size, self.model.config().n_embd);
        if self.logits.len() < n * vocab_size {
            self.logits = zeros("logits of a batch", n * vocab_size)?;
            self.hidden = zeros("hidden states of a batch", n * n_embd)?;
        }
        let (mut tokens, mut spans) = (Vec::new(), Vec::new());
        reserve(&mut tokens, n, "a batch")?;
        reserve(&mut spans, n, "a batch")?;
        for (session, token) in entries.iter_mut() {
            tokens.push(*token);
            let pos = session.sequence.cached;
            spans.push(Span { rows: 1, pos, cache: &mut session.cache });
        }
        self.model.forward(&tokens, &mut spans, LogitRows::Last, a)?;
        drop(spans);
        let (logits, hidden) = (&mut self.logits[..n * vocab_size], &mut self.hidden[..n * n_embd]);
        self.model.read(a, logits, hidden, 0)?;
        let rows = logits.chunks_exact(vocab_size).zip(hidden.chunks_exact(n_embd));
        for ((session, token), (logits, hidden)) in entries.iter_mut().zip(rows) {
            session.take_step(&[*token], logits, hidden);
            session.stats.decode_tokens += 1;
            session.stats.decode_time += start.elapsed();
        }
        Ok(())
    }

    /// Feeds each session its token, draws the next from its sampler, feeds that, and so on: `steps`
    /// tokens fed and `steps` drawn for each session, the last one not yet fed. Where the device can draw
    /// as the samplers do, it takes many steps without the host.
    ///
    /// Returns the tokens drawn, (steps, entries); `entry.token` is the last of them. For an equal
    /// sampler they are those that [`Batch::decode`] and [`Sampler::sample`] give, one after the other.
    ///
    /// # Errors
    /// As [`Batch::decode`], and as [`Sampler::sample`]: sessions and samplers then stand where the
    /// failure has found them, each session fed with what its sampler has drawn.
    pub fn generate(
        &mut self,
        entries: &mut [BatchEntry<'_, B>],
        steps: usize,
    ) -> Result<Vec<u32>> {
        self.check(entries.iter().map(|entry| (&*entry.session, entry.token)), steps)?;
        let n = entries.len();
        let mut drawn = Vec::new();
        reserve(&mut drawn, n * steps, "tokens")?;
        while drawn.len() < n * steps {
            let done = drawn.len();
            let ahead = (steps - done / n).min(MOST_STEPS);
            let taken = draw_ahead(entries, ahead, &mut drawn)?;
            if taken > 0 {
                for (i, entry) in entries.iter_mut().enumerate() {
                    entry.sampler.skip(taken as u64);
                    entry.token = drawn[done + (taken - 1) * n + i];
                }
                continue;
            }
            let mut fed = Vec::new();
            reserve(&mut fed, n, "a batch")?;
            fed.extend(entries.iter_mut().map(|entry| (&mut *entry.session, entry.token)));
            self.decode(&mut fed)?;
            for entry in entries.iter_mut() {
                entry.token = entry.sampler.sample(entry.session.logits())?;
                drawn.push(entry.token);
            }
        }
        Ok(drawn)
    }

    /// Refuses what cannot be fed, before anything is.
    fn check<'s>(
        &self,
        entries: impl Iterator<Item = (&'s Session<B>, u32)>,
        steps: usize,
    ) -> Result<()>
    where
        B: 's,
    {
        let mut n = 0;
        for (session, token) in entries {
            n += 1;
            if !Arc::ptr_eq(session.model(), &self.model) {
                return Err(Error::Argument {
                    name: "session",
                    found: "one of another model".into(),
                    expected: "sessions of the batch's model".into(),
                });
            }
            session.check(&[token])?;
            session.check_room(steps)?;
        }
        if n == 0 {
            return Err(Error::Argument {
                name: "sessions",
                found: "none".into(),
                expected: "at least one".into(),
            });
        }
        Ok(())
    }
}

/// Feeds each session its token and lets the device draw and go on, for up to `steps` steps. Returns how
/// many it took, 0 if this is not for the device: then nothing has happened. Adds the tokens, (steps,
/// entries), to `drawn`; the last ones are not fed. The samplers are as before.
pub(crate) fn draw_ahead<B: Backend>(
    entries: &mut [BatchEntry<'_, B>],
    steps: usize,
    drawn: &mut Vec<u32>,
) -> Result<usize> {
    let n = entries.len();
    let model = Arc::clone(entries[0].session.model());
    let vocab_size = model.config().vocab_size;
    let room = entries.iter().map(|entry| entry.session.steps_before_restart()).min().unwrap_or(0);
    let mut steps = steps.min(room);
    if steps == 0 {
        return Ok(0);
    }
    let draw = |entry: &BatchEntry<'_, B>| {
        let draw = entry.sampler.chain_as_draw();
        draw.filter(|draw| model.backend().can_draw(draw, vocab_size))
    };
    // Nothing is allocated where there is nothing to be done.
    if entries.iter().any(|entry| draw(entry).is_none()) {
        return Ok(0);
    }
    let mut draws: Vec<DrawOptions> = Vec::new();
    reserve(&mut draws, n, "a batch")?;
    draws.extend(entries.iter().filter_map(draw));
    let mut a = model.take_activations()?;
    steps = steps.min(a.shape.rows / n);
    let result = if steps == 0 || n > a.shape.logit_rows {
        Ok(0)
    } else {
        draw_steps(&model, entries, &draws, steps, drawn, &mut a)
    };
    model.give_activations(a);
    result
}

fn draw_steps<B: Backend>(
    model: &Model<B>,
    entries: &mut [BatchEntry<'_, B>],
    draws: &[DrawOptions],
    steps: usize,
    drawn: &mut Vec<u32>,
    a: &mut Activations<B>,
) -> Result<usize> {
    let start = Instant::now();
    let n = entries.len();
    let before = drawn.len();
    let (mut tokens, mut spans) = (Vec::new(), Vec::new());
    reserve(&mut tokens, n, "a batch")?;
    reserve(&mut spans, n, "a batch")?;
    reserve(drawn, steps * n, "tokens")?;
    for entry in entries.iter_mut() {
        tokens.push(entry.token);
        // Even if it fails half way, the ring has then been written that far.
        let pos = entry.session.sequence.cached;
        let sequence = &mut entry.session.sequence;
        sequence.reach = sequence.reach.max(pos + steps);
        let kept = sequence.n_tokens - sequence.oldest(model.kv_shape().slots);
        let gone = sequence.newest.len().saturating_sub(kept);
        sequence.newest.drain(..gone);
        spans.push(Span { rows: 1, pos, cache: &mut entry.session.cache });
    }
    drawn.resize(before + steps * n, 0);
    let result = model.forward_drawing(&tokens, &mut spans, draws, &mut drawn[before..], a);
    drop(spans);
    if result.is_err() || drawn[before..].contains(&u32::MAX) {
        // Where no token was possible, the host finds that out again and says why.
        drawn.truncate(before);
        return result.map(|()| 0);
    }
    let (vocab_size, n_embd) = (model.config().vocab_size, model.config().n_embd);
    // All sessions' last logits in one go where there is one; they are read once for many steps.
    let mut logits = zeros("logits of a batch", n * vocab_size)?;
    let mut hidden = zeros("hidden states of a batch", n * n_embd)?;
    model.read(a, &mut logits, &mut hidden, 0)?;
    let rows = logits.chunks_exact(vocab_size).zip(hidden.chunks_exact(n_embd));
    let mut fed = Vec::new();
    reserve(&mut fed, steps, "tokens")?;
    for (i, (entry, (logits, hidden))) in entries.iter_mut().zip(rows).enumerate() {
        fed.clear();
        fed.push(entry.token);
        fed.extend((0..steps - 1).map(|step| drawn[before + step * n + i]));
        entry.session.take_step(&fed, logits, hidden);
        entry.session.stats.decode_tokens += steps as u64;
        entry.session.stats.decode_time += start.elapsed();
    }
    Ok(steps)
}
