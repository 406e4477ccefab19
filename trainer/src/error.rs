//! The one error type of the crate.

use std::fmt;
use std::path::PathBuf;

/// Result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can stop a training run, or keep it from starting.
#[derive(Debug)]
pub enum Error {
    /// Configuration, data or the file format.
    Runtime(teeny_runtime::Error),
    /// Something that was asked for and cannot be had: an impossible request, a device or a group of
    /// processes that is not there or has been lost.
    Setup(String),
    /// Losses or gradients were not finite, however low the learning rate.
    NotFinite {
        /// Steps done.
        iteration: u64,
        /// What was left of the learning rate.
        lr_scale: f64,
        /// Where the best parameters so far are, if any were saved.
        best: Option<PathBuf>,
    },
    /// A checkpoint that is damaged or not ours.
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Runtime(error) => error.fmt(f),
            Error::Setup(message) => f.write_str(message),
            Error::NotFinite { iteration, lr_scale, best } => {
                write!(
                    f,
                    "after iteration {iteration} losses or gradients are not finite, even with \
                     {lr_scale} of the learning rate: training has diverged; "
                )?;
                match best {
                    Some(path) => write!(f, "the best parameters so far are in {}", path.display()),
                    None => write!(f, "nothing had been saved yet"),
                }?;
                write!(f, "; a smaller lr_max or grad_clip may help")
            }
            Error::Checkpoint { path, reason } => {
                write!(f, "checkpoint {}: {reason}", path.display())
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Runtime(error) => Some(error),
            Error::Setup(_) | Error::NotFinite { .. } | Error::Checkpoint { .. } => None,
        }
    }
}

impl From<teeny_runtime::Error> for Error {
    fn from(error: teeny_runtime::Error) -> Error {
        Error::Runtime(error)
    }
}
