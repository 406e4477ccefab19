//! The committed PTX: it is what the kernels compile to, every target assembles it, and no kernel spills
//! or needs more registers than `kernels/budget.txt` allows.
//!
//! The compilers are wheels that `kernels/compile.py` fetches by pip. Without a package index, the tests
//! that need them are skipped aloud.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CUDA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runtime/src/cuda");
const COMMAND: &str = "python3 runtime/src/cuda/kernels/compile.py";

/// Which GPUs load which file; compile.py has the same.
const TARGETS: [(&str, &[&str]); 3] = [
    ("sm_75", &["sm_75"]),
    ("sm_80", &["sm_80", "sm_86", "sm_89"]),
    ("sm_90", &["sm_90", "sm_100", "sm_120"]),
];

/// compile.py's exit status when pip cannot reach its index, and when there is no compiler for this platform.
const UNREACHABLE: i32 = 3;
const NO_COMPILER: i32 = 4;

/// The target folder of this test.
fn target_dir() -> PathBuf {
    std::env::current_exe().expect("this test").ancestors().nth(3).expect("target").to_owned()
}

/// Where the compilers are kept.
fn cache() -> PathBuf {
    target_dir().join("cuda-compilers")
}

/// Says so where the test runner does not swallow it.
fn skipped(why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// compile.py in the folder `cuda`.
fn compile_py(cuda: &Path, args: &[&str], cache: &Path) -> Command {
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(python);
    command.arg(cuda.join("kernels/compile.py")).args(args).arg("--cache").arg(cache);
    command
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; PYTHON=... names another Python"))
}

fn said(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{err}{out}")
}

/// Runs compile.py; `None` where its compilers cannot be had, which is then said aloud.
fn compile(cuda: &Path, args: &[&str]) -> Option<Output> {
    let output = run(&mut compile_py(cuda, args, &cache()));
    let known = cfg!(all(target_os = "linux", target_arch = "x86_64"));
    match output.status.code() {
        Some(UNREACHABLE) => {
            skipped(&format!("compile.py {args:?} needs a package index: {}", said(&output)));
            None
        }
        Some(NO_COMPILER) if !known => {
            skipped(&format!("compile.py {args:?} does not run here: {}", said(&output)));
            None
        }
        _ => Some(output),
    }
}

#[track_caller]
fn assert_succeeds(output: &Output) {
    assert!(output.status.success(), "{}: {}", output.status, said(output));
}

/// Fails as a check does, and says `words`.
#[track_caller]
fn assert_refuses(output: &Output, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

/// A copy of the kernels and their PTX in a folder of that name. It is made anew every time.
fn copy(name: &str) -> PathBuf {
    let cuda = target_dir().join("ptx tests").join(name).join("runtime/src/cuda");
    if cuda.exists() {
        fs::remove_dir_all(&cuda).expect("removes the last run's");
    }
    for folder in ["kernels", "ptx"] {
        fs::create_dir_all(cuda.join(folder)).expect("creates a folder");
        for entry in fs::read_dir(Path::new(CUDA).join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                let to = cuda.join(folder).join(path.file_name().expect("a name"));
                fs::copy(&path, to).expect("copies a file");
            }
        }
    }
    cuda
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Changes a file by one replacement, which has to be possible.
#[track_caller]
fn replace(path: &Path, from: &str, to: &str) {
    let text = read(path);
    assert!(text.contains(from), "no {from:?} in {}", path.display());
    fs::write(path, text.replacen(from, to, 1)).expect("writes");
}

/// The entries of a PTX file.
fn entries(ptx: &str) -> BTreeSet<String> {
    let name = |rest: &str| {
        rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned)
    };
    ptx.split(".entry ").skip(1).filter_map(name).collect()
}

/// (kernel, target) -> (registers, shared bytes)
fn budget(text: &str) -> BTreeMap<(String, String), (u32, u32)> {
    let mut budget = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        let [kernel, target, registers, shared] = words[..] else { panic!("{line:?}") };
        let numbers = (registers.parse().expect("a number"), shared.parse().expect("a number"));
        let twice = budget.insert((kernel.to_owned(), target.to_owned()), numbers);
        assert!(twice.is_none(), "twice in budget.txt: {line}");
    }
    budget
}

#[test]
fn every_kernel_is_in_every_file_and_in_the_budget() {
    let cuda = Path::new(CUDA);
    let budget = budget(&read(&cuda.join("kernels/budget.txt")));
    let all: BTreeMap<_, _> = TARGETS
        .iter()
        .map(|(file, _)| (*file, entries(&read(&cuda.join("ptx").join(format!("{file}.ptx"))))))
        .collect();
    let mut wanted = BTreeSet::new();
    for (file, targets) in TARGETS {
        assert!(!all[file].is_empty(), "{file}.ptx has no kernels");
        // Turing has no tensor cores for prompts' attention.
        let prompts = |kernel: &&String| file == "sm_75" || !kernel.starts_with("prefill_");
        let both: Vec<_> = all[file].iter().filter(prompts).collect();
        let expected: Vec<_> = all["sm_75"].iter().collect();
        assert_eq!(both, expected, "{file}.ptx has other kernels than sm_75.ptx");
        for target in targets {
            for kernel in &all[file] {
                wanted.insert((kernel.clone(), (*target).to_owned()));
            }
        }
    }
    let there: BTreeSet<_> = budget.keys().cloned().collect();
    let missing: Vec<_> = wanted.difference(&there).collect();
    let unknown: Vec<_> = there.difference(&wanted).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "budget.txt lacks {missing:?} and has {unknown:?} too many: {COMMAND} --report --write"
    );
    for ((kernel, target), (registers, shared)) in budget {
        assert!(
            registers <= 255 && shared <= 48 << 10,
            "{kernel} on {target} asks for what no GPU has"
        );
    }
}

/// Drivers from 525 on load PTX ISA 8.0, and nothing in the text tells where it was made.
#[test]
fn committed_ptx_is_for_old_drivers_and_names_no_folder() {
    for (file, _) in TARGETS {
        let ptx = read(&Path::new(CUDA).join("ptx").join(format!("{file}.ptx")));
        let head: Vec<_> = ptx.lines().take(4).collect();
        assert_eq!(head[1..], [".version 8.0", &format!(".target {file}"), ".address_size 64"]);
        for word in [".file", ".loc", "/home", "/root", "/tmp"] {
            assert!(!ptx.contains(word), "{file}.ptx has {word}");
        }
    }
}

#[test]
fn committed_ptx_is_what_the_kernels_compile_to() {
    if let Some(output) = compile(Path::new(CUDA), &["--check"]) {
        assert_succeeds(&output);
    }
}

#[test]
fn kernels_assemble_for_every_target_within_their_budget() {
    if let Some(output) = compile(Path::new(CUDA), &["--report"]) {
        assert_succeeds(&output);
    }
}

/// And in another folder everything else compiles to the same bytes.
#[test]
fn stale_ptx_is_found() {
    let cuda = copy("stale");
    replace(&cuda.join("ptx/sm_80.ptx"), "add.rn.f32", "sub.rn.f32");
    let Some(output) = compile(&cuda, &["--check"]) else { return };
    assert_refuses(&output, &["ptx/sm_80.ptx", "sub.rn.f32", COMMAND]);
    for other in ["ptx/sm_75.ptx is not", "ptx/sm_90.ptx is not"] {
        assert!(!said(&output).contains(other), "{}", said(&output));
    }
}

#[test]
fn kernels_that_do_not_compile_change_nothing() {
    let cuda = copy("broken");
    replace(&cuda.join("kernels/matmul.cu"), "KERNEL(", "int broken = nothing;\nKERNEL(");
    let before = read(&cuda.join("ptx/sm_75.ptx"));
    let Some(output) = compile(&cuda, &[]) else { return };
    assert_refuses(&output, &["matmul.cu", "\"nothing\" is undefined"]);
    assert!(read(&cuda.join("ptx/sm_75.ptx")) == before, "the PTX was touched");
}

#[test]
fn spills_and_broken_budgets_are_found() {
    let cuda = copy("over budget");
    let path = cuda.join("kernels/budget.txt");
    let text = read(&path);
    let line = |target: &str| {
        let start = format!("matmul_f32 {target} ");
        text.lines().find(|line| line.starts_with(&start)).expect("a line").to_owned()
    };
    replace(&path, &line("sm_86"), "matmul_f32 sm_86 8 1024");
    replace(&path, &format!("{}\n", line("sm_120")), "gone sm_120 8 0\n");
    // A block of 1024 threads leaves 64 registers to each.
    let ptx = cuda.join("ptx/sm_75.ptx");
    let entry = read(&ptx).split(".entry matmul_f32(").nth(1).expect("an entry").to_owned();
    let head = entry.split_inclusive(".maxntid 256,1,1").next().expect("its bounds").to_owned();
    replace(&ptx, &head, &head.replace(".maxntid 256", ".maxntid 1024"));
    let Some(output) = compile(&cuda, &["--report"]) else { return };
    let expected = [
        "matmul_f32 on sm_75: ",
        "bytes of spills",
        "matmul_f32 on sm_86: ",
        "the budget is 8",
        "the budget is 1024",
        "matmul_f32 on sm_120: not in budget.txt",
        "gone on sm_120: in budget.txt, but not in the PTX",
        COMMAND,
    ];
    assert_refuses(&output, &expected);
}

/// Nothing listens there: the message says what could not be fetched.
#[test]
fn without_a_package_index_the_message_says_so() {
    let empty = target_dir().join("ptx tests").join("no compilers");
    let _ = fs::remove_dir_all(&empty);
    let mut command = compile_py(Path::new(CUDA), &["--check"], &empty);
    command.env("PIP_INDEX_URL", "http://127.0.0.1:9/simple").env("PIP_RETRIES", "0");
    for name in ["PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONFIG_FILE"] {
        command.env_remove(name);
    }
    command.env("PIP_CONFIG_FILE", "/dev/null");
    let output = run(&mut command);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(UNREACHABLE), "{said}");
    assert!(said.contains("pip could not fetch nvidia-cuda-nvrtc-cu12==12.0.140"), "{said}");
}
