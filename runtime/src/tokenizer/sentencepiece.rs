//! SentencePiece: pieces of normalised text, chosen by likelihood or by merging.

use super::specials::{AddedToken, Specials};
use crate::error::{Error, Result};

/// What a piece stands for. The values are those of SentencePiece's file and of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PieceKind {
    /// Text.
    Normal = 1,
    /// Whatever no piece covers. There is one of it.
    Unknown = 2,
    /// A mark that stands for no text, such as the beginning.
    Control = 3,
    /// Text that is one piece wherever it is found.
    UserDefined = 4,
    /// A piece that is never used.
    Unused = 5,
    /// One byte, written `<0x0A>`.
    Byte = 6,
}

/// How pieces are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceModel {
    /// The split with the highest sum of scores.
    Unigram,
    /// Neighbours are merged, the piece with the highest score first.
    Bpe,
}

/// What a [`SentencePiece`] is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct SentencePieceParts {
    /// Text, score and kind of each piece in the order of the ids. (vocab_size)
    pub pieces: Vec<(Vec<u8>, f32, PieceKind)>,
    /// How pieces are chosen.
    pub model: PieceModel,
    /// Pairs of ids in the order in which they are merged; empty: by score. Only for
    /// [`PieceModel::Bpe`].
    pub merges: Vec<(u32, u32)>,
    /// Whether what no piece covers is spelled in bytes; all 256 must be there.
    pub byte_fallback: bool,
    /// Whether text begins with a space that is not its own.
    pub add_dummy_prefix: bool,
    /// Whether spaces at both ends, and all but one between words, are dropped.
    pub remove_extra_whitespaces: bool,
    /// Whether spaces are written as U+2581 in pieces.
    pub escape_whitespaces: bool,
    /// Whether the dummy space comes at the end.
    pub treat_whitespace_as_suffix: bool,
    /// The compiled rules of the normaliser; empty for none.
    pub charsmap: Vec<u8>,
    /// What the unknown piece decodes to.
    pub unknown_text: String,
    /// Tokens that are found in the text as a whole, before normalisation; SentencePiece itself has
    /// none.
    pub added: Vec<AddedToken>,
    /// The ids that begin and end a text.
    pub specials: Specials,
    /// Whose habits are followed where libraries differ.
    pub dialect: Dialect,
}

impl Default for SentencePieceParts {
    /// SentencePiece's own defaults, without pieces.
    fn default() -> SentencePieceParts {
        SentencePieceParts {
            pieces: Vec::new(),
            model: PieceModel::Unigram,
            merges: Vec::new(),
            byte_fallback: false,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
            treat_whitespace_as_suffix: false,
            charsmap: Vec::new(),
            unknown_text: " \u{2047} ".to_owned(),
            added: Vec::new(),
            specials: Specials::default(),
            dialect: Dialect::SentencePiece,
        }
    }
}

/// Whose habits are followed where libraries differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `sentencepiece`'s: scores are added in single precision over the whole text.
    SentencePiece,
    /// `tokenizers`': scores are added in double precision, word by word.
    Tokenizers(Metaspace),
}

/// What `tokenizers` does with spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metaspace {
    /// Whether the dummy space is left out where the text begins with a space.
    pub unless_space: bool,
    /// Whether the dummy space comes only in front of the whole text, not behind added tokens too.
    pub first_only: bool,
    /// Whether pieces are chosen for each word by itself.
    pub split: bool,
    /// Whether several spaces become one.
    pub collapse: bool,
    /// Whether white space is dropped at the beginning and at the end.
    pub strip: (bool, bool),
    /// What decoding drops of the first piece.
    pub decoder: FirstSpace,
}

/// What decoding drops at the beginning of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstSpace {
    /// Nothing.
    Keep,
    /// One space.
    One,
    /// Every space of the first piece.
    FirstPiece,
    /// Every space until something else comes.
    All,
}

/// A checked SentencePiece model. Cloning it shares its tables.
#[derive(Clone, Debug, PartialEq)]
pub struct SentencePiece {}

impl SentencePiece {
    /// Checks the parts and makes the tables of the search.
    ///
    /// # Errors
    /// [`Error::Format`] naming the piece, merge or rule that cannot be, or no memory.
    pub fn new(parts: SentencePieceParts) -> Result<SentencePiece> {
        let _ = parts;
        Err(Error::Tokenizer(String::new()))
    }
}
