//! The model: [`Model::forward`] is the file's heart and reads like the paper.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::alloc::zeros;
use crate::backend::{AttentionShape, Backend, Linear, NormWeights, Span};
use crate::config::{ModelConfig, Norm, PositionalEncoding};
use crate::error::{Error, Result};
use crate::format::{SINUSOID_DIM, names};
use crate::kv_cache::{KvShape, MAX_ROWS};
use crate::position::{Frequencies, alibi_slopes};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// A loaded model: immutable, and shared by any number of sessions.
pub struct Model<B: Backend> {
    backend: B,
    config: ModelConfig,
    weights: Weights,
    attention: AttentionShape,
    embed_tokens: B::Matrix, // (vocab_size, n_embd)
    position: Position<B>,
    layers: Vec<Layer<B>>,
    final_norm: Option<NormWeights<B::Vector>>,
    lm_head: Linear<B>, // (vocab_size, n_embd)
    /// Activations that no pass is using: as many as there were passes at the same time.
    idle: Mutex<Vec<Activations<B>>>,
}

/// What a positional encoding does, with what it needs for that.
enum Position<B: Backend> {
    /// Nothing to add: no encoding, or ALiBi, whose slopes are in [`AttentionShape`].
    InAttention,
    /// Queries and keys are rotated.
    Rotate(Frequencies),
    /// The sinusoid is added.
    Sinusoid(Frequencies),
    /// A row of the table is added. (max_seq_len or more, n_embd)
    Table(B::Matrix),
    /// A linear map of a sinusoid of [`SINUSOID_DIM`] is added.
    MappedSinusoid(Frequencies, Linear<B>),
}

struct Layer<B: Backend> {
    attention_norm: Option<NormWeights<B::Vector>>,
    q_proj: Linear<B>, // (n_embd, n_embd)
    k_proj: Linear<B>, // (kv_dim, n_embd)
    v_proj: Linear<B>, // (kv_dim, n_embd)
    o_proj: Linear<B>, // (n_embd, n_embd)
    ffn_norm: Option<NormWeights<B::Vector>>,
    gate_proj: Option<Linear<B>>, // (ffn_dim, n_embd)
    up_proj: Linear<B>,           // (ffn_dim, n_embd)
    down_proj: Linear<B>,         // (n_embd, ffn_dim)
}

/// Activations of one forward pass of up to `rows` rows; made once, used for every pass.
pub struct Activations<B: Backend> {
    rows: usize,
    x: B::Buffer,        // (rows, n_embd): the residual
    normed: B::Buffer,   // (rows, n_embd)
    q: B::Buffer,        // (rows, n_head, head_dim)
    k: B::Buffer,        // (rows, n_kv_head, head_dim)
    v: B::Buffer,        // (rows, n_kv_head, head_dim)
    mixed: B::Buffer,    // (rows, n_head, head_dim): what attention returns
    branch: B::Buffer,   // (rows, n_embd): what is added to the residual
    gate: B::Buffer,     // (rows, ffn_dim)
    up: B::Buffer,       // (rows, ffn_dim)
    encoding: B::Buffer, // (rows, max(head_dim, n_embd, 16)): rotations or sinusoids
    host: Vec<f32>,      // the same on the host
    positions: Vec<u32>, // (rows)
    last: B::Buffer,     // (rows, n_embd): the rows that logits are wanted for
    logits: B::Buffer,   // (rows, vocab_size)
}

impl<B: Backend> Activations<B> {
    /// Most rows of one pass.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// The rows of a pass that logits are computed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// The last row of each span, as generating needs.
    Last,
    /// Every row, as scoring a text needs.
    All,
}

impl<B: Backend> Model<B> {
    /// Brings checked weights to a device.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn load(backend: B, weights: &Weights) -> Result<Model<B>> {
        let c = weights.config().clone();
        let loader = Loader { backend: &backend, weights, config: &c };
        let embed_tokens = loader.matrix(names::EMBED_TOKENS)?;
        let position = match c.positional_encoding {
            PositionalEncoding::None | PositionalEncoding::Alibi => Position::InAttention,
            PositionalEncoding::Rope => {
                Position::Rotate(Frequencies::new(f64::from(c.rope_theta), c.head_dim()))
            }
            PositionalEncoding::Sinusoidal => Position::Sinusoid(Frequencies::new(1e4, c.n_embd)),
            PositionalEncoding::Learned => Position::Table(loader.matrix(names::EMBED_POSITIONS)?),
            PositionalEncoding::LearnedSinusoidal => Position::MappedSinusoid(
                Frequencies::new(1e4, SINUSOID_DIM),
                loader.linear(names::POSITION_PROJ, true)?,
            ),
        };
        let layers = (0..c.n_layer).map(|n| loader.layer(n)).collect::<Result<_>>()?;
        let final_norm = if c.final_norm { loader.norm(names::FINAL_NORM)? } else { None };
        let lm_head = Linear {
            weight: if c.tie_embeddings {
                loader.matrix(names::EMBED_TOKENS)?
            } else {
                loader.matrix(&format!("{}.weight", names::LM_HEAD))?
            },
            bias: loader.bias(names::LM_HEAD, c.lm_head_bias)?,
        };
        let attention = AttentionShape {
            n_head: c.n_head,
            n_kv_head: c.n_kv_head,
            head_dim: c.head_dim(),
            window: c.max_seq_len,
            slopes: match c.positional_encoding {
                PositionalEncoding::Alibi => alibi_slopes(c.n_head),
                PositionalEncoding::None
                | PositionalEncoding::Sinusoidal
                | PositionalEncoding::Learned
                | PositionalEncoding::LearnedSinusoidal
                | PositionalEncoding::Rope => vec![0.0; c.n_head],
            },
        };
        Ok(Model {
            weights: weights.clone(),
            backend,
            config: c,
            attention,
            embed_tokens,
            position,
            layers,
            final_norm,
            lm_head,
            idle: Mutex::default(),
        })
    }

    /// Runs the rows of `spans` through the model and leaves the logits of the wanted rows in
    /// `a`, in order, for [`Model::read_logits`].
    ///
    /// `tokens`: one id below vocab_size for each row of the spans, in order. The caller keeps the
    /// rows within `a.rows()` and a span's within [`MAX_ROWS`], and positions without gaps.
    ///
    /// # Errors
    /// No memory for keys and values; the caches are then as before.
    pub fn forward(
        &self,
        tokens: &[u32],
        spans: &mut [Span<'_, B::Cache>],
        logit_rows: LogitRows,
        a: &mut Activations<B>,
    ) -> Result<()> {
        let (b, c) = (&self.backend, &self.config);
        let rows = tokens.len();
        debug_assert_eq!(rows, spans.iter().map(|span| span.rows).sum::<usize>());
        debug_assert!(rows <= a.rows && spans.iter().all(|span| span.rows <= MAX_ROWS));
        for span in spans.iter_mut() {
            b.reserve(span.cache, span.pos, span.rows)?;
        }

        b.embed(&mut a.x, &self.embed_tokens, tokens); // (T, n_embd)
        self.add_position(a, spans, rows);
        for (n, layer) in self.layers.iter().enumerate() {
            b.norm(&mut a.normed, &a.x, layer.attention_norm.as_ref(), rows, c.n_embd);
            b.linear(&mut a.q, &a.normed, &layer.q_proj, rows);
            b.linear(&mut a.k, &a.normed, &layer.k_proj, rows);
            b.linear(&mut a.v, &a.normed, &layer.v_proj, rows);
            if let Position::Rotate(_) = self.position {
                b.rotate(&mut a.q, &a.encoding, rows, c.n_head, c.head_dim());
                b.rotate(&mut a.k, &a.encoding, rows, c.n_kv_head, c.head_dim());
            }
            b.attention(&mut a.mixed, &a.q, &a.k, &a.v, n, &self.attention, spans);
            b.linear(&mut a.branch, &a.mixed, &layer.o_proj, rows);
            b.add(&mut a.x, &a.branch, rows * c.n_embd);

            b.norm(&mut a.normed, &a.x, layer.ffn_norm.as_ref(), rows, c.n_embd);
            if let Some(gate_proj) = &layer.gate_proj {
                b.linear(&mut a.gate, &a.normed, gate_proj, rows);
            }
            b.linear(&mut a.up, &a.normed, &layer.up_proj, rows);
            b.activate(&mut a.up, &a.gate, c.ffn, rows * c.ffn_dim);
            b.linear(&mut a.branch, &a.up, &layer.down_proj, rows);
            b.add(&mut a.x, &a.branch, rows * c.n_embd);
        }

        let rows = self.gather(a, spans, logit_rows, rows); // (wanted rows, n_embd)
        b.norm(&mut a.normed, &a.last, self.final_norm.as_ref(), rows, c.n_embd);
        b.linear(&mut a.logits, &a.normed, &self.lm_head, rows); // (wanted rows, vocab_size)
        Ok(())
    }

    /// Adds the rows' positions to the residual, or prepares their rotations.
    fn add_position(&self, a: &mut Activations<B>, spans: &[Span<'_, B::Cache>], rows: usize) {
        let (b, c) = (&self.backend, &self.config);
        let positions = || spans.iter().flat_map(|span| span.pos..span.pos + span.rows);
        match &self.position {
            Position::InAttention => {}
            Position::Rotate(frequencies) => {
                let host = &mut a.host[..rows * c.head_dim()]; // (T, head_dim/2, 2)
                for (out, pos) in host.chunks_exact_mut(c.head_dim()).zip(positions()) {
                    frequencies.rotation(pos, out);
                }
                b.write(&mut a.encoding, host);
            }
            Position::Sinusoid(frequencies) => {
                let host = &mut a.host[..rows * c.n_embd];
                for (out, pos) in host.chunks_exact_mut(c.n_embd).zip(positions()) {
                    frequencies.sinusoid(pos, out);
                }
                b.write(&mut a.encoding, host);
                b.add(&mut a.x, &a.encoding, rows * c.n_embd);
            }
            Position::Table(table) => {
                a.positions.clear();
                // Sessions keep positions in tables below max_seq_len, so the cast is exact.
                a.positions.extend(positions().map(|pos| pos as u32));
                b.embed(&mut a.branch, table, &a.positions);
                b.add(&mut a.x, &a.branch, rows * c.n_embd);
            }
            Position::MappedSinusoid(frequencies, map) => {
                let host = &mut a.host[..rows * SINUSOID_DIM];
                for (out, pos) in host.chunks_exact_mut(SINUSOID_DIM).zip(positions()) {
                    frequencies.sinusoid(pos, out);
                }
                b.write(&mut a.encoding, host);
                b.linear(&mut a.branch, &a.encoding, map, rows);
                b.add(&mut a.x, &a.branch, rows * c.n_embd);
            }
        }
    }

    /// Copies the rows that logits are wanted for to the front of `a.last`; returns their number.
    fn gather(
        &self,
        a: &mut Activations<B>,
        spans: &[Span<'_, B::Cache>],
        logit_rows: LogitRows,
        rows: usize,
    ) -> usize {
        let width = self.config.n_embd;
        match logit_rows {
            LogitRows::All => {
                for row in 0..rows {
                    self.backend.copy_row(&mut a.last, row, &a.x, row, width);
                }
                rows
            }
            LogitRows::Last => {
                let mut end = 0;
                for (i, span) in spans.iter().enumerate() {
                    end += span.rows;
                    self.backend.copy_row(&mut a.last, i, &a.x, end - 1, width);
                }
                spans.len()
            }
        }
    }

    /// Brings logits to the host. `out`: (wanted rows, vocab_size)
    pub fn read_logits(&self, out: &mut [f32], a: &Activations<B>) {
        self.backend.read(out, &a.logits);
    }

    /// Brings the last hidden state of a wanted row to the host, as the final norm left it.
    /// `out`: (n_embd)
    pub fn read_hidden(&self, out: &mut [f32], row: usize, a: &mut Activations<B>) {
        self.backend.copy_row(&mut a.branch, 0, &a.normed, row, self.config.n_embd);
        self.backend.read(out, &a.branch);
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

    /// Makes room for passes of up to [`MAX_ROWS`] rows, fewer if that would take more memory than
    /// the weights do: a file of hostile proportions gets no more than its own size.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn activations(&self) -> Result<Activations<B>> {
        let (b, c) = (&self.backend, &self.config);
        let encoding = c.n_embd.max(SINUSOID_DIM);
        let row = 6 * c.n_embd + 2 * c.kv_dim() + 2 * c.ffn_dim + 2 * encoding + c.vocab_size;
        let rows = (self.n_bytes() / (4 * row)).clamp(1, MAX_ROWS);
        Ok(Activations {
            rows,
            x: b.buffer(rows * c.n_embd)?,
            normed: b.buffer(rows * c.n_embd)?,
            q: b.buffer(rows * c.n_embd)?,
            k: b.buffer(rows * c.kv_dim())?,
            v: b.buffer(rows * c.kv_dim())?,
            mixed: b.buffer(rows * c.n_embd)?,
            branch: b.buffer(rows * c.n_embd)?,
            gate: b.buffer(rows * c.ffn_dim)?,
            up: b.buffer(rows * c.ffn_dim)?,
            encoding: b.buffer(rows * encoding)?,
            host: zeros("activations", rows * encoding)?,
            positions: Vec::with_capacity(rows),
            last: b.buffer(rows * c.n_embd)?,
            logits: b.buffer(rows * c.vocab_size)?,
        })
    }

    /// Makes an empty cache for one session.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn cache(&self) -> Result<B::Cache> {
        self.backend.cache(&KvShape::new(&self.config))
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

    fn layer(&self, n: usize) -> Result<Layer<B>> {
        let c = self.config;
        let linear = |part: &str, bias| self.linear(&names::layer(n, part), bias);
        Ok(Layer {
            attention_norm: self.norm(&names::layer(n, "input_layernorm"))?,
            q_proj: linear("self_attn.q_proj", c.attention_bias)?,
            k_proj: linear("self_attn.k_proj", c.attention_bias)?,
            v_proj: linear("self_attn.v_proj", c.attention_bias)?,
            o_proj: linear("self_attn.o_proj", c.attention_bias)?,
            ffn_norm: self.norm(&names::layer(n, "post_attention_layernorm"))?,
            gate_proj: match c.ffn {
                crate::config::Ffn::Swiglu => Some(linear("mlp.gate_proj", c.ffn_bias)?),
                crate::config::Ffn::Classic | crate::config::Ffn::Gelu => None,
            },
            up_proj: linear("mlp.up_proj", c.ffn_bias)?,
            down_proj: linear("mlp.down_proj", c.ffn_bias)?,
        })
    }
}
