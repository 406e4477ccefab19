//! What a model is made of.

use serde_json::{Value, json};

use crate::error::Result;
use crate::tokenizer::json::Fields;
use crate::tokenizer::specials::{AddedToken, Specials};

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

impl PieceKind {
    /// By its number in a file.
    pub fn from_number(number: u64) -> Option<PieceKind> {
        Some(match number {
            1 => PieceKind::Normal,
            2 => PieceKind::Unknown,
            3 => PieceKind::Control,
            4 => PieceKind::UserDefined,
            5 => PieceKind::Unused,
            6 => PieceKind::Byte,
            _ => return None,
        })
    }

    /// Whether it is found in text.
    pub(in crate::tokenizer) fn is_text(self) -> bool {
        match self {
            PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused => true,
            PieceKind::Unknown | PieceKind::Control | PieceKind::Byte => false,
        }
    }
}

/// How pieces are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceModel {
    /// The split with the highest sum of scores.
    Unigram,
    /// Neighbours are merged, the piece with the highest score first.
    Bpe,
}

impl PieceModel {
    /// Both.
    pub const ALL: &[PieceModel] = &[PieceModel::Unigram, PieceModel::Bpe];

    /// As model files have it.
    pub fn name(self) -> &'static str {
        match self {
            PieceModel::Unigram => "unigram",
            PieceModel::Bpe => "bpe",
        }
    }
}

/// What a [`SentencePiece`](super::SentencePiece) is made of.
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
    /// `sentencepiece`'s.
    SentencePiece,
    /// `tokenizers`', which treats spaces in its own ways and finds what spells a byte in the text.
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

impl FirstSpace {
    const NAMES: [(&str, FirstSpace); 4] = [
        ("keep", FirstSpace::Keep),
        ("one", FirstSpace::One),
        ("first_piece", FirstSpace::FirstPiece),
        ("all", FirstSpace::All),
    ];
}

impl Metaspace {
    pub(super) fn to_json(self) -> Value {
        let decoder = FirstSpace::NAMES.iter().find(|(_, decoder)| *decoder == self.decoder);
        json!({
            "unless_space": self.unless_space,
            "first_only": self.first_only,
            "split": self.split,
            "collapse": self.collapse,
            "strip_left": self.strip.0,
            "strip_right": self.strip.1,
            "decoder": decoder.map_or("", |(name, _)| name),
        })
    }

    pub(super) fn from_json(json: &Value) -> Result<Metaspace> {
        let json = Fields::new(json, "metadata key tokenizer: metaspace");
        let name = json.text("decoder")?;
        let Some((_, decoder)) = FirstSpace::NAMES.iter().find(|(known, _)| *known == name) else {
            let found = format!("decoder {}", crate::ini::shown(name));
            return Err(json.refuse(found, "keep, one, first_piece or all"));
        };
        Ok(Metaspace {
            unless_space: json.flag("unless_space")?,
            first_only: json.flag("first_only")?,
            split: json.flag("split")?,
            collapse: json.flag("collapse")?,
            strip: (json.flag("strip_left")?, json.flag("strip_right")?),
            decoder: *decoder,
        })
    }
}
