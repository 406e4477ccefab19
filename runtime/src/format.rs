#![doc = include_str!("../FORMAT.md")]

mod dtype;
mod encode;
mod write;

use std::collections::BTreeMap;

use crate::config::{Ffn, ModelConfig, Norm, PositionalEncoding};
use crate::error::{Error, Result};
pub use dtype::Dtype;
pub(crate) use dtype::{Part, Unit};
pub(crate) use encode::{encode, refused};
pub(crate) use write::{Encoded, write_tensors};
#[cfg(feature = "import")]
pub(crate) use write::{metadata, write_file};
pub use write::{write_atomically, write_model};

/// Value of the metadata key `format`.
pub const FORMAT: &str = "teeny";
/// Values of the metadata key `format_version`: readers refuse any other. The writer uses the
/// first that has all parts of the model ([`format_version`]).
pub const FORMAT_VERSIONS: &[&str] = &["1", "2", "3", "4"];
/// The format version of files with tables of a tokenizer.
pub const TABLES_VERSION: &str = "4";
/// Tensor data begins at a multiple of this many bytes from the start of the file.
pub const ALIGNMENT: usize = 64;
/// What the name of a matrix in blocks gets for the tensor of its scales.
pub const SCALE_SUFFIX: &str = ".scale";
/// Width of the sinusoid that `learned_sinusoidal` maps to `n_embd`.
pub const SINUSOID_DIM: usize = 16;

/// Names of the tensors, each written once. `N` layers have the names of [`layer`](names::layer).
pub mod names {
    /// Token embedding, `(vocab_size, n_embd)`.
    pub const EMBED_TOKENS: &str = "model.embed_tokens.weight";
    /// Learned positions, `(max_seq_len, n_embd)`.
    pub const EMBED_POSITIONS: &str = "model.embed_positions.weight";
    /// Map of the sinusoid, `.weight (n_embd, 16)` and `.bias (n_embd)`.
    pub const POSITION_PROJ: &str = "model.embed_positions.proj";
    /// Norm before the output, `.weight` and `.bias (n_embd)`.
    pub const FINAL_NORM: &str = "model.norm";
    /// Output projection, `.weight (vocab_size, n_embd)` and `.bias (vocab_size)`.
    pub const LM_HEAD: &str = "lm_head";
    /// A part of layer `n`, such as `self_attn.q_proj`.
    pub fn layer(n: usize, part: &str) -> String {
        format!("model.layers.{n}.{part}")
    }
}

/// Name and shape of one tensor that a configuration calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Full name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Outermost dimension first; linear weights are `(out_features, in_features)`.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether a dimension is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it may be stored in blocks: the embedding of tokens and every linear weight except that
    /// of the positions, whose rows are used as they are.
    pub fn is_quantisable(&self) -> bool {
        let positions = self.name == names::EMBED_POSITIONS
            || self.name.strip_suffix(".weight") == Some(names::POSITION_PROJ);
        self.shape.len() == 2 && !positions
    }

    /// Whether it is the embedding or the output projection, one row for each token.
    fn is_vocabulary(&self) -> bool {
        self.name == names::EMBED_TOKENS
            || self.name.strip_suffix(".weight") == Some(names::LM_HEAD)
    }
}

/// Every tensor of a model, from input to output. The configuration must be valid.
pub fn tensor_specs(config: &ModelConfig) -> Vec<TensorSpec> {
    let c = config;
    let mut specs = Specs(Vec::new());
    specs.add(names::EMBED_TOKENS.to_owned(), &[c.vocab_size, c.n_embd]);
    match c.positional_encoding {
        PositionalEncoding::Learned => {
            specs.add(names::EMBED_POSITIONS.to_owned(), &[c.max_seq_len, c.n_embd]);
        }
        PositionalEncoding::LearnedSinusoidal => {
            specs.linear(names::POSITION_PROJ.to_owned(), c.n_embd, SINUSOID_DIM, true);
        }
        PositionalEncoding::None
        | PositionalEncoding::Alibi
        | PositionalEncoding::Sinusoidal
        | PositionalEncoding::Rope => {}
    }
    for n in 0..c.n_layer {
        specs.norm(names::layer(n, "input_layernorm"), c);
        specs.linear(names::layer(n, "self_attn.q_proj"), c.q_dim(), c.n_embd, c.attention_bias);
        specs.linear(names::layer(n, "self_attn.k_proj"), c.kv_dim(), c.n_embd, c.attention_bias);
        specs.linear(names::layer(n, "self_attn.v_proj"), c.kv_dim(), c.n_embd, c.attention_bias);
        if c.qk_norm {
            specs.add(names::layer(n, "self_attn.q_norm.weight"), &[c.head_dim]);
            specs.add(names::layer(n, "self_attn.k_norm.weight"), &[c.head_dim]);
        }
        specs.linear(names::layer(n, "self_attn.o_proj"), c.n_embd, c.q_dim(), c.attention_bias);
        specs.norm(names::layer(n, "post_attention_layernorm"), c);
        match c.ffn {
            Ffn::Swiglu => {
                specs.linear(names::layer(n, "mlp.gate_proj"), c.ffn_dim, c.n_embd, c.ffn_bias);
            }
            Ffn::Classic | Ffn::Gelu | Ffn::GeluTanh | Ffn::Relu2 => {}
        }
        specs.linear(names::layer(n, "mlp.up_proj"), c.ffn_dim, c.n_embd, c.ffn_bias);
        specs.linear(names::layer(n, "mlp.down_proj"), c.n_embd, c.ffn_dim, c.ffn_bias);
    }
    if c.final_norm {
        specs.norm(names::FINAL_NORM.to_owned(), c);
    }
    if !c.tie_embeddings {
        specs.add(format!("{}.weight", names::LM_HEAD), &[c.vocab_size, c.n_embd]);
    }
    if c.lm_head_bias {
        specs.add(format!("{}.bias", names::LM_HEAD), &[c.vocab_size]);
    }
    specs.0
}

/// The format version that a model's file has if its tokenizer has no tables, which make it 4: 4 for
/// parts that a reader of version 3 does not know (`gelu_tanh`, `head_dim`, `rope_scaling`), 3 where
/// matrices are in blocks, 2 for `relu2`, `qk_norm` and `logit_softcap`. A reader of version 1 would miss
/// a soft cap without noticing, as it ignores keys that it does not know.
pub fn format_version(config: &ModelConfig, dtype: Dtype) -> &'static str {
    let (relu2, gelu_tanh) = match config.ffn {
        Ffn::Relu2 => (true, false),
        Ffn::GeluTanh => (false, true),
        Ffn::Classic | Ffn::Gelu | Ffn::Swiglu => (false, false),
    };
    if gelu_tanh || config.has_own_head_dim() || config.rope_scaling.is_some() {
        "4"
    } else if dtype.is_quantised() {
        "3"
    } else if relu2 || config.qk_norm || config.logit_softcap != 0.0 {
        "2"
    } else {
        "1"
    }
}

/// Bytes of the tensors of a model's file.
pub fn n_bytes(config: &ModelConfig, dtype: Dtype) -> usize {
    let specs = tensor_specs(config);
    specs.iter().map(|spec| dtype.of(spec).stored(&spec.shape).n_bytes()).sum()
}

/// Number of parameters of a model; a tied output projection counts once.
pub fn n_params(config: &ModelConfig) -> usize {
    tensor_specs(config).iter().map(TensorSpec::len).sum()
}

struct Specs(Vec<TensorSpec>);

impl Specs {
    fn add(&mut self, name: String, shape: &[usize]) {
        self.0.push(TensorSpec { name, shape: shape.to_vec() });
    }

    fn linear(&mut self, name: String, out_features: usize, in_features: usize, bias: bool) {
        self.add(format!("{name}.weight"), &[out_features, in_features]);
        if bias {
            self.add(format!("{name}.bias"), &[out_features]);
        }
    }

    fn norm(&mut self, name: String, c: &ModelConfig) {
        match c.norm {
            Norm::None => return,
            Norm::LayerNorm | Norm::RmsNorm => {}
        }
        self.add(format!("{name}.weight"), &[c.n_embd]);
        if c.norm_bias {
            self.add(format!("{name}.bias"), &[c.n_embd]);
        }
    }
}

/// The model configuration in a file's metadata, after checking that this is a file of ours.
///
/// # Errors
/// A foreign file, a format version that is unknown or lacks a part of the model, or a missing or
/// invalid key.
pub fn config_from_metadata(metadata: &BTreeMap<String, String>) -> Result<ModelConfig> {
    let get = |key: &str| metadata.get(key).map(String::as_str);
    for (key, expected) in [("format", &[FORMAT][..]), ("format_version", FORMAT_VERSIONS)] {
        if !get(key).is_some_and(|value| expected.contains(&value)) {
            let expected: Vec<_> = expected.iter().map(|value| format!("{value:?}")).collect();
            return Err(Error::Format {
                what: format!("metadata key {key}"),
                found: get(key).map_or("nothing".into(), |v| format!("{v:?}")),
                expected: format!(
                    "{}: is this a file written by teeny-train?",
                    expected.join(" or ")
                ),
            });
        }
    }
    let config = ModelConfig::from_metadata(get)?;
    let (found, needed) =
        (get("format_version").unwrap_or_default(), format_version(&config, Dtype::F32));
    // Programs that know the version of the file only would read it as another model.
    if found < needed {
        let parts = match needed {
            "4" => "gelu_tanh, head_dim or rope_scaling",
            _ => "relu2, qk_norm or logit_softcap",
        };
        return Err(Error::Format {
            what: "metadata key format_version".into(),
            found: format!("{found:?}"),
            expected: format!("{needed:?} with {parts}"),
        });
    }
    Ok(config)
}
