//! [`RopeScaling`]: how a model was made to read longer texts than it was first trained on.

use super::{Invalid, Metadata, limits};
use crate::error::Result;
use crate::ini::{Section, alternatives, range_text};

/// Keys of a scaling beside `rope_scaling` itself.
const FACTOR: &str = "rope_factor";
const LOW_FREQ_FACTOR: &str = "rope_low_freq_factor";
const HIGH_FREQ_FACTOR: &str = "rope_high_freq_factor";
const ORIGINAL_MAX_SEQ_LEN: &str = "rope_original_max_seq_len";

/// What a configuration says where frequencies are as `rope_theta` gives them.
const NONE: &str = "none";

/// What happens to the frequencies of RoPE, so that a model reads longer texts than those of its first
/// training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Every frequency is divided by `factor`, as if positions lay that much closer (arXiv:2306.15595).
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// Low frequencies are divided by `factor`, high ones stay, and those between go over from one to
    /// the other (Llama 3.1, `_compute_llama3_parameters` of transformers' `modeling_rope_utils`).
    Llama3 {
        /// At least 1.
        factor: f32,
        /// Frequencies are low that turn less often than this within the original context.
        low_freq_factor: f32,
        /// Frequencies are high that turn more often than this; above `low_freq_factor`.
        high_freq_factor: f32,
        /// Context of the first training in tokens.
        original_max_seq_len: usize,
    },
}

/// A kind of scaling, before its numbers are known.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Linear,
    Llama3,
}

impl Kind {
    const SPELLINGS: &[(&str, Option<Kind>)] =
        &[(NONE, None), ("linear", Some(Kind::Linear)), ("llama3", Some(Kind::Llama3))];
}

impl RopeScaling {
    /// Standard spelling, the one that a model file holds.
    pub fn name(self) -> &'static str {
        match self {
            RopeScaling::Linear { .. } => "linear",
            RopeScaling::Llama3 { .. } => "llama3",
        }
    }

    pub(super) fn check(self) -> std::result::Result<(), Invalid> {
        let number = |key, found: f32, limits: std::ops::RangeInclusive<f64>| {
            // The limits as f32, or some of them would lie outside of themselves.
            let range = *limits.start() as f32..=*limits.end() as f32;
            if range.contains(&found) {
                return Ok(());
            }
            let expected = format!("a number{}", range_text(&limits));
            Err(Invalid { key, found: found.to_string(), expected })
        };
        match self {
            RopeScaling::Linear { factor } => number(FACTOR, factor, limits::ROPE_FACTOR),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_seq_len,
            } => {
                number(FACTOR, factor, limits::ROPE_FACTOR)?;
                number(LOW_FREQ_FACTOR, low_freq_factor, limits::ROPE_FREQ_FACTOR)?;
                number(HIGH_FREQ_FACTOR, high_freq_factor, limits::ROPE_FREQ_FACTOR)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(Invalid {
                        key: HIGH_FREQ_FACTOR,
                        found: high_freq_factor.to_string(),
                        expected: format!("more than {LOW_FREQ_FACTOR} = {low_freq_factor}"),
                    });
                }
                let range = limits::MAX_SEQ_LEN;
                if !range.contains(&original_max_seq_len) {
                    return Err(Invalid {
                        key: ORIGINAL_MAX_SEQ_LEN,
                        found: original_max_seq_len.to_string(),
                        expected: format!(
                            "a whole number from {} to {}",
                            range.start(),
                            range.end()
                        ),
                    });
                }
                Ok(())
            }
        }
    }

    /// Keys and values as they stand in a model file.
    pub(super) fn to_metadata(self) -> Vec<(&'static str, String)> {
        let mut metadata = vec![("rope_scaling", self.name().to_owned())];
        match self {
            RopeScaling::Linear { factor } => metadata.push((FACTOR, factor.to_string())),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_seq_len,
            } => metadata.extend([
                (FACTOR, factor.to_string()),
                (LOW_FREQ_FACTOR, low_freq_factor.to_string()),
                (HIGH_FREQ_FACTOR, high_freq_factor.to_string()),
                (ORIGINAL_MAX_SEQ_LEN, original_max_seq_len.to_string()),
            ]),
        }
        metadata
    }

    /// What the metadata of a model file says; a file without `rope_scaling` has none.
    pub(super) fn from_metadata<'a, F: Fn(&str) -> Option<&'a str>>(
        metadata: &Metadata<F>,
    ) -> Result<Option<RopeScaling>> {
        if !metadata.has("rope_scaling") {
            return Ok(None);
        }
        let kind = metadata.read(
            "rope_scaling",
            || alternatives(&Kind::SPELLINGS.iter().map(|(name, _)| *name).collect::<Vec<_>>()),
            |text| Kind::SPELLINGS.iter().find(|(name, _)| *name == text).map(|(_, kind)| *kind),
        )?;
        Ok(match kind {
            None => None,
            Some(Kind::Linear) => Some(RopeScaling::Linear { factor: metadata.f32(FACTOR)? }),
            Some(Kind::Llama3) => Some(RopeScaling::Llama3 {
                factor: metadata.f32(FACTOR)?,
                low_freq_factor: metadata.f32(LOW_FREQ_FACTOR)?,
                high_freq_factor: metadata.f32(HIGH_FREQ_FACTOR)?,
                original_max_seq_len: metadata.usize(ORIGINAL_MAX_SEQ_LEN)?,
            }),
        })
    }

    /// What the section `[model]` says. Where the two frequency factors are not there, they are those
    /// of Llama 3.1; a number that the kind of scaling has no use for is refused.
    pub(super) fn from_section(s: &Section) -> Result<Option<RopeScaling>> {
        let kind = s.one_of("rope_scaling", Kind::SPELLINGS, None)?;
        let refuse = |keys: &[&str], expected: &str| {
            let stray = keys.iter().find_map(|key| Some((*key, s.raw(key)?)));
            stray.map_or(Ok(()), |(key, value)| Err(s.error(key, value, expected)))
        };
        let factor = |kind: &str| -> Result<f32> {
            s.require(FACTOR, &format!("a number with rope_scaling = {kind}"))?;
            Ok(s.f64(FACTOR, 1.0, limits::ROPE_FACTOR)? as f32)
        };
        match kind {
            None => {
                let numbers = [FACTOR, LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR, ORIGINAL_MAX_SEQ_LEN];
                refuse(&numbers, "rope_scaling = linear or llama3 with it")?;
                Ok(None)
            }
            Some(Kind::Linear) => {
                let numbers = [LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR, ORIGINAL_MAX_SEQ_LEN];
                refuse(&numbers, "rope_scaling = llama3 with it")?;
                Ok(Some(RopeScaling::Linear { factor: factor("linear")? }))
            }
            Some(Kind::Llama3) => {
                let factor = factor("llama3")?;
                s.require(ORIGINAL_MAX_SEQ_LEN, "a whole number with rope_scaling = llama3")?;
                let frequency = |key, default| s.f64(key, default, limits::ROPE_FREQ_FACTOR);
                Ok(Some(RopeScaling::Llama3 {
                    factor,
                    low_freq_factor: frequency(LOW_FREQ_FACTOR, 1.0)? as f32,
                    high_freq_factor: frequency(HIGH_FREQ_FACTOR, 4.0)? as f32,
                    original_max_seq_len: s.usize(ORIGINAL_MAX_SEQ_LEN, 1, limits::MAX_SEQ_LEN)?,
                }))
            }
        }
    }
}
