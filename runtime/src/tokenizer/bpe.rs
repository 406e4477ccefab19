//! Byte-level BPE: any bytes are tokens, and tokens are any bytes.

use super::specials::{AddedToken, Specials};
use crate::error::{Error, Result};

/// How text is cut into words, within which pairs are merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pattern {
    /// GPT-2's: contractions, a space with the word behind it.
    #[default]
    Gpt2,
    /// Llama 3's, which cl100k has too: digits by threes, newlines with what is in front of them.
    Llama3,
    /// SmolLM's: each digit by itself, else GPT-2's.
    SmolLm,
}

/// What a [`Bpe`] is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpeParts {
    /// The bytes of each token in the order of the ids; of an added token, what it decodes to.
    /// (vocab_size)
    pub tokens: Vec<Vec<u8>>,
    /// Pairs of ids in the order in which they are merged, each into the token with the bytes of both.
    pub merges: Vec<(u32, u32)>,
    /// How text is cut into words.
    pub pattern: Pattern,
    /// Whether a word that is a token is that token, whatever the merges make of it.
    pub ignore_merges: bool,
    /// Tokens that are found in the text as a whole.
    pub added: Vec<AddedToken>,
    /// The ids that begin and end a text.
    pub specials: Specials,
}

/// A checked byte-level BPE. Cloning it shares its tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bpe {}

impl Bpe {
    /// Checks the parts and makes the tables of the search.
    ///
    /// # Errors
    /// [`Error::Format`] naming the token or merge that cannot be, or no memory.
    pub fn new(parts: BpeParts) -> Result<Bpe> {
        let _ = parts;
        Err(Error::Tokenizer(String::new()))
    }
}
