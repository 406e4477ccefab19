//! What a user sees of teeny-convert, by running the binary.

use std::path::Path;
use std::process::{Command, Output};

use teeny_runtime::format::{self, TensorSpec};
use teeny_runtime::{Dtype, Weights};
use teeny_tests::{RandomModel, every_kind, program, tokenizer};

fn run(args: &[&str]) -> (Option<i32>, String) {
    let output: Output =
        Command::new(program("teeny-convert")).args(args).output().expect("the program starts");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.stdout.is_empty() && !message.contains("panicked"), "{args:?}: {message}");
    (output.status.code(), message)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is UTF-8")
}

/// A model with a norm, and with metadata beside the format's own.
fn model() -> RandomModel {
    let config = every_kind().remove(6);
    let file = RandomModel::new(&config, Dtype::F32, 1);
    let weights = Weights::map(&file.path()).expect("a file of our own");
    let extra = [("dataset_file".to_owned(), "a text.txt".to_owned())];
    let mut values = |spec: &TensorSpec| {
        weights.tensor(&spec.name).expect("there").to_f32().expect("enough memory")
    };
    let vocabulary = tokenizer(config.vocab_size);
    format::write_model(&file.path(), &config, &vocabulary, &extra, Dtype::F32, &mut values)
        .expect("a folder that can be written");
    file
}

#[test]
fn every_type_to_every_type_keeps_the_metadata_and_says_what_it_did() {
    let file = model();
    let original = Weights::map(&file.path()).expect("a file of our own");
    for from in Dtype::ALL {
        let input = file.path().with_file_name(from.name());
        let (code, message) =
            run(&[text(&file.path()), "--dtype", from.name(), "--output", text(&input)]);
        assert_eq!((code, message.lines().count()), (Some(0), 1), "{message}");
        let exact = *from == Dtype::F32;
        assert_eq!(message.contains("the same numbers"), exact, "{message}");
        for to in Dtype::ALL {
            let output = file.path().with_file_name("output");
            let (code, message) = run(&[text(&input), "-d", to.name(), "-o", text(&output)]);
            assert_eq!(code, Some(0), "{message}");
            let result = Weights::map(&output).expect("a file of our own");
            assert_eq!((result.dtype(), result.config()), (Some(*to), original.config()));
            assert_eq!(result.metadata()["dataset_file"], "a text.txt");
            let mut metadata = result.metadata().clone();
            let version = if to.is_quantised() { "3" } else { "1" };
            let written = metadata.insert("format_version".to_owned(), "1".to_owned());
            assert_eq!(written.as_deref(), Some(version));
            assert_eq!(&metadata, original.metadata());
            let report = message.lines().last().expect("a line");
            for part in [from.name(), to.name(), "MB", text(&input), text(&output)] {
                assert!(report.contains(part), "{report}");
            }
            let again = from.is_quantised() && to.is_quantised() && from != to;
            assert_eq!(message.contains("does not come back"), again, "{message}");
            if from == to {
                assert!(report.contains("the same numbers"), "{report}");
                let read = |path| std::fs::read(path).expect("there");
                assert!(read(&input) == read(&output));
            }
        }
    }
}

#[test]
fn wrong_calls_say_what_is_wrong() {
    let file = model();
    let path = file.path();
    let before = std::fs::read(&path).expect("there");
    let folder = path.parent().expect("a folder");
    let (link, output) = (folder.join("link"), folder.join("output"));
    std::os::unix::fs::symlink(&path, &link).expect("a folder that can be written");
    for (args, code, expected) in [
        (vec![], 2, "--output"),
        (vec![text(&path), "-o", text(&output)], 2, "--dtype"),
        (vec![text(&path), "-d", "q5", "-o", text(&output)], 2, "f32, f16, bf16, q8, q4"),
        (vec![text(&output), "-d", "q8", "-o", text(&link)], 2, "cannot open model"),
        (vec![text(folder), "-d", "q8", "-o", text(&output)], 2, "a folder without config.json"),
        (vec![text(&path), "-d", "q8", "-o", text(&path)], 2, "which the model is read from"),
        (vec![text(&path), "-d", "q8", "-o", text(&link)], 2, "which the model is read from"),
        (vec![text(&path), "-d", "q8", "-o", "/nowhere/at/all"], 1, "cannot write /nowhere"),
    ] {
        let (found, message) = run(&args);
        assert_eq!(found, Some(code), "{args:?}: {message}");
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    assert!(!output.exists());
    assert!(std::fs::read(&path).expect("there") == before);
}

#[test]
fn a_number_that_the_type_cannot_hold_is_named() {
    let file = model();
    let config = every_kind().remove(6);
    let large = |spec: &TensorSpec| if spec.name.contains("up_proj") { 1e7 } else { 0.5 };
    let mut large = |spec: &TensorSpec| vec![large(spec); spec.len()];
    let vocabulary = tokenizer(config.vocab_size);
    format::write_model(&file.path(), &config, &vocabulary, &[], Dtype::F32, &mut large)
        .expect("a folder that can be written");
    let output = file.path().with_file_name("output");
    for dtype in ["f16", "q8", "q4"] {
        let (code, message) = run(&[text(&file.path()), "-d", dtype, "-o", text(&output)]);
        assert_eq!(code, Some(2), "{message}");
        assert!(message.contains(dtype) && message.contains("up_proj.weight"), "{message}");
        assert!(!output.exists());
    }
}

#[test]
fn completions_and_version_are_printed() {
    let print = |args: &[&str]| {
        let output =
            Command::new(program("teeny-convert")).args(args).output().expect("the program starts");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert!(print(&["--version"]).starts_with("teeny-convert "));
    assert!(print(&["--completions", "bash"]).contains("--dtype"));
    assert!(print(&["--help"]).contains("q4"));
}
