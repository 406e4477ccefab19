//! Finding added tokens in a text: of those that begin first the longest, as `tokenizers` does.

use super::classes::{char_at, char_before};
use super::pieces::{Finder, Pieces, refuse};
use super::specials::AddedToken;
use crate::error::Result;

/// Longest content of an added token in bytes. Each place of a text is compared with as many.
const MOST: usize = 1 << 10;

/// A part of a text.
pub(super) enum Part<'a> {
    /// What lies between added tokens, and whether it begins the text.
    Text(&'a [u8], bool),
    Token(u32),
}

/// The added tokens of a vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Added {
    tokens: Vec<AddedToken>,
    /// Those that are looked for first, and those that are looked for between these.
    sets: [Set; 2],
}

/// Some of the tokens, to be looked for at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Set {
    /// Indices of tokens.
    which: Vec<usize>,
    finder: Finder,
}

impl Added {
    /// Checks tokens of a vocabulary of `vocab_size`.
    pub fn new(tokens: Vec<AddedToken>, vocab_size: usize) -> Result<Added> {
        for token in &tokens {
            if token.content.is_empty() || token.id as usize >= vocab_size {
                return Err(refuse(
                    "tokenizer: added token",
                    format!("{:?} with id {}", token.content, token.id),
                    &format!("a text with an id below {vocab_size}"),
                ));
            }
            if token.content.len() > MOST {
                let found = format!("{} bytes with id {}", token.content.len(), token.id);
                let expected = format!("no more than {MOST} in a text");
                return Err(refuse("tokenizer: added token", found, &expected));
            }
        }
        let set = |normalized| {
            let which = (0..tokens.len()).filter(|at| tokens[*at].normalized == normalized);
            Set::new(&tokens, which.collect())
        };
        let sets = [set(false)?, set(true)?];
        Ok(Added { tokens, sets })
    }

    pub fn tokens(&self) -> &[AddedToken] {
        &self.tokens
    }

    /// Calls `part` for each part of a text in turn; text that is empty is left out.
    /// `special`: whether special tokens are found too.
    pub fn split<'a>(
        &self,
        text: &'a [u8],
        special: bool,
        part: &mut dyn FnMut(Part<'a>) -> Result<()>,
    ) -> Result<()> {
        self.split_by(0, text, true, special, part)
    }

    fn split_by<'a>(
        &self,
        set: usize,
        text: &'a [u8],
        first: bool,
        special: bool,
        part: &mut dyn FnMut(Part<'a>) -> Result<()>,
    ) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let text_part = |text: &'a [u8], first, part: &mut dyn FnMut(Part<'a>) -> _| {
            if set + 1 < self.sets.len() {
                self.split_by(set + 1, text, first, special, part)
            } else if text.is_empty() {
                Ok(())
            } else {
                part(Part::Text(text, first))
            }
        };
        let mut done = 0;
        let mut from = 0;
        while let Some((token, at)) = self.find(&self.sets[set], text, from) {
            let mut end = at + token.content.len();
            from = end;
            if token.special && !special {
                continue;
            }
            let mut start = at;
            // No further than to where a token in front of it has taken the white space.
            while token.lstrip
                && start > done
                && let Some(c) = char_before(text, start).filter(|c| c.is_whitespace())
            {
                start -= c.len_utf8();
            }
            if token.rstrip {
                while let Some(c) = char_at(text, end).filter(|c| c.is_whitespace()) {
                    end += c.len_utf8();
                }
            }
            text_part(&text[done..start], first && done == 0, part)?;
            part(Part::Token(token.id))?;
            done = end;
            from = end;
        }
        text_part(&text[done..], first && done == 0, part)
    }

    /// The first token of a set from `from` on, and where it begins.
    fn find(&self, set: &Set, text: &[u8], from: usize) -> Option<(&AddedToken, usize)> {
        if set.which.is_empty() {
            return None;
        }
        (from..text.len()).find_map(|at| {
            let (found, _) = set.finder.longest(&text[at..])?;
            Some((self.tokens.get(*set.which.get(found as usize)?)?, at))
        })
    }
}

impl Set {
    fn new(tokens: &[AddedToken], which: Vec<usize>) -> Result<Set> {
        let contents = Pieces::new(which.iter().map(|at| tokens[*at].content.as_bytes()))?;
        let (finder, twice) = Finder::new(contents)?;
        if let Some((first, _)) = twice {
            let found = format!("{:?} twice", tokens[which[first as usize]].content);
            return Err(refuse("tokenizer: added token", found, "each text once"));
        }
        Ok(Set { which, finder })
    }
}
