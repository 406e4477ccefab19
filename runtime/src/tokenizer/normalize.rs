//! Text to what pieces are made of: rules applied, spaces dropped or written as U+2581.

use super::charsmap::Charsmap;
use super::pieces::Finder;
use super::sentencepiece::Metaspace;
use crate::alloc::grow;
use crate::error::Result;

/// How pieces write a space.
pub(super) const META: &[u8] = "\u{2581}".as_bytes();
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// The normaliser of a SentencePiece model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Normalizer {
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    pub escape_whitespaces: bool,
    pub treat_whitespace_as_suffix: bool,
    pub charsmap: Charsmap,
    /// Pieces that are left as they are.
    pub user_defined: Finder,
}

impl Normalizer {
    /// As `sentencepiece` does: adds the normal form of a text to `out`. What is no UTF-8 becomes
    /// U+FFFD, byte by byte.
    pub fn normalize(&self, mut text: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let remove = self.remove_extra_whitespaces;
        while remove && !text.is_empty() {
            match self.prefix(text) {
                (b" ", len) => text = &text[len..],
                _ => break,
            }
        }
        if text.is_empty() {
            return Ok(());
        }
        let start = out.len();
        // More with many spaces, which take three bytes.
        grow(out, text.len() + text.len() / 4 + META.len(), "a text in its normal form")?;
        if self.add_dummy_prefix && !self.treat_whitespace_as_suffix {
            self.push(b" ", out)?;
        }
        let mut after_space = remove;
        while !text.is_empty() {
            let plain = self.plain_len(text);
            if plain > 0 {
                grow(out, plain, "a text in its normal form")?;
                out.extend_from_slice(&text[..plain]);
                text = &text[plain..];
                after_space = false;
                continue;
            }
            let (mut form, len) = self.prefix(text);
            text = &text[len..];
            while after_space && form.first() == Some(&b' ') {
                form = &form[1..];
            }
            if !form.is_empty() {
                self.push(form, out)?;
                after_space = remove && form.ends_with(b" ");
            }
        }
        let space = if self.escape_whitespaces { META } else { b" " };
        while remove && out[start..].ends_with(space) {
            out.truncate(out.len() - space.len());
        }
        if self.add_dummy_prefix && self.treat_whitespace_as_suffix {
            self.push(b" ", out)?;
        }
        Ok(())
    }

    /// How much of the beginning of a text is surely its own form: printable ASCII where no rules are.
    #[inline]
    fn plain_len(&self, text: &[u8]) -> usize {
        if !self.charsmap.is_empty() {
            return 0;
        }
        let is_plain = |byte: &u8| byte.is_ascii_graphic() && !self.user_defined.may_begin(*byte);
        text.iter().take_while(|byte| is_plain(byte)).count()
    }

    /// The form of the beginning of a text, which is not empty, and how much of the text it stands
    /// for.
    #[inline]
    fn prefix<'a>(&'a self, text: &'a [u8]) -> (&'a [u8], usize) {
        if let Some((_, len)) = self.user_defined.longest(text) {
            return (&text[..len], len);
        }
        if let Some((len, form)) = self.charsmap.longest(text) {
            return (form, len);
        }
        match super::classes::char_at(text, 0) {
            Some(c) => (&text[..c.len_utf8()], c.len_utf8()),
            None => (REPLACEMENT, 1),
        }
    }

    #[inline]
    fn push(&self, form: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let n_spaces = form.iter().filter(|byte| **byte == b' ').count();
        grow(out, form.len() + (META.len() - 1) * n_spaces, "a text in its normal form")?;
        if self.escape_whitespaces {
            for (index, part) in form.split(|byte| *byte == b' ').enumerate() {
                if index > 0 {
                    out.extend_from_slice(META);
                }
                out.extend_from_slice(part);
            }
        } else {
            out.extend_from_slice(form);
        }
        Ok(())
    }

    /// As `tokenizers` does with the normalisers and pre-tokenisers that SentencePiece's become.
    /// `first`: whether the text is the beginning of the whole.
    pub fn metaspace(
        &self,
        text: &[u8],
        first: bool,
        how: &Metaspace,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let mut forms = Vec::new();
        let has_rules = !self.charsmap.is_empty() || !self.user_defined.is_empty();
        let is_own_form = !has_rules && std::str::from_utf8(text).is_ok();
        let mut rest = if is_own_form { &[] } else { text };
        while !rest.is_empty() {
            let (form, len) = self.prefix(rest);
            grow(&mut forms, form.len(), "a text in its normal form")?;
            forms.extend_from_slice(form);
            rest = &rest[len..];
        }
        let mut text = if is_own_form { text } else { &forms };
        let (left, right) = how.strip;
        while left && let Some(c) = super::classes::char_at(text, 0).filter(|c| c.is_whitespace()) {
            text = &text[c.len_utf8()..];
        }
        while right
            && let Some(c) =
                super::classes::char_before(text, text.len()).filter(|c| c.is_whitespace())
        {
            text = &text[..text.len() - c.len_utf8()];
        }
        if text.is_empty() {
            return Ok(());
        }
        let begins = text[0] == b' ' || text.starts_with(META);
        if self.add_dummy_prefix && (first || !how.first_only) && !(how.unless_space && begins) {
            self.push(b" ", out)?;
        }
        if !how.collapse {
            return self.push(text, out);
        }
        for run in text.chunk_by(|a, b| (*a == b' ') == (*b == b' ')) {
            self.push(if run.starts_with(b" ") { b" " } else { run }, out)?;
        }
        Ok(())
    }
}
