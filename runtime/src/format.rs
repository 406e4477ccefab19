#![doc = include_str!("../FORMAT.md")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};

use crate::config::{Ffn, ModelConfig, Norm, PositionalEncoding};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Value of the metadata key `format`.
pub const FORMAT: &str = "teeny";
/// Values of the metadata key `format_version`: readers refuse any other. The writer uses the
/// first that has all parts of the model ([`format_version`]).
pub const FORMAT_VERSIONS: &[&str] = &["1", "2"];
/// Tensor data begins at a multiple of this many bytes from the start of the file.
pub const ALIGNMENT: usize = 64;
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

/// Element type of the tensors of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl Dtype {
    /// Every element type.
    pub const ALL: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::Bf16];

    /// Name in a configuration: `f32`, `f16` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// Name in a safetensors header.
    fn safetensors_name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
        }
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
        specs.linear(names::layer(n, "self_attn.q_proj"), c.n_embd, c.n_embd, c.attention_bias);
        specs.linear(names::layer(n, "self_attn.k_proj"), c.kv_dim(), c.n_embd, c.attention_bias);
        specs.linear(names::layer(n, "self_attn.v_proj"), c.kv_dim(), c.n_embd, c.attention_bias);
        if c.qk_norm {
            specs.add(names::layer(n, "self_attn.q_norm.weight"), &[c.head_dim()]);
            specs.add(names::layer(n, "self_attn.k_norm.weight"), &[c.head_dim()]);
        }
        specs.linear(names::layer(n, "self_attn.o_proj"), c.n_embd, c.n_embd, c.attention_bias);
        specs.norm(names::layer(n, "post_attention_layernorm"), c);
        match c.ffn {
            Ffn::Swiglu => {
                specs.linear(names::layer(n, "mlp.gate_proj"), c.ffn_dim, c.n_embd, c.ffn_bias);
            }
            Ffn::Classic | Ffn::Gelu | Ffn::Relu2 => {}
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

/// The format version that a model's file has: 2 for parts that a reader of version 1 does not know
/// (`relu2`, `qk_norm`, `logit_softcap`). It would miss a soft cap without noticing, as it ignores keys
/// that it does not know.
pub fn format_version(config: &ModelConfig) -> &'static str {
    let relu2 = match config.ffn {
        Ffn::Relu2 => true,
        Ffn::Classic | Ffn::Gelu | Ffn::Swiglu => false,
    };
    if relu2 || config.qk_norm || config.logit_softcap != 0.0 { "2" } else { "1" }
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

/// Writes a model as one safetensors file with metadata, tokenizer and 64-byte aligned data.
///
/// `values` is called once for each of [`tensor_specs`] and returns the tensor's elements in row
/// order. The file appears under its name only when it is complete: it is written beside it, synced
/// and renamed, so a program that has the old file mapped keeps reading the old one.
///
/// # Errors
/// An invalid configuration, a vocabulary of another size, a metadata key that the format itself
/// uses, values of a wrong count, or any failure to write; the old file then stays as it was.
pub fn write_model(
    path: &Path,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    extra_metadata: &[(String, String)],
    dtype: Dtype,
    values: &mut dyn FnMut(&TensorSpec) -> Vec<f32>,
) -> Result<()> {
    config.validate()?;
    if tokenizer.vocab_size() != config.vocab_size {
        return Err(Error::Format {
            what: "tokenizer".into(),
            found: format!("{} entries", tokenizer.vocab_size()),
            expected: format!("vocab_size = {}", config.vocab_size),
        });
    }
    let metadata = metadata(config, tokenizer, extra_metadata)?;
    let specs = file_order(tensor_specs(config), dtype);
    let header = header(&metadata, &specs, dtype);
    write_atomically(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for spec in &specs {
            let values = values(spec);
            if values.len() != spec.len() {
                return Err(std::io::Error::other(format!(
                    "{}: {} values given, shape {:?}",
                    spec.name,
                    values.len(),
                    spec.shape
                )));
            }
            file.write_all(&encode(&values, dtype))?;
        }
        Ok(())
    })
}

/// Tensors whose size is a multiple of the alignment come first, so that all of those are aligned;
/// safetensors allows no gaps, so a bias of odd length would otherwise shift every later tensor.
fn file_order(mut specs: Vec<TensorSpec>, dtype: Dtype) -> Vec<TensorSpec> {
    specs.sort_by_key(|spec| !(spec.len() * dtype.size()).is_multiple_of(ALIGNMENT));
    specs
}

fn metadata(
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    extra: &[(String, String)],
) -> Result<Vec<(String, String)>> {
    let mut metadata = vec![
        ("format".to_owned(), FORMAT.to_owned()),
        ("format_version".to_owned(), format_version(config).to_owned()),
    ];
    metadata.extend(config.to_metadata().into_iter().map(|(k, v)| (k.to_owned(), v)));
    metadata.push(("tokenizer".to_owned(), tokenizer.to_json()));
    for (key, value) in extra {
        if metadata.iter().any(|(known, _)| known == key) {
            return Err(Error::Format {
                what: format!("metadata key {key}"),
                found: "it twice".into(),
                expected: "a key that the format does not use itself".into(),
            });
        }
        metadata.push((key.clone(), value.clone()));
    }
    Ok(metadata)
}

/// The JSON header, padded with spaces so that the data behind it is aligned.
fn header(metadata: &[(String, String)], specs: &[TensorSpec], dtype: Dtype) -> String {
    // Written field by field, because the order of a JSON map would be the alphabet's.
    let quote = |s: &str| serde_json::Value::from(s).to_string();
    let mut fields = Vec::new();
    let pairs: Vec<String> =
        metadata.iter().map(|(k, v)| format!("{}:{}", quote(k), quote(v))).collect();
    fields.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    let mut offset = 0;
    for spec in specs {
        let end = offset + spec.len() * dtype.size();
        fields.push(format!(
            "{}:{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{offset},{end}]}}",
            quote(&spec.name),
            dtype.safetensors_name(),
            spec.shape
        ));
        offset = end;
    }
    let mut header = format!("{{{}}}", fields.join(","));
    // 8 bytes hold the header's length.
    while !(8 + header.len()).is_multiple_of(ALIGNMENT) {
        header.push(' ');
    }
    header
}

/// Little-endian bytes of the values in `dtype`, rounded to nearest even.
fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

/// Writes a file beside `path`, syncs it and renames it into place.
///
/// # Errors
/// Any failure of the file system or of `write`; `path` is then untouched and nothing is left over.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    let mut temporary = PathBuf::from(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Another thread may be writing the same file.
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    temporary.set_file_name(format!(".{name}.{}-{count}.tmp", std::process::id()));
    let result = (|| {
        let mut file = BufWriter::new(File::create(&temporary)?);
        write(&mut file)?;
        file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        std::fs::rename(&temporary, path)?;
        // The rename itself lasts only when the folder is on the disk too.
        if let Some(folder) = path.parent() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            if let Ok(folder) = File::open(folder) {
                let _ = folder.sync_all();
            }
        }
        Ok(())
    })();
    result.map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        Error::Io { action: "cannot write", path: path.to_owned(), source }
    })
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
    let (found, needed) = (get("format_version").unwrap_or_default(), format_version(&config));
    // Programs that know version 1 only would read such a file as another model.
    if found < needed {
        return Err(Error::Format {
            what: "metadata key format_version".into(),
            found: format!("{found:?}"),
            expected: format!("{needed:?} with relu2, qk_norm or logit_softcap"),
        });
    }
    Ok(config)
}
