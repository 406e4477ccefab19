//! libteeny as C and C++ programs see it: the header, the symbols, and programs built against it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use teeny_runtime::{
    Cpu, Dtype, Ffn, GenerateOptions, ModelConfig, Norm, Overflow, PositionalEncoding, Sampler,
    SamplerOptions, Session, generate,
};
use teeny_tests::{RandomModel, library, small};

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The header as the sources in `ffi/src` make it.
fn generated_header() -> String {
    let ffi = root().join("ffi");
    let config = cbindgen::Config::from_file(ffi.join("cbindgen.toml")).expect("cbindgen.toml");
    let bindings =
        cbindgen::Builder::new().with_crate(ffi).with_config(config).generate().expect("sources");
    let mut header = Vec::new();
    bindings.write(&mut header);
    String::from_utf8(header).expect("UTF-8")
}

/// Succeeds without a word.
#[track_caller]
fn quiet(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
}

/// Builds a C program against the shared library, or against the static one.
fn compile(source: &str, to: &Path, shared: bool) {
    let library = library();
    let mut cc = Command::new("cc");
    cc.arg("-std=c99").args(WARNINGS).arg("-I").arg(root().join("ffi/include"));
    cc.arg(root().join(source)).arg("-o").arg(to);
    if shared {
        cc.arg("-L").arg(&library).arg("-lteeny");
        cc.arg(format!("-Wl,-rpath,{}", library.display()));
    } else {
        // What `cargo rustc -p teeny-ffi -- --print native-static-libs` names, in short.
        cc.arg(library.join("libteeny.a")).args(["-lm", "-ldl"]);
    }
    cc.arg("-lpthread");
    quiet(&cc.output().expect("a C compiler"));
}

/// Some of these characters take two bytes of UTF-8.
fn config() -> ModelConfig {
    let mut config = small(PositionalEncoding::Rope, Norm::RmsNorm, Ffn::Swiglu);
    config.vocab_size = 200;
    config
}

/// With `TEENY_WRITE_HEADER=1` it writes the header instead.
#[test]
fn the_header_is_what_the_sources_make() {
    let path = root().join("ffi/include/teeny.h");
    let header = generated_header();
    if std::env::var_os("TEENY_WRITE_HEADER").is_some() {
        std::fs::write(&path, header).expect("the repository can be written");
        return;
    }
    let committed = std::fs::read_to_string(&path).expect("the header is in the repository");
    assert!(
        header == committed,
        "ffi/include/teeny.h is not what ffi/src makes; to write it anew:\n\
         TEENY_WRITE_HEADER=1 cargo test --release -p teeny-tests --test abi header"
    );
}

#[test]
fn the_header_compiles_in_every_standard_without_a_warning() {
    for (compiler, language, standards) in
        [("cc", "c", ["c99", "c11", "c17"]), ("c++", "c++", ["c++11", "c++14", "c++17"])]
    {
        for standard in standards {
            let mut compiler = Command::new(compiler)
                .args(["-x", language, &format!("-std={standard}"), "-fsyntax-only"])
                .args(WARNINGS)
                .arg("-I")
                .arg(root().join("ffi/include"))
                .arg("-")
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("a C and a C++ compiler");
            let mut input = compiler.stdin.take().expect("piped");
            // Twice, for the guard; and a call, which C++ checks the types of.
            input
                .write_all(
                    b"#include \"teeny.h\"\n#include \"teeny.h\"\n\
                      int main(void) { return teeny_model_load(\"\", 0) == TEENY_OK; }\n",
                )
                .expect("the compiler reads");
            drop(input);
            quiet(&compiler.wait_with_output().expect("it ends"));
        }
    }
}

#[test]
fn the_library_exports_what_the_header_declares_and_nothing_else() {
    let nm = Command::new("nm")
        .args(["--dynamic", "--defined-only", "--format=posix"])
        .arg(library().join("libteeny.so"))
        .output()
        .expect("nm, which comes with the C compiler");
    quiet(&nm);
    let symbols = String::from_utf8(nm.stdout).expect("UTF-8");
    let exported: BTreeSet<&str> =
        symbols.lines().filter_map(|line| line.split_whitespace().next()).collect();
    // Lines of code begin in the first column; a declaration has the name before its bracket.
    let header = generated_header();
    let declared: BTreeSet<&str> = header
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_once('('))
        .filter_map(|(before, _)| before.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("teeny_"))
        .collect();
    assert_eq!(exported, declared);
    assert!(exported.len() >= 10);
}

/// `ffi/examples/generate.c` prints what the Rust interface generates from the same seed.
#[test]
fn a_c_program_generates_the_text_of_the_rust_interface() {
    let file = RandomModel::new(&config(), Dtype::Bf16, 5);
    let model = file.load(Cpu::new());
    let prompt = "AB\u{e9}";
    let mut session = Session::new(&model, Overflow::Slide).expect("memory");
    let options = SamplerOptions { seed: 11, ..SamplerOptions::default() };
    let mut sampler = Sampler::new(options).expect("valid options");
    let tokens = model.tokenizer().encode(prompt).expect("in the vocabulary");
    let options = GenerateOptions { max_tokens: 100, ..GenerateOptions::default() };
    let mut expected = String::new();
    generate(&mut session, &mut sampler, &tokens, &options, &mut |text| {
        expected.push_str(text);
        ControlFlow::Continue(())
    })
    .expect("a sound model");
    assert!(!expected.is_ascii() && expected.chars().count() == 100);

    let program = file.path().with_file_name("generate");
    for shared in [true, false] {
        compile("ffi/examples/generate.c", &program, shared);
        let run = |args: &[&OsStr]| Command::new(&program).args(args).output().expect("it starts");
        let path = file.path();
        let path = path.as_os_str();
        let output = run(&[path, prompt.as_ref(), "100".as_ref(), "11".as_ref()]);
        quiet(&output);
        assert_eq!(String::from_utf8(output.stdout).expect("whole characters"), expected);

        let missing = run(&["nowhere.safetensors".as_ref(), "A".as_ref()]);
        assert_eq!(missing.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&missing.stderr).contains("nowhere.safetensors"));
    }
}

/// `tests/abi.c`: every function's successes and failures, statuses and messages.
#[test]
fn every_function_keeps_its_promises_to_c() {
    let file = RandomModel::new(&config(), Dtype::F32, 6);
    let foreign = file.path().with_file_name("foreign.safetensors");
    std::fs::write(&foreign, "#!/bin/sh\nno model\n").expect("a temporary file");
    let program = file.path().with_file_name("abi");
    compile("tests/abi.c", &program, true);
    let n_params = file.load(Cpu::new()).n_params().to_string();
    let output = Command::new(&program)
        .args([file.path(), foreign])
        .arg(n_params)
        .output()
        .expect("it starts");
    quiet(&output);
    assert!(output.stdout.is_empty(), "the library prints nothing");
}
