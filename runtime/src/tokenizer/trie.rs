//! Which pieces a text begins with, byte by byte: a double-array trie, in which every step is one look at
//! a table.

use super::pieces::{Pieces, refuse};
use crate::alloc::{grow, reserve};
use crate::error::Result;

/// Places for children are looked for in blocks of as many as there are bytes.
const BLOCK: usize = 256;
/// The parent of a unit that is not in use, and that of the root.
const FREE: u32 = u32::MAX;
const NO_PARENT: u32 = u32::MAX - 1;
/// Of `Unit::base`: a piece ends here.
const ENDS: u32 = 1 << 31;

/// Pieces by their bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Trie {
    units: Vec<Unit>,
    /// The piece that ends at each unit, if one does: (units)
    leaves: Vec<Leaf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unit {
    parent: u32,
    /// A child is at this, without [`ENDS`], xor its byte.
    base: u32,
}

/// A piece and its score.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Leaf {
    pub id: u32,
    pub score: f32,
}

impl Trie {
    /// Of pieces that are the same, the one with the lowest id is found.
    pub fn new(pieces: &Pieces, leaves: impl Iterator<Item = Leaf>) -> Result<Trie> {
        let mut sorted = Vec::new();
        reserve(&mut sorted, pieces.len(), "the index of a vocabulary")?;
        sorted.extend(leaves.take(pieces.len()).map(|leaf| (head(bytes(pieces, &leaf)), leaf)));
        sorted.sort_unstable_by(|(a_head, a), (b_head, b)| {
            let rest = || bytes(pieces, a).cmp(bytes(pieces, b)).then(a.id.cmp(&b.id));
            a_head.cmp(b_head).then_with(rest)
        });
        sorted.dedup_by(|(_, b), (_, a)| bytes(pieces, a) == bytes(pieces, b));
        let mut trie = Trie::default();
        trie.open()?;
        trie.units[0].parent = NO_PARENT;
        let mut first_free = 1;
        // Nodes whose children have no place yet: unit, pieces below it, and bytes on the way.
        let mut nodes = vec![(0, 0..sorted.len(), 0)];
        // Bytes of the children of a node, and where the pieces below each begin.
        let (mut labels, mut starts) = (Vec::new(), Vec::new());
        while let Some((unit, mut range, depth)) = nodes.pop() {
            if let Some((_, leaf)) = sorted.get(range.start)
                && bytes(pieces, leaf).len() == depth
            {
                trie.units[unit].base |= ENDS;
                trie.leaves[unit] = *leaf;
                range.start += 1;
            }
            labels.clear();
            starts.clear();
            for at in range.clone() {
                let Some((head, leaf)) = sorted.get(at) else { continue };
                // All that are left in the range are longer.
                let byte = match head.to_be_bytes().get(depth) {
                    Some(byte) => *byte,
                    None => bytes(pieces, leaf).get(depth).copied().unwrap_or(0),
                };
                if labels.last() != Some(&byte) {
                    labels.push(byte);
                    starts.push(at);
                }
            }
            if labels.is_empty() {
                continue;
            }
            let base = trie.place(&labels, &mut first_free)?;
            trie.units[unit].base |= base as u32;
            starts.push(range.end);
            grow(&mut nodes, labels.len(), "the index of a vocabulary")?;
            for (label, ends) in labels.iter().zip(starts.windows(2)) {
                let child = base ^ usize::from(*label);
                trie.units[child].parent = unit as u32;
                nodes.push((child, ends[0]..ends[1], depth + 1));
            }
        }
        Ok(trie)
    }

    /// A base for children with these bytes, one at least. No unit below `first_free` is free.
    fn place(&mut self, labels: &[u8], first_free: &mut usize) -> Result<usize> {
        let first = usize::from(labels[0]);
        if labels.len() == 1 {
            while self.units.get(*first_free).is_some_and(|unit| unit.parent != FREE) {
                *first_free += 1;
            }
            if *first_free >= self.units.len() {
                self.open()?;
            }
            return Ok(*first_free ^ first);
        }
        // Few children fit in the last block unless much of it is in use.
        let last = self.units.len() - BLOCK;
        let bases = (last..last + BLOCK).map(|place| place ^ first);
        let is_free = |at: usize| self.units[at].parent == FREE;
        let mut bases =
            bases.filter(|base| labels.iter().all(|label| is_free(base ^ usize::from(*label))));
        match bases.next() {
            Some(base) => Ok(base),
            None => self.open(),
        }
    }

    /// A block more; returns where it begins.
    fn open(&mut self) -> Result<usize> {
        let start = self.units.len();
        if start + BLOCK > ENDS as usize {
            let found = format!("more than {start} beginnings of pieces");
            return Err(refuse("tokenizer.pieces", found, "fewer than 2^31"));
        }
        grow(&mut self.units, BLOCK, "the index of a vocabulary")?;
        grow(&mut self.leaves, BLOCK, "the index of a vocabulary")?;
        self.units.resize(start + BLOCK, Unit { parent: FREE, base: 0 });
        self.leaves.resize(start + BLOCK, Leaf::default());
        Ok(start)
    }

    /// Calls `found` for each piece that a text begins with, the shortest first, with its length.
    #[inline]
    pub fn beginnings(&self, text: &[u8], mut found: impl FnMut(usize, Leaf)) {
        let (mut at, mut base) = (0, self.units.first().map_or(0, |root| root.base));
        for (index, byte) in text.iter().enumerate() {
            let next = (base & !ENDS) ^ u32::from(*byte);
            let unit = self.units.get(next as usize).filter(|unit| unit.parent == at);
            let Some(unit) = unit else { return };
            (at, base) = (next, unit.base);
            if base & ENDS != 0
                && let Some(leaf) = self.leaves.get(next as usize)
            {
                found(index + 1, *leaf);
            }
        }
    }
}

fn bytes<'a>(pieces: &'a Pieces, leaf: &Leaf) -> &'a [u8] {
    pieces.get(leaf.id).unwrap_or_default()
}

/// The first bytes of a piece as a number that is in order as they are, for quick comparisons.
fn head(piece: &[u8]) -> u128 {
    let mut head = [0; 16];
    let len = piece.len().min(head.len());
    head[..len].copy_from_slice(&piece[..len]);
    u128::from_be_bytes(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of all shapes are found where and only where a text begins with them.
    #[test]
    fn the_pieces_that_a_text_begins_with_are_found() {
        let mut state = 1u32;
        let mut below = |n: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % n
        };
        // Few letters make deep nodes, many make wide ones.
        for (letters, most, n) in
            [(2, 12, 500), (5, 6, 3000), (256, 3, 5000), (17, 3, 3000), (1, 99, 60)]
        {
            let mut text = |most: u32| -> Vec<u8> {
                (0..=below(most)).map(|_| (below(letters) * (256 / letters)) as u8).collect()
            };
            let list: Vec<Vec<u8>> = (0..n).map(|_| text(most)).collect();
            let pieces = Pieces::new(list.iter().map(Vec::as_slice)).expect("few pieces");
            let leaves = (0..n).map(|id| Leaf { id, score: id as f32 });
            let trie = Trie::new(&pieces, leaves).expect("enough memory");
            assert!(
                trie.units.len() < 16 * pieces.bytes().len() + 2 * BLOCK,
                "{}",
                trie.units.len()
            );
            let mut first = std::collections::HashMap::new();
            for (piece, id) in list.iter().zip(0..) {
                first.entry(piece.as_slice()).or_insert(id);
            }
            let texts: Vec<Vec<u8>> = (0..2000).map(|_| text(2 * most)).collect();
            for text in texts.iter().chain(&list) {
                let mut found = Vec::new();
                trie.beginnings(text, |len, leaf| {
                    assert_eq!(leaf.score, leaf.id as f32);
                    found.push((len, leaf.id));
                });
                let expected =
                    (1..=text.len()).filter_map(|len| Some((len, *first.get(&text[..len])?)));
                assert_eq!(found, expected.collect::<Vec<(usize, u32)>>(), "{text:?}");
            }
        }
    }

    #[test]
    fn no_pieces_are_not_found() {
        let trie = Trie::new(&Pieces::default(), std::iter::empty()).expect("enough memory");
        for trie in [trie, Trie::default()] {
            trie.beginnings(b"\0a", |_, _| panic!("there is nothing"));
        }
    }
}
