//! Causal self-attention of a training step.

use tch::{Device, Kind, Tensor};
use teeny_runtime::config::{ModelConfig, PositionalEncoding};
use teeny_runtime::position::{Frequencies, alibi_slopes};

use crate::dropout::{keep_mask, keep_scale};

/// Rows of queries that [`with_dropout`] handles at a time. A block looks only at the keys up to its
/// last row, so that with two blocks a quarter of the scores are never computed.
const BLOCK: i64 = 128;

/// What attention needs beside its input, made once.
pub struct Attention {
    n_head: i64,
    n_kv_head: i64,
    head_dim: i64,
    p_dropout: f64,
    rotary: Option<Rotary>,
    /// Added to the scores before the softmax, ALiBi's with minus infinity above the diagonal,
    /// `(n_head, max_t, max_t)`; without ALiBi the mask alone, `(max_t, max_t)`.
    bias: Tensor,
    has_alibi: bool,
    /// Factors of the rows of the projection for [`with_dropout`]: `1/sqrt(head_dim)` for queries
    /// and the survivors' factor for values, `(q_dim + 2 kv_dim)`. On the weights they cost nothing.
    /// With a norm of the queries their factor is on its weights.
    row_factors: Tensor,
    norm_eps: f64,
}

/// The projection to queries, keys and values, and what is done to them then.
pub struct Projection<'a> {
    /// `(q_dim + 2 kv_dim, n_embd)`
    pub weight: &'a Tensor,
    /// `(q_dim + 2 kv_dim)` f32
    pub bias: Option<&'a Tensor>,
    /// Weights of an RMSNorm of each query head, `(head_dim)` f32.
    pub q_norm: Option<&'a Tensor>,
    /// The same for each key head.
    pub k_norm: Option<&'a Tensor>,
}

/// Rotary positions.
struct Rotary {
    /// `cos + i sin` of each pair's angle, `(max_t, 1, head_dim/2)` complex.
    turns: Tensor,
    /// Order of the rows of the projection that puts the two halves of each pair side by side,
    /// where they are one complex number. Scores do not depend on the order within a head.
    order: Tensor,
}

impl Attention {
    /// Tables for sequences of up to `max_t` tokens.
    pub fn new(config: &ModelConfig, p_dropout: f64, max_t: usize, device: Device) -> Attention {
        let causal =
            Tensor::full([max_t as i64; 2], f64::NEG_INFINITY, (Kind::Float, Device::Cpu)).triu(1);
        let (bias, has_alibi) = match config.positional_encoding {
            PositionalEncoding::Alibi => (alibi(config.n_head, max_t) + causal, true),
            PositionalEncoding::None
            | PositionalEncoding::Sinusoidal
            | PositionalEncoding::Learned
            | PositionalEncoding::LearnedSinusoidal
            | PositionalEncoding::Rope => (causal, false),
        };
        let rotary = match config.positional_encoding {
            PositionalEncoding::Rope => Some(Rotary::new(config, max_t, device)),
            PositionalEncoding::None
            | PositionalEncoding::Alibi
            | PositionalEncoding::Sinusoidal
            | PositionalEncoding::Learned
            | PositionalEncoding::LearnedSinusoidal => None,
        };
        let factors =
            |factor: f64, rows: usize| Tensor::full([rows as i64], factor, (Kind::Float, device));
        let of_queries = if config.qk_norm { 1.0 } else { 1.0 / (config.head_dim as f64).sqrt() };
        let row_factors = Tensor::cat(
            &[
                factors(of_queries, config.q_dim()),
                factors(1.0, config.kv_dim()),
                factors(keep_scale(p_dropout), config.kv_dim()),
            ],
            0,
        );
        Attention {
            n_head: config.n_head as i64,
            n_kv_head: config.n_kv_head as i64,
            head_dim: config.head_dim as i64,
            p_dropout,
            rotary,
            bias: bias.to_device(device),
            has_alibi,
            row_factors,
            norm_eps: f64::from(config.norm_eps),
        }
    }

    /// `(B, T, q_dim)` from `x`, `(B, T, n_embd)`, which has the kind of the projection's weights.
    pub fn forward(&self, x: &Tensor, projection: &Projection<'_>, training: bool) -> Tensor {
        let size = x.size();
        let (b, t) = (size[0], size[1]);
        let p = if training { self.p_dropout } else { 0.0 };
        let on_cpu = !x.device().is_cuda();
        let by_hand = p > 0.0 && on_cpu;
        let weight = self.prepared(projection.weight, by_hand);
        let bias = projection.bias.map(|bias| self.prepared(bias, by_hand).to_kind(x.kind()));
        let qkv = x.linear(&weight, bias.as_ref());
        let heads = qkv.view([b, t, self.n_head + 2 * self.n_kv_head, self.head_dim]);
        // On the CPU attention is faster in f32 than in bf16 (in training, libtorch 2.11).
        let kind = if on_cpu { Kind::Float } else { heads.kind() };
        let (q, k, v) = match (&self.rotary, projection.q_norm.zip(projection.k_norm)) {
            (None, None) => {
                let parts = heads
                    .to_kind(kind)
                    .split_with_sizes([self.n_head, self.n_kv_head, self.n_kv_head], 2);
                (parts[0].transpose(1, 2), parts[1].transpose(1, 2), parts[2].transpose(1, 2))
            }
            (rotary, norms) => {
                let parts =
                    heads.split_with_sizes([self.n_head + self.n_kv_head, self.n_kv_head], 2);
                let mut turned = parts[0].to_kind(Kind::Float);
                if let Some((q_norm, k_norm)) = norms {
                    turned = self.normed(&turned, q_norm, k_norm, by_hand);
                }
                // Queries and keys turn together.
                if let Some(rotary) = rotary {
                    turned = rotary.turn(&turned);
                }
                let turned =
                    turned.to_kind(kind).split_with_sizes([self.n_head, self.n_kv_head], 2);
                let v = parts[1].to_kind(kind).transpose(1, 2);
                (turned[0].transpose(1, 2), turned[1].transpose(1, 2), v)
            }
        };
        let out = if by_hand {
            self.with_dropout(&q, &k, &v, p)
        } else {
            let bias =
                self.has_alibi.then(|| self.bias.narrow(1, 0, t).narrow(2, 0, t).to_kind(kind));
            let causal = bias.is_none();
            let grouped = self.n_head != self.n_kv_head;
            Tensor::scaled_dot_product_attention(&q, &k, &v, bias, p, causal, None, grouped)
        };
        // (B, n_head, T, head_dim) -> (B, T, q_dim)
        out.transpose(1, 2).reshape([b, t, self.n_head * self.head_dim])
    }

    /// Queries and keys, `(B, T, n_head + n_kv_head, head_dim)` f32, divided by their root mean square
    /// and times the weights; `by_hand` with the factor of the queries.
    fn normed(&self, x: &Tensor, q_norm: &Tensor, k_norm: &Tensor, by_hand: bool) -> Tensor {
        let factor = if by_hand { 1.0 / (self.head_dim as f64).sqrt() } else { 1.0 };
        let mut weights = Tensor::cat(
            &[
                (q_norm * factor).unsqueeze(0).expand([self.n_head, -1], false),
                k_norm.unsqueeze(0).expand([self.n_kv_head, -1], false),
            ],
            0,
        ); // (n_head + n_kv_head, head_dim)
        if let Some(rotary) = &self.rotary {
            weights = weights.index_select(1, &rotary.order.narrow(0, 0, self.head_dim));
        }
        let unit = x.rms_norm([self.head_dim], None::<Tensor>, self.norm_eps);
        unit * weights
    }

    /// Weight or bias of the projection with its rows scaled and ordered as they will be used.
    fn prepared(&self, rows: &Tensor, by_hand: bool) -> Tensor {
        let mut rows = rows.shallow_clone();
        if by_hand {
            // Rounded once, after the product.
            let scaled = match rows.dim() {
                1 => &rows * &self.row_factors,
                _ => &rows * self.row_factors.unsqueeze(1),
            };
            rows = scaled.to_kind(rows.kind());
        }
        match &self.rotary {
            Some(rotary) => rows.index_select(0, &rotary.order),
            None => rows,
        }
    }

    /// Attention with dropout on its weights, on the CPU, where libtorch's own falls back to a slow
    /// form. `q`: `(B, n_head, T, head_dim)`; `k`, `v`: `(B, n_kv_head, T, head_dim)`; both scaled
    /// by [`row_factors`](Self::row_factors).
    fn with_dropout(&self, q: &Tensor, k: &Tensor, v: &Tensor, p: f64) -> Tensor {
        let size = q.size();
        let (b, t) = (size[0], size[2]);
        let n = b * self.n_head;
        let group = self.n_head / self.n_kv_head;
        // (B, n_kv_head, T, head_dim) -> (B * n_head, T, head_dim), each head once per query head.
        let spread = |x: &Tensor| match group {
            1 => x.reshape([n, t, self.head_dim]),
            _ => x.repeat_interleave_self_int(group, 1, None::<i64>).reshape([n, t, self.head_dim]),
        };
        let q = q.reshape([n, t, self.head_dim]);
        let k = spread(k).transpose(1, 2); // (n, head_dim, T)
        let v = spread(v); // (n, T, head_dim)
        let mut blocks = Vec::new();
        for (i, q) in q.split(BLOCK, 1).into_iter().enumerate() {
            let start = i as i64 * BLOCK;
            let rows = q.size()[1];
            let end = start + rows;
            let bias = self.bias.narrow(-2, start, rows).narrow(-1, 0, end);
            let mut scores = q.matmul(&k.narrow(2, 0, end)); // (n, rows, end)
            if self.has_alibi {
                let bias = bias.unsqueeze(0).expand([b, -1, -1, -1], false);
                let _ = scores.g_add_(&bias.reshape([n, rows, end]));
            } else {
                let _ = scores.g_add_(&bias);
            }
            let weights = scores.softmax(-1, Kind::Float) * keep_mask(&[n, rows, end], p);
            blocks.push(weights.matmul(&v.narrow(1, 0, end)));
        }
        Tensor::cat(&blocks, 1).view([b, self.n_head, t, self.head_dim])
    }
}

impl Rotary {
    fn new(config: &ModelConfig, max_t: usize, device: Device) -> Rotary {
        let head_dim = config.head_dim;
        let half = head_dim / 2;
        // The runtime's own numbers: (max_t, head_dim/2, 2), cosines and sines.
        let frequencies = Frequencies::of_rope(config);
        let mut turns = vec![0.0; max_t * head_dim];
        for (pos, turns) in turns.chunks_exact_mut(head_dim).enumerate() {
            frequencies.rotation(pos, turns);
        }
        let turns = Tensor::from_slice(&turns).view([-1, 1, half as i64, 2]);
        let turned = config.n_head + config.n_kv_head;
        let mut order: Vec<i64> = Vec::new();
        for head in 0..turned {
            for i in 0..half {
                order.push((head * head_dim + i) as i64);
                order.push((head * head_dim + i + half) as i64);
            }
        }
        order.extend(order.len() as i64..(config.q_dim() + 2 * config.kv_dim()) as i64);
        Rotary {
            turns: turns.view_as_complex().to_device(device),
            order: Tensor::from_slice(&order).to_device(device),
        }
    }

    /// Turns each pair of `x`, `(B, T, heads, head_dim)` with pairs side by side, by its angle.
    fn turn(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        let pairs = x.view([size[0], size[1], size[2], size[3] / 2, 2]).view_as_complex();
        (pairs * self.turns.narrow(0, 0, size[1])).view_as_real().view(&size[..])
    }
}

/// `-slope * (query - key)` for each head, `(n_head, max_t, max_t)`.
fn alibi(n_head: usize, max_t: usize) -> Tensor {
    let positions = Tensor::arange(max_t as i64, (Kind::Float, Device::Cpu));
    let behind = positions.unsqueeze(0) - positions.unsqueeze(1); // key - query
    Tensor::from_slice(&alibi_slopes(n_head)).view([n_head as i64, 1, 1]) * behind
}
