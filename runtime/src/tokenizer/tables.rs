//! A tokenizer's large tables, which a model file holds as tensors beside those of the model.

use std::borrow::Cow;

use super::pieces::{Pieces, refuse};
use crate::alloc::reserve;
use crate::error::Result;

/// Names of the tables.
pub mod names {
    /// The bytes of all tokens, one after the other: `U8 (n)`.
    pub const PIECES: &str = "tokenizer.pieces";
    /// Where each token ends in them: `U32 (vocab_size)`.
    pub const ENDS: &str = "tokenizer.ends";
    /// Left, right and what both become, in the order of merging: `U32 (n_merges, 3)`.
    pub const MERGES: &str = "tokenizer.merges";
    /// Scores of SentencePiece: `F32 (vocab_size)`.
    pub const SCORES: &str = "tokenizer.scores";
    /// Kinds of SentencePiece: `U8 (vocab_size)`.
    pub const KINDS: &str = "tokenizer.kinds";
    /// Compiled rules of SentencePiece's normaliser: `U8 (n)`.
    pub const CHARSMAP: &str = "tokenizer.charsmap";
    /// What the name of each table begins with.
    pub const PREFIX: &str = "tokenizer.";
    /// All of them.
    pub const ALL: [&str; 6] = [PIECES, ENDS, MERGES, SCORES, KINDS, CHARSMAP];
}

/// Element type of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableDtype {
    /// Bytes.
    U8,
    /// Little-endian numbers.
    U32,
    /// Little-endian single precision.
    F32,
}

impl TableDtype {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            TableDtype::U8 => 1,
            TableDtype::U32 | TableDtype::F32 => 4,
        }
    }
}

/// One table as it lies in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<'a> {
    /// One of [`names`].
    pub name: &'a str,
    /// Element type.
    pub dtype: TableDtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// As many bytes as type and shape make.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Table<'a> {
    pub(super) fn of_bytes(name: &'static str, bytes: impl Into<Cow<'a, [u8]>>) -> Table<'a> {
        let bytes = bytes.into();
        Table { name, dtype: TableDtype::U8, shape: vec![bytes.len()], bytes }
    }

    pub(super) fn of_scores(scores: &[f32]) -> Table<'a> {
        let bytes = scores.iter().flat_map(|score| score.to_le_bytes()).collect();
        let shape = vec![scores.len()];
        Table { name: names::SCORES, dtype: TableDtype::F32, shape, bytes }
    }

    pub(super) fn pieces(pieces: &'a Pieces) -> Vec<Table<'a>> {
        let ends = pieces.ends();
        let bytes = ends.iter().flat_map(|end| end.to_le_bytes()).collect();
        let shape = vec![ends.len()];
        vec![
            Table::of_bytes(names::PIECES, pieces.bytes()),
            Table { name: names::ENDS, dtype: TableDtype::U32, shape, bytes },
        ]
    }

    /// None where nothing is merged.
    pub(super) fn merges(list: &[[u32; 3]]) -> Option<Table<'a>> {
        let bytes = list.as_flattened().iter().flat_map(|id| id.to_le_bytes()).collect();
        let shape = vec![list.len(), 3];
        let table = Table { name: names::MERGES, dtype: TableDtype::U32, shape, bytes };
        (!list.is_empty()).then_some(table)
    }
}

/// The tables of a file, each of which must be asked for.
pub(super) struct TableReader<'a> {
    tables: &'a [Table<'a>],
    taken: Vec<&'a str>,
}

impl<'a> TableReader<'a> {
    pub fn new(tables: &'a [Table<'a>]) -> TableReader<'a> {
        TableReader { tables, taken: Vec::new() }
    }

    /// The bytes of a table; `shape` has `None` where any number will do.
    fn take(
        &mut self,
        name: &'static str,
        dtype: TableDtype,
        shape: &[Option<usize>],
    ) -> Result<Option<&'a [u8]>> {
        let Some(table) = self.tables.iter().find(|table| table.name == name) else {
            return Ok(None);
        };
        let fits = table.shape.len() == shape.len()
            && table.shape.iter().zip(shape).all(|(n, m)| m.is_none_or(|m| m == *n));
        let len = table.shape.iter().try_fold(dtype.size(), |len, n| len.checked_mul(*n));
        if table.dtype != dtype || !fits || len != Some(table.bytes.len()) {
            let sizes: Vec<String> =
                shape.iter().map(|n| n.map_or("any".to_owned(), |n| n.to_string())).collect();
            return Err(refuse(
                name,
                format!(
                    "{} bytes of {:?} and shape {:?}",
                    table.bytes.len(),
                    table.dtype,
                    table.shape
                ),
                &format!("{dtype:?} and shape [{}]", sizes.join(", ")),
            ));
        }
        self.taken.push(name);
        Ok(Some(&table.bytes))
    }

    fn need(
        &mut self,
        name: &'static str,
        dtype: TableDtype,
        shape: &[Option<usize>],
    ) -> Result<&'a [u8]> {
        let found = self.take(name, dtype, shape)?;
        found.ok_or_else(|| refuse(name, "nothing".to_owned(), "this table of the tokenizer"))
    }

    pub fn pieces(&mut self) -> Result<Pieces> {
        let bytes = self.need(names::PIECES, TableDtype::U8, &[None])?;
        let ends = self.need(names::ENDS, TableDtype::U32, &[None])?;
        Pieces::from_tables(bytes, numbers(ends, u32::from_le_bytes)?)
    }

    pub fn merges(&mut self) -> Result<Vec<[u32; 3]>> {
        let bytes = self.take(names::MERGES, TableDtype::U32, &[None, Some(3)])?;
        let (rows, _) = bytes.unwrap_or_default().as_chunks::<12>();
        let mut list = Vec::new();
        reserve(&mut list, rows.len(), "merges")?;
        list.extend(rows.iter().map(|row| {
            let (ids, _) = row.as_chunks::<4>();
            std::array::from_fn(|at| ids.get(at).map_or(0, |id| u32::from_le_bytes(*id)))
        }));
        Ok(list)
    }

    pub fn scores(&mut self, vocab_size: usize) -> Result<Vec<f32>> {
        let bytes = self.need(names::SCORES, TableDtype::F32, &[Some(vocab_size)])?;
        numbers(bytes, f32::from_le_bytes)
    }

    pub fn kinds(&mut self, vocab_size: usize) -> Result<&'a [u8]> {
        self.need(names::KINDS, TableDtype::U8, &[Some(vocab_size)])
    }

    pub fn charsmap(&mut self) -> Result<&'a [u8]> {
        Ok(self.take(names::CHARSMAP, TableDtype::U8, &[None])?.unwrap_or_default())
    }

    /// There must be no table that was not asked for.
    pub fn end(self) -> Result<()> {
        let mut names = self.tables.iter().map(|table| table.name);
        match names.find(|name| !self.taken.contains(name)) {
            Some(name) => {
                Err(refuse(name, "it".to_owned(), "no such table with this kind of tokenizer"))
            }
            None => Ok(()),
        }
    }
}

fn numbers<T>(bytes: &[u8], number: impl Fn([u8; 4]) -> T) -> Result<Vec<T>> {
    let (chunks, _) = bytes.as_chunks::<4>();
    let mut numbers = Vec::new();
    reserve(&mut numbers, chunks.len(), "a table of the tokenizer")?;
    numbers.extend(chunks.iter().map(|bytes| number(*bytes)));
    Ok(numbers)
}
