//! Checkpoints of teenyGPT that were saved as safetensors with their own names. Much of the model is in
//! its `config.ini` only.

use std::path::Path;

use super::tensor::View;
use super::tensors::{Name, Want};
use super::{ImportOptions, Parts, refuse, safetensors, vocabulary};
use crate::config::{Ffn, PositionalEncoding, RopeScaling, model_section};
use crate::error::{Error, Result};
use crate::format::names;
use crate::ini::Ini;

/// Whether only teenyGPT has a tensor of this name.
pub(super) fn is_name(name: &str) -> bool {
    name == "attention_blocks.attention_0.linear_q.weight"
}

pub(super) fn open(path: &Path, options: &ImportOptions) -> Result<Parts> {
    let (tensors, metadata) = safetensors::open(path, &|_| false)?;
    let Some(ini) = &options.config else {
        return Err(Error::Argument {
            name: "config",
            found: "nothing".to_owned(),
            expected: "--config with the config.ini of this checkpoint of teenyGPT".to_owned(),
        });
    };
    let tokenizer = vocabulary::given(options, &metadata)?;
    let mut config = model_section(&Ini::read(ini)?, tokenizer.vocab_size())?.config;
    match config.positional_encoding {
        PositionalEncoding::Rope
            if config.rope_theta != 10000.0 || config.rope_scaling.is_some() =>
        {
            return Err(refuse(
                "rope_theta, rope_scaling",
                "numbers of rope",
                "none of them: teenyGPT has its own",
            ));
        }
        PositionalEncoding::Rope => {
            // Its frequencies are 10000^(-2 (i - 1) / head_dim): those of RoPE, and all of them divided.
            let factor = 10000f64.powf(-2.0 / config.head_dim as f64) as f32;
            config.rope_scaling = Some(RopeScaling::Linear { factor });
        }
        PositionalEncoding::Alibi if !config.n_head.is_power_of_two() => {
            return Err(refuse(
                "n_attn_heads",
                config.n_head.to_string(),
                "a power of two with alibi: other counts have other slopes in teenyGPT",
            ));
        }
        PositionalEncoding::None
        | PositionalEncoding::Alibi
        | PositionalEncoding::Sinusoidal
        | PositionalEncoding::Learned
        | PositionalEncoding::LearnedSinusoidal => {}
    }
    let tensors = tensors.map(&config, &|spec| {
        let name = match Name::new(&spec.name) {
            Name::Layer(n, part) => {
                let (part, kind) = part.rsplit_once('.').unwrap_or((part, ""));
                let part = layer_part(part, config.ffn)?;
                format!("attention_blocks.attention_{n}.{part}.{kind}")
            }
            Name::Other(names::EMBED_TOKENS) => "embedding.weight".to_owned(),
            Name::Other(names::EMBED_POSITIONS) => {
                "positional_encoding.embedding.weight".to_owned()
            }
            Name::Other(other) => other
                .replace(names::POSITION_PROJ, "positional_encoding.linear")
                .replace(names::LM_HEAD, "unembedding"),
        };
        let turned = config.positional_encoding == PositionalEncoding::Rope
            && (name.contains(".linear_q.") || name.contains(".linear_k."));
        let view = if turned { View::Pairs(config.head_dim) } else { View::Rows(0) };
        Ok(Want { name, shape: spec.shape.clone(), view })
    })?;
    Ok(Parts { config, tokenizer, tensors, chat_template: None })
}

fn layer_part(part: &str, ffn: Ffn) -> Result<&'static str> {
    let gated = match ffn {
        Ffn::Swiglu => true,
        Ffn::Classic | Ffn::Gelu | Ffn::GeluTanh | Ffn::Relu2 => false,
    };
    Ok(match part {
        "input_layernorm" => "norm_1",
        "post_attention_layernorm" => "norm_2",
        "self_attn.q_proj" => "linear_q",
        "self_attn.k_proj" => "linear_k",
        "self_attn.v_proj" => "linear_v",
        "self_attn.o_proj" => "linear_o",
        "mlp.gate_proj" => "ffn.w1",
        "mlp.up_proj" if gated => "ffn.w3",
        "mlp.down_proj" if gated => "ffn.w2",
        "mlp.up_proj" => "ffn.layers.0",
        "mlp.down_proj" => "ffn.layers.2",
        other => return Err(refuse(other, "it", "a part that teenyGPT has")),
    })
}
