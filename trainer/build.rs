//! Links libtorch so that the finished binaries run with no environment variables, and with CUDA.
//!
//! Also the build script of the package of tests, which links libtorch in the same way. LIBTORCH comes
//! from `.cargo/config.toml`; where there is no libtorch yet, torch-sys usually fails first, at
//! `torch/torch.h`, and `trainer/setup.sh` is the remedy all the same.

use std::path::{Path, PathBuf};

fn main() {
    for name in ["LIBTORCH", "LIBTORCH_LIB"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let root = std::env::var_os("LIBTORCH_LIB").or_else(|| std::env::var_os("LIBTORCH"));
    let Some(lib) = root.map(|root| PathBuf::from(root).join("lib")) else {
        // torch-sys then uses libtorch in /usr/lib, where the loader finds it too.
        if !Path::new("/usr/lib/libtorch.so").exists() {
            fail("LIBTORCH is not set (.cargo/config.toml of the repository sets it)");
        }
        return;
    };
    // Through the symbolic link to the true folder: libtorch's own libraries look for CUDA's
    // relative to where they lie.
    let lib = match lib.canonicalize() {
        Ok(lib)
            if ["so", "dylib"].iter().any(|e| lib.join(format!("libtorch_cpu.{e}")).exists()) =>
        {
            lib
        }
        Ok(_) | Err(_) => fail(&format!("no libtorch in {}", lib.display())),
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    println!("cargo:rustc-link-arg=-L{}", lib.display());
    // Nothing in our code names a symbol of libtorch_cuda: it registers itself when it is loaded.
    // Without this the linker drops it, and the binary finds no GPU on a machine that has one.
    println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
    println!("cargo:rustc-link-arg=-ltorch");
    if lib.join("libtorch_cuda.so").exists() {
        println!("cargo:rustc-link-arg=-ltorch_cuda");
    }
    // See src/mkl.rs.
    println!("cargo:rustc-link-arg=-Wl,--export-dynamic-symbol=mkl_serv_intel_cpu_true");
}

fn fail(reason: &str) -> ! {
    eprintln!("{reason}.");
    eprintln!(
        "The trainer needs libtorch 2.11.0: run trainer/setup.sh at the root of the repository, then build again."
    );
    std::process::exit(1);
}
