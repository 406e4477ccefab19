//! GGUF, the files of llama.cpp: models of the architecture `llama`.
//!
//! | file | holds |
//! |---|---|
//! | `gguf.rs` | the model that a file describes |
//! | `gguf/reader.rs` | a file's keys and tensors |
//! | `gguf/dequant.rs` | blocks as numbers |
//! | `gguf/vocabulary.rs` | the vocabulary in a file's keys |

pub(super) mod dequant;
mod reader;
mod vocabulary;

use std::path::Path;

use super::tensor::View;
use super::tensors::{Name, Tensors, Want};
use super::{Parts, map, refuse};
use crate::config::{Ffn, ModelConfig, Norm, PositionalEncoding, RopeScaling};
use crate::error::Result;
use crate::format::names;
use crate::position::scaling_factors;
use reader::File;
pub(super) use reader::MAGIC;

const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Keys of the architecture that say nothing about the computation, or nothing that a tensor's shape does
/// not say.
const WITHOUT_EFFECT: &[&str] =
    &["vocab_size", "rope.scaling.original_context_length", "rope.scaling.finetuned"];

pub(super) fn open(path: &Path) -> Result<Parts> {
    let file = File::read(&map(path)?)?;
    match file.str("general.architecture")? {
        "llama" => {}
        _ => return Err(file.refuse("general.architecture", "llama")),
    }
    let tokenizer = vocabulary::read(&file)?;
    let keys = Keys { file: &file };
    let n_embd = keys.usize("embedding_length", None)?;
    let n_head = keys.usize("attention.head_count", None)?;
    let equal = n_embd.checked_div(n_head).filter(|_| n_embd.is_multiple_of(n_head));
    let head_dim = match (keys.has("attention.key_length"), equal) {
        (false, None) => {
            let expected = format!("a divisor of embedding_length = {n_embd}");
            return Err(file.refuse(&Keys::name("attention.head_count"), expected));
        }
        (_, equal) => keys.usize("attention.key_length", equal)?,
    };
    keys.expect("attention.value_length", head_dim)?;
    keys.expect("rope.dimension_count", head_dim)?;
    for none in ["expert_count", "expert_used_count", "attention.sliding_window"] {
        keys.expect(none, 0)?;
    }
    let mut tensors = file.tensors()?;
    let n_layer = keys.usize("block_count", None)?;
    let part = |name: &'static str| move |n: usize| format!("blk.{n}.{name}.bias");
    let attention_bias = tensors.all_or_none(
        n_layer.min(tensors.len()),
        &[&part("attn_q"), &part("attn_k"), &part("attn_v"), &part("attn_output")],
    )?;
    let ffn_bias = tensors.all_or_none(
        n_layer.min(tensors.len()),
        &[&part("ffn_gate"), &part("ffn_up"), &part("ffn_down")],
    )?;
    let rope_theta = keys.f32("rope.freq_base", Some(10_000.0))?;
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        n_layer,
        n_head,
        n_kv_head: keys.usize("attention.head_count_kv", Some(n_head))?,
        n_embd,
        head_dim,
        ffn_dim: keys.usize("feed_forward_length", None)?,
        max_seq_len: keys.usize("context_length", None)?,
        positional_encoding: PositionalEncoding::Rope,
        rope_theta,
        rope_scaling: rope_scaling(&keys, &mut tensors, rope_theta, head_dim)?,
        norm: Norm::RmsNorm,
        norm_eps: keys.f32("attention.layer_norm_rms_epsilon", None)?,
        final_norm: true,
        ffn: Ffn::Swiglu,
        attention_bias,
        ffn_bias,
        norm_bias: false,
        lm_head_bias: false,
        tie_embeddings: !tensors.has(HEAD),
        qk_norm: false,
        logit_softcap: 0.0,
    };
    keys.check_all_known()?;
    let tensors = tensors.map(&config, &|spec| {
        let (n, part) = match Name::new(&spec.name) {
            Name::Layer(n, part) => (n, part),
            Name::Other(other) => {
                let name = match other {
                    names::EMBED_TOKENS => EMBEDDING,
                    "model.norm.weight" => "output_norm.weight",
                    _ => HEAD,
                };
                let (shape, view) = (spec.shape.clone(), View::Rows(0));
                return Ok(Want { name: name.to_owned(), shape, view });
            }
        };
        let (part, kind) = part.rsplit_once('.').unwrap_or((part, ""));
        let (name, view) = match part {
            "input_layernorm" => ("attn_norm", View::Rows(0)),
            // Rotated pairs lie side by side.
            "self_attn.q_proj" => ("attn_q", View::Pairs(head_dim)),
            "self_attn.k_proj" => ("attn_k", View::Pairs(head_dim)),
            "self_attn.v_proj" => ("attn_v", View::Rows(0)),
            "self_attn.o_proj" => ("attn_output", View::Rows(0)),
            "post_attention_layernorm" => ("ffn_norm", View::Rows(0)),
            "mlp.gate_proj" => ("ffn_gate", View::Rows(0)),
            "mlp.up_proj" => ("ffn_up", View::Rows(0)),
            "mlp.down_proj" => ("ffn_down", View::Rows(0)),
            other => return Err(refuse(other, "it", "a part that Llama has")),
        };
        Ok(Want { name: format!("blk.{n}.{name}.{kind}"), shape: spec.shape.clone(), view })
    })?;
    let chat_template = match file.get(CHAT_TEMPLATE).is_some() {
        true => Some(file.str(CHAT_TEMPLATE)?.to_owned()),
        false => None,
    };
    Ok(Parts { config, tokenizer, tensors, chat_template })
}

/// What the file does to the frequencies of RoPE: keys for a linear scaling, a tensor of factors for that
/// of Llama 3, whose parameters llama.cpp does not keep.
fn rope_scaling(
    keys: &Keys<'_>,
    tensors: &mut Tensors,
    theta: f32,
    head_dim: usize,
) -> Result<Option<RopeScaling>> {
    let linear = match keys.str("rope.scaling.type", "none")? {
        "none" => {
            keys.expect_f32("rope.scaling.factor", 1.0)?;
            1.0
        }
        "linear" => keys.f32("rope.scaling.factor", Some(1.0))?,
        _ => return Err(keys.refuse("rope.scaling.type", "none or linear")),
    };
    keys.expect_f32("rope.scale_linear", linear)?;
    keys.expect_f32("rope.scaling.attn_factor", 1.0)?;
    let linear = Some(RopeScaling::Linear { factor: linear }).filter(|_| linear != 1.0);
    let Some(values) = tensors.get(ROPE_FACTORS) else { return Ok(linear) };
    let expected = format!("{} factors of Llama 3's scaling, and no other scaling", head_dim / 2);
    let refuse = |found: String| Err(refuse(ROPE_FACTORS, found, expected.clone()));
    if values.shape() != [head_dim / 2] || linear.is_some() {
        return refuse(format!("shape {:?}", values.shape()));
    }
    let factors = values.to_f32()?;
    tensors.ignore(|name| name == ROPE_FACTORS);
    if factors.iter().all(|factor| *factor == 1.0) {
        return Ok(None);
    }
    // The lowest frequency has the whole factor. Contexts of a first training are powers of two; which
    // one it was shows in where the factors rise.
    let factor = factors.iter().copied().fold(1.0, f32::max);
    let candidates = (1..=24).map(|log| RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_seq_len: 1 << log,
    });
    let found = candidates.into_iter().find(|scaling| {
        let theirs = scaling_factors(f64::from(theta), head_dim, *scaling);
        theirs.len() == factors.len()
            && theirs.iter().zip(&factors).all(|(a, b)| (a - f64::from(*b)).abs() <= 1e-5 * a)
    });
    match found {
        Some(scaling) => Ok(Some(scaling)),
        None => refuse(format!("factors up to {factor} of another kind")),
    }
}

/// The keys of the architecture, without its name before them.
struct Keys<'a> {
    file: &'a File,
}

impl Keys<'_> {
    fn name(key: &str) -> String {
        format!("llama.{key}")
    }

    fn has(&self, key: &str) -> bool {
        self.file.get(&Keys::name(key)).is_some()
    }

    fn usize(&self, key: &str, default: Option<usize>) -> Result<usize> {
        self.file.usize(&Keys::name(key), default)
    }

    fn f32(&self, key: &str, default: Option<f32>) -> Result<f32> {
        self.file.f32(&Keys::name(key), default)
    }

    fn str(&self, key: &str, default: &'static str) -> Result<&str> {
        if self.has(key) { self.file.str(&Keys::name(key)) } else { Ok(default) }
    }

    fn refuse(&self, key: &str, expected: impl Into<String>) -> crate::error::Error {
        self.file.refuse(&Keys::name(key), expected)
    }

    /// Refuses another number than this one; without the key, it is this one.
    fn expect(&self, key: &str, number: usize) -> Result<()> {
        if self.usize(key, Some(number))? == number {
            return Ok(());
        }
        Err(self.refuse(key, number.to_string()))
    }

    fn expect_f32(&self, key: &str, number: f32) -> Result<()> {
        if self.f32(key, Some(number))? == number {
            return Ok(());
        }
        Err(self.refuse(key, number.to_string()))
    }

    /// Refuses keys that nothing here has read: they may change what the model computes.
    fn check_all_known(&self) -> Result<()> {
        let stray = self.file.keys().find(|key| {
            let part = key.strip_prefix("llama.");
            part.is_some_and(|part| !WITHOUT_EFFECT.contains(&part) && !self.file.was_read(key))
        });
        stray.map_or(Ok(()), |key| Err(self.file.refuse(key, "a key that is understood")))
    }
}
