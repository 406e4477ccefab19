//! The vocabulary in the keys of a GGUF file: SentencePiece's merges by score (`llama`) or likelihood
//! (`t5`), or byte-level BPE (`gpt2`).

use std::collections::HashMap;

use super::super::{Shown, refuse};
use super::reader::File;
use crate::alloc::reserve;
use crate::error::{Error, Result};
use crate::tokenizer::bpe::byte_characters;
use crate::tokenizer::{
    AddedToken, Bpe, BpeParts, Pattern, PieceKind, PieceModel, SentencePiece, SentencePieceParts,
    Specials, Tokenizer,
};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const KINDS: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// How llama.cpp cuts text by the names in [`PRE`], whether words that are tokens stay whole, and
/// whether a text begins with a mark unless the file says otherwise (`llama-vocab.cpp`).
const PRE_TOKENIZERS: &[(&[&str], Pattern, bool)] = &[
    (&["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"], Pattern::Gpt2, false),
    (&["smollm", "starcoder", "refact", "command-r", "codeshell"], Pattern::SmolLm, false),
    (&["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"], Pattern::Llama3, true),
    (&["dbrx", "smaug-bpe"], Pattern::Llama3, false),
];

/// The vocabulary that a file's keys hold.
pub(super) fn read(file: &File) -> Result<Tokenizer> {
    match file.str(MODEL)? {
        "gpt2" => byte_level(file),
        "llama" => sentencepiece(file, PieceModel::Bpe),
        "t5" => sentencepiece(file, PieceModel::Unigram),
        _ => Err(file.refuse(MODEL, "gpt2, llama or t5")),
    }
}

/// The tokens' texts and kinds; all are normal where the file has no kinds.
fn tokens(file: &File) -> Result<(Vec<&[u8]>, Vec<PieceKind>)> {
    let tokens = file.strings(TOKENS)?.ok_or_else(|| file.refuse(TOKENS, "a list of tokens"))?;
    let Some(numbers) = file.integers(KINDS)? else {
        let mut kinds = Vec::new();
        reserve(&mut kinds, tokens.len(), "a vocabulary")?;
        kinds.resize(tokens.len(), PieceKind::Normal);
        return Ok((tokens, kinds));
    };
    let kinds = numbers.iter().map(|number| {
        Ok(match number {
            1 => PieceKind::Normal,
            2 => PieceKind::Unknown,
            3 => PieceKind::Control,
            4 => PieceKind::UserDefined,
            5 => PieceKind::Unused,
            6 => PieceKind::Byte,
            other => return Err(refuse(KINDS, other.to_string(), "kinds from 1 to 6")),
        })
    });
    let kinds: Vec<PieceKind> = kinds.collect::<Result<_>>()?;
    if kinds.len() != tokens.len() {
        return Err(file.refuse(KINDS, format!("{} of them, one for each token", tokens.len())));
    }
    Ok((tokens, kinds))
}

/// Tokens that begin and end a text. `bos` and `eos`: what they are where the file does not say, as in
/// llama.cpp but for byte-level BPE, where it takes token 11 of GPT-2.
fn specials(
    file: &File,
    n_tokens: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
) -> Result<Specials> {
    let id = |name: &str, default: Option<u32>| -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        if file.get(&key).is_none() {
            return Ok(default);
        }
        let id = u32::try_from(file.usize(&key, None)?).ok();
        match id.filter(|id| (*id as usize) < n_tokens) {
            // What a file has for none.
            None if file.usize(&key, None)? == u32::MAX as usize => Ok(None),
            None => Err(file.refuse(&key, format!("an id below {n_tokens}"))),
            id => Ok(id),
        }
    };
    let mut ends = Vec::new();
    for (name, default) in [("eos", eos), ("eot", None), ("eom", None)] {
        ends.extend(id(name, default)?.filter(|id| !ends.contains(id)));
    }
    let bos = id("bos", bos)?;
    if file.bool("tokenizer.ggml.add_eos_token", false)? {
        return Err(file.refuse("tokenizer.ggml.add_eos_token", "false: texts are to be continued"));
    }
    let add_bos = file.bool("tokenizer.ggml.add_bos_token", add_bos)?;
    Ok(Specials { bos, eos: ends, add_bos: add_bos && bos.is_some() })
}

fn sentencepiece(file: &File, model: PieceModel) -> Result<Tokenizer> {
    let (tokens, kinds) = tokens(file)?;
    let scores = file.floats(SCORES)?.ok_or_else(|| file.refuse(SCORES, "a list of scores"))?;
    if scores.len() != tokens.len() {
        return Err(file.refuse(SCORES, format!("{} of them, one for each token", tokens.len())));
    }
    let (bos, eos, add_bos) = match model {
        PieceModel::Bpe => (Some(1), Some(2), true),
        PieceModel::Unigram => (None, Some(1), false),
    };
    let there = |id: &u32| (*id as usize) < tokens.len();
    let specials = specials(file, tokens.len(), bos.filter(there), eos.filter(there), add_bos)?;
    let mut pieces = Vec::new();
    reserve(&mut pieces, tokens.len(), "a vocabulary")?;
    let mut added = Vec::new();
    for (id, ((text, score), kind)) in (0..).zip(tokens.iter().zip(scores).zip(&kinds)) {
        pieces.push((text.to_vec(), score, *kind));
        if *kind == PieceKind::Control && !text.is_empty() {
            added.push(AddedToken::special(id, utf8(text, TOKENS)?));
        }
    }
    let parts = SentencePieceParts {
        pieces,
        model,
        byte_fallback: kinds.contains(&PieceKind::Byte),
        add_dummy_prefix: file.bool("tokenizer.ggml.add_space_prefix", true)?,
        remove_extra_whitespaces: file.bool("tokenizer.ggml.remove_extra_whitespaces", false)?,
        charsmap: file.bytes("tokenizer.ggml.precompiled_charsmap")?.unwrap_or_default(),
        added,
        specials,
        ..SentencePieceParts::default()
    };
    SentencePiece::new(parts).map(Tokenizer::SentencePiece)
}

fn byte_level(file: &File) -> Result<Tokenizer> {
    let (texts, kinds) = tokens(file)?;
    let pre = if file.get(PRE).is_some() { file.str(PRE)? } else { "default" };
    let known = PRE_TOKENIZERS.iter().find(|(names, ..)| names.contains(&pre));
    let Some((_, pattern, is_llama3)) = known.copied() else {
        let names: Vec<_> = PRE_TOKENIZERS.iter().flat_map(|(names, ..)| *names).copied().collect();
        return Err(refuse(PRE, format!("{pre:?}"), crate::ini::alternatives(&names)));
    };
    let byte_of: HashMap<char, u8> = byte_characters().into_iter().zip(0..=u8::MAX).collect();
    let mut ids = HashMap::new();
    ids.try_reserve(texts.len())
        .map_err(|_| Error::OutOfMemory { what: "a vocabulary", bytes: texts.len() })?;
    let (mut tokens, mut added) = (Vec::new(), Vec::new());
    reserve(&mut tokens, texts.len(), "a vocabulary")?;
    for (id, (bytes, kind)) in (0u32..).zip(texts.iter().zip(&kinds)) {
        let text = utf8(bytes, TOKENS)?;
        ids.insert(text, id);
        let is_word = match kind {
            PieceKind::Normal | PieceKind::Byte => true,
            PieceKind::Control | PieceKind::Unknown => {
                if !text.is_empty() {
                    added.push(AddedToken::special(id, text));
                }
                false
            }
            PieceKind::UserDefined => {
                if !text.is_empty() {
                    added.push(AddedToken { special: false, ..AddedToken::special(id, text) });
                }
                false
            }
            PieceKind::Unused => false,
        };
        tokens.push(if is_word {
            let bytes = text.chars().map(|c| byte_of.get(&c).copied());
            bytes.collect::<Option<Vec<u8>>>().ok_or_else(|| {
                refuse(TOKENS, format!("{text:?} at {id}"), "the characters of byte-level BPE")
            })?
        } else {
            bytes.to_vec()
        });
    }
    let lines = file.strings(MERGES)?.ok_or_else(|| file.refuse(MERGES, "a list of merges"))?;
    let mut merges = Vec::new();
    reserve(&mut merges, lines.len(), "merges")?;
    for line in lines {
        let pair = utf8(line, MERGES)?.split_once(' ');
        let pair = pair.and_then(|(a, b)| Some((*ids.get(a)?, *ids.get(b)?)));
        merges.push(pair.ok_or_else(|| {
            refuse(MERGES, Shown(line).to_string(), "two tokens with a space between them")
        })?);
    }
    let specials = specials(file, texts.len(), None, None, is_llama3)?;
    let parts = BpeParts { tokens, merges, pattern, ignore_merges: is_llama3, added, specials };
    Bpe::new(parts).map(Tokenizer::Bpe)
}

fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|_| refuse(what, Shown(bytes).to_string(), "UTF-8"))
}
