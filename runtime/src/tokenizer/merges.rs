//! Merging neighbours, the pair of the lowest rank first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::pieces::{Hash, MOST_PROBES, PieceIndex, Pieces, refuse};
use crate::alloc::{grow, reserve};
use crate::error::{Error, Result};

/// Words of up to so many symbols are merged on the stack.
const SMALL: usize = 32;
/// No rank, and no key.
const NONE: u64 = u64::MAX;

/// Pairs with what they become, by their rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Merges {
    /// Left, right and what both become: (n_merges)
    list: Vec<[u32; 3]>,
    /// A power of two, or none at all.
    slots: Vec<Slot>,
    /// The highest bits of a product choose the slot.
    shift: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    /// Left and right.
    key: u64,
    /// Rank and result.
    rank_to: u64,
}

/// Pairs with the token that has the bytes of both, which `index` finds.
pub(super) fn with_results(
    pairs: &[(u32, u32)],
    pieces: &Pieces,
    index: &PieceIndex,
) -> Result<Vec<[u32; 3]>> {
    let mut list = Vec::new();
    reserve(&mut list, pairs.len(), "merges")?;
    let mut both = Vec::new();
    for (rank, (left, right)) in pairs.iter().enumerate() {
        both.clear();
        for id in [left, right] {
            let piece = pieces.get(*id).unwrap_or_default();
            grow(&mut both, piece.len(), "a merge")?;
            both.extend_from_slice(piece);
        }
        let Some(to) = index.get(pieces, Hash::of(&both), &both) else {
            let found = format!("no token for {left} and {right} at {rank}");
            return Err(refuse("tokenizer.merges", found, "a token with the bytes of both"));
        };
        list.push([*left, *right, to]);
    }
    Ok(list)
}

fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

impl Merges {
    /// Every pair must be there once and have the bytes of its result.
    pub fn new(list: Vec<[u32; 3]>, pieces: &Pieces) -> Result<Merges> {
        if list.len() >= u32::MAX as usize {
            let found = format!("{} merges", list.len());
            return Err(refuse("tokenizer.merges", found, "fewer than 2^32"));
        }
        if list.is_empty() {
            return Ok(Merges::default());
        }
        // Up to three quarters full.
        let n_slots = (list.len() + list.len() / 3 + 1).next_power_of_two();
        let mut merges = Merges { shift: 64 - n_slots.trailing_zeros(), ..Merges::default() };
        reserve(&mut merges.slots, n_slots, "merges")?;
        merges.slots.resize(n_slots, Slot { key: NONE, rank_to: NONE });
        for (merge, rank) in list.iter().zip(0..) {
            let [left, right, to] = *merge;
            let bytes = (pieces.get(left), pieces.get(right), pieces.get(to));
            let fits = match bytes {
                (Some(left), Some(right), Some(to)) => {
                    left.len() + right.len() == to.len()
                        && to.starts_with(left)
                        && to.ends_with(right)
                }
                _ => false,
            };
            if !fits {
                return Err(refuse(
                    "tokenizer.merges",
                    format!("{left} and {right} to {to} at {rank}"),
                    "two tokens and the one that has the bytes of both",
                ));
            }
            match merges.look(pair(left, right)) {
                (at, Some(NONE)) => {
                    merges.slots[at] = Slot { key: pair(left, right), rank_to: pair(rank, to) };
                }
                (_, found) => {
                    let what = if found.is_some() { "a second time" } else { "in a crowd" };
                    let found = format!("{left} and {right} {what} at {rank}");
                    return Err(refuse("tokenizer.merges", found, "each pair once"));
                }
            }
        }
        Ok(Merges { list, ..merges })
    }

    pub fn list(&self) -> &[[u32; 3]] {
        &self.list
    }

    /// Rank and result of a pair, [`NONE`] for one that is not merged.
    #[inline]
    fn get(&self, left: u32, right: u32) -> u64 {
        self.look(pair(left, right)).1.unwrap_or(NONE)
    }

    /// The slot of a key and what is in it.
    #[inline]
    fn look(&self, key: u64) -> (usize, Option<u64>) {
        let Some(mask) = self.slots.len().checked_sub(1) else { return (0, None) };
        let first = mix(key).checked_shr(self.shift).unwrap_or(0) as usize;
        for probe in 0..MOST_PROBES {
            let at = (first + probe) & mask;
            let slot = self.slots[at];
            if slot.key == key || slot.key == NONE {
                return (at, Some(slot.rank_to));
            }
        }
        (0, None)
    }

    /// Merges the symbols of `out` from index `start` on.
    #[inline]
    pub fn merge(&self, out: &mut Vec<u32>, start: usize) -> Result<()> {
        let symbols = out.get_mut(start..).unwrap_or_default();
        let left = match symbols.len() {
            0 | 1 => return Ok(()),
            ..=SMALL => self.merge_small(symbols),
            _ => self.merge_large(symbols)?,
        };
        out.truncate(start + left);
        Ok(())
    }

    /// Looks at all pairs for each merge. Returns how many symbols are left.
    #[inline]
    fn merge_small(&self, symbols: &mut [u32]) -> usize {
        let mut len = symbols.len();
        // Of each symbol with the one behind it.
        let mut ranks = [NONE; SMALL];
        for (rank, pair) in ranks.iter_mut().zip(symbols.windows(2)) {
            *rank = self.get(pair[0], pair[1]);
        }
        loop {
            let (mut at, mut lowest) = (0, NONE);
            for (index, rank) in ranks[..len - 1].iter().enumerate() {
                if *rank < lowest {
                    (at, lowest) = (index, *rank);
                }
            }
            if lowest == NONE {
                return len;
            }
            symbols[at] = lowest as u32;
            symbols.copy_within(at + 2..len, at + 1);
            ranks.copy_within(at + 1..len, at);
            len -= 1;
            ranks[len - 1] = NONE;
            if at + 1 < len {
                ranks[at] = self.get(symbols[at], symbols[at + 1]);
            }
            if at > 0 {
                ranks[at - 1] = self.get(symbols[at - 1], symbols[at]);
            }
        }
    }

    /// Finds the next merge in a heap, so that long words take no more than n log n.
    fn merge_large(&self, symbols: &mut [u32]) -> Result<usize> {
        let mut chain = Chain::default();
        chain.begin(symbols.len(), |_| 1)?;
        let look = |symbols: &[u32], left: usize, right: usize| {
            let found = self.get(symbols[left], symbols[right]);
            (found != NONE).then_some(((found >> 32) as u32, found as u32))
        };
        for left in 1..symbols.len() {
            chain.push(left - 1, left, look(symbols, left - 1, left));
        }
        while let Some((left, to)) = chain.pop() {
            symbols[left] = to;
            let (before, behind) = chain.join(left);
            if let Some(before) = before {
                chain.push(before, left, look(symbols, before, left));
            }
            if let Some(behind) = behind {
                chain.push(left, behind, look(symbols, left, behind));
            }
        }
        let mut len = 0;
        for at in chain.symbols() {
            symbols[len] = symbols[at];
            len += 1;
        }
        Ok(len)
    }
}

/// Spreads a key over all bits.
#[inline]
fn mix(key: u64) -> u64 {
    (key ^ key >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Symbols that are joined with their neighbours, and which to join next.
#[derive(Default)]
pub(super) struct Chain {
    /// Lengths; 0 of what was joined with the one in front of it.
    lens: Vec<u32>,
    /// Index and 1, 0 at the ends.
    before: Vec<u32>,
    behind: Vec<u32>,
    /// Order and left symbol, then the length of both together and the result.
    heap: BinaryHeap<Reverse<(u64, u32, u32)>>,
}

impl Chain {
    /// Begins with `n` symbols; `len` gives the length of each.
    pub fn begin(&mut self, n: usize, len: impl Fn(usize) -> u32) -> Result<()> {
        if n >= u32::MAX as usize {
            return Err(Error::Tokenizer(format!("{n} symbols in one text, which are too many")));
        }
        for table in [&mut self.lens, &mut self.before, &mut self.behind] {
            table.clear();
            grow(table, n, "the symbols of a text")?;
        }
        self.lens.extend((0..n).map(len));
        self.before.extend(0..n as u32);
        self.behind.extend((2..=n as u32).chain(std::iter::once(0)).take(n));
        self.heap.clear();
        // Every joining takes one out and puts in two at most.
        let most = n.saturating_mul(2);
        self.heap.try_reserve(most).map_err(|_| Error::OutOfMemory {
            what: "the merges of a text",
            bytes: most.saturating_mul(16),
        })
    }

    /// Notes that two neighbours become something, if they do: order and result.
    #[inline]
    pub fn push(&mut self, left: usize, right: usize, found: Option<(u32, u32)>) {
        if let Some((order, to)) = found {
            let len = self.lens[left] + self.lens[right];
            self.heap.push(Reverse((pair(order, left as u32), len, to)));
        }
    }

    /// The left one of the two to be joined next, and what they become.
    #[inline]
    pub fn pop(&mut self) -> Option<(usize, u32)> {
        while let Some(Reverse((order, len, to))) = self.heap.pop() {
            let left = (order & 0xffff_ffff) as usize;
            let right = self.behind[left] as usize;
            // Symbols only grow: where the length is still right, so are the symbols.
            if self.lens[left] > 0 && right > 0 && self.lens[left] + self.lens[right - 1] == len {
                return Some((left, to));
            }
        }
        None
    }

    /// Joins a symbol with the one behind it; returns its neighbours.
    #[inline]
    pub fn join(&mut self, left: usize) -> (Option<usize>, Option<usize>) {
        let right = self.behind[left] as usize - 1;
        let behind = self.behind[right] as usize;
        self.lens[left] += self.lens[right];
        self.lens[right] = 0;
        self.behind[left] = behind as u32;
        if behind > 0 {
            self.before[behind - 1] = left as u32 + 1;
        }
        ((self.before[left] as usize).checked_sub(1), behind.checked_sub(1))
    }

    /// Length of a symbol.
    #[inline]
    pub fn len_of(&self, at: usize) -> u32 {
        self.lens[at]
    }

    /// The symbols that are left, from the first.
    pub fn symbols(&self) -> impl Iterator<Item = usize> {
        let first = (!self.lens.is_empty()).then_some(0);
        std::iter::successors(first, |at| (self.behind[*at] as usize).checked_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Merging in a heap gives what looking at all pairs gives.
    #[test]
    fn long_and_short_words_merge_alike() {
        // Letters a to d, and pairs of whatever is there already.
        let mut tokens: Vec<Vec<u8>> = b"abcd".iter().map(|byte| vec![*byte]).collect();
        let mut list: Vec<[u32; 3]> = Vec::new();
        let mut state = 1u32;
        let mut below = |n: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % n as u32
        };
        while list.len() < 60 {
            let (left, right) = (below(tokens.len()), below(tokens.len()));
            let both = [&tokens[left as usize][..], &tokens[right as usize][..]].concat();
            if both.len() < 8 && !tokens.contains(&both) {
                list.push([left, right, tokens.len() as u32]);
                tokens.push(both);
            }
        }
        let pieces = Pieces::new(tokens.iter().map(Vec::as_slice)).expect("few tokens");
        let merges = Merges::new(list, &pieces).expect("valid merges");
        for n in 0..500 {
            let word: Vec<u32> = (0..n % (SMALL + 1)).map(|_| below(4)).collect();
            let (mut small, mut large) = (word.clone(), word.clone());
            if word.len() > 1 {
                let left = merges.merge_small(&mut small);
                small.truncate(left);
                let left = merges.merge_large(&mut large).expect("enough memory");
                large.truncate(left);
            }
            assert_eq!(small, large, "{word:?}");
        }
    }
}
