//! The way out: a model of ours as a folder that transformers opens.

use serde_json::{Value, json};

/// The rule by which each character is a word.
pub(super) fn split() -> Value {
    json!({"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": false})
}
