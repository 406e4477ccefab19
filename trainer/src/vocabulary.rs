//! Vocabularies of subwords, learned from the training split by the `tokenizers` library. The same text
//! gives the same vocabulary every time, as a resumed run must find the one that it began with.

use std::collections::BTreeMap;

use teeny_runtime::dataset::Subwords;
use teeny_runtime::tokenizer::bpe::byte_characters;
use teeny_runtime::tokenizer::{
    Bpe, BpeParts, Pattern, PieceKind, PieceModel, SentencePiece, SentencePieceParts, Tokenizer,
};
use teeny_runtime::{Error, Result};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::{Unigram, UnigramTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::utils::parallelism::set_parallelism;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Trainer as _};

/// What SentencePiece writes for a space.
const SPACE: char = '\u{2581}';
/// Every byte has a token, so that no text is without tokens.
const BYTES: usize = 256;

/// Learns a vocabulary of `vocab_size` tokens from a text, fewer where the text has no more.
///
/// # Errors
/// [`Error::Tokenizer`] if that is too few for the characters of the text, or the library fails.
pub fn learn(kind: Subwords, vocab_size: usize, text: &str) -> Result<Tokenizer> {
    // Threads would add numbers in the order in which they end.
    set_parallelism(false);
    match kind {
        Subwords::Bpe => bpe(vocab_size, text),
        Subwords::SentencePiece => sentencepiece(vocab_size, text),
    }
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::Tokenizer(format!("cannot learn a vocabulary: {why}"))
}

/// Byte-level BPE with GPT-2's words (Radford et al. 2019, section 2.2).
fn bpe(vocab_size: usize, text: &str) -> Result<Tokenizer> {
    let words = ByteLevel::new(false, false, true);
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let split = |line: &str| {
        let mut line = PreTokenizedString::from(line);
        words.pre_tokenize(&mut line)?;
        let splits = line.get_splits(OffsetReferential::Normalized, OffsetType::None);
        Ok(splits.into_iter().map(|(word, ..)| word.to_owned()).collect())
    };
    // In one piece: a word may go on past a line break.
    trainer.feed(std::iter::once(text), split).map_err(failed)?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(failed)?;
    let found: BpeModel =
        serde_json::to_value(&model).and_then(serde_json::from_value).map_err(failed)?;
    let bytes: BTreeMap<char, u8> = byte_characters().into_iter().zip(0..=u8::MAX).collect();
    let mut tokens = vec![Vec::new(); found.vocab.len()];
    for (token, id) in &found.vocab {
        let token: Option<Vec<u8>> = token.chars().map(|c| bytes.get(&c).copied()).collect();
        match (tokens.get_mut(*id as usize), token) {
            (Some(place), Some(token)) => *place = token,
            _ => return Err(failed("a token that is no bytes")),
        }
    }
    let id = |token: &String| found.vocab.get(token).copied();
    let merges: Option<Vec<(u32, u32)>> =
        found.merges.iter().map(|(a, b)| Some((id(a)?, id(b)?))).collect();
    let merges = merges.ok_or_else(|| failed("a merge of what is no token"))?;
    let parts = BpeParts { tokens, merges, pattern: Pattern::Gpt2, ..BpeParts::default() };
    Ok(Tokenizer::Bpe(Bpe::new(parts)?))
}

/// What a [`BPE`] says of itself.
#[derive(serde::Deserialize)]
struct BpeModel {
    vocab: BTreeMap<String, u32>,
    merges: Vec<(String, String)>,
}

/// Unigram pieces (arXiv:1804.10959) that keep the text as it is: no normalisation, no space dropped.
/// Characters that are not among the pieces are spelled in bytes.
fn sentencepiece(vocab_size: usize, text: &str) -> Result<Tokenizer> {
    let reserved = 1 + BYTES;
    let n = vocab_size.saturating_sub(reserved);
    let trainer = UnigramTrainerBuilder::default()
        .show_progress(false)
        .vocab_size(u32::try_from(n).map_err(failed)?)
        .build()
        .map_err(failed)?;
    let mut model = Unigram::default();
    trainer.do_train(counted_words(text), &mut model).map_err(|error| {
        let characters = text.chars().collect::<std::collections::BTreeSet<_>>().len();
        failed(format!(
            "{error}: vocab_size = {vocab_size}, of which {reserved} are bytes and the unknown piece, for a \
             text of {characters} different characters"
        ))
    })?;
    let mut pieces = vec![(b"<unk>".to_vec(), 0.0, PieceKind::Unknown)];
    let byte = |byte| (format!("<0x{byte:02X}>").into_bytes(), 0.0, PieceKind::Byte);
    pieces.extend((0..=u8::MAX).map(byte));
    let mut learned: Vec<_> =
        model.iter().filter(|(piece, _)| !piece.is_empty()).cloned().collect();
    order_rare_characters(&mut learned);
    learned.sort_by(|(a, score_a), (b, score_b)| score_b.total_cmp(score_a).then_with(|| a.cmp(b)));
    let normal =
        |(piece, score): (String, f64)| (piece.into_bytes(), score as f32, PieceKind::Normal);
    pieces.extend(learned.into_iter().map(normal));
    let parts = SentencePieceParts {
        pieces,
        model: PieceModel::Unigram,
        byte_fallback: true,
        remove_extra_whitespaces: false,
        ..SentencePieceParts::default()
    };
    Ok(Tokenizer::SentencePiece(SentencePiece::new(parts)?))
}

/// The library keeps every character of the text, and gives those that it would have dropped the lowest score
/// of all and a little more for each, in the order of a hash map, which differs from run to run. Gives the
/// same scores in the order of the characters.
fn order_rare_characters(pieces: &mut [(String, f64)]) {
    /// What the library adds from one to the next.
    const STEP: f64 = 0.0001;
    let lowest = pieces.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
    let (mut rare, mut added) = (Vec::new(), 0.0);
    loop {
        // Added up as the library does it, or the last bits would differ. One that was not dropped may have
        // the lowest score too.
        let is_next = |(_, (piece, score)): &(usize, &(String, f64))| {
            piece.chars().nth(1).is_none() && *score == lowest + added
        };
        let before = rare.len();
        rare.extend(pieces.iter().enumerate().filter(is_next).map(|(place, _)| place));
        if rare.len() == before {
            break;
        }
        added += STEP;
    }
    rare.sort_by(|a, b| pieces[*a].1.total_cmp(&pieces[*b].1));
    let mut characters: Vec<String> = rare.iter().map(|place| pieces[*place].0.clone()).collect();
    characters.sort_unstable();
    for (place, character) in rare.into_iter().zip(characters) {
        pieces[place].0 = character;
    }
}

/// The words of a text, each with the space in front of it, and its line breaks, with how often they
/// occur. Pieces do not cross from one to the next.
fn counted_words(text: &str) -> Vec<(String, u32)> {
    let mut words = BTreeMap::<String, u32>::new();
    let mut word = String::new();
    let mut count = |word: &mut String| {
        if !word.is_empty() {
            *words.entry(std::mem::take(word)).or_default() += 1;
        }
    };
    // Encoding puts a space in front of the text.
    for c in std::iter::once(' ').chain(text.chars()) {
        let breaks = word.ends_with('\n');
        if c == ' ' || (c == '\n') != breaks {
            count(&mut word);
        }
        word.push(if c == ' ' { SPACE } else { c });
    }
    count(&mut word);
    words.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        let verse = "the sea, the sea!\nA ship is on the sea;  and \u{e9}t\u{e9} is near.\n\n";
        (0..40).map(|i| format!("{verse}{i} {} {}\n", i * i, "sailor".repeat(i % 3))).collect()
    }

    #[test]
    fn a_vocabulary_gives_the_text_back_in_fewer_tokens() {
        let text = text();
        for kind in [Subwords::Bpe, Subwords::SentencePiece] {
            let tokenizer = learn(kind, 330, &text).expect("enough for the text");
            assert!(tokenizer.vocab_size() <= 330, "{kind:?}");
            let tokens = tokenizer.encode(&text).expect("every byte has a token");
            assert!(
                tokens.len() * 5 < text.len() * 4,
                "{kind:?}: {} of {}",
                tokens.len(),
                text.len()
            );
            assert_eq!(tokenizer.decode(&tokens).expect("its own"), text.as_bytes(), "{kind:?}");
            // Nothing like it was in the text.
            let other = "\u{4f60}\u{597d}\t\u{1f3ad} QUEEN";
            let tokens = tokenizer.encode(other).expect("every byte has a token");
            assert_eq!(tokenizer.decode(&tokens).expect("its own"), other.as_bytes(), "{kind:?}");
        }
    }

    /// Hash maps of the library are ordered differently each time.
    #[test]
    fn the_same_text_gives_the_same_vocabulary() {
        // One in which single characters are worth less than what they are part of.
        let letters = (0..3200u32).map(|i| char::from(b'a' + (i * i % 23 % 7) as u8)).collect();
        for (text, n) in [(text(), 330), (letters, 270)] {
            for kind in [Subwords::Bpe, Subwords::SentencePiece] {
                let first = learn(kind, n, &text).expect("enough for the text");
                for _ in 0..20 {
                    assert_eq!(learn(kind, n, &text).expect("as before"), first, "{kind:?}");
                }
            }
        }
    }

    #[test]
    fn too_few_pieces_are_refused() {
        let text: String = (0..200u32).filter_map(|i| char::from_u32(0x4e00 + i)).collect();
        let error = learn(Subwords::SentencePiece, 300, &text).expect_err("too few").to_string();
        assert!(error.contains("vocab_size = 300"), "{error}");
    }
}
