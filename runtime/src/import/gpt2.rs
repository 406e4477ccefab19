//! GPT-2's names, as Hugging Face and nanoGPT have them, and a folder of Hugging Face's with such a
//! model.

use std::path::Path;

use super::json::Json;
use super::tensor::View;
use super::tensors::{Name, Tensors, Want};
use super::{Parts, hf, refuse, safetensors, vocabulary};
use crate::config::{Ffn, ModelConfig, Norm, PositionalEncoding};
use crate::error::Result;
use crate::format::{TensorSpec, names};

/// How linear weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// (in, out): `Conv1D` of transformers.
    Conv1d,
    /// (out, in): `Linear` of torch.
    Linear,
}

/// Masks that the model does not learn.
pub(super) fn is_mask(name: &str) -> bool {
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
}

/// Where a model of GPT-2's names, without `transformer.` before them, has a tensor of ours.
/// `n_rows`: rows of its embedding, no fewer than tokens.
pub(super) fn want(
    spec: &TensorSpec,
    c: &ModelConfig,
    layout: Layout,
    n_rows: usize,
) -> Result<Want> {
    let rows = |name: &str, shape: &[usize]| {
        Ok(Want { name: name.to_owned(), shape: shape.to_vec(), view: View::Rows(0) })
    };
    let (n, part) = match Name::new(&spec.name) {
        Name::Layer(n, part) => (n, part),
        Name::Other(names::EMBED_TOKENS) => return rows("wte.weight", &[n_rows, c.n_embd]),
        Name::Other(names::EMBED_POSITIONS) => return rows("wpe.weight", &spec.shape),
        Name::Other("model.norm.weight") => return rows("ln_f.weight", &spec.shape),
        Name::Other("model.norm.bias") => return rows("ln_f.bias", &spec.shape),
        Name::Other(other) => return rows(other, &[n_rows, c.n_embd]),
    };
    let (part, kind) = part.rsplit_once('.').unwrap_or((part, ""));
    // Queries, keys and values lie one after the other in one tensor.
    let (name, fused) = match part {
        "input_layernorm" => ("ln_1", None),
        "self_attn.q_proj" => ("attn.c_attn", Some(0)),
        "self_attn.k_proj" => ("attn.c_attn", Some(c.n_embd)),
        "self_attn.v_proj" => ("attn.c_attn", Some(2 * c.n_embd)),
        "self_attn.o_proj" => ("attn.c_proj", None),
        "post_attention_layernorm" => ("ln_2", None),
        "mlp.up_proj" => ("mlp.c_fc", None),
        "mlp.down_proj" => ("mlp.c_proj", None),
        other => return Err(refuse(other, "it", "a part that GPT-2 has")),
    };
    let name = format!("h.{n}.{name}.{kind}");
    let from = fused.unwrap_or(0);
    let out = if fused.is_some() { 3 * c.n_embd } else { spec.shape[0] };
    let (shape, view) = match (&spec.shape[..], layout) {
        ([_, columns], Layout::Conv1d) => (vec![*columns, out], View::Columns(from)),
        ([_, columns], Layout::Linear) => (vec![out, *columns], View::Rows(from)),
        _ => (vec![out], View::Rows(from)),
    };
    Ok(Want { name, shape, view })
}

/// What GPT-2 and nanoGPT have in common.
pub(super) fn config(vocab_size: usize, n_embd: usize, n_head: usize) -> ModelConfig {
    ModelConfig {
        vocab_size,
        n_layer: 1,
        n_head,
        n_kv_head: n_head,
        n_embd,
        head_dim: n_embd.checked_div(n_head).unwrap_or(0),
        ffn_dim: n_embd.saturating_mul(4),
        max_seq_len: 1,
        positional_encoding: PositionalEncoding::Learned,
        rope_theta: 10_000.0,
        rope_scaling: None,
        norm: Norm::LayerNorm,
        norm_eps: 1e-5,
        final_norm: true,
        ffn: Ffn::Gelu,
        attention_bias: true,
        ffn_bias: true,
        norm_bias: true,
        lm_head_bias: false,
        tie_embeddings: true,
        qk_norm: false,
        logit_softcap: 0.0,
    }
}

/// A folder whose `config.json` says `GPT2LMHeadModel`.
pub(super) fn open(folder: &Path, json: &Json) -> Result<Parts> {
    let n_embd = json.usize("n_embd", None)?;
    let n_head = json.usize("n_head", None)?;
    if n_head == 0 || !n_embd.is_multiple_of(n_head) {
        return Err(json.refuse("n_head", format!("a divisor of n_embd = {n_embd}")));
    }
    let ffn = match json.str("activation_function", Some("gelu_new"))? {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ffn::GeluTanh,
        "gelu" => Ffn::Gelu,
        "relu" => Ffn::Classic,
        _ => {
            let expected = "gelu_new, gelu_pytorch_tanh, gelu_fast, gelu or relu";
            return Err(json.refuse("activation_function", expected));
        }
    };
    json.expect_bool("scale_attn_weights", true)?;
    json.expect_bool("scale_attn_by_inverse_layer_idx", false)?;
    json.expect_bool("add_cross_attention", false)?;
    let n_rows = json.usize("vocab_size", None)?;
    let tokenizer = vocabulary::of_folder(folder, json, n_rows)?;
    vocabulary::check_rows(&tokenizer, n_rows)?;
    let common = config(tokenizer.vocab_size(), n_embd, n_head);
    let config = ModelConfig {
        n_layer: json.usize("n_layer", None)?,
        ffn_dim: json.usize("n_inner", Some(common.ffn_dim))?,
        max_seq_len: json.usize("n_positions", None)?,
        norm_eps: json.f32("layer_norm_epsilon", Some(1e-5))?,
        ffn,
        tie_embeddings: json.bool("tie_word_embeddings", true)?,
        ..common
    };
    let mut tensors = safetensors::open_folder(folder, &is_mask)?;
    tensors.strip_prefix("transformer.")?;
    check_tied(&mut tensors, "wte.weight", config.tie_embeddings)?;
    let tensors = tensors.map(&config, &|spec| want(spec, &config, Layout::Conv1d, n_rows))?;
    let chat_template = hf::chat_template(folder)?;
    Ok(Parts { config, tokenizer, tensors, chat_template })
}

/// A model that says that its output projection is the embedding may have it twice, but no other.
pub(super) fn check_tied(tensors: &mut Tensors, embedding: &str, tied: bool) -> Result<()> {
    const HEAD: &str = "lm_head.weight";
    if tied && !tensors.is_tied(HEAD, embedding) {
        let expected = format!("{embedding}, as tie_word_embeddings says");
        return Err(refuse(HEAD, "other numbers", expected));
    }
    Ok(())
}
