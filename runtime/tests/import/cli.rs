//! `teeny-convert` and `teeny-run` on models of other programs, by running them.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use teeny_runtime::{Dtype, Weights};

use super::{folders, models, text};

/// Exit code, standard output and standard error.
fn run(program: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(program).args(args).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn convert(args: &[&str]) -> (Option<i32>, String) {
    let (code, out, errors) = run(env!("CARGO_BIN_EXE_teeny-convert"), args);
    assert!(out.is_empty() && !errors.contains("panicked"), "{args:?}: {out} {errors}");
    (code, errors)
}

fn folder(name: &str) -> std::path::PathBuf {
    folders(name).into_iter().find(|path| path.ends_with(name)).expect("it was made")
}

#[test]
fn converting_says_what_it_did() {
    let Some(root) = models() else { return };
    let output = root.join("cli.safetensors");
    let hf = folder("llama-bf16-biases");
    let (code, message) = convert(&[text(&hf), "-o", text(&output)]);
    assert_eq!(code, Some(0), "{message}");
    assert!(message.contains("(Hugging Face) -> "), "{message}");
    assert!(message.contains("(bf16, "), "{message}");
    assert!(message.contains("2 layers, 4 heads, width 32, context 64, 65 tokens"), "{message}");
    for dtype in Dtype::ALL {
        let (code, message) = convert(&[text(&hf), "-o", text(&output), "-d", dtype.name()]);
        assert_eq!(code, Some(0), "{message}");
        let weights = Weights::map(&output).expect("a file of ours");
        assert_eq!(weights.dtype(), Some(*dtype));
        assert_eq!(weights.metadata()["converted_from"], "Hugging Face");
    }
    let back = root.join("cli-hf");
    let (code, message) = convert(&[text(&output), "--to", "hf", "-o", text(&back)]);
    assert_eq!(code, Some(0), "{message}");
    assert!(back.join("tokenizer_config.json").exists());
    let nanogpt = folder("nanogpt-no-bias");
    let (ckpt, meta) = (nanogpt.join("ckpt.safetensors"), nanogpt.join("meta.json"));
    let args = [text(&ckpt), "-o", text(&output), "--n-head", "4", "--tokenizer", text(&meta)];
    assert_eq!(convert(&args).0, Some(0));
    let teenygpt = folder("teenygpt-alibi");
    let (model, ini) = (teenygpt.join("model.safetensors"), teenygpt.join("config.ini"));
    let args = [text(&model), "-o", text(&output), "--config", text(&ini)];
    assert_eq!(convert(&args).0, Some(0));
}

#[test]
fn wrong_calls_say_what_is_wrong() {
    let Some(root) = models() else { return };
    let output = root.join("cli-wrong.safetensors");
    let (nanogpt, teenygpt) = (folder("nanogpt-no-bias"), folder("teenygpt-alibi"));
    let llama = folder("llama-plain");
    let garbage = root.join("garbage.bin");
    std::fs::write(&garbage, [0xFF; 40]).expect("a folder that can be written");
    let (ckpt, meta) = (nanogpt.join("ckpt.safetensors"), nanogpt.join("meta.json"));
    let model = teenygpt.join("model.safetensors");
    let single = llama.join("model.safetensors");
    let rope = folder("teenygpt-rope").join("model.safetensors");
    let rescaled = root.join("rescaled.ini");
    let ini = std::fs::read_to_string(rope.with_file_name("config.ini")).expect("there");
    std::fs::write(&rescaled, ini + "rope_theta = 5000\n").expect("a folder that can be written");
    for (args, expected) in [
        (
            vec![text(&ckpt), "--tokenizer", text(&meta)],
            "n_head: found nothing, expected a divisor of n_embd = 32, by --n-head",
        ),
        (
            vec![text(&ckpt), "--tokenizer", text(&meta), "--n-head", "5"],
            "n_head: found 5, expected a divisor of n_embd = 32",
        ),
        (vec![text(&ckpt), "--n-head", "4"], "tokenizer: found nothing, expected --tokenizer"),
        (vec![text(&model)], "config: found nothing, expected --config with the config.ini"),
        (
            vec![text(&rope), "--config", text(&rescaled)],
            "rope_theta, rope_scaling: found numbers of rope, expected none of them",
        ),
        (vec![text(&single)], "expected that folder, which has config.json"),
        (vec![text(&garbage)], "expected a safetensors, GGUF or llama2.c file, or a folder"),
        (
            vec![text(&llama), "--to", "hf"],
            "--to hf: found a model of Hugging Face, expected one of",
        ),
        (
            vec![text(&llama), "--tokenizer", text(&meta)],
            "tokenizer: found one, expected none: a model of Hugging Face says it itself",
        ),
        (
            vec![text(&model), "--config", text(&meta), "--n-head", "4"],
            "n_head: found one, expected none: a model of teenyGPT says it itself",
        ),
        (vec![text(root)], "a folder without config.json"),
    ] {
        let (code, message) = convert(&[&args[..], &["-o", text(&output)]].concat());
        assert_eq!(code, Some(2), "{args:?}: {message}");
        assert!(message.contains(expected), "{args:?}: {message}");
        assert!(!output.exists());
    }
}

/// What is read is not overwritten.
#[test]
fn the_output_is_no_file_of_the_input() {
    if models().is_none() {
        return;
    }
    let (llama, nanogpt) = (folder("llama-plain"), folder("nanogpt-no-bias"));
    let (weights, meta) = (llama.join("model.safetensors"), nanogpt.join("itos.json"));
    let ckpt = nanogpt.join("ckpt.safetensors");
    for (args, output) in [
        (vec![text(&llama)], &weights),
        (vec![text(&ckpt), "--n-head", "4", "--tokenizer", text(&meta)], &meta),
        (vec![text(&ckpt), "--n-head", "4", "--tokenizer", text(&meta)], &ckpt),
    ] {
        let before = std::fs::read(output).expect("it was made");
        let (code, message) = convert(&[&args[..], &["-o", text(output)]].concat());
        assert_eq!(code, Some(2), "{message}");
        assert!(
            message.contains("which the model is read from, expected another file"),
            "{message}"
        );
        assert_eq!(std::fs::read(output).expect("still there"), before);
    }
    // The same vocabulary as a list.
    let output = llama.with_file_name("cli-itos.safetensors");
    let args = [text(&ckpt), "--n-head", "4", "--tokenizer", text(&meta), "-o", text(&output)];
    assert_eq!(convert(&args).0, Some(0));
}

/// A folder and a GGUF file run at once, with the text that their file of ours gives.
#[test]
fn models_of_others_run_without_being_written() {
    let Some(root) = models() else { return };
    let program = env!("CARGO_BIN_EXE_teeny-run");
    for model in [folder("llama-plain"), folder("gguf-plain").join("model.gguf")] {
        let output = root.join("cli-run.safetensors");
        assert_eq!(convert(&[text(&model), "-o", text(&output)]).0, Some(0));
        let continued = |model: &Path| {
            let args = ["-m", text(model), "-p", "HELLO", "-n", "20", "-s", "1"];
            let (code, out, errors) = run(program, &args);
            assert_eq!(code, Some(0), "{errors}");
            assert!(out.starts_with("HELLO") && out.len() > 10, "{out}");
            out
        };
        assert_eq!(continued(&model), continued(&output));
    }
}

/// `teeny-run --chat` with the lines of `input`.
fn chat(args: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_teeny-run"))
        .arg("--chat")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // One that is refused reads nothing.
    let _ = program.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = program.wait_with_output().expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_conversation_goes_line_by_line() {
    if models().is_none() {
        return;
    }
    let (talks, silent) = (folder("chat-chatml"), folder("llama-plain"));
    let args = ["-m", text(&talks), "-n", "6", "-s", "1", "--temperature", "0"];
    let (code, both, errors) = chat(&args, "Hello\n\nthe end\n");
    assert_eq!(code, Some(0), "{errors}");
    let (code, first, errors) = chat(&[&args[..], &["-p", "Hello"]].concat(), "");
    assert_eq!(code, Some(0), "{errors}");
    // The second answer knows of the first message.
    assert!(both.starts_with(&first) && both.len() > first.len(), "{first:?} {both:?}");
    let (_, alone, _) = chat(&args, "the end\n");
    assert_ne!(both[first.len()..], alone);
    for (args, expected) in [
        (vec!["-m", text(&silent)], "found a model without a chat template"),
        (vec!["-m", text(&talks), "--ignore-eos"], "cannot be used with"),
        (vec!["-m", text(&talks), "-f", "x"], "cannot be used with"),
    ] {
        let (code, out, errors) = chat(&args, "Hello\n");
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}");
        assert!(errors.contains(expected), "{args:?}: {errors}");
    }
}
