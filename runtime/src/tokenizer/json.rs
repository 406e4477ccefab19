//! Reading fields of a JSON object that nobody vouches for.

use serde_json::Value;

use super::pieces::refuse;
use crate::error::{Error, Result};

/// A JSON object, and how messages call it.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    value: &'a Value,
    what: &'a str,
}

impl<'a> Fields<'a> {
    pub fn new(value: &'a Value, what: &'a str) -> Fields<'a> {
        Fields { value, what }
    }

    pub fn refuse(&self, found: String, expected: &str) -> Error {
        refuse(self.what, found, expected)
    }

    /// A field; `None` where it is not there or null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.value.get(name).filter(|value| !value.is_null())
    }

    pub fn text(&self, name: &str) -> Result<&'a str> {
        match self.get(name) {
            Some(Value::String(text)) => Ok(text),
            other => Err(self.wrong(name, other, "a string")),
        }
    }

    /// `true` or `false`; what is not there is false.
    pub fn flag(&self, name: &str) -> Result<bool> {
        match self.get(name) {
            Some(Value::Bool(flag)) => Ok(*flag),
            None => Ok(false),
            other => Err(self.wrong(name, other, "true or false")),
        }
    }

    /// A token's id, if it is there.
    pub fn id(&self, name: &str) -> Result<Option<u32>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok(Some(id)),
            None => Err(self.wrong(name, Some(value), "a token's id")),
        }
    }

    /// A list; what is not there is empty.
    pub fn list(&self, name: &str) -> Result<&'a [Value]> {
        match self.get(name) {
            Some(Value::Array(list)) => Ok(list),
            None => Ok(&[]),
            other => Err(self.wrong(name, other, "a list")),
        }
    }

    pub fn wrong(&self, name: &str, found: Option<&Value>, expected: &str) -> Error {
        let found = found.map_or("nothing".to_owned(), |value| {
            let text = value.to_string();
            let cut: String = text.chars().take(60).collect();
            if cut.len() < text.len() { format!("{cut}...") } else { cut }
        });
        self.refuse(format!("{name} {found}"), &format!("{name}, {expected}"))
    }
}
