//! Checkpoints of nanoGPT that were saved as safetensors with their own names.

use std::path::Path;

use super::gpt2::{self, Layout};
use super::{ImportOptions, Parts, refuse, safetensors, vocabulary};
use crate::config::{Ffn, ModelConfig};
use crate::error::{Error, Result};

/// What `torch.compile` puts before every name.
const COMPILED: &str = "_orig_mod.";

/// Whether only nanoGPT has a tensor of this name in a file by itself.
pub(super) fn is_name(name: &str) -> bool {
    let name = name.strip_prefix(COMPILED).unwrap_or(name);
    name == "transformer.h.0.attn.c_attn.weight"
}

pub(super) fn open(path: &Path, options: &ImportOptions) -> Result<Parts> {
    let (mut tensors, metadata) = safetensors::open(path, &gpt2::is_mask)?;
    tensors.strip_prefix(COMPILED)?;
    tensors.strip_prefix("transformer.")?;
    let [n_rows, n_embd] = matrix(tensors.require("wte.weight")?.shape(), "wte.weight")?;
    let [max_seq_len, _] = matrix(tensors.require("wpe.weight")?.shape(), "wpe.weight")?;
    let [_, up_columns] = matrix(tensors.require(ATTENTION)?.shape(), ATTENTION)?;
    if up_columns != n_embd {
        return Err(refuse(
            ATTENTION,
            format!("{up_columns} columns"),
            format!("{n_embd}; weights of Hugging Face's are read from their folder"),
        ));
    }
    let n_head = n_head(options, metadata.get("n_head").map(String::as_str), n_embd)?;
    let tokenizer = vocabulary::given(options, &metadata)?;
    vocabulary::check_rows(&tokenizer, n_rows)?;
    let bias = tensors.has("ln_f.bias");
    let ffn = match metadata.get("activation").map(String::as_str) {
        None | Some("gelu") => Ffn::Gelu,
        Some("gelu_new") => Ffn::GeluTanh,
        Some(other) => return Err(refuse("metadata key activation", other, "gelu or gelu_new")),
    };
    let tied = tensors.is_tied("lm_head.weight", "wte.weight");
    let config = ModelConfig {
        n_layer: tensors.n_layer("h."),
        max_seq_len,
        attention_bias: bias,
        ffn_bias: bias,
        norm_bias: bias,
        ffn,
        tie_embeddings: tied,
        ..gpt2::config(tokenizer.vocab_size(), n_embd, n_head)
    };
    let tensors =
        tensors.map(&config, &|spec| gpt2::want(spec, &config, Layout::Linear, n_rows))?;
    Ok(Parts { config, tokenizer, tensors, chat_template: None })
}

const ATTENTION: &str = "h.0.attn.c_attn.weight";

fn matrix(shape: &[usize], name: &str) -> Result<[usize; 2]> {
    <[usize; 2]>::try_from(shape)
        .map_err(|_| refuse(name, format!("shape {shape:?}"), "two dimensions"))
}

/// Number of heads, which no tensor shows.
fn n_head(options: &ImportOptions, metadata: Option<&str>, n_embd: usize) -> Result<usize> {
    let found = match (options.n_head, metadata) {
        (Some(n_head), _) => n_head.to_string(),
        (None, Some(text)) => text.to_owned(),
        (None, None) => "nothing".to_owned(),
    };
    let n_head = found.parse().ok().filter(|n| *n > 0 && n_embd.is_multiple_of(*n));
    n_head.ok_or_else(|| Error::Argument {
        name: "n_head",
        found,
        expected: format!(
            "a divisor of n_embd = {n_embd}, by --n-head or as the file's metadata n_head"
        ),
    })
}
