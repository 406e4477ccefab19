//! The split of a text into pieces with the highest sum of scores.

use super::pieces::Pieces;
use super::sentencepiece::PieceKind;
use super::trie::{Leaf, Trie};
use crate::alloc::grow;
use crate::error::{Error, Result};

/// What a character that no piece covers costs beyond the worst piece.
const UNKNOWN_PENALTY: f32 = 10.0;
/// Sums of single precision are made small again beyond this, as `sentencepiece` 0.2.3 does.
const MOST_SCORE: f64 = 100_000.0;

/// The search for the best split.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unigram {
    /// Scores of user-defined pieces are made so that they win.
    trie: Trie,
    unknown_score: f64,
    unknown: u32,
    /// Whether sums are of single precision, as `sentencepiece` has them.
    is_single: bool,
}

/// The best way to an index of the text.
#[derive(Clone, Copy)]
struct Node {
    score: f64,
    piece: u32,
    /// Where the piece begins; [`NOWHERE`] where no way is known.
    start: u32,
}

const NOWHERE: u32 = u32::MAX;

/// Memory of a search, kept for the next one.
#[derive(Default)]
pub(super) struct Scratch {
    nodes: Vec<Node>,
    /// Pieces of the best way with their ends, the last one first.
    path: Vec<(u32, usize)>,
}

impl Unigram {
    /// `pieces` are no longer than 65535 bytes, there is one for what is unknown, and all scores are
    /// finite. `is_single`: whether to add as `sentencepiece` does; else as `tokenizers`, which also finds
    /// what spells a byte in the text.
    pub fn new(
        pieces: &Pieces,
        scores: &[f32],
        kinds: &[PieceKind],
        unknown: u32,
        is_single: bool,
    ) -> Result<Unigram> {
        let is = |id: &u32, kind| kinds.get(*id as usize) == Some(&kind);
        let used = |id: &u32| {
            is(id, PieceKind::Normal)
                || is(id, PieceKind::UserDefined)
                || !is_single && is(id, PieceKind::Byte)
        };
        let leaves = pieces.iter().filter(|(id, _)| used(id)).map(|(id, piece)| Leaf {
            id,
            score: if is(&id, PieceKind::UserDefined) {
                (0.1 * (piece.len() as f64 - 1.0)) as f32
            } else {
                scores.get(id as usize).copied().unwrap_or(0.0)
            },
        });
        let trie = Trie::new(pieces, leaves)?;
        let normal = scores.iter().zip(kinds);
        let normal =
            normal.filter(|(_, kind)| **kind == PieceKind::Normal).map(|(score, _)| *score);
        let lowest = normal.fold(f32::MAX, f32::min);
        Ok(Unigram { trie, unknown_score: f64::from(lowest - UNKNOWN_PENALTY), unknown, is_single })
    }

    /// Calls `piece` for each piece of the best split in turn, with its text; `text` is not longer than
    /// 2^32 - 2 bytes.
    pub fn split(
        &self,
        text: &[u8],
        scratch: &mut Scratch,
        piece: &mut dyn FnMut(u32, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let Scratch { nodes, path } = scratch;
        nodes.clear();
        if text.len() >= NOWHERE as usize {
            return Err(Error::Tokenizer(format!("{} bytes in one text", text.len())));
        }
        grow(nodes, text.len() + 1, "the ways to split a text")?;
        nodes.resize(text.len() + 1, Node { score: 0.0, piece: self.unknown, start: NOWHERE });
        let mut start = 0;
        // The last node that a way leads to.
        let mut last = 0;
        while start < text.len() {
            let char_len = char_len(text, start);
            let offset = nodes[start].score;
            if self.is_single && offset.abs() > MOST_SCORE {
                nodes[start].score = 0.0;
                let known = nodes[start + 1..=last].iter_mut().filter(|n| n.start != NOWHERE);
                known.for_each(|node| node.score = self.sum(node.score, -offset));
            }
            let score = nodes[start].score;
            let mut is_covered = false;
            let rest = &text[start..];
            self.trie.beginnings(rest, |len, leaf| {
                // Pieces are whole characters.
                if rest.get(len).is_some_and(|next| next & 0xc0 == 0x80) {
                    return;
                }
                let score = self.sum(score, f64::from(leaf.score));
                last = last.max(start + len);
                offer(&mut nodes[start + len], score, leaf.id, start);
                is_covered |= len == char_len;
            });
            if !is_covered {
                let score = self.sum(score, self.unknown_score);
                last = last.max(start + char_len);
                offer(&mut nodes[start + char_len], score, self.unknown, start);
            }
            start += char_len;
        }
        path.clear();
        let mut end = text.len();
        while end > 0 {
            let node = nodes[end];
            grow(path, 1, "the pieces of a text")?;
            path.push((node.piece, end));
            // Every node that a way leads through begins further to the front.
            end = node.start as usize;
        }
        let mut start = 0;
        for (id, end) in path.iter().rev() {
            piece(*id, &text[start..*end])?;
            start = *end;
        }
        Ok(())
    }

    #[inline]
    fn sum(&self, a: f64, b: f64) -> f64 {
        // In single precision both are such numbers.
        if self.is_single { f64::from(a as f32 + b as f32) } else { a + b }
    }
}

/// Takes a way to a node if it is better than the one that is known.
#[inline]
fn offer(node: &mut Node, score: f64, piece: u32, start: usize) {
    if node.start == NOWHERE || score > node.score {
        *node = Node { score, piece, start: start as u32 };
    }
}

/// Bytes of the character that begins at `at`, as its first byte says; no more than there are.
#[inline]
pub(super) fn char_len(text: &[u8], at: usize) -> usize {
    let len = match text[at] {
        0..0xc0 => 1,
        0xc0..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0.. => 4,
    };
    len.min(text.len() - at)
}
