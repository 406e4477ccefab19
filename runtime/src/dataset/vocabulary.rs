//! The vocabulary that a configuration asks for.

use std::path::{Path, PathBuf};

use super::{DatasetConfig, quoted};
use crate::error::Result;
use crate::ini::{Section, shown};
use crate::tokenizer::{SentencePiece, Tokenizer};

/// A kind of vocabulary whose tokens are parts of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subwords {
    /// SentencePiece's unigram pieces.
    SentencePiece,
    /// Byte-level BPE.
    Bpe,
}

impl Subwords {
    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Subwords::SentencePiece => "sentencepiece",
            Subwords::Bpe => "bpe",
        }
    }
}

/// Where the tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// The characters of the text.
    Char,
    /// An existing SentencePiece model, `tokenizer.model`.
    SentencePieceFile(PathBuf),
    /// Learned from the training split.
    Learned {
        /// What kind.
        kind: Subwords,
        /// How many tokens.
        vocab_size: usize,
    },
}

impl Vocabulary {
    /// The smallest vocabulary that can be learned: every byte, and something to learn.
    const SMALLEST: usize = 258;

    pub(super) fn read(s: &Section) -> Result<Vocabulary> {
        let file = s.optional("sentencepiece_model_file");
        let spellings = [
            ("char", None),
            (Subwords::SentencePiece.name(), Some(Subwords::SentencePiece)),
            (Subwords::Bpe.name(), Some(Subwords::Bpe)),
        ];
        // teenyGPT knows the file alone.
        let default = file.as_ref().map(|_| Subwords::SentencePiece);
        let kind = s.one_of("tokenizer", &spellings, default)?;
        let size = s.optional("vocab_size");
        let refuse = |key, found: &str, expected: &str| Err(s.error(key, shown(found), expected));
        match (kind, file, size) {
            (None, None, None) => Ok(Vocabulary::Char),
            (Some(Subwords::SentencePiece), Some(file), None) => {
                Ok(Vocabulary::SentencePieceFile(PathBuf::from(file)))
            }
            (Some(kind), None, Some(_)) => {
                let most = *crate::config::limits::VOCAB_SIZE.end();
                let vocab_size = s.usize("vocab_size", 0, Self::SMALLEST..=most)?;
                Ok(Vocabulary::Learned { kind, vocab_size })
            }
            (Some(Subwords::SentencePiece), Some(_), Some(size)) => refuse(
                "vocab_size",
                &size,
                "no such key beside sentencepiece_model_file, which has a size",
            ),
            (None | Some(Subwords::Bpe), Some(file), _) => refuse(
                "sentencepiece_model_file",
                &file,
                "no such key, or tokenizer = sentencepiece",
            ),
            (None, None, Some(size)) => refuse(
                "vocab_size",
                &size,
                "no such key: with tokenizer = char, the characters of the text are the vocabulary",
            ),
            (Some(kind), None, None) => {
                let expected = match kind {
                    Subwords::SentencePiece => {
                        "a vocab_size to learn, or a sentencepiece_model_file"
                    }
                    Subwords::Bpe => "a vocab_size to learn",
                };
                refuse("tokenizer", kind.name(), expected)
            }
        }
    }

    /// Keys and values as in a configuration; none for characters, so that a run of these is what it
    /// always was.
    pub(super) fn to_metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Vocabulary::Char => Vec::new(),
            Vocabulary::SentencePieceFile(file) => vec![
                ("tokenizer", Subwords::SentencePiece.name().to_owned()),
                ("sentencepiece_model_file", file.display().to_string()),
            ],
            Vocabulary::Learned { kind, vocab_size } => {
                vec![("tokenizer", kind.name().to_owned()), ("vocab_size", vocab_size.to_string())]
            }
        }
    }
}

/// Makes a vocabulary: its kind, the number of its tokens, and the text to learn it from.
pub type Learn<'a> = &'a dyn Fn(Subwords, usize, &str) -> Result<Tokenizer>;

/// The vocabulary in a file.
pub(super) fn sentencepiece_file(config: &DatasetConfig, file: &Path) -> Result<Tokenizer> {
    const KEY: &str = "sentencepiece_model_file";
    let bytes = std::fs::read(file).map_err(|source| {
        let found = format!("{}, which cannot be read ({source})", quoted(file));
        config.section.error(KEY, found, "a SentencePiece model")
    })?;
    SentencePiece::from_model(&bytes).map(Tokenizer::SentencePiece).map_err(|error| {
        config.section.error(KEY, quoted(file), format!("a SentencePiece model: {error}"))
    })
}
