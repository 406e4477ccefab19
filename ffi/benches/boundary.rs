//! What the C boundary costs, with the library as programs load it, and how long loading takes:
//!
//!     cargo bench -p teeny-ffi [-- MODEL]
//!
//! Decoding: the same tokens through `libteeny.so` and through the Rust interface, in turn, so that
//! both see the same machine; the median of the ratios of neighbours. The C side feeds a token,
//! borrows the logits and draws, as a C program's own loop does: three calls for each token.
//!
//! Loading: of a file that the machine has in memory, and of one of a gigabyte, which takes no longer
//! if nothing of it is read.
#![allow(unsafe_code, clippy::unwrap_used)]
#![allow(missing_docs)]

use std::ffi::{CString, c_char, c_void};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::sync::Arc;
use std::time::Instant;

use libloading::{Library, Symbol};
use teeny_runtime::format::{self, TensorSpec};
use teeny_runtime::{
    Cpu, Dtype, Model, ModelConfig, Overflow, Sampler, SamplerOptions, Session, Weights,
};

type Handle = *mut c_void;
type Load = unsafe extern "C" fn(*const c_char, *const c_void, *mut Handle) -> i32;
type New = unsafe extern "C" fn(Handle, *const c_void, *mut Handle) -> i32;
type NewSampler = unsafe extern "C" fn(*const c_void, *mut Handle) -> i32;
type Decode = unsafe extern "C" fn(Handle, u32) -> i32;
type Logits = unsafe extern "C" fn(Handle, *mut *const f32, *mut usize) -> i32;
type Sample = unsafe extern "C" fn(Handle, *const f32, usize, *mut u32) -> i32;
type Simple = unsafe extern "C" fn(Handle) -> i32;
type Free = unsafe extern "C" fn(Handle);

const TOKENS: usize = 200;
const ROUNDS: usize = 101;
const LOADS: usize = 201;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // `cargo bench` adds --bench.
    let model = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let model = model.map_or_else(|| root.join("data/shakespeare.safetensors"), PathBuf::from);
    let library = library(&root);
    // SAFETY: our own library, whose initialisers do nothing.
    let library = unsafe { Library::new(library) }.unwrap();
    println!("libteeny.so, {}", Cpu::new().isa().name());
    decoding(&library, &model);
    loading(&library, &model);
}

/// Builds the library beside this benchmark.
fn library(root: &Path) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let profile = exe.ancestors().nth(2).unwrap();
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--package", "teeny-ffi", "--lib", "--target-dir"])
        .arg(profile.parent().unwrap())
        .current_dir(root)
        .status()
        .unwrap();
    assert!(built.success());
    profile.join("libteeny.so")
}

/// A function of the library.
fn function<'a, T>(library: &'a Library, name: &str) -> Symbol<'a, T> {
    // SAFETY: the types above are those of teeny.h.
    unsafe { library.get(name.as_bytes()) }.unwrap()
}

#[track_caller]
fn ok(status: i32) {
    assert_eq!(status, 0);
}

fn decoding(library: &Library, path: &Path) {
    let load: Symbol<Load> = function(library, "teeny_model_load");
    let new: Symbol<New> = function(library, "teeny_session_new");
    let new_sampler: Symbol<NewSampler> = function(library, "teeny_sampler_new");
    let decode: Symbol<Decode> = function(library, "teeny_session_decode");
    let logits: Symbol<Logits> = function(library, "teeny_session_logits");
    let sample: Symbol<Sample> = function(library, "teeny_sampler_sample");
    let reset: Symbol<Simple> = function(library, "teeny_session_reset");
    let reset_sampler: Symbol<Simple> = function(library, "teeny_sampler_reset");

    let name = CString::new(path.to_str().unwrap()).unwrap();
    let (mut c_model, mut c_session, mut c_sampler) =
        (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    // SAFETY: as teeny.h asks.
    unsafe {
        ok(load(name.as_ptr(), ptr::null(), &mut c_model));
        ok(new(c_model, ptr::null(), &mut c_session));
        ok(new_sampler(ptr::null(), &mut c_sampler));
    }
    let in_c = || {
        let mut drawn = [0; TOKENS];
        let mut token = 0;
        // SAFETY: as teeny.h asks.
        unsafe {
            ok(reset(c_session));
            ok(reset_sampler(c_sampler));
            let start = Instant::now();
            for drawn in &mut drawn {
                let (mut values, mut len) = (ptr::null(), 0);
                ok(decode(c_session, token));
                ok(logits(c_session, &mut values, &mut len));
                ok(sample(c_sampler, values, len, &mut token));
                *drawn = token;
            }
            (start.elapsed().as_secs_f64(), drawn)
        }
    };

    let model = Arc::new(Model::load(Cpu::new(), &Weights::map(path).unwrap()).unwrap());
    let mut session = Session::new(&model, Overflow::Slide).unwrap();
    let mut sampler = Sampler::new(SamplerOptions::default()).unwrap();
    let mut in_rust = || {
        let mut drawn = [0; TOKENS];
        let mut token = 0;
        session.reset();
        sampler.reset();
        let start = Instant::now();
        for drawn in &mut drawn {
            let logits = session.decode(token).unwrap();
            token = sampler.sample(logits).unwrap();
            *drawn = token;
        }
        (start.elapsed().as_secs_f64(), drawn)
    };

    let (_, expected) = in_rust();
    assert_eq!(in_c().1, expected, "both draw the same tokens");
    let mut ratios = Vec::new();
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let (c, rust) = if round % 2 == 0 {
            let c = in_c().0;
            (c, in_rust().0)
        } else {
            let rust = in_rust().0;
            (in_c().0, rust)
        };
        ratios.push(c / rust);
        times.push((c, rust));
    }
    let c = median(times.iter().map(|t| t.0).collect()) / TOKENS as f64;
    let rust = median(times.iter().map(|t| t.1).collect()) / TOKENS as f64;
    println!("decode and draw, {TOKENS} tokens, {ROUNDS} pairs");
    println!("  C     {:8.2} us/token", c * 1e6);
    println!("  Rust  {:8.2} us/token", rust * 1e6);
    println!("  C / Rust {:.4} (median of the pairs)", median(ratios));

    // The boundary alone: a call that does nothing else.
    let n = 1_000_000;
    let start = Instant::now();
    for _ in 0..n {
        let (mut values, mut len) = (ptr::null(), 0);
        // SAFETY: as teeny.h asks.
        ok(unsafe { logits(c_session, &mut values, &mut len) });
        black_box((values, len));
    }
    println!(
        "  one call that only borrows: {:.0} ns",
        start.elapsed().as_secs_f64() / f64::from(n) * 1e9
    );
}

fn loading(library: &Library, path: &Path) {
    let load: Symbol<Load> = function(library, "teeny_model_load");
    let free: Symbol<Free> = function(library, "teeny_model_free");
    let folder = std::env::temp_dir().join(format!("teeny-boundary-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let large = folder.join("large.safetensors");
    write_large(&large);
    println!("teeny_model_load and _free, {LOADS} times");
    for path in [path, &large] {
        let name = CString::new(path.to_str().unwrap()).unwrap();
        let mut times = Vec::new();
        for _ in 0..LOADS {
            let mut model = ptr::null_mut();
            let start = Instant::now();
            // SAFETY: as teeny.h asks.
            unsafe {
                ok(load(name.as_ptr(), ptr::null(), &mut model));
                times.push(start.elapsed().as_secs_f64());
                free(model);
            }
        }
        let bytes = std::fs::metadata(path).unwrap().len() as f64 / 1e6;
        println!("  {bytes:8.1} MB  {:8.3} ms", median(times) * 1e3);
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A model of a gigabyte with as many tensors as the one that ships.
fn write_large(path: &Path) {
    let weights = Weights::map(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/shakespeare.safetensors"),
    )
    .unwrap();
    let config = weights.config().clone();
    let config =
        ModelConfig { n_embd: 4096, head_dim: 4096 / config.n_head, ffn_dim: 4096, ..config };
    let zeros = |spec: &TensorSpec| vec![0.0; spec.len()];
    format::write_model(path, &config, weights.tokenizer(), &[], Dtype::Bf16, &mut { zeros })
        .unwrap();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
