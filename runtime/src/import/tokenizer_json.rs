//! A tokenizer of ours as `tokenizer.json` and `tokenizer_config.json`, from what a model file holds of it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::refuse;
use crate::error::Result;
use crate::tokenizer::bpe::{LLAMA3_REGEX, byte_characters};
use crate::tokenizer::tables::names;
use crate::tokenizer::{CharTokenizer, Pattern, PieceKind, Specials, Table, Tokenizer};

/// SentencePiece's mark of a space.
const SPACE: &str = "\u{2581}";

/// Both files of a tokenizer.
///
/// # Errors
/// Naming what of it the library `tokenizers` cannot do, or does otherwise.
pub(super) fn files(tokenizer: &Tokenizer) -> Result<(Value, Value)> {
    let json: Value = serde_json::from_str(&tokenizer.to_json())
        .map_err(|error| refuse("tokenizer", error.to_string(), "JSON"))?;
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
    });
    let mut file = match tokenizer {
        Tokenizer::Char(tokenizer) => return Ok((characters(tokenizer), config)),
        Tokenizer::Bpe(_) => byte_level(&Parts::new(tokenizer, &json)?)?,
        Tokenizer::SentencePiece(_) => pieces(&Parts::new(tokenizer, &json)?)?,
    };
    let texts = Parts::new(tokenizer, &json)?.texts;
    let text = |id: u32| texts.get(id as usize).cloned().unwrap_or_default();
    if let Some(Specials { bos, eos, add_bos }) = tokenizer.specials() {
        if let Some(bos) = bos {
            config["bos_token"] = text(*bos).into();
            config["add_bos_token"] = (*add_bos).into();
        }
        if let Some(eos) = eos.first() {
            config["eos_token"] = text(*eos).into();
        }
        if let (Some(bos), true) = (bos, *add_bos) {
            file["post_processor"] = in_front(*bos, &text(*bos));
        }
    }
    Ok((file, config))
}

/// The rule by which each character is a word.
pub(super) fn split() -> Value {
    json!({"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": false})
}

/// Each character a word. What is no character of the vocabulary is an error there too, as there is no
/// token for it.
fn characters(tokenizer: &CharTokenizer) -> Value {
    let chars = tokenizer.chars().chars().zip(0u32..);
    let vocab: Map<_, _> = chars.map(|(c, id)| (c.to_string(), id.into())).collect();
    let model = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"});
    whole(model, Value::Null, split(), json!({"type": "Fuse"}), Value::Array(Vec::new()))
}

fn whole(
    model: Value,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    added: Value,
) -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": decoder,
        "model": model,
    })
}

/// Puts a token in front of every text.
fn in_front(id: u32, text: &str) -> Value {
    let first = json!({"SpecialToken": {"id": text, "type_id": 0}});
    json!({
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            first,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 0}},
        ],
        "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}},
    })
}

/// A tokenizer as a model file has it.
struct Parts<'a> {
    json: &'a Value,
    tables: Vec<Table<'a>>,
    /// What stands for each token in the file; nothing for ids without a token. (vocab_size)
    texts: Vec<String>,
    added: Vec<Value>,
}

impl<'a> Parts<'a> {
    fn new(tokenizer: &'a Tokenizer, json: &'a Value) -> Result<Parts<'a>> {
        let is_bytes = json["type"] == "bpe";
        let mut parts =
            Parts { json, tables: tokenizer.tables(), texts: Vec::new(), added: Vec::new() };
        let character = byte_characters();
        let bytes = parts.table(names::PIECES);
        let mut from = 0;
        let mut texts = Vec::new();
        for end in numbers(parts.table(names::ENDS)) {
            let piece = bytes.get(from..end as usize).unwrap_or_default();
            from = end as usize;
            texts.push(if is_bytes {
                piece.iter().map(|byte| character[*byte as usize]).collect()
            } else {
                String::from_utf8_lossy(piece).into_owned()
            });
        }
        for token in json["added"].as_array().into_iter().flatten() {
            let (id, content) = (token["id"].as_u64(), token["content"].as_str());
            let (Some(id), Some(content)) = (id, content) else { continue };
            if let Some(text) = texts.get_mut(id as usize) {
                content.clone_into(text);
            }
            let flag = |name: &str| token[name] == true;
            parts.added.push(json!({
                "id": id,
                "content": content,
                "single_word": false,
                "lstrip": flag("lstrip"),
                "rstrip": flag("rstrip"),
                "normalized": flag("normalized"),
                "special": flag("special"),
            }));
        }
        parts.texts = texts;
        Ok(parts)
    }

    fn table(&self, name: &str) -> &[u8] {
        let table = self.tables.iter().find(|table| table.name == name);
        table.map_or(&[], |table| &table.bytes)
    }

    /// The ids of all texts.
    fn vocab(&self) -> Result<Map<String, Value>> {
        let mut vocab = Map::new();
        for (id, text) in self.texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
            if vocab.insert(text.clone(), id.into()).is_some() {
                return Err(refuse("tokenizer", format!("the token {text:?} twice"), "each once"));
            }
        }
        Ok(vocab)
    }

    /// The list of merges, as pairs of texts.
    fn merges(&self) -> Vec<Value> {
        let text = |id: u32| self.texts.get(id as usize).cloned().unwrap_or_default();
        let ids: Vec<u32> = numbers(self.table(names::MERGES)).collect();
        let (rows, _) = ids.as_chunks::<3>();
        rows.iter().map(|[left, right, _]| json!([text(*left), text(*right)])).collect()
    }

    fn expect(&self, name: &str, expected: Value) -> Result<()> {
        let found = &self.json[name];
        if *found == expected {
            return Ok(());
        }
        let expected = format!("{expected}: tokenizers has no such rule");
        Err(refuse(&format!("tokenizer: {name}"), found.to_string(), expected))
    }
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
}

fn byte_level(parts: &Parts<'_>) -> Result<Value> {
    let bytes = |regex: bool| {
        json!({
            "type": "ByteLevel",
            "add_prefix_space": false,
            "trim_offsets": true,
            "use_regex": regex,
        })
    };
    let sequence =
        |first: Value, then: Value| json!({"type": "Sequence", "pretokenizers": [first, then]});
    let name = &parts.json["pattern"];
    let pattern = [Pattern::Gpt2, Pattern::Llama3, Pattern::SmolLm];
    let pattern = pattern.into_iter().find(|pattern| name == pattern.name());
    let pre_tokenizer = match pattern {
        Some(Pattern::Gpt2) => bytes(true),
        Some(Pattern::SmolLm) => {
            sequence(json!({"type": "Digits", "individual_digits": true}), bytes(true))
        }
        Some(Pattern::Llama3) => {
            let split = json!({
                "type": "Split",
                "pattern": {"Regex": LLAMA3_REGEX},
                "behavior": "Isolated",
                "invert": false,
            });
            sequence(split, bytes(false))
        }
        None => return Err(refuse("tokenizer: pattern", name.to_string(), "a pattern")),
    };
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": parts.json["ignore_merges"],
        "vocab": parts.vocab()?,
        "merges": parts.merges(),
    });
    Ok(whole(model, Value::Null, pre_tokenizer, bytes(true), parts.added.clone().into()))
}

/// SentencePiece's BPE, as transformers converts it.
fn pieces(parts: &Parts<'_>) -> Result<Value> {
    parts.expect("model", "bpe".into())?;
    parts.expect("byte_fallback", true.into())?;
    parts.expect("remove_extra_whitespaces", false.into())?;
    parts.expect("escape_whitespaces", true.into())?;
    parts.expect("treat_whitespace_as_suffix", false.into())?;
    if !parts.table(names::CHARSMAP).is_empty() {
        return Err(refuse(
            "tokenizer: charsmap",
            "rules",
            "none: tokenizers applies them otherwise",
        ));
    }
    if !parts.json["metaspace"].is_null() {
        return Err(refuse(
            "tokenizer",
            "rules for spaces of a tokenizer.json",
            "those of SentencePiece: keep that tokenizer.json",
        ));
    }
    let kinds = parts.table(names::KINDS);
    let of_kind = |kind: PieceKind| kinds.iter().position(|found| *found == kind as u8);
    let unknown = of_kind(PieceKind::Unknown).and_then(|id| parts.texts.get(id));
    let mut merges = parts.merges();
    if merges.is_empty() {
        merges = merges_of_scores(parts, kinds)?;
    }
    let mut added = parts.added.clone();
    let marks = kinds.iter().enumerate().filter(|(_, kind)| {
        [PieceKind::Unknown, PieceKind::Control].iter().any(|mark| **kind == *mark as u8)
    });
    for (id, _) in marks {
        if !added.iter().any(|token| token["id"] == id) {
            added.push(json!({
                "id": id,
                "content": parts.texts[id],
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": true,
            }));
        }
    }
    added.sort_by_key(|token| token["id"].as_u64());
    let escape = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let unescape = json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "});
    let (mut normalizers, mut decoders) =
        (Vec::new(), vec![unescape, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})]);
    if parts.json["add_dummy_prefix"] == true {
        normalizers.push(json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    normalizers.push(escape);
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": true,
        "ignore_merges": false,
        "vocab": parts.vocab()?,
        "merges": merges,
    });
    let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
    let decoder = json!({"type": "Sequence", "decoders": decoders});
    Ok(whole(model, normalizer, Value::Null, decoder, added.into()))
}

/// Every pair of pieces that makes a third, the ones with the highest score first.
fn merges_of_scores(parts: &Parts<'_>, kinds: &[u8]) -> Result<Vec<Value>> {
    let scores: Vec<f32> = numbers(parts.table(names::SCORES)).map(f32::from_bits).collect();
    let is_text = |id: &usize| {
        let kind = kinds.get(*id).copied().unwrap_or_default();
        [PieceKind::Normal, PieceKind::UserDefined].iter().any(|text| kind == *text as u8)
    };
    let ids = (0..parts.texts.len()).filter(is_text);
    let ids: HashMap<&str, usize> = ids.map(|id| (parts.texts[id].as_str(), id)).collect();
    let mut merges = Vec::new();
    for (text, id) in &ids {
        // There, a character without a piece is bytes before anything is merged.
        let mut characters = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
        if let Some(missing) = characters.find(|c| !ids.contains_key(c)) {
            let found = format!("{text:?} without a piece {missing:?}");
            return Err(refuse("tokenizer", found, "a piece for each character of a piece"));
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(first), Some(second)) = (ids.get(left), ids.get(right)) {
                let score = scores.get(*id).copied().unwrap_or_default();
                merges.push((score, *first, *second, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    Ok(merges.into_iter().map(|(.., left, right)| json!([left, right])).collect())
}
