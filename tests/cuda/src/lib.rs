//! Builds what tests the CUDA backend without a GPU.
//!
//! | part | what it is |
//! |---|---|
//! | `emulation/emulation.h` | CUDA kernels as C++ on the CPU |
//! | `emulation/driver.h` | a library that takes the place of NVIDIA's driver and runs the kernels so |
//! | `checks/` | C++ programs that compare one kernel with plain loops |
//! | `suite` | what the backend must do, on an emulated GPU and on a real one |
//! | this library | builds the two, and hands the driver's controls to tests in Rust |
//!
//! What was built is kept beside the tests' programs, under a hash of all that it was made of.

#![allow(unsafe_code)] // calls of the emulated driver's controls

pub mod suite;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};

/// A fault to plant: file, text that stands there once, text to put in its place.
pub type Replacement<'a> = (&'a str, &'a str, &'a str);

/// Files by name, with their text.
type Sources = BTreeMap<String, String>;

const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runtime/src/cuda/kernels");
const EMULATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/emulation");
const CHECKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/checks");

/// Casts between pointers mean what they mean in CUDA, nothing is fused unless the source says so, and large
/// frames touch every page, so that none can step over the guard of its stack.
const FLAGS: [&str; 7] = [
    "-std=c++17",
    "-O2",
    "-g",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fstack-clash-protection",
    "-DTEENY_EMULATION",
];

/// The targets that teeny has PTX for.
pub const TARGETS: [u32; 3] = [75, 80, 90];

/// What runs kernels; the emulated driver needs the others too.
const SCHEDULER: [&str; 2] = ["emulation.cpp", "fiber.cpp"];
const DRIVER: [&str; 4] = ["state.cpp", "memory.cpp", "work.cpp", "control.cpp"];

/// The C++ compiler.
fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned())
}

/// Flags for this machine. With the instruction, fmaf is not a call; its results are the same.
fn flags() -> Vec<&'static str> {
    let mut flags = FLAGS.to_vec();
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") {
        flags.push("-mfma");
    }
    flags
}

fn compiler_version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| match Command::new(compiler()).arg("--version").output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        _ => panic!(
            "tests of the CUDA backend need a C++ compiler: `{}` cannot be run \
             (install g++ or clang++, or set CXX)",
            compiler()
        ),
    })
}

/// Runs the compiler in a folder; what it printed, if it fails.
fn compile(folder: &Path, args: &[&str]) -> Output {
    compiler_version();
    let output = Command::new(compiler()).current_dir(folder).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{}: {e}", compiler()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {}:\n{said}", compiler(), args.join(" "));
    output
}

/// Reads the C++ and CUDA files of a folder.
fn read(folder: &str, sources: &mut Sources) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
        if !["h", "cpp", "cu", "cuh"].contains(&extension) {
            continue;
        }
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("").to_owned();
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(!sources.contains_key(&name), "two files are called {name}");
        sources.insert(name, text);
    }
}

/// All sources, with faults planted.
fn sources(folders: &[&str], replacements: &[Replacement<'_>]) -> Sources {
    let mut sources = Sources::new();
    for folder in folders {
        read(folder, &mut sources);
    }
    for (file, from, to) in replacements {
        let text = sources.get_mut(*file).unwrap_or_else(|| panic!("there is no file {file}"));
        let found = text.matches(from).count();
        assert!(found == 1, "{file} has {found} times, not once: {from}");
        *text = text.replacen(from, to, 1);
    }
    sources
}

/// Where everything that is built is kept.
fn cache() -> PathBuf {
    let program = std::env::current_exe().expect("a test has a file");
    let folder = program.parent().expect("which lies in a folder");
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let cache = folder.join("emulated-cuda");
    fs::create_dir_all(&cache).unwrap_or_else(|e| panic!("{}: {e}", cache.display()));
    cache
}

/// The folder with what `make` writes from the sources, made unless it is there. Others that want the same at
/// the same time wait for the first.
fn built(sources: &Sources, args: &[&str], make: impl FnOnce(&Path)) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    (sources, args, flags(), compiler(), compiler_version()).hash(&mut hasher);
    let name = format!("{:016x}", hasher.finish());
    let cache = cache();
    let folder = cache.join(&name);
    let lock = File::create(cache.join(format!("{name}.lock"))).expect("a folder to write to");
    lock.lock().expect("a file system with locks");
    if !folder.exists() {
        let temporary = tempfile::tempdir_in(&cache).expect("a folder to write to");
        for (file, text) in sources {
            fs::write(temporary.path().join(file), text).expect("space on the disk");
        }
        make(temporary.path());
        fs::rename(temporary.keep(), &folder).expect("the same file system");
    }
    folder
}

/// Objects that do not depend on kernels.
fn objects(files: &[&str], replacements: &[Replacement<'_>], more: &[&str]) -> Vec<PathBuf> {
    let own: Vec<_> = replacements
        .iter()
        .filter(|(file, ..)| Path::new(EMULATION).join(file).exists())
        .copied()
        .collect();
    let sources = sources(&[EMULATION], &own);
    let args = [files, more].concat();
    let folder = built(&sources, &args, |folder| {
        for file in files {
            let flags = flags();
            let mut args = [flags.as_slice(), more, &["-fPIC", "-fvisibility=hidden"]].concat();
            let object = format!("{file}.o");
            args.extend(["-c", file, "-o", &object]);
            compile(folder, &args);
        }
    });
    files.iter().map(|file| folder.join(format!("{file}.o"))).collect()
}

/// The emulated driver with all kernels; the path of its `libcuda.so`.
///
/// # Panics
/// Without a C++ compiler, if a source does not compile, or if what is to be replaced does not stand
/// exactly once in its file.
pub fn emulated_driver(replacements: &[Replacement<'_>]) -> PathBuf {
    emulated_driver_of("all.cu", &TARGETS, replacements)
}

/// As [`emulated_driver`], with the kernels of another source, and for some targets only.
pub fn emulated_driver_of(
    source: &str,
    targets: &[u32],
    replacements: &[Replacement<'_>],
) -> PathBuf {
    let objects = objects(&[SCHEDULER.as_slice(), &DRIVER].concat(), replacements, &[]);
    let mut sources = sources(&[KERNELS, EMULATION], replacements);
    sources.retain(|name, _| !(name.ends_with(".cpp")) || name == "kernels.cpp");
    let objects: Vec<_> = objects.iter().map(|path| path.to_string_lossy()).collect();
    let objects: Vec<&str> = objects.iter().map(|path| &**path).collect();
    let what = format!("{source} {targets:?}");
    let folder = built(&sources, &[objects.as_slice(), &[&what]].concat(), |folder| {
        fs::write(folder.join("nothing.cu"), "").expect("space on the disk");
        let mut args: Vec<String> =
            ["-shared", "-Wl,-soname,libcuda.so", "-Wl,-z,defs"].map(String::from).into();
        args.extend(objects.iter().map(|&path| path.to_owned()));
        for target in TARGETS {
            let source = if targets.contains(&target) { source } else { "nothing.cu" };
            let object = format!("sm_{target}.o");
            let entries = format!("sm_{target}.inc");
            list_kernels(folder, source, target, &entries);
            let variant = [
                format!("-DVARIANT=sm_{target}"),
                format!("-D__CUDA_ARCH__={target}0"),
                format!("-DSOURCE=\"{source}\""),
                format!("-DENTRIES=\"{entries}\""),
            ];
            let flags = flags();
            let mut args_of_one = flags.clone();
            args_of_one.extend(variant.iter().map(String::as_str));
            args_of_one.extend([
                "-fPIC",
                "-fvisibility=hidden",
                "-c",
                "kernels.cpp",
                "-o",
                &object,
            ]);
            compile(folder, &args_of_one);
            args.push(object);
        }
        args.extend(["-o", "libcuda.so"].map(String::from));
        compile(folder, &args.iter().map(String::as_str).collect::<Vec<_>>());
    });
    folder.join("libcuda.so")
}

/// Writes the list of a target's kernels, see kernels.cpp.
fn list_kernels(folder: &Path, source: &str, target: u32, list_name: &str) {
    let architecture = format!("-D__CUDA_ARCH__={target}0");
    let mut args = flags();
    args.extend(["-E", "-P", "-DEMULATION_LIST", &architecture, "-x", "c++", source]);
    let output = compile(folder, &args);
    let text = String::from_utf8_lossy(&output.stdout);
    let mut list = String::new();
    for after in text.split("emulation_kernel").skip(1) {
        let name = after.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next();
        list += &format!("ADD({})\n", name.unwrap_or(""));
    }
    fs::write(folder.join(list_name), list).expect("space on the disk");
}

/// A program in C++ that checks kernels: `checks/NAME.cpp`, or one of the emulation's own.
#[derive(Clone, Debug)]
pub struct Check<'a> {
    /// File without `.cpp`.
    pub name: &'a str,
    /// Compute capability that the kernels are compiled for.
    pub target: u32,
    /// Faults planted in kernels, in the program, or in the emulation.
    pub replacements: &'a [Replacement<'a>],
    /// As `-fsanitize` takes them, or `races` for those on shared memory (races.h); none if empty.
    pub sanitizers: &'a str,
}

impl<'a> Check<'a> {
    /// Without faults and sanitizers, for sm_80.
    pub fn new(name: &'a str) -> Check<'a> {
        Check { name, target: 80, replacements: &[], sanitizers: "" }
    }

    /// Builds it; its path.
    ///
    /// # Panics
    /// As [`emulated_driver`].
    pub fn build(&self) -> PathBuf {
        let races = self.sanitizers == "races";
        let sanitize = match self.sanitizers {
            "" | "races" => Vec::new(),
            names => vec![format!("-fsanitize={names}"), "-fno-sanitize-recover=all".to_owned()],
        };
        let sanitize: Vec<&str> = sanitize.iter().map(String::as_str).collect();
        let mut files = SCHEDULER.to_vec();
        if races {
            files.push("races.cpp");
        }
        let objects = objects(&files, self.replacements, &sanitize);
        let mut sources = sources(&[KERNELS, EMULATION, CHECKS], self.replacements);
        let program = format!("{}.cpp", self.name);
        sources.retain(|name, _| !name.ends_with(".cpp") || *name == program);
        assert!(sources.contains_key(&program), "there is no {program}");
        let architecture = format!("-D__CUDA_ARCH__={}0", self.target);
        let objects: Vec<_> = objects.iter().map(|path| path.to_string_lossy()).collect();
        let mut args = sanitize.clone();
        args.extend(objects.iter().map(|path| &**path));
        args.extend(["check.o", "-o", "check"]);
        let mut compiled = flags();
        compiled.extend(if races { vec!["-fsanitize=thread"] } else { sanitize });
        compiled.extend([architecture.as_str(), "-c", &program, "-o", "check.o"]);
        let folder = built(&sources, &[compiled.as_slice(), &args].concat(), |folder| {
            compile(folder, &compiled);
            compile(folder, &args);
        });
        folder.join("check")
    }

    /// Builds and runs it for `seeds` seeds, from 1 on.
    pub fn run(&self, seeds: u64) -> Output {
        self.run_from(seeds, 1)
    }

    /// Builds and runs it for `seeds` seeds, from `first` on.
    pub fn run_from(&self, seeds: u64, first: u64) -> Output {
        let program = self.build();
        let output = Command::new(&program).args([seeds.to_string(), first.to_string()]).output();
        output.unwrap_or_else(|e| panic!("{}: {e}", program.display()))
    }
}

/// Builds and runs `checks/NAME.cpp` for 20 seeds.
///
/// # Panics
/// As [`emulated_driver`].
pub fn check_program(name: &str, replacements: &[Replacement<'_>], sanitizers: &str) -> Output {
    Check { replacements, sanitizers, ..Check::new(name) }.run(20)
}

/// Succeeds.
#[track_caller]
pub fn assert_passes(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
}

/// Fails with a status of its own, not by a signal, and says `expected`.
#[track_caller]
pub fn assert_fails(output: &Output, expected: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some_and(|code| code != 0), "{}: {said}", output.status);
    assert!(said.contains(expected), "expected {expected:?}: {said}");
}

/// The emulated driver in this process. Whoever loads it afterwards by the name `libcuda.so`, as the backend
/// does, gets the same.
pub struct Emulator {
    library: &'static Library,
    _alone: MutexGuard<'static, ()>,
}

impl Emulator {
    /// Loads the driver and resets it. One value at a time: other tests of the process wait.
    ///
    /// # Panics
    /// If the process has loaded another one: only one can be `libcuda.so`.
    pub fn load(path: &Path) -> Emulator {
        static ALONE: Mutex<()> = Mutex::new(());
        static LOADED: OnceLock<(PathBuf, Library)> = OnceLock::new();
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (loaded, library) = LOADED.get_or_init(|| {
            // SAFETY: our own library, whose initialisation does nothing but fill tables.
            let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
            (path.to_owned(), library.unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        });
        assert!(loaded == path, "this process has loaded {}", loaded.display());
        let emulator = Emulator { library, _alone: alone };
        emulator.reset();
        emulator
    }

    /// # Safety
    /// `F` is the function's type.
    unsafe fn symbol<F>(&self, name: &str) -> Symbol<F> {
        // SAFETY: passed on to the caller.
        let symbol = unsafe { self.library.get::<F>(name) };
        symbol.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn ask(&self, function: &str, name: &str) -> u64 {
        // SAFETY: all functions that this is called with have the type, see control.cpp.
        let get: Symbol<unsafe extern "C" fn(*const c_char) -> u64> =
            unsafe { self.symbol(function) };
        let name = CString::new(name).expect("no zero in a name");
        // SAFETY: text that ends in a zero.
        unsafe { get(name.as_ptr()) }
    }

    /// Settings and faults as the environment has them, counters zero, a lost device works again. What is
    /// alive stays alive.
    pub fn reset(&self) {
        // SAFETY: its type in control.cpp.
        unsafe { self.symbol::<unsafe extern "C" fn()>("emulator_reset")() }
    }

    /// Changes a setting: `devices`, `capability` (such as 86), `driver` (such as 12080), `memory` (bytes),
    /// `processors`, `seed`.
    pub fn set(&self, name: &str, value: u64) {
        // SAFETY: its type in control.cpp.
        let set: Symbol<unsafe extern "C" fn(*const c_char, u64) -> c_int> =
            unsafe { self.symbol("emulator_set") };
        let text = CString::new(name).expect("no zero in a name");
        // SAFETY: text that ends in a zero.
        assert_eq!(unsafe { set(text.as_ptr(), value) }, 0, "there is no setting {name}");
    }

    /// A setting; what is alive (`live_allocations`, `live_bytes`, `live_pinned`, `live_streams`,
    /// `live_graphs`, `live_events`, `live_modules`, `live_contexts`); or what happened since the last reset
    /// (`allocations`, `pinned_allocations`, `launches`, `graph_launches`, `copies`, `fills`, `executed`,
    /// `calls`), and `lost`: the error of a device that no longer works.
    pub fn get(&self, name: &str) -> u64 {
        let value = self.ask("emulator_get", name);
        assert_ne!(value, u64::MAX, "there is no counter {name}");
        value
    }

    /// Everything that is alive, as one line; empty when nothing is.
    pub fn alive(&self) -> String {
        let kinds = ["allocations", "pinned", "streams", "graphs", "events", "modules", "contexts"];
        let counts = kinds.map(|kind| (kind, self.get(&format!("live_{kind}"))));
        let counts = counts.iter().filter(|(_, n)| *n > 0).map(|(kind, n)| format!("{n} {kind}"));
        counts.collect::<Vec<_>>().join(", ")
    }

    /// Calls of a function of the driver since the last reset.
    pub fn calls(&self, function: &str) -> u64 {
        self.ask("emulator_calls", function)
    }

    /// Runs of a kernel since the last reset, those in graphs too.
    pub fn launches(&self, kernel: &str) -> u64 {
        self.ask("emulator_launches", kernel)
    }

    /// The `n`-th call of a function from now on fails with `error`; `lasting`: so do all later calls of all
    /// functions, as on a device that is lost. `"*"` is any function. Functions that free do so even then.
    pub fn fail(&self, function: &str, n: u64, error: i32, lasting: bool) {
        // SAFETY: its type in control.cpp.
        let fail: Symbol<unsafe extern "C" fn(*const c_char, u64, c_int, c_int)> =
            unsafe { self.symbol("emulator_fail") };
        let function = CString::new(function).expect("no zero in a name");
        // SAFETY: text that ends in a zero.
        unsafe { fail(function.as_ptr(), n, error, c_int::from(lasting)) }
    }

    /// The names of all kernels that the sources have for a target, such as 80.
    pub fn kernels(&self, target: u32) -> Vec<String> {
        // SAFETY: its type in control.cpp.
        let kernel: Symbol<unsafe extern "C" fn(u32, u32) -> *const c_char> =
            unsafe { self.symbol("emulator_kernel") };
        // SAFETY: any number will do; null ends the list.
        let names = (0..).map(|i| unsafe { kernel(target, i) }).take_while(|name| !name.is_null());
        // SAFETY: constant text that ends in a zero.
        names.map(|name| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()).collect()
    }
}
