//! Vocabularies that lie beside a model.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::json::{Json, file_name, read_text, read_value, short};
use super::{ImportOptions, refuse};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// The vocabulary of a folder of Hugging Face's.
pub(super) fn of_folder(folder: &Path, _config: &Json) -> Result<Tokenizer> {
    let file = folder.join("tokenizer.json");
    if file.exists() {
        let value = read_value(&file)?;
        if let Some(tokenizer) = characters(&value, &file_name(&file))? {
            return Ok(tokenizer);
        }
    }
    Err(refuse(
        &folder.display().to_string(),
        "no tokenizer.json and no tokenizer.model",
        "one of them",
    ))
}

/// The vocabulary of a checkpoint without one: `--tokenizer`, else the characters under the metadata key
/// `chars`.
pub(super) fn given(
    options: &ImportOptions,
    metadata: &BTreeMap<String, String>,
) -> Result<Tokenizer> {
    if let Some(file) = &options.tokenizer {
        let what = file_name(file);
        let value = read_value(file)?;
        if let Some(tokenizer) = characters(&value, &what)? {
            return Ok(tokenizer);
        }
        return Err(refuse(&what, short(&value), "a vocabulary"));
    }
    match metadata.get("chars") {
        Some(chars) => of_characters(chars, "metadata key chars"),
        None => Err(Error::Argument {
            name: "tokenizer",
            found: "nothing".to_owned(),
            expected: "--tokenizer with tokenizer.json or the characters as JSON, or the file's \
                       metadata chars"
                .to_owned(),
        }),
    }
}

/// Rows of an embedding that has at least one for each token. Checkpoints round their number up; rows
/// without a token are left out.
pub(super) fn n_rows(tokenizer: &Tokenizer, n_rows: usize) -> Result<usize> {
    if tokenizer.vocab_size() > n_rows {
        return Err(refuse(
            "vocabulary",
            format!("{} tokens", tokenizer.vocab_size()),
            format!("no more than the {n_rows} rows of the embedding"),
        ));
    }
    Ok(n_rows)
}

/// The characters that a JSON file lists in the order of their ids: as a string, as a list, under `chars`
/// or `itos`, by their ids under `stoi`, or as the words of a `tokenizer.json` of ours. None for
/// anything else.
fn characters(value: &Value, what: &str) -> Result<Option<Tokenizer>> {
    let by_id = |map: &serde_json::Map<String, Value>| -> Result<Tokenizer> {
        let mut ids = BTreeMap::new();
        for (text, id) in map {
            let Some(id) = id.as_u64() else {
                return Err(refuse(what, short(id), "an id for each character"));
            };
            ids.insert(id, text.as_str());
        }
        if ids.len() != map.len() || ids.keys().zip(0..).any(|(id, n)| *id != n) {
            return Err(refuse(what, "other ids", "those from 0 on, each once"));
        }
        one_each(ids.into_values(), what)
    };
    let tokenizer = match value {
        Value::String(chars) => of_characters(chars, what)?,
        Value::Array(list) => one_each(list.iter().map(|c| c.as_str().unwrap_or_default()), what)?,
        Value::Object(object) => {
            if let Some(chars @ (Value::String(_) | Value::Array(_))) = object.get("chars") {
                return characters(chars, what);
            }
            if let Some(Value::Object(stoi)) = object.get("stoi") {
                return by_id(stoi).map(Some);
            }
            match object.get("model") {
                Some(model) if model.get("type").is_some_and(|kind| kind == "WordLevel") => {
                    // Splitting at nothing makes each character a word.
                    let splits = object.get("pre_tokenizer") == Some(&super::to_hf::split());
                    match model.get("vocab") {
                        Some(Value::Object(vocab)) if splits => by_id(vocab)?,
                        _ => {
                            return Err(refuse(what, "words", "characters, BPE or Unigram"));
                        }
                    }
                }
                _ => return Ok(None),
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => return Ok(None),
    };
    Ok(Some(tokenizer))
}

fn one_each<'a>(texts: impl Iterator<Item = &'a str>, what: &str) -> Result<Tokenizer> {
    let mut chars = String::new();
    for text in texts {
        if text.chars().count() != 1 {
            return Err(refuse(what, format!("{text:?}"), "one character for each id"));
        }
        chars.push_str(text);
    }
    of_characters(&chars, what)
}

fn of_characters(chars: &str, what: &str) -> Result<Tokenizer> {
    let json = format!(r#"{{"type":"char","chars":{}}}"#, Value::from(chars));
    Tokenizer::from_json(&json).map_err(|error| match error {
        Error::Format { found, expected, .. } => refuse(what, found, expected),
        other => other,
    })
}

/// `tokenizer.bin` of llama2.c.
pub(super) fn of_llama2c(path: &Path, vocab_size: usize) -> Result<Tokenizer> {
    let _ = (path, vocab_size, read_text(path)?);
    Err(refuse("tokenizer.bin", "it", "not yet"))
}
