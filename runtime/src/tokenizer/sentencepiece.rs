//! SentencePiece: pieces of normalised text, chosen by likelihood or by merging.
//!
//! | file | holds |
//! |---|---|
//! | `sentencepiece.rs` | the tokenizer: text to pieces, pieces to bytes, to and from a file |
//! | `parts.rs` | what it is made of |
//! | `check.rs` | checks of its pieces |

mod check;
mod parts;

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::added::{Added, Part};
use super::charsmap::Charsmap;
use super::json::Fields;
use super::merges::{Merges, with_results};
use super::normalize::{META, Normalizer};
use super::pieces::{Finder, Hash, PieceIndex, Pieces, refuse};
use super::score_merges::{self, ScoreMerges};
use super::specials::{AddedToken, Specials};
use super::tables::{Table, TableReader, names};
use super::unigram::{self, Unigram};
use crate::alloc::{grow, reserve};
use crate::error::Result;
pub(super) use check::byte_of;
use check::{byte_pieces, check_pieces, shown_pieces, unknown};
pub use parts::{Dialect, FirstSpace, Metaspace, PieceKind, PieceModel, SentencePieceParts};

/// A checked SentencePiece model. Cloning it shares its tables.
#[derive(Clone, Debug, PartialEq)]
pub struct SentencePiece {
    contents: Arc<Contents>,
    specials: Specials,
}

#[derive(Debug, PartialEq)]
struct Contents {
    pieces: Pieces,
    /// What each piece adds to a text.
    shown: Pieces,
    scores: Vec<f32>,
    kinds: Vec<PieceKind>,
    search: Search,
    byte_fallback: bool,
    /// The piece of each byte; that for what is unknown without `byte_fallback`.
    bytes: [u32; 256],
    unknown: u32,
    unknown_text: String,
    normalizer: Normalizer,
    added: Added,
    dialect: Dialect,
}

#[derive(Debug, PartialEq)]
enum Search {
    Unigram(Unigram),
    Scores(ScoreMerges),
    /// By rank, with an index of pieces for single characters.
    Ranks(Merges, PieceIndex),
}

/// All of [`SentencePieceParts`] but what is in tables.
struct Settings {
    model: PieceModel,
    byte_fallback: bool,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
    treat_whitespace_as_suffix: bool,
    unknown_text: String,
    added: Vec<AddedToken>,
    specials: Specials,
    dialect: Dialect,
}

impl SentencePiece {
    /// Checks the parts and makes the tables of the search.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) naming the piece, merge or rule that cannot be, or no memory.
    pub fn new(parts: SentencePieceParts) -> Result<SentencePiece> {
        let pieces = Pieces::new(parts.pieces.iter().map(|(piece, ..)| piece.as_slice()))?;
        let merges = if parts.merges.is_empty() {
            Vec::new()
        } else {
            let (index, _) = PieceIndex::new(&pieces, 0..pieces.len() as u32)?;
            with_results(&parts.merges, &pieces, &index)?
        };
        let scores = parts.pieces.iter().map(|(_, score, _)| *score).collect();
        let kinds = parts.pieces.iter().map(|(.., kind)| *kind).collect();
        let settings = Settings {
            model: parts.model,
            byte_fallback: parts.byte_fallback,
            add_dummy_prefix: parts.add_dummy_prefix,
            remove_extra_whitespaces: parts.remove_extra_whitespaces,
            escape_whitespaces: parts.escape_whitespaces,
            treat_whitespace_as_suffix: parts.treat_whitespace_as_suffix,
            unknown_text: parts.unknown_text,
            added: parts.added,
            specials: parts.specials,
            dialect: parts.dialect,
        };
        SentencePiece::build(pieces, scores, kinds, merges, &parts.charsmap, settings)
    }

    fn build(
        pieces: Pieces,
        scores: Vec<f32>,
        kinds: Vec<PieceKind>,
        merges: Vec<[u32; 3]>,
        charsmap: &[u8],
        settings: Settings,
    ) -> Result<SentencePiece> {
        settings.specials.check(pieces.len())?;
        check_pieces(&pieces, &scores, &kinds)?;
        let unknown = unknown(&pieces, &kinds)?;
        let bytes = byte_pieces(&pieces, &kinds, settings.byte_fallback, unknown)?;
        let added = Added::new(settings.added, pieces.len())?;
        let special: HashSet<u32> = {
            let special = added.tokens().iter().filter(|token| token.special);
            special.map(|token| token.id).collect()
        };
        let shown = shown_pieces(&pieces, &kinds, &settings.unknown_text, &special)?;
        let user_defined = (0..).zip(&kinds).filter(|(_, kind)| **kind == PieceKind::UserDefined);
        let user_defined = user_defined.filter_map(|(id, _): (u32, _)| pieces.get(id));
        let (user_defined, _) = Finder::new(Pieces::new(user_defined)?)?;
        let is_single = settings.dialect == Dialect::SentencePiece;
        let search = match settings.model {
            PieceModel::Unigram if !merges.is_empty() => {
                let found = format!("{} merges of a unigram model", merges.len());
                return Err(refuse("tokenizer.merges", found, "none"));
            }
            PieceModel::Unigram => {
                Search::Unigram(Unigram::new(&pieces, &scores, &kinds, unknown, is_single)?)
            }
            PieceModel::Bpe if merges.is_empty() => {
                Search::Scores(ScoreMerges::new(&pieces, &scores, &kinds, unknown)?)
            }
            PieceModel::Bpe => {
                let ids = (0..).zip(&kinds).filter(|(_, kind)| kind.is_text()).map(|(id, _)| id);
                let (index, _) = PieceIndex::new(&pieces, ids)?;
                Search::Ranks(Merges::new(merges, &pieces)?, index)
            }
        };
        let normalizer = Normalizer {
            add_dummy_prefix: settings.add_dummy_prefix,
            remove_extra_whitespaces: settings.remove_extra_whitespaces,
            escape_whitespaces: settings.escape_whitespaces,
            treat_whitespace_as_suffix: settings.treat_whitespace_as_suffix,
            charsmap: Charsmap::new(charsmap)?,
            user_defined,
        };
        let contents = Contents {
            pieces,
            shown,
            scores,
            kinds,
            search,
            byte_fallback: settings.byte_fallback,
            bytes,
            unknown,
            unknown_text: settings.unknown_text,
            normalizer,
            added,
            dialect: settings.dialect,
        };
        Ok(SentencePiece { contents: Arc::new(contents), specials: settings.specials })
    }

    /// The same pieces with other ids that begin and end a text.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) for an id outside the vocabulary, or `add_bos` without `bos`.
    pub fn with_specials(&self, specials: Specials) -> Result<SentencePiece> {
        specials.check(self.vocab_size())?;
        Ok(SentencePiece { contents: Arc::clone(&self.contents), specials })
    }

    /// The ids that begin and end a text.
    pub fn specials(&self) -> &Specials {
        &self.specials
    }

    /// Number of pieces.
    pub fn vocab_size(&self) -> usize {
        self.contents.pieces.len()
    }

    /// Text, score and kind of a piece as the model has them.
    pub fn piece(&self, token: u32) -> Option<(&[u8], f32, PieceKind)> {
        let this = &*self.contents;
        let at = token as usize;
        Some((this.pieces.get(token)?, *this.scores.get(at)?, *this.kinds.get(at)?))
    }

    /// Whether a token is no part of decoded text.
    pub fn is_special(&self, token: u32) -> bool {
        self.contents.shown.get(token).is_some_and(<[u8]>::is_empty)
    }

    /// The bytes that a piece adds to a text: spaces for U+2581, one byte for a byte, none for a
    /// control piece. Spaces that decoding drops at the beginning of a text are still there.
    pub fn token_bytes(&self, token: u32) -> Option<&[u8]> {
        self.contents.shown.get(token)
    }

    /// How much of a piece's bytes decoding drops where nothing is in front of it, and whether the
    /// text has begun with it.
    pub(super) fn first_space(&self, token: u32) -> (usize, bool) {
        let this = &*self.contents;
        let shown = this.shown.get(token).unwrap_or_default();
        // Spaces at its beginning that are written as U+2581; none where nothing is shown.
        let is_text = this.kinds.get(token as usize).is_some_and(|kind| kind.is_text());
        let piece = this.pieces.get(token).filter(|_| is_text && !shown.is_empty());
        let spaces = piece.unwrap_or_default().chunks(META.len());
        let spaces = spaces.take_while(|bytes| *bytes == META).count();
        let n = match (this.first_space(), this.dialect) {
            (FirstSpace::Keep, _) => return (0, !shown.is_empty()),
            (FirstSpace::FirstPiece, _) => spaces,
            // `tokenizers` drops one that is spelled as a byte or in the text for what is unknown too.
            (FirstSpace::One | FirstSpace::All, Dialect::Tokenizers(_)) => {
                usize::from(shown.starts_with(b" "))
            }
            (FirstSpace::One | FirstSpace::All, Dialect::SentencePiece) => spaces.min(1),
        };
        let is_empty = shown.len() == n;
        let has_begun = match this.first_space() {
            FirstSpace::All => !is_empty,
            FirstSpace::Keep | FirstSpace::One => !shown.is_empty(),
            FirstSpace::FirstPiece => !self.is_special(token),
        };
        (n, has_begun)
    }

    /// The tokens of any bytes, which are taken for UTF-8; `special`: whether special tokens are found
    /// in them.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) for a text of 4 GiB, or no memory.
    pub fn encode_bytes(&self, text: &[u8], special: bool) -> Result<Vec<u32>> {
        let this = &*self.contents;
        let mut tokens = Vec::new();
        reserve(&mut tokens, text.len() / 3, "tokens")?;
        let mut scratch = Scratch::default();
        this.added.split(text, special, &mut |part| match part {
            Part::Text(text, first) => this.encode_part(text, first, &mut scratch, &mut tokens),
            Part::Token(token) => {
                grow(&mut tokens, 1, "tokens")?;
                tokens.push(token);
                Ok(())
            }
        })?;
        Ok(tokens)
    }

    /// The JSON that a model file holds beside [`SentencePiece::tables`].
    pub(super) fn to_json(&self) -> Value {
        let this = &*self.contents;
        let model = match this.search {
            Search::Unigram(_) => PieceModel::Unigram,
            Search::Scores(_) | Search::Ranks(..) => PieceModel::Bpe,
        };
        let mut json = json!({
            "type": "sentencepiece",
            "model": model.name(),
            "byte_fallback": this.byte_fallback,
            "add_dummy_prefix": this.normalizer.add_dummy_prefix,
            "remove_extra_whitespaces": this.normalizer.remove_extra_whitespaces,
            "escape_whitespaces": this.normalizer.escape_whitespaces,
            "treat_whitespace_as_suffix": this.normalizer.treat_whitespace_as_suffix,
            "unknown_text": this.unknown_text,
        });
        if let Dialect::Tokenizers(metaspace) = &this.dialect {
            json["metaspace"] = metaspace.to_json();
        }
        self.specials.to_json(&mut json);
        json["added"] = this.added.tokens().iter().map(AddedToken::to_json).collect();
        json
    }

    /// What [`SentencePiece::to_json`] and [`SentencePiece::tables`] have written.
    pub(super) fn read(json: &Fields<'_>, tables: &mut TableReader<'_>) -> Result<SentencePiece> {
        let name = json.text("model")?;
        let Some(model) = PieceModel::ALL.iter().find(|model| model.name() == name) else {
            let found = format!("model {}", crate::ini::shown(name));
            return Err(json.refuse(found, "unigram or bpe"));
        };
        let pieces = tables.pieces()?;
        let scores = tables.scores(pieces.len())?;
        let mut kinds = Vec::new();
        reserve(&mut kinds, pieces.len(), "kinds of pieces")?;
        for kind in tables.kinds(pieces.len())? {
            let Some(kind) = PieceKind::from_number(u64::from(*kind)) else {
                return Err(refuse("tokenizer.kinds", kind.to_string(), "1 to 6"));
            };
            kinds.push(kind);
        }
        let dialect = match json.get("metaspace") {
            Some(metaspace) => Dialect::Tokenizers(Metaspace::from_json(metaspace)?),
            None => Dialect::SentencePiece,
        };
        let settings = Settings {
            model: *model,
            byte_fallback: json.flag("byte_fallback")?,
            add_dummy_prefix: json.flag("add_dummy_prefix")?,
            remove_extra_whitespaces: json.flag("remove_extra_whitespaces")?,
            escape_whitespaces: json.flag("escape_whitespaces")?,
            treat_whitespace_as_suffix: json.flag("treat_whitespace_as_suffix")?,
            unknown_text: json.text("unknown_text")?.to_owned(),
            added: AddedToken::list_from_json(json)?,
            specials: Specials::from_json(json)?,
            dialect,
        };
        let (merges, charsmap) = (tables.merges()?, tables.charsmap()?);
        SentencePiece::build(pieces, scores, kinds, merges, charsmap, settings)
    }

    /// The tables that a model file holds.
    pub(super) fn tables(&self) -> Vec<Table<'_>> {
        let this = &*self.contents;
        let mut tables = Table::pieces(&this.pieces);
        tables.push(Table::of_scores(&this.scores));
        if let Search::Ranks(merges, _) = &this.search {
            tables.extend(Table::merges(merges.list()));
        }
        let kinds: Vec<u8> = this.kinds.iter().map(|kind| *kind as u8).collect();
        tables.push(Table::of_bytes(names::KINDS, kinds));
        let charsmap = this.normalizer.charsmap.to_bytes();
        if !charsmap.is_empty() {
            tables.push(Table::of_bytes(names::CHARSMAP, charsmap));
        }
        tables
    }
}

/// Memory of an encoding.
#[derive(Default)]
struct Scratch {
    normal: Vec<u8>,
    unigram: unigram::Scratch,
    merges: score_merges::Scratch,
}

impl Contents {
    fn first_space(&self) -> FirstSpace {
        match self.dialect {
            Dialect::SentencePiece if self.normalizer.remove_extra_whitespaces => FirstSpace::All,
            Dialect::SentencePiece if self.normalizer.add_dummy_prefix => FirstSpace::One,
            Dialect::SentencePiece => FirstSpace::Keep,
            Dialect::Tokenizers(metaspace) => metaspace.decoder,
        }
    }

    /// Adds the tokens of what lies between added ones.
    fn encode_part(
        &self,
        text: &[u8],
        first: bool,
        scratch: &mut Scratch,
        tokens: &mut Vec<u32>,
    ) -> Result<()> {
        let Scratch { normal, unigram, merges } = scratch;
        normal.clear();
        let split = match &self.dialect {
            Dialect::SentencePiece => {
                self.normalizer.normalize(text, normal)?;
                false
            }
            Dialect::Tokenizers(metaspace) => {
                self.normalizer.metaspace(text, first, metaspace, normal)?;
                metaspace.split
            }
        };
        let mut rest = normal.as_slice();
        while !rest.is_empty() {
            let len = if split { first_word(rest) } else { rest.len() };
            let (word, behind) = rest.split_at(len);
            rest = behind;
            let mut after_unknown = false;
            let mut push = |id: u32, text: &[u8]| {
                let is_unknown = id == self.unknown;
                grow(tokens, text.len().max(1), "tokens")?;
                if is_unknown && self.byte_fallback {
                    tokens.extend(text.iter().map(|byte| self.bytes[usize::from(*byte)]));
                } else if !(is_unknown && after_unknown) {
                    tokens.push(id);
                }
                after_unknown = is_unknown;
                Ok(())
            };
            match &self.search {
                Search::Unigram(search) => search.split(word, unigram, &mut push)?,
                Search::Scores(search) => {
                    let frozen = &self.normalizer.user_defined;
                    search.split(&self.pieces, frozen, word, merges, &mut push)?;
                }
                Search::Ranks(merges, index) => {
                    grow(tokens, word.len(), "tokens")?;
                    let start = tokens.len();
                    let mut at = 0;
                    while at < word.len() {
                        let c = &word[at..at + unigram::char_len(word, at)];
                        at += c.len();
                        match index.get(&self.pieces, Hash::of(c), c) {
                            Some(id) => tokens.push(id),
                            None if self.byte_fallback => {
                                tokens.extend(c.iter().map(|byte| self.bytes[usize::from(*byte)]));
                            }
                            None if tokens[start..].last() == Some(&self.unknown) => {}
                            None => tokens.push(self.unknown),
                        }
                    }
                    merges.merge(tokens, start)?;
                }
            }
        }
        Ok(())
    }
}

/// Bytes until the next U+2581 that is not at the beginning.
fn first_word(text: &[u8]) -> usize {
    let mut windows = text.windows(META.len()).enumerate().skip(1);
    windows.find(|(_, window)| *window == META).map_or(text.len(), |(at, _)| at)
}
