//! INI text to (section, key, value), and typed reading of keys.
//!
//! ```text
//! config.ini ──Ini::read──► Ini ◄──Ini::set── --set section.key=value
//!                            └──Ini::section(name, keys)──► Section ──► usize, f64, bool, one_of ...
//! ```
//!
//! The dialect is that of Python's configparser, where teenyGPT's files are at home: `key = value`
//! or `key: value`, names in any case, whole-line comments behind `#` or `;`. Three things differ:
//! a comment may also follow a value after a space; a value is one line; unknown sections and keys
//! are errors, each with its place and the nearest valid name.

use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::path::{Path, PathBuf};

use crate::error::{ConfigError, Error, Result};

/// One `key = value` of a file, or of an override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The section as written.
    pub section: String,
    /// The key as written.
    pub key: String,
    /// The value without comment and surrounding spaces.
    pub value: String,
    /// File and line, such as `config.ini:12`, or [`OVERRIDE`].
    pub place: String,
}

impl Entry {
    /// Whether [`Ini::set`] made the entry, and not the file.
    pub fn is_override(&self) -> bool {
        self.place == OVERRIDE
    }
}

/// Place of an entry that [`Ini::set`] made.
pub const OVERRIDE: &str = "--set";

/// The entries of one INI file, in order, then those of its overrides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ini {
    /// The file, for messages.
    pub path: PathBuf,
    entries: Vec<Entry>,
    /// Names of sections with their places, also of those without entries.
    sections: Vec<(String, String)>,
}

/// A key: its standard name, and names that other projects give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The name in documentation and in the typed readers of [`Section`].
    pub name: &'static str,
    /// Names that mean the same.
    pub aliases: &'static [&'static str],
}

impl Key {
    /// A key without aliases.
    pub const fn new(name: &'static str) -> Key {
        Key { name, aliases: &[] }
    }

    /// A key with aliases.
    pub const fn with_aliases(name: &'static str, aliases: &'static [&'static str]) -> Key {
        Key { name, aliases }
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    fn is(&self, written: &str) -> bool {
        self.names().any(|name| name.eq_ignore_ascii_case(written))
    }
}

impl Ini {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Config`] if it is not UTF-8, and whatever
    /// [`parse`](Self::parse) refuses.
    pub fn read(path: &Path) -> Result<Ini> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io {
            action: "cannot read configuration file",
            path: path.to_owned(),
            source,
        })?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let found = format!("byte 0x{:02x} at offset {at}", error.as_bytes()[at]);
            config_error(path.display().to_string(), "", "", found, "UTF-8 text", None)
        })?;
        Ini::parse(path, &text)
    }

    /// Reads text; `path` serves messages only.
    ///
    /// # Errors
    /// [`Error::Config`] for a line that is neither section nor `key = value`, a key before the
    /// first section, and a key that a section has twice.
    pub fn parse(path: &Path, text: &str) -> Result<Ini> {
        let mut ini = Ini { path: path.to_owned(), ..Ini::default() };
        let mut section = None;
        // A byte order mark is no part of the first line.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (line, number) in text.lines().zip(1..) {
            let line = strip_comment(line).trim();
            if line.is_empty() {
                continue;
            }
            let place = format!("{}:{number}", path.display());
            if let Some(rest) = line.strip_prefix('[') {
                let name = rest.strip_suffix(']').map(str::trim).filter(|name| !name.is_empty());
                let Some(name) = name else {
                    let expected = "a section such as [model]";
                    return Err(config_error(place, "", "", shown(line), expected, None));
                };
                ini.sections.push((name.to_owned(), place));
                section = Some(name.to_owned());
                continue;
            }
            let Some(section) = &section else {
                let expected = "a section such as [model] before the first key";
                return Err(config_error(place, "", "", shown(line), expected, None));
            };
            let split = line.split_once(['=', ':']).map(|(key, value)| (key.trim(), value.trim()));
            let Some((key, value)) = split.filter(|(key, _)| !key.is_empty()) else {
                return Err(config_error(place, section, "", shown(line), "key = value", None));
            };
            if let Some(first) = ini.find(section, key) {
                let found = format!("it a second time, after {}", first.place);
                return Err(config_error(place, section, key, found, "each key once", None));
            }
            ini.entries.push(Entry {
                section: section.clone(),
                key: key.to_owned(),
                value: value.to_owned(),
                place,
            });
        }
        Ok(ini)
    }

    /// Overrides a key by an assignment such as `model.n_layer=6`. It stands above the file's entry
    /// for the key, also where one of the two uses an alias, and above earlier overrides.
    ///
    /// # Errors
    /// [`Error::Config`] for any other form. Whether section and key are known turns out in
    /// [`check_sections`](Self::check_sections) and [`section`](Self::section).
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let parts = assignment.split_once('=').and_then(|(name, value)| {
            let (section, key) = name.split_once('.')?;
            Some([section.trim(), key.trim(), value.trim()])
        });
        let Some([section, key, value]) = parts.filter(|[s, k, _]| !s.is_empty() && !k.is_empty())
        else {
            let expected = "section.key=value, such as model.n_layer=6";
            let found = shown(assignment);
            return Err(config_error(OVERRIDE.to_owned(), "", "", found, expected, None));
        };
        self.sections.push((section.to_owned(), OVERRIDE.to_owned()));
        self.entries.push(Entry {
            section: section.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
            place: OVERRIDE.to_owned(),
        });
        Ok(())
    }

    fn find<'a>(&'a self, section: &'a str, key: &str) -> Option<&'a Entry> {
        self.section_entries(section).find(|entry| entry.key.eq_ignore_ascii_case(key))
    }

    /// The entries of a section in order, the overrides last.
    pub fn section_entries<'a>(&'a self, section: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.section.eq_ignore_ascii_case(section))
    }

    /// Refuses sections of unknown names.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first one.
    pub fn check_sections(&self, known: &[&str]) -> Result<()> {
        for (name, place) in &self.sections {
            if !known.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                return Err(config_error(
                    place.clone(),
                    name,
                    "",
                    "an unknown section".to_owned(),
                    &alternatives(known),
                    nearest(name, known.iter().copied()),
                ));
            }
        }
        Ok(())
    }

    /// The entries of a section by key. A section that the file lacks has none.
    ///
    /// # Errors
    /// [`Error::Config`] for a key that is unknown, or there twice under different names.
    pub fn section(&self, name: &'static str, keys: &'static [Key]) -> Result<Section> {
        self.resolve(name, keys, false)
    }

    /// As [`section`](Self::section), but for a reader that needs only these keys and leaves the
    /// others unread.
    ///
    /// # Errors
    /// [`Error::Config`] for a key that is there twice under different names.
    pub fn section_part(&self, name: &'static str, keys: &'static [Key]) -> Result<Section> {
        self.resolve(name, keys, true)
    }

    fn resolve(&self, name: &'static str, keys: &'static [Key], part: bool) -> Result<Section> {
        let mut found: Vec<(&'static str, Entry)> = Vec::new();
        for entry in self.section_entries(name) {
            let Some(key) = keys.iter().find(|key| key.is(&entry.key)) else {
                if part {
                    continue;
                }
                return Err(unknown_key(entry, name, keys));
            };
            match found.iter_mut().find(|(known, _)| *known == key.name) {
                None => found.push((key.name, entry.clone())),
                Some((_, first)) if entry.is_override() => *first = entry.clone(),
                Some((_, first)) => {
                    let found = format!("the key of {} under another name", first.place);
                    let expected = format!("either {} or {}", first.key, entry.key);
                    let place = entry.place.clone();
                    return Err(config_error(place, name, &entry.key, found, &expected, None));
                }
            }
        }
        Ok(Section { path: self.path.display().to_string(), name, keys, found })
    }
}

fn unknown_key(entry: &Entry, section: &str, keys: &[Key]) -> Error {
    let nearest = nearest(&entry.key, keys.iter().flat_map(Key::names));
    let expected = match nearest {
        Some(_) => format!("a key of [{section}]"),
        None => {
            let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
            format!("one of {}", alternatives(&names))
        }
    };
    let found = "an unknown key".to_owned();
    config_error(entry.place.clone(), section, &entry.key, found, &expected, nearest)
}

fn config_error(
    place: String,
    section: &str,
    key: &str,
    found: String,
    expected: &str,
    nearest: Option<&str>,
) -> Error {
    Error::Config(Box::new(ConfigError {
        place,
        section: section.to_owned(),
        key: key.to_owned(),
        found,
        expected: expected.to_owned(),
        nearest: nearest.map(str::to_owned),
    }))
}

/// The line up to a comment: behind `#` or `;` at its start or after white space.
fn strip_comment(line: &str) -> &str {
    let mut after_space = true;
    for (at, c) in line.char_indices() {
        if after_space && matches!(c, '#' | ';') {
            return &line[..at];
        }
        after_space = c.is_whitespace();
    }
    line
}

/// The entries of one section by key, with typed readers. Every reader takes the standard name of a
/// key; its errors name the key as the user wrote it, with file and line.
///
/// It owns what it holds, so that a configuration can keep it for errors that only show later, such
/// as a text that is too short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    path: String,
    name: &'static str,
    keys: &'static [Key],
    /// Standard name and entry of each key that is there.
    found: Vec<(&'static str, Entry)>,
}

impl Section {
    /// A section without entries, as if the file lacked it.
    pub fn empty(name: &'static str, keys: &'static [Key]) -> Section {
        Section { path: String::new(), name, keys, found: Vec::new() }
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        // A reader and its table of keys are written together: a key outside it is our mistake.
        debug_assert!(self.keys.iter().any(|known| known.name == key), "{key} is not in the table");
        self.found.iter().find(|(name, _)| *name == key).map(|(_, entry)| entry)
    }

    /// Whether the key is there, under any of its names.
    pub fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// The value of a key as written, if it is there.
    pub fn raw(&self, key: &str) -> Option<&str> {
        self.entry(key).map(|entry| entry.value.as_str())
    }

    /// Whether the key is there under an alias.
    pub fn uses_alias(&self, key: &str) -> bool {
        self.entry(key).is_some_and(|entry| !entry.key.eq_ignore_ascii_case(key))
    }

    /// An error about a key, for checks that the typed readers do not make. Without the key in the
    /// file it names the file alone.
    pub fn error(&self, key: &str, found: impl Into<String>, expected: impl Into<String>) -> Error {
        self.error_near(key, found.into(), &expected.into(), None)
    }

    fn error_near(&self, key: &str, found: String, expected: &str, near: Option<&str>) -> Error {
        // Without a file, the values come from a program.
        let path = if self.path.is_empty() { "configuration" } else { &self.path };
        let entry = self.found.iter().find(|(name, _)| *name == key).map(|(_, entry)| entry);
        let place = entry.map_or(path, |entry| &entry.place).to_owned();
        let key = entry.map_or(key, |entry| &entry.key);
        config_error(place, self.name, key, found, expected, near)
    }

    fn wrong(&self, key: &str, value: &str, expected: &str) -> Error {
        self.error_near(key, shown(value), expected, None)
    }

    /// Refuses a section without the key.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn require(&self, key: &str, expected: &str) -> Result<()> {
        if self.has(key) { Ok(()) } else { Err(self.error(key, "nothing", expected)) }
    }

    /// Text that is not empty.
    ///
    /// # Errors
    /// [`Error::Config`] for an empty value.
    pub fn string(&self, key: &str, default: &str) -> Result<String> {
        match self.raw(key) {
            Some("") => Err(self.wrong(key, "", "a value")),
            value => Ok(value.unwrap_or(default).to_owned()),
        }
    }

    /// Text, or `None` if the key is not there or its value is empty.
    pub fn optional(&self, key: &str) -> Option<String> {
        self.raw(key).filter(|value| !value.is_empty()).map(str::to_owned)
    }

    /// A whole number in digits; underscores may group them.
    ///
    /// # Errors
    /// [`Error::Config`] for anything else, and out of range.
    pub fn usize(&self, key: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        let Some(value) = self.raw(key) else { return Ok(default) };
        let number = whole_number(value).and_then(|n| usize::try_from(n).ok());
        number.filter(|n| range.contains(n)).ok_or_else(|| {
            let expected = if *range.end() == usize::MAX {
                format!("a whole number of at least {}", range.start())
            } else {
                format!("a whole number from {} to {}", range.start(), range.end())
            };
            self.wrong(key, value, &expected)
        })
    }

    /// A whole number of 64 bits, such as a seed.
    ///
    /// # Errors
    /// [`Error::Config`] for anything else.
    pub fn u64(&self, key: &str, default: u64) -> Result<u64> {
        let Some(value) = self.raw(key) else { return Ok(default) };
        let expected = format!("a whole number from 0 to {}", u64::MAX);
        whole_number(value).ok_or_else(|| self.wrong(key, value, &expected))
    }

    /// A finite number, such as `0.1` or `1e-3`.
    ///
    /// # Errors
    /// [`Error::Config`] for anything else, and out of range.
    pub fn f64(&self, key: &str, default: f64, range: impl RangeBounds<f64>) -> Result<f64> {
        let Some(value) = self.raw(key) else { return Ok(default) };
        number(value, &range)
            .ok_or_else(|| self.wrong(key, value, &format!("a number{}", range_text(&range))))
    }

    /// `N` finite numbers with commas between them, such as `0.9, 0.95` or `[0.9, 0.95]`.
    ///
    /// # Errors
    /// [`Error::Config`] for anything else, another count, and out of range.
    pub fn f64_list<const N: usize>(
        &self,
        key: &str,
        default: [f64; N],
        range: impl RangeBounds<f64>,
    ) -> Result<[f64; N]> {
        let Some(value) = self.raw(key) else { return Ok(default) };
        let inner = match value.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']'),
            None => Some(value),
        };
        let numbers: Option<Vec<f64>> = inner
            .and_then(|inner| inner.split(',').map(|part| number(part.trim(), &range)).collect());
        numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| {
            let each = match range_text(&range) {
                text if text.is_empty() => text,
                text => format!(", each{text}"),
            };
            self.wrong(key, value, &format!("{N} numbers with commas between them{each}"))
        })
    }

    /// `true`, `yes`, `on` or `1`; `false`, `no`, `off` or `0`.
    ///
    /// # Errors
    /// [`Error::Config`] for anything else.
    pub fn bool(&self, key: &str, default: bool) -> Result<bool> {
        const SPELLINGS: &[(&str, bool)] = &[
            ("true", true),
            ("false", false),
            ("yes", true),
            ("no", false),
            ("on", true),
            ("off", false),
            ("1", true),
            ("0", false),
        ];
        self.one_of(key, SPELLINGS, default)
    }

    /// One of a table's spellings in any case. Messages list the first spelling of each value.
    ///
    /// # Errors
    /// [`Error::Config`] for anything else, with the nearest spelling.
    pub fn one_of<T: Copy + PartialEq>(
        &self,
        key: &str,
        spellings: &[(&str, T)],
        default: T,
    ) -> Result<T> {
        let Some(value) = self.raw(key) else { return Ok(default) };
        if let Some((_, found)) = spellings.iter().find(|(s, _)| s.eq_ignore_ascii_case(value)) {
            return Ok(*found);
        }
        let first =
            |(i, (_, v)): &(usize, &(&str, T))| !spellings[..*i].iter().any(|(_, w)| w == v);
        let names: Vec<&str> = spellings
            .iter()
            .enumerate()
            .filter(first)
            .map(|(_, (spelling, _))| *spelling)
            .collect();
        let near = nearest(value, spellings.iter().map(|(spelling, _)| *spelling));
        Err(self.error_near(key, shown(value), &alternatives(&names), near))
    }
}

/// Digits, perhaps grouped by single underscores.
fn whole_number(text: &str) -> Option<u64> {
    let grouped = text.split('_').all(|g| !g.is_empty() && g.bytes().all(|b| b.is_ascii_digit()));
    if grouped { text.replace('_', "").parse().ok() } else { None }
}

fn number(text: &str, range: &impl RangeBounds<f64>) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite() && range.contains(number))
}

/// A range in words, with a space before them; nothing for all numbers.
pub(crate) fn range_text(range: &impl RangeBounds<f64>) -> String {
    // Small and large numbers as people write them: 1e-12, not 0.000000000001.
    let show = |n: &f64| {
        let plain = *n == 0.0 || (1e-4..1e6).contains(&n.abs());
        if plain { format!("{n}") } else { format!("{n:e}") }
    };
    match (range.start_bound(), range.end_bound()) {
        (Bound::Included(a), Bound::Included(b)) => format!(" from {} to {}", show(a), show(b)),
        (Bound::Included(a), Bound::Excluded(b)) => {
            format!(" from {} and below {}", show(a), show(b))
        }
        (Bound::Included(a), Bound::Unbounded) => format!(" of at least {}", show(a)),
        (Bound::Excluded(a), Bound::Included(b)) => {
            format!(" above {} and up to {}", show(a), show(b))
        }
        (Bound::Excluded(a), Bound::Excluded(b)) => {
            format!(" above {} and below {}", show(a), show(b))
        }
        (Bound::Excluded(a), Bound::Unbounded) => format!(" above {}", show(a)),
        (Bound::Unbounded, Bound::Included(b)) => format!(" up to {}", show(b)),
        (Bound::Unbounded, Bound::Excluded(b)) => format!(" below {}", show(b)),
        (Bound::Unbounded, Bound::Unbounded) => String::new(),
    }
}

/// A value as a message shows it: numbers as they are, other text in quotes, long text cut.
pub(crate) fn shown(value: &str) -> String {
    if value.is_empty() {
        return "nothing".to_owned();
    }
    let cut: String = value.chars().take(60).collect();
    let dots = if cut.len() < value.len() { "..." } else { "" };
    if value.parse::<f64>().is_ok() { format!("{cut}{dots}") } else { format!("{cut:?}{dots}") }
}

/// `a, b or c`.
pub(crate) fn alternatives(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// The candidate that a typing error most likely stands for, the first of equally near ones. None
/// if no candidate is near: two edits, or one for every three characters of a longer name.
pub fn nearest<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let found: Vec<char> = found.to_ascii_lowercase().chars().collect();
    // Nobody mistypes a key by that much, and the distance takes time with the length.
    if found.len() > 64 {
        return None;
    }
    let near = candidates.into_iter().filter_map(|candidate| {
        let chars: Vec<char> = candidate.to_ascii_lowercase().chars().collect();
        let distance = edit_distance(&found, &chars);
        let shared = distance < found.len() && distance < chars.len();
        (shared && distance <= (found.len() / 3).max(2)).then_some((distance, candidate))
    });
    near.min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// Levenshtein's: how many characters to insert, delete or replace to get from `a` to `b`.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
