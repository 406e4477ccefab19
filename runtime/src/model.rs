//! The model: [`Model::forward`] is the file's heart and reads like the paper.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::alloc::zeros;
use crate::backend::{
    Activations, AttentionShape, AttentionWeights, Backend, DrawOptions, Embedding, FfnWeights,
    Head, Linear, LogitRows, NormWeights, PassInputs, PassShape, PositionWeights, Span,
};
use crate::config::{Ffn, ModelConfig, Norm, PositionalEncoding};
use crate::error::{Error, Result};
use crate::format::{SINUSOID_DIM, names};
use crate::kv_cache::KvShape;
use crate::position::{Frequencies, alibi_slopes};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// A loaded model: immutable, and shared by any number of sessions.
pub struct Model<B: Backend> {
    backend: B,
    config: ModelConfig,
    weights: Weights,
    encoding: Encoding,
    attention: AttentionShape,
    embedding: Embedding<B>,
    layers: Vec<Layer<B>>,
    head: Head<B>,
    /// Activations that no pass is using: as many as there were passes at the same time.
    idle: Mutex<Vec<Activations<B>>>,
}

struct Layer<B: Backend> {
    attention: AttentionWeights<B>,
    ffn: FfnWeights<B>,
}

/// What the host computes of a row's position; the backends do the rest.
enum Encoding {
    None,
    /// Cosine and sine of each pair of a head. (head_dim/2, 2)
    Rotation(Frequencies),
    /// (n_embd), or ([`SINUSOID_DIM`]) where a linear map follows
    Sinusoid(Frequencies),
}

impl Encoding {
    /// Numbers of one row, and what belongs to `pos`.
    fn new(c: &ModelConfig) -> (Encoding, usize) {
        match c.positional_encoding {
            PositionalEncoding::None | PositionalEncoding::Alibi | PositionalEncoding::Learned => {
                (Encoding::None, 0)
            }
            PositionalEncoding::Rope => (Encoding::Rotation(Frequencies::of_rope(c)), c.head_dim),
            PositionalEncoding::Sinusoidal => {
                (Encoding::Sinusoid(Frequencies::new(1e4, c.n_embd)), c.n_embd)
            }
            PositionalEncoding::LearnedSinusoidal => {
                (Encoding::Sinusoid(Frequencies::new(1e4, SINUSOID_DIM)), SINUSOID_DIM)
            }
        }
    }

    fn write(&self, pos: usize, out: &mut [f32]) {
        match self {
            Encoding::None => {}
            Encoding::Rotation(frequencies) => frequencies.rotation(pos, out),
            Encoding::Sinusoid(frequencies) => frequencies.sinusoid(pos, out),
        }
    }
}

impl<B: Backend> Model<B> {
    /// Brings checked weights to a device.
    ///
    /// # Errors
    /// No memory on the device, or a model that it cannot run.
    pub fn load(backend: B, weights: &Weights) -> Result<Model<B>> {
        let c = weights.config().clone();
        backend.check(weights)?;
        let loader = Loader { backend: &backend, weights, config: &c };
        let position = match c.positional_encoding {
            PositionalEncoding::None | PositionalEncoding::Alibi | PositionalEncoding::Rope => {
                PositionWeights::None
            }
            PositionalEncoding::Sinusoidal => PositionWeights::Encoding,
            PositionalEncoding::Learned => {
                PositionWeights::Table(loader.matrix(names::EMBED_POSITIONS)?)
            }
            PositionalEncoding::LearnedSinusoidal => {
                PositionWeights::Map(loader.linear(names::POSITION_PROJ, true)?)
            }
        };
        let embedding = Embedding { tokens: loader.matrix(names::EMBED_TOKENS)?, position };
        let layers = (0..c.n_layer).map(|n| loader.layer(n)).collect::<Result<_>>()?;
        let lm_head = Linear {
            weight: if c.tie_embeddings {
                embedding.tokens.clone()
            } else {
                loader.matrix(&format!("{}.weight", names::LM_HEAD))?
            },
            bias: loader.bias(names::LM_HEAD, c.lm_head_bias)?,
        };
        let norm = if c.final_norm { loader.norm(names::FINAL_NORM)? } else { None };
        let softcap = c.logit_softcap;
        let alibi = c.positional_encoding == PositionalEncoding::Alibi;
        let attention = AttentionShape {
            n_head: c.n_head,
            n_kv_head: c.n_kv_head,
            head_dim: c.head_dim,
            window: c.max_seq_len,
            rotate: c.positional_encoding == PositionalEncoding::Rope,
            slopes: if alibi { alibi_slopes(c.n_head) } else { vec![0.0; c.n_head] },
        };
        Ok(Model {
            weights: weights.clone(),
            backend,
            encoding: Encoding::new(&c).0,
            config: c,
            attention,
            embedding,
            layers,
            head: Head { norm, lm_head, softcap },
            idle: Mutex::default(),
        })
    }

    /// Runs the rows of `spans` through the model and leaves the logits of the wanted rows in
    /// `a`, in order, for [`Model::read`].
    ///
    /// `tokens`: one id below vocab_size for each row of the spans, in order. The caller keeps the
    /// rows within [`Backend::limits`] and `a.shape`, and positions without gaps.
    ///
    /// # Errors
    /// No memory for keys and values; the caches are then as before. A device that is lost.
    pub fn forward(
        &self,
        tokens: &[u32],
        spans: &mut [Span<'_, B::Cache>],
        logit_rows: LogitRows,
        a: &mut Activations<B>,
    ) -> Result<()> {
        debug_assert_eq!(tokens.len(), spans.iter().map(|span| span.rows).sum::<usize>());
        debug_assert!(tokens.len() <= a.shape.rows);
        for span in spans.iter_mut() {
            self.backend.reserve(span.cache, span.pos, span.rows)?;
        }
        let encoding = self.encode(spans, 1, a);
        let encoding = &a.host[..encoding];
        let inputs = PassInputs { tokens, encoding, logit_rows, draws: &[], steps: 1 };
        self.backend.begin(&mut a.pass, &inputs, spans)?;
        self.backend.run(a, spans, &mut |a, spans| self.layers(a, spans))
    }

    /// Runs one row of each span through the model, draws the token that follows it, and goes on with
    /// that, `steps` times. The host is asked for nothing in between. Afterwards `drawn` has the
    /// tokens, [`u32::MAX`] where none was possible, and `a` the logits before the last of them.
    ///
    /// `draws`: one for each span, all of which [`Backend::can_draw`]; `drawn`: (steps, spans). The
    /// caller keeps `steps` times the spans within `a.shape.rows`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_drawing(
        &self,
        tokens: &[u32],
        spans: &mut [Span<'_, B::Cache>],
        draws: &[DrawOptions],
        drawn: &mut [u32],
        a: &mut Activations<B>,
    ) -> Result<()> {
        let steps = drawn.len() / spans.len();
        debug_assert!(drawn.len() <= a.shape.rows && drawn.len() == steps * spans.len());
        debug_assert!(spans.iter().all(|span| span.rows == 1) && draws.len() == spans.len());
        for span in spans.iter_mut() {
            self.backend.reserve(span.cache, span.pos, steps)?;
        }
        let encoding = self.encode(spans, steps, a);
        let encoding = &a.host[..encoding];
        let logit_rows = LogitRows::Last;
        let inputs = PassInputs { tokens, encoding, logit_rows, draws, steps };
        self.backend.begin(&mut a.pass, &inputs, spans)?;
        for _ in 0..steps {
            self.backend.run(a, spans, &mut |a, spans| {
                self.layers(a, spans)?;
                self.backend.draw(a)
            })?;
        }
        self.backend.read_drawn(a, drawn)
    }

    /// The pass itself.
    fn layers(&self, a: &mut Activations<B>, spans: &mut [Span<'_, B::Cache>]) -> Result<()> {
        let b = &self.backend;
        b.embed(a, &self.embedding)?;
        for (n, layer) in self.layers.iter().enumerate() {
            // x += o_proj(attention(norm(x))), with q and k normalised and rotated
            b.qkv(a, n, &layer.attention, &self.attention, spans)?;
            b.attention(a, n, &self.attention, spans)?;
            b.attention_output(a, &layer.attention)?;
            // x += ffn(norm(x))
            b.ffn(a, &layer.ffn)?;
            b.ffn_output(a, &layer.ffn)?;
        }
        // softcap(lm_head(norm(x)))
        b.logits(a, &self.head, spans)
    }

    /// Writes the rows' positional encodings to `a.host`, step after step: (steps, rows, encoding).
    /// Returns their number.
    fn encode(&self, spans: &[Span<'_, B::Cache>], steps: usize, a: &mut Activations<B>) -> usize {
        let width = a.shape.encoding;
        if width == 0 {
            return 0;
        }
        let mut rows = a.host.chunks_exact_mut(width);
        let mut written = 0;
        for step in 0..steps {
            for pos in spans.iter().flat_map(|span| span.pos..span.pos + span.rows) {
                let Some(row) = rows.next() else { return written };
                self.encoding.write(pos + step, row);
                written += width;
            }
        }
        written
    }

    /// Brings the first rows of a pass's logits to the host, and rows of last hidden states, as the
    /// final norm left them, from `first_hidden` on. `logits`: (n, vocab_size), `hidden`: (m, n_embd)
    ///
    /// # Errors
    /// The device is lost.
    pub fn read(
        &self,
        a: &mut Activations<B>,
        logits: &mut [f32],
        hidden: &mut [f32],
        first_hidden: usize,
    ) -> Result<()> {
        self.backend.read(a, logits, hidden, first_hidden)
    }

    /// Activations that no pass is using, made now if there are none. Sessions take them for a pass
    /// and give them back: a model with many sessions needs only as many as run at the same time.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn take_activations(&self) -> Result<Activations<B>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| self.activations(), Ok)
    }

    /// Gives back what [`Model::take_activations`] gave.
    pub fn give_activations(&self, a: Activations<B>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(a);
    }

    /// Makes room for passes of as many rows as the backend takes, fewer if that would take more
    /// memory than the weights do (or the backend asks for): a file of hostile proportions gets no
    /// more than its own size.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn activations(&self) -> Result<Activations<B>> {
        let (b, c) = (&self.backend, &self.config);
        let limits = b.limits();
        let encoding = Encoding::new(c).1;
        let (q_dim, kv_dim) = (c.q_dim(), c.kv_dim());
        let row = 3 * c.n_embd + 2 * (q_dim + kv_dim + c.ffn_dim) + 2 * encoding + c.vocab_size;
        let rows = (self.n_bytes().max(limits.bytes) / (4 * row)).clamp(1, limits.rows);
        let logit_rows = rows.min(limits.logit_rows);
        let shape = PassShape { rows, logit_rows, encoding, config: c.clone() };
        Ok(Activations {
            pass: b.pass(&shape)?,
            x: b.buffer(rows, c.n_embd)?,
            normed: b.buffer(rows, c.n_embd)?,
            q: b.buffer(rows, q_dim)?,
            k: b.buffer(rows, kv_dim)?,
            v: b.buffer(rows, kv_dim)?,
            mixed: b.buffer(rows, q_dim)?,
            branch: b.buffer(rows, c.n_embd)?,
            gate: b.buffer(rows, c.ffn_dim)?,
            up: b.buffer(rows, c.ffn_dim)?,
            logits: b.buffer(logit_rows, c.vocab_size)?,
            host: zeros("activations", rows * encoding)?,
            shape,
        })
    }

    /// Where the keys and values of this model's sessions lie.
    pub fn kv_shape(&self) -> KvShape {
        KvShape::new(&self.config, self.backend.limits().span_rows)
    }

    /// Makes an empty cache for one session.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn cache(&self) -> Result<B::Cache> {
        self.backend.cache(&self.kv_shape())
    }

    /// A second cache with the same contents, whose memory is shared until one of them writes.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn fork(&self, cache: &B::Cache) -> Result<B::Cache> {
        self.backend.fork(cache)
    }

    /// Allocates keys and values for `rows` positions from `pos` on.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn reserve(&self, cache: &mut B::Cache, pos: usize, rows: usize) -> Result<()> {
        self.backend.reserve(cache, pos, rows)
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Shape and kind of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.weights.tokenizer()
    }

    /// The file's metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.weights.metadata()
    }

    /// Number of parameters.
    pub fn n_params(&self) -> usize {
        self.weights.n_params()
    }

    /// Bytes of the weights as they are stored; a decode step reads about as many.
    pub fn n_bytes(&self) -> usize {
        self.weights.n_bytes()
    }

    /// Tells this model from others: [`Weights::fingerprint`].
    pub fn fingerprint(&self) -> u128 {
        self.weights.fingerprint()
    }

    /// Checks ids that come from outside.
    ///
    /// # Errors
    /// [`Error::Argument`] for the first id that the vocabulary lacks.
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        match tokens.iter().find(|token| **token as usize >= self.config.vocab_size) {
            None => Ok(()),
            Some(token) => Err(Error::Argument {
                name: "token",
                found: token.to_string(),
                expected: format!("an id below vocab_size = {}", self.config.vocab_size),
            }),
        }
    }
}

/// Takes weights of a file to a device, by their names.
struct Loader<'a, B: Backend> {
    backend: &'a B,
    weights: &'a Weights,
    config: &'a ModelConfig,
}

impl<B: Backend> Loader<'_, B> {
    fn matrix(&self, name: &str) -> Result<B::Matrix> {
        self.backend.matrix(&self.weights.tensor(name)?)
    }

    fn bias(&self, name: &str, there: bool) -> Result<Option<B::Vector>> {
        if !there {
            return Ok(None);
        }
        let tensor = self.weights.tensor(&format!("{name}.bias"))?;
        Ok(Some(self.backend.vector(&tensor.to_f32()?)?))
    }

    fn linear(&self, name: &str, bias: bool) -> Result<Linear<B>> {
        Ok(Linear { weight: self.matrix(&format!("{name}.weight"))?, bias: self.bias(name, bias)? })
    }

    fn norm(&self, name: &str) -> Result<Option<NormWeights<B::Vector>>> {
        let subtract_mean = match self.config.norm {
            Norm::None => return Ok(None),
            Norm::LayerNorm => true,
            Norm::RmsNorm => false,
        };
        let weight = self.weights.tensor(&format!("{name}.weight"))?;
        Ok(Some(NormWeights {
            weight: self.backend.vector(&weight.to_f32()?)?,
            bias: self.bias(name, self.config.norm_bias)?,
            eps: self.config.norm_eps,
            subtract_mean,
        }))
    }

    /// The norm of each head of queries or keys: RMSNorm whatever the model's norm is.
    fn head_norm(&self, name: &str) -> Result<Option<NormWeights<B::Vector>>> {
        if !self.config.qk_norm {
            return Ok(None);
        }
        let weight = self.weights.tensor(&format!("{name}.weight"))?;
        Ok(Some(NormWeights {
            weight: self.backend.vector(&weight.to_f32()?)?,
            bias: None,
            eps: self.config.norm_eps,
            subtract_mean: false,
        }))
    }

    fn layer(&self, n: usize) -> Result<Layer<B>> {
        let c = self.config;
        let linear = |part: &str, bias| self.linear(&names::layer(n, part), bias);
        let head_norm = |part: &str| self.head_norm(&names::layer(n, part));
        Ok(Layer {
            attention: AttentionWeights {
                norm: self.norm(&names::layer(n, "input_layernorm"))?,
                q_proj: linear("self_attn.q_proj", c.attention_bias)?,
                k_proj: linear("self_attn.k_proj", c.attention_bias)?,
                v_proj: linear("self_attn.v_proj", c.attention_bias)?,
                q_norm: head_norm("self_attn.q_norm")?,
                k_norm: head_norm("self_attn.k_norm")?,
                o_proj: linear("self_attn.o_proj", c.attention_bias)?,
            },
            ffn: FfnWeights {
                norm: self.norm(&names::layer(n, "post_attention_layernorm"))?,
                kind: c.ffn,
                gate_proj: match c.ffn {
                    Ffn::Swiglu => Some(linear("mlp.gate_proj", c.ffn_bias)?),
                    Ffn::Classic | Ffn::Gelu | Ffn::GeluTanh | Ffn::Relu2 => None,
                },
                up_proj: linear("mlp.up_proj", c.ffn_bias)?,
                down_proj: linear("mlp.down_proj", c.ffn_bias)?,
            },
        })
    }
}
