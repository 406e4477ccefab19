//! A folder as transformers saves it: `config.json`, weights as safetensors, and a vocabulary. Ours are
//! Llama's names, so a Llama needs no change.

use std::path::Path;

use super::json::{Json, read_text};
use super::tensor::View;
use super::tensors::Want;
use super::{Parts, gpt2, refuse, safetensors, vocabulary};
use crate::config::{Ffn, ModelConfig, Norm, PositionalEncoding, RopeScaling};
use crate::error::Result;
use crate::format::names;

const ARCHITECTURES: &str = "LlamaForCausalLM or GPT2LMHeadModel";

pub(super) fn open(folder: &Path) -> Result<Parts> {
    let file = folder.join("config.json");
    if !file.exists() {
        return Err(refuse(
            &folder.display().to_string(),
            "a folder without config.json",
            "a model file, or a folder of Hugging Face's",
        ));
    }
    let json = Json::read(&file)?;
    json.expect_none("quantization_config")?;
    let architecture = match json.get("architectures").and_then(|list| list.as_array()) {
        Some(list) => match &list[..] {
            [one] => one.as_str(),
            _ => None,
        },
        // Configurations that were made by hand may have the kind only.
        None => match json.str("model_type", Some(""))? {
            "llama" => Some("LlamaForCausalLM"),
            "gpt2" => Some("GPT2LMHeadModel"),
            _ => return Err(json.refuse("model_type", "llama or gpt2")),
        },
    };
    match architecture {
        Some("LlamaForCausalLM") => llama(folder, &json),
        Some("GPT2LMHeadModel") => gpt2::open(folder, &json),
        _ => Err(json.refuse("architectures", ARCHITECTURES)),
    }
}

fn llama(folder: &Path, json: &Json) -> Result<Parts> {
    let n_embd = json.usize("hidden_size", None)?;
    let n_head = json.usize("num_attention_heads", None)?;
    let head_dim = match n_embd.checked_div(n_head) {
        Some(head_dim) if json.has("head_dim") || n_embd.is_multiple_of(n_head) => head_dim,
        _ => {
            let expected = format!("a divisor of hidden_size = {n_embd}");
            return Err(json.refuse("num_attention_heads", expected));
        }
    };
    if !["silu", "swish"].contains(&json.str("hidden_act", Some("silu"))?) {
        return Err(json.refuse("hidden_act", "silu"));
    }
    json.expect_none("sliding_window")?;
    let (rope_theta, rope_scaling) = rope(json)?;
    let n_rows = json.usize("vocab_size", None)?;
    let tokenizer = vocabulary::of_folder(folder, json, n_rows)?;
    vocabulary::check_rows(&tokenizer, n_rows)?;
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        n_layer: json.usize("num_hidden_layers", None)?,
        n_head,
        n_kv_head: json.usize("num_key_value_heads", Some(n_head))?,
        n_embd,
        head_dim: json.usize("head_dim", Some(head_dim))?,
        ffn_dim: json.usize("intermediate_size", None)?,
        max_seq_len: json.usize("max_position_embeddings", Some(2048))?,
        positional_encoding: PositionalEncoding::Rope,
        rope_theta,
        rope_scaling,
        norm: Norm::RmsNorm,
        norm_eps: json.f32("rms_norm_eps", Some(1e-6))?,
        final_norm: true,
        ffn: Ffn::Swiglu,
        attention_bias: json.bool("attention_bias", false)?,
        ffn_bias: json.bool("mlp_bias", false)?,
        norm_bias: false,
        lm_head_bias: false,
        tie_embeddings: json.bool("tie_word_embeddings", false)?,
        qk_norm: false,
        logit_softcap: 0.0,
    };
    // Frequencies that older versions of transformers saved follow from the configuration.
    let is_frequencies = |name: &str| name.ends_with(".rotary_emb.inv_freq");
    let mut tensors = safetensors::open_folder(folder, &is_frequencies)?;
    gpt2::check_tied(&mut tensors, names::EMBED_TOKENS, config.tie_embeddings)?;
    let tensors = tensors.map(&config, &|spec| {
        let mut shape = spec.shape.clone();
        if spec.name == names::EMBED_TOKENS || spec.name.starts_with(names::LM_HEAD) {
            shape[0] = n_rows;
        }
        Ok(Want { name: spec.name.clone(), shape, view: View::Rows(0) })
    })?;
    let chat_template = chat_template(folder)?;
    Ok(Parts { config, tokenizer, tensors, chat_template })
}

/// Refuses a rotation of a part of each head only.
fn whole_heads(json: &Json) -> Result<()> {
    match json.f32("partial_rotary_factor", Some(1.0))? {
        1.0 => Ok(()),
        _ => Err(json.refuse("partial_rotary_factor", "1")),
    }
}

/// How the model is talked to: a file of its own in newer folders, a key of the tokenizer's in older ones.
pub(super) fn chat_template(folder: &Path) -> Result<Option<String>> {
    let (file, config) = (folder.join("chat_template.jinja"), folder.join("tokenizer_config.json"));
    if file.exists() {
        return read_text(&file).map(Some);
    }
    if !config.exists() {
        return Ok(None);
    }
    // Several with names are for other uses than talking.
    let template =
        Json::read(&config)?.get("chat_template").and_then(|text| text.as_str()).map(str::to_owned);
    Ok(template)
}

/// Base of RoPE and what happens to its frequencies: `rope_parameters`, or `rope_theta` and
/// `rope_scaling` of older versions.
fn rope(json: &Json) -> Result<(f32, Option<RopeScaling>)> {
    const DEFAULT_THETA: f32 = 10_000.0;
    whole_heads(json)?;
    let theta = json.f32("rope_theta", Some(DEFAULT_THETA))?;
    let (Some(key), both) = (match (json.has("rope_parameters"), json.has("rope_scaling")) {
        (false, false) => (None, false),
        (false, true) => (Some("rope_scaling"), false),
        (true, both) => (Some("rope_parameters"), both),
    }) else {
        return Ok((theta, None));
    };
    if both && json.get("rope_parameters") != json.get("rope_scaling") {
        return Err(json.refuse("rope_scaling", "what rope_parameters holds, or nothing"));
    }
    let rope = json.child(key)?;
    whole_heads(&rope)?;
    let theta = rope.f32("rope_theta", Some(theta))?;
    // Older files have `type`.
    let kind_key = if rope.has("rope_type") { "rope_type" } else { "type" };
    let scaling = match rope.str(kind_key, Some("default"))? {
        "default" => None,
        "linear" => Some(RopeScaling::Linear { factor: rope.f32("factor", None)? }),
        "llama3" => Some(RopeScaling::Llama3 {
            factor: rope.f32("factor", None)?,
            low_freq_factor: rope.f32("low_freq_factor", None)?,
            high_freq_factor: rope.f32("high_freq_factor", None)?,
            original_max_seq_len: rope.usize("original_max_position_embeddings", None)?,
        }),
        _ => return Err(rope.refuse(kind_key, "default, linear or llama3")),
    };
    Ok((theta, scaling))
}
