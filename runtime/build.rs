//! Packs the compiled kernels, see `src/cuda/ptx.rs`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    pack();
}

#[cfg(feature = "cuda")]
fn pack() {
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    for target in ["sm_75", "sm_80", "sm_90"] {
        let path = format!("src/cuda/ptx/{target}.ptx");
        println!("cargo:rerun-if-changed={path}");
        let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let packed = miniz_oxide::deflate::compress_to_vec(&text, 10);
        let to = out.join(format!("{target}.ptx.deflate"));
        std::fs::write(&to, packed).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
    }
}
