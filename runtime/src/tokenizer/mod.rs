//! Text to tokens and back.
//!
//! | module | holds |
//! |---|---|
//! | [`char`](mod@char) | one token for each character |
//! | [`bpe`] | byte-level BPE: GPT-2, Llama 3, SmolLM |
//! | [`sentencepiece`] | SentencePiece, by likelihood or by merging: Llama 2, T5 |
//! | [`specials`] | first and last tokens, and tokens that are found in the text as a whole |
//! | [`decoder`] | tokens to text one by one |
//! | [`tables`] | what a model file holds of a tokenizer beside its JSON |
//! | `hf_json`, `sentencepiece_model` | readers of other libraries' files |
//! | `pattern`, `classes` | text to words, kinds of characters |
//! | `merges`, `score_merges`, `unigram`, `trie` | symbols to tokens |
//! | `normalize`, `charsmap` | text as SentencePiece's pieces have it |
//! | `added`, `pieces`, `json` | added tokens in a text, tables of strings, fields of JSON |
//!
//! Knows nothing of models. A tokenizer travels inside the model file, as JSON and tables.

mod added;
pub mod bpe;
pub mod char;
mod charsmap;
mod classes;
pub mod decoder;
mod hf_json;
mod json;
mod merges;
mod normalize;
mod pattern;
mod pieces;
mod score_merges;
pub mod sentencepiece;
mod sentencepiece_model;
pub mod specials;
pub mod tables;
mod trie;
mod unigram;

pub use bpe::{Bpe, BpeParts, Pattern};
pub use char::CharTokenizer;
pub use decoder::Decoder;
pub use sentencepiece::{
    Dialect, FirstSpace, Metaspace, PieceKind, PieceModel, SentencePiece, SentencePieceParts,
};
pub use specials::{AddedToken, Specials};
pub use tables::{Table, TableDtype};

use crate::alloc::{grow, reserve};
use crate::error::{Error, Result};
use json::Fields;
use tables::TableReader;

/// Every kind of tokenizer. Cloning one shares its tables.
#[derive(Clone, Debug, PartialEq)]
pub enum Tokenizer {
    /// One token for each character.
    Char(CharTokenizer),
    /// Pieces of normalised text.
    SentencePiece(SentencePiece),
    /// Pieces of bytes.
    Bpe(Bpe),
}

impl Tokenizer {
    /// The tokens of a text, without a first or last one. Special tokens are found in it by their
    /// text, as `tokenizers` does.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] naming the first character or byte that the vocabulary lacks; no memory.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Tokenizer::Char(tokenizer) => tokenizer.encode(text),
            Tokenizer::SentencePiece(tokenizer) => tokenizer.encode_bytes(text.as_bytes(), true),
            Tokenizer::Bpe(tokenizer) => tokenizer.encode_bytes(text.as_bytes(), true),
        }
    }

    /// The tokens of a text that nobody vouches for: what looks like a special token is text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Tokenizer::Char(tokenizer) => tokenizer.encode(text),
            Tokenizer::SentencePiece(tokenizer) => tokenizer.encode_bytes(text.as_bytes(), false),
            Tokenizer::Bpe(tokenizer) => tokenizer.encode_bytes(text.as_bytes(), false),
        }
    }

    /// The tokens of any bytes, else as [`Tokenizer::encode`]. Byte-level BPE gives them back as they
    /// are; for SentencePiece each byte that is no UTF-8 is U+FFFD, as its library has it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], and bytes that are no UTF-8 with a [`CharTokenizer`].
    pub fn encode_bytes(&self, text: &[u8]) -> Result<Vec<u32>> {
        match self {
            Tokenizer::Char(tokenizer) => match std::str::from_utf8(text) {
                Ok(text) => tokenizer.encode(text),
                Err(error) => Err(Error::Tokenizer(format!(
                    "byte {} is no UTF-8, and the model knows only characters",
                    error.valid_up_to()
                ))),
            },
            Tokenizer::SentencePiece(tokenizer) => tokenizer.encode_bytes(text, true),
            Tokenizer::Bpe(tokenizer) => tokenizer.encode_bytes(text, true),
        }
    }

    /// The tokens of a text that the model is to go on with from the beginning: as
    /// [`Tokenizer::encode`], behind the first token of all texts if the model has one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = self.encode(text)?;
        if let Some(Specials { bos: Some(bos), add_bos: true, .. }) = self.specials() {
            grow(&mut tokens, 1, "tokens")?;
            tokens.insert(0, *bos);
        }
        Ok(tokens)
    }

    /// The ids that begin and end a text; characters have none.
    pub fn specials(&self) -> Option<&Specials> {
        match self {
            Tokenizer::Char(_) => None,
            Tokenizer::SentencePiece(tokenizer) => Some(tokenizer.specials()),
            Tokenizer::Bpe(tokenizer) => Some(tokenizer.specials()),
        }
    }

    /// The same vocabulary with other ids that begin and end a text.
    ///
    /// # Errors
    /// [`Error::Format`] for an id outside the vocabulary, `add_bos` without `bos`, or characters.
    pub fn with_specials(&self, specials: Specials) -> Result<Tokenizer> {
        match self {
            Tokenizer::Char(_) if specials == Specials::default() => Ok(self.clone()),
            Tokenizer::Char(_) => Err(pieces::refuse(
                "tokenizer: bos or eos",
                "one of characters".to_owned(),
                "none, as all characters are text",
            )),
            Tokenizer::SentencePiece(tokenizer) => {
                tokenizer.with_specials(specials).map(Tokenizer::SentencePiece)
            }
            Tokenizer::Bpe(tokenizer) => tokenizer.with_specials(specials).map(Tokenizer::Bpe),
        }
    }

    /// Whether a token stands for no text, such as one that begins or ends a text.
    pub fn is_special(&self, token: u32) -> bool {
        match self {
            Tokenizer::Char(_) => false,
            Tokenizer::SentencePiece(tokenizer) => tokenizer.is_special(token),
            Tokenizer::Bpe(tokenizer) => tokenizer.is_special(token),
        }
    }

    /// The bytes that a token adds to a text that has begun, none for a special one; `None` for an id
    /// outside the vocabulary. They need not be whole characters; those of a [`CharTokenizer`] are.
    /// At the beginning of a text a [`Decoder`] knows better.
    pub fn token_bytes(&self, token: u32) -> Option<&[u8]> {
        match self {
            Tokenizer::Char(tokenizer) => tokenizer.token_bytes(token),
            Tokenizer::SentencePiece(tokenizer) => tokenizer.token_bytes(token),
            Tokenizer::Bpe(tokenizer) => tokenizer.token_bytes(token),
        }
    }

    /// How many bytes of a token are dropped at the beginning of a text, and whether the text has
    /// begun with it.
    fn first_space(&self, token: u32) -> (usize, bool) {
        match self {
            Tokenizer::Char(_) | Tokenizer::Bpe(_) => (0, true),
            Tokenizer::SentencePiece(tokenizer) => tokenizer.first_space(token),
        }
    }

    /// The text of tokens from its beginning. Special tokens add nothing to it, and a space that only
    /// encoding has put in front of it is dropped.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for an id outside the vocabulary; no memory.
    pub fn decode(&self, tokens: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let lengths = tokens.iter().filter_map(|token| self.token_bytes(*token)).map(<[u8]>::len);
        reserve(&mut bytes, lengths.sum(), "text")?;
        let mut decoder = Decoder::new();
        for (index, token) in tokens.iter().enumerate() {
            match decoder.bytes(self, *token) {
                Some(token) => bytes.extend_from_slice(token),
                None => return Err(self.outside(*token, Some(index))),
            }
        }
        Ok(bytes)
    }

    /// The error of an id outside the vocabulary, and its place among others.
    fn outside(&self, token: u32, index: Option<usize>) -> Error {
        let place = index.map_or(String::new(), |index| format!(" at index {index}"));
        Error::Tokenizer(format!(
            "token {token}{place} is outside the vocabulary of {} tokens",
            self.vocab_size()
        ))
    }

    /// Number of tokens; ids are below it.
    pub fn vocab_size(&self) -> usize {
        match self {
            Tokenizer::Char(tokenizer) => tokenizer.vocab_size(),
            Tokenizer::SentencePiece(tokenizer) => tokenizer.vocab_size(),
            Tokenizer::Bpe(tokenizer) => tokenizer.vocab_size(),
        }
    }

    /// The JSON that a model file holds, such as `{"type":"char","chars":"\n !$&"}`. What is too
    /// large for it is in [`Tokenizer::tables`].
    pub fn to_json(&self) -> String {
        match self {
            // By hand, because a JSON map would not keep the order.
            Tokenizer::Char(tokenizer) => {
                format!(
                    r#"{{"type":"char","chars":{}}}"#,
                    serde_json::Value::from(tokenizer.chars())
                )
            }
            Tokenizer::SentencePiece(tokenizer) => tokenizer.to_json().to_string(),
            Tokenizer::Bpe(tokenizer) => tokenizer.to_json().to_string(),
        }
    }

    /// The tables that a model file holds beside the JSON; characters have none.
    pub fn tables(&self) -> Vec<Table<'_>> {
        match self {
            Tokenizer::Char(_) => Vec::new(),
            Tokenizer::SentencePiece(tokenizer) => tokenizer.tables(),
            Tokenizer::Bpe(tokenizer) => tokenizer.tables(),
        }
    }

    /// As [`Tokenizer::from_json_and_tables`], for a tokenizer without tables.
    ///
    /// # Errors
    /// The same.
    pub fn from_json(json: &str) -> Result<Tokenizer> {
        Tokenizer::from_json_and_tables(json, &[])
    }

    /// Reads what [`to_json`](Self::to_json) and [`tables`](Self::tables) have given, from a file that
    /// nobody vouches for. Unknown fields are ignored, unknown tables are not.
    ///
    /// # Errors
    /// [`Error::Format`] for text that is not JSON, an unknown type, or a field or table that is
    /// missing, superfluous or contradicts another.
    pub fn from_json_and_tables(json: &str, tables: &[Table<'_>]) -> Result<Tokenizer> {
        const WHAT: &str = "metadata key tokenizer";
        let value: serde_json::Value = serde_json::from_str(json)
            .map_err(|error| pieces::refuse(WHAT, format!("no JSON: {error}"), "a JSON object"))?;
        let json = Fields::new(&value, WHAT);
        let mut tables = TableReader::new(tables);
        let text = |name| value.get(name).and_then(serde_json::Value::as_str);
        let tokenizer = match text("type") {
            Some("char") => {
                let Some(chars) = text("chars") else {
                    return Err(json.refuse("no chars".to_owned(), "chars, a string"));
                };
                CharTokenizer::from_chars(chars)
                    .map(Tokenizer::Char)
                    .map_err(|found| json.refuse(found, "chars, each once and at least one"))?
            }
            Some("sentencepiece") => {
                Tokenizer::SentencePiece(SentencePiece::read(&json, &mut tables)?)
            }
            Some("bpe") => Tokenizer::Bpe(Bpe::read(&json, &mut tables)?),
            Some(other) => {
                let found = format!("type {}", crate::ini::shown(other));
                return Err(json.refuse(found, "char, sentencepiece or bpe"));
            }
            None => {
                return Err(json.refuse("no type".to_owned(), "a JSON object with a type"));
            }
        };
        tables.end()?;
        Ok(tokenizer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(text: &str) -> Tokenizer {
        Tokenizer::Char(CharTokenizer::from_text(text))
    }

    #[test]
    fn json_round_trip_keeps_every_id() {
        let original = tokenizer("to be,\n\"or\" not \\ to be: \u{0} é 🎭 \u{7f}");
        let json = original.to_json();
        assert_eq!(Tokenizer::from_json(&json).expect("own output"), original);
        assert_eq!(tokenizer("ba\n").to_json(), r#"{"type":"char","chars":"\nab"}"#);
    }

    #[test]
    fn the_order_in_a_file_gives_the_ids() {
        let t = Tokenizer::from_json(r#"{"type":"char","chars":"ca\u00e9b"}"#).expect("valid");
        assert_eq!(t.encode("abcé").expect("all known"), [1, 3, 0, 2]);
    }

    #[test]
    fn damaged_json_is_refused() {
        for (json, message) in [
            (
                "",
                "found no JSON: EOF while parsing a value at line 1 column 0, expected a JSON object",
            ),
            ("[]", "found no type, expected a JSON object with a type"),
            (r#"{"type":7}"#, "found no type, expected a JSON object with a type"),
            (r#"{"type":"wp"}"#, r#"found type "wp", expected char, sentencepiece or bpe"#),
            (r#"{"type":"bpe"}"#, "found pattern nothing, expected pattern, a string"),
            (r#"{"type":"char"}"#, "found no chars, expected chars, a string"),
            (r#"{"type":"char","chars":["a"]}"#, "found no chars, expected chars, a string"),
            (
                r#"{"type":"char","chars":""}"#,
                "found no character, expected chars, each once and at least one",
            ),
            (
                r#"{"type":"char","chars":"abca"}"#,
                "found 'a' (U+0061) twice, expected chars, each once and at least one",
            ),
        ] {
            let error = Tokenizer::from_json(json).expect_err(json).to_string();
            assert_eq!(error, format!("model file: metadata key tokenizer: {message}"), "{json}");
        }
        // Deep nesting must not exhaust the stack.
        assert!(Tokenizer::from_json(&"[".repeat(1_000_000)).is_err());
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_an_error() {
        let t = tokenizer("ab");
        assert_eq!(t.decode(&[1, 0, 1]).expect("in range"), b"bab");
        assert_eq!(t.token_bytes(2), None);
        let error = t.decode(&[0, u32::MAX]).expect_err("out of range").to_string();
        let expected =
            "tokenizer: token 4294967295 at index 1 is outside the vocabulary of 2 tokens";
        assert_eq!(error, expected);
    }
}
