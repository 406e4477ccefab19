//! The installed library: what `ffi/install.sh` and `cargo cinstall` put where, programs of others
//! built against it with CMake and pkg-config, and what the shared library promises to the linker.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use teeny_runtime::{
    Cpu, Dtype, Ffn, GenerateOptions, Norm, Overflow, PositionalEncoding, Sampler, Session,
    generate,
};
use teeny_tests::{RandomModel, library, small};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const PROGRAMS: [&str; 4] = ["c_shared", "c_static", "cpp_shared", "cpp_static"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a command that has to succeed; returns what it prints.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{out}\n{err}");
    out.into_owned()
}

/// The target folder of this test, where the library is built already.
fn target_dir() -> PathBuf {
    std::env::current_exe().expect("this test").ancestors().nth(3).expect("target").to_owned()
}

/// One at a time, because each run writes to the target folder.
fn install(args: &[&str]) {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock();
    run(Command::new(root().join("ffi/install.sh"))
        .args(args)
        .env("CARGO_TARGET_DIR", target_dir()));
}

/// Says so where the test runner does not swallow it.
fn skipped(why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// A tree that install.sh has made and that was moved since. Kept for all tests.
fn installed() -> &'static Path {
    static TREE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, tree) = TREE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let prefix = folder.path().join("first place");
        // Twice: what is there is replaced, and nothing is left over.
        for _ in 0..2 {
            install(&["--prefix", &prefix.display().to_string()]);
        }
        let moved = folder.path().join("second place");
        std::fs::rename(&prefix, &moved).expect("the same disk");
        (folder, moved)
    });
    tree
}

/// Every file below a folder, relative to it, with where links lead.
fn files(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(folder).expect("below it").display().to_string();
            if let Ok(to) = path.read_link() {
                found.insert(format!("{name} -> {}", to.display()));
            } else if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(name);
            }
        }
    }
    found
}

fn expected_files() -> BTreeSet<String> {
    [
        "include/teeny.h",
        "include/teeny.hpp",
        "lib/libteeny.a",
        "lib/libteeny.so -> libteeny.so.1.1.0",
        "lib/libteeny.so.1 -> libteeny.so.1.1.0",
        "lib/libteeny.so.1.1.0",
        "lib/pkgconfig/teeny.pc",
        "share/cmake/teeny/teenyConfig.cmake",
        "share/cmake/teeny/teenyConfigVersion.cmake",
        "share/cmake/teeny/teenyFiles.cmake",
    ]
    .map(str::to_owned)
    .into()
}

/// A model, and what the Rust interface generates with the defaults: the oracle for the programs.
fn model() -> (RandomModel, String) {
    let file = RandomModel::new(
        &small(PositionalEncoding::Rope, Norm::RmsNorm, Ffn::Swiglu),
        Dtype::F32,
        50,
    );
    let model = file.load(Cpu::new());
    let mut session = Session::new(&model, Overflow::Slide).expect("memory");
    let mut sampler = Sampler::new(Default::default()).expect("the defaults");
    let options = GenerateOptions { max_tokens: 256, ..GenerateOptions::default() };
    let prompt = model.tokenizer().encode("ABC").expect("in the vocabulary");
    let mut text = String::new();
    generate(&mut session, &mut sampler, &prompt, &options, &mut |piece| {
        text.push_str(piece);
        ControlFlow::Continue(())
    })
    .expect("usable logits");
    (file, text)
}

/// Runs what one of the projects has made. It finds the library by itself, or has it inside.
fn run_programs(build: &Path, model: &Path, text: &str) {
    for name in PROGRAMS {
        let path = build.join(name);
        let mut program = Command::new(&path);
        // Which cargo sets for tests.
        program.env_remove("LD_LIBRARY_PATH").arg(model).arg("ABC");
        assert_eq!(run(&mut program), text, "{name}");
        let shared = dynamic(&path, "NEEDED").iter().any(|needed| needed == "libteeny.so.1");
        assert_eq!(shared, name.ends_with("shared"), "{name}");
    }
}

/// Builds the CMake project against a tree and runs what it makes.
fn with_cmake(tree: &Path) {
    let (file, text) = model();
    let build = tempfile::tempdir().expect("a temporary folder");
    run(Command::new("cmake")
        .arg("-S")
        .arg(root().join("tests/install/cmake"))
        .arg("-B")
        .arg(build.path())
        .arg(format!("-DCMAKE_PREFIX_PATH={}", tree.display()))
        .arg(format!("-DTEENY_VERSION={VERSION}")));
    run(Command::new("cmake").arg("--build").arg(build.path()));
    run_programs(build.path(), &file.path(), &text);
}

/// Builds the pkg-config project against a tree and runs what it makes.
fn with_pkg_config(tree: &Path) {
    let (file, text) = model();
    let build = tempfile::tempdir().expect("a temporary folder");
    // pkg-config quotes a space for a shell, and make does not read that.
    let link = build.path().join("tree");
    std::os::unix::fs::symlink(tree, &link).expect("a temporary folder");
    run(Command::new("make")
        .arg("-C")
        .arg(build.path())
        .arg("-f")
        .arg(root().join("tests/install/pkg-config/Makefile").canonicalize().expect("it is there"))
        .arg(format!(
            "SOURCE={}",
            root().join("tests/install").canonicalize().expect("it is there").display()
        ))
        .env("PKG_CONFIG_PATH", link.join("lib/pkgconfig")));
    run_programs(build.path(), &file.path(), &text);
    let version = run(Command::new("pkg-config")
        .args(["--modversion", "teeny"])
        .env("PKG_CONFIG_PATH", link.join("lib/pkgconfig")));
    assert_eq!(version.trim(), VERSION);
}

#[test]
fn the_script_installs_what_it_says_and_nothing_else() {
    assert_eq!(files(installed()), expected_files());
    for header in ["teeny.h", "teeny.hpp"] {
        let read = |path: PathBuf| std::fs::read(path).expect("a header");
        assert_eq!(
            read(installed().join("include").join(header)),
            read(root().join("ffi/include").join(header))
        );
    }
}

#[test]
fn the_script_knows_its_arguments() {
    let script = |args: &[&str]| {
        let output =
            Command::new(root().join("ffi/install.sh")).args(args).output().expect("bash starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (args, message) in [
        (&["--prefix"][..], "--prefix: found nothing after it"),
        (&["--nowhere"], "found --nowhere, expected --prefix, --libdir or --destdir"),
        (&["--libdir", "../x"], "--libdir: found '../x'"),
        (&["--prefix="], "--prefix: found nothing"),
    ] {
        let (code, said) = script(args);
        assert_eq!(code, Some(1), "{args:?}");
        assert!(said.contains(message), "{said}");
    }
    let help = run(Command::new(root().join("ffi/install.sh")).arg("--help"));
    assert!(help.contains("--destdir") && !help.contains("set -euo"), "{help}");
}

/// As packagers do it: a prefix that is not there yet, and a libdir of a distribution's.
#[test]
fn the_script_installs_for_packages() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let destdir = folder.path().display().to_string();
    install(&["--prefix=/opt/teeny", "--libdir", "lib/deep", "--destdir", &destdir]);
    let tree = folder.path().join("opt/teeny");
    assert!(tree.join("lib/deep/libteeny.so.1").exists());
    let libdir = run(Command::new("pkg-config")
        .args(["--variable=libdir", "teeny"])
        .env("PKG_CONFIG_PATH", tree.join("lib/deep/pkgconfig")));
    let libdir = Path::new(libdir.trim()).canonicalize().expect("it leads to a folder");
    assert!(libdir.join("libteeny.a").exists(), "{}", libdir.display());
    with_cmake(&tree);
}

#[test]
fn a_cmake_project_finds_the_moved_tree() {
    with_cmake(installed());
}

/// `ffi/examples/CMakeLists.txt`; tests/examples.rs looks at what the examples do.
#[test]
fn the_examples_build_against_the_installed_tree() {
    let build = tempfile::tempdir().expect("a temporary folder");
    run(Command::new("cmake")
        .arg("-S")
        .arg(root().join("ffi/examples"))
        .arg("-B")
        .arg(build.path())
        .arg(format!("-DCMAKE_PREFIX_PATH={}", installed().display())));
    run(Command::new("cmake").arg("--build").arg(build.path()));
    let text = |program: &str| {
        let mut program = Command::new(build.path().join(program));
        run(program.env_remove("LD_LIBRARY_PATH").current_dir(root()))
    };
    let expected = text("first");
    assert!(expected.len() >= 256);
    for program in ["first_cpp", "embedded", "embedded_cpp"] {
        assert_eq!(text(program), expected, "{program}");
    }
}

#[test]
fn a_pkg_config_project_finds_the_moved_tree() {
    with_pkg_config(installed());
}

#[test]
fn cmake_refuses_a_version_that_is_not_there() {
    let configure = |version: &str| {
        let build = tempfile::tempdir().expect("a temporary folder");
        Command::new("cmake")
            .arg("-S")
            .arg(root().join("tests/install/cmake"))
            .arg("-B")
            .arg(build.path())
            .arg(format!("-DCMAKE_PREFIX_PATH={}", installed().display()))
            .arg(format!("-DTEENY_VERSION={version}"))
            .output()
            .expect("cmake")
    };
    for version in ["99.0", "0.0.9", "0.1.1", "0.2...<1"] {
        let output = configure(version);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(VERSION), "{version}: {said}");
    }
    for version in ["0.1", "0.1.0;EXACT", "0.1...<1", ""] {
        let output = configure(version);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{version}: {said}");
    }
}

/// `cargo cinstall`, where cargo-c is: .ci/run installs it.
#[test]
fn cargo_c_installs_the_same_tree() {
    let there = Command::new(env!("CARGO")).args(["cinstall", "--version"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        skipped("cargo-c is not installed (cargo install cargo-c)");
        return;
    }
    // Always the same prefix: cargo-c builds anew for another one.
    let target = target_dir().join("cargo-c");
    let tree = target.join("tree");
    let _ = std::fs::remove_dir_all(&tree);
    run(Command::new(env!("CARGO"))
        .args(["cinstall", "--release", "--locked", "--package", "teeny-ffi", "--libdir", "lib"])
        .arg("--target-dir")
        .arg(&target)
        .arg("--prefix")
        .arg(&tree)
        .current_dir(root()));
    assert_eq!(files(&tree), expected_files());
    linked_as_promised(&tree.join("lib/libteeny.so.1.1.0"));
    with_cmake(&tree);
    with_pkg_config(&tree);
}

#[test]
fn the_shared_library_is_what_it_promises() {
    linked_as_promised(&installed().join("lib/libteeny.so.1.1.0"));
    linked_as_promised(&library().join("libteeny.so"));
}

/// Its name, what it needs, and no place of the machine that built it.
fn linked_as_promised(library: &Path) {
    assert_eq!(dynamic(library, "SONAME"), ["libteeny.so.1"]);
    assert!(dynamic(library, "RPATH").is_empty() && dynamic(library, "RUNPATH").is_empty());
    for needed in dynamic(library, "NEEDED") {
        let known = ["libc.so", "libm.so", "libgcc_s.so", "ld-linux", "libpthread", "libdl"];
        assert!(known.iter().any(|name| needed.starts_with(name)), "{needed}");
    }
    let bytes = std::fs::metadata(library).expect("it is there").len();
    println!("{}: {bytes} bytes", library.display());
    // With its symbols, a tenth of it. A third is kernels for GPUs and what drives them; a quarter, kernels for
    // four kinds of CPU.
    assert!(bytes < 3_300_000, "{bytes}");
}

/// Entries of a kind in the dynamic section of a library or program.
fn dynamic(file: &Path, kind: &str) -> Vec<String> {
    let section = run(Command::new("readelf").arg("-dW").arg(file));
    let lines = section.lines().filter(|line| line.contains(&format!("({kind})")));
    lines.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.into())).collect()
}

/// The exported functions, one in a line. Whoever links libteeny.so.1 may rely on each of them.
/// With `TEENY_WRITE_ABI=1` it writes the list and the description instead.
#[test]
fn no_function_goes() {
    let path = root().join("ffi/abi/symbols.txt");
    let symbols = run(Command::new("nm")
        .args(["-D", "--defined-only", "--format=posix"])
        .arg(library().join("libteeny.so")));
    let mut symbols: Vec<&str> =
        symbols.lines().filter_map(|line| line.split_whitespace().next()).collect();
    symbols.sort_unstable();
    let symbols = symbols.join("\n") + "\n";
    if std::env::var_os("TEENY_WRITE_ABI").is_some() {
        std::fs::write(&path, symbols).expect("the repository can be written");
        return;
    }
    let committed = std::fs::read_to_string(path).expect("the list is in the repository");
    assert!(
        symbols == committed,
        "the library does not export what ffi/abi/symbols.txt lists. A new function is added with\n\
         TEENY_WRITE_ABI=1 cargo test --release -p teeny-tests --test install no_\n\
         One that is gone or changed breaks programs: that needs a new TEENY_ABI_VERSION.\n{symbols}"
    );
}

/// Types and signatures of the header, compared by abidiff (libabigail) with the committed
/// description. The description is of a library whose functions are empty, made from the header
/// alone: it says what C programs were compiled against, whatever the compiler of Rust writes.
#[test]
fn no_type_changes() {
    if Command::new("abidw").arg("--version").output().is_err() {
        skipped("abidw and abidiff are not installed (abigail-tools)");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let library = shim(folder.path());
    let committed = root().join("ffi/abi/teeny.abi");
    if std::env::var_os("TEENY_WRITE_ABI").is_some() {
        run(Command::new("abidw")
            .args(["--no-corpus-path", "--no-comp-dir-path", "--no-show-locs", "--out-file"])
            .arg(&committed)
            .arg(&library));
        return;
    }
    let output = Command::new("abidiff")
        .args(["--no-added-syms"])
        .arg(&committed)
        .arg(&library)
        .output()
        .expect("abigail-tools");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

    // It can fail: a parameter that is wider changes the description.
    let header = std::fs::read_to_string(root().join("ffi/include/teeny.h")).expect("the header");
    let wider = header.replace("uint32_t token)", "uint64_t token)");
    assert_ne!(wider, header);
    let output = Command::new("abidiff")
        .args(["--no-added-syms"])
        .arg(&committed)
        .arg(shim_of(folder.path(), &wider))
        .output()
        .expect("abigail-tools");
    assert!(!output.status.success(), "abidiff notices nothing");
}

fn shim(folder: &Path) -> PathBuf {
    let header = std::fs::read_to_string(root().join("ffi/include/teeny.h")).expect("the header");
    shim_of(folder, &header)
}

/// A library with an empty body for every declaration of a header.
fn shim_of(folder: &Path, header: &str) -> PathBuf {
    std::fs::write(folder.join("teeny.h"), header).expect("a temporary folder");
    let mut source = String::from("#include \"teeny.h\"\n");
    let mut declaration = String::new();
    let mut functions = 0;
    for line in header.lines() {
        // Declarations of functions begin in the first column with a type; types end in a brace.
        let begins = line.starts_with(|c: char| c.is_ascii_lowercase())
            && line.contains(" teeny_") | line.contains("*teeny_")
            && line.contains('(')
            && !line.starts_with("typedef");
        if begins || !declaration.is_empty() {
            declaration += line;
            declaration.push('\n');
        }
        if let Some(whole) = declaration.strip_suffix(");\n") {
            let body = match whole {
                void if void.starts_with("void ") => "",
                _ => "return 0;",
            };
            source += &format!("{whole}) {{ {body} }}\n");
            declaration.clear();
            functions += 1;
        }
    }
    assert!(functions > 50, "{functions}");
    let (c, library) = (folder.join("shim.c"), folder.join("libteeny.so.1"));
    std::fs::write(&c, source).expect("a temporary folder");
    // By its name in the folder, which the description then has, and not the folder's.
    run(Command::new("cc")
        .args(["-std=c99", "-g", "-O0", "-w", "-shared", "-fPIC", "-Wl,-soname,libteeny.so.1"])
        .args(["-I", ".", "shim.c", "-o"])
        .arg(&library)
        .current_dir(folder));
    library
}

/// The programs in the README are the examples that tests/examples.rs runs, and its commands work.
#[test]
fn the_readme_shows_the_examples_and_how_to_build_them() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect(path);
    let readme = read("README.md");
    for example in ["ffi/examples/first.c", "ffi/examples/first.cpp"] {
        let source = read(example);
        let code = &source[source.find("#include").expect("a program")..];
        assert!(readme.contains(&format!("\n{code}```\n")), "{example}");
    }
    let after = readme.split_once("## Use it from C or C++").expect("the section").1;
    let section = after.split_once("\n## ").expect("another section").0;
    let mut script = String::from("set -eu\n");
    for block in section.split("```sh\n").skip(1) {
        script += block.split_once("```").expect("its end").0;
    }
    // Where it is installed: not in the repository.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dist = folder.path().join("dist");
    assert_eq!(script.matches("$PWD/dist").count(), 3, "{script}");
    install(&["--prefix", &dist.display().to_string()]);
    let script = script
        .replace("$PWD/dist", &dist.display().to_string())
        .replace("dist/first", &dist.join("first").display().to_string())
        .replace("ffi/install.sh", ": ffi/install.sh");
    let text = run(Command::new("sh")
        .args(["-c", &script])
        .current_dir(root())
        .env_remove("LD_LIBRARY_PATH"));
    let expected = run(Command::new(teeny_tests::program("teeny-run"))
        .args(["--prompt", "ROMEO:", "--seed", "0", "--no-display-prompt"])
        .current_dir(root()));
    assert_eq!(text, expected);
}

/// What is written by hand in several places agrees.
#[test]
fn versions_agree() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect(path);
    let cmake = read("ffi/cmake/teenyConfigVersion.cmake");
    let header = read("ffi/include/teeny.h");
    let abi = header.split_once("#define TEENY_ABI_VERSION ").expect("the macro").1;
    let abi = abi.lines().next().expect("a number");
    assert!(read("ffi/build.rs").contains(&format!("const ABI: &str = \"{abi}\";")));
    assert!(cmake.contains(&format!("TEENY_ABI_VERSION {abi}\n")));
    // As ffi/Cargo.toml says of the library's own version.
    let numbers: Vec<u32> = VERSION.split('.').map(|n| n.parse().expect("a number")).collect();
    let full = format!("{abi}.{}.{}", 100 * numbers[0] + numbers[1], numbers[2]);
    assert!(read("ffi/Cargo.toml").contains(&format!("\nversion = \"{full}\"")));
}
