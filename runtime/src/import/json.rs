//! Typed reading of JSON files that others have written.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::{cannot_open, refuse};
use crate::error::{Error, Result};

/// The largest file that is read. Vocabularies of a quarter of a million tokens take 35 MB.
const MAX_BYTES: u64 = 200 << 20;

/// An object of a JSON file.
pub(super) struct Json {
    /// Where it stands, such as `config.json` or `config.json: rope_scaling`.
    what: String,
    object: Map<String, Value>,
}

/// The text of a file.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|source| cannot_open(path, source))?;
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|source| cannot_open(path, source))?;
    if text.len() as u64 > MAX_BYTES {
        let expected = format!("at most {MAX_BYTES} bytes");
        return Err(refuse(&file_name(path), "a larger file", expected));
    }
    Ok(text)
}

/// The name of a file as errors have it.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What a text holds. `what`: the name of its file.
pub(super) fn parse(text: &str, what: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| refuse(what, format!("no JSON: {error}"), "JSON"))
}

impl Json {
    /// Reads a file that holds one object.
    ///
    /// # Errors
    /// A file that cannot be read or holds anything else.
    pub fn read(path: &Path) -> Result<Json> {
        let what = file_name(path);
        let value = parse(&read_text(path)?, &what)?;
        Json::new(what, value)
    }

    /// An object where `what` says.
    pub fn new(what: String, value: Value) -> Result<Json> {
        let Value::Object(object) = value else {
            return Err(refuse(&what, short(&value), "an object"));
        };
        Ok(Json { what, object })
    }

    /// What stands under a key; nothing if that is null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// An error about a key.
    pub fn refuse(&self, key: &str, expected: impl Into<String>) -> Error {
        let found = self.get(key).map_or("nothing".to_owned(), short);
        refuse(&format!("{}: {key}", self.what), found, expected)
    }

    /// Whether a key holds something.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn read_as<T>(
        &self,
        key: &str,
        default: Option<T>,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (value, _) => value.and_then(read).ok_or_else(|| self.refuse(key, expected)),
        }
    }

    /// A size; must be there unless there is a default.
    pub fn usize(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let read = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        self.read_as(key, default, "a whole number", read)
    }

    /// A number.
    pub fn f32(&self, key: &str, default: Option<f32>) -> Result<f32> {
        self.read_as(key, default, "a number", |value| value.as_f64().map(|n| n as f32))
    }

    pub fn bool(&self, key: &str, default: bool) -> Result<bool> {
        self.read_as(key, Some(default), "true or false", Value::as_bool)
    }

    pub fn str(&self, key: &str, default: Option<&'static str>) -> Result<&str> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (value, _) => value.and_then(Value::as_str).ok_or_else(|| self.refuse(key, "a string")),
        }
    }

    /// The entries of an object under a key.
    pub fn object(&self, key: &str) -> Result<&Map<String, Value>> {
        let value = self.get(key).and_then(Value::as_object);
        value.ok_or_else(|| self.refuse(key, "an object"))
    }

    /// The object under a key.
    pub fn child(&self, key: &str) -> Result<Json> {
        let object = self.object(key)?.clone();
        Ok(Json { what: format!("{}: {key}", self.what), object })
    }

    /// Refuses a switch that is not as it must be; without it, it is.
    pub fn expect_bool(&self, key: &str, expected: bool) -> Result<()> {
        if self.bool(key, expected)? == expected {
            return Ok(());
        }
        Err(self.refuse(key, expected.to_string()))
    }

    /// Refuses a part that no model of ours has.
    pub fn expect_none(&self, key: &str) -> Result<()> {
        if self.has(key) { Err(self.refuse(key, "null or nothing")) } else { Ok(()) }
    }
}

/// A value in a message, cut where it is long.
pub(super) fn short(value: &Value) -> String {
    let text = value.to_string();
    let cut: String = text.chars().take(60).collect();
    if cut.len() < text.len() { format!("{cut}...") } else { cut }
}
