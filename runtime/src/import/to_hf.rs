//! The way out: a model of ours as a folder that transformers opens.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::{refuse, tokenizer_json};
use crate::chat::CHAT_TEMPLATE;
use crate::config::{Ffn, ModelConfig, Norm, PositionalEncoding, RopeScaling};
use crate::error::{Error, Result};
use crate::format::{Dtype, Encoded, TensorSpec, write_atomically, write_file};
use crate::tokenizer::Specials;
use crate::weights::Weights;

/// Writes a model with `rope`, `rmsnorm` and `swiglu` as a folder of Hugging Face's: `config.json`,
/// `model.safetensors`, `tokenizer.json` and `tokenizer_config.json`, which transformers opens as a
/// `LlamaForCausalLM` with the same logits. The folder must be new or empty. Without an element type,
/// tensors have their own, and those in blocks become f32.
///
/// # Errors
/// A part of the model that a Llama does not have; `dtype` in blocks; a folder with something in it; any
/// failure to write.
pub fn write_hugging_face(weights: &Weights, folder: &Path, dtype: Option<Dtype>) -> Result<()> {
    let config = weights.config();
    check(config)?;
    if let Some(dtype) = dtype.filter(|dtype| dtype.is_quantised()) {
        return Err(Error::Argument {
            name: "dtype",
            found: dtype.name().to_owned(),
            expected: "f32, f16 or bf16: transformers does not read these blocks".to_owned(),
        });
    }
    let (tokenizer, mut tokenizer_config) = tokenizer_json::files(weights.tokenizer())?;
    if let Some(template) = weights.metadata().get(CHAT_TEMPLATE) {
        tokenizer_config[CHAT_TEMPLATE] = template.as_str().into();
    }
    let failed = |source| Error::Io { action: "cannot write", path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    if std::fs::read_dir(folder).map_err(failed)?.next().is_some() {
        return Err(refuse(
            &folder.display().to_string(),
            "a folder with something in it",
            "a new or empty one",
        ));
    }
    let target = |spec: &TensorSpec| {
        let own = || weights.tensor(&spec.name).map_or(Dtype::F32, |tensor| tensor.dtype());
        let own = dtype.unwrap_or_else(own);
        if own.is_quantised() { Dtype::F32 } else { own }
    };
    let metadata = [("format".to_owned(), "pt".to_owned())];
    let file = folder.join("model.safetensors");
    write_file(&file, config, &metadata, &[], &target, &mut |spec, dtype| {
        let tensor = weights.tensor(&spec.name)?;
        Encoded::new(&tensor.to_f32()?, spec, dtype)
    })?;
    // Single precision holds the numbers of all others.
    let kind = crate::format::tensor_specs(config)
        .iter()
        .map(target)
        .max_by_key(|dtype| *dtype == Dtype::F32)
        .unwrap_or(Dtype::F32);
    write_json(&folder.join("tokenizer.json"), &tokenizer)?;
    write_json(&folder.join("tokenizer_config.json"), &tokenizer_config)?;
    write_json(&folder.join("config.json"), &config_json(weights, kind))
}

/// What a Llama cannot be.
fn check(c: &ModelConfig) -> Result<()> {
    let is = |key: &str, found: String, fits: bool, expected: &str| {
        if fits { Ok(()) } else { Err(refuse(key, found, format!("{expected}, as Llama has it"))) }
    };
    let encoding = c.positional_encoding;
    let fits = encoding == PositionalEncoding::Rope;
    is("positional_encoding", encoding.name().to_owned(), fits, "rope")?;
    is("norm", c.norm.name().to_owned(), c.norm == Norm::RmsNorm, "rmsnorm")?;
    is("ffn", c.ffn.name().to_owned(), c.ffn == Ffn::Swiglu, "swiglu")?;
    is("final_norm", c.final_norm.to_string(), c.final_norm, "true")?;
    is("lm_head_bias", c.lm_head_bias.to_string(), !c.lm_head_bias, "false")?;
    is("qk_norm", c.qk_norm.to_string(), !c.qk_norm, "false")?;
    is("logit_softcap", c.logit_softcap.to_string(), c.logit_softcap == 0.0, "0")
}

fn config_json(weights: &Weights, dtype: Dtype) -> Value {
    let c = weights.config();
    let Specials { bos, eos, .. } = weights.tokenizer().specials().cloned().unwrap_or_default();
    let eos = match &eos[..] {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    };
    let scaling = match c.rope_scaling {
        None => Value::Null,
        Some(RopeScaling::Linear { factor }) => json!({"rope_type": "linear", "factor": factor}),
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_seq_len,
        }) => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_seq_len,
        }),
    };
    let dtype = match dtype {
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
        Dtype::F32 | Dtype::Q8 | Dtype::Q4 => "float32",
    };
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.n_embd,
        "intermediate_size": c.ffn_dim,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": scaling,
        "attention_bias": c.attention_bias,
        "mlp_bias": c.ffn_bias,
        "tie_word_embeddings": c.tie_embeddings,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": dtype,
        "use_cache": true,
    })
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_atomically(path, |file| {
        serde_json::to_writer_pretty(&mut *file, value)?;
        file.write_all(b"\n")
    })
}
