//! Text to tokens and back.
//!
//! | module | holds |
//! |---|---|
//! | [`char`](mod@char) | one token for each character |
//!
//! Knows nothing of models. A tokenizer travels inside the model file, as JSON.

pub mod bpe;
pub mod char;
pub mod sentencepiece;
pub mod specials;

pub use bpe::{Bpe, BpeParts, Pattern};
pub use char::CharTokenizer;
pub use sentencepiece::{
    Dialect, FirstSpace, Metaspace, PieceKind, PieceModel, SentencePiece, SentencePieceParts,
};
pub use specials::{AddedToken, Specials};

use crate::alloc::reserve;
use crate::error::{Error, Result};

/// Every kind of tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tokenizer {
    /// One token for each character.
    Char(CharTokenizer),
}

impl Tokenizer {
    /// The tokens of a text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] naming the first character that the vocabulary lacks.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Tokenizer::Char(tokenizer) => tokenizer.encode(text),
        }
    }

    /// The bytes that a token stands for, or `None` for an id outside the vocabulary. The bytes of
    /// one token need not be whole characters; those of a [`CharTokenizer`] are.
    pub fn token_bytes(&self, token: u32) -> Option<&[u8]> {
        match self {
            Tokenizer::Char(tokenizer) => tokenizer.token_bytes(token),
        }
    }

    /// The bytes of all tokens, one after the other.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for an id outside the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let lengths = tokens.iter().filter_map(|token| self.token_bytes(*token)).map(<[u8]>::len);
        reserve(&mut bytes, lengths.sum(), "text")?;
        for (index, token) in tokens.iter().enumerate() {
            let token_bytes = self.token_bytes(*token).ok_or_else(|| {
                Error::Tokenizer(format!(
                    "token {token} at index {index} is outside the vocabulary of {} tokens",
                    self.vocab_size()
                ))
            })?;
            bytes.extend_from_slice(token_bytes);
        }
        Ok(bytes)
    }

    /// Number of tokens; ids are below it.
    pub fn vocab_size(&self) -> usize {
        match self {
            Tokenizer::Char(tokenizer) => tokenizer.vocab_size(),
        }
    }

    /// The JSON that a model file holds, such as `{"type":"char","chars":"\n !$&"}`.
    pub fn to_json(&self) -> String {
        // By hand, because a JSON map would not keep the order.
        match self {
            Tokenizer::Char(tokenizer) => {
                format!(
                    r#"{{"type":"char","chars":{}}}"#,
                    serde_json::Value::from(tokenizer.chars())
                )
            }
        }
    }

    /// Reads what [`to_json`](Self::to_json) wrote, from a file that nobody vouches for. Unknown
    /// fields are ignored.
    ///
    /// # Errors
    /// [`Error::Format`] for text that is not JSON, an unknown type, or characters that are
    /// missing, none at all, or there twice.
    pub fn from_json(json: &str) -> Result<Tokenizer> {
        let refuse = |found: String, expected: &str| Error::Format {
            what: "metadata key tokenizer".to_owned(),
            found,
            expected: expected.to_owned(),
        };
        let value: serde_json::Value = serde_json::from_str(json)
            .map_err(|error| refuse(format!("no JSON: {error}"), "a JSON object"))?;
        let field = |name| value.get(name).and_then(serde_json::Value::as_str);
        match field("type") {
            Some("char") => {}
            Some(other) => {
                return Err(refuse(format!("type {}", crate::ini::shown(other)), "char"));
            }
            None => return Err(refuse("no type".to_owned(), "a JSON object with a type")),
        }
        let Some(chars) = field("chars") else {
            return Err(refuse("no chars".to_owned(), "chars, a string"));
        };
        CharTokenizer::from_chars(chars)
            .map(Tokenizer::Char)
            .map_err(|found| refuse(found, "chars, each once and at least one"))
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
            (r#"{"type":"bpe"}"#, r#"found type "bpe", expected char"#),
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
