//! A GGUF file's keys and tensors (`docs/gguf.md` of ggml): versions 2 and 3, little-endian.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::super::tensor::{Encoding, Values};
use super::super::tensors::Tensors;
use super::super::{Shown, refuse};
use super::dequant::Kind;
use crate::error::{Error, Result};
use crate::weights::Bytes;

/// The first bytes of every file.
pub(in crate::import) const MAGIC: &[u8] = b"GGUF";

/// What a key holds. Arrays are left where they lie.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    /// Where its bytes lie.
    Text(Range<usize>),
    /// Element type, number of elements, and where they lie.
    Array(u32, usize, Range<usize>),
}

/// Numbers of the types of values.
mod types {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

/// A file's keys, and where its tensors are listed.
pub(super) struct File {
    bytes: Arc<Bytes>,
    values: BTreeMap<String, Value>,
    /// Keys that have been asked for.
    read: RefCell<BTreeSet<String>>,
    n_tensors: u64,
    /// Where the list of tensors begins.
    tensors_at: usize,
}

impl File {
    pub fn read(bytes: &Arc<Bytes>) -> Result<File> {
        let mut cursor = Cursor { bytes: bytes.get(), at: MAGIC.len() };
        if !bytes.get().starts_with(MAGIC) {
            return Err(refuse("header", "another mark", "GGUF"));
        }
        match cursor.u32()? {
            2 | 3 => {}
            found if found.swap_bytes() == 2 || found.swap_bytes() == 3 => {
                return Err(refuse("header", "a big-endian file", "a little-endian one"));
            }
            found => return Err(refuse("version", found.to_string(), "2 or 3")),
        }
        let (n_tensors, n_keys) = (cursor.u64()?, cursor.u64()?);
        let mut values = BTreeMap::new();
        for _ in 0..n_keys {
            let key = cursor.name()?;
            let kind = cursor.u32()?;
            let value = cursor.value(&key, kind)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(refuse(&key, "it twice", "each key once"));
            }
        }
        let tensors_at = cursor.at;
        let read = RefCell::default();
        Ok(File { bytes: Arc::clone(bytes), values, read, n_tensors, tensors_at })
    }

    /// The tensors that the file lists, each checked to lie within it.
    pub fn tensors(&self) -> Result<Tensors> {
        let alignment = self.usize("general.alignment", Some(32))?;
        if !alignment.is_power_of_two() {
            return Err(self.refuse("general.alignment", "a power of two"));
        }
        let mut cursor = Cursor { bytes: self.bytes.get(), at: self.tensors_at };
        let mut list = Vec::new();
        for _ in 0..self.n_tensors {
            let name = cursor.name()?;
            let n_dims = cursor.u32()?;
            if !(1..=2).contains(&n_dims) {
                return Err(refuse(&name, format!("{n_dims} dimensions"), "one or two"));
            }
            let mut shape = Vec::with_capacity(2);
            for _ in 0..n_dims {
                shape.push(cursor.size(&name)?);
            }
            // The innermost dimension comes first in the file.
            shape.reverse();
            let encoding = encoding(&name, cursor.u32()?)?;
            list.push((name.clone(), shape, encoding, cursor.size(&name)?));
        }
        let data = cursor.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
        let (mut tensors, mut ranges) = (Tensors::default(), Vec::new());
        for (name, shape, encoding, offset) in list {
            if !offset.is_multiple_of(alignment) {
                let expected = format!("a multiple of {alignment}");
                return Err(refuse(&name, format!("offset {offset}"), expected));
            }
            let start = data.saturating_add(offset);
            let values = Values::new(&name, &self.bytes, start, encoding, &shape)?;
            ranges.push((start, values.end(), name.clone()));
            tensors.insert(name, values)?;
        }
        // Many that share their bytes would be more numbers than the file has room for.
        ranges.sort_unstable();
        match ranges.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            Some(pair) => {
                let found = format!("bytes that {} has too", pair[0].2);
                Err(refuse(&pair[1].2, found, "bytes of its own"))
            }
            None => Ok(tensors),
        }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        let value = self.values.get(key)?;
        self.read.borrow_mut().insert(key.to_owned());
        Some(value)
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    pub fn was_read(&self, key: &str) -> bool {
        self.read.borrow().contains(key)
    }

    /// An error about a key.
    pub fn refuse(&self, key: &str, expected: impl Into<String>) -> Error {
        let found = match self.values.get(key) {
            None => "nothing".to_owned(),
            Some(Value::Unsigned(n)) => n.to_string(),
            Some(Value::Signed(n)) => n.to_string(),
            Some(Value::Float(n)) => n.to_string(),
            Some(Value::Bool(b)) => b.to_string(),
            Some(Value::Text(place)) => Shown(&self.bytes.get()[place.clone()]).to_string(),
            Some(Value::Array(kind, n, _)) => format!("an array of {n} values of type {kind}"),
        };
        refuse(key, found, expected)
    }

    /// A size; must be there unless there is a default.
    pub fn usize(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let number = match (self.get(key), default) {
            (None, Some(default)) => return Ok(default),
            (Some(Value::Unsigned(n)), _) => usize::try_from(*n).ok(),
            (Some(Value::Signed(n)), _) => usize::try_from(*n).ok(),
            (
                None | Some(Value::Float(_) | Value::Bool(_) | Value::Text(_) | Value::Array(..)),
                _,
            ) => None,
        };
        number.ok_or_else(|| self.refuse(key, "a whole number"))
    }

    /// A number; must be there unless there is a default.
    pub fn f32(&self, key: &str, default: Option<f32>) -> Result<f32> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (Some(Value::Float(number)), _) => Ok(*number as f32),
            _ => Err(self.refuse(key, "a number with a point")),
        }
    }

    pub fn bool(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(self.refuse(key, "true or false")),
        }
    }

    pub fn str(&self, key: &str) -> Result<&str> {
        let text = match self.get(key) {
            Some(Value::Text(place)) => std::str::from_utf8(&self.bytes.get()[place.clone()]).ok(),
            _ => None,
        };
        text.ok_or_else(|| self.refuse(key, "a text"))
    }

    /// The strings of an array, as bytes; nothing if the key is not there.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&[u8]>>> {
        let (n, place) = match self.get(key) {
            None => return Ok(None),
            Some(Value::Array(types::STRING, n, place)) => (*n, place),
            Some(_) => return Err(self.refuse(key, "an array of texts")),
        };
        let mut cursor = Cursor { bytes: &self.bytes.get()[..place.end], at: place.start };
        let mut strings = Vec::new();
        crate::alloc::reserve(&mut strings, n, "a vocabulary")?;
        for _ in 0..n {
            let text = cursor.text()?;
            strings.push(&self.bytes.get()[text]);
        }
        Ok(Some(strings))
    }

    /// The numbers of an array in four bytes each: `kinds` are the types that it may have.
    fn four_bytes(&self, key: &str, kinds: &[u32], what: &str) -> Result<Option<Vec<[u8; 4]>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(kind, _, place)) if kinds.contains(kind) => {
                let (numbers, _) = self.bytes.get()[place.clone()].as_chunks::<4>();
                Ok(Some(numbers.to_vec()))
            }
            Some(_) => Err(self.refuse(key, what)),
        }
    }

    /// The bytes of an array; nothing if the key is not there.
    pub fn bytes(&self, key: &str) -> Result<Option<Vec<u8>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(types::U8 | types::I8, _, place)) => {
                Ok(Some(self.bytes.get()[place.clone()].to_vec()))
            }
            Some(_) => Err(self.refuse(key, "an array of bytes")),
        }
    }

    /// The numbers of an array; nothing if the key is not there.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let bytes = self.four_bytes(key, &[types::F32], "an array of numbers")?;
        Ok(bytes.map(|bytes| bytes.into_iter().map(f32::from_le_bytes).collect()))
    }

    /// The whole numbers of an array; nothing if the key is not there.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i32>>> {
        let kinds = [types::I32, types::U32];
        let bytes = self.four_bytes(key, &kinds, "an array of whole numbers")?;
        Ok(bytes.map(|bytes| bytes.into_iter().map(i32::from_le_bytes).collect()))
    }
}

/// The encoding of a number in a file.
fn encoding(name: &str, number: u32) -> Result<Encoding> {
    match number {
        0 => Ok(Encoding::F32),
        1 => Ok(Encoding::F16),
        30 => Ok(Encoding::Bf16),
        other => Kind::from_number(other).map(Encoding::Ggml).ok_or_else(|| {
            refuse(
                name,
                format!("type {other} of GGML"),
                "f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k or q6_k",
            )
        }),
    }
}

/// Reads from the beginning to the end and never beyond it.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, n: usize) -> Result<Range<usize>> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(refuse(
                "header",
                format!("{n} bytes at {} of {}", self.at, self.bytes.len()),
                "them within the file",
            ));
        };
        let place = self.at..end;
        self.at = end;
        Ok(place)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let place = self.take(N)?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.bytes[place]);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn size(&mut self, what: &str) -> Result<usize> {
        let size = self.u64()?;
        usize::try_from(size)
            .map_err(|_| refuse(what, size.to_string(), "a number that this machine can address"))
    }

    /// Where a string lies.
    fn text(&mut self) -> Result<Range<usize>> {
        let n = self.size("header")?;
        self.take(n)
    }

    /// The name of a key or tensor.
    fn name(&mut self) -> Result<String> {
        let text = self.text()?;
        match std::str::from_utf8(&self.bytes[text.clone()]) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(refuse("header", format!("a name at {}", text.start), "UTF-8")),
        }
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value> {
        Ok(match kind {
            types::U8 => Value::Unsigned(u8::from_le_bytes(self.array()?).into()),
            types::I8 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            types::U16 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            types::I16 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            types::U32 => Value::Unsigned(self.u32()?.into()),
            types::I32 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            types::U64 => Value::Unsigned(self.u64()?),
            types::I64 => Value::Signed(i64::from_le_bytes(self.array()?)),
            types::F32 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            types::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
            types::BOOL => match self.array::<1>()? {
                [value @ (0 | 1)] => Value::Bool(value == 1),
                [value] => return Err(refuse(key, value.to_string(), "0 or 1")),
            },
            types::STRING => Value::Text(self.text()?),
            types::ARRAY => {
                let (kind, n) = (self.u32()?, self.size(key)?);
                let start = self.at;
                match kind {
                    types::U8 | types::I8 | types::BOOL => self.take(n)?,
                    types::U16 | types::I16 => self.take(n.saturating_mul(2))?,
                    types::U32 | types::I32 | types::F32 => self.take(n.saturating_mul(4))?,
                    types::U64 | types::I64 | types::F64 => self.take(n.saturating_mul(8))?,
                    types::STRING => {
                        for _ in 0..n {
                            self.text()?;
                        }
                        start..self.at
                    }
                    other => {
                        let found = format!("an array of type {other}");
                        return Err(refuse(key, found, "numbers, texts or true and false"));
                    }
                };
                Value::Array(kind, n, start..self.at)
            }
            other => return Err(refuse(key, format!("type {other}"), "a type of GGUF's values")),
        })
    }
}
