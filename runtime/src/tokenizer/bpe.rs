//! Byte-level BPE: any bytes are tokens, and tokens are any bytes.

use std::sync::Arc;

use serde_json::{Value, json};

use super::added::{Added, Part};
use super::json::Fields;
use super::merges::{Merges, with_results};
pub use super::pattern::Pattern;
use super::pieces::{Hash, PieceIndex, Pieces};
use super::specials::{AddedToken, Specials};
use super::tables::{Table, TableReader};
use crate::alloc::{grow, reserve};
use crate::error::{Error, Result};

/// [`Pattern::Llama3`] as the regular expression that a `tokenizer.json` has for it.
pub(crate) const LLAMA3_REGEX: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

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
pub struct Bpe {
    contents: Arc<Contents>,
    specials: Specials,
}

#[derive(Debug, PartialEq, Eq)]
struct Contents {
    tokens: Pieces,
    merges: Merges,
    pattern: Pattern,
    /// Tokens that are words, with `ignore_merges`.
    words: Option<PieceIndex>,
    added: Added,
    /// The token of each byte, or [`NO_TOKEN`].
    bytes: [u32; 256],
    /// Whether each token is special: (vocab_size)
    is_special: Vec<bool>,
}

const NO_TOKEN: u32 = u32::MAX;

/// The character that stands for each byte in other libraries' files: printable ones for themselves,
/// the others for those from U+0100 on in turn. It is `bytes_to_unicode` of GPT-2
/// (<https://github.com/openai/gpt-2/blob/master/src/encoder.py>).
pub fn byte_characters() -> [char; 256] {
    // 68 bytes are not printable, so this stays far below the surrogates.
    let mut next = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
        _ => next.next().unwrap_or(char::REPLACEMENT_CHARACTER),
    })
}

impl Bpe {
    /// Checks the parts and makes the tables of the search.
    ///
    /// # Errors
    /// [`Error::Format`] naming the token or merge that cannot be, or no memory.
    pub fn new(parts: BpeParts) -> Result<Bpe> {
        let BpeParts { tokens, merges, pattern, ignore_merges, added, specials } = parts;
        let tokens = Pieces::new(tokens.iter().map(Vec::as_slice))?;
        let is_added = flags(tokens.len(), added.iter())?;
        let ids = 0..tokens.len() as u32;
        let (plain, marks): (Vec<u32>, Vec<u32>) = ids.partition(|id| !is_added[*id as usize]);
        let (index, _) = PieceIndex::new(&tokens, plain.into_iter().chain(marks))?;
        let merges = with_results(&merges, &tokens, &index)?;
        Bpe::build(tokens, merges, pattern, ignore_merges, added, specials)
    }

    fn build(
        tokens: Pieces,
        merges: Vec<[u32; 3]>,
        pattern: Pattern,
        ignore_merges: bool,
        added: Vec<AddedToken>,
        specials: Specials,
    ) -> Result<Bpe> {
        let vocab_size = tokens.len();
        specials.check(vocab_size)?;
        let added = Added::new(added, vocab_size)?;
        let is_special = flags(vocab_size, added.tokens().iter().filter(|token| token.special))?;
        let is_added = flags(vocab_size, added.tokens().iter())?;
        let mut bytes = [NO_TOKEN; 256];
        for (id, token) in tokens.iter() {
            if let [byte] = token
                && !is_added[id as usize]
                && bytes[usize::from(*byte)] == NO_TOKEN
            {
                bytes[usize::from(*byte)] = id;
            }
        }
        let words = if ignore_merges {
            let ids = (0..vocab_size as u32).filter(|id| !is_added[*id as usize]);
            Some(PieceIndex::new(&tokens, ids)?.0)
        } else {
            None
        };
        let merges = Merges::new(merges, &tokens)?;
        let contents = Contents { tokens, merges, pattern, words, added, bytes, is_special };
        Ok(Bpe { contents: Arc::new(contents), specials })
    }

    /// The same tokens with other ids that begin and end a text.
    ///
    /// # Errors
    /// [`Error::Format`] for an id outside the vocabulary, or `add_bos` without `bos`.
    pub fn with_specials(&self, specials: Specials) -> Result<Bpe> {
        specials.check(self.vocab_size())?;
        Ok(Bpe { contents: Arc::clone(&self.contents), specials })
    }

    /// How text is cut into words.
    pub fn pattern(&self) -> Pattern {
        self.contents.pattern
    }

    /// The ids that begin and end a text.
    pub fn specials(&self) -> &Specials {
        &self.specials
    }

    /// Tokens that are found in the text as a whole.
    pub fn added(&self) -> &[AddedToken] {
        self.contents.added.tokens()
    }

    /// Whether a token is no part of decoded text.
    pub fn is_special(&self, token: u32) -> bool {
        self.contents.is_special.get(token as usize).copied().unwrap_or(false)
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.contents.tokens.len()
    }

    /// The bytes that a token adds to a text, none for a special one; `None` outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> Option<&[u8]> {
        let bytes = self.contents.tokens.get(token)?;
        Some(if self.is_special(token) { &[] } else { bytes })
    }

    /// The tokens of any bytes; `special`: whether special tokens are found in them.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] naming a byte that the vocabulary lacks; no memory.
    pub fn encode_bytes(&self, text: &[u8], special: bool) -> Result<Vec<u32>> {
        let this = &*self.contents;
        let mut tokens = Vec::new();
        // Mostly enough for a language that the vocabulary was made for.
        reserve(&mut tokens, text.len() / 3, "tokens")?;
        this.added.split(text, special, &mut |part| match part {
            Part::Text(text, _) => {
                this.pattern.words(text, &mut |word| this.encode_word(word, &mut tokens))
            }
            Part::Token(token) => {
                grow(&mut tokens, 1, "tokens")?;
                tokens.push(token);
                Ok(())
            }
        })?;
        Ok(tokens)
    }

    /// The JSON that a model file holds beside [`Bpe::tables`].
    pub(super) fn to_json(&self) -> Value {
        let mut json = json!({
            "type": "bpe",
            "pattern": self.contents.pattern.name(),
            "ignore_merges": self.contents.words.is_some(),
        });
        self.specials.to_json(&mut json);
        json["added"] = self.contents.added.tokens().iter().map(AddedToken::to_json).collect();
        json
    }

    /// What [`Bpe::to_json`] and [`Bpe::tables`] have written.
    pub(super) fn read(json: &Fields<'_>, tables: &mut TableReader<'_>) -> Result<Bpe> {
        let name = json.text("pattern")?;
        let Some(pattern) = Pattern::ALL.iter().find(|pattern| pattern.name() == name) else {
            let names: Vec<_> = Pattern::ALL.iter().map(|pattern| pattern.name()).collect();
            return Err(json.refuse(
                format!("pattern {}", crate::ini::shown(name)),
                &crate::ini::alternatives(&names),
            ));
        };
        Bpe::build(
            tables.pieces()?,
            tables.merges()?,
            *pattern,
            json.flag("ignore_merges")?,
            AddedToken::list_from_json(json)?,
            Specials::from_json(json)?,
        )
    }

    /// The tables that a model file holds.
    pub(super) fn tables(&self) -> Vec<Table<'_>> {
        let mut tables = Table::pieces(&self.contents.tokens);
        tables.extend(Table::merges(self.contents.merges.list()));
        tables
    }
}

impl Contents {
    #[inline]
    fn encode_word(&self, word: &[u8], tokens: &mut Vec<u32>) -> Result<()> {
        grow(tokens, word.len(), "tokens")?;
        if let Some(words) = &self.words
            && let Some(token) = words.get(&self.tokens, Hash::of(word), word)
        {
            tokens.push(token);
            return Ok(());
        }
        let start = tokens.len();
        for byte in word {
            let token = self.bytes[usize::from(*byte)];
            if token == NO_TOKEN {
                return Err(Error::Tokenizer(format!(
                    "byte {byte:#04x}, in {}, has no token",
                    super::pieces::shown(word)
                )));
            }
            tokens.push(token);
        }
        self.merges.merge(tokens, start)
    }
}

/// True for the ids of the tokens; (vocab_size)
fn flags<'a>(vocab_size: usize, tokens: impl Iterator<Item = &'a AddedToken>) -> Result<Vec<bool>> {
    let mut flags = Vec::new();
    reserve(&mut flags, vocab_size, "the kinds of tokens")?;
    flags.resize(vocab_size, false);
    for token in tokens {
        if let Some(flag) = flags.get_mut(token.id as usize) {
            *flag = true;
        }
    }
    Ok(flags)
}
