//! Models of llama2.c: a header, then the numbers in a fixed order (`export.py` and `run.c` there).
//!
//! Three layouts: the first has no mark, single precision, and tables of RoPE that nobody reads; 1 has the
//! mark and single precision; 2 has matrices as signed bytes with a scale for each group of them.

use std::path::Path;
use std::sync::Arc;

use super::tensor::{Encoding, Values, View};
use super::tensors::{Name, Tensors, Want};
use super::{ImportOptions, Parts, map, refuse, vocabulary};
use crate::config::{Ffn, ModelConfig, Norm, PositionalEncoding};
use crate::error::Result;
use crate::format::names;
use crate::weights::Bytes;

/// `ak42`, the mark of layouts 1 and 2, as a little-endian number.
const MAGIC: [u8; 4] = 0x616b_3432_u32.to_le_bytes();
/// Where the numbers of layouts 1 and 2 begin.
const HEADER: usize = 256;
/// Where those of the first layout begin: behind seven numbers.
const LEGACY_HEADER: usize = 28;

/// Whether a file that begins with these bytes may be one: it has the mark, or its first two numbers
/// are the widths of a model.
pub(super) fn is_one(start: &[u8]) -> bool {
    let width = |at: usize| {
        let bytes = start.get(at..at + 4)?;
        let width = i32::from_le_bytes(bytes.try_into().ok()?);
        usize::try_from(width).ok().filter(|width| (1..=1 << 20).contains(width))
    };
    start.starts_with(&MAGIC) || (width(0).is_some() && width(4).is_some())
}

/// What the header says.
struct Header {
    dim: usize,
    hidden_dim: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    vocab_size: usize,
    seq_len: usize,
    /// Whether the output projection is the embedding.
    shared: bool,
    layout: FileLayout,
}

enum FileLayout {
    Legacy,
    Singles,
    Bytes { group: usize },
}

pub(super) fn open(path: &Path, options: &ImportOptions) -> Result<Parts> {
    let bytes = map(path)?;
    let header = Header::read(bytes.get())?;
    let config = header.config();
    config.validate()?;
    let tensors = header.tensors(&bytes, &config)?;
    let beside = path.with_file_name("tokenizer.bin");
    let file = options.tokenizer.as_deref().unwrap_or(&beside);
    let tokenizer = vocabulary::of_llama2c(file, header.vocab_size)?;
    let head_dim = config.head_dim;
    let tensors = tensors.map(&config, &|spec| {
        let view = match Name::new(&spec.name) {
            Name::Layer(_, "self_attn.q_proj.weight" | "self_attn.k_proj.weight") => {
                View::Pairs(head_dim)
            }
            Name::Layer(..) | Name::Other(_) => View::Rows(0),
        };
        Ok(Want { name: spec.name.clone(), shape: spec.shape.clone(), view })
    })?;
    Ok(Parts { config, tokenizer, tensors, chat_template: None })
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Header> {
        let number = |at: usize| {
            let found = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            found.map(i32::from_le_bytes).ok_or_else(|| {
                refuse("header", format!("{} bytes", bytes.len()), "a header of llama2.c")
            })
        };
        let marked = bytes.starts_with(&MAGIC);
        let at = if marked { 8 } else { 0 };
        let size = |index: usize, name: &str| {
            let found = number(at + 4 * index)?;
            usize::try_from(found)
                .ok()
                .filter(|n| *n > 0)
                .ok_or_else(|| refuse(name, found.to_string(), "a positive number"))
        };
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let (shared, vocab_size, layout) = if marked {
            let shared = match byte(36) {
                found @ (0 | 1) => found == 1,
                found => return Err(refuse("shared_classifier", found.to_string(), "0 or 1")),
            };
            let layout = match number(4)? {
                1 => FileLayout::Singles,
                2 => FileLayout::Bytes {
                    group: number(37).and_then(|group| {
                        let whole = usize::try_from(group).ok().filter(|group| *group > 0);
                        whole.ok_or_else(|| {
                            refuse("group_size", group.to_string(), "a positive number")
                        })
                    })?,
                },
                found => return Err(refuse("version", found.to_string(), "1 or 2")),
            };
            (shared, size(5, "vocab_size")?, layout)
        } else {
            // A negative number says that the output projection is a matrix of its own.
            let vocab_size = number(20)?;
            if vocab_size == 0 {
                return Err(refuse("vocab_size", "0", "another number"));
            }
            (vocab_size > 0, vocab_size.unsigned_abs() as usize, FileLayout::Legacy)
        };
        Ok(Header {
            dim: size(0, "dim")?,
            hidden_dim: size(1, "hidden_dim")?,
            n_layers: size(2, "n_layers")?,
            n_heads: size(3, "n_heads")?,
            n_kv_heads: size(4, "n_kv_heads")?,
            vocab_size,
            seq_len: size(6, "seq_len")?,
            shared,
            layout,
        })
    }

    /// What `run.c` and `model.py` have fixed.
    fn config(&self) -> ModelConfig {
        ModelConfig {
            vocab_size: self.vocab_size,
            n_layer: self.n_layers,
            n_head: self.n_heads,
            n_kv_head: self.n_kv_heads,
            n_embd: self.dim,
            head_dim: self.dim / self.n_heads,
            ffn_dim: self.hidden_dim,
            max_seq_len: self.seq_len,
            positional_encoding: PositionalEncoding::Rope,
            rope_theta: 10_000.0,
            rope_scaling: None,
            norm: Norm::RmsNorm,
            norm_eps: 1e-5,
            final_norm: true,
            ffn: Ffn::Swiglu,
            attention_bias: false,
            ffn_bias: false,
            norm_bias: false,
            lm_head_bias: false,
            tie_embeddings: self.shared,
            qk_norm: false,
            logit_softcap: 0.0,
        }
    }

    /// The tensors by the names of ours, in the order of the file.
    fn tensors(&self, bytes: &Arc<Bytes>, c: &ModelConfig) -> Result<Tensors> {
        if c.head_dim * self.n_heads != self.dim {
            let expected = format!("a divisor of dim = {}", self.dim);
            return Err(refuse("n_heads", self.n_heads.to_string(), expected));
        }
        // A layer is no smaller than its norms, so a hostile number of them ends before names are made.
        if self.n_layers > bytes.get().len() / 8 {
            let expected = format!("as many layers as {} bytes hold", bytes.get().len());
            return Err(refuse("n_layers", self.n_layers.to_string(), expected));
        }
        let (dim, hidden, kv) = (self.dim, self.hidden_dim, c.kv_dim());
        let layers = |part: &'static str, shape: &[usize]| {
            let shape = shape.to_vec();
            (0..self.n_layers).map(move |n| (names::layer(n, part), shape.clone()))
        };
        let embedding = (names::EMBED_TOKENS.to_owned(), vec![self.vocab_size, dim]);
        let head = (format!("{}.weight", names::LM_HEAD), embedding.1.clone());
        let head = Some(head).filter(|_| !self.shared);
        let final_norm = (format!("{}.weight", names::FINAL_NORM), vec![dim]);
        let norms = layers("input_layernorm.weight", &[dim]);
        let ffn_norms = layers("post_attention_layernorm.weight", &[dim]);
        let attention = layers("self_attn.q_proj.weight", &[dim, dim])
            .chain(layers("self_attn.k_proj.weight", &[kv, dim]))
            .chain(layers("self_attn.v_proj.weight", &[kv, dim]))
            .chain(layers("self_attn.o_proj.weight", &[dim, dim]));
        let ffn = layers("mlp.gate_proj.weight", &[hidden, dim])
            .chain(layers("mlp.down_proj.weight", &[dim, hidden]))
            .chain(layers("mlp.up_proj.weight", &[hidden, dim]));
        let mut file = Reader { bytes, at: HEADER, tensors: Tensors::default() };
        match self.layout {
            FileLayout::Legacy => {
                file.at = LEGACY_HEADER;
                file.read([embedding], Encoding::F32)?;
                file.read(norms.chain(attention).chain(ffn_norms).chain(ffn), Encoding::F32)?;
                file.read([final_norm], Encoding::F32)?;
                // Cosines and sines.
                file.at = self
                    .seq_len
                    .checked_mul(c.head_dim / 2 * 2 * 4)
                    .and_then(|n| file.at.checked_add(n))
                    .unwrap_or(usize::MAX);
                file.read(head, Encoding::F32)?;
            }
            FileLayout::Singles => {
                let norms = norms.chain(ffn_norms).chain([final_norm, embedding]);
                file.read(norms.chain(attention).chain(ffn).chain(head), Encoding::F32)?;
            }
            FileLayout::Bytes { group } => {
                file.read(norms.chain(ffn_norms).chain([final_norm]), Encoding::F32)?;
                let matrices = [embedding].into_iter().chain(attention).chain(ffn).chain(head);
                file.read(matrices, Encoding::Bytes { group })?;
            }
        }
        if file.at != bytes.get().len() {
            return Err(refuse(
                "the file",
                format!("{} bytes", bytes.get().len()),
                format!("{} for the sizes in its header", file.at),
            ));
        }
        Ok(file.tensors)
    }
}

/// Reads tensors that lie one after the other.
struct Reader<'a> {
    bytes: &'a Arc<Bytes>,
    at: usize,
    tensors: Tensors,
}

impl Reader<'_> {
    fn read(
        &mut self,
        tensors: impl IntoIterator<Item = (String, Vec<usize>)>,
        encoding: Encoding,
    ) -> Result<()> {
        for (name, shape) in tensors {
            let values = Values::new(&name, self.bytes, self.at, encoding, &shape)?;
            self.at = values.end();
            self.tensors.insert(name, values)?;
        }
        Ok(())
    }
}
