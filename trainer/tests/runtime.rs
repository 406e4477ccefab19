//! The model that was trained is the model that the runtime decodes: logits of both for every
//! positional encoding × norm × ffn, and for the options that those leave at one value.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use teeny_runtime::format::write_model;
use teeny_runtime::tokenizer::{CharTokenizer, Tokenizer};
use teeny_runtime::{
    Cpu, Dtype, Ffn, Model, ModelConfig, Norm, Overflow, PositionalEncoding, RopeScaling, Session,
    Weights,
};
use teeny_trainer::model::Gpt;
use teeny_trainer::params::flat_to_vec;

/// More than a block of attention's queries.
const T: usize = 140;

fn config(positional_encoding: PositionalEncoding, norm: Norm, ffn: Ffn) -> ModelConfig {
    ModelConfig {
        vocab_size: 29,
        n_layer: 2,
        n_head: 3,
        n_kv_head: 3,
        n_embd: 30,
        head_dim: 10,
        ffn_dim: 37,
        max_seq_len: T,
        positional_encoding,
        rope_theta: 10000.0,
        rope_scaling: None,
        norm,
        norm_eps: 1e-5,
        final_norm: true,
        ffn,
        attention_bias: false,
        ffn_bias: false,
        norm_bias: false,
        lm_head_bias: false,
        tie_embeddings: false,
        qk_norm: false,
        logit_softcap: 0.0,
    }
}

fn configs() -> Vec<ModelConfig> {
    let mut all = Vec::new();
    for positional_encoding in PositionalEncoding::ALL {
        for norm in Norm::ALL {
            for ffn in Ffn::ALL {
                all.push(config(*positional_encoding, *norm, *ffn));
            }
        }
    }
    let base = config(PositionalEncoding::Rope, Norm::LayerNorm, Ffn::Swiglu);
    all.push(ModelConfig {
        attention_bias: true,
        ffn_bias: true,
        norm_bias: true,
        lm_head_bias: true,
        ..base.clone()
    });
    all.push(ModelConfig { tie_embeddings: true, final_norm: false, ..base.clone() });
    all.push(ModelConfig {
        n_embd: 32,
        n_head: 8,
        n_kv_head: 2,
        head_dim: 4,
        rope_theta: 500.0,
        ..base.clone()
    });
    all.push(ModelConfig {
        n_embd: 32,
        n_head: 8,
        n_kv_head: 2,
        head_dim: 4,
        norm: Norm::RmsNorm,
        ffn: Ffn::Relu2,
        qk_norm: true,
        logit_softcap: 5.0,
        attention_bias: true,
        ..base.clone()
    });
    let alibi = PositionalEncoding::Alibi;
    all.push(ModelConfig { positional_encoding: alibi, qk_norm: true, ..base.clone() });
    all.push(ModelConfig {
        n_embd: 36,
        n_head: 6,
        n_kv_head: 3,
        head_dim: 6,
        positional_encoding: alibi,
        ..base.clone()
    });
    // Heads wider than n_embd / n_head, and narrower.
    all.push(ModelConfig {
        head_dim: 16,
        n_kv_head: 1,
        attention_bias: true,
        qk_norm: true,
        rope_scaling: Some(RopeScaling::Linear { factor: 4.0 }),
        ..base.clone()
    });
    all.push(ModelConfig {
        head_dim: 6,
        rope_scaling: Some(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_seq_len: 64,
        }),
        ..base
    });
    all
}

/// A model with large random parameters, so that every part of it matters to the logits.
fn random_model(config: &ModelConfig, p_dropout: f64) -> Gpt {
    tch::manual_seed(7);
    let mut model = Gpt::new(config, p_dropout, T, Device::Cpu);
    let n = model.params.len() as i64;
    let flat = Tensor::randn([n], (Kind::Float, Device::Cpu)) * 0.2;
    model.params.set_flat(&flat);
    model
}

fn tokens(config: &ModelConfig) -> Vec<u32> {
    (0..T).map(|i| ((i * i * 7 + 3 * i + 1) % config.vocab_size) as u32).collect()
}

#[test]
fn exported_models_give_the_same_logits_in_the_runtime() {
    let folder = std::env::temp_dir().join(format!("teeny-trainer-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("model.safetensors");
    for config in configs() {
        let model = random_model(&config, 0.2);
        let tokens = tokens(&config);
        let input: Vec<i64> = tokens.iter().map(|t| i64::from(*t)).collect();
        let expected =
            tch::no_grad(|| model.logits(&Tensor::from_slice(&input).unsqueeze(0), false));

        let flat = flat_to_vec(&model.params.theta);
        let chars: String = ('A'..).take(config.vocab_size).collect();
        let tokenizer = Tokenizer::Char(CharTokenizer::from_text(&chars));
        // Blocks cost what they cost; without norms, what is off in one layer grows in the next.
        let blocks = [(Dtype::Q8, 0.05), (Dtype::Q4, 0.6)];
        let n_blocks = if config.norm == Norm::None { 0 } else { blocks.len() };
        let exact = [(Dtype::F32, 1e-4)];
        for (dtype, allowed) in exact.into_iter().chain(blocks.into_iter().take(n_blocks)) {
            write_model(&path, &config, &tokenizer, &[], dtype, &mut |spec| {
                flat[model.params.range(&spec.name).unwrap()].to_vec()
            })
            .unwrap();
            let weights = Weights::map(&path).unwrap();
            let runtime = Arc::new(Model::load(Cpu::new(), &weights).unwrap());
            let mut session = Session::new(&runtime, Overflow::Slide).unwrap();
            for (pos, token) in tokens.iter().enumerate() {
                let found = session.decode(*token).unwrap();
                let row = expected.select(0, 0).select(0, pos as i64);
                let row: Vec<f32> = Vec::try_from(row).unwrap();
                let largest = row.iter().fold(1.0f32, |a, b| a.max(b.abs()));
                for (a, b) in found.iter().zip(&row) {
                    let near = (a - b).abs() < allowed * largest;
                    assert!(near, "{} {config:?} at {pos}: {a} and {b}", dtype.name());
                }
            }
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Dropout of (nearly) nothing takes the path of training, which must compute the same function and
/// the same gradient as the path of evaluation.
#[test]
fn training_and_evaluation_paths_agree_without_dropout() {
    for config in configs() {
        // The smallest share that is not taken for no dropout; it rounds to no drops at all.
        let mut model = random_model(&config, 1e-9);
        let input: Vec<i64> = tokens(&config).iter().map(|t| i64::from(*t)).collect();
        let input = Tensor::from_slice(&input).unsqueeze(0);
        let (x, y) = (input.narrow(1, 0, T as i64 - 1), input.narrow(1, 1, T as i64 - 1));
        let mut results = Vec::new();
        for training in [false, true] {
            let loss = model.loss(&x, &y, training, false);
            model.params.theta.zero_grad();
            loss.backward();
            results.push((loss.double_value(&[]), model.params.theta.grad().copy()));
        }
        let (a, b) = (&results[0], &results[1]);
        assert!((a.0 - b.0).abs() < 1e-4 * a.0.abs(), "{config:?}: {} and {}", a.0, b.0);
        let error = (&a.1 - &b.1).abs().max().double_value(&[]);
        let largest = a.1.abs().max().double_value(&[]);
        assert!(error < 1e-4 * largest, "{config:?}: gradient off by {error} of {largest}");
    }
}
