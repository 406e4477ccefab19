//! Encodings, splits and their boundaries, and what is refused.

use super::*;

fn ini(text: &str) -> Ini {
    Ini::parse(Path::new("c.ini"), &format!("[dataset]\n{text}\n")).expect("valid INI")
}

/// A file with these bytes, in a directory that vanishes with it.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, bytes: &[u8]) -> TempFile {
        let directory = std::env::temp_dir().join(format!("teeny-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("temporary directory");
        let path = directory.join("text.txt");
        std::fs::write(&path, bytes).expect("temporary file");
        TempFile(path)
    }

    fn config(&self, more: &str) -> DatasetConfig {
        dataset_section(&ini(&format!("input_file = {}\n{more}", self.0.display()))).expect(more)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // A directory left behind is no reason to fail.
        let _ = self.0.parent().map(std::fs::remove_dir_all);
    }
}

/// `n` characters, each another one, so that every token tells where it stood.
fn distinct(n: u32) -> String {
    (0..n).filter_map(|i| char::from_u32(0x4E00 + i)).collect()
}

#[test]
fn config_ini_has_the_defaults_and_every_key() {
    let text = include_str!("../../../config.ini");
    let ini = Ini::parse(Path::new("config.ini"), text).expect("valid INI");
    let config = dataset_section(&ini).expect("valid");
    assert_eq!(
        DatasetConfig { section: Section::default(), ..config },
        DatasetConfig { section: Section::default(), ..DatasetConfig::default() }
    );
    for key in DATASET_KEYS {
        let documented = |line: &str| {
            let line = line.trim_start_matches(['#', ' ']);
            line.starts_with(&format!("{} =", key.name))
        };
        assert!(text.lines().any(documented), "{} is not documented", key.name);
    }
}

#[test]
fn every_key_is_read() {
    let config = dataset_section(&ini(
        "input_file = a b.txt\ninput_file_encoding = ISO-8859-1\ntokens_per_chunk = 2\n\
         fraction_train = 0.5\nfraction_val = 0.25\nrandom_seed = 9\nsplit = Tail\n\
         sentencepiece_model_file =",
    ))
    .expect("valid");
    assert_eq!(config.input_file, PathBuf::from("a b.txt"));
    assert_eq!(config.input_file_encoding, Encoding::Latin1);
    assert_eq!(config.tokens_per_chunk, 2);
    assert_eq!((config.fraction_train, config.fraction_val), (0.5, 0.25));
    assert_eq!(config.random_seed, 9);
    assert_eq!(config.split, SplitMode::Tail);
}

#[test]
fn bad_configurations_are_refused_with_their_place() {
    for (text, message) in [
        ("input_file =", "c.ini:2: [dataset] input_file: found nothing, expected a value"),
        (
            "input_file_encoding = utf-16",
            "c.ini:2: [dataset] input_file_encoding: found \"utf-16\", expected utf-8, utf-8-sig or latin-1 (did you mean utf-8?)",
        ),
        (
            "tokens_per_chunk = 1",
            "c.ini:2: [dataset] tokens_per_chunk: found 1, expected a whole number from 2 to 1073741824",
        ),
        (
            "fraction_train = 0",
            "c.ini:2: [dataset] fraction_train: found 0, expected a number above 0 and below 1",
        ),
        (
            "fraction_train = 80",
            "c.ini:2: [dataset] fraction_train: found 80, expected a number above 0 and below 1",
        ),
        ("fraction_val = nan", "c.ini:2: [dataset] fraction_val: found nan, expected a number"),
        (
            "fraction_val = -0.1",
            "c.ini:2: [dataset] fraction_val: found -0.1, expected a number above 0 and below 1",
        ),
        (
            "fraction_val = 0.3",
            "c.ini:2: [dataset] fraction_val: found 0.3, expected a number that together with fraction_train = 0.8 is at most 1",
        ),
        (
            "random_seed = -1",
            "c.ini:2: [dataset] random_seed: found -1, expected a whole number from 0 to 18446744073709551615",
        ),
        (
            "split = tails",
            "c.ini:2: [dataset] split: found \"tails\", expected chunks or tail (did you mean tail?)",
        ),
        (
            "tokenizer = words",
            "c.ini:2: [dataset] tokenizer: found \"words\", expected char, sentencepiece or bpe",
        ),
        (
            "tokenizer = bpe",
            "c.ini:2: [dataset] tokenizer: found \"bpe\", expected a vocab_size to learn",
        ),
        (
            "tokenizer = sentencepiece",
            "c.ini:2: [dataset] tokenizer: found \"sentencepiece\", expected a vocab_size to learn, or a sentencepiece_model_file",
        ),
        (
            "tokenizer = bpe\nvocab_size = 256",
            "c.ini:3: [dataset] vocab_size: found 256, expected a whole number from 258 to 16777215",
        ),
        (
            "vocab_size = 300",
            "c.ini:2: [dataset] vocab_size: found 300, expected no such key: with tokenizer = char, the characters of the text are the vocabulary",
        ),
        (
            "tokenizer = bpe\nsentencepiece_model_file = a.model",
            "c.ini:3: [dataset] sentencepiece_model_file: found \"a.model\", expected no such key, or tokenizer = sentencepiece",
        ),
        (
            "sentencepiece_model_file = a.model\nvocab_size = 300",
            "c.ini:3: [dataset] vocab_size: found 300, expected no such key beside sentencepiece_model_file, which has a size",
        ),
        (
            "\ninputfile = x",
            "c.ini:3: [dataset] inputfile: found an unknown key, expected a key of [dataset] (did you mean input_file?)",
        ),
    ] {
        assert_eq!(dataset_section(&ini(text)).expect_err(text).to_string(), message);
    }
}

#[test]
fn bytes_become_text() {
    let read = |name: &str, bytes: &[u8], encoding: &str| {
        let file = TempFile::new(name, bytes);
        file.config(&format!("input_file_encoding = {encoding}")).read_text().expect(name)
    };
    assert_eq!(read("plain", b"a\r\nb\rc\n\r\n", "utf-8"), "a\nb\nc\n\n");
    assert_eq!(read("bom", "\u{feff}é".as_bytes(), "utf-8"), "\u{feff}é");
    assert_eq!(read("sig", "\u{feff}é\u{feff}".as_bytes(), "utf-8-sig"), "é\u{feff}");
    assert_eq!(read("nosig", "é".as_bytes(), "utf-8-sig"), "é");
    assert_eq!(read("latin", b"\xe9\r\n\x80\xff", "latin-1"), "é\n\u{80}ÿ");
}

#[test]
fn unreadable_text_is_refused() {
    let error = |name: &str, bytes: &[u8]| {
        let file = TempFile::new(name, bytes);
        let message = file.config("").read_text().expect_err(name).to_string();
        message.replace(&file.0.display().to_string(), "T")
    };
    assert_eq!(
        error("empty", b""),
        "c.ini:2: [dataset] input_file: found \"T\", a file without text, expected a text to learn \
         from"
    );
    assert_eq!(
        error("damaged", b"caf\xe9 au lait"),
        "c.ini: [dataset] input_file_encoding: found byte 0xe9 at offset 3 of \"T\", expected \
         UTF-8; for other text, try latin-1"
    );
    let missing = |file: &str| {
        let config = dataset_section(&ini(&format!("input_file = {file}"))).expect("valid");
        Dataset::load(&config).expect_err(file).to_string()
    };
    let message = missing("/nonexistent/x.txt");
    let start =
        "c.ini:2: [dataset] input_file: found \"/nonexistent/x.txt\", which cannot be read (";
    assert!(message.starts_with(start), "{message}");
    assert!(message.ends_with("), expected a text file"), "{message}");
    let message = missing("nonexistent/tiny_shakespeare.txt");
    assert!(message.contains("expected a text file below the current directory /"), "{message}");
    assert!(message.ends_with("; data/fetch.sh puts this one in place"), "{message}");
}

#[test]
fn chunks_are_shuffled_whole_and_none_is_lost() {
    let text = distinct(1005);
    let file = TempFile::new("chunks", text.as_bytes());
    let load = |seed: u64| {
        let more = format!("tokens_per_chunk = 10\nrandom_seed = {seed}");
        Dataset::load(&file.config(&more)).expect("large enough")
    };
    let data = load(0);
    assert_eq!(data.tokenizer().vocab_size(), 1005);
    let sizes = Split::ALL.iter().map(|split| data.chunks(*split).n_chunks()).collect::<Vec<_>>();
    assert_eq!(sizes, [80, 10, 10]);
    let mut starts = Vec::new();
    for split in Split::ALL {
        let chunks = data.chunks(*split);
        assert_eq!(chunks.chunk_len(), 10);
        for chunk in chunks.tokens().chunks(10) {
            let expected: Vec<u32> = (chunk[0]..chunk[0] + 10).collect();
            assert_eq!(chunk, expected);
            starts.push(chunk[0]);
        }
    }
    assert!(!starts.is_sorted());
    starts.sort_unstable();
    // The five tokens after the last whole chunk are in none.
    assert_eq!(starts, (0..100).map(|i| i * 10).collect::<Vec<u32>>());

    assert_eq!(load(0).splits, data.splits);
    assert_ne!(load(1).splits, data.splits);
}

#[test]
fn tail_splits_in_order() {
    let text = distinct(1005);
    let file = TempFile::new("tail", text.as_bytes());
    let bounds = |fractions: &str| {
        let data =
            Dataset::load(&file.config(&format!("split = tail\n{fractions}"))).expect("fits");
        let all: Vec<u32> =
            Split::ALL.iter().flat_map(|split| data.chunks(*split).tokens().to_vec()).collect();
        assert_eq!(all, (0..1005).collect::<Vec<u32>>());
        [Split::Train, Split::Val, Split::Test].map(|split| {
            let chunks = data.chunks(split);
            assert_eq!(chunks.n_chunks(), usize::from(!chunks.is_empty()));
            chunks.chunk_len()
        })
    };
    assert_eq!(bounds(""), [804, 100, 101]);
    // nanoGPT's split: what is left belongs to validation.
    assert_eq!(bounds("fraction_train = 0.9"), [904, 101, 0]);
    assert_eq!(bounds("fraction_train = 0.7\nfraction_val = 0.3"), [703, 302, 0]);
}

#[test]
fn fractions_that_sum_to_one_leave_no_test() {
    let text = distinct(1000);
    let file = TempFile::new("sum", text.as_bytes());
    let more = "tokens_per_chunk = 10\nfraction_train = 0.55\nfraction_val = 0.45";
    let data = Dataset::load(&file.config(more)).expect("large enough");
    let sizes = Split::ALL.iter().map(|split| data.chunks(*split).n_chunks()).collect::<Vec<_>>();
    assert_eq!(sizes, [55, 45, 0]);
    let test = data.chunks(Split::Test);
    assert_eq!((test.chunk_len(), test.is_empty()), (0, true));
    let error = test.random_window(0, &mut SplitMix64::new(0)).expect_err("empty").to_string();
    assert_eq!(error, "window: found 0 tokens, expected another split: this one has no text");
    data.check_context(9).expect("an empty split needs no room");
}

#[test]
fn a_text_too_small_for_the_splits_is_refused() {
    let file = TempFile::new("small", distinct(99).as_bytes());
    let error = |more: &str| Dataset::load(&file.config(more)).expect_err(more).to_string();
    assert_eq!(
        error("tokens_per_chunk = 10"),
        "c.ini:3: [dataset] tokens_per_chunk: found 9 chunks of 10 tokens in a text of 99: 7 for \
         train, 0 for val, 2 for test, expected at least one for each: a longer text or shorter \
         chunks"
    );
    let none = error("");
    assert!(
        none.starts_with("c.ini: [dataset] tokens_per_chunk: found 0 chunks of 10000"),
        "{none}"
    );
    let text = error("split = tail\nfraction_val = 0.01");
    assert_eq!(
        text,
        "c.ini:2: [dataset] input_file: found a text of 99 tokens: 79 for train, 0 for val, 20 for \
         test, expected a longer text"
    );
    // Ten chunks are just enough.
    Dataset::load(&file.config("tokens_per_chunk = 9")).expect("eleven chunks");
}

#[test]
fn the_context_must_fit_into_a_piece() {
    let file = TempFile::new("context", distinct(1000).as_bytes());
    let data = Dataset::load(&file.config("tokens_per_chunk = 65")).expect("large enough");
    data.check_context(64).expect("64 and the next one");
    assert_eq!(
        data.check_context(65).expect_err("too long").to_string(),
        "c.ini:3: [dataset] tokens_per_chunk: found a train split in pieces of 65 tokens, expected \
         at least n_context + 1 = 66"
    );
    data.check_context(usize::MAX).expect_err("too long");
    let data = Dataset::load(&file.config("split = tail\nfraction_val = 0.05")).expect("fits");
    data.check_context(49).expect("49 and the next one");
    assert_eq!(
        data.check_context(50).expect_err("too long").to_string(),
        "c.ini:4: [dataset] fraction_val: found a val split in pieces of 50 tokens, expected at \
         least n_context + 1 = 51"
    );
}

#[test]
fn a_models_vocabulary_must_cover_the_text() {
    let file = TempFile::new("cover", "abcabcabcabcabcabcabc".as_bytes());
    let config = file.config("tokens_per_chunk = 2");
    let wider = Tokenizer::Char(CharTokenizer::from_text("0abc"));
    let data = Dataset::load_with(&config, wider).expect("covered");
    assert!(data.chunks(Split::Train).tokens().iter().all(|token| (1..=3).contains(token)));
    let narrower = Tokenizer::Char(CharTokenizer::from_text("ab"));
    let message = Dataset::load_with(&config, narrower).expect_err("c is missing").to_string();
    let start = format!("tokenizer: {}: 'c' (U+0063) at byte 2, ", file.0.display());
    assert!(message.starts_with(&start), "{message}");
}

#[test]
fn windows_reach_every_place_and_stay_inside_a_piece() {
    let chunks = Chunks { tokens: (0..12).collect(), chunk_len: 4, n_bytes: 12 };
    let mut rng = SplitMix64::new(3);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..1000 {
        let window = chunks.random_window(3, &mut rng).expect("short enough");
        assert_eq!(window, [window[0], window[0] + 1, window[0] + 2]);
        seen.insert(window[0]);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 4, 5, 8, 9]);
    assert_eq!(chunks.random_window(4, &mut rng).expect("a whole piece").len(), 4);
    assert_eq!(
        chunks.random_window(5, &mut rng).expect_err("too long").to_string(),
        "window: found 5 tokens, expected at most 4 tokens, the length of the split's pieces"
    );
}

/// Known answers for the seed 1234567 (Rosetta Code, "Pseudo-random numbers/Splitmix64").
#[test]
fn splitmix64_gives_the_known_answers() {
    let mut rng = SplitMix64::new(1_234_567);
    let drawn: Vec<u64> = (0..5).map(|_| rng.next_u64()).collect();
    assert_eq!(
        drawn,
        [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ]
    );
}

/// A seed must keep its meaning, or old checkpoints would be tested on what they were trained on.
#[test]
fn the_shuffle_of_a_seed_stays_the_same() {
    let mut items: Vec<u32> = (0..10).collect();
    SplitMix64::new(0).shuffle(&mut items);
    // By a second implementation, in Python.
    assert_eq!(items, [4, 9, 2, 5, 1, 7, 6, 0, 3, 8]);
}

#[test]
fn numbers_below_a_bound_are_fair() {
    let mut rng = SplitMix64::new(5);
    let mut counts = [0i64; 7];
    for _ in 0..70_000 {
        counts[rng.below(7)] += 1;
    }
    // Five standard deviations of a binomial of 70,000 draws are 463.
    assert!(counts.iter().all(|count| (count - 10_000).abs() < 463), "{counts:?}");
    assert_eq!(rng.below(1), 0);
    assert_eq!(rng.below(0), 0);
    assert!(rng.below(usize::MAX) < usize::MAX);
}

/// A vocabulary of all bytes and one merge.
fn bytes_and_ab() -> Tokenizer {
    let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    tokens.push(b"ab".to_vec());
    let merges = vec![(u32::from(b'a'), u32::from(b'b'))];
    let parts = crate::tokenizer::BpeParts { tokens, merges, ..Default::default() };
    Tokenizer::Bpe(crate::tokenizer::Bpe::new(parts).expect("valid"))
}

#[test]
fn a_learned_vocabulary_sees_the_training_split_alone() {
    let text = format!("{}{}{}", "ab".repeat(400), "cd".repeat(50), "\u{e9}".repeat(100));
    let file = TempFile::new("learned", text.as_bytes());
    let keys = "tokenizer = bpe\nvocab_size = 300\nsplit = tail";
    let seen = std::cell::RefCell::new(String::new());
    let data = Dataset::load_learning(&file.config(keys), &|kind, vocab_size, text| {
        assert_eq!((kind, vocab_size), (Subwords::Bpe, 300));
        seen.replace(text.to_owned());
        Ok(bytes_and_ab())
    })
    .expect("large enough");
    assert_eq!(seen.into_inner(), "ab".repeat(400));
    // The parts are those that characters would have, whatever their tokens.
    for (split, n_tokens, n_bytes) in
        [(Split::Train, 400, 800), (Split::Val, 100, 100), (Split::Test, 200, 200)]
    {
        let chunks = data.chunks(split);
        assert_eq!((chunks.tokens().len(), chunks.n_bytes()), (n_tokens, n_bytes), "{split:?}");
        assert_eq!((chunks.n_chunks(), chunks.chunk_len()), (1, n_tokens), "{split:?}");
    }
    let error = Dataset::load(&file.config(keys)).expect_err("only the trainer learns").to_string();
    assert!(
        error.ends_with(
            "vocab_size: found 300, expected none: only teeny-train learns a vocabulary"
        ),
        "{error}"
    );
}

#[test]
fn shuffled_pieces_of_text_are_the_same_for_every_vocabulary() {
    let text = distinct(1000);
    let file = TempFile::new("pieces", text.as_bytes());
    let config = file.config("tokens_per_chunk = 50");
    let chars = Dataset::load(&config).expect("large enough");
    let bytes = Dataset::load_with(&config, bytes_and_ab()).expect("large enough");
    for split in Split::ALL {
        let of = |data: &Dataset| {
            data.tokenizer().decode(data.chunks(*split).tokens()).expect("its own")
        };
        assert_eq!(of(&chars), of(&bytes), "{split:?}");
        assert_eq!(chars.chunks(*split).n_bytes(), bytes.chunks(*split).n_bytes());
    }
}

#[test]
fn a_sentencepiece_model_that_is_none_is_refused() {
    let file = TempFile::new("no-model", b"not a model");
    let keys = format!("sentencepiece_model_file = {}", file.0.display());
    let error = Dataset::load(&file.config(&keys)).expect_err("no model").to_string();
    assert!(error.contains("sentencepiece_model_file: found"), "{error}");
    let missing = file.config("sentencepiece_model_file = nowhere.model");
    let error = Dataset::load(&missing).expect_err("no file").to_string();
    assert!(error.contains("\"nowhere.model\", which cannot be read"), "{error}");
}
