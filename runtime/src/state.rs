//! A session saved to bytes and restored from them, so that a long prompt is computed once.
//!
//! All numbers are little-endian. Nothing in the bytes is trusted: lengths are checked against each
//! other and against what is there before anything is allocated or read, and a checksum finds what is
//! damaged. Restoring fails or gives a session that goes on bit for bit as the saved one would; on another
//! device, to rounding.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `teenyKV1` |
//! | 16 | fingerprint of the model |
//! | 8 each | number of tokens fed, `start`, `cached`, `reach` (see `Sequence` in session.rs), of newest tokens |
//! | 4 each | the newest tokens |
//! | 4 each | logits (vocab_size), hidden state (n_embd), as f32 |
//! | 4 each | keys and values as f32: (positions, n_layer, n_kv_head, 2, head_dim), the positions from the oldest that the ring holds to the newest |
//! | 8 | xxh3-64 of all bytes before |

use std::io::Write;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use crate::alloc::{reserve, zeros};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::format::write_atomically;
use crate::kv_cache::{KvShape, LEAST_ROWS};
use crate::session::{Overflow, Sequence, Session};

const MAGIC: &[u8; 8] = b"teenyKV1";
/// Magic, fingerprint and five numbers.
const HEADER: usize = 8 + 16 + 5 * 8;

impl<B: Backend> Session<B> {
    /// Bytes that [`Session::save`] makes.
    pub fn saved_len(&self) -> usize {
        let reach = self.saved_reach();
        let positions = self.sequence.cached - self.oldest_position(reach);
        let floats =
            self.logits.len() + self.hidden.len() + positions * self.saved_shape().position_len();
        HEADER + 4 * (self.saved_newest(reach) + floats) + 8
    }

    /// The session as bytes, in the layout of [`state`](crate::state).
    ///
    /// The first time that a model's session is saved or restored, the whole model is read once, for
    /// its fingerprint.
    ///
    /// # Errors
    /// No memory.
    pub fn save(&self) -> Result<Vec<u8>> {
        let len = self.saved_len();
        let mut out = Vec::new();
        reserve(&mut out, len, "a saved session")?;
        let Sequence { n_tokens, start, cached, reach: _, newest } = &self.sequence;
        let reach = self.saved_reach();
        let n_newest = self.saved_newest(reach);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.model.fingerprint().to_le_bytes());
        for number in [*n_tokens, *start, *cached, reach, n_newest] {
            out.extend_from_slice(&(number as u64).to_le_bytes());
        }
        for token in newest.range(newest.len() - n_newest..) {
            out.extend_from_slice(&token.to_le_bytes());
        }
        put(&mut out, &self.logits);
        put(&mut out, &self.hidden);
        let shape = self.saved_shape();
        // In pieces, so that the copy in f32 stays small.
        let mut piece = zeros("a saved session", LEAST_ROWS * shape.position_len())?;
        let mut pos = self.oldest_position(reach);
        while pos < *cached {
            let end = (*cached).min(pos + LEAST_ROWS);
            let piece = &mut piece[..(end - pos) * shape.position_len()];
            self.model.backend().read_cache(piece, &self.cache, pos..end)?;
            put(&mut out, piece);
            pos = end;
        }
        out.extend_from_slice(&xxh3_64(&out).to_le_bytes());
        debug_assert_eq!(out.len(), len);
        Ok(out)
    }

    /// Writes what [`Session::save`] makes to a file, through a temporary one that is renamed.
    ///
    /// # Errors
    /// No memory, or a file that cannot be written.
    pub fn save_file(&self, path: &Path) -> Result<()> {
        let bytes = self.save()?;
        write_atomically(path, |file| file.write_all(&bytes))
    }

    /// Becomes the session that was saved, keeping its own overflow policy. Its memory for more
    /// tokens is kept, its statistics go on.
    ///
    /// # Errors
    /// [`Error::Format`] for bytes that are damaged or no saved session, [`Error::OtherModel`] for
    /// one of another model, [`Error::ContextFull`] for one with more tokens than this session's
    /// policy allows, no memory. Nothing has changed then.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<()> {
        let mut reader = Reader::new(bytes)?;
        if reader.u128()? != self.model.fingerprint() {
            return Err(Error::OtherModel);
        }
        let [n_tokens, start, cached, reach, n_newest] = reader.numbers()?;
        let sequence = Sequence { n_tokens, start, cached, reach, newest: Default::default() };
        self.check_sequence(&sequence, n_newest)?;
        let mut newest = std::collections::VecDeque::new();
        let tokens = reader.take(n_newest, 4)?;
        newest
            .try_reserve(n_newest)
            .map_err(|_| Error::OutOfMemory { what: "tokens", bytes: tokens.len() })?;
        newest.extend(tokens.chunks_exact(4).map(|t| u32::from_le_bytes([t[0], t[1], t[2], t[3]])));
        if let Some(token) = newest.iter().find(|t| **t as usize >= self.logits.len()) {
            return Err(damaged("tokens", token.to_string(), "ids of the vocabulary"));
        }
        let logits = reader.take(self.logits.len(), 4)?;
        let hidden = reader.take(self.hidden.len(), 4)?;
        let shape = self.saved_shape();
        let oldest = sequence.oldest(shape.slots) - start;
        let kv = reader.take((cached - oldest).saturating_mul(shape.position_len()), 4)?;
        reader.end()?;

        let mut cache = self.model.cache()?;
        // Pages are counted from the ring's first on, whichever of them are filled.
        self.model.reserve(&mut cache, 0, cached)?;
        let mut piece = zeros("a saved session", LEAST_ROWS * shape.position_len())?;
        for (i, bytes) in kv.chunks(4 * LEAST_ROWS * shape.position_len()).enumerate() {
            let piece = &mut piece[..bytes.len() / 4];
            get(piece, bytes);
            let pos = oldest + i * LEAST_ROWS;
            let end = cached.min(pos + LEAST_ROWS);
            self.model.backend().write_cache(&mut cache, pos..end, piece)?;
        }
        self.cache = cache;
        get(&mut self.logits, logits);
        get(&mut self.hidden, hidden);
        // As far as this ring must have been written to have lost what is not there.
        let reach = if oldest > 0 { oldest + self.slots() } else { reach };
        self.sequence = Sequence { newest, reach, ..sequence };
        Ok(())
    }

    /// Restores what [`Session::save_file`] wrote.
    ///
    /// # Errors
    /// As [`Session::restore`], or a file that cannot be read.
    pub fn restore_file(&mut self, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io {
            action: "cannot read saved session",
            path: path.to_owned(),
            source,
        })?;
        self.restore(&bytes)
    }

    /// The smallest ring of any backend: what lies beyond it is not saved, so that every backend can
    /// restore what another has saved.
    fn saved_shape(&self) -> KvShape {
        KvShape::new(self.model.config(), LEAST_ROWS)
    }

    /// `reach` of a session with a ring of the saved shape that holds what this one holds.
    fn saved_reach(&self) -> usize {
        let Sequence { cached, reach, .. } = self.sequence;
        let slots = self.saved_shape().slots;
        if reach <= slots {
            return reach;
        }
        cached.max(reach.saturating_sub(self.slots()) + slots)
    }

    /// The oldest position of the cache that is saved, at most `cached`.
    fn oldest_position(&self, saved_reach: usize) -> usize {
        saved_reach.saturating_sub(self.saved_shape().slots).min(self.sequence.cached)
    }

    /// How many of the newest tokens are saved.
    fn saved_newest(&self, saved_reach: usize) -> usize {
        let oldest = saved_reach.saturating_sub(self.saved_shape().slots);
        self.sequence.n_tokens - self.sequence.start - oldest
    }

    /// Refuses numbers that no session of this model can have.
    fn check_sequence(&self, s: &Sequence, n_newest: usize) -> Result<()> {
        let full = self.model.config().max_seq_len;
        let slots = self.saved_shape().slots;
        let wrong = || {
            damaged(
                "numbers",
                format!(
                    "{} tokens, start {}, {} in the cache, reach {}, {n_newest} newest",
                    s.n_tokens, s.start, s.cached, s.reach
                ),
                "those of a session of this model",
            )
        };
        // No session gets that far, and no sum below overflows.
        if s.n_tokens.max(s.reach) > usize::MAX / 4 {
            return Err(wrong());
        }
        let in_context = s.n_tokens.checked_sub(s.start).ok_or_else(wrong)?;
        // A cache that was cancelled before it was filled again is empty.
        let filled = s.cached == in_context || (s.cached == 0 && s.reach == in_context);
        let known = if self.restarts() {
            s.start == self.start_of(s.n_tokens) && s.reach <= slots
        } else {
            s.start == 0 && s.cached == in_context
        };
        if !(filled && known && s.reach >= in_context) {
            return Err(wrong());
        }
        // Rolling back goes no further than what is left can see.
        let oldest = s.start.checked_add(s.reach.saturating_sub(slots)).ok_or_else(wrong)?;
        let needed = s.n_tokens.saturating_sub(full).max(s.start);
        if oldest > needed || n_newest != s.n_tokens - oldest {
            return Err(wrong());
        }
        match self.overflow() {
            Overflow::Slide => Ok(()),
            Overflow::Stop | Overflow::Error if s.n_tokens <= full => Ok(()),
            Overflow::Stop | Overflow::Error => {
                Err(Error::ContextFull { max_seq_len: full, requested: s.n_tokens })
            }
        }
    }
}

fn damaged(what: &str, found: impl Into<String>, expected: &str) -> Error {
    Error::State { what: what.to_owned(), found: found.into(), expected: expected.to_owned() }
}

fn put(out: &mut Vec<u8>, values: &[f32]) {
    for value in values {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

fn get(values: &mut [f32], bytes: &[u8]) {
    for (value, b) in values.iter_mut().zip(bytes.chunks_exact(4)) {
        *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
}

/// Takes checked pieces off the front.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Checks magic and checksum.
    fn new(bytes: &'a [u8]) -> Result<Reader<'a>> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            let start = &bytes[..bytes.len().min(8)];
            let found = format!("a beginning of {:?}", String::from_utf8_lossy(start));
            return Err(damaged("beginning", found, "teenyKV1, a session that teeny has saved"));
        };
        let Some((before, checksum)) = rest.split_last_chunk::<8>() else {
            return Err(damaged("length", format!("{} bytes", bytes.len()), "more"));
        };
        if xxh3_64(&bytes[..bytes.len() - 8]) != u64::from_le_bytes(*checksum) {
            return Err(damaged(
                "checksum",
                "another one",
                "that of the bytes before it: they are damaged or not all there",
            ));
        }
        Ok(Reader { rest: before })
    }

    fn u128(&mut self) -> Result<u128> {
        let bytes = self.take(1, 16)?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u128::from(*byte)))
    }

    fn numbers<const N: usize>(&mut self) -> Result<[usize; N]> {
        let bytes = self.take(N, 8)?;
        let mut numbers = [0; N];
        for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
            let value = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
            *number = usize::try_from(value)
                .map_err(|_| damaged("numbers", value.to_string(), "one that fits in memory"))?;
        }
        Ok(numbers)
    }

    /// `n` things of `size` bytes.
    fn take(&mut self, n: usize, size: usize) -> Result<&'a [u8]> {
        let taken = n.checked_mul(size).and_then(|len| self.rest.split_at_checked(len));
        let (taken, rest) = taken
            .ok_or_else(|| damaged("length", "too few bytes", "as many as its numbers say"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn end(&self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        let found = format!("{} bytes too many", self.rest.len());
        Err(damaged("length", found, "as many as its numbers say"))
    }
}
