//! What the patterns of pre-tokenisers tell apart: letters, numbers, white space and the rest, by
//! Unicode's general categories.

use unicode_general_category::{GeneralCategory, get_general_category};

/// A class of characters. No character is of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    /// None of these, and bytes that are no character.
    Other,
}

/// The classes of ASCII, which most text is.
const ASCII: [Class; 128] = {
    let mut classes = [Class::Other; 128];
    let mut byte = 0;
    while byte < 128 {
        let c = byte as u8;
        if c.is_ascii_alphabetic() {
            classes[byte] = Class::Letter;
        } else if c.is_ascii_digit() {
            classes[byte] = Class::Number;
        } else if c == b' ' || (c >= b'\t' && c <= b'\r') {
            classes[byte] = Class::Space;
        }
        byte += 1;
    }
    classes
};

/// Class and length of the character at `at`; `None` at the end. A byte that is no part of a
/// character is one by itself.
#[inline]
pub(super) fn class_at(text: &[u8], at: usize) -> Option<(Class, usize)> {
    let byte = *text.get(at)?;
    match ASCII.get(usize::from(byte)) {
        Some(class) => Some((*class, 1)),
        None => Some(match char_at(text, at) {
            Some(c) => (class(c), c.len_utf8()),
            None => (Class::Other, 1),
        }),
    }
}

/// The end of the characters of a class that begin at `at`.
#[inline]
pub(super) fn run(text: &[u8], mut at: usize, class: Class) -> usize {
    loop {
        match class_at(text, at) {
            Some((found, len)) if found == class => at += len,
            Some(_) | None => return at,
        }
    }
}

/// The character that begins at `at`, if one does.
pub(super) fn char_at(text: &[u8], at: usize) -> Option<char> {
    let len = match text.get(at)? {
        0..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0.. => 4,
    };
    std::str::from_utf8(text.get(at..at + len)?).ok()?.chars().next()
}

/// The character that ends at `end`, if one does.
pub(super) fn char_before(text: &[u8], end: usize) -> Option<char> {
    let starts = end.saturating_sub(4)..end;
    let start = starts.rev().find(|at| text.get(*at).is_some_and(|byte| byte & 0xc0 != 0x80))?;
    char_at(text, start).filter(|c| start + c.len_utf8() == end)
}

fn class(c: char) -> Class {
    use GeneralCategory as G;
    // White space has other categories than these.
    #[allow(clippy::wildcard_enum_match_arm)]
    match get_general_category(c) {
        G::UppercaseLetter
        | G::LowercaseLetter
        | G::TitlecaseLetter
        | G::ModifierLetter
        | G::OtherLetter => Class::Letter,
        G::DecimalNumber | G::LetterNumber | G::OtherNumber => Class::Number,
        _ if c.is_whitespace() => Class::Space,
        _ => Class::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_ascii_is_that_of_unicode() {
        for (byte, found) in ASCII.iter().enumerate() {
            let c = byte as u8 as char;
            assert_eq!(*found, class(c), "{c:?}");
        }
    }

    /// Number and sum of the code points that `tokenizers` 0.23.3 finds with each expression.
    #[test]
    fn all_code_points_are_classed_as_tokenizers_does() {
        let found = |class_: Class| {
            let chars = (0..=char::MAX as u32).filter_map(char::from_u32);
            let chars = chars.filter(|c| class(*c) == class_);
            chars.fold((0u64, 0u64), |(n, sum), c| (n + 1, sum + u64::from(c as u32)))
        };
        assert_eq!(found(Class::Letter), (141_028, 15_240_929_258));
        assert_eq!(found(Class::Number), (1_911, 110_651_895));
        assert_eq!(found(Class::Space), (25, 141_586));
    }

    #[test]
    fn bytes_that_are_no_character_stand_alone() {
        let text = b"\xc3\xa9\xc3 \xe2\x82\xff\xf0\x9f\x98\x80";
        let mut at = 0;
        let mut found = Vec::new();
        while let Some((class, len)) = class_at(text, at) {
            found.push((class, len));
            at += len;
        }
        let other = (Class::Other, 1);
        assert_eq!(
            found,
            [(Class::Letter, 2), other, (Class::Space, 1), other, other, other, (Class::Other, 4)]
        );
        assert_eq!(char_before(text, 2), Some('é'));
        assert_eq!(char_before(text, 3), None);
        assert_eq!(char_before(text, text.len()), Some('😀'));
        assert_eq!(char_before(text, 0), None);
    }
}
