//! Tokens to text one by one.

use super::Tokenizer;
use crate::error::Result;

/// What has to be known of the tokens before the next: whether the text has begun, whose first space
/// may not be its own, and the beginning of a character that is not complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoder {
    has_begun: bool,
    /// Fewer bytes than a character has.
    rest: Vec<u8>,
}

impl Decoder {
    /// For a text from its beginning.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// For what goes on after other text: the space between them is kept.
    pub fn after_text() -> Decoder {
        Decoder { has_begun: true, rest: Vec::new() }
    }

    /// The bytes that a token adds to the text, which need not be whole characters; `None` for an id
    /// outside the vocabulary.
    pub fn bytes<'a>(&mut self, tokenizer: &'a Tokenizer, token: u32) -> Option<&'a [u8]> {
        let bytes = tokenizer.token_bytes(token)?;
        if self.has_begun {
            return Some(bytes);
        }
        let n;
        (n, self.has_begun) = tokenizer.first_space(token);
        bytes.get(n..)
    }

    /// Adds to `text` the characters that a token completes; bytes that no token can make whole become
    /// U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) for an id outside the vocabulary.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32, text: &mut String) -> Result<()> {
        let bytes = self.bytes(tokenizer, token).ok_or_else(|| tokenizer.outside(token, None))?;
        self.rest.extend_from_slice(bytes);
        let mut used = 0;
        for chunk in self.rest.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            let is_last = used + invalid.len() == self.rest.len();
            let is_beginning =
                std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if !(is_last && is_beginning) {
                text.push(char::REPLACEMENT_CHARACTER);
                used += invalid.len();
            }
        }
        self.rest.drain(..used);
        Ok(())
    }

    /// Nothing follows: a character that is not complete becomes U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        if !self.rest.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            self.rest.clear();
        }
    }
}
