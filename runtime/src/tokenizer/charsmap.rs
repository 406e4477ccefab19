//! The compiled rules of SentencePiece's normaliser: a double-array trie of what is replaced, and the
//! strings that replace it.

use super::pieces::refuse;
use crate::alloc::reserve;
use crate::error::Result;

/// Longest text that a rule replaces, and longest text that replaces it, in bytes. Those of the library
/// are shorter by far; a damaged trie can go round and round.
const MOST: usize = 1 << 10;

/// Rules as a model file holds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Charsmap {
    /// Nodes of the trie, as the library Darts-clone makes them.
    units: Vec<u32>,
    /// Strings, each with a NUL at its end.
    strings: Vec<u8>,
}

impl Charsmap {
    /// Reads a little-endian size in bytes, a trie of that size, and strings; nothing for no rules.
    pub fn new(bytes: &[u8]) -> Result<Charsmap> {
        if bytes.is_empty() {
            return Ok(Charsmap::default());
        }
        let parts = bytes.split_first_chunk::<4>().and_then(|(size, rest)| {
            let size = usize::try_from(u32::from_le_bytes(*size)).ok()?;
            rest.split_at_checked(size)
        });
        let Some((trie, [strings @ .., 0])) = parts.filter(|(trie, _)| trie.len() % 4 == 0) else {
            let found = format!("{} bytes", bytes.len());
            let expected = "a size, a trie of that size and strings that end with NUL";
            return Err(refuse("tokenizer.charsmap", found, expected));
        };
        if let Some(long) = strings.split(|byte| *byte == 0).find(|text| text.len() > MOST) {
            let found = format!("a replacement of {} bytes", long.len());
            let expected = format!("no more than {MOST} in one");
            return Err(refuse("tokenizer.charsmap", found, &expected));
        }
        let mut map = Charsmap::default();
        reserve(&mut map.units, trie.len() / 4, "rules of a tokenizer")?;
        let (units, _) = trie.as_chunks::<4>();
        map.units.extend(units.iter().map(|unit| u32::from_le_bytes(*unit)));
        reserve(&mut map.strings, strings.len() + 1, "rules of a tokenizer")?;
        map.strings.extend_from_slice(strings);
        map.strings.push(0);
        Ok(map)
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// What [`Charsmap::new`] has read.
    pub fn to_bytes(&self) -> Vec<u8> {
        if self.units.is_empty() && self.strings.is_empty() {
            return Vec::new();
        }
        let size = (4 * self.units.len()) as u32;
        let units = self.units.iter().flat_map(|unit| unit.to_le_bytes());
        size.to_le_bytes().into_iter().chain(units).chain(self.strings.iter().copied()).collect()
    }

    /// The longest beginning of the text that a rule replaces: its length, and what replaces it.
    #[inline]
    pub fn longest(&self, text: &[u8]) -> Option<(usize, &[u8])> {
        let mut at = offset(*self.units.first()?);
        let mut found = None;
        for (index, byte) in text.iter().take(MOST).enumerate() {
            at ^= usize::from(*byte);
            let Some(unit) = self.units.get(at) else { break };
            // The label of a leaf has another bit, and is that of no byte.
            if unit & 0x8000_00ff != u32::from(*byte) {
                break;
            }
            at ^= offset(*unit);
            if unit & 1 << 8 != 0 {
                let Some(leaf) = self.units.get(at) else { break };
                found = Some((index + 1, leaf & 0x7fff_ffff));
            }
        }
        let (len, start) = found?;
        let string = self.strings.get(start as usize..).unwrap_or_default();
        Some((len, string.split(|byte| *byte == 0).next().unwrap_or_default()))
    }
}

/// From a node to its children.
fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_rules_are_refused() {
        let refused = |bytes: &[u8]| Charsmap::new(bytes).expect_err("damaged").to_string();
        for bytes in
            [&[4, 0, 0][..], &[4, 0, 0, 0], &[4, 0, 0, 0, 1, 2, 3, 4], &[3, 0, 0, 0, 1, 2, 3, 0]]
        {
            assert!(refused(bytes).contains("tokenizer.charsmap: found"), "{bytes:?}");
        }
        assert!(refused(&[0xff; 64]).contains("found 64 bytes"));
        let with = |len| [&[4, 0, 0, 0, 0, 0, 0, 0][..], &vec![b'a'; len], &[0]].concat();
        let long = refused(&with(MOST + 1));
        assert!(long.contains("a replacement of 1025 bytes, expected no more than 1024"), "{long}");
        assert!(Charsmap::new(&with(MOST)).is_ok());
        assert_eq!(Charsmap::new(&[]).expect("no rules").longest(b"a"), None);
    }

    /// Nodes that lead to each other, or out of the table.
    #[test]
    fn a_hostile_trie_ends() {
        for unit in [u32::MAX, 1 << 8 | b'a' as u32, 0x7fff_ff61, 0, 1 << 10] {
            let mut bytes = vec![16, 0, 0, 0];
            for _ in 0..4 {
                bytes.extend(unit.to_le_bytes());
            }
            bytes.extend(b"x\0");
            let map = Charsmap::new(&bytes).expect("its sizes are right");
            assert_eq!(map.to_bytes(), bytes);
            let _ = map.longest(&[b'a'; 5000]);
            let _ = map.longest(&[0; 5000]);
        }
    }
}
