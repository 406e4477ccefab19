//! [`ModelConfig`] and its enums, defined here once: read from the section `[model]` of a
//! configuration, written to and read from the metadata of a model file.

mod kinds;
mod metadata;
mod rope;

use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::ini::{Ini, Key, Section, range_text};
pub use kinds::{Ffn, Norm, PositionalEncoding};
use metadata::Metadata;
pub use rope::RopeScaling;

/// The largest and smallest numbers that a configuration or a model file may hold.
///
/// They lie far above any model that this program is for. What they are for is that products of
/// sizes stay far from overflow, and that a typing error is caught before memory is asked for.
pub mod limits {
    use super::RangeInclusive;

    /// Unicode has 1,114,112 code points; subword vocabularies are smaller.
    pub const VOCAB_SIZE: RangeInclusive<usize> = 1..=(1 << 24) - 1;
    /// The deepest published transformers have about a thousand layers.
    pub const N_LAYER: RangeInclusive<usize> = 1..=1024;
    /// Query heads, and key and value heads.
    pub const N_HEAD: RangeInclusive<usize> = 1..=1024;
    /// Width of the residual stream, and of all query heads together.
    pub const N_EMBD: RangeInclusive<usize> = 1..=65_536;
    /// Width of the FFN, up to sixteen times the widest residual stream.
    pub const FFN_DIM: RangeInclusive<usize> = 1..=1 << 20;
    /// Context length in tokens.
    pub const MAX_SEQ_LEN: RangeInclusive<usize> = 1..=1 << 24;
    /// Below 1 the frequencies of RoPE would rise with the dimension.
    pub const ROPE_THETA: RangeInclusive<f64> = 1.0..=1e12;
    /// Published factors go up to 64. Below 1 positions lie further apart, as in teenyGPT, whose frequencies
    /// begin at 10000^(2/head_dim).
    pub const ROPE_FACTOR: RangeInclusive<f64> = 1e-4..=1e6;
    /// Turns within a context; published are 1 and 4.
    pub const ROPE_FREQ_FACTOR: RangeInclusive<f64> = 1e-3..=1e6;
    /// An epsilon of 0 would turn a vector of zeros into NaN.
    pub const NORM_EPS: RangeInclusive<f64> = 1e-12..=1.0;
    /// Where the soft cap is on. Logits need room to differ; published caps are 30 and 50.
    pub const LOGIT_SOFTCAP: RangeInclusive<f64> = 0.1..=1000.0;
}

/// The sections of a configuration file: `[dataset]` is read by [`dataset`](crate::dataset),
/// `[model]` here, `[train]` by the trainer.
pub const SECTIONS: &[&str] = &["dataset", "model", "train"];

/// Keys of `[model]`. The aliases are teenyGPT's names, but for `NANOGPT_CONTEXT`.
pub const MODEL_KEYS: &[Key] = &[
    Key::with_aliases("n_layer", &["n_attn_layers"]),
    Key::with_aliases("n_head", &["n_attn_heads"]),
    Key::new("n_kv_head"),
    Key::with_aliases("n_embd", &["n_dim"]),
    Key::new("head_dim"),
    Key::new("ffn_dim"),
    Key::with_aliases("max_seq_len", &["n_context_max", NANOGPT_CONTEXT]),
    Key::with_aliases("dropout", &["p_dropout"]),
    Key::with_aliases("positional_encoding", &["positional_encoding_type"]),
    Key::new("rope_theta"),
    Key::new("rope_scaling"),
    Key::new("rope_factor"),
    Key::new("rope_low_freq_factor"),
    Key::new("rope_high_freq_factor"),
    Key::new("rope_original_max_seq_len"),
    Key::with_aliases("norm", &["layer_norm_type"]),
    Key::new("norm_eps"),
    Key::new("final_norm"),
    Key::with_aliases("ffn", &["ffn_type"]),
    Key::new("bias"),
    Key::new("attention_bias"),
    Key::new("ffn_bias"),
    Key::new("norm_bias"),
    Key::new("lm_head_bias"),
    Key::new("tie_embeddings"),
    Key::new("qk_norm"),
    Key::new("logit_softcap"),
];

/// Key of `[train]`: how many tokens a training example has. It stands here because `teeny-run`
/// takes prompts of that length from a split.
pub const N_CONTEXT: Key = Key::with_aliases("n_context", &[NANOGPT_CONTEXT]);

/// Keys of `[train]`: where the trainer leaves its best state and its model. They stand here because
/// `teeny-run` looks for that model.
pub const CHECKPOINT_FILE: Key = Key::new("checkpoint_file");
/// See [`CHECKPOINT_FILE`].
pub const EXPORT_FILE: Key = Key::new("export_file");

/// nanoGPT has one name for the context of the model and that of training.
const NANOGPT_CONTEXT: &str = "block_size";

/// The shape of a model: everything that its forward pass depends on but for the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Number of tokens that the tokenizer knows.
    pub vocab_size: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Number of query heads.
    pub n_head: usize,
    /// Number of key and value heads; each serves `n_head / n_kv_head` query heads.
    pub n_kv_head: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of a head; `n_embd / n_head` in most models, but any width can be.
    pub head_dim: usize,
    /// Width of the FFN.
    pub ffn_dim: usize,
    /// Context length in tokens.
    pub max_seq_len: usize,
    /// How positions enter.
    pub positional_encoding: PositionalEncoding,
    /// Base of the wavelengths of RoPE; without meaning for other encodings.
    pub rope_theta: f32,
    /// What happens to the frequencies of RoPE; none for other encodings.
    pub rope_scaling: Option<RopeScaling>,
    /// Normalisation.
    pub norm: Norm,
    /// Added to the variance or the mean square.
    pub norm_eps: f32,
    /// Whether there is a norm before the output projection.
    pub final_norm: bool,
    /// Kind of feed-forward network.
    pub ffn: Ffn,
    /// Whether q, k, v and o projections have biases.
    pub attention_bias: bool,
    /// Whether gate, up and down projections have biases.
    pub ffn_bias: bool,
    /// Whether LayerNorm has a shift; false for every other norm.
    pub norm_bias: bool,
    /// Whether the output projection has a bias.
    pub lm_head_bias: bool,
    /// Whether the output projection is the token embedding.
    pub tie_embeddings: bool,
    /// Whether each query head and each key head is normalised to a root mean square of 1 and
    /// scaled, before the rotation (arXiv:2010.04245).
    pub qk_norm: bool,
    /// Logits are `cap * tanh(logits / cap)` (arXiv:2408.00118); 0 leaves them as they are.
    pub logit_softcap: f32,
}

/// What a configuration has wrong, before it is known whether a file or a user is to be told.
struct Invalid {
    key: &'static str,
    found: String,
    expected: String,
}

impl Invalid {
    fn in_file(self) -> Error {
        let Invalid { key, found, expected } = self;
        Error::Format { what: format!("metadata key {key}"), found, expected }
    }

    fn in_section(self, s: &Section) -> Error {
        s.error(self.key, self.found, self.expected)
    }
}

/// Width of a head where no key says it; 0 for no heads, which are refused later.
fn equal_heads(n_embd: usize, n_head: usize) -> std::result::Result<usize, Invalid> {
    if n_head != 0 && !n_embd.is_multiple_of(n_head) {
        return Err(Invalid {
            key: "n_embd",
            found: n_embd.to_string(),
            expected: format!("a multiple of n_head = {n_head}, or a head_dim"),
        });
    }
    Ok(n_embd.checked_div(n_head).unwrap_or(0))
}

impl ModelConfig {
    /// Width of all queries of a token: `n_head * head_dim`.
    pub fn q_dim(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// Whether heads have another width than `n_embd / n_head`, so that a file must say it.
    pub fn has_own_head_dim(&self) -> bool {
        self.q_dim() != self.n_embd
    }

    /// Width of all keys, and of all values, of a token: `n_kv_head * head_dim`.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_head * self.head_dim
    }

    /// Checks every number against [`limits`] and every combination that cannot work. No size that
    /// is computed from a valid configuration overflows.
    ///
    /// # Errors
    /// [`Error::Format`] naming the key.
    pub fn validate(&self) -> Result<()> {
        self.check().map_err(Invalid::in_file)
    }

    fn check(&self) -> std::result::Result<(), Invalid> {
        for (key, found, range) in [
            ("vocab_size", self.vocab_size, limits::VOCAB_SIZE),
            ("n_layer", self.n_layer, limits::N_LAYER),
            ("n_head", self.n_head, limits::N_HEAD),
            ("n_kv_head", self.n_kv_head, limits::N_HEAD),
            ("n_embd", self.n_embd, limits::N_EMBD),
            ("head_dim", self.head_dim, limits::N_EMBD),
            ("ffn_dim", self.ffn_dim, limits::FFN_DIM),
            ("max_seq_len", self.max_seq_len, limits::MAX_SEQ_LEN),
        ] {
            if !range.contains(&found) {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                return Err(Invalid { key, found: found.to_string(), expected });
            }
        }
        for (key, found, limits) in [
            ("rope_theta", self.rope_theta, limits::ROPE_THETA),
            ("norm_eps", self.norm_eps, limits::NORM_EPS),
        ] {
            // The limits as f32, or 1e-12 itself would lie outside of them.
            let range = *limits.start() as f32..=*limits.end() as f32;
            if !range.contains(&found) {
                let expected = format!("a number{}", range_text(&limits));
                return Err(Invalid { key, found: found.to_string(), expected });
            }
        }
        let range = *limits::LOGIT_SOFTCAP.start() as f32..=*limits::LOGIT_SOFTCAP.end() as f32;
        if self.logit_softcap != 0.0 && !range.contains(&self.logit_softcap) {
            return Err(Invalid {
                key: "logit_softcap",
                found: self.logit_softcap.to_string(),
                expected: format!("0 or a number{}", range_text(&limits::LOGIT_SOFTCAP)),
            });
        }
        self.check_combinations()?;
        self.check_size()
    }

    fn check_combinations(&self) -> std::result::Result<(), Invalid> {
        let refuse = |key, found, expected: String| {
            Err(Invalid { key, found: format!("{found}"), expected })
        };
        let ModelConfig { n_head, n_kv_head, n_embd, head_dim, .. } = *self;
        let q_dim = *limits::N_EMBD.end();
        if self.q_dim() > q_dim {
            let expected = format!("at most {} for n_head = {n_head}", q_dim / n_head);
            return refuse("head_dim", head_dim, expected);
        }
        if !n_head.is_multiple_of(n_kv_head) {
            return refuse("n_kv_head", n_kv_head, format!("a divisor of n_head = {n_head}"));
        }
        match self.positional_encoding {
            PositionalEncoding::Rope if !head_dim.is_multiple_of(2) => {
                if self.has_own_head_dim() {
                    return refuse("head_dim", head_dim, "an even number for rope".to_owned());
                }
                let expected = format!(
                    "an even head_dim for rope, not n_embd / n_head = {n_embd} / {n_head} = {head_dim}"
                );
                return refuse("n_embd", n_embd, expected);
            }
            PositionalEncoding::Sinusoidal if !n_embd.is_multiple_of(2) => {
                return refuse("n_embd", n_embd, "an even number for sinusoidal".to_owned());
            }
            PositionalEncoding::None
            | PositionalEncoding::Alibi
            | PositionalEncoding::Sinusoidal
            | PositionalEncoding::Learned
            | PositionalEncoding::LearnedSinusoidal
            | PositionalEncoding::Rope => {}
        }
        if let Some(scaling) = self.rope_scaling {
            scaling.check()?;
            if self.positional_encoding != PositionalEncoding::Rope {
                return Err(Invalid {
                    key: "rope_scaling",
                    found: scaling.name().to_owned(),
                    expected: format!(
                        "none: only rope has frequencies to scale, not positional_encoding = {}",
                        self.positional_encoding.name()
                    ),
                });
            }
        }
        match self.norm {
            Norm::None | Norm::RmsNorm if self.norm_bias => Err(Invalid {
                key: "norm_bias",
                found: "true".to_owned(),
                expected: format!(
                    "false: only layernorm has a bias, not norm = {}",
                    self.norm.name()
                ),
            }),
            Norm::None | Norm::LayerNorm | Norm::RmsNorm => Ok(()),
        }
    }

    /// Within the limits, only a 32-bit machine can have too small a `usize` for all weights.
    fn check_size(&self) -> std::result::Result<(), Invalid> {
        let [vocab, seq, embd, heads, ffn, layers] = [
            self.vocab_size,
            self.max_seq_len,
            self.n_embd,
            self.q_dim(),
            self.ffn_dim,
            self.n_layer,
        ]
        .map(|n| n as u128);
        // No less than the parameters there are: every matrix of every variant, and all biases.
        let layer = (4 * heads + 3 * ffn) * (embd + 1) + 6 * embd + 2 * heads;
        let params = 2 * vocab * (embd + 1) + (seq + 17 + 2) * embd + layers * layer;
        if params * size_of::<f32>() as u128 > isize::MAX as u128 {
            return Err(Invalid {
                key: "n_embd",
                found: format!("{embd}, a model of up to {params} parameters"),
                expected: "a model that this machine can address".to_owned(),
            });
        }
        Ok(())
    }

    /// Keys and values as they stand in a model file. Keys of format versions 2 and 4 are there only
    /// where they say something, so that the file of a model without them is what it always was.
    pub fn to_metadata(&self) -> Vec<(&'static str, String)> {
        let mut metadata = vec![
            ("vocab_size", self.vocab_size.to_string()),
            ("n_layer", self.n_layer.to_string()),
            ("n_head", self.n_head.to_string()),
            ("n_kv_head", self.n_kv_head.to_string()),
            ("n_embd", self.n_embd.to_string()),
            ("ffn_dim", self.ffn_dim.to_string()),
            ("max_seq_len", self.max_seq_len.to_string()),
            ("positional_encoding", self.positional_encoding.name().to_owned()),
            ("rope_theta", self.rope_theta.to_string()),
            ("norm", self.norm.name().to_owned()),
            ("norm_eps", self.norm_eps.to_string()),
            ("final_norm", self.final_norm.to_string()),
            ("ffn", self.ffn.name().to_owned()),
            ("attention_bias", self.attention_bias.to_string()),
            ("ffn_bias", self.ffn_bias.to_string()),
            ("norm_bias", self.norm_bias.to_string()),
            ("lm_head_bias", self.lm_head_bias.to_string()),
            ("tie_embeddings", self.tie_embeddings.to_string()),
        ];
        if self.qk_norm {
            metadata.push(("qk_norm", self.qk_norm.to_string()));
        }
        if self.logit_softcap != 0.0 {
            metadata.push(("logit_softcap", self.logit_softcap.to_string()));
        }
        if self.has_own_head_dim() {
            metadata.push(("head_dim", self.head_dim.to_string()));
        }
        if let Some(scaling) = self.rope_scaling {
            metadata.extend(scaling.to_metadata());
        }
        metadata
    }

    /// Reads what [`to_metadata`](Self::to_metadata) wrote, from a file that nobody vouches for.
    ///
    /// # Errors
    /// [`Error::Format`] naming the first key that is missing, unreadable or invalid.
    pub fn from_metadata<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<ModelConfig> {
        let metadata = Metadata(get);
        let (n_head, n_embd) = (metadata.usize("n_head")?, metadata.usize("n_embd")?);
        let head_dim = if metadata.has("head_dim") {
            metadata.usize("head_dim")?
        } else {
            equal_heads(n_embd, n_head).map_err(Invalid::in_file)?
        };
        let config = ModelConfig {
            vocab_size: metadata.usize("vocab_size")?,
            n_layer: metadata.usize("n_layer")?,
            n_head,
            n_kv_head: metadata.usize("n_kv_head")?,
            n_embd,
            head_dim,
            ffn_dim: metadata.usize("ffn_dim")?,
            max_seq_len: metadata.usize("max_seq_len")?,
            positional_encoding: metadata.one_of(
                "positional_encoding",
                PositionalEncoding::ALL,
                PositionalEncoding::name,
            )?,
            rope_theta: metadata.f32("rope_theta")?,
            rope_scaling: RopeScaling::from_metadata(&metadata)?,
            norm: metadata.one_of("norm", Norm::ALL, Norm::name)?,
            norm_eps: metadata.f32("norm_eps")?,
            final_norm: metadata.bool("final_norm")?,
            ffn: metadata.one_of("ffn", Ffn::ALL, Ffn::name)?,
            attention_bias: metadata.bool("attention_bias")?,
            ffn_bias: metadata.bool("ffn_bias")?,
            norm_bias: metadata.bool("norm_bias")?,
            lm_head_bias: metadata.bool("lm_head_bias")?,
            tie_embeddings: metadata.bool("tie_embeddings")?,
            qk_norm: metadata.has("qk_norm") && metadata.bool("qk_norm")?,
            logit_softcap: if metadata.has("logit_softcap") {
                metadata.f32("logit_softcap")?
            } else {
                0.0
            },
        };
        config.validate()?;
        Ok(config)
    }
}

/// What the section `[model]` of a configuration says.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSection {
    /// The shape of the model.
    pub config: ModelConfig,
    /// Probability that training zeroes an activation.
    pub dropout: f64,
    /// The keys as written, for errors that name them.
    pub section: Section,
}

/// Reads the section `[model]` for a vocabulary of `vocab_size` tokens.
///
/// A key that is not there has the value of the reference configuration, `config.ini` at the
/// project's root. In a file with teenyGPT's names it has the value that teenyGPT would give it.
///
/// # Errors
/// [`Error::Config`] for an unknown key, an unreadable value, a number outside [`limits`], and a
/// combination that cannot work.
pub fn model_section(ini: &Ini, vocab_size: usize) -> Result<ModelSection> {
    let s = ini.section("model", MODEL_KEYS)?;
    let teenygpt = written_for_teenygpt(ini);
    let norm = s.one_of("norm", Norm::SPELLINGS, Norm::LayerNorm)?;
    let norm_eps = match norm {
        Norm::RmsNorm if teenygpt => 1e-8,
        Norm::None | Norm::LayerNorm | Norm::RmsNorm => 1e-5,
    };
    let ffn = s.one_of("ffn", Ffn::SPELLINGS, Ffn::Swiglu)?;
    // `bias` stands for three keys, each of which may say otherwise.
    let bias = |teenygpt_bias: bool| s.bool("bias", teenygpt && teenygpt_bias);
    let n_head = s.usize("n_head", 8, limits::N_HEAD)?;
    let n_embd = s.usize("n_embd", 256, limits::N_EMBD)?;
    let head_dim = if s.has("head_dim") {
        s.usize("head_dim", 1, limits::N_EMBD)?
    } else {
        equal_heads(n_embd, n_head).map_err(|invalid| invalid.in_section(&s))?
    };
    let config = ModelConfig {
        vocab_size,
        n_layer: s.usize("n_layer", 4, limits::N_LAYER)?,
        n_head,
        n_kv_head: s.usize("n_kv_head", n_head, limits::N_HEAD)?,
        n_embd,
        head_dim,
        ffn_dim: s.usize("ffn_dim", n_embd, limits::FFN_DIM)?,
        max_seq_len: s.usize("max_seq_len", 256, limits::MAX_SEQ_LEN)?,
        positional_encoding: s.one_of(
            "positional_encoding",
            PositionalEncoding::SPELLINGS,
            PositionalEncoding::Rope,
        )?,
        rope_theta: s.f64("rope_theta", 10_000.0, limits::ROPE_THETA)? as f32,
        rope_scaling: RopeScaling::from_section(&s)?,
        norm,
        norm_eps: s.f64("norm_eps", norm_eps, limits::NORM_EPS)? as f32,
        final_norm: s.bool("final_norm", !teenygpt)?,
        ffn,
        attention_bias: s.bool("attention_bias", bias(false)?)?,
        ffn_bias: s.bool("ffn_bias", bias(ffn == Ffn::Classic)?)?,
        norm_bias: s.bool("norm_bias", bias(true)? && norm == Norm::LayerNorm)?,
        lm_head_bias: s.bool("lm_head_bias", teenygpt)?,
        tie_embeddings: s.bool("tie_embeddings", false)?,
        qk_norm: s.bool("qk_norm", false)?,
        logit_softcap: s.f64("logit_softcap", 0.0, 0.0..=*limits::LOGIT_SOFTCAP.end())? as f32,
    };
    let dropout = s.f64("dropout", 0.2, 0.0..1.0)?;
    config.check().map_err(|invalid| invalid.in_section(&s))?;
    Ok(ModelSection { config, dropout, section: s })
}

/// Whether the file's section `[model]` has any of teenyGPT's names. Overrides do not count, or
/// `--set model.n_dim=128` would change more than the width.
fn written_for_teenygpt(ini: &Ini) -> bool {
    let is_teenygpt = |name: &str| {
        let is = |alias: &&str| *alias != NANOGPT_CONTEXT && alias.eq_ignore_ascii_case(name);
        MODEL_KEYS.iter().any(|key| key.aliases.iter().any(is))
    };
    ini.section_entries("model").any(|entry| !entry.is_override() && is_teenygpt(&entry.key))
}

/// Reads how many tokens a training example has from the section `[train]`, and nothing else from
/// it. `max_seq_len` is the default and the most that the model can take.
///
/// # Errors
/// [`Error::Config`] for anything but a whole number up to `max_seq_len`.
pub fn n_context(ini: &Ini, max_seq_len: usize) -> Result<usize> {
    let s = ini.section_part("train", &[N_CONTEXT])?;
    let n_context = s.usize(N_CONTEXT.name, max_seq_len, limits::MAX_SEQ_LEN)?;
    if n_context > max_seq_len {
        let expected = format!("a whole number up to max_seq_len = {max_seq_len} in [model]");
        return Err(s.error(N_CONTEXT.name, n_context.to_string(), expected));
    }
    Ok(n_context)
}

/// The files of [`CHECKPOINT_FILE`] and [`EXPORT_FILE`], and nothing else from `[train]`. Without
/// the second, the model lies beside the checkpoint, with the ending `.safetensors`.
///
/// # Errors
/// [`Error::Config`] for an empty name.
pub fn output_files(ini: &Ini) -> Result<(PathBuf, PathBuf)> {
    let s = ini.section_part("train", &[CHECKPOINT_FILE, EXPORT_FILE])?;
    let checkpoint = PathBuf::from(s.string(CHECKPOINT_FILE.name, "models/shakespeare.ckpt")?);
    let export = match s.optional(EXPORT_FILE.name) {
        Some(file) => PathBuf::from(file),
        None => checkpoint.with_extension("safetensors"),
    };
    Ok((checkpoint, export))
}

#[cfg(test)]
mod tests;
