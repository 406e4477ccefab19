//! teeny.hpp as C++ programs see it: `hpp.cpp`, built in every way that it is meant to be used.
//!
//! The oracle for its text is the Rust interface; what else it checks is said there.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use teeny_runtime::{
    Cpu, Dtype, Ffn, GenerateOptions, Norm, Overflow, PositionalEncoding, Sampler, SamplerOptions,
    Session, generate,
};
use teeny_tests::{RandomModel, library, small};

const WARNINGS: [&str; 6] =
    ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"];
const COMPILERS: [&str; 2] = ["c++", "clang++"];
const STANDARDS: [&str; 2] = ["c++17", "c++20"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Succeeds without a word.
#[track_caller]
fn quiet(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Whether a program is installed; says aloud what is not tested without it.
fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        // Not eprintln, which the test runner keeps to itself.
        let _ = writeln!(std::io::stderr(), "skipped: {program} is not installed");
    }
    found
}

/// A compiler that finds the headers and allows no warning.
fn compiler(name: &str, standard: &str, args: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.arg(format!("-std={standard}")).args(["-g", "-O1"]).args(WARNINGS).args(args);
    command.arg("-I").arg(root().join("ffi/include"));
    command
}

/// A model, a prompt, and the text that the Rust interface generates after it, from seed 11.
struct Case {
    model: RandomModel,
    text: String,
}

/// Some of its characters take two bytes of UTF-8.
const PROMPT: &str = "AB\u{e9}";

fn case() -> &'static Case {
    static CASE: OnceLock<Case> = OnceLock::new();
    CASE.get_or_init(|| {
        let mut config = small(PositionalEncoding::Rope, Norm::RmsNorm, Ffn::Swiglu);
        config.vocab_size = 200;
        let file = RandomModel::new(&config, Dtype::F32, 5);
        let model = file.load(Cpu::new());
        let mut session = Session::new(&model, Overflow::Slide).expect("enough memory");
        let options = SamplerOptions { seed: 11, ..Default::default() };
        let mut sampler = Sampler::new(options).expect("valid options");
        let tokens = model.tokenizer().encode(PROMPT).expect("in the vocabulary");
        let options = GenerateOptions { max_tokens: 100, ..GenerateOptions::default() };
        let mut text = String::new();
        generate(&mut session, &mut sampler, &tokens, &options, &mut |piece| {
            text.push_str(piece);
            ControlFlow::Continue(())
        })
        .expect("a sound model");
        assert!(!text.is_ascii() && text.chars().count() == 100);
        Case { model: file, text }
    })
}

/// Builds `hpp.cpp`, for which it is not to say anything, and runs it, for which it is not either.
#[track_caller]
fn run(name: &str, standard: &str, args: &[&str]) {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    let library = LIBRARY.get_or_init(library);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join("program");
    let mut compiler = compiler(name, standard, args);
    compiler.arg(root().join("tests/hpp.cpp")).arg("-o").arg(&program);
    compiler.arg("-L").arg(library).arg("-lteeny").arg("-lpthread");
    compiler.arg(format!("-Wl,-rpath,{}", library.display()));
    quiet(&compiler.output().expect("a C++ compiler"));
    let Case { model, text } = case();
    let mut program = Command::new(program);
    program.arg(model.path()).arg(folder.path()).args([PROMPT, text]);
    // It does not see the library's own locks, so it must not judge what happens inside.
    program.env("TSAN_OPTIONS", "ignore_noninstrumented_modules=1");
    quiet(&program.output().expect("it starts"));
}

#[test]
fn the_header_alone_compiles_without_a_warning() {
    for name in COMPILERS {
        if name.starts_with("clang") && !installed(name) {
            continue;
        }
        for standard in STANDARDS {
            let ways: [&[&str]; 5] = [
                &[],
                &["-fno-exceptions"],
                &["-fno-rtti"],
                &["-fno-exceptions", "-fno-rtti"],
                &["-DTEENY_NO_EXCEPTIONS"],
            ];
            for args in ways {
                let mut compiler = compiler(name, standard, args)
                    .args(["-x", "c++", "-fsyntax-only", "-"])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .expect("a C++ compiler");
                let mut input = compiler.stdin.take().expect("piped");
                // Twice, for the guard.
                input
                    .write_all(
                        b"#include \"teeny.hpp\"\n#include \"teeny.hpp\"\n\
                          int main() { return teeny::abi_matches() ? 0 : 1; }\n",
                    )
                    .expect("the compiler reads");
                drop(input);
                quiet(&compiler.wait_with_output().expect("it ends"));
            }
        }
    }
}

#[test]
fn it_keeps_its_promises_with_exceptions_and_without() {
    for name in COMPILERS {
        if name.starts_with("clang") && !installed(name) {
            continue;
        }
        for standard in STANDARDS {
            run(name, standard, &[]);
            run(name, standard, &["-fno-exceptions", "-fno-rtti"]);
        }
    }
    run("c++", "c++17", &["-fno-rtti"]);
    run("c++", "c++17", &["-DTEENY_NO_EXCEPTIONS"]);
}

#[test]
fn sanitizers_find_nothing() {
    run("c++", "c++20", &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
    run("c++", "c++17", &["-fsanitize=thread"]);
}

/// What compiles with this code and the warnings that a user may have.
fn compiles(code: &str) -> bool {
    let mut compiler = compiler("c++", "c++17", &[])
        .args(["-x", "c++", "-fsyntax-only", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a C++ compiler");
    let mut input = compiler.stdin.take().expect("piped");
    write!(input, "#include \"teeny.hpp\"\nvoid use(teeny::model m) {{ {code} }}\n")
        .expect("the compiler reads");
    drop(input);
    compiler.wait_with_output().expect("it ends").status.success()
}

/// Mistakes that a compiler can see; each beside what is right.
#[test]
fn mistakes_do_not_compile() {
    for (right, wrong) in [
        ("auto n = std::move(m); (void)n;", "auto n = m; (void)n;"),
        ("(void)m.try_encode(\"\");", "m.try_encode(\"\");"),
        // As in C: 0 would mean to stop.
        (
            "m.generate(\"\", [](std::string_view) { return true; });",
            "m.generate(\"\", [](std::string_view) { return 0; });",
        ),
        // Memory that nobody keeps.
        (
            "std::vector<unsigned char> v; (void)m.try_load_memory(std::move(v));",
            "std::vector<unsigned char> v; (void)m.try_load_memory(v);",
        ),
    ] {
        assert!(compiles(right), "{right}");
        assert!(!compiles(wrong), "{wrong}");
    }
}
