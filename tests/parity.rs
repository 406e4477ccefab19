//! Golden logits: the runtime against PyTorch's own operations (libtorch 2.11 through tch), for
//! every configuration of the model family. The model below is written from `runtime/FORMAT.md`
//! alone and reads the exported file with libtorch's reader.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};
use teeny_runtime::cpu::Isa;
use teeny_runtime::{
    Cpu, Dtype, Ffn, ModelConfig, Norm, Overflow, PositionalEncoding, RopeScaling, Session,
};
use teeny_tests::{RandomModel, describe, every_kind, every_option, random_tokens, resize, small};

/// The model in PyTorch. Returns logits of all positions, (T, vocab_size).
struct Reference<'a> {
    c: &'a ModelConfig,
    tensors: HashMap<String, Tensor>,
}

impl Reference<'_> {
    fn get(&self, name: &str) -> Tensor {
        self.tensors[name].to_kind(Kind::Float)
    }

    fn linear(&self, x: &Tensor, name: &str, bias: bool) -> Tensor {
        let bias = bias.then(|| self.get(&format!("{name}.bias")));
        x.linear(&self.get(&format!("{name}.weight")), bias.as_ref())
    }

    fn norm(&self, x: &Tensor, name: &str) -> Tensor {
        let weight = || self.get(&format!("{name}.weight"));
        let bias = || self.c.norm_bias.then(|| self.get(&format!("{name}.bias")));
        let eps = f64::from(self.c.norm_eps);
        let shape = [self.c.n_embd as i64];
        match self.c.norm {
            Norm::None => x.shallow_clone(),
            Norm::LayerNorm => x.layer_norm(shape, Some(&weight()), bias().as_ref(), eps, false),
            Norm::RmsNorm => x.internal_fused_rms_norm(shape, Some(&weight()), eps).0,
        }
    }

    /// sin(p / 10000^(2i/width)) at 2i, the cosine at 2i + 1
    fn sinusoid(t: i64, width: i64) -> Tensor {
        let pos = Tensor::arange(t, (Kind::Double, Device::Cpu)).unsqueeze(1);
        let i = Tensor::arange(width / 2, (Kind::Double, Device::Cpu));
        let angle = pos / (i * (2.0 * 10000f64.ln() / width as f64)).exp();
        Tensor::stack(&[angle.sin(), angle.cos()], 2).reshape([t, width]).to_kind(Kind::Float)
    }

    /// Rotates (i, i + head_dim/2) as transformers' `apply_rotary_pos_emb`. `x`: (heads, T, head_dim)
    fn rotate(&self, x: &Tensor) -> Tensor {
        let (t, width) = (x.size()[1], x.size()[2]);
        let pos = Tensor::arange(t, (Kind::Double, Device::Cpu)).unsqueeze(1);
        let i = Tensor::arange(width / 2, (Kind::Double, Device::Cpu));
        let theta = f64::from(self.c.rope_theta);
        let angle = pos * self.scaled(&(i * (-2.0 * theta.ln() / width as f64)).exp());
        let angle = Tensor::cat(&[&angle, &angle], 1);
        let halves = x.chunk(2, 2);
        let turned = Tensor::cat(&[&-&halves[1], &halves[0]], 2);
        x * angle.cos().to_kind(Kind::Float) + turned * angle.sin().to_kind(Kind::Float)
    }

    /// As transformers' `_compute_linear_scaling_rope_parameters` and `_compute_llama3_parameters`, by
    /// wavelengths. `frequencies`: (head_dim/2)
    fn scaled(&self, frequencies: &Tensor) -> Tensor {
        match self.c.rope_scaling {
            None => frequencies.shallow_clone(),
            Some(RopeScaling::Linear { factor }) => frequencies / f64::from(factor),
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_seq_len,
            }) => {
                let [factor, low, high] =
                    [factor, low_freq_factor, high_freq_factor].map(f64::from);
                let original = original_max_seq_len as f64;
                let wavelengths = frequencies.reciprocal() * (2.0 * std::f64::consts::PI);
                let divided = frequencies / factor;
                let long = wavelengths.gt(original / low);
                let llama = divided.where_self(&long, frequencies);
                let smooth = (wavelengths.reciprocal() * original - low) / (high - low);
                let smoothed = (&smooth * -1.0 + 1.0) * &llama / factor + smooth * &llama;
                let medium =
                    wavelengths.lt(original / high).logical_not().logical_and(&long.logical_not());
                smoothed.where_self(&medium, &llama)
            }
        }
    }

    /// Causal mask with -slope * distance, (n_head, T, T); slopes as in the authors' code.
    fn alibi(&self, t: i64) -> Tensor {
        fn slopes(n: usize) -> Vec<f64> {
            if n.is_power_of_two() {
                let start = 2f64.powf(-(2f64.powf(-((n as f64).log2() - 3.0))));
                return (0..n).map(|i| start * start.powi(i as i32)).collect();
            }
            let closest = 1 << n.ilog2();
            let mut all = slopes(closest);
            all.extend(slopes(2 * closest).into_iter().step_by(2).take(n - closest));
            all
        }
        let slopes = Tensor::from_slice(&slopes(self.c.n_head)).reshape([-1, 1, 1]);
        let pos = Tensor::arange(t, (Kind::Double, Device::Cpu));
        let distance = pos.unsqueeze(1) - pos.unsqueeze(0);
        let future = distance.lt(0.0).unsqueeze(0);
        (slopes * -distance.unsqueeze(0))
            .masked_fill(&future, f64::NEG_INFINITY)
            .to_kind(Kind::Float)
    }

    fn attention(&self, x: &Tensor, prefix: &str) -> Tensor {
        let c = self.c;
        let t = x.size()[0];
        let heads = |name: &str, n: usize| {
            self.linear(x, &format!("{prefix}.{name}"), c.attention_bias)
                .reshape([t, n as i64, c.head_dim as i64])
                .transpose(0, 1) // (heads, T, head_dim)
        };
        let (mut q, mut k) = (heads("q_proj", c.n_head), heads("k_proj", c.n_kv_head));
        let v = heads("v_proj", c.n_kv_head);
        if c.qk_norm {
            // Over the last dimension alone, as transformers' `Qwen3Attention`.
            let norm = |x: &Tensor, name: &str| {
                let weight = self.get(&format!("{prefix}.{name}.weight"));
                let eps = f64::from(c.norm_eps);
                x.internal_fused_rms_norm([c.head_dim as i64], Some(&weight), eps).0
            };
            (q, k) = (norm(&q, "q_norm"), norm(&k, "k_norm"));
        }
        if c.positional_encoding == PositionalEncoding::Rope {
            (q, k) = (self.rotate(&q), self.rotate(&k));
        }
        let mask = (c.positional_encoding == PositionalEncoding::Alibi).then(|| self.alibi(t));
        let mixed = Tensor::scaled_dot_product_attention(
            &q.unsqueeze(0),
            &k.unsqueeze(0),
            &v.unsqueeze(0),
            mask.as_ref().map(|mask| mask.unsqueeze(0)),
            0.0,
            mask.is_none(),
            None,
            c.n_head != c.n_kv_head,
        );
        let mixed =
            mixed.squeeze_dim(0).transpose(0, 1).reshape([t, (c.n_head * c.head_dim) as i64]);
        self.linear(&mixed, &format!("{prefix}.o_proj"), c.attention_bias)
    }

    fn ffn(&self, x: &Tensor, prefix: &str) -> Tensor {
        let linear =
            |x: &Tensor, name: &str| self.linear(x, &format!("{prefix}.{name}"), self.c.ffn_bias);
        let up = linear(x, "up_proj");
        let hidden = match self.c.ffn {
            Ffn::Classic => up.relu(),
            Ffn::Gelu => up.gelu("none"),
            Ffn::GeluTanh => up.gelu("tanh"),
            Ffn::Relu2 => up.relu().square(),
            Ffn::Swiglu => linear(x, "gate_proj").silu() * up,
        };
        linear(&hidden, "down_proj")
    }

    fn logits(&self, tokens: &[u32]) -> Tensor {
        let c = self.c;
        let t = tokens.len() as i64;
        let ids = Tensor::from_slice(&tokens.iter().map(|t| i64::from(*t)).collect::<Vec<_>>());
        let mut x = self.get("model.embed_tokens.weight").index_select(0, &ids); // (T, n_embd)
        match c.positional_encoding {
            PositionalEncoding::Learned => {
                x += self.get("model.embed_positions.weight").narrow(0, 0, t);
            }
            PositionalEncoding::Sinusoidal => x += Self::sinusoid(t, c.n_embd as i64),
            PositionalEncoding::LearnedSinusoidal => {
                x += self.linear(&Self::sinusoid(t, 16), "model.embed_positions.proj", true);
            }
            PositionalEncoding::None | PositionalEncoding::Alibi | PositionalEncoding::Rope => {}
        }
        for n in 0..c.n_layer {
            let layer = format!("model.layers.{n}");
            let normed = self.norm(&x, &format!("{layer}.input_layernorm"));
            x = &x + self.attention(&normed, &format!("{layer}.self_attn"));
            let normed = self.norm(&x, &format!("{layer}.post_attention_layernorm"));
            x = &x + self.ffn(&normed, &format!("{layer}.mlp"));
        }
        if c.final_norm {
            x = self.norm(&x, "model.norm");
        }
        let head = if c.tie_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let bias = c.lm_head_bias.then(|| self.get("lm_head.bias"));
        let logits = x.linear(&self.get(head), bias.as_ref());
        match f64::from(c.logit_softcap) {
            0.0 => logits,
            cap => (logits / cap).tanh() * cap,
        }
    }
}

/// Largest difference between the runtime's logits and PyTorch's over all positions, with the size
/// of the largest logit.
fn difference(config: &ModelConfig, dtype: Dtype, backend: Cpu) -> (f64, f64) {
    let model = RandomModel::new(config, dtype, 1);
    let tensors = Tensor::read_safetensors(model.path()).expect("PyTorch opens the file");
    let reference = Reference { c: config, tensors: tensors.into_iter().collect() };
    let tokens = random_tokens(config.max_seq_len, config.vocab_size, 2);
    let expected = reference.logits(&tokens);
    let mut session = Session::new(&model.load(backend), Overflow::Error).expect("enough memory");
    let mut worst = 0f64;
    for (i, token) in tokens.iter().enumerate() {
        let found = Tensor::from_slice(session.decode(*token).expect("within the context"));
        worst = worst.max((found - expected.get(i as i64)).abs().max().double_value(&[]));
    }
    (worst, expected.abs().max().double_value(&[]))
}

#[test]
fn logits_agree_with_pytorch_for_every_configuration() {
    let configs = [every_kind(), every_option()].concat();
    assert_eq!(configs.len(), 6 * 3 * 5 + every_option().len());
    for config in configs {
        let (worst, size) = difference(&config, Dtype::F32, Cpu::new());
        assert!(worst <= 1e-4, "{}: off by {worst:.1e}", describe(&config));
        assert!(size > 0.1, "{}: logits of size {size} prove nothing", describe(&config));
    }
}

#[test]
fn half_precision_files_agree_with_pytorch() {
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for config in every_kind() {
            let (worst, _) = difference(&config, dtype, Cpu::new());
            assert!(worst <= 1e-4, "{} {}: off by {worst:.1e}", dtype.name(), describe(&config));
        }
    }
}

#[test]
fn the_scalar_specification_agrees_with_pytorch() {
    for config in every_kind() {
        let (worst, _) = difference(&config, Dtype::F32, Cpu::with_isa(Isa::SCALAR));
        assert!(worst <= 1e-4, "{}: off by {worst:.1e}", describe(&config));
    }
}

/// A vocabulary of 49,152 tokens and 2,048 positions: a prompt that nearly fills the context and the tokens
/// that do, then one that is longer and the tokens behind it. With one layer, all that a token knows of is
/// the context before it.
#[test]
fn long_prompts_and_large_vocabularies_agree_with_pytorch() {
    let context = 2048;
    for (n_layer, prompt, end) in [(2, 2000, context), (1, 3000, 3020)] {
        let mut config = ModelConfig {
            vocab_size: 49_152,
            n_layer,
            max_seq_len: context,
            rope_theta: 1e5,
            ..small(PositionalEncoding::Rope, Norm::RmsNorm, Ffn::Swiglu)
        };
        resize(&mut config, 96, 6, 2);
        let model = RandomModel::new(&config, Dtype::F32, 3);
        let tensors = Tensor::read_safetensors(model.path()).expect("PyTorch opens the file");
        let reference = Reference { c: &config, tensors: tensors.into_iter().collect() };
        let tokens = random_tokens(end, config.vocab_size, 4);
        let mut session =
            Session::new(&model.load(Cpu::new()), Overflow::Slide).expect("enough memory");
        let compare = |logits: &[f32], n: usize| {
            let expected = reference.logits(&tokens[n.saturating_sub(context)..n]).get(-1);
            let worst = (Tensor::from_slice(logits) - &expected).abs().max().double_value(&[]);
            let size = expected.abs().max().double_value(&[]);
            assert!(worst <= 1e-4 && size > 1.0, "token {n}: off by {worst:.1e} of {size}");
        };
        compare(session.prefill(&tokens[..prompt]).expect("slides"), prompt);
        for n in prompt + 1..=end {
            let logits = session.decode(tokens[n - 1]).expect("slides");
            if n % 10 == 0 || n == end {
                compare(logits, n);
            }
        }
    }
}
