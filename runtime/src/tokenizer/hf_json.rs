//! Reading `tokenizer.json` of the library `tokenizers`, and `tokenizer_config.json` beside it.
//!
//! | file | holds |
//! |---|---|
//! | `hf_json.rs` | the parts that all kinds have: vocabulary, added tokens, first and last token |
//! | `byte_level.rs` | BPE over bytes: GPT-2, Llama 3, SmolLM |
//! | `metaspace.rs` | what SentencePiece models are converted to: Llama 2, T5 |
//!
//! What is read works as the library does; what cannot be is refused by name. Padding and truncation,
//! which are about batches, are left out, and so are tokens that a template puts behind the text, which
//! is to go on. In two things SentencePiece is followed, not its conversion: the
//! compiled rules of a `Precompiled` normaliser apply wherever they fit, not only to a letter with all its
//! marks, and special pieces are never found in plain text. Scores are rounded to single precision, which
//! those of SentencePiece have.

mod byte_level;
mod metaspace;

use std::collections::HashMap;

use serde_json::Value;

use super::Tokenizer;
use super::json::Fields;
use super::specials::{AddedToken, Specials};
use crate::error::{Error, Result};

/// Names of tokens that end a text, where nothing says which one does.
const ENDS: [&str; 4] = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>"];

impl Tokenizer {
    /// Reads `tokenizer.json`, and what `tokenizer_config.json` says of the first and the last token.
    /// `vocab_size`: that of the model, which may be larger; the ids beyond stand for nothing.
    ///
    /// # Errors
    /// [`Error::Format`] for a file that is damaged or whose parts are none of those that can be
    /// read: byte-level BPE with the patterns of [`Pattern`](super::Pattern), and BPE and Unigram with
    /// spaces as U+2581.
    pub fn from_hf_json(
        json: &str,
        config: Option<&str>,
        vocab_size: Option<usize>,
    ) -> Result<Tokenizer> {
        let json = parse(json, "tokenizer.json")?;
        let file = Fields::new(&json, "tokenizer.json");
        let config = config.map(|config| parse(config, "tokenizer_config.json")).transpose()?;
        let Some(model) = file.get("model") else {
            return Err(file.wrong("model", None, "a model"));
        };
        let model = Fields::new(model, "tokenizer.json: model");
        let kind = match model.get("type") {
            // Old files do not say.
            None if model.get("merges").is_some() => "BPE",
            None => "none",
            Some(_) => model.text("type")?,
        };
        if !["BPE", "Unigram"].contains(&kind) {
            return Err(model.refuse(format!("type {}", crate::ini::shown(kind)), "BPE or Unigram"));
        }
        let mut vocab = Vocab::new(kind, &model)?;
        let added = vocab.add(file.list("added_tokens")?)?;
        vocab.pad(vocab_size)?;
        let specials = specials(&file, config.as_ref(), &vocab)?;
        let parts = Parts { file, model, vocab, added, specials };
        match kind {
            "BPE" if is_byte_level(&file) => byte_level::read(parts).map(Tokenizer::Bpe),
            _ => metaspace::read(kind, parts).map(Tokenizer::SentencePiece),
        }
    }
}

/// What all kinds have.
struct Parts<'a> {
    file: Fields<'a>,
    model: Fields<'a>,
    vocab: Vocab<'a>,
    added: Vec<AddedToken>,
    specials: Specials,
}

fn parse(text: &str, what: &str) -> Result<Value> {
    serde_json::from_str(text)
        .map_err(|error| super::pieces::refuse(what, format!("no JSON: {error}"), "a JSON object"))
}

/// Whether the decoder turns characters into bytes.
fn is_byte_level(file: &Fields<'_>) -> bool {
    let decoders = file.get("decoder").map(steps).unwrap_or_default();
    decoders.iter().any(|decoder| kind(decoder) == "ByteLevel")
}

/// A part of the pipeline, or the parts of a `Sequence`.
fn steps(part: &Value) -> Vec<&Value> {
    let lists = ["normalizers", "pretokenizers", "processors", "decoders"];
    match lists.iter().find_map(|list| part.get(list)).and_then(Value::as_array) {
        Some(list) if kind(part) == "Sequence" => list.iter().collect(),
        Some(_) | None => vec![part],
    }
}

fn kind(part: &Value) -> &str {
    part.get("type").and_then(Value::as_str).unwrap_or("")
}

/// Text and score of every token, by their ids.
struct Vocab<'a> {
    /// Empty for ids that stand for nothing.
    texts: Vec<&'a str>,
    scores: Vec<f64>,
    ids: HashMap<&'a str, u32>,
}

impl<'a> Vocab<'a> {
    /// The vocabulary of the model itself.
    fn new(kind: &str, model: &Fields<'a>) -> Result<Vocab<'a>> {
        let mut vocab = Vocab { texts: Vec::new(), scores: Vec::new(), ids: HashMap::new() };
        match model.get("vocab") {
            Some(Value::Object(map)) if kind == "BPE" => {
                for (text, id) in map {
                    let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                    // As many ids again may be left out, so that no number fills the memory.
                    let id = id.filter(|id| (*id as usize) < 2 * map.len() + 1000);
                    let Some(id) = id else {
                        let found = format!("vocab with {text:?} without a usual id");
                        return Err(model.refuse(found, "ids from 0 on"));
                    };
                    vocab.put(text, id, 0.0)?;
                }
            }
            Some(Value::Array(list)) if kind == "Unigram" => {
                for (entry, id) in list.iter().zip(0..) {
                    let pair = entry.as_array().map(Vec::as_slice);
                    let Some([Value::String(text), Value::Number(score)]) = pair else {
                        return Err(model.wrong("vocab", Some(entry), "pairs of text and score"));
                    };
                    vocab.put(text, id, score.as_f64().unwrap_or(f64::NAN))?;
                }
            }
            other => return Err(model.wrong("vocab", other, "a vocabulary")),
        }
        Ok(vocab)
    }

    fn put(&mut self, text: &'a str, id: u32, score: f64) -> Result<()> {
        let at = id as usize;
        if self.texts.len() <= at {
            self.texts.resize(at + 1, "");
            self.scores.resize(at + 1, 0.0);
        }
        let before = self.ids.insert(text, id);
        if !self.texts[at].is_empty() || before.is_some() || text.is_empty() {
            return Err(super::pieces::refuse(
                "tokenizer.json: vocab",
                format!("{text:?} with id {id}"),
                "each text and each id once",
            ));
        }
        self.texts[at] = text;
        self.scores[at] = score;
        Ok(())
    }

    /// The added tokens of the file, which may be in the vocabulary already.
    fn add(&mut self, list: &'a [Value]) -> Result<Vec<AddedToken>> {
        let mut added = Vec::new();
        // As many ids again may be left out, as in `Vocab::new`.
        let most = 2 * (self.texts.len() + list.len()) + 1000;
        for token in list {
            let json = Fields::new(token, "tokenizer.json: added token");
            let content = json.text("content")?;
            let id = match json.id("id")? {
                Some(id) if (id as usize) < most => id,
                Some(_) | None => return Err(json.wrong("id", json.get("id"), "an id")),
            };
            if json.flag("single_word")? {
                return Err(json.refuse(format!("{content:?} with single_word"), "it without"));
            }
            match self.ids.get(content) {
                Some(known) if *known == id => {}
                _ => self.put(content, id, 0.0)?,
            }
            added.push(AddedToken {
                id,
                content: content.to_owned(),
                special: json.flag("special")?,
                lstrip: json.flag("lstrip")?,
                rstrip: json.flag("rstrip")?,
                normalized: json.flag("normalized")?,
            });
        }
        Ok(added)
    }

    fn pad(&mut self, vocab_size: Option<usize>) -> Result<()> {
        let Some(vocab_size) = vocab_size else { return Ok(()) };
        let n = self.texts.len();
        if vocab_size < n || vocab_size > 2 * n + 1000 {
            let expected = format!("about vocab_size = {vocab_size}");
            return Err(super::pieces::refuse("tokenizer.json", format!("{n} tokens"), &expected));
        }
        self.texts.resize(vocab_size, "");
        self.scores.resize(vocab_size, 0.0);
        Ok(())
    }

    /// The pairs of `merges`, each written as one string or as two.
    fn merges(&self, model: &Fields<'_>) -> Result<Vec<(u32, u32)>> {
        let list = model.list("merges")?;
        let pair = |merge: &Value| {
            let (left, right) = match merge {
                Value::String(text) => text.split_once(' ')?,
                Value::Array(pair) => match pair.as_slice() {
                    [left, right] => (left.as_str()?, right.as_str()?),
                    _ => return None,
                },
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => return None,
            };
            Some((*self.ids.get(left)?, *self.ids.get(right)?))
        };
        let pairs = list.iter().map(|merge| {
            pair(merge)
                .ok_or_else(|| model.wrong("merges", Some(merge), "two tokens of the vocabulary"))
        });
        pairs.collect()
    }
}

/// What comes first and last: from the configuration, from the template of the file, or by its name.
fn specials(file: &Fields<'_>, config: Option<&Value>, vocab: &Vocab<'_>) -> Result<Specials> {
    let mut specials = Specials::default();
    for step in file.get("post_processor").map(steps).unwrap_or_default() {
        match kind(step) {
            "ByteLevel" => {}
            "TemplateProcessing" => {
                let single = step.get("single").and_then(Value::as_array);
                let parts = single.map(Vec::as_slice).unwrap_or_default().iter();
                let front = parts.map_while(|part| part.get("SpecialToken"));
                for token in front.filter_map(|token| token.get("id")?.as_str()) {
                    if let Some(first) = specials.bos {
                        let found = format!("post_processor with {token:?} behind token {first}");
                        return Err(file.refuse(found, "one token in front of a text"));
                    }
                    specials.bos = Some(id_of(vocab, token, "tokenizer.json: post_processor")?);
                    specials.add_bos = true;
                }
            }
            other => {
                let found = format!("post_processor {}", crate::ini::shown(other));
                return Err(file.refuse(found, "ByteLevel or TemplateProcessing"));
            }
        }
    }
    let what = "tokenizer_config.json";
    let config = Fields::new(config.unwrap_or(&Value::Null), what);
    // A token is a string, or an object with the string.
    let token = |name| {
        let token = config.get(name)?;
        token.as_str().or_else(|| token.get("content")?.as_str())
    };
    if let Some(bos) = token("bos_token") {
        specials.bos = Some(id_of(vocab, bos, what)?);
    }
    match token("eos_token") {
        Some(eos) => specials.eos.push(id_of(vocab, eos, what)?),
        None => specials.eos.extend(ENDS.iter().find_map(|name| vocab.ids.get(name))),
    }
    if config.get("add_bos_token").is_some() {
        specials.add_bos = config.flag("add_bos_token")?;
    }
    Ok(specials)
}

fn id_of(vocab: &Vocab<'_>, token: &str, what: &str) -> Result<u32> {
    vocab.ids.get(token).copied().ok_or_else(|| Error::Format {
        what: what.to_owned(),
        found: format!("the token {}", crate::ini::shown(token)),
        expected: "a token of the vocabulary".to_owned(),
    })
}
