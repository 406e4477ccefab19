//! libteeny as C and C++ programs see it: the header, the symbols, and programs built against it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use teeny_runtime::format::{self, TensorSpec};
use teeny_runtime::{
    Cpu, Dtype, Ffn, GenerateOptions, ModelConfig, Norm, Overflow, PositionalEncoding, Sampler,
    SamplerOptions, Session, generate,
};
use teeny_tests::{
    Random, RandomModel, library, library_with_faults, random_values, small, tokenizer,
};
use tempfile::TempDir;

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

/// Whether a program is installed; says aloud what is not tested without it.
fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        // Not eprintln, which the test runner keeps to itself.
        let _ = writeln!(std::io::stderr(), "skipped: {program} is not installed");
    }
    found
}

/// A C program and how it is built.
struct Program<'a> {
    compiler: &'a str,
    sources: Vec<PathBuf>,
    args: &'a [&'a str],
    /// The folder with the library.
    library: PathBuf,
    shared: bool,
}

/// A built program, which vanishes with the value.
struct Built {
    folder: TempDir,
}

impl Program<'_> {
    fn build(&self) -> Built {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut cc = Command::new(self.compiler);
        cc.args(["-std=c99", "-g", "-O1"]).args(WARNINGS);
        cc.arg("-I").arg(root().join("ffi/include")).args(&self.sources);
        cc.arg("-o").arg(folder.path().join("program"));
        if self.shared {
            cc.arg("-L").arg(&self.library).arg("-lteeny");
            cc.arg(format!("-Wl,-rpath,{}", self.library.display()));
        } else {
            // What `cargo rustc -p teeny-ffi -- --print native-static-libs` names, in short.
            cc.arg(self.library.join("libteeny.a")).arg("-ldl");
        }
        // Last, so that they also serve what the library needs.
        quiet(&cc.args(self.args).args(["-lm", "-lpthread"]).output().expect("a C compiler"));
        Built { folder }
    }
}

impl Built {
    fn path(&self) -> PathBuf {
        self.folder.path().join("program")
    }

    /// Runs it, under another program if `before` names one; it says nothing.
    #[track_caller]
    fn run_quietly(&self, before: &[&str], args: &[&OsStr], variables: &[(&str, &str)]) {
        let mut line: Vec<OsString> = before.iter().map(OsString::from).collect();
        line.push(self.path().into());
        line.extend(args.iter().map(OsString::from));
        let output = Command::new(&line[0])
            .args(&line[1..])
            .envs(variables.iter().copied())
            // Where cargo has other builds of the library, before the one that it was linked with.
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .expect("it starts");
        quiet(&output);
        assert!(output.stdout.is_empty(), "the library prints nothing");
    }
}

/// The files of `tests/c` with these names.
fn c_sources(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| root().join("tests/c").join(name)).collect()
}

/// The groups of `tests/c`; each is a file.
const GROUPS: [&str; 14] = [
    "library",
    "model",
    "memory",
    "text",
    "sampler",
    "session",
    "cancel",
    "state",
    "generate",
    "score",
    "handles",
    "reentry",
    "stress",
    "random_calls",
];

/// The C test suite, built with a compiler and further arguments.
fn suite<'a>(compiler: &'a str, args: &'a [&'a str], shared: bool) -> Program<'a> {
    let mut names = vec!["main.c".to_owned(), "check.c".into(), "memory_limit.c".into()];
    names.extend(GROUPS.iter().map(|group| format!("{group}.c")));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Program { compiler, sources: c_sources(&names), args, library: library(), shared }
}

/// Runs groups of the C test suite in a folder of their own.
#[track_caller]
fn run_suite(suite: &Built, before: &[&str], size: &str, groups: &[&str], env: &[(&str, &str)]) {
    let folder = models();
    let mut args = vec![folder.path().as_os_str(), size.as_ref()];
    args.extend(groups.iter().map(OsStr::new));
    suite.run_quietly(before, &args, env);
}

/// A folder with the models that `tests/c/check.h` describes, for one test alone.
fn models() -> TempDir {
    static WRITTEN: OnceLock<PathBuf> = OnceLock::new();
    let written = WRITTEN.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("abi");
        std::fs::create_dir_all(&folder).expect("the target folder can be written");
        write_models(&folder);
        folder
    });
    let folder = tempfile::tempdir().expect("a temporary folder");
    for entry in std::fs::read_dir(written).expect("a folder") {
        let entry = entry.expect("a readable folder");
        symlink(entry.path(), folder.path().join(entry.file_name())).expect("an empty folder");
    }
    folder
}

fn write_models(folder: &Path) {
    let path = |name: &str| folder.join(format!("{name}.safetensors"));
    let write = |name, config: &ModelConfig, dtype, seed: u64| {
        // A seed for each tensor, because the order of the file depends on the element type.
        let mut values = |spec: &TensorSpec| {
            let mix = |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte));
            random_values(spec, &mut Random::new(spec.name.bytes().fold(seed, mix)))
        };
        let tokenizer = tokenizer(config.vocab_size);
        format::write_model(&path(name), config, &tokenizer, &[], dtype, &mut values)
            .expect("a valid configuration");
    };
    let rope = config();
    let learned = ModelConfig {
        positional_encoding: PositionalEncoding::Learned,
        norm: Norm::LayerNorm,
        ..rope.clone()
    };
    let deep = ModelConfig {
        n_layer: 16,
        n_embd: 64,
        n_head: 2,
        n_kv_head: 2,
        head_dim: 32,
        ffn_dim: 8,
        max_seq_len: 65536,
        ..rope.clone()
    };
    let big = ModelConfig { n_layer: 1, ffn_dim: 90_000, max_seq_len: 24, ..deep.clone() };
    write("model", &rope, Dtype::F32, 6);
    write("bf16", &rope, Dtype::Bf16, 6);
    write("q8", &rope, Dtype::Q8, 6);
    write("other", &rope, Dtype::F32, 7);
    write("learned", &learned, Dtype::F32, 8);
    write("deep", &deep, Dtype::Bf16, 9);
    write("big", &big, Dtype::Bf16, 10);
    let model = std::fs::read(path("model")).expect("just written");
    for (name, bytes) in [
        ("cut", &model[..model.len() / 2]),
        ("empty", b""),
        ("foreign", b"#!/bin/sh\necho no model\n"),
    ] {
        std::fs::write(path(name), bytes).expect("the target folder can be written");
    }
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

/// The header, and `tests/c/layout.c`, which says what no version may change.
#[test]
fn the_header_compiles_in_every_standard_without_a_warning() {
    let c: &[&str] = &["c99", "c11", "c17"];
    let cxx: &[&str] = &["c++11", "c++14", "c++17", "c++20"];
    for (compiler, language, standards) in
        [("cc", "c", c), ("c++", "c++", cxx), ("clang", "c", c), ("clang++", "c++", cxx)]
    {
        if compiler.starts_with("clang") && !installed(compiler) {
            continue;
        }
        for standard in standards {
            let mut compiler = Command::new(compiler)
                .args(["-x", language, &format!("-std={standard}"), "-fsyntax-only"])
                .args(WARNINGS)
                .arg("-I")
                .arg(root().join("ffi/include"))
                .arg(root().join("tests/c/layout.c"))
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
                      int main(void) { return teeny_model_load(\"\", 0, 0) == TEENY_OK; }\n",
                )
                .expect("the compiler reads");
            drop(input);
            quiet(&compiler.wait_with_output().expect("it ends"));
        }
    }
}

fn exported_symbols(library: &Path) -> BTreeSet<String> {
    let nm = Command::new("nm")
        .args(["--dynamic", "--defined-only", "--format=posix"])
        .arg(library.join("libteeny.so"))
        .output()
        .expect("nm, which comes with the C compiler");
    quiet(&nm);
    let symbols = String::from_utf8(nm.stdout).expect("UTF-8");
    symbols.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn the_library_exports_what_the_header_declares_and_nothing_else() {
    let exported = exported_symbols(&library());
    // Lines of code begin in the first column; a declaration has the name before its bracket.
    let header = generated_header();
    let declared: BTreeSet<String> = header
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_once('('))
        .filter_map(|(before, _)| before.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("teeny_"))
        .map(str::to_owned)
        .collect();
    assert_eq!(exported, declared);
    assert!(exported.len() >= 65);
    // What is there for a test is in no other build.
    let with_faults = exported_symbols(&library_with_faults());
    assert!(with_faults.difference(&exported).eq(["teeny_test_panic"]));
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

    for shared in [true, false] {
        let program = Program {
            compiler: "cc",
            sources: vec![root().join("ffi/examples/generate.c")],
            args: &[],
            library: library(),
            shared,
        };
        let program = program.build();
        let run =
            |args: &[&OsStr]| Command::new(program.path()).args(args).output().expect("it starts");
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

/// `tests/c`: every function's successes and failures, statuses, messages and what they mean.
#[test]
fn every_function_keeps_its_promises_to_c() {
    run_suite(&suite("cc", &[], true).build(), &[], "full", &GROUPS, &[]);
    // Linked into the program, all is the same.
    run_suite(&suite("cc", &[], false).build(), &[], "quick", &GROUPS, &[]);
}

/// Its oracle is the limit that the system keeps.
#[test]
fn memory_that_is_used_up_is_an_error() {
    run_suite(&suite("cc", &[], true).build(), &[], "full", &["memory_limit"], &[]);
}

/// Its oracle is the count of allocations, each of which is refused once.
#[test]
fn every_allocation_may_fail() {
    let program = Program {
        compiler: "cc",
        sources: c_sources(&["allocation.c", "check.c"]),
        args: &["-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=posix_memalign"],
        library: library(),
        shared: false,
    };
    program.build().run_quietly(&[], &[models().path().as_os_str()], &[]);
}

#[test]
fn a_panic_is_a_status_and_the_library_works_on() {
    let program = Program {
        compiler: "cc",
        sources: c_sources(&["panic.c", "check.c"]),
        args: &[],
        library: library_with_faults(),
        shared: true,
    };
    program.build().run_quietly(&[], &[models().path().as_os_str()], &[]);
}

/// What a program hands to the library and gets from it, with every access of the C side checked.
#[test]
fn address_and_undefined_behaviour_sanitizers_find_nothing() {
    let args = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    for compiler in ["gcc", "clang"] {
        if installed(compiler) {
            run_suite(&suite(compiler, &args, true).build(), &[], "quick", &GROUPS, &[]);
        }
    }
}

#[test]
fn the_thread_sanitizer_finds_nothing() {
    let suite = suite("cc", &["-fsanitize=thread"], true).build();
    let groups = ["stress", "reentry", "cancel"];
    // It does not see the library's own locks, so it must not judge what happens inside.
    let env = [("TSAN_OPTIONS", "ignore_noninstrumented_modules=1")];
    run_suite(&suite, &[], "quick", &groups, &env);
}

#[test]
fn valgrind_finds_no_leak_and_no_invalid_access() {
    if !installed("valgrind") {
        return;
    }
    let valgrind = [
        "valgrind",
        "--quiet",
        "--error-exitcode=9",
        "--leak-check=full",
        "--show-leak-kinds=definite,indirect,possible",
        "--errors-for-leak-kinds=definite,indirect,possible",
        // Or a thread that computes keeps all others from running.
        "--fair-sched=yes",
    ];
    run_suite(&suite("cc", &[], true).build(), &valgrind, "quick", &GROUPS, &[]);
}
