//! Vocabularies that lie beside a model.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::json::{Json, file_name, parse, read_text, short};
use super::{ImportOptions, map, refuse};
use crate::error::{Error, Result};
use crate::tokenizer::{
    PieceKind, PieceModel, SentencePiece, SentencePieceParts, Specials, Tokenizer,
};

/// The vocabulary of a folder of Hugging Face's: `tokenizer.json`, else `tokenizer.model`. Tokens that end a
/// text are those of `generation_config.json`, else of `config`, else of the vocabulary itself.
/// `vocab_size`: rows of the embedding, of which there may be more than tokens.
pub(super) fn of_folder(folder: &Path, config: &Json, vocab_size: usize) -> Result<Tokenizer> {
    let [file, model, tokenizer_config] =
        ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
            .map(|name| folder.join(name));
    let tokenizer_config = if tokenizer_config.exists() { Some(tokenizer_config) } else { None };
    let tokenizer = if file.exists() {
        let text = read_text(&file)?;
        let tokenizer_config = tokenizer_config.map(|file| read_text(&file)).transpose()?;
        of_tokenizer_json(&text, tokenizer_config.as_deref(), Some(vocab_size))?
    } else if model.exists() {
        let tokenizer = SentencePiece::from_model(map(&model)?.get())?;
        let specials = tokenizer.specials().clone();
        let json = tokenizer_config.map(|file| Json::read(&file)).transpose()?;
        let n_pieces = tokenizer.vocab_size();
        if let Some(id) = id_beyond(folder, json.as_ref(), n_pieces)? {
            return Err(refuse(
                "tokenizer.model",
                format!("{n_pieces} pieces and an added token {id}"),
                "a tokenizer.json where tokens were added",
            ));
        }
        // Llama's class puts the first token in front unless it is told not to.
        let add_bos = json.map_or(Ok(true), |json| json.bool("add_bos_token", true))?;
        let add_bos = add_bos && specials.bos.is_some();
        Tokenizer::SentencePiece(tokenizer).with_specials(Specials { add_bos, ..specials })?
    } else {
        return Err(refuse(
            &folder.display().to_string(),
            "no tokenizer.json and no tokenizer.model",
            "one of them",
        ));
    };
    let Some(specials) = tokenizer.specials().cloned() else { return Ok(tokenizer) };
    let generation = folder.join("generation_config.json");
    let generation = if generation.exists() { Some(Json::read(&generation)?) } else { None };
    let ids = |key: &str| -> Result<Vec<u32>> {
        let json = generation.as_ref().filter(|json| json.has(key)).unwrap_or(config);
        let list = match json.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => &list[..],
            Some(one) => std::slice::from_ref(one),
        };
        let id = |id: &Value| {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.filter(|id| (*id as usize) < tokenizer.vocab_size());
            id.ok_or_else(|| json.refuse(key, "ids of tokens"))
        };
        list.iter().map(id).collect()
    };
    let (bos, eos) = (ids("bos_token_id")?, ids("eos_token_id")?);
    tokenizer.with_specials(Specials {
        bos: specials.bos.or(bos.first().copied()),
        eos: if eos.is_empty() { specials.eos } else { eos },
        add_bos: specials.add_bos,
    })
}

/// A token that was added behind the pieces of a `tokenizer.model`, if there is one.
fn id_beyond(folder: &Path, config: Option<&Json>, n_pieces: usize) -> Result<Option<u64>> {
    let file = folder.join("added_tokens.json");
    let (mut ids, n_pieces) = (Vec::new(), n_pieces as u64);
    if file.exists()
        && let Value::Object(added) = parse(&read_text(&file)?, "added_tokens.json")?
    {
        ids.extend(added.values().map(|id| id.as_u64().unwrap_or(u64::MAX)));
    }
    if let Some(Value::Object(added)) = config.and_then(|json| json.get("added_tokens_decoder")) {
        ids.extend(added.keys().map(|id| id.parse().unwrap_or(u64::MAX)));
    }
    Ok(ids.into_iter().find(|id| *id >= n_pieces))
}

/// What a `tokenizer.json` holds.
fn of_tokenizer_json(
    text: &str,
    config: Option<&str>,
    vocab_size: Option<usize>,
) -> Result<Tokenizer> {
    // The kind that our own characters have there.
    if text.contains("WordLevel") {
        let what = "tokenizer.json";
        let value = parse(text, what)?;
        if let Some(tokenizer) = characters(&value, what)? {
            return Ok(tokenizer);
        }
    }
    Tokenizer::from_hf_json(text, config, vocab_size)
}

/// The vocabulary of a checkpoint without one: `--tokenizer`, else the characters under the metadata key
/// `chars`.
pub(super) fn given(
    options: &ImportOptions,
    metadata: &BTreeMap<String, String>,
) -> Result<Tokenizer> {
    if let Some(file) = &options.tokenizer {
        let what = file_name(file);
        let text = read_text(file)?;
        return match characters(&parse(&text, &what)?, &what)? {
            Some(tokenizer) => Ok(tokenizer),
            None => Tokenizer::from_hf_json(&text, None, None),
        };
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

/// Refuses an embedding without a row for each token. Checkpoints round their number up; rows without a
/// token are left out.
pub(super) fn check_rows(tokenizer: &Tokenizer, n_rows: usize) -> Result<()> {
    if tokenizer.vocab_size() > n_rows {
        return Err(refuse(
            "vocabulary",
            format!("{} tokens", tokenizer.vocab_size()),
            format!("no more than the {n_rows} rows of the embedding"),
        ));
    }
    Ok(())
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
            let chars = object.get("chars").or_else(|| object.get("itos"));
            if let Some(chars @ (Value::String(_) | Value::Array(_))) = chars {
                return characters(chars, what);
            }
            if let Some(Value::Object(stoi)) = object.get("stoi") {
                return by_id(stoi).map(Some);
            }
            match object.get("model") {
                Some(model) if model.get("type").is_some_and(|kind| kind == "WordLevel") => {
                    // Splitting at nothing makes each character a word, if nothing else happens to it.
                    let is_none = |key: &str| match object.get(key) {
                        None | Some(Value::Null) => true,
                        Some(Value::Array(list)) => list.is_empty(),
                        Some(_) => false,
                    };
                    let splits = object.get("pre_tokenizer")
                        == Some(&super::tokenizer_json::split())
                        && ["normalizer", "post_processor", "added_tokens"]
                            .into_iter()
                            .all(is_none);
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
    Tokenizer::from_json(&json).map_err(|error| {
        let Error::Format { found, expected, .. } = error else { return error };
        refuse(what, found, expected)
    })
}

/// The first pieces of every vocabulary of llama2.c, which its programs count on, and what they are; a
/// piece for each byte follows.
const FIRST_PIECES: [(&str, &str, PieceKind); 3] = [
    ("<unk>", "<unk>", PieceKind::Unknown),
    ("\n<s>\n", "<s>", PieceKind::Control),
    ("\n</s>\n", "</s>", PieceKind::Control),
];

/// `tokenizer.bin` of llama2.c: the length of the longest piece, then score, length and text of each
/// (`tokenizer.py` and `run.c` there). Pieces have spaces where SentencePiece has its mark.
pub(super) fn of_llama2c(path: &Path, vocab_size: usize) -> Result<Tokenizer> {
    let mapped = map(path)?;
    let (bytes, what) = (mapped.get(), file_name(path));
    let damaged = |at: usize| {
        let found = format!("{} bytes, another piece at {at}", bytes.len());
        refuse(&what, found, format!("{vocab_size} pieces, as the model has"))
    };
    let word = |at: usize| {
        let word = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
        word.copied().ok_or_else(|| damaged(at))
    };
    let (mut at, mut pieces) = (4, Vec::new());
    for id in 0..vocab_size {
        let score = f32::from_le_bytes(word(at)?);
        let len = usize::try_from(i32::from_le_bytes(word(at + 4)?)).ok();
        let end = len.and_then(|len| len.checked_add(at + 8)).filter(|end| *end <= bytes.len());
        let end = end.ok_or_else(|| damaged(at))?;
        let Ok(written) = std::str::from_utf8(&bytes[at + 8..end]) else {
            return Err(refuse(&what, format!("piece {id}"), "UTF-8"));
        };
        at = end;
        let byte = id.checked_sub(FIRST_PIECES.len()).filter(|byte| *byte < 256);
        let (expected, text, kind) = match (FIRST_PIECES.get(id), byte) {
            (Some((expected, text, kind)), _) => {
                ((*expected).to_owned(), (*text).to_owned(), *kind)
            }
            (None, Some(byte)) => {
                let text = format!("<0x{byte:02X}>");
                (text.clone(), text, PieceKind::Byte)
            }
            (None, None) => {
                (written.to_owned(), written.replace(' ', "\u{2581}"), PieceKind::Normal)
            }
        };
        if written != expected {
            let found = format!("{written:?} as piece {id}");
            return Err(refuse(&what, found, format!("{expected:?}")));
        }
        pieces.push((text.into_bytes(), score, kind));
    }
    if at != bytes.len() {
        return Err(damaged(at));
    }
    let parts = SentencePieceParts {
        pieces,
        model: PieceModel::Bpe,
        byte_fallback: true,
        remove_extra_whitespaces: false,
        // `run.c` takes the mark of a beginning for the end of a text.
        specials: Specials { bos: Some(1), eos: vec![1, 2], add_bos: true },
        ..SentencePieceParts::default()
    };
    SentencePiece::new(parts).map(Tokenizer::SentencePiece)
}
