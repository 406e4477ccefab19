//! Whole models of random weights: tokens in a second alone, in a prompt, and in a batch of sessions.
//!
//! `cargo bench -p teeny-runtime --bench decode -- FILTER`
//!
//! Names are model, element type and threads, then what is measured. `default-threads` is absent where
//! it would be one thread.

mod common;

use std::error::Error;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput};
use teeny_runtime::tokenizer::{CharTokenizer, Tokenizer};
use teeny_runtime::{
    Batch, Cpu, CpuOptions, Dtype, Ffn, Model, ModelConfig, Norm, Overflow, PositionalEncoding,
    Session, Weights, format,
};

/// Tokens of a decoded text and of a prompt.
const TOKENS: usize = 128;
/// Tokens that each session of a batch decodes.
const BATCH_TOKENS: usize = 16;
/// The range of ±0.05 keeps activations near those of a trained model.
const SCALE: f32 = 0.05;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Folder::new()?;
    let mut c = common::criterion(Duration::from_secs(1));
    for (name, config) in [("default", default_model()), ("llama-3.4m", llama())] {
        let alphabet: String = ('0'..=char::MAX).take(config.vocab_size).collect();
        let tokenizer = Tokenizer::Char(CharTokenizer::from_text(&alphabet));
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Q8, Dtype::Q4] {
            let path = folder.0.join(format!("{name}-{}", dtype.name()));
            let mut random = common::numbers().map(|x| x * SCALE);
            format::write_model(&path, &config, &tokenizer, &[], dtype, &mut |spec| {
                random.by_ref().take(spec.len()).collect()
            })?;
            for (threads, label) in [(1, "1-thread"), (0, "default-threads")] {
                let cpu = Cpu::with_options(CpuOptions { threads, ..CpuOptions::default() })?;
                let model = Arc::new(Model::load(cpu, &Weights::map(&path)?)?);
                if threads == 1 || model.backend().threads() > 1 {
                    measure(&mut c, &format!("{name}/{}/{label}", dtype.name()), &model)?;
                }
            }
        }
    }
    c.final_summary();
    Ok(())
}

fn measure(c: &mut Criterion, name: &str, model: &Arc<Model<Cpu>>) -> Result<(), Box<dyn Error>> {
    const FED: &str = "the token is in the vocabulary and the session has room";
    let tokens: Vec<u32> =
        (0..TOKENS).map(|i| (i * 7919 % model.config().vocab_size) as u32).collect();
    let mut sessions =
        (0..64).map(|_| Session::new(model, Overflow::Error)).collect::<Result<Vec<_>, _>>()?;
    let mut group = c.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);

    group.throughput(Throughput::Elements(TOKENS as u64));
    let session = &mut sessions[0];
    group.bench_function("decode", |b| {
        b.iter(|| {
            session.reset();
            for token in &tokens {
                black_box(session.decode(*token).expect(FED));
            }
        });
    });
    group.bench_function("prefill", |b| {
        b.iter(|| {
            session.reset();
            black_box(session.prefill(&tokens).expect(FED));
        });
    });

    for n in [1, 8, 64] {
        group.throughput(Throughput::Elements((n * BATCH_TOKENS) as u64));
        let (sessions, mut batch) = (&mut sessions[..n], Batch::new(model));
        group.bench_function(format!("batch-{n}"), |b| {
            b.iter(|| {
                sessions.iter_mut().for_each(Session::reset);
                for i in 0..BATCH_TOKENS {
                    let entries = sessions.iter_mut().zip(&tokens[i..]);
                    let mut entries: Vec<_> = entries.map(|(s, token)| (s, *token)).collect();
                    batch.decode(&mut entries).expect(FED);
                    black_box(&mut entries);
                }
            });
        });
    }
    group.finish();
    Ok(())
}

/// That of `config.ini`, whose text has 65 different characters.
fn default_model() -> ModelConfig {
    ModelConfig {
        vocab_size: 65,
        n_layer: 4,
        n_head: 8,
        n_kv_head: 8,
        n_embd: 256,
        head_dim: 32,
        ffn_dim: 256,
        max_seq_len: 256,
        positional_encoding: PositionalEncoding::Rope,
        rope_theta: 10000.0,
        rope_scaling: None,
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
    }
}

/// As Llama, of 3.4M weights.
fn llama() -> ModelConfig {
    ModelConfig { vocab_size: 384, ffn_dim: 704, norm: Norm::RmsNorm, ..default_model() }
}

/// A folder for the models, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Folder> {
        let folder = std::env::temp_dir().join(format!("teeny-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Folder(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nobody would learn of a failure.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
