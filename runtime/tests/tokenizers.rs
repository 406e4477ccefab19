//! Tokens and text are those of the libraries that models come from: the oracles are `sentencepiece`
//! and `tokenizers`, with models that they train on tiny Shakespeare (tests/tokenizer_cases.py).
//!
//! They must be installed (tests/oracles.sh): in trainer/.venv, or for the Python that TEENY_PYTHON
//! names. Without them the test says on standard error that it was skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use teeny_runtime::tokenizer::{Decoder, SentencePiece, Tokenizer};

/// A text with what the library makes of it.
struct Case {
    text: Vec<u8>,
    ids: Vec<u32>,
    decoded: Vec<u8>,
}

#[test]
fn tokens_and_text_are_those_of_the_libraries() {
    let Some(folder) = cases_folder() else { return };
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder of the cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cases"))
        .collect();
    files.sort();
    assert!(files.len() > 20, "{} models", files.len());
    // Two at a time, as most of the time goes into parsing the cases.
    let (first, second) = files.split_at(files.len() / 2);
    std::thread::scope(|scope| {
        for files in [first, second] {
            scope.spawn(|| files.iter().for_each(|file| compare(&folder, file)));
        }
    });
}

fn compare(folder: &Path, file: &Path) {
    let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
    let tokenizer = load(folder, &name);
    let cases = read(file);
    assert!(cases.len() > 1000, "{name}: {} cases", cases.len());
    // `tokenizers` applies compiled rules to letters with all their marks at once, `sentencepiece`, which
    // we follow, wherever they fit.
    let only_ascii = name == "t5-rules";
    for case in &cases {
        if only_ascii && !case.text.is_ascii() {
            continue;
        }
        // Those without text are for decoding only.
        if !case.text.is_empty() || case.ids.is_empty() {
            let tokens = tokenizer.encode_bytes(&case.text).expect("any bytes");
            assert_same(&name, case, &tokens);
        }
        compare_text(&name, &tokenizer, case);
    }
    let plain = file.with_extension("plain");
    if plain.exists() && !only_ascii {
        for case in read(&plain) {
            let text = String::from_utf8(case.text.clone()).expect("texts are UTF-8");
            // There Unigram finds special pieces once more as if they were text, which we do not.
            if name.starts_with("t5") && ["<s>", "</s>", "<unk>"].iter().any(|s| text.contains(s)) {
                continue;
            }
            assert_same(&name, &case, &tokenizer.encode_plain(&text).expect("any text"));
        }
    }
    // What a model file holds is all of it.
    let again = Tokenizer::from_json_and_tables(&tokenizer.to_json(), &tokenizer.tables());
    assert_eq!(again.unwrap_or_else(|e| panic!("{name}: {e}")), tokenizer, "{name}");
}

/// What the tokens of a case decode to, at once and one by one.
fn compare_text(name: &str, tokenizer: &Tokenizer, case: &Case) {
    let decoded = tokenizer.decode(&case.ids).expect("its own tokens");
    let mut decoder = Decoder::new();
    let mut streamed = String::new();
    for id in &case.ids {
        decoder.push(tokenizer, *id, &mut streamed).expect("its own token");
    }
    decoder.finish(&mut streamed);
    let expected = String::from_utf8_lossy(&case.decoded);
    let text = String::from_utf8_lossy(&case.text);
    assert_eq!(streamed, String::from_utf8_lossy(&decoded), "{name}: {:?}", case.ids);
    let found = match tokenizer {
        Tokenizer::Char(_) | Tokenizer::Bpe(_) => streamed,
        Tokenizer::SentencePiece(_) if name.starts_with("llama2") || name.starts_with("t5") => {
            // `tokenizers` gives up a whole run of byte pieces where one is part of no character.
            if std::str::from_utf8(&decoded).is_err() {
                assert!(expected.contains('\u{fffd}'), "{name}: {:?}", case.ids);
                return;
            }
            streamed
        }
        // `sentencepiece` has U+FFFD for each byte that is part of no character.
        Tokenizer::SentencePiece(_) => each_byte_lossy(&decoded),
    };
    assert_eq!(found, expected, "{name}: {:?} is {text:?}", case.ids);
}

fn each_byte_lossy(bytes: &[u8]) -> String {
    let chunks = bytes.utf8_chunks();
    let chars = chunks.flat_map(|chunk| {
        let invalid = std::iter::repeat_n('\u{fffd}', chunk.invalid().len());
        chunk.valid().chars().chain(invalid)
    });
    chars.collect()
}

fn assert_same(name: &str, case: &Case, tokens: &[u32]) {
    let Some(at) =
        (0..case.ids.len().max(tokens.len())).find(|at| case.ids.get(*at) != tokens.get(*at))
    else {
        return;
    };
    let around = at.saturating_sub(3)..at + 5;
    let cut = |ids: &[u32]| ids[around.start.min(ids.len())..around.end.min(ids.len())].to_vec();
    let text = String::from_utf8_lossy(&case.text);
    panic!(
        "{name}: token {at} of {:?}: {:?}, expected {:?}",
        text.chars().take(500).collect::<String>(),
        cut(tokens),
        cut(&case.ids)
    );
}

fn load(folder: &Path, name: &str) -> Tokenizer {
    let model = folder.join(name).with_extension("model");
    if model.exists() {
        let bytes = std::fs::read(model).expect("a file");
        let model = SentencePiece::from_model(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        return Tokenizer::SentencePiece(model);
    }
    let json = std::fs::read_to_string(folder.join(name).with_extension("json")).expect("a file");
    Tokenizer::from_hf_json(&json, None, None).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn read(file: &Path) -> Vec<Case> {
    let text = std::fs::read_to_string(file).expect("a file of cases");
    text.lines()
        .map(|line| {
            let case: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let ids = case["ids"].as_array().expect("a list").iter();
            Case {
                text: from_hex(case["text"].as_str().expect("a string")),
                ids: ids.map(|id| id.as_u64().expect("an id") as u32).collect(),
                decoded: from_hex(case["decoded"].as_str().expect("a string")),
            }
        })
        .collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).expect("a digit") as u8;
    text.as_bytes().chunks(2).map(|pair| 16 * digit(pair[0]) + digit(pair[1])).collect()
}

/// The folder that the script has filled; none where the libraries are not installed. TEENY_CASES names
/// one that is filled already.
fn cases_folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("TEENY_CASES") {
        return Some(folder.into());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = std::env::var_os("TEENY_PYTHON")
        .map_or_else(|| root.join("trainer/.venv/bin/python"), PathBuf::from);
    let probe = "import sentencepiece, tokenizers";
    let has_libraries = Command::new(&python).args(["-c", probe]).output();
    let corpus = root.join("data/tiny_shakespeare.txt");
    if !has_libraries.is_ok_and(|output| output.status.success()) || !corpus.exists() {
        eprintln!(
            "SKIPPED: tokenizers are not compared, because {} has no sentencepiece and tokenizers \
             (tests/oracles.sh installs them) or {} is missing (data/fetch.sh)",
            python.display(),
            corpus.display()
        );
        return None;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokenizers");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder in the target folder");
    let made = Command::new(&python)
        .arg(root.join("tests/tokenizer_cases.py"))
        .args([&corpus, &folder])
        .output()
        .expect("Python starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(folder)
}
