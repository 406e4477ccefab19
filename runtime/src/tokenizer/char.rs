//! One token for each character of the training text.

use crate::alloc::reserve;
use crate::error::{Error, Result};

/// A vocabulary of characters. The id of a character is its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CharTokenizer {
    /// All characters in the order of their ids.
    chars: String,
    /// Where each character begins in `chars`, and its end: (vocab_size + 1)
    offsets: Vec<u32>,
    /// Characters with their ids, by character: (vocab_size)
    ids: Vec<(char, u32)>,
}

impl CharTokenizer {
    /// The distinct characters of a text, in the order of their code points.
    pub fn from_text(text: &str) -> CharTokenizer {
        let mut seen = vec![false; char::MAX as usize + 1];
        for c in text.chars() {
            seen[c as usize] = true;
        }
        let chars = seen.iter().zip(0u32..).filter(|(seen, _)| **seen);
        CharTokenizer::build(chars.filter_map(|(_, code)| char::from_u32(code)).collect())
    }

    /// The characters of a string in the string's order; the error says what is wrong with them.
    pub(super) fn from_chars(chars: &str) -> std::result::Result<CharTokenizer, String> {
        if chars.is_empty() {
            return Err("no character".to_owned());
        }
        let tokenizer = CharTokenizer::build(chars.to_owned());
        match tokenizer.ids.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(format!("{} twice", describe(pair[0].0))),
            None => Ok(tokenizer),
        }
    }

    fn build(chars: String) -> CharTokenizer {
        let mut offsets: Vec<u32> = chars.char_indices().map(|(at, _)| at as u32).collect();
        offsets.push(chars.len() as u32);
        let mut ids: Vec<(char, u32)> = chars.chars().zip(0..).collect();
        ids.sort_unstable();
        CharTokenizer { chars, offsets, ids }
    }

    /// All characters in the order of their ids.
    pub fn chars(&self) -> &str {
        &self.chars
    }

    /// Number of characters.
    pub fn vocab_size(&self) -> usize {
        self.ids.len()
    }

    /// UTF-8 of a character, or `None` for an id outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> Option<&[u8]> {
        let token = token as usize;
        let (start, end) = (self.offsets.get(token)?, self.offsets.get(token + 1)?);
        self.chars.as_bytes().get(*start as usize..*end as usize)
    }

    /// The ids of a text's characters.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] naming the first character that the vocabulary lacks, where it stands
    /// and what stands around it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        reserve(&mut tokens, text.len(), "tokens")?;
        for (at, c) in text.char_indices() {
            match self.ids.binary_search_by_key(&c, |(known, _)| *known) {
                Ok(index) => tokens.push(self.ids[index].1),
                Err(_) => return Err(self.unknown(text, at, c)),
            }
        }
        Ok(tokens)
    }

    fn unknown(&self, text: &str, at: usize, c: char) -> Error {
        let before: Vec<char> = text[..at].chars().rev().take(12).collect();
        let around: String = before.into_iter().rev().chain(text[at..].chars().take(13)).collect();
        Error::Tokenizer(format!(
            "{} at byte {at}, in {around:?}, is not one of the {} characters that the model knows",
            describe(c),
            self.vocab_size()
        ))
    }
}

/// A character as a message names it: itself and its code point.
fn describe(c: char) -> String {
    format!("{c:?} (U+{:04X})", c as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_code_points() {
        let t = CharTokenizer::from_text("hello world\n\u{10ffff}é");
        assert_eq!(t.chars(), "\n dehlorwé\u{10ffff}");
        assert_eq!(t.vocab_size(), 11);
        assert_eq!(t.encode("hé\n\u{10ffff}").expect("all known"), [4, 9, 0, 10]);
        assert_eq!(t.token_bytes(9), Some("é".as_bytes()));
        assert_eq!(t.token_bytes(10), Some("\u{10ffff}".as_bytes()));
        assert_eq!(t.token_bytes(11), None);
        assert_eq!(t.token_bytes(u32::MAX), None);
    }

    #[test]
    fn nothing_has_no_tokens() {
        let t = CharTokenizer::from_text("");
        assert_eq!(t.vocab_size(), 0);
        assert_eq!(t.token_bytes(0), None);
        assert_eq!(t.encode("").expect("nothing to encode"), [0u32; 0]);
    }

    #[test]
    fn an_unknown_character_is_named_with_its_place() {
        let t = CharTokenizer::from_text("abcdefghijklmnopqrstuvwxyz ");
        let error = |text| t.encode(text).expect_err("unknown").to_string();
        assert_eq!(
            error("the play is set in verona, where"),
            "tokenizer: ',' (U+002C) at byte 25, in \"et in verona, where\", is not one of the 27 \
             characters that the model knows"
        );
        assert_eq!(
            error("é"),
            "tokenizer: 'é' (U+00E9) at byte 0, in \"é\", is not one of the 27 characters that the \
             model knows"
        );
        assert_eq!(
            error("a\r\nb"),
            "tokenizer: '\\r' (U+000D) at byte 1, in \"a\\r\\nb\", is not one of the 27 characters \
             that the model knows"
        );
    }
}
