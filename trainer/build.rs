//! Links libtorch so that the finished binaries run with no environment variables, and with CUDA;
//! and compiles `shim/`, the parts of libtorch that tch does not bind.
//!
//! Also the build script of the package of tests, which links libtorch in the same way; the shim is
//! in the trainer's library then. LIBTORCH comes from `.cargo/config.toml`; where there is no
//! libtorch yet, torch-sys usually fails first, at `torch/torch.h`, and `trainer/setup.sh` is the
//! remedy all the same.

use std::path::{Path, PathBuf};

fn main() {
    for name in ["LIBTORCH", "LIBTORCH_LIB", "LIBTORCH_INCLUDE"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let root = std::env::var_os("LIBTORCH").map(PathBuf::from);
    let lib = std::env::var_os("LIBTORCH_LIB").map(PathBuf::from).or_else(|| root.clone());
    let include = std::env::var_os("LIBTORCH_INCLUDE").map(PathBuf::from).or(root);
    let lib = match lib {
        Some(lib) => checked(&lib.join("lib")),
        // torch-sys then uses libtorch in /usr/lib, where the loader finds it too.
        None if Path::new("/usr/lib/libtorch.so").exists() => PathBuf::from("/usr/lib"),
        None => fail("LIBTORCH is not set (.cargo/config.toml of the repository sets it)"),
    };
    link(&lib);
    if std::env::var("CARGO_PKG_NAME").as_deref() == Ok("teeny-trainer") {
        let include = include.unwrap_or_else(|| PathBuf::from("/usr")).join("include");
        compile_shim(&lib, &include);
    }
}

/// The true folder: libtorch's own libraries look for CUDA's relative to where they lie.
fn checked(lib: &Path) -> PathBuf {
    match lib.canonicalize() {
        Ok(lib)
            if ["so", "dylib"].iter().any(|e| lib.join(format!("libtorch_cpu.{e}")).exists()) =>
        {
            lib
        }
        Ok(_) | Err(_) => fail(&format!("no libtorch in {}", lib.display())),
    }
}

fn link(lib: &Path) {
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    if !on_linux() {
        return;
    }
    println!("cargo:rustc-link-arg=-L{}", lib.display());
    // Nothing in our code names a symbol of libtorch_cuda where the shim is built without it: it
    // registers itself when it is loaded. Without this the linker drops it, and the binary finds
    // no GPU on a machine that has one.
    println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
    println!("cargo:rustc-link-arg=-ltorch");
    if has_cuda(lib) {
        println!("cargo:rustc-link-arg=-ltorch_cuda");
        println!("cargo:rustc-link-arg=-lc10_cuda");
    }
    // See src/mkl.rs.
    println!("cargo:rustc-link-arg=-Wl,--export-dynamic-symbol=mkl_serv_intel_cpu_true");
}

/// Compiles `shim/` into a library that becomes part of the trainer's own, with as much of CUDA as
/// there are headers for. What is left out answers with an error that says so.
fn compile_shim(lib: &Path, include: &Path) {
    println!("cargo:rerun-if-changed=shim");
    let mut build = cc::Build::new();
    build.cpp(true).flag("-std=c++17").include("shim");
    // Nothing here is worth optimising, and the headers' templates take long.
    build.opt_level(1).debug(false);
    system_include(&mut build, include);
    system_include(&mut build, &include.join("torch/csrc/api/include"));
    if on_linux() {
        build.define("TEENY_C10D", None);
    }
    let cuda = cuda_headers(lib);
    match &cuda {
        Ok(folder) => {
            build.define("TEENY_CUDA", None);
            system_include(&mut build, folder);
        }
        Err(reason) => define_text(&mut build, "TEENY_WITHOUT_CUDA", reason),
    }
    match cuda.and_then(|cuda| nccl_headers(lib, &cuda)) {
        Ok(folder) => {
            build.define("TEENY_NCCL", None);
            system_include(&mut build, &folder);
        }
        Err(reason) => define_text(&mut build, "TEENY_WITHOUT_NCCL", &reason),
    }
    build.file("shim/cuda_graph.cpp").file("shim/distributed.cpp").compile("teeny_shim");
}

/// The folder of CUDA's headers, or why there is none.
fn cuda_headers(lib: &Path) -> Result<PathBuf, String> {
    if !has_cuda(lib) {
        return Err("this libtorch has no CUDA".to_owned());
    }
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    // Beside the folder torch of the wheel, then where a toolkit says or is wont to be.
    let mut places = vec![site_packages(lib).join("nvidia/cu13/include")];
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    places.extend(homes.map(|home| PathBuf::from(home).join("include")));
    places.push(PathBuf::from("/usr/local/cuda/include"));
    // The wheel of the runtime lacks crt, which is in one of its own.
    let needed = ["cuda_runtime_api.h", "crt/host_defines.h"];
    for place in places {
        for name in needed {
            println!("cargo:rerun-if-changed={}", place.join(name).display());
        }
        if needed.iter().all(|name| place.join(name).exists()) {
            return Ok(place);
        }
    }
    println!("cargo:warning=no headers of CUDA: no CUDA graphs. Run trainer/setup.sh, build again");
    Err("this program was built without CUDA's headers: run trainer/setup.sh and build it again"
        .to_owned())
}

/// The folder of NCCL's header, or why there is none. Only that of the wheels will do: the layout
/// of c10d's options depends on the version that libtorch itself was built with.
fn nccl_headers(lib: &Path, cuda: &Path) -> Result<PathBuf, String> {
    let nccl = site_packages(lib).join("nvidia/nccl/include");
    for needed in [nccl.join("nccl.h"), cuda.join("nv/target")] {
        println!("cargo:rerun-if-changed={}", needed.display());
        if !needed.exists() {
            return Err(format!(
                "this program was built without NCCL (there was no {}): run trainer/setup.sh and \
                 build it again",
                needed.display()
            ));
        }
    }
    Ok(nccl)
}

/// Where the wheel puts the folder torch, whose folder lib this is.
fn site_packages(lib: &Path) -> PathBuf {
    lib.join("../..").canonicalize().unwrap_or_default()
}

fn has_cuda(lib: &Path) -> bool {
    on_linux() && lib.join("libtorch_cuda.so").exists()
}

fn on_linux() -> bool {
    std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux")
}

/// Headers whose warnings are not ours to mend.
fn system_include(build: &mut cc::Build, folder: &Path) {
    build.flag("-isystem").flag(folder);
}

fn define_text(build: &mut cc::Build, name: &str, text: &str) {
    build.define(name, Some(format!("\"{}\"", text.replace('\\', "/").replace('"', "'")).as_str()));
}

fn fail(reason: &str) -> ! {
    eprintln!("{reason}.");
    eprintln!(
        "The trainer needs libtorch 2.11.0: run trainer/setup.sh at the root of the repository, then build again."
    );
    std::process::exit(1);
}
