//! Merging neighbours into the piece with the highest score, as SentencePiece's BPE does.

use std::collections::HashMap;

use super::merges::Chain;
use super::normalize::META;
use super::pieces::{Finder, Hash, PieceIndex, Pieces};
use super::sentencepiece::PieceKind;
use super::unigram::char_len;
use crate::alloc::{grow, reserve};
use crate::error::{Error, Result};

/// Words of up to so many symbols are merged on the stack.
const SMALL: usize = 32;
/// The order of what is not merged.
const NONE: u32 = u32::MAX;

/// The search for what to merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ScoreMerges {
    index: PieceIndex,
    /// Place of each piece in the order of merging: (vocab_size)
    order: Vec<u32>,
    unknown: u32,
    /// Whether no piece reaches over the beginning of a word: words are then merged one by one.
    by_words: bool,
    /// Pieces that are taken apart again; true for those: (vocab_size), or none at all.
    unused: Vec<bool>,
}

/// Memory of a search, kept for the next one.
#[derive(Default)]
pub(super) struct Scratch {
    chain: Chain,
    symbols: Vec<Symbol>,
    /// Of each unused piece that was made, the length of its left part.
    parts: HashMap<u32, usize>,
}

#[derive(Clone, Copy)]
struct Symbol {
    /// Where it begins in the text.
    start: u32,
    len: u32,
    /// Whether it stays as it is.
    is_frozen: bool,
}

impl ScoreMerges {
    /// There is a piece for what is unknown, and all scores are finite.
    pub fn new(
        pieces: &Pieces,
        scores: &[f32],
        kinds: &[PieceKind],
        unknown: u32,
    ) -> Result<ScoreMerges> {
        let is = |id: u32, kind| kinds.get(id as usize) == Some(&kind);
        let is_text = |id: &u32| {
            [PieceKind::Normal, PieceKind::UserDefined, PieceKind::Unused]
                .iter()
                .any(|kind| is(*id, *kind))
        };
        let ids = 0..pieces.len() as u32;
        let (index, _) = PieceIndex::new(pieces, ids.clone().filter(is_text))?;
        let mut order = Vec::new();
        reserve(&mut order, scores.len(), "scores of pieces")?;
        order.extend(scores.iter().map(|score| descending(*score)));
        let begins_words = |piece: &[u8]| {
            let mut rest = piece;
            while let Some(behind) = rest.strip_prefix(META) {
                rest = behind;
            }
            !rest.windows(META.len()).any(|window| window == META)
        };
        let mut unused = Vec::new();
        if kinds.contains(&PieceKind::Unused) {
            reserve(&mut unused, kinds.len(), "kinds of pieces")?;
            unused.extend(kinds.iter().map(|kind| *kind == PieceKind::Unused));
        }
        let by_words = unused.is_empty()
            && pieces.iter().all(|(id, piece)| !is_text(&id) || begins_words(piece));
        Ok(ScoreMerges { index, order, unknown, by_words, unused })
    }

    /// Calls `piece` for each piece of a text in turn, with its text.
    pub fn split(
        &self,
        pieces: &Pieces,
        frozen: &Finder,
        text: &[u8],
        scratch: &mut Scratch,
        piece: &mut dyn FnMut(u32, &[u8]) -> Result<()>,
    ) -> Result<()> {
        if text.len() >= u32::MAX as usize {
            return Err(Error::Tokenizer(format!("{} bytes in one text", text.len())));
        }
        if !self.by_words {
            return self.split_word(pieces, frozen, text, scratch, piece);
        }
        let mut start = 0;
        while start < text.len() {
            let end = start + word_len(&text[start..]);
            self.split_word(pieces, frozen, &text[start..end], scratch, piece)?;
            start = end;
        }
        Ok(())
    }

    fn split_word(
        &self,
        pieces: &Pieces,
        frozen: &Finder,
        text: &[u8],
        scratch: &mut Scratch,
        piece: &mut dyn FnMut(u32, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let Scratch { chain, symbols, parts } = scratch;
        symbols.clear();
        parts.clear();
        let mut start = 0;
        while start < text.len() {
            let found = frozen.longest(&text[start..]);
            let len = found.map_or_else(|| char_len(text, start), |(_, len)| len);
            grow(symbols, 1, "the symbols of a text")?;
            let is_frozen = found.is_some();
            symbols.push(Symbol { start: start as u32, len: len as u32, is_frozen });
            start += len;
        }
        if symbols.len() <= SMALL && self.unused.is_empty() {
            return self.split_small(pieces, text, symbols, piece);
        }
        chain.begin(symbols.len(), |at| symbols[at].len)?;
        let mut look = |chain: &Chain, left: usize, right: usize| {
            if symbols[left].is_frozen || symbols[right].is_frozen {
                return None;
            }
            let left_len = chain.len_of(left) as usize;
            let start = symbols[left].start as usize;
            let both = &text[start..start + left_len + chain.len_of(right) as usize];
            let id = self.index.get(pieces, Hash::of(both), both)?;
            if self.is_unused(id) {
                parts.insert(id, left_len);
            }
            Some((self.order[id as usize], id))
        };
        for right in 1..symbols.len() {
            let found = look(chain, right - 1, right);
            chain.push(right - 1, right, found);
        }
        while let Some((left, _)) = chain.pop() {
            let (before, behind) = chain.join(left);
            if let Some(before) = before {
                let found = look(chain, before, left);
                chain.push(before, left, found);
            }
            if let Some(behind) = behind {
                let found = look(chain, left, behind);
                chain.push(left, behind, found);
            }
        }
        for at in chain.symbols() {
            let start = symbols[at].start as usize;
            let symbol = &text[start..start + chain.len_of(at) as usize];
            self.resolve(pieces, symbol, parts, piece)?;
        }
        Ok(())
    }

    /// As [`ScoreMerges::split_word`], looking at all pairs for each merge.
    fn split_small(
        &self,
        pieces: &Pieces,
        text: &[u8],
        symbols: &mut [Symbol],
        piece: &mut dyn FnMut(u32, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let order = |left: Symbol, right: Symbol| {
            let both = &text[left.start as usize..][..(left.len + right.len) as usize];
            let id = if left.is_frozen || right.is_frozen {
                None
            } else {
                self.index.get(pieces, Hash::of(both), both)
            };
            id.map_or(NONE, |id| self.order[id as usize])
        };
        // Of each symbol with the one behind it.
        let mut orders = [NONE; SMALL];
        for (at, pair) in orders.iter_mut().zip(symbols.windows(2)) {
            *at = order(pair[0], pair[1]);
        }
        let mut len = symbols.len();
        while len > 1 {
            let (mut at, mut lowest) = (0, NONE);
            for (index, order) in orders[..len - 1].iter().enumerate() {
                if *order < lowest {
                    (at, lowest) = (index, *order);
                }
            }
            if lowest == NONE {
                break;
            }
            symbols[at].len += symbols[at + 1].len;
            symbols.copy_within(at + 2..len, at + 1);
            orders.copy_within(at + 1..len, at);
            len -= 1;
            orders[len - 1] = NONE;
            if at + 1 < len {
                orders[at] = order(symbols[at], symbols[at + 1]);
            }
            if at > 0 {
                orders[at - 1] = order(symbols[at - 1], symbols[at]);
            }
        }
        for symbol in &symbols[..len] {
            let symbol = &text[symbol.start as usize..][..symbol.len as usize];
            let id = self.index.get(pieces, Hash::of(symbol), symbol);
            piece(id.unwrap_or(self.unknown), symbol)?;
        }
        Ok(())
    }

    fn is_unused(&self, id: u32) -> bool {
        self.unused.get(id as usize).copied().unwrap_or(false)
    }

    /// Hands out a symbol, or the parts of one that is never used.
    fn resolve(
        &self,
        pieces: &Pieces,
        symbol: &[u8],
        parts: &HashMap<u32, usize>,
        piece: &mut dyn FnMut(u32, &[u8]) -> Result<()>,
    ) -> Result<()> {
        if self.unused.is_empty() {
            let id = self.index.get(pieces, Hash::of(symbol), symbol);
            return piece(id.unwrap_or(self.unknown), symbol);
        }
        // The parts that are still to be looked at; each is shorter than what it is a part of.
        let mut rest = vec![symbol];
        while let Some(symbol) = rest.pop() {
            let id = self.index.get(pieces, Hash::of(symbol), symbol);
            let part = id.and_then(|id| parts.get(&id).copied());
            match part.and_then(|len| symbol.split_at_checked(len)) {
                Some((left, right)) => rest.extend([right, left]),
                // Nothing is known of what cannot be taken apart.
                None => {
                    let id = id.filter(|id| !self.is_unused(*id));
                    piece(id.unwrap_or(self.unknown), symbol)?;
                }
            }
        }
        Ok(())
    }
}

/// Bytes of the first word: white space and what follows until the next.
fn word_len(text: &[u8]) -> usize {
    let mut at = 0;
    while text[at..].starts_with(META) {
        at += META.len();
    }
    let rest = &text[at..];
    let next = rest.windows(META.len()).position(|window| window == META);
    next.map_or(text.len(), |next| at + next)
}

/// Numbers in the opposite order, as integers; both zeros are the same.
fn descending(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_score_comes_first() {
        let scores = [f32::MAX, 7.5, 1e-30, 0.0, -1e-30, -3.0, f32::MIN];
        assert!(scores.windows(2).all(|pair| descending(pair[0]) < descending(pair[1])));
        assert_eq!(descending(0.0), descending(-0.0));
    }

    #[test]
    fn words_begin_with_all_their_spaces() {
        let words = |text: &str| {
            let mut rest = text.as_bytes();
            let mut lens = Vec::new();
            while !rest.is_empty() {
                let len = word_len(rest);
                lens.push(len);
                rest = &rest[len..];
            }
            lens
        };
        assert_eq!(words("▁ab▁▁c▁"), [5, 7, 3]);
        assert_eq!(words("ab"), [2]);
        assert_eq!(words("▁▁"), [6]);
    }
}
