//! The examples of `ffi/examples`, built as a user builds them and run with the model that ships.
//!
//! The oracle for text is `teeny-run` with the same prompt, seed and length, for scores the softmax of
//! the Rust interface's logits, for C++ what the C program of the same name prints.

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, OnceLock};

use teeny_runtime::format::{self, TensorSpec};
use teeny_runtime::tokenizer::{CharTokenizer, Tokenizer};
use teeny_runtime::{
    Cpu, Dtype, EndReason, Ffn, GenerateOptions, Model, Norm, Overflow, PositionalEncoding,
    Sampler, SamplerOptions, Session, Weights, generate, score,
};
use teeny_tests::{Random, library, program, random_values, small};
use tempfile::TempDir;

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// Linked into each example: at the end of the program nothing of teeny's may be left. (That nothing
/// else is, the address sanitizer sees.)
const ALL_FREED: &str = "#include <stdio.h>\n#include <unistd.h>\n#include \"teeny.h\"\n\
    __attribute__((destructor)) static void all_freed(void) {\n\
    if (teeny_object_count() != 0) { fprintf(stderr, \"objects are left\\n\"); _exit(99); }\n}\n";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

/// The model that ships.
fn shakespeare() -> String {
    root().join("data/shakespeare.safetensors").to_str().expect("UTF-8").to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Succeeds without a word.
#[track_caller]
fn quiet(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
}

/// An example, built from C and from C++.
struct Example {
    folder: TempDir,
    programs: Vec<PathBuf>,
}

impl Example {
    /// Builds `ffi/examples/NAME.c` and `NAME.cpp`, with sanitizers.
    fn new(name: &str) -> Example {
        let sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
        Example::with(name, &sanitizers, true)
    }

    fn with(name: &str, args: &[&str], shared: bool) -> Example {
        let folder = tempfile::tempdir().expect("a temporary folder");
        static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
        let library = LIBRARY.get_or_init(library);
        for link in ["libteeny.so", "libteeny.so.1"] {
            let to = library.join("libteeny.so");
            symlink(to, folder.path().join(link)).expect("an empty folder");
        }
        let all_freed = folder.path().join("all_freed.c");
        std::fs::write(&all_freed, ALL_FREED).expect("a temporary file");
        let object = folder.path().join("all_freed.o");
        let compiled =
            compiler("cc", "c99").arg("-c").arg(&all_freed).arg("-o").arg(&object).output();
        quiet(&compiled.expect("a C compiler"));

        let mut programs = Vec::new();
        for (compiler_name, standard, suffix) in [("cc", "c99", "c"), ("c++", "c++17", "cpp")] {
            let source = root().join(format!("ffi/examples/{name}.{suffix}"));
            let path = folder.path().join(format!("{name}_{suffix}"));
            let mut command = compiler(compiler_name, standard);
            command.args(args).arg("-o").arg(&path).arg(&source).arg(&object);
            if shared {
                command.arg("-L").arg(folder.path()).arg("-lteeny");
                command.arg(format!("-Wl,-rpath,{}", folder.path().display()));
            } else {
                command.arg(library.join("libteeny.a")).arg("-ldl");
            }
            quiet(&command.args(["-lm", "-lpthread"]).output().expect("a compiler"));
            programs.push(path);
            if suffix == "cpp" {
                let mut command = compiler(compiler_name, "c++20");
                quiet(&command.arg("-fsyntax-only").arg(&source).output().expect("a C++ compiler"));
            }
        }
        Example { folder, programs }
    }

    /// Runs the C program, and the C++ program, which must print the same.
    #[track_caller]
    fn run(&self, args: &[&str], input: &str) -> Output {
        let mut outputs = self.programs.iter().map(|program| run_in(&root(), program, args, input));
        let c = outputs.next().expect("a C program");
        for cxx in outputs {
            assert_eq!(text(&cxx.stdout), text(&c.stdout), "{args:?} {}", text(&cxx.stderr));
            assert_eq!(cxx.status, c.status, "{args:?} {}", text(&cxx.stderr));
        }
        c
    }

    /// What it prints, which must succeed.
    #[track_caller]
    fn prints(&self, args: &[&str]) -> String {
        let output = self.run(args, "");
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Fails with this exit code and a message with `part` on the standard error alone.
    #[track_caller]
    fn fails(&self, args: &[&str], code: i32, part: &str) {
        for program in &self.programs {
            let output = run_in(&root(), program, args, "FIRST LORD\n");
            let message = text(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(code),
                "{} {args:?}: {message}",
                program.display()
            );
            assert!(message.contains(part), "{} {args:?}: {message}", program.display());
            assert_eq!(text(&output.stdout), "", "{} {args:?}", program.display());
        }
    }

    /// Text that nobody gets is a failure.
    #[track_caller]
    fn notices_a_full_disk(&self, args: &[&str]) {
        for program in &self.programs {
            let full = File::options().write(true).open("/dev/full").expect("Linux");
            let mut command = Command::new(program);
            command.args(args).current_dir(root()).stdin(Stdio::piped()).stdout(full);
            let mut child = command.stderr(Stdio::null()).spawn().expect("it starts");
            let _ = child.stdin.take().expect("a pipe").write_all(b"Who is Juliet?\n");
            let status = child.wait().expect("it ends");
            assert_eq!(status.code(), Some(1), "{} {args:?}", program.display());
        }
    }

    /// What is no number is refused in the place of the last of `args`.
    #[track_caller]
    fn refuses_what_is_no_number(&self, args: &[&str]) {
        for wrong in ["", "x", "-1", "+1", " 1", "1 ", "1x", "99999999999999999999"] {
            self.fails(&[args, &[wrong]].concat(), 2, "usage: ");
        }
    }

    /// What every example that takes a model does about a wrong one. `rest` follows the model.
    #[track_caller]
    fn refuses_what_is_no_model(&self, rest: &[&str]) {
        let foreign = self.folder.path().join("foreign.safetensors");
        std::fs::write(&foreign, "#!/bin/sh\nno model\n").expect("a temporary file");
        let foreign = foreign.to_str().expect("UTF-8");
        self.fails(&[&["no/such/file"], rest].concat(), 1, "no/such/file");
        self.fails(&[&[foreign], rest].concat(), 1, "model file: ");
        self.fails(&[], 2, "usage: ");
        let model = shakespeare();
        self.fails(&[&[model.as_str()], rest, &["1", "2", "3", "4"]].concat(), 2, "usage: ");
    }
}

/// A compiler that finds the headers and allows no warning.
fn compiler(name: &str, standard: &str) -> Command {
    let mut command = Command::new(name);
    command.arg(format!("-std={standard}")).args(["-O1", "-g"]).args(WARNINGS);
    command.arg("-I").arg(root().join("ffi/include")).current_dir(root());
    command
}

fn run_in(folder: &Path, program: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(args)
        .env("TSAN_OPTIONS", "ignore_noninstrumented_modules=1")
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // One that fails early does not read its input.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

/// The text that `teeny-run` generates from the model that ships.
fn teeny_run(prompt: &str, length: usize, seed: u64, args: &[&str]) -> String {
    let (length, seed) = (length.to_string(), seed.to_string());
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let output = Command::new(PROGRAM.get_or_init(|| program("teeny-run")))
        .args([
            "--no-display-prompt",
            "-m",
            &shakespeare(),
            "-p",
            prompt,
            "-n",
            &length,
            "-s",
            &seed,
        ])
        .args(args)
        .output()
        .expect("it starts");
    quiet(&output);
    text(&output.stdout)
}

fn model() -> Arc<Model<Cpu>> {
    let weights = Weights::map(Path::new(&shakespeare())).expect("the model that ships");
    Arc::new(Model::load(Cpu::new(), &weights).expect("enough memory"))
}

#[test]
fn first_continues_romeo() {
    let example = Example::new("first");
    assert_eq!(example.prints(&[]), teeny_run("ROMEO:", 256, 0, &[]));
    // Where there is no data/shakespeare.safetensors.
    for program in &example.programs {
        let output = run_in(example.folder.path(), program, &[], "");
        assert_eq!(output.status.code(), Some(1), "{}", program.display());
        assert!(text(&output.stderr).contains("data/shakespeare.safetensors"));
    }
}

#[test]
fn generate_prints_what_teeny_run_prints() {
    let example = Example::new("generate");
    let model = shakespeare();
    assert_eq!(
        example.prints(&[&model, "JULIET:\n", "100", "7"]),
        teeny_run("JULIET:\n", 100, 7, &[])
    );
    assert_eq!(example.prints(&[&model, "O"]), teeny_run("O", 256, 0, &[]));
    example.refuses_what_is_no_model(&["O"]);
    example.fails(&[&model, "wh\u{e4}t"], 1, "U+00E4");
    example.fails(&[&model, ""], 1, ": ");
    example.refuses_what_is_no_number(&[&model, "O"]);
    example.refuses_what_is_no_number(&[&model, "O", "1"]);
    example.notices_a_full_disk(&[&model, "O"]);
}

/// Nothing but the program: it is linked with the static library and runs in an empty folder.
#[test]
fn embedded_needs_no_file() {
    let example = Example::with("embedded", &[], false);
    let empty = tempfile::tempdir().expect("a temporary folder");
    for program in &example.programs {
        let output = run_in(empty.path(), program, &["100"], "");
        quiet(&output);
        assert_eq!(text(&output.stdout), teeny_run("ROMEO:", 100, 0, &[]));
        let needs = Command::new("readelf").arg("-d").arg(program).output().expect("binutils");
        assert!(!text(&needs.stdout).contains("libteeny"), "the library is inside");
    }
    assert_eq!(example.prints(&[]), teeny_run("ROMEO:", 256, 0, &[]));
    example.refuses_what_is_no_number(&[]);
    example.fails(&["1", "2"], 2, "usage: ");
    example.notices_a_full_disk(&[]);
}

#[test]
fn pull_ends_with_the_paragraph() {
    let example = Example::new("pull");
    let model = shakespeare();
    let chain = "--repeat-penalty 1.1 --top-k 20 --top-p 0.9 --min-p 0 --temperature 0.7";
    let mut args: Vec<&str> = chain.split(' ').collect();
    args.extend(["-r", "\n\n"]);
    for prompt in ["ROMEO:\n", "MENENIUS:\n", "Enter", "KING HENRY VI:\nThe"] {
        let expected = teeny_run(prompt, 1000, 1, &args) + "\n";
        assert_eq!(example.prints(&[&model, prompt]), expected);
        assert!(!expected.contains("\n\n"));
    }
    example.refuses_what_is_no_model(&["O"]);
    example.fails(&[&model, "wh\u{e4}t"], 1, "U+00E4");
    example.notices_a_full_disk(&[&model, "O"]);
}

#[test]
fn characters_share_their_prompt() {
    let example = Example::new("characters");
    let model = shakespeare();
    // More than 64 tokens, of which the forks share the first 64.
    let prompt =
        "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak.\n\n";
    let output = example.run(&[&model, prompt, "3", "60"], "");
    let expected: String = (0..3)
        .map(|seed| format!("--- {seed} ---\n{}\n", teeny_run(prompt, 60, seed, &[])))
        .collect();
    assert_eq!(text(&output.stdout), expected);
    let memory = text(&output.stderr);
    assert_eq!(memory.lines().count(), 3, "{memory}");
    for line in memory.lines() {
        let numbers: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let &[bytes, shared] = numbers.as_slice() else { panic!("{line}") };
        assert!(0 < shared && shared < bytes, "{line}");
    }
    assert_eq!(example.run(&[&model, "ROMEO:", "1", "5"], "").status.code(), Some(0));
    example.refuses_what_is_no_model(&["O", "2"]);
    example.fails(&[&model, "O", "0"], 2, "usage: ");
    example.refuses_what_is_no_number(&[&model, "O"]);
    example.refuses_what_is_no_number(&[&model, "O", "2"]);
    example.notices_a_full_disk(&[&model, "O", "2"]);
    example.fails(&[&model, "wh\u{e4}t", "2"], 1, "U+00E4");
}

/// log p of every token after these logits, in double precision.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().map(f64::from).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    logits.iter().map(|x| f64::from(*x) - max - sum.ln()).collect()
}

/// A token as the example prints it.
fn quoted(tokenizer: &Tokenizer, token: u32) -> String {
    format!("'{}'", text(tokenizer.token_bytes(token).expect("a token")).replace('\n', "\\n"))
}

/// The number, printed with four places, is this one.
#[track_caller]
fn near(printed: &str, expected: f64) {
    let number: f64 = printed.parse().unwrap_or_else(|e| panic!("{printed}: {e}"));
    assert!((number - expected).abs() < 6e-5 + expected.abs() * 1e-6, "{printed} {expected}");
}

#[test]
fn score_agrees_with_the_logits() {
    const TOP_N: usize = 4;
    let example = Example::new("score");
    let phrase = "ROMEO:\nIs the day so young? 'Tis; quizzical, zany.";
    let printed = example.prints(&[&shakespeare(), phrase, &TOP_N.to_string()]);

    let model = model();
    let tokenizer = model.tokenizer();
    let tokens = tokenizer.encode(phrase).expect("its characters");
    let mut session = Session::new(&model, Overflow::Slide).expect("enough memory");
    let mut lines = printed.lines();
    let mut sum = 0.0;
    for (i, token) in tokens.iter().enumerate() {
        let mut fields = lines.next().expect("a line for each token").split('\t');
        assert_eq!(fields.next(), Some(quoted(tokenizer, *token).as_str()), "{i}");
        if i == 0 {
            assert_eq!(fields.collect::<Vec<_>>(), ["-"]);
        } else {
            let log_probs = log_softmax(session.logits());
            sum += log_probs[*token as usize];
            near(fields.next().expect("a log-probability"), log_probs[*token as usize]);
            let mut order: Vec<u32> = (0..log_probs.len() as u32).collect();
            order.sort_by(|a, b| log_probs[*b as usize].total_cmp(&log_probs[*a as usize]));
            for token in &order[..TOP_N] {
                let (name, p) = fields.next().and_then(|f| f.rsplit_once(' ')).expect("'x' 0.5");
                assert_eq!(name, quoted(tokenizer, *token), "{i}");
                near(p, log_probs[*token as usize].exp());
            }
            assert_eq!(fields.next(), None);
        }
        session.decode(*token).expect("a token");
    }
    let last = lines.next().expect("a line with the sums");
    assert_eq!(lines.next(), None);
    let mut numbers = last
        .split([' ', ','])
        .filter(|word| word.starts_with(|c: char| c == '-' || c.is_ascii_digit()));
    assert_eq!(numbers.next(), Some((tokens.len() - 1).to_string().as_str()), "{last}");
    let mut session = Session::new(&model, Overflow::Slide).expect("enough memory");
    let total = score(&mut session, &tokens, 0, &mut |_| ()).expect("tokens");
    for expected in [sum, total.log_prob] {
        near(numbers.clone().next().expect("the sum"), expected);
    }
    for expected in [(-sum / (tokens.len() - 1) as f64).exp(), total.perplexity()] {
        near(numbers.clone().nth(1).expect("the perplexity"), expected);
    }

    // More alternatives than there are tokens; none; the usual three.
    let fields = |args: &[&str]| {
        let printed = example.prints(&[&[&shakespeare(), "To"], args].concat());
        printed.lines().nth(1).expect("two tokens").split('\t').count()
    };
    assert_eq!(fields(&["999"]), 2 + tokenizer.vocab_size());
    assert_eq!((fields(&["0"]), fields(&[])), (2, 2 + 3));

    example.refuses_what_is_no_model(&["To"]);
    example.fails(&[&shakespeare(), "wh\u{e4}t"], 1, "U+00E4");
    example.fails(&[&shakespeare(), "O"], 1, ": ");
    example.fails(&[&shakespeare(), ""], 1, ": ");
    example.fails(&[&shakespeare(), "To", "1001"], 2, "usage: ");
    example.refuses_what_is_no_number(&[&shakespeare(), "To"]);
    example.notices_a_full_disk(&[&shakespeare(), "To"]);
}

/// What a Rust session answers to each line, and its position in the end.
fn conversation(model: &Arc<Model<Cpu>>, lines: &[&str], seed: u64) -> (String, usize) {
    let mut session = Session::new(model, Overflow::Slide).expect("enough memory");
    let options = SamplerOptions { seed, ..Default::default() };
    let mut sampler = Sampler::new(options).expect("the defaults");
    let stop = vec!["\n\n".to_owned()];
    let options =
        GenerateOptions { max_tokens: 400, stop, feed_last: true, ..GenerateOptions::default() };
    let mut out = String::new();
    let mut between = "";
    for line in lines {
        let prompt = format!("{between}FIRST LORD:\n{line}\n\nROMEO:\n");
        let prompt = model.tokenizer().encode(&prompt).expect("its characters");
        let mut print = |piece: &str| {
            out.push_str(piece);
            ControlFlow::Continue(())
        };
        let done = generate(&mut session, &mut sampler, &prompt, &options, &mut print);
        // A speech that was cut off is closed before the next one.
        let stopped = done.expect("text").reason == EndReason::StopText;
        between = if stopped { "" } else { "\n\n" };
        out.push_str("\n\n");
    }
    (out, session.n_tokens())
}

/// A model of random weights, which speaks on and on, with a vocabulary that covers the play's.
fn babbler(path: &Path) -> Arc<Model<Cpu>> {
    let chars: String = "\n !',.:?\u{e9}".chars().chain('A'..='Z').chain('a'..='z').collect();
    let tokenizer = Tokenizer::Char(CharTokenizer::from_text(&chars));
    let mut config = small(PositionalEncoding::Rope, Norm::RmsNorm, Ffn::Swiglu);
    config.vocab_size = tokenizer.vocab_size();
    let mut random = Random::new(3);
    let mut values = |spec: &TensorSpec| random_values(spec, &mut random);
    format::write_model(path, &config, &tokenizer, &[], Dtype::F32, &mut values)
        .expect("a valid configuration");
    let weights = Weights::map(path).expect("a file of our own");
    Arc::new(Model::load(Cpu::new(), &weights).expect("enough memory"))
}

#[test]
fn chat_keeps_one_session() {
    let example = Example::new("chat");
    let (model, shipped) = (shakespeare(), model());
    // Together they are longer than the context.
    let lines =
        ["Who is Juliet?", "Give me thy hand.", "Farewell, good Romeo!", "What say you now?"];
    let input = "Who is Juliet?\nwh\u{e4}t\n\nGive me thy hand.\r\nFarewell, good Romeo!\nWhat say you now?";
    for (args, seed) in [(vec![model.as_str()], 0), (vec![&model, "5"], 5)] {
        let output = example.run(&args, input);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let (expected, position) = conversation(&shipped, &lines, seed);
        assert_eq!(text(&output.stdout), expected);
        let said = text(&output.stderr);
        assert_eq!(said.matches("U+00E4").count(), 1, "{said}");
        let last = said.lines().last().expect("position and speed");
        assert!(last.starts_with(&format!("{position} tokens, ")), "{last}");
        assert!(last.ends_with(" tok/s"), "{last}");
        // The first answer needs no session.
        let prompt = "FIRST LORD:\nWho is Juliet?\n\nROMEO:\n";
        let first = teeny_run(prompt, 400, seed, &["-r", "\n\n"]);
        assert!(expected.starts_with(&(first + "\n\n")), "{expected}");
    }
    assert_eq!(example.prints(&[&model]), "", "nobody says anything");
    let path = example.folder.path().join("babbler.safetensors");
    let (expected, _) = conversation(&babbler(&path), &["Who is Juliet?", "Peace!"], 0);
    assert!(expected.chars().count() > 800, "both are cut off: {expected}");
    let output = example.run(&[path.to_str().expect("UTF-8")], "Who is Juliet?\nPeace!\n");
    assert_eq!(text(&output.stdout), expected);
    example.refuses_what_is_no_model(&[]);
    example.refuses_what_is_no_number(&[&model]);
    example.notices_a_full_disk(&[&model]);
}

/// It prints a beginning of the text and then one end of line.
#[track_caller]
fn prints_a_beginning(example: &Example, frames: &str) {
    for program in &example.programs {
        let output = run_in(&root(), program, &[&shakespeare(), "ROMEO:", frames], "");
        assert!(output.status.success(), "{}: {}", program.display(), text(&output.stderr));
        let printed = text(&output.stdout);
        let printed = printed.strip_suffix('\n').expect("an end of line");
        assert!(frames == "0" || !printed.is_empty(), "{}", text(&output.stderr));
        assert_eq!(printed, teeny_run("ROMEO:", printed.len(), 0, &[]), "{}", program.display());
        let begin = format!("{frames} frames, ");
        assert!(text(&output.stderr).starts_with(&begin), "{}", text(&output.stderr));
    }
}

#[test]
fn background_prints_a_beginning_and_ends_in_time() {
    let example = Example::new("background");
    for frames in ["20", "0"] {
        prints_a_beginning(&example, frames);
    }
    // It does not see the library's own locks, so it must not judge what happens inside.
    let tsan = Example::with("background", &["-fsanitize=thread"], true);
    prints_a_beginning(&tsan, "10");
    example.refuses_what_is_no_model(&["O"]);
    example.refuses_what_is_no_number(&[&shakespeare(), "O"]);
    example.notices_a_full_disk(&[&shakespeare(), "O", "10"]);
    for program in &example.programs {
        let output = run_in(&root(), program, &[&shakespeare(), "wh\u{e4}t", "600"], "");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("U+00E4"), "the other thread's message: {said}");
        assert!(!said.contains("600 frames"), "it ends at once: {said}");
    }
}
