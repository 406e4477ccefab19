//! Decode speed of the default model on one thread beside a plain dot product over as many bytes.
//!
//! `cargo bench -p teeny-runtime --bench decode`
//!
//! Measurements are taken in turn, so that a change of the machine's speed meets all of them, and
//! medians are printed.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use teeny_runtime::cpu::Isa;
use teeny_runtime::tokenizer::{CharTokenizer, Tokenizer};
use teeny_runtime::{
    Cpu, Dtype, Ffn, Model, ModelConfig, Norm, Overflow, PositionalEncoding, Session, Weights,
    format,
};

const ROUNDS: usize = 15;
const TOKENS: usize = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("teeny-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = run(&folder);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn run(folder: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let config = ModelConfig {
        vocab_size: 65,
        n_layer: 4,
        n_head: 8,
        n_kv_head: 8,
        n_embd: 256,
        ffn_dim: 256,
        max_seq_len: 256,
        positional_encoding: PositionalEncoding::Rope,
        rope_theta: 10000.0,
        norm: Norm::LayerNorm,
        norm_eps: 1e-5,
        final_norm: true,
        ffn: Ffn::Swiglu,
        attention_bias: false,
        ffn_bias: false,
        norm_bias: false,
        lm_head_bias: false,
        tie_embeddings: false,
        qk_norm: false,
        logit_softcap: 0.0,
    };
    let alphabet: String = (0..65u8).map(|i| char::from(b'0' + i)).collect();
    let tokenizer = Tokenizer::Char(CharTokenizer::from_text(&alphabet));
    println!("instruction set: {}", Isa::detect().name());
    println!(
        "{:<6} {:>9} {:>9} {:>11} {:>9} {:>7}",
        "dtype", "tok/s", "GB/s", "dot GB/s", "ratio", "prefill tok/s"
    );
    for dtype in Dtype::ALL {
        let path = folder.join(dtype.name());
        let mut random = 1u32;
        format::write_model(&path, &config, &tokenizer, &[], *dtype, &mut |spec| {
            (0..spec.len())
                .map(|_| {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (random >> 8) as f32 / 16_777_216.0 * 0.1 - 0.05
                })
                .collect()
        })?;
        measure(*dtype, &Arc::new(Model::load(Cpu::new(), &Weights::map(&path)?)?))?;
    }
    Ok(())
}

/// One row of the table: `TOKENS` decode steps, a prefill of as many, and the plain dot product.
fn measure(dtype: Dtype, model: &Arc<Model<Cpu>>) -> Result<(), Box<dyn std::error::Error>> {
    let bytes = model.n_bytes();
    let weights = vec![0.5f32; bytes / 4];
    let mut session = Session::new(model, Overflow::Slide)?;
    let prompt: Vec<u32> = (0..TOKENS as u32).map(|i| i % 65).collect();
    let (mut decode, mut prefill, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..=ROUNDS {
        session.reset();
        decode.push(time(|| {
            for token in &prompt {
                black_box(session.decode(*token).expect("the token is in the vocabulary"));
            }
        }));
        session.reset();
        prefill.push(time(|| {
            black_box(session.prefill(&prompt).expect("the tokens are in the vocabulary"));
        }));
        plain.push(time(|| {
            for _ in 0..TOKENS {
                black_box(dot(black_box(&weights)));
            }
        }));
    }
    let (decode, prefill, plain) = (median(decode), median(prefill), median(plain));
    let total = (bytes * TOKENS) as f64 / 1e9;
    println!(
        "{:<6} {:>9.0} {:>9.1} {:>11.1} {:>9.2} {:>7.0}",
        dtype.name(),
        TOKENS as f64 / decode,
        total / decode,
        total / plain,
        plain / decode,
        TOKENS as f64 / prefill,
    );
    Ok(())
}

fn time(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

/// Median in seconds, without the first round, which warms the caches.
fn median(mut times: Vec<Duration>) -> f64 {
    times.remove(0);
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

/// Σ w[i] x[i % 256], the plainest loop that a compiler vectorises for this machine.
fn dot(w: &[f32]) -> f32 {
    #[inline(always)]
    fn body(w: &[f32]) -> f32 {
        let x = black_box([0.25f32; 256]);
        let mut lanes = [0.0f32; 64];
        for w in w.chunks_exact(256) {
            for (w, x) in w.chunks_exact(64).zip(x.chunks_exact(64)) {
                for lane in 0..64 {
                    lanes[lane] += w[lane] * x[lane];
                }
            }
        }
        lanes.iter().sum()
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2(w: &[f32]) -> f32 {
            body(w)
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            #[allow(unsafe_code)]
            // SAFETY: the features have just been detected.
            return unsafe { avx2(w) };
        }
    }
    body(w)
}
