//! The model in libtorch, for training. The file to read first.
//!
//! The same function as `teeny_runtime::Model`, over whole sequences: every value of the keys of
//! `[model]` is a case of this one forward pass. Shapes: `B` sequences of `T` tokens.

use tch::{Device, Kind, Tensor};
use teeny_runtime::config::{Ffn, ModelConfig, Norm, PositionalEncoding};
use teeny_runtime::format::{SINUSOID_DIM, names, tensor_specs};

use crate::attention::{Attention, Projection};
use crate::dropout::dropout;
use crate::params::{Params, Views};

/// Largest vocabulary whose embedding is a product with one-hot rows on CUDA. The gradient is a
/// product then too, which a CUDA graph can hold and which sums in a fixed order; the gradient of a
/// lookup of more than 3,072 indices cannot be recorded (pytorch issue 82886).
const ONE_HOT_VOCAB: usize = 1024;

/// A model with its parameters.
pub struct Gpt {
    /// What the model is.
    pub config: ModelConfig,
    /// Its parameters.
    pub params: Params,
    /// What matrix products compute in: f32, or bf16 with sums in f32. The residual stream, norms and
    /// the loss are f32 in either case.
    pub products: Kind,
    p_dropout: f64,
    embed_tokens: usize,
    positions: Positions,
    layers: Vec<Layer>,
    final_norm: NormAt,
    /// Weight and bias; a tied weight is the embedding's.
    lm_head: LinearAt,
    attention: Attention,
}

/// Where a linear map's weight and bias are among the views of the parameters.
#[derive(Clone, Copy)]
struct LinearAt {
    weight: usize,
    bias: Option<usize>,
}

/// Where a norm's weight and bias are; no weight means no norm.
#[derive(Clone, Copy)]
struct NormAt {
    weight: Option<usize>,
    bias: Option<usize>,
}

struct Layer {
    input_norm: NormAt,
    /// To query, key and value in one product, `(q_dim + 2 kv_dim, n_embd)`.
    qkv_proj: LinearAt,
    /// RMSNorm of each query head and each key head; no weight means none.
    q_norm: NormAt,
    k_norm: NormAt,
    o_proj: LinearAt,
    post_norm: NormAt,
    /// To gate and up in one product for SwiGLU, `(2 ffn_dim, n_embd)`, else to up.
    up_proj: LinearAt,
    down_proj: LinearAt,
}

/// What is added to the token embedding.
enum Positions {
    Nothing,
    /// `(max_seq_len, n_embd)`, fixed.
    Table(Tensor),
    /// Block of the learned table.
    Learned(usize),
    /// Fixed sinusoid `(max_seq_len, 16)` and the learned map of it.
    Mapped(Tensor, LinearAt),
}

impl Gpt {
    /// A model with parameters of zero. `config` must be valid; `p_dropout` is the share of
    /// activations zeroed in training; `max_t` is the longest sequence that [`Gpt::logits`] will be
    /// given, at most `max_seq_len`.
    pub fn new(config: &ModelConfig, p_dropout: f64, max_t: usize, device: Device) -> Gpt {
        let params = Params::new(tensor_specs(config), device);
        let at = |name: &str| params.block(name);
        // tensor_specs lists what a valid configuration needs, so a weight is always found.
        let linear = |name: &str| LinearAt {
            weight: at(&format!("{name}.weight")).unwrap_or_default(),
            bias: at(&format!("{name}.bias")),
        };
        let norm = |name: &str| NormAt {
            weight: at(&format!("{name}.weight")),
            bias: at(&format!("{name}.bias")),
        };
        let embed_tokens = at(names::EMBED_TOKENS).unwrap_or_default();
        let positions = match config.positional_encoding {
            PositionalEncoding::None | PositionalEncoding::Alibi | PositionalEncoding::Rope => {
                Positions::Nothing
            }
            PositionalEncoding::Sinusoidal => {
                Positions::Table(sinusoid(config.max_seq_len, config.n_embd, device))
            }
            PositionalEncoding::Learned => {
                Positions::Learned(at(names::EMBED_POSITIONS).unwrap_or_default())
            }
            PositionalEncoding::LearnedSinusoidal => Positions::Mapped(
                sinusoid(config.max_seq_len, SINUSOID_DIM, device),
                linear(names::POSITION_PROJ),
            ),
        };
        let layers = (0..config.n_layer)
            .map(|n| {
                let linear = |part: &str| linear(&names::layer(n, part));
                let norm = |part: &str| norm(&names::layer(n, part));
                Layer {
                    input_norm: norm("input_layernorm"),
                    qkv_proj: linear("self_attn.q_proj"),
                    q_norm: norm("self_attn.q_norm"),
                    k_norm: norm("self_attn.k_norm"),
                    o_proj: linear("self_attn.o_proj"),
                    post_norm: norm("post_attention_layernorm"),
                    up_proj: linear(match config.ffn {
                        Ffn::Swiglu => "mlp.gate_proj",
                        Ffn::Classic | Ffn::Gelu | Ffn::GeluTanh | Ffn::Relu2 => "mlp.up_proj",
                    }),
                    down_proj: linear("mlp.down_proj"),
                }
            })
            .collect();
        let mut lm_head = linear(names::LM_HEAD);
        if config.tie_embeddings {
            lm_head.weight = embed_tokens;
        }
        let final_norm = norm(names::FINAL_NORM);
        let attention = Attention::new(config, p_dropout, max_t, device);
        Gpt {
            config: config.clone(),
            params,
            products: Kind::Float,
            p_dropout,
            embed_tokens,
            positions,
            layers,
            final_norm,
            lm_head,
            attention,
        }
    }

    /// Scores of the next token at every position, `(B, T, vocab_size)`, of `tokens`, `(B, T)` i64.
    /// Dropout acts only when `training`.
    pub fn logits(&self, tokens: &Tensor, training: bool) -> Tensor {
        let views = self.params.views(self.products);
        let p_dropout = if training { self.p_dropout } else { 0.0 };
        let t = tokens.size()[1];
        let linear = |x: &Tensor, at: LinearAt| {
            let bias = at.bias.map(|bias| views.exact(bias).to_kind(self.products));
            x.to_kind(self.products).linear(views.matrix(at.weight), bias.as_ref())
        };
        let norm = |x: &Tensor, at: NormAt| self.norm(x, at, &views);

        let embedded = self.embed(tokens, &views);
        let mut x = match &self.positions {
            Positions::Nothing => embedded,
            Positions::Table(table) => embedded + table.narrow(0, 0, t),
            Positions::Learned(block) => embedded + views.exact(*block).narrow(0, 0, t),
            Positions::Mapped(table, at) => embedded + linear(&table.narrow(0, 0, t), *at),
        };
        x = dropout(&x, p_dropout); // (B, T, n_embd)
        // Never `x += ...`: tch would write into the tensor that the gradient still needs.
        for layer in &self.layers {
            let projection = Projection {
                weight: views.matrix(layer.qkv_proj.weight),
                bias: layer.qkv_proj.bias.map(|bias| views.exact(bias)),
                q_norm: layer.q_norm.weight.map(|weight| views.exact(weight)),
                k_norm: layer.k_norm.weight.map(|weight| views.exact(weight)),
            };
            let normed = norm(&x, layer.input_norm).to_kind(self.products);
            let attended = self.attention.forward(&normed, &projection, training);
            x = &x + linear(&attended, layer.o_proj);
            let hidden = linear(&norm(&x, layer.post_norm), layer.up_proj);
            x = &x + dropout(&linear(&self.activation(&hidden), layer.down_proj), p_dropout);
        }
        let logits = linear(&norm(&x, self.final_norm), self.lm_head).to_kind(Kind::Float);
        let cap = f64::from(self.config.logit_softcap);
        if cap > 0.0 { (logits / cap).tanh() * cap } else { logits }
    }

    /// Cross-entropy in nats of `targets`, `(B, T)` i64, after `tokens`, `(B, T)` i64: its mean, or its
    /// sum.
    pub fn loss(&self, tokens: &Tensor, targets: &Tensor, training: bool, sum: bool) -> Tensor {
        let logits = self.logits(tokens, training);
        let logits = logits.view([-1, self.config.vocab_size as i64]);
        let reduction = if sum { tch::Reduction::Sum } else { tch::Reduction::Mean };
        logits.cross_entropy_loss(&targets.reshape([-1]), None::<Tensor>, reduction, -100, 0.0)
    }

    /// `(B, T, n_embd)` f32
    fn embed(&self, tokens: &Tensor, views: &Views) -> Tensor {
        let table = views.exact(self.embed_tokens);
        if !tokens.device().is_cuda() {
            return Tensor::embedding(table, tokens, -1, false, false);
        }
        if self.config.vocab_size <= ONE_HOT_VOCAB {
            let ids = Tensor::arange(self.config.vocab_size as i64, (Kind::Int64, tokens.device()));
            let one_hot = tokens.unsqueeze(-1).eq_tensor(&ids).to_kind(self.products);
            return one_hot.matmul(views.matrix(self.embed_tokens)).to_kind(Kind::Float);
        }
        let size = tokens.size();
        table.index_select(0, &tokens.reshape([-1])).view([size[0], size[1], -1])
    }

    fn norm(&self, x: &Tensor, at: NormAt, views: &Views) -> Tensor {
        let Some(weight) = at.weight.map(|block| views.exact(block)) else {
            return x.shallow_clone();
        };
        let bias = at.bias.map(|block| views.exact(block));
        let shape = [self.config.n_embd as i64];
        let eps = f64::from(self.config.norm_eps);
        match self.config.norm {
            Norm::None => x.shallow_clone(),
            Norm::LayerNorm => x.layer_norm(shape, Some(weight), bias, eps, true),
            Norm::RmsNorm => x.rms_norm(shape, Some(weight), eps),
        }
    }

    /// `(B, T, ffn_dim)` from the output of `up_proj`.
    fn activation(&self, hidden: &Tensor) -> Tensor {
        match self.config.ffn {
            Ffn::Classic => hidden.relu(),
            Ffn::Gelu => hidden.gelu("none"),
            Ffn::GeluTanh => hidden.gelu("tanh"),
            Ffn::Relu2 => {
                let positive = hidden.relu();
                &positive * &positive
            }
            Ffn::Swiglu => {
                let parts = hidden.chunk(2, -1);
                parts[0].silu() * &parts[1]
            }
        }
    }
}

/// `(n_pos, dim)` with `sin(pos / 10000^(2i/dim))` in column `2i` and its cosine in `2i + 1`.
fn sinusoid(n_pos: usize, dim: usize, device: Device) -> Tensor {
    let mut values = Vec::with_capacity(n_pos * dim);
    for pos in 0..n_pos {
        for column in 0..dim {
            let rate = 10000f64.powf(-((column / 2 * 2) as f64) / dim as f64);
            let angle = pos as f64 * rate;
            values.push(if column % 2 == 0 { angle.sin() } else { angle.cos() } as f32);
        }
    }
    Tensor::from_slice(&values).view([n_pos as i64, dim as i64]).to_device(device)
}
