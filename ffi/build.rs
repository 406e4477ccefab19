//! Names the shared library by its ABI: what is linked against it asks for `libteeny.so.1`, whichever
//! version of teeny that is, until the ABI changes.

use std::env;

/// `TEENY_ABI_VERSION` in src/lib.rs; tests/install.rs compares.
const ABI: &str = "1";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The name is for the linker of a Unix system; Windows has none.
    match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("macos" | "ios") => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libteeny.{ABI}.dylib")
        }
        Ok("windows") | Err(_) => {}
        Ok(_) => println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libteeny.so.{ABI}"),
    }
}
