//! What SentencePiece models are converted to: BPE and Unigram over characters, with spaces as U+2581.

use std::collections::HashMap;

use serde_json::Value;

use super::super::normalize::META;
use super::super::sentencepiece::{
    Dialect, FirstSpace, Metaspace, PieceKind, PieceModel, SentencePiece, SentencePieceParts,
    byte_of,
};
use super::{Parts, kind, steps};
use crate::error::{Error, Result};
use crate::tokenizer::json::Fields;

pub(super) fn read(model_kind: &str, parts: Parts<'_>) -> Result<SentencePiece> {
    let Parts { file, model, vocab, added, specials } = parts;
    for name in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        if let Some(value) = model.get(name).filter(|value| value.as_str() != Some("")) {
            return Err(model.wrong(name, Some(value), "none"));
        }
    }
    let is_bpe = model_kind == "BPE";
    if is_bpe && model.flag("ignore_merges")? {
        return Err(model.refuse("ignore_merges true".to_owned(), "it false over characters"));
    }
    let unknown = if is_bpe {
        let unknown = model.text("unk_token")?;
        super::id_of(&vocab, unknown, "tokenizer.json: unk_token")?
    } else {
        let unknown = model.id("unk_id")?;
        unknown.ok_or_else(|| model.wrong("unk_id", None, "the id of what is unknown"))?
    };
    let byte_fallback = model.flag("byte_fallback")?;
    if is_bpe && !byte_fallback && !model.flag("fuse_unk")? {
        return Err(model.refuse("fuse_unk false".to_owned(), "it true, or byte_fallback"));
    }
    let added_ids: HashMap<u32, bool> =
        added.iter().map(|token| (token.id, token.special)).collect();
    let mut unknown_text = String::new();
    let mut pieces = Vec::new();
    for ((text, score), id) in vocab.texts.iter().zip(&vocab.scores).zip(0..) {
        let is_added = added_ids.get(&id);
        let special = is_added == Some(&true);
        let kind = if id == unknown {
            if !special {
                unknown_text = (*text).to_owned();
            }
            PieceKind::Unknown
        } else if special {
            PieceKind::Control
        } else if text.is_empty() || is_added.is_some() {
            PieceKind::Unused
        } else if byte_fallback && byte_of(text.as_bytes()).is_some() {
            PieceKind::Byte
        } else {
            PieceKind::Normal
        };
        pieces.push((text.as_bytes().to_vec(), *score as f32, kind));
    }
    let merges = if is_bpe { vocab.merges(&model)? } else { Vec::new() };
    if is_bpe && merges.is_empty() {
        return Err(model.wrong("merges", None, "at least one"));
    }
    let mut spaces = Spaces::default();
    spaces.read_normalizer(&file)?;
    spaces.read_pre_tokenizer(&file)?;
    spaces.read_decoder(&file)?;
    if !spaces.is_escaped {
        return Err(file.refuse("no Metaspace".to_owned(), "spaces as U+2581"));
    }
    if added.iter().any(|token| token.normalized) && spaces.has_normalizer {
        let what = "tokenizer.json: added token";
        let found = "normalized true".to_owned();
        return Err(super::super::pieces::refuse(what, found, "it false beside a normalizer"));
    }
    if spaces.metaspace.decoder == FirstSpace::FirstPiece
        && let Some(text) = vocab.texts.iter().find(|text| has_space_inside(text))
    {
        return Err(model.refuse(format!("{text:?}"), "pieces with spaces in front only"));
    }
    SentencePiece::new(SentencePieceParts {
        pieces,
        model: if is_bpe { PieceModel::Bpe } else { PieceModel::Unigram },
        merges,
        byte_fallback,
        add_dummy_prefix: spaces.prefix,
        remove_extra_whitespaces: false,
        escape_whitespaces: true,
        treat_whitespace_as_suffix: false,
        charsmap: spaces.charsmap,
        unknown_text,
        added,
        specials,
        dialect: Dialect::Tokenizers(spaces.metaspace),
    })
}

fn has_space_inside(text: &str) -> bool {
    text.trim_start_matches('\u{2581}').as_bytes().windows(META.len()).any(|part| part == META)
}

/// What the parts of the pipeline do with spaces.
struct Spaces {
    prefix: bool,
    is_escaped: bool,
    has_normalizer: bool,
    charsmap: Vec<u8>,
    metaspace: Metaspace,
}

impl Default for Spaces {
    fn default() -> Spaces {
        Spaces {
            prefix: false,
            is_escaped: false,
            has_normalizer: false,
            charsmap: Vec::new(),
            metaspace: Metaspace {
                unless_space: false,
                first_only: false,
                split: false,
                collapse: false,
                strip: (false, false),
                decoder: FirstSpace::Keep,
            },
        }
    }
}

impl Spaces {
    fn read_normalizer(&mut self, file: &Fields<'_>) -> Result<()> {
        let Some(normalizer) = file.get("normalizer") else { return Ok(()) };
        // In the order in which `Normalizer::metaspace` applies them.
        let mut last = 0;
        for step in steps(normalizer) {
            self.has_normalizer = true;
            let text = |name: &str| step.get(name).and_then(Value::as_str);
            let flag = |name: &str| step.get(name).and_then(Value::as_bool).unwrap_or(false);
            let pattern = |kind: &str| step.get("pattern")?.get(kind)?.as_str();
            let order = match kind(step) {
                "Precompiled" => {
                    let Some(rules) = text("precompiled_charsmap").and_then(from_base64) else {
                        return Err(refuse_step(file, "normalizer", step));
                    };
                    self.charsmap = rules;
                    1
                }
                "Strip" => {
                    self.metaspace.strip = (flag("strip_left"), flag("strip_right"));
                    2
                }
                "Replace" if pattern("Regex") == Some(" {2,}") && text("content") == Some(" ") => {
                    self.metaspace.collapse = true;
                    3
                }
                "Prepend" if text("prepend") == Some("\u{2581}") => {
                    self.prefix = true;
                    4
                }
                "Replace"
                    if pattern("String") == Some(" ") && text("content") == Some("\u{2581}") =>
                {
                    self.is_escaped = true;
                    5
                }
                _ => return Err(refuse_step(file, "normalizer", step)),
            };
            if order <= last {
                return Err(refuse_step(file, "normalizer", normalizer));
            }
            last = order;
        }
        Ok(())
    }

    fn read_pre_tokenizer(&mut self, file: &Fields<'_>) -> Result<()> {
        let Some(pre_tokenizer) = file.get("pre_tokenizer") else { return Ok(()) };
        let refused = || refuse_step(file, "pre_tokenizer", pre_tokenizer);
        let all = steps(pre_tokenizer);
        // Spaces are escaped and put in front once, here or by the normaliser.
        let [step] = all.as_slice() else { return Err(refused()) };
        if kind(step) != "Metaspace" || !is_meta(step) || self.is_escaped || self.prefix {
            return Err(refused());
        }
        let Some(scheme) = prepend_scheme(step) else { return Err(refused()) };
        self.is_escaped = true;
        self.prefix = scheme != "never";
        self.metaspace.unless_space = true;
        self.metaspace.first_only = scheme == "first";
        self.metaspace.split = step.get("split").and_then(Value::as_bool).unwrap_or(true);
        Ok(())
    }

    fn read_decoder(&mut self, file: &Fields<'_>) -> Result<()> {
        let decoder = file.get("decoder");
        let all = decoder.map(steps).unwrap_or_default();
        let kinds: Vec<&str> = all.iter().map(|step| kind(step)).collect();
        let is_replaced = |step: &Value| {
            let pattern = step.get("pattern").and_then(|pattern| pattern.get("String"));
            pattern.and_then(Value::as_str) == Some("\u{2581}")
                && step.get("content").and_then(Value::as_str) == Some(" ")
        };
        self.metaspace.decoder = match (kinds.as_slice(), all.as_slice()) {
            (["Metaspace"], [step]) | (["ByteFallback", "Metaspace"], [_, step])
                if is_meta(step) =>
            {
                match prepend_scheme(step) {
                    Some("never") => FirstSpace::Keep,
                    Some(_) => FirstSpace::FirstPiece,
                    None => return Err(refuse_step(file, "decoder", step)),
                }
            }
            (["Replace", "ByteFallback", "Fuse"], [replace, ..]) if is_replaced(replace) => {
                FirstSpace::Keep
            }
            (["Replace", "ByteFallback", "Fuse", "Strip"], [replace, .., strip])
                if is_replaced(replace)
                    && strip.get("content").and_then(Value::as_str) == Some(" ")
                    && strip.get("start").and_then(Value::as_u64) == Some(1)
                    && strip.get("stop").and_then(Value::as_u64) == Some(0) =>
            {
                FirstSpace::One
            }
            _ => {
                return Err(file.wrong("decoder", decoder, "that of Llama 2 or T5"));
            }
        };
        Ok(())
    }
}

fn is_meta(step: &Value) -> bool {
    step.get("replacement").and_then(Value::as_str) == Some("\u{2581}")
}

/// `always`, `first` or `never`.
fn prepend_scheme(step: &Value) -> Option<&str> {
    let is_off = step.get("add_prefix_space").and_then(Value::as_bool) == Some(false);
    match step.get("prepend_scheme").and_then(Value::as_str) {
        None if is_off => Some("never"),
        None => Some("always"),
        Some(scheme @ ("always" | "first" | "never")) => Some(scheme),
        Some(_) => None,
    }
}

fn refuse_step(file: &Fields<'_>, name: &str, step: &Value) -> Error {
    file.wrong(name, Some(step), "one that SentencePiece models are converted to")
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut n_bits) = (0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
        }
    }
    Some(bytes)
}
