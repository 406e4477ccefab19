//! The split of a text into pieces with the highest sum of scores.

use super::pieces::{Hash, PieceIndex, Pieces};
use super::sentencepiece::PieceKind;
use crate::alloc::{grow, reserve};
use crate::error::{Error, Result};

/// What a character that no piece covers costs beyond the worst piece.
const UNKNOWN_PENALTY: f32 = 10.0;
/// Sums of single precision are made small again beyond this, as `sentencepiece` 0.2.3 does.
const MOST_SCORE: f64 = 100_000.0;
/// Numbers of bytes whose hash says how long the pieces are that begin with them.
const HEADS: [usize; 2] = [4, 8];
/// Slots for each of these.
const HEAD_SLOTS: usize = 1 << 14;

/// The search for the best split.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unigram {
    index: PieceIndex,
    /// Of each piece, with that of user-defined ones made so that they win: (vocab_size)
    scores: Vec<f64>,
    unknown_score: f64,
    unknown: u32,
    /// Longest piece with a head of this hash, for each kind of head: (2 * HEAD_SLOTS)
    longest: Vec<u16>,
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
        let ids = 0..pieces.len() as u32;
        let (index, _) = PieceIndex::new(pieces, ids.clone().filter(used))?;
        let normal = scores.iter().zip(kinds);
        let normal =
            normal.filter(|(_, kind)| **kind == PieceKind::Normal).map(|(score, _)| *score);
        let lowest = normal.fold(f32::MAX, f32::min);
        let mut all = Vec::new();
        reserve(&mut all, scores.len(), "scores of pieces")?;
        let mut longest = Vec::new();
        reserve(&mut longest, HEADS.len() * HEAD_SLOTS, "lengths of pieces")?;
        longest.resize(HEADS.len() * HEAD_SLOTS, 0);
        for (id, piece) in pieces.iter() {
            let score = scores.get(id as usize).copied().unwrap_or(0.0);
            all.push(if is(&id, PieceKind::UserDefined) {
                f64::from((0.1 * (piece.len() as f64 - 1.0)) as f32)
            } else {
                f64::from(score)
            });
            if !used(&id) {
                continue;
            }
            for (kind, len) in HEADS.iter().enumerate() {
                if let Some(head) = piece.get(..*len) {
                    let longest = &mut longest[head_slot(kind, Hash::of(head))];
                    *longest = (piece.len() as u16).max(*longest);
                }
            }
        }
        Ok(Unigram {
            index,
            scores: all,
            unknown_score: f64::from(lowest - UNKNOWN_PENALTY),
            unknown,
            longest,
            is_single,
        })
    }

    /// Calls `piece` for each piece of the best split in turn, with its text; `text` is not longer than
    /// 2^32 - 2 bytes.
    pub fn split(
        &self,
        pieces: &Pieces,
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
            let mut most = HEADS[0] - 1;
            let mut hash = Hash::START;
            let rest = &text[start..];
            for (at, byte) in rest.iter().enumerate() {
                hash = hash.add(*byte);
                let len = at + 1;
                if let Some(kind) = HEADS.iter().position(|head| *head == len) {
                    most = usize::from(self.longest[head_slot(kind, hash)]);
                }
                if len > most {
                    break;
                }
                // Pieces are whole characters.
                if rest.get(len).is_some_and(|next| next & 0xc0 == 0x80) {
                    continue;
                }
                if let Some(id) = self.index.get(pieces, hash, &rest[..len]) {
                    let score = self.sum(score, self.scores[id as usize]);
                    last = last.max(start + len);
                    offer(&mut nodes[start + len], score, id, start);
                    is_covered |= len == char_len;
                }
            }
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

fn head_slot(kind: usize, hash: Hash) -> usize {
    kind * HEAD_SLOTS + hash.low_bits() as usize % HEAD_SLOTS
}
