//! The one error type of the crate: every message names the thing, what was found and what was
//! expected.

use std::fmt;
use std::path::PathBuf;

/// Result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong, each kind with what a user needs to put it right.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    Io {
        /// What was being done, as in "cannot open model file".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A configuration file or an override of it is wrong.
    Config(Box<ConfigError>),
    /// A model file is damaged, foreign or contradicts itself.
    Format {
        /// The tensor, metadata key or part of the file.
        what: String,
        /// What was found there.
        found: String,
        /// What the format asks for (`runtime/FORMAT.md`).
        expected: String,
    },
    /// A saved session is damaged, or is none.
    State {
        /// The part of it.
        what: String,
        /// What was found there.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A saved session belongs to another model.
    OtherModel,
    /// Text or tokens that the vocabulary does not cover.
    Tokenizer(String),
    /// The context is full and the overflow policy is `error`.
    ContextFull {
        /// Tokens that the context holds.
        max_seq_len: usize,
        /// Tokens that were to be held.
        requested: usize,
    },
    /// An argument that cannot work, such as a token id outside the vocabulary.
    Argument {
        /// The argument's name.
        name: &'static str,
        /// What was given.
        found: String,
        /// What may be given.
        expected: String,
    },
    /// Memory could not be allocated.
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// How much was asked for.
        bytes: usize,
    },
    /// A device that is not there, or that cannot run this model.
    NoDevice {
        /// The device, such as `cuda:0`.
        device: String,
        /// What is in the way.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// A device failed while it was in use.
    Device {
        /// The device, such as `cuda:0`.
        device: String,
        /// What was being done.
        action: &'static str,
        /// What the driver said.
        message: String,
    },
    /// The caller asked to stop.
    Cancelled,
}

/// What is wrong with a configuration. Boxed, so that results stay small where all goes well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// File and line as a user would look them up, such as `config.ini:12`.
    pub place: String,
    /// The section, such as `model`; empty for a line outside of any.
    pub section: String,
    /// The key, such as `n_layer`; empty where the section itself is wrong.
    pub key: String,
    /// What stands there.
    pub found: String,
    /// What may stand there.
    pub expected: String,
    /// The valid key or value nearest to what was found.
    pub nearest: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConfigError { place, section, key, found, expected, nearest } = self;
        write!(f, "{place}:")?;
        if !section.is_empty() {
            let space = if key.is_empty() { "" } else { " " };
            write!(f, " [{section}]{space}{key}:")?;
        }
        write!(f, " found {found}, expected {expected}")?;
        if let Some(nearest) = nearest {
            write!(f, " (did you mean {nearest}?)")?;
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { action, path, source } => {
                write!(f, "{action} {}: {source}", path.display())
            }
            Error::Config(error) => error.fmt(f),
            Error::Format { what, found, expected } => {
                write!(f, "model file: {what}: found {found}, expected {expected}")
            }
            Error::State { what, found, expected } => {
                write!(f, "saved session: {what}: found {found}, expected {expected}")
            }
            Error::OtherModel => f.write_str(
                "saved session: found one of another model, expected one that this model has made",
            ),
            Error::Tokenizer(message) => write!(f, "tokenizer: {message}"),
            Error::ContextFull { max_seq_len, requested } => write!(
                f,
                "context full: {requested} tokens do not fit in max_seq_len = {max_seq_len}"
            ),
            Error::Argument { name, found, expected } => {
                write!(f, "{name}: found {found}, expected {expected}")
            }
            Error::OutOfMemory { what, bytes } => {
                write!(f, "out of memory: cannot allocate {bytes} bytes for {what}")
            }
            Error::NoDevice { device, found, expected } => {
                write!(f, "device {device}: found {found}, expected {expected}")
            }
            Error::Device { device, action, message } => {
                write!(f, "device {device}: cannot {action}: {message}")
            }
            Error::Cancelled => f.write_str("cancelled"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            Error::Config(_)
            | Error::Format { .. }
            | Error::State { .. }
            | Error::OtherModel
            | Error::Tokenizer(_)
            | Error::ContextFull { .. }
            | Error::Argument { .. }
            | Error::OutOfMemory { .. }
            | Error::NoDevice { .. }
            | Error::Device { .. }
            | Error::Cancelled => None,
        }
    }
}
