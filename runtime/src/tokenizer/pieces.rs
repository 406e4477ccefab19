//! Byte strings with ids, in one block of memory, and a table that finds them.

use crate::alloc::reserve;
use crate::error::{Error, Result};

/// Most slots that are looked at for one key. Chance does not fill as many in a row; who makes keys that
/// do is refused, so that no file makes a program look forever.
pub(super) const MOST_PROBES: usize = 1 << 10;

/// Strings in the order of their ids, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each of them ends in `bytes`: (len)
    ends: Vec<u32>,
}

impl Pieces {
    pub fn new<'a>(pieces: impl Iterator<Item = &'a [u8]> + Clone) -> Result<Pieces> {
        let mut all = Pieces::default();
        let (mut n, mut n_bytes) = (0, 0usize);
        for piece in pieces.clone() {
            n += 1;
            n_bytes = n_bytes.saturating_add(piece.len());
        }
        if n >= u32::MAX as usize || n_bytes > u32::MAX as usize {
            let found = format!("{n} pieces of {n_bytes} bytes together");
            return Err(refuse("tokenizer.pieces", found, "fewer than 2^32 of each"));
        }
        reserve(&mut all.bytes, n_bytes, "a vocabulary")?;
        reserve(&mut all.ends, n, "a vocabulary")?;
        for piece in pieces {
            all.bytes.extend_from_slice(piece);
            all.ends.push(all.bytes.len() as u32);
        }
        Ok(all)
    }

    /// The same from the tables of a file. Ends must not decrease, and the last must be that of the
    /// bytes.
    pub fn from_tables(bytes: &[u8], ends: Vec<u32>) -> Result<Pieces> {
        let unordered = ends.windows(2).position(|pair| pair[0] > pair[1]);
        if let Some(at) = unordered {
            let found = format!("{} at {at}, then {}", ends[at], ends[at + 1]);
            return Err(refuse("tokenizer.ends", found, "ends that do not decrease"));
        }
        let end = ends.last().copied().unwrap_or(0);
        if end as usize != bytes.len() || ends.len() >= u32::MAX as usize {
            let expected = format!("{}, the bytes of tokenizer.pieces", bytes.len());
            return Err(refuse("tokenizer.ends", format!("{end} at the end"), &expected));
        }
        let mut all = Pieces { bytes: Vec::new(), ends };
        reserve(&mut all.bytes, bytes.len(), "a vocabulary")?;
        all.bytes.extend_from_slice(bytes);
        Ok(all)
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    #[inline]
    pub fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        self.bytes.get(start..end)
    }

    /// All with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u8])> + Clone {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let places = starts.zip(&self.ends).zip(0..);
        places.map(|((start, end), id)| (id, &self.bytes[start as usize..*end as usize]))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn ends(&self) -> &[u32] {
        &self.ends
    }
}

/// Pieces that are made bit by bit.
pub(super) struct PiecesBuilder(Pieces);

impl PiecesBuilder {
    /// Room for so many pieces and bytes.
    pub fn new(n: usize, n_bytes: usize) -> Result<PiecesBuilder> {
        let mut pieces = Pieces::default();
        reserve(&mut pieces.bytes, n_bytes, "a vocabulary")?;
        reserve(&mut pieces.ends, n, "a vocabulary")?;
        Ok(PiecesBuilder(pieces))
    }

    /// Adds bytes to the last piece.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.bytes.extend_from_slice(bytes);
    }

    /// The next piece begins.
    pub fn end_piece(&mut self) {
        self.0.ends.push(self.0.bytes.len() as u32);
    }

    pub fn finish(self) -> Pieces {
        self.0
    }
}

/// Hash of a string, byte by byte, so that those of all beginnings come on the way.
#[derive(Clone, Copy)]
pub(super) struct Hash(u64);

impl Hash {
    pub const START: Hash = Hash(0x243f_6a88_85a3_08d3);

    #[inline]
    pub fn add(self, byte: u8) -> Hash {
        Hash((self.0.rotate_left(5) ^ u64::from(byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    #[inline]
    pub fn of(bytes: &[u8]) -> Hash {
        bytes.iter().fold(Hash::START, |hash, byte| hash.add(*byte))
    }

    /// The best bits are the highest.
    #[inline]
    fn bits(self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// Finds pieces by their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PieceIndex {
    /// A power of two, or none at all.
    slots: Vec<Slot>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    /// Upper bits of the hash.
    tag: u32,
    /// The id and 1; 0 in an empty slot.
    next_id: u32,
}

impl PieceIndex {
    /// An index of the ids given. Returns two ids whose pieces are the same too, if there are such; the
    /// first of them is then found.
    pub fn new(
        pieces: &Pieces,
        ids: impl Iterator<Item = u32>,
    ) -> Result<(PieceIndex, Option<(u32, u32)>)> {
        let n_slots = (2 * pieces.len()).next_power_of_two();
        let mut index = PieceIndex::default();
        reserve(&mut index.slots, n_slots, "the index of a vocabulary")?;
        index.slots.resize(n_slots, Slot::default());
        let mut twice = None;
        for id in ids {
            let Some(piece) = pieces.get(id) else { continue };
            match index.look(pieces, Hash::of(piece), piece) {
                Look::Found(first) => twice = twice.or(Some((first, id))),
                Look::Free(at, tag) => index.slots[at] = Slot { tag, next_id: id + 1 },
                Look::Crowded => {
                    let found = format!("{} and many more of one hash", shown(piece));
                    return Err(refuse("tokenizer.pieces", found, "pieces of a language"));
                }
            }
        }
        Ok((index, twice))
    }

    /// The id of the piece with these bytes, whose hash is given.
    #[inline]
    pub fn get(&self, pieces: &Pieces, hash: Hash, bytes: &[u8]) -> Option<u32> {
        match self.look(pieces, hash, bytes) {
            Look::Found(id) => Some(id),
            Look::Free(..) | Look::Crowded => None,
        }
    }

    #[inline]
    fn look(&self, pieces: &Pieces, hash: Hash, bytes: &[u8]) -> Look {
        let Some(mask) = self.slots.len().checked_sub(1) else { return Look::Crowded };
        let bits = hash.bits();
        let tag = (bits >> 32) as u32;
        for probe in 0..MOST_PROBES {
            let at = (bits as usize).wrapping_add(probe) & mask;
            let slot = self.slots[at];
            if slot.next_id == 0 {
                return Look::Free(at, tag);
            }
            if slot.tag == tag && pieces.get(slot.next_id - 1) == Some(bytes) {
                return Look::Found(slot.next_id - 1);
            }
        }
        Look::Crowded
    }
}

enum Look {
    Found(u32),
    /// Where it would be, and its tag.
    Free(usize, u32),
    Crowded,
}

/// Finds the longest of a few pieces that a text begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Finder {
    pieces: Pieces,
    index: PieceIndex,
    /// Length of the longest that begins with each byte: (256), or none.
    longest: Vec<usize>,
}

impl Finder {
    /// As [`PieceIndex::new`], of all pieces; none of them may be empty.
    pub fn new(pieces: Pieces) -> Result<(Finder, Option<(u32, u32)>)> {
        if pieces.len() == 0 {
            return Ok((Finder::default(), None));
        }
        let (index, twice) = PieceIndex::new(&pieces, 0..pieces.len() as u32)?;
        let mut longest = vec![0; 256];
        for (_, piece) in pieces.iter() {
            if let Some(first) = piece.first() {
                let longest = &mut longest[usize::from(*first)];
                *longest = piece.len().max(*longest);
            }
        }
        Ok((Finder { pieces, index, longest }, twice))
    }

    /// Whether there are no pieces.
    pub fn is_empty(&self) -> bool {
        self.pieces.len() == 0
    }

    /// Whether a piece begins with this byte.
    #[inline]
    pub fn may_begin(&self, byte: u8) -> bool {
        self.longest.get(usize::from(byte)).is_some_and(|longest| *longest > 0)
    }

    /// Index and length of the piece.
    #[inline]
    pub fn longest(&self, text: &[u8]) -> Option<(u32, usize)> {
        let longest = *self.longest.get(usize::from(*text.first()?))?;
        let mut hash = Hash::START;
        let mut found = None;
        for (at, byte) in text.iter().take(longest).enumerate() {
            hash = hash.add(*byte);
            let piece = self.index.get(&self.pieces, hash, &text[..=at]);
            found = piece.map(|piece| (piece, at + 1)).or(found);
        }
        found
    }
}

/// An error about a part of the tokenizer.
pub(super) fn refuse(what: &str, found: String, expected: &str) -> Error {
    Error::Format { what: what.to_owned(), found, expected: expected.to_owned() }
}

/// A piece as a message names it.
pub(super) fn shown(piece: &[u8]) -> String {
    const MOST: usize = 40;
    let cut = &piece[..piece.len().min(MOST)];
    let more = if piece.len() > MOST { "..." } else { "" };
    format!("{:?}{more}", String::from_utf8_lossy(cut))
}
