//! Text to words as the regular expressions of well-known models cut it, written by hand: a word is
//! found in one pass over its bytes.

use super::classes::{Class, char_at, class_at, run};

/// How text is cut into words, within which pairs are merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pattern {
    /// GPT-2's: contractions, a space with the word behind it.
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    #[default]
    Gpt2,
    /// Llama 3's, which cl100k has too: digits by threes, newlines with what is in front of them.
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|`
    /// `` ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+``
    Llama3,
    /// SmolLM's: each digit by itself, and GPT-2's for what lies between them.
    SmolLm,
}

impl Pattern {
    /// Every pattern.
    pub const ALL: &[Pattern] = &[Pattern::Gpt2, Pattern::Llama3, Pattern::SmolLm];

    /// As model files have it.
    pub fn name(self) -> &'static str {
        match self {
            Pattern::Gpt2 => "gpt2",
            Pattern::Llama3 => "llama3",
            Pattern::SmolLm => "smollm",
        }
    }

    /// Calls `word` for each word of a text. Together they are the text.
    pub(super) fn words<E>(
        self,
        text: &[u8],
        word: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Pattern::Gpt2 => each(text, gpt2, word),
            Pattern::Llama3 => each(text, llama3, word),
            Pattern::SmolLm => {
                let mut rest = text;
                while !rest.is_empty() {
                    let (at, len) = first_digit(rest);
                    each(&rest[..at], gpt2, word)?;
                    if len > 0 {
                        word(&rest[at..at + len])?;
                    }
                    rest = &rest[at + len..];
                }
                Ok(())
            }
        }
    }
}

#[inline]
fn each<E>(
    text: &[u8],
    end: impl Fn(&[u8], usize, u8) -> usize,
    word: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut at = 0;
    while let Some(first) = text.get(at) {
        let end = end(text, at, *first);
        word(&text[at..end])?;
        at = end;
    }
    Ok(())
}

/// Where the word that begins at `at` with the byte `first` ends.
#[inline]
fn gpt2(text: &[u8], at: usize, first: u8) -> usize {
    if first == b'\''
        && let Some(len) = contraction(&text[at..])
    {
        return at + len;
    }
    let start = at + usize::from(first == b' ');
    match class_at(text, start) {
        Some((Class::Space, _)) | None => spaces(text, at),
        Some((class, len)) => run(text, start + len, class),
    }
}

/// As [`gpt2`].
#[inline]
fn llama3(text: &[u8], at: usize, first: u8) -> usize {
    if first == b'\''
        && let Some(len) = contraction_in_any_case(&text[at..])
    {
        return at + len;
    }
    let Some((class, len)) = class_at(text, at) else { return at };
    let next = at + len;
    match class {
        Class::Letter => return run(text, next, Class::Letter),
        Class::Number => return numbers(text, next, 2),
        Class::Space | Class::Other => {}
    }
    if !is_newline(first) && matches!(class_at(text, next), Some((Class::Letter, _))) {
        return run(text, next, Class::Letter);
    }
    let start = at + usize::from(first == b' ');
    if let Some((Class::Other, len)) = class_at(text, start) {
        let end = run(text, start + len, Class::Other);
        return end + text[end..].iter().take_while(|byte| is_newline(**byte)).count();
    }
    let end = run(text, at, Class::Space);
    match text[at..end].iter().rposition(|byte| is_newline(*byte)) {
        Some(last) => at + last + 1,
        None => spaces(text, at),
    }
}

/// The end of at most `most` numbers.
fn numbers(text: &[u8], mut at: usize, most: usize) -> usize {
    for _ in 0..most {
        match class_at(text, at) {
            Some((Class::Number, len)) => at += len,
            Some(_) | None => break,
        }
    }
    at
}

/// The end of white space; without its last character where a word follows, if it has another.
fn spaces(text: &[u8], at: usize) -> usize {
    let mut last = at;
    let mut end = at;
    while let Some((Class::Space, len)) = class_at(text, end) {
        last = end;
        end += len;
    }
    if end < text.len() && last > at { last } else { end }
}

fn is_newline(byte: u8) -> bool {
    byte == b'\r' || byte == b'\n'
}

/// The length of a contraction and its apostrophe, if the text begins with one.
fn contraction(text: &[u8]) -> Option<usize> {
    match text {
        [_, b's' | b't' | b'm' | b'd', ..] => Some(2),
        [_, b'r' | b'v', b'e', ..] | [_, b'l', b'l', ..] => Some(3),
        _ => None,
    }
}

/// The same for capitals too, of which Unicode has one more: the long s.
fn contraction_in_any_case(text: &[u8]) -> Option<usize> {
    let lower = |at: usize| text.get(at).copied().unwrap_or_default().to_ascii_lowercase();
    match char_at(text, 1) {
        Some('\u{17f}') => Some(1 + '\u{17f}'.len_utf8()),
        Some(_) | None => contraction(&[b'\'', lower(1), lower(2)]),
    }
}

/// Where the first digit is, and its length, 0 where there is none.
fn first_digit(text: &[u8]) -> (usize, usize) {
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        if byte.is_ascii_digit() {
            return (at, 1);
        }
        // All digits beyond ASCII take two bytes or more.
        match char_at(text, at) {
            Some(c) if c.is_numeric() => return (at, c.len_utf8()),
            Some(c) => at += c.len_utf8(),
            None => at += 1,
        }
    }
    (at, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pattern: Pattern, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        let ended: Result<(), ()> = pattern.words(text.as_bytes(), &mut |word| {
            words.push(String::from_utf8_lossy(word).into_owned());
            Ok(())
        });
        assert_eq!(ended, Ok(()));
        words
    }

    /// The words are those that `tokenizers` 0.23.3 finds.
    #[test]
    fn words_are_those_of_the_regular_expressions() {
        use Pattern::{Gpt2, Llama3, SmolLm};
        assert_eq!(
            words(Gpt2, "It's  they'LL 12345 é\u{301}!?\r\n\n x \t "),
            [
                "It",
                "'s",
                " ",
                " they",
                "'",
                "LL",
                " 12345",
                " é",
                "\u{301}!?",
                "\r\n\n",
                " x",
                " \t "
            ]
        );
        assert_eq!(
            words(Llama3, "It's  they'LL 12345 é\u{301}!?\r\n\n x \t "),
            [
                "It",
                "'s",
                " ",
                " they",
                "'LL",
                " ",
                "123",
                "45",
                " é",
                "\u{301}!?\r\n\n",
                " x",
                " \t "
            ]
        );
        assert_eq!(words(SmolLm, "a  10 b"), ["a", "  ", "1", "0", " b"]);
        assert_eq!(words(Llama3, "a \n \n b\n"), ["a", " \n \n", " b", "\n"]);
    }
}
