//! What a user sees of teeny-run, by running the binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use teeny_runtime::{Dtype, Ffn, ModelConfig, Norm, PositionalEncoding};
use teeny_tests::{RandomModel, every_kind, program, small};

fn run(args: &[&str]) -> Output {
    Command::new(program("teeny-run")).args(args).output().expect("the program starts")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The message of a refused call: exit code 2, one line, nothing on standard output.
fn refusal(args: &[&str]) -> String {
    let output = run(args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

/// A model over the characters A to ] with an end-of-line in front, so that an empty prompt works.
fn model() -> RandomModel {
    RandomModel::new(&every_kind()[0], Dtype::F32, 1)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is UTF-8")
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let file = model();
    let path = file.path();
    let with = |seed: &str| stdout(&run(&["-m", text(&path), "-p", "ABC", "-n", "60", "-s", seed]));
    let first = with("1");
    assert_eq!(first, with("1"));
    assert_ne!(first, with("2"));
    assert!(first.starts_with("ABC"));
    assert_eq!(first.chars().count(), 63);
}

#[test]
fn a_longer_text_begins_with_the_shorter_one() {
    let file = model();
    let path = file.path();
    let with = |n: &str| stdout(&run(&["-m", text(&path), "-p", "A", "-n", n, "-s", "3"]));
    assert!(with("90").starts_with(&with("40")));
}

#[test]
fn zero_temperature_needs_no_seed() {
    let file = model();
    let path = file.path();
    let args = ["-m", text(&path), "-p", "A", "-n", "40", "--temp", "0"];
    assert_eq!(stdout(&run(&args)), stdout(&run(&args)));
}

#[test]
fn twice_the_context_works_for_every_positional_encoding() {
    for positional_encoding in PositionalEncoding::ALL {
        let config: ModelConfig = small(*positional_encoding, Norm::LayerNorm, Ffn::Swiglu);
        let file = RandomModel::new(&config, Dtype::Bf16, 2);
        let path = file.path();
        let n = 2 * config.max_seq_len + 5;
        let n_text = n.to_string();
        let out = stdout(&run(&["-m", text(&path), "-p", "AB", "-n", &n_text, "-s", "1"]));
        assert_eq!(out.chars().count(), n + 2, "{}", positional_encoding.name());
    }
}

#[test]
fn the_overflow_policy_is_the_users() {
    let file = model(); // 24 tokens of context
    let path = file.path();
    let with = |policy: &str| {
        run(&["-m", text(&path), "-p", "AB", "-n", "50", "-s", "1", "--overflow", policy])
    };
    let slide = stdout(&with("slide"));
    let stop = with("stop");
    assert!(stderr(&stop).contains("the context of 24 tokens is full"));
    let stop = stdout(&stop);
    assert!(slide.starts_with(&stop) && stop.chars().count() == 25, "{stop}");
    let error = with("error");
    assert_eq!(error.status.code(), Some(2));
    assert!(stderr(&error).contains("context full"), "{}", stderr(&error));
}

/// A penalty that no logit outweighs: a greedy text then has no character twice among the last 10.
#[test]
fn penalties_keep_recent_characters_out() {
    let file = model();
    let path = file.path();
    let base = ["-m", text(&path), "-p", "A", "-n", "60", "--temp", "0"];
    for penalty in ["--frequency-penalty", "--presence-penalty"] {
        let args = [&base[..], &[penalty, "100", "--repeat-last-n", "10"]].concat();
        let text: Vec<char> = stdout(&run(&args)).chars().collect();
        assert_eq!(text.len(), 61);
        assert!(text.windows(11).all(|w| !w[..10].contains(&w[10])), "{text:?}");
    }
    // The opposite repeats one for ever.
    let args = [&base[..], &["--frequency-penalty", "-100"]].concat();
    assert!(stdout(&run(&args)).chars().skip(1).all(|c| c == 'A'));
}

#[test]
fn stop_texts_end_the_output_before_them() {
    let file = model();
    let path = file.path();
    let base = ["-m", text(&path), "-p", "A", "-n", "60", "-s", "4", "--no-display-prompt"];
    let whole = stdout(&run(&base));
    let stop: String = whole.chars().skip(20).take(3).collect();
    let before = &whole[..whole.find(&stop).expect("it is a part")];
    let cut = stdout(&run(&[&base[..], &["--stop", "never", "-r", &stop]].concat()));
    assert_eq!(cut, before);
}

#[test]
fn length_zero_prints_the_prompt_alone() {
    let file = model();
    let path = file.path();
    assert_eq!(stdout(&run(&["-m", text(&path), "-p", "ABC", "-n", "0"])), "ABC");
}

#[test]
fn prompts_come_from_files_too() {
    let file = model();
    let path = file.path();
    let prompt = path.with_file_name("prompt.txt");
    std::fs::write(&prompt, "BAD").expect("a temporary file");
    let args = ["-m", text(&path), "-f", text(&prompt), "-n", "9", "-s", "1"];
    let from_file = stdout(&run(&args));
    assert_eq!(from_file, stdout(&run(&["-m", text(&path), "-p", "BAD", "-n", "9", "-s", "1"])));
}

#[test]
fn statistics_go_to_standard_error() {
    let file = model();
    let path = file.path();
    let args = ["-m", text(&path), "-p", "A", "-n", "20", "-s", "77"];
    let plain = run(&args);
    let output = run(&[&args[..], &["--stats"]].concat());
    assert_eq!(stdout(&output), stdout(&plain));
    assert!(plain.stderr.is_empty());
    let report = stderr(&output);
    for word in ["tok/s", "GB/s", "first", "cpu", "seed     77", "20 tokens"] {
        assert!(report.contains(word), "{word}: {report}");
    }
}

/// What the program takes beside the mapped file and the keys and values: at most 2 MB.
#[test]
#[cfg(target_os = "linux")]
fn decoding_takes_little_memory() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let model = root.join("data/shakespeare.safetensors");
    let args = ["-m", text(&model), "-p", "ROMEO:", "-n", "300", "--threads", "2", "--stats"];
    let report = stderr(&run(&args));
    let line = report.lines().find_map(|line| line.strip_prefix("memory ")).expect("a line of it");
    let numbers: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // 320 slots of 4 layers, 256 keys and 256 values.
    assert_eq!(numbers[0], 2.62, "{line}");
    assert!(numbers[1] < 2.0, "{line}");
}

#[test]
fn threads_and_storage_of_keys_and_values_are_chosen() {
    let file = model();
    let path = file.path();
    let generate = |options: &[&str]| {
        let args = ["-m", text(&path), "-p", "A", "-n", "20", "-s", "5", "--stats"];
        run(&[&args[..], options].concat())
    };
    let plain = generate(&["--threads", "1"]);
    assert!(stderr(&plain).contains("1 thread\n"), "{}", stderr(&plain));
    let threads = generate(&["-t", "3"]);
    assert!(stderr(&threads).contains("3 threads"), "{}", stderr(&threads));
    assert_eq!(stdout(&threads), stdout(&plain));
    let small = generate(&["--kv-dtype", "q8", "--fast"]);
    assert!(stderr(&small).contains("keys and values in q8"), "{}", stderr(&small));
    let path = text(&path);
    assert!(refusal(&["-m", path, "-t", "257"]).contains("threads: found 257"));
    assert!(refusal(&["-m", path, "--kv-dtype", "q4"]).contains("f32, f16 or q8"));
    assert!(refusal(&["-m", path, "-d", "cuda", "--kv-dtype", "f16"]).contains("f32 on a GPU"));
}

#[test]
fn wrong_arguments_and_files_are_refused_in_words() {
    let file = model();
    let path = file.path();
    let path = text(&path);
    let lower = refusal(&["-m", path, "-p", "ABCx"]);
    assert!(lower.contains("'x'") && lower.contains("U+0078"), "{lower}");
    assert!(refusal(&["-m", "nowhere.safetensors"]).contains("nowhere.safetensors"));
    assert!(refusal(&["-m", "."]).contains("folder"));
    assert!(refusal(&["-m", path, "-p", "A", "-f", "x"]).contains("cannot be used with"));
    assert!(refusal(&["-m", path, "-f", "nowhere.txt"]).contains("nowhere.txt"));
    assert!(refusal(&["-m", path, "-n", "-1"]).contains("-1"));
    assert!(refusal(&["-m", path, "-n", "many"]).contains("many"));
    assert!(refusal(&["-m", path, "-p", "A", "--temperature", "nan"]).contains("temperature"));
    assert!(refusal(&["-m", path, "-p", "A", "--temperature=-1"]).contains("temperature"));
    assert!(refusal(&["-m", path, "-p", "A", "--top-p", "0"]).contains("top_p"));
    for penalty in ["repeat", "frequency", "presence"] {
        let message = refusal(&["-m", path, "-p", "A", &format!("--{penalty}-penalty"), "101"]);
        assert!(message.contains(&format!("{penalty}_penalty")), "{message}");
    }
    assert!(refusal(&["-m", path, "-p", "A", "--min-p", "2"]).contains("min_p"));
    assert!(refusal(&["-m", path, "--overflow", "wrap"]).contains("wrap"));
    assert!(refusal(&["--lenght", "3"]).contains("--length"), "the nearest flag is named");
    // The vocabulary lacks a line break, from which an empty prompt would begin.
    assert!(refusal(&["-m", path, "-p", ""]).contains("U+000A"));
    let damaged = Path::new(path).with_file_name("damaged.safetensors");
    let bytes = std::fs::read(path).expect("just written");
    std::fs::write(&damaged, &bytes[..bytes.len() - 1]).expect("a temporary file");
    assert!(refusal(&["-m", text(&damaged), "-p", "A"]).contains("header"));
}

/// `--config FILE --split S --examples N`, as teenyGPT's generate.py.
#[test]
fn examples_come_from_the_split_of_a_corpus() {
    let file = model();
    let path = file.path();
    let folder = path.parent().expect("a folder");
    let corpus: String = (0..4000u32).map(|i| char::from(b'A' + (i * i / 7 % 29) as u8)).collect();
    std::fs::write(folder.join("corpus.txt"), &corpus).expect("a temporary file");
    let config = folder.join("config.ini");
    let ini = format!(
        "[dataset]\ninput_file = {}\ntokens_per_chunk = 100\n[model]\nmax_seq_len = 24\n\
         [train]\nn_context = 20\n",
        folder.join("corpus.txt").display()
    );
    std::fs::write(&config, ini).expect("a temporary file");
    let base = ["-m", text(&path), "--config", text(&config), "-s", "5", "-n", "30"];
    for split in ["train", "val", "test"] {
        let out = stdout(&run(&[&base[..], &["--split", split, "--examples", "3"]].concat()));
        let mut examples = out.split("EXAMPLE ").skip(1);
        for i in 1..=3 {
            let example = examples.next().expect("three of them");
            assert!(example.starts_with(&format!("{i}\n---------\n\n")), "{out}");
            let (prompt, rest) = example[13..].split_once(" [[START]] ").expect("the mark");
            assert_eq!(prompt.chars().count(), 20);
            assert!(corpus.contains(prompt), "the prompt is from the corpus");
            let generated = rest.split('\n').next().expect("a line");
            assert_eq!(generated.chars().count(), 30);
        }
        assert!(examples.next().is_none());
    }
    let one = stdout(&run(&[&base[..], &["--split", "val", "--examples", "1"]].concat()));
    let two = stdout(&run(&[&base[..], &["--split", "val", "--examples", "2"]].concat()));
    assert!(two.starts_with(&one), "the first example does not depend on their number");
    let test = stdout(&run(&[&base[..], &["--split", "test"]].concat()));
    assert_eq!(stdout(&run(&base)), test, "the default split");
    assert!(refusal(&["--split", "val"]).contains("--config"));
    assert!(refusal(&["--config", text(&config), "-p", "A"]).contains("--prompt"));
    assert!(refusal(&[&base[..], &["--split", "dev"]].concat()).contains("dev"));
    std::fs::write(&config, "[dataset]\ninput_fiel = x\n").expect("a temporary file");
    let message = refusal(&[&base[..], &["--split", "val"]].concat());
    assert!(message.contains("config.ini:2") && message.contains("input_file"), "{message}");
}

#[test]
fn version_and_completions() {
    let version = stdout(&run(&["--version"]));
    assert!(version.contains("backends: cpu") && version.contains("scalar"), "{version}");
    let completions = stdout(&run(&["--completions", "bash"]));
    assert!(completions.contains("--top-k"));
}

/// `teeny-run | head` ends quietly.
#[test]
fn a_closed_pipe_is_no_failure() {
    let file = model();
    let path = file.path();
    let mut child = Command::new(program("teeny-run"))
        .args(["-m", text(&path), "-p", "A", "-n", "200000"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
}

/// The file that the repository ships: the README's command.
#[test]
fn the_model_that_ships_writes_like_its_corpus() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("data/shakespeare.safetensors");
    assert!(std::fs::metadata(&path).expect("it is in the repository").len() < 6_000_000);
    let output = Command::new(program("teeny-run"))
        .args(["--prompt", "ROMEO:", "--length", "2000", "--seed", "1", "--stats"])
        .current_dir(std::env::temp_dir())
        .output()
        .expect("the program starts");
    let text = stdout(&output);
    assert_eq!(text.chars().count(), 2006);
    let speakers = text.lines().filter(|line| {
        line.ends_with(':') && line.chars().filter(|c| c.is_alphabetic()).count() > 2
    });
    assert!(speakers.count() >= 5, "{text}");
    // Words of the corpus: at least three of four that it writes are among them.
    let words = |text: &str| -> Vec<String> {
        let letters = |c: char| !c.is_alphabetic() && c != '\'';
        text.split(letters).filter(|w| w.len() > 1).map(str::to_lowercase).collect()
    };
    let corpus = root.join("data/tiny_shakespeare.txt");
    let corpus = std::fs::read_to_string(corpus).expect("data/fetch.sh has put it there");
    let known: std::collections::HashSet<String> = words(&corpus).into_iter().collect();
    let written = words(&text);
    let share = written.iter().filter(|w| known.contains(*w)).count() as f64 / written.len() as f64;
    assert!(share > 0.75, "{share:.2} of the words are English: {text}");
}
