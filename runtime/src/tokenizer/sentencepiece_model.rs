//! Reading the `.model` file of the library `sentencepiece`: a protocol buffer, of which the few fields
//! that matter are read by hand.

use super::pieces::refuse;
use super::sentencepiece::{PieceKind, PieceModel, SentencePiece, SentencePieceParts};
use super::specials::Specials;
use crate::error::{Error, Result};

const WHAT: &str = "SentencePiece model";

impl SentencePiece {
    /// Reads a `.model` file. Its first and last tokens are those that its trainer was told, unless
    /// they are no control pieces; texts get no first token, as the library gives them none.
    ///
    /// # Errors
    /// [`Error::Format`] for a file that is damaged, a model of words or characters, rules for decoding,
    /// and whatever [`SentencePiece::new`] refuses.
    pub fn from_model(bytes: &[u8]) -> Result<SentencePiece> {
        let mut parts = SentencePieceParts { byte_fallback: false, ..Default::default() };
        // What a file does not say is as in the library: 1 and 2.
        let mut ids = Ids { bos: 1, eos: 2 };
        for field in Reader(bytes) {
            match field? {
                (1, Field::Bytes(piece)) => parts.pieces.push(read_piece(piece)?),
                (2, Field::Bytes(trainer)) => read_trainer(trainer, &mut parts, &mut ids)?,
                (3, Field::Bytes(normalizer)) => read_normalizer(normalizer, &mut parts)?,
                (5, Field::Bytes(rules)) => {
                    let mut none = SentencePieceParts::default();
                    read_normalizer(rules, &mut none)?;
                    if !none.charsmap.is_empty() {
                        let found = format!("{} bytes of rules for decoding", none.charsmap.len());
                        return Err(refuse(WHAT, found, "none"));
                    }
                }
                (1 | 2 | 3 | 5, field) => return Err(wrong(field)),
                _ => {}
            }
        }
        let control = |id: i32| {
            let id = u32::try_from(id).ok()?;
            let (_, _, kind) = parts.pieces.get(id as usize)?;
            (*kind == PieceKind::Control).then_some(id)
        };
        let eos = control(ids.eos).into_iter().collect();
        parts.specials = Specials { bos: control(ids.bos), eos, add_bos: false };
        SentencePiece::new(parts)
    }
}

/// The ids that the trainer was told.
struct Ids {
    bos: i32,
    eos: i32,
}

fn read_piece(bytes: &[u8]) -> Result<(Vec<u8>, f32, PieceKind)> {
    let mut piece = (Vec::new(), 0.0, PieceKind::Normal);
    for field in Reader(bytes) {
        match field? {
            (1, Field::Bytes(text)) => piece.0 = text.to_vec(),
            (2, Field::Fixed32(score)) => piece.1 = f32::from_bits(score),
            (3, Field::Number(kind)) => {
                piece.2 = PieceKind::from_number(kind).ok_or_else(|| {
                    refuse(WHAT, format!("a piece of type {kind}"), "types 1 to 6")
                })?;
            }
            (1..=3, field) => return Err(wrong(field)),
            _ => {}
        }
    }
    Ok(piece)
}

fn read_trainer(bytes: &[u8], parts: &mut SentencePieceParts, ids: &mut Ids) -> Result<()> {
    for field in Reader(bytes) {
        match field? {
            (3, Field::Number(model)) => {
                parts.model = match model {
                    1 => PieceModel::Unigram,
                    2 => PieceModel::Bpe,
                    3 => return Err(refuse(WHAT, "words".to_owned(), "unigram or bpe")),
                    4 => return Err(refuse(WHAT, "characters".to_owned(), "unigram or bpe")),
                    _ => return Err(refuse(WHAT, format!("type {model}"), "unigram or bpe")),
                }
            }
            (24, Field::Number(flag)) => parts.treat_whitespace_as_suffix = flag != 0,
            (35, Field::Number(flag)) => parts.byte_fallback = flag != 0,
            // Numbers below zero are those from the other end of 64 bits.
            (41, Field::Number(id)) => ids.bos = id as i32,
            (42, Field::Number(id)) => ids.eos = id as i32,
            (44, Field::Bytes(text)) => {
                parts.unknown_text = String::from_utf8_lossy(text).into_owned();
            }
            (3 | 24 | 35 | 41 | 42 | 44, field) => return Err(wrong(field)),
            _ => {}
        }
    }
    Ok(())
}

fn read_normalizer(bytes: &[u8], parts: &mut SentencePieceParts) -> Result<()> {
    for field in Reader(bytes) {
        match field? {
            (2, Field::Bytes(rules)) => parts.charsmap = rules.to_vec(),
            (3, Field::Number(flag)) => parts.add_dummy_prefix = flag != 0,
            (4, Field::Number(flag)) => parts.remove_extra_whitespaces = flag != 0,
            (5, Field::Number(flag)) => parts.escape_whitespaces = flag != 0,
            (2..=5, field) => return Err(wrong(field)),
            _ => {}
        }
    }
    Ok(())
}

/// What a field of a protocol buffer holds.
enum Field<'a> {
    Number(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

fn wrong(field: Field<'_>) -> Error {
    let found = match field {
        Field::Number(_) => "a number",
        Field::Fixed64 => "64 bits",
        Field::Bytes(_) => "bytes",
        Field::Fixed32(_) => "32 bits",
    };
    refuse(WHAT, format!("{found} in a field of another type"), "the fields of sentencepiece")
}

/// The fields of a message with their numbers. After an error there are no more.
struct Reader<'a>(&'a [u8]);

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(
            field.ok_or_else(|| {
                refuse(WHAT, "a damaged field".to_owned(), "a file of sentencepiece")
            }),
        )
    }
}

impl<'a> Reader<'a> {
    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.number()?;
        let field = match key & 7 {
            0 => Field::Number(self.number()?),
            1 => {
                self.bytes(8)?;
                Field::Fixed64
            }
            2 => {
                let len = usize::try_from(self.number()?).ok()?;
                Field::Bytes(self.bytes(len)?)
            }
            5 => Field::Fixed32(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, field))
    }

    /// Seven bits a byte, the lowest first; the highest bit says that more follow.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes(1)?.first()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }
}
