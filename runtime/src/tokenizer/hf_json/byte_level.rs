//! BPE over bytes.

use std::collections::HashMap;

use serde_json::Value;

use super::super::bpe::{Bpe, BpeParts, LLAMA3_REGEX, Pattern, byte_characters};
use super::super::json::Fields;
use super::{Parts, kind, steps};
use crate::error::Result;

/// The regular expressions that a `Split` may have.
const REGEXES: [(&str, Pattern); 2] = [
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", Pattern::Gpt2),
    (LLAMA3_REGEX, Pattern::Llama3),
];

pub(super) fn read(parts: Parts<'_>) -> Result<Bpe> {
    let Parts { file, model, vocab, added, specials } = parts;
    for name in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        if let Some(value) = model.get(name).filter(|value| value.as_str() != Some("")) {
            return Err(model.wrong(name, Some(value), "none"));
        }
    }
    if model.flag("byte_fallback")? {
        return Err(model.refuse("byte_fallback true".to_owned(), "it false over bytes"));
    }
    if let Some(normalizer) = file.get("normalizer") {
        return Err(file.wrong("normalizer", Some(normalizer), "none over bytes"));
    }
    let alphabet: HashMap<char, u8> = byte_characters().into_iter().zip(0..=u8::MAX).collect();
    let merges = vocab.merges(&model)?;
    Bpe::new(BpeParts {
        tokens: vocab.texts.iter().map(|text| bytes(text, &alphabet)).collect(),
        merges,
        pattern: pattern(&file)?,
        ignore_merges: model.flag("ignore_merges")?,
        added,
        specials,
    })
}

fn pattern(file: &Fields<'_>) -> Result<Pattern> {
    let pre_tokenizer = file.get("pre_tokenizer");
    let steps = pre_tokenizer.map(steps).unwrap_or_default();
    let pattern = match steps.as_slice() {
        [bytes] if is_bytes(bytes, true) => Some(Pattern::Gpt2),
        [digits, bytes] if is_digits(digits) && is_bytes(bytes, true) => Some(Pattern::SmolLm),
        [split, bytes] if is_bytes(bytes, false) => split_pattern(split),
        _ => None,
    };
    let expected = "the pre-tokenizer of GPT-2, Llama 3 or SmolLM";
    pattern.ok_or_else(|| file.wrong("pre_tokenizer", pre_tokenizer, expected))
}

fn is(part: &Value, name: &str, value: bool) -> bool {
    part.get(name).and_then(Value::as_bool) == Some(value)
}

/// `regex`: whether it cuts text as GPT-2 does, the default where it says nothing.
fn is_bytes(part: &Value, regex: bool) -> bool {
    let silent = part.get("use_regex").is_none() && regex;
    kind(part) == "ByteLevel"
        && is(part, "add_prefix_space", false)
        && (silent || is(part, "use_regex", regex))
}

fn is_digits(part: &Value) -> bool {
    kind(part) == "Digits" && is(part, "individual_digits", true)
}

fn split_pattern(part: &Value) -> Option<Pattern> {
    let is_split = kind(part) == "Split"
        && part.get("behavior").and_then(Value::as_str) == Some("Isolated")
        && is(part, "invert", false);
    let regex = part.get("pattern")?.get("Regex")?.as_str()?;
    let found = REGEXES.iter().find(|(known, _)| *known == regex)?;
    is_split.then_some(found.1)
}

/// The bytes that a token decodes to: those of its characters, or of the text if a character is none
/// that stands for a byte.
fn bytes(text: &str, alphabet: &HashMap<char, u8>) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = text.chars().map(|c| alphabet.get(&c).copied()).collect();
    bytes.unwrap_or_else(|| text.as_bytes().to_vec())
}
