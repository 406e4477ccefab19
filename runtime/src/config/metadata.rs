//! Typed reading of a model file's metadata.

use crate::error::{Error, Result};
use crate::ini::{alternatives, shown};

/// The values of a model file's metadata by key.
pub(super) struct Metadata<F>(pub F);

impl<'a, F: Fn(&str) -> Option<&'a str>> Metadata<F> {
    pub fn read<T>(
        &self,
        key: &str,
        expected: impl Fn() -> String,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        let text = (self.0)(key);
        text.and_then(parse).ok_or_else(|| Error::Format {
            what: format!("metadata key {key}"),
            found: text.map_or("nothing".to_owned(), shown),
            expected: expected(),
        })
    }

    /// Whether the key is there at all: those of later versions need not be.
    pub fn has(&self, key: &str) -> bool {
        (self.0)(key).is_some()
    }

    pub fn usize(&self, key: &str) -> Result<usize> {
        // `parse` alone would take a sign.
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let expected = || "a whole number".to_owned();
        self.read(key, expected, |text| text.parse().ok().filter(|_| digits(text)))
    }

    pub fn f32(&self, key: &str) -> Result<f32> {
        self.read(key, || "a number".to_owned(), |text| text.parse().ok())
    }

    pub fn bool(&self, key: &str) -> Result<bool> {
        self.read(key, || "true or false".to_owned(), |text| text.parse().ok())
    }

    pub fn one_of<T: Copy>(&self, key: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T> {
        let expected = || alternatives(&all.iter().map(|v| name(*v)).collect::<Vec<_>>());
        self.read(key, expected, |text| all.iter().copied().find(|value| name(*value) == text))
    }
}
