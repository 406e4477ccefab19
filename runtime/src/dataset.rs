//! The text of a configuration, encoded and split into train, validation and test.
//!
//! ```text
//! bytes ──encoding──► text ──tokenizer──► tokens ──► chunks: equal pieces, shuffled, dealt out
//!                                                └─► tail: one piece for each split, in order
//! ```

mod vocabulary;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::ini::{Ini, Key, Section};
use crate::tokenizer::{CharTokenizer, Tokenizer};
use vocabulary::sentencepiece_file;
pub use vocabulary::{Learn, Subwords, Vocabulary};

/// Keys of the section `[dataset]`.
pub const DATASET_KEYS: &[Key] = &[
    Key::new("input_file"),
    Key::new("input_file_encoding"),
    Key::new("tokenizer"),
    Key::new("sentencepiece_model_file"),
    Key::new("vocab_size"),
    Key::new("tokens_per_chunk"),
    Key::new("fraction_train"),
    Key::new("fraction_val"),
    Key::new("random_seed"),
    Key::new("split"),
];

/// Fractions that sum to 1 to this precision leave nothing for test: 0.7 + 0.2 + 0.1 is not 1.
const FRACTION_EPS: f64 = 1e-9;

/// How the bytes of a file become text. Line ends `\r\n` and `\r` become `\n` in every encoding, as
/// Python's text files do it, and so teenyGPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// UTF-8; a byte order mark is a character like others, as in Python.
    Utf8,
    /// UTF-8 without the byte order mark that it may begin with.
    Utf8Sig,
    /// ISO 8859-1: every byte is the code point of the same number.
    Latin1,
}

impl Encoding {
    /// Its standard spelling.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Utf8 => "utf-8",
            Encoding::Utf8Sig => "utf-8-sig",
            Encoding::Latin1 => "latin-1",
        }
    }

    /// Every spelling that a configuration may use, the standard one of each value first.
    pub const SPELLINGS: &[(&str, Encoding)] = &[
        ("utf-8", Encoding::Utf8),
        ("utf8", Encoding::Utf8),
        ("utf_8", Encoding::Utf8),
        ("utf-8-sig", Encoding::Utf8Sig),
        ("utf_8_sig", Encoding::Utf8Sig),
        ("latin-1", Encoding::Latin1),
        ("latin1", Encoding::Latin1),
        ("latin_1", Encoding::Latin1),
        ("iso-8859-1", Encoding::Latin1),
    ];
}

/// How a text is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitMode {
    /// Equal pieces, shuffled and dealt out, as teenyGPT does. An incomplete last one is left out.
    Chunks,
    /// In order: train, then validation, then test, as nanoGPT does.
    Tail,
}

impl SplitMode {
    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            SplitMode::Chunks => "chunks",
            SplitMode::Tail => "tail",
        }
    }

    /// Every spelling that a configuration may use.
    pub const SPELLINGS: &[(&str, SplitMode)] =
        &[("chunks", SplitMode::Chunks), ("tail", SplitMode::Tail)];
}

/// A part of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What the model learns from.
    Train,
    /// What chooses the best model.
    Val,
    /// What nothing was chosen by; empty if the fractions of the others sum to 1.
    Test,
}

impl Split {
    /// Every split.
    pub const ALL: &[Split] = &[Split::Train, Split::Val, Split::Test];

    /// `train`, `val` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Val => "val",
            Split::Test => "test",
        }
    }

    /// The split of a name in any case.
    pub fn parse(text: &str) -> Option<Split> {
        Split::ALL.iter().copied().find(|split| split.name().eq_ignore_ascii_case(text))
    }
}

/// The section `[dataset]` of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetConfig {
    /// The text; a relative path starts from the current directory.
    pub input_file: PathBuf,
    /// How its bytes become text.
    pub input_file_encoding: Encoding,
    /// Where the tokens come from.
    pub vocabulary: Vocabulary,
    /// Length of a chunk, in characters of the text.
    pub tokens_per_chunk: usize,
    /// Share of the text, or of the chunks, for training.
    pub fraction_train: f64,
    /// Share for validation; the rest is for test.
    pub fraction_val: f64,
    /// Seed of the shuffle of the chunks.
    pub random_seed: u64,
    /// How the text is divided.
    pub split: SplitMode,
    /// The keys as written, for errors that name them.
    pub section: Section,
}

impl Default for DatasetConfig {
    fn default() -> DatasetConfig {
        DatasetConfig {
            input_file: PathBuf::from("data/tiny_shakespeare.txt"),
            input_file_encoding: Encoding::Utf8,
            vocabulary: Vocabulary::Char,
            tokens_per_chunk: 10_000,
            fraction_train: 0.8,
            fraction_val: 0.1,
            random_seed: 0,
            split: SplitMode::Chunks,
            section: Section::empty("dataset", DATASET_KEYS),
        }
    }
}

impl DatasetConfig {
    /// Every key with its resolved value, in the order of the documented `config.ini`; of the vocabulary
    /// nothing where it is one of characters.
    pub fn to_metadata(&self) -> Vec<(&'static str, String)> {
        let mut metadata = vec![
            ("input_file", self.input_file.display().to_string()),
            ("input_file_encoding", self.input_file_encoding.name().to_owned()),
        ];
        metadata.extend(self.vocabulary.to_metadata());
        metadata.extend([
            ("split", self.split.name().to_owned()),
            ("tokens_per_chunk", self.tokens_per_chunk.to_string()),
            ("fraction_train", self.fraction_train.to_string()),
            ("fraction_val", self.fraction_val.to_string()),
            ("random_seed", self.random_seed.to_string()),
        ]);
        metadata
    }
}

/// Reads the section `[dataset]`. A key that is not there has the value of
/// [`DatasetConfig::default`].
///
/// # Errors
/// [`Error::Config`] for an unknown key, an unreadable value and a number out of range.
pub fn dataset_section(ini: &Ini) -> Result<DatasetConfig> {
    let s = ini.section("dataset", DATASET_KEYS)?;
    let default = DatasetConfig::default();
    let input_file = s.string("input_file", &default.input_file.to_string_lossy())?;
    let config = DatasetConfig {
        input_file: PathBuf::from(input_file),
        input_file_encoding: s.one_of(
            "input_file_encoding",
            Encoding::SPELLINGS,
            default.input_file_encoding,
        )?,
        vocabulary: Vocabulary::read(&s)?,
        tokens_per_chunk: s.usize("tokens_per_chunk", default.tokens_per_chunk, 2..=1 << 30)?,
        fraction_train: s.f64("fraction_train", default.fraction_train, ..)?,
        fraction_val: s.f64("fraction_val", default.fraction_val, ..)?,
        random_seed: s.u64("random_seed", default.random_seed)?,
        split: s.one_of("split", SplitMode::SPELLINGS, default.split)?,
        section: s,
    };
    config.check_fractions()?;
    Ok(config)
}

impl DatasetConfig {
    fn check_fractions(&self) -> Result<()> {
        for (key, fraction) in
            [("fraction_train", self.fraction_train), ("fraction_val", self.fraction_val)]
        {
            if !(fraction > 0.0 && fraction < 1.0) {
                let expected = "a number above 0 and below 1";
                return Err(self.section.error(key, fraction.to_string(), expected));
            }
        }
        if self.fraction_train + self.fraction_val > 1.0 + FRACTION_EPS {
            let train = self.fraction_train;
            let expected =
                format!("a number that together with fraction_train = {train} is at most 1");
            return Err(self.section.error(
                "fraction_val",
                self.fraction_val.to_string(),
                expected,
            ));
        }
        Ok(())
    }

    fn has_test(&self) -> bool {
        self.fraction_train + self.fraction_val < 1.0 - FRACTION_EPS
    }

    /// How many of `n` things go to train, validation and test. Fractions are rounded down, and the
    /// last split takes what is left.
    fn shares(&self, n: usize) -> [usize; 3] {
        let train = ((n as f64 * self.fraction_train) as usize).min(n);
        if !self.has_test() {
            return [train, n - train, 0];
        }
        let val = ((n as f64 * self.fraction_val) as usize).min(n - train);
        [train, val, n - train - val]
    }

    /// Reads the file as text.
    ///
    /// # Errors
    /// [`Error::Config`] for a file that is not there, is empty or has another encoding.
    pub fn read_text(&self) -> Result<String> {
        let path = &self.input_file;
        let bytes = std::fs::read(path).map_err(|source| self.unreadable(path, &source))?;
        let text = match self.input_file_encoding {
            Encoding::Utf8 => self.utf8(bytes)?,
            Encoding::Utf8Sig => {
                let text = self.utf8(bytes)?;
                text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)
            }
            Encoding::Latin1 => bytes.into_iter().map(char::from).collect(),
        };
        if text.is_empty() {
            let found = format!("{}, a file without text", quoted(path));
            return Err(self.section.error("input_file", found, "a text to learn from"));
        }
        Ok(if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text })
    }

    fn utf8(&self, bytes: Vec<u8>) -> Result<String> {
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let byte = error.as_bytes()[at];
            let found = format!("byte 0x{byte:02x} at offset {at} of {}", quoted(&self.input_file));
            self.section.error("input_file_encoding", found, "UTF-8; for other text, try latin-1")
        })
    }

    fn unreadable(&self, path: &Path, source: &std::io::Error) -> Error {
        let found = format!("{}, which cannot be read ({source})", quoted(path));
        let mut expected = "a text file".to_owned();
        if path.is_relative()
            && let Ok(directory) = std::env::current_dir()
        {
            expected += &format!(" below the current directory {}", directory.display());
        }
        if path.ends_with("tiny_shakespeare.txt") {
            expected += "; data/fetch.sh puts this one in place";
        }
        self.section.error("input_file", found, expected)
    }
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

/// The tokens of one split: pieces of equal length, within which the text is in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    /// (n_chunks, chunk_len)
    tokens: Vec<u32>,
    chunk_len: usize,
    n_bytes: usize,
}

impl Chunks {
    /// Pieces of `chunk_len` tokens, each of which is a character.
    fn new(tokens: Vec<u32>, chunk_len: usize, tokenizer: &Tokenizer) -> Chunks {
        let lengths =
            tokens.iter().filter_map(|token| tokenizer.token_bytes(*token)).map(<[u8]>::len);
        Chunks { n_bytes: lengths.sum(), tokens, chunk_len }
    }

    /// All tokens, one piece after the other: (n_chunks, chunk_len).
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of each piece; 0 in an empty split.
    pub fn chunk_len(&self) -> usize {
        self.chunk_len
    }

    /// Bytes of the text, in UTF-8. A loss for each of them does not depend on the vocabulary.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Number of pieces; 1 with [`SplitMode::Tail`] or tokens that are no characters, 0 in an empty split.
    pub fn n_chunks(&self) -> usize {
        self.tokens.len().checked_div(self.chunk_len).unwrap_or(0)
    }

    /// Whether the split has no text.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// `n` tokens in a row from a random place of a random piece: (n). All places are equally
    /// likely.
    ///
    /// # Errors
    /// [`Error::Argument`] if no piece has so many tokens.
    pub fn random_window(&self, n: usize, rng: &mut SplitMix64) -> Result<&[u32]> {
        if n > self.chunk_len || self.is_empty() {
            return Err(Error::Argument {
                name: "window",
                found: format!("{n} tokens"),
                expected: match self.chunk_len {
                    0 => "another split: this one has no text".to_owned(),
                    len => format!("at most {len} tokens, the length of the split's pieces"),
                },
            });
        }
        let chunk = rng.below(self.n_chunks());
        let start = chunk * self.chunk_len + rng.below(self.chunk_len - n + 1);
        Ok(&self.tokens[start..start + n])
    }
}

/// A text as tokens, in three splits.
#[derive(Clone, Debug)]
pub struct Dataset {
    config: DatasetConfig,
    tokenizer: Tokenizer,
    /// Train, validation, test.
    splits: [Chunks; 3],
}

impl Dataset {
    /// Reads the text with the vocabulary that the configuration asks for, which is not to be learned.
    ///
    /// # Errors
    /// [`Error::Config`] for a file that cannot be read as text or as a vocabulary, one too small for the
    /// splits, and a vocabulary that is to be learned.
    pub fn load(config: &DatasetConfig) -> Result<Dataset> {
        Dataset::load_learning(config, &|_, vocab_size, _| {
            let expected = "none: only teeny-train learns a vocabulary";
            Err(config.section.error("vocab_size", vocab_size.to_string(), expected))
        })
    }

    /// As [`load`](Self::load), with a function that learns a vocabulary from the training split.
    ///
    /// # Errors
    /// As [`load`](Self::load), and those of `learn`.
    pub fn load_learning(config: &DatasetConfig, learn: Learn<'_>) -> Result<Dataset> {
        let text = config.read_text()?;
        let tokenizer = match &config.vocabulary {
            Vocabulary::Char => Tokenizer::Char(CharTokenizer::from_text(&text)),
            Vocabulary::SentencePieceFile(file) => sentencepiece_file(config, file)?,
            Vocabulary::Learned { kind, vocab_size } => {
                let [train, ..] = split_text(config, &text)?;
                learn(*kind, *vocab_size, &train)?
            }
        };
        Dataset::from_text(config, &text, tokenizer)
    }

    /// Reads the text with the vocabulary of a model.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`Error::Tokenizer`] for text that the vocabulary does not
    /// cover.
    pub fn load_with(config: &DatasetConfig, tokenizer: Tokenizer) -> Result<Dataset> {
        Dataset::from_text(config, &config.read_text()?, tokenizer)
    }

    fn from_text(config: &DatasetConfig, text: &str, tokenizer: Tokenizer) -> Result<Dataset> {
        config.check_fractions()?;
        let encode = |text: &str| {
            tokenizer.encode(text).map_err(|error| {
                if let Error::Tokenizer(why) = error {
                    Error::Tokenizer(format!("{}: {why}", config.input_file.display()))
                } else {
                    error
                }
            })
        };
        let splits = match &tokenizer {
            Tokenizer::Char(_) => {
                let tokens = encode(text)?;
                match config.split {
                    SplitMode::Chunks => split_chunks(config, &tokens)?,
                    SplitMode::Tail => split_tail(config, &tokens)?,
                }
                .map(|(tokens, chunk_len)| Chunks::new(tokens, chunk_len, &tokenizer))
            }
            // What falls to a split does not depend on the vocabulary, so that losses can be compared, and
            // one that was learned has seen the training split alone.
            Tokenizer::SentencePiece(_) | Tokenizer::Bpe(_) => {
                let mut splits = <[Chunks; 3]>::default();
                for (split, text) in splits.iter_mut().zip(split_text(config, text)?) {
                    let tokens = if text.is_empty() { Vec::new() } else { encode(&text)? };
                    *split = Chunks { chunk_len: tokens.len(), n_bytes: text.len(), tokens };
                }
                splits
            }
        };
        Ok(Dataset { config: config.clone(), tokenizer, splits })
    }

    /// The configuration that it was loaded by.
    pub fn config(&self) -> &DatasetConfig {
        &self.config
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokens of a split.
    pub fn chunks(&self, split: Split) -> &Chunks {
        match split {
            Split::Train => &self.splits[0],
            Split::Val => &self.splits[1],
            Split::Test => &self.splits[2],
        }
    }

    /// Refuses a context for which a split has no complete example: `n_context` tokens and the one
    /// that follows.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key that makes the pieces so short.
    pub fn check_context(&self, n_context: usize) -> Result<()> {
        for split in Split::ALL {
            let chunks = self.chunks(*split);
            if chunks.is_empty() || chunks.chunk_len > n_context {
                continue;
            }
            let found =
                format!("a {} split in pieces of {} tokens", split.name(), chunks.chunk_len);
            let expected = format!("at least n_context + 1 = {}", n_context.saturating_add(1));
            let key = match (self.config.split, split) {
                _ if !matches!(self.tokenizer, Tokenizer::Char(_)) => "input_file",
                (SplitMode::Chunks, _) => "tokens_per_chunk",
                (SplitMode::Tail, Split::Train) => "fraction_train",
                (SplitMode::Tail, Split::Val | Split::Test) => "fraction_val",
            };
            return Err(self.config.section.error(key, found, expected));
        }
        Ok(())
    }
}

/// The text of each split: that of its chunks one after the other.
fn split_text(config: &DatasetConfig, text: &str) -> Result<[String; 3]> {
    let chars: Vec<char> = text.chars().collect();
    let splits = match config.split {
        SplitMode::Chunks => split_chunks(config, &chars)?,
        SplitMode::Tail => split_tail(config, &chars)?,
    };
    Ok(splits.map(|(chars, _)| chars.into_iter().collect()))
}

/// What falls to each split, and the length of its pieces. `tokens` may be characters instead.
fn split_chunks<T: Copy>(config: &DatasetConfig, tokens: &[T]) -> Result<[(Vec<T>, usize); 3]> {
    let chunk_len = config.tokens_per_chunk;
    let mut order: Vec<&[T]> = tokens.chunks_exact(chunk_len.max(1)).collect();
    let shares = config.shares(order.len());
    let [train, val, test] = shares;
    if train == 0 || val == 0 || (test == 0 && config.has_test()) {
        let found = format!(
            "{} chunks of {chunk_len} tokens in a text of {}: {train} for train, {val} for val, \
             {test} for test",
            order.len(),
            tokens.len()
        );
        let expected = "at least one for each: a longer text or shorter chunks";
        return Err(config.section.error("tokens_per_chunk", found, expected));
    }
    SplitMix64::new(config.random_seed).shuffle(&mut order);
    let mut rest = order.as_slice();
    Ok(shares.map(|n| {
        let (these, others) = rest.split_at(n);
        rest = others;
        (these.concat(), if n == 0 { 0 } else { chunk_len })
    }))
}

fn split_tail<T: Copy>(config: &DatasetConfig, tokens: &[T]) -> Result<[(Vec<T>, usize); 3]> {
    let shares = config.shares(tokens.len());
    let [train, val, test] = shares;
    if train == 0 || val == 0 || (test == 0 && config.has_test()) {
        let found = format!(
            "a text of {} tokens: {train} for train, {val} for val, {test} for test",
            tokens.len()
        );
        return Err(config.section.error("input_file", found, "a longer text"));
    }
    let mut rest = tokens;
    Ok(shares.map(|n| {
        let (these, others) = rest.split_at(n);
        rest = others;
        (these.to_vec(), n)
    }))
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014):
/// integers only, so a seed means the same on every machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// The generator of a seed.
    pub fn new(seed: u64) -> SplitMix64 {
        SplitMix64 { state: seed }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, all equally likely (Lemire, arXiv:1805.10941); 0 for a bound of 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = (bound as u64).max(1);
        // The low half of the product is below this for just the draws that would favour some
        // numbers.
        let unfair = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if product as u64 >= unfair {
                return (product >> 64) as usize;
            }
        }
    }

    /// Fisher and Yates's shuffle, from the last place down.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests;
