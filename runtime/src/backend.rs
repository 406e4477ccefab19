//! What a device must be able to do for [`Model::forward`](crate::model::Model::forward): about ten
//! operations at the granularity of a transformer, each with the name that its kernels have.
//!
//! An operation works on the rows of a *pass*: a prompt is T rows of one session, a decode step is
//! one row, a batch is one row of each of several sessions. [`Span`]s say which rows belong to whom;
//! only operations that depend on positions look at them. [`Backend::begin`] brings what differs from
//! pass to pass to the device, so that the operations themselves can be recorded and replayed
//! ([`Backend::run`]).
//!
//! Every row's result must depend on that row alone and be accumulated in a fixed order. On the CPU a
//! prompt in one piece, in many pieces, or in a batch gives the same bits; on CUDA single rows and
//! many rows are different products, which agree to rounding.

use std::ops::Range;

use crate::config::{Ffn, ModelConfig};
use crate::error::Result;
use crate::kv_cache::KvShape;
use crate::weights::{Tensor, Weights};

/// The rows of one session in a forward pass, in the order of their positions.
pub struct Span<'a, C> {
    /// Number of rows, at least 1.
    pub rows: usize,
    /// Position of the first of them, counted from the start of the session.
    pub pos: usize,
    /// The session's keys and values.
    pub cache: &'a mut C,
}

/// Scale, shift and epsilon of a normalisation.
pub struct NormWeights<V> {
    /// (n_embd), or (head_dim) for queries and keys
    pub weight: V,
    /// The same
    pub bias: Option<V>,
    /// Added to the variance or mean square.
    pub eps: f32,
    /// Whether the mean is subtracted: LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467).
    pub subtract_mean: bool,
}

/// Weight and bias of a linear map.
pub struct Linear<B: Backend> {
    /// (out_features, in_features)
    pub weight: B::Matrix,
    /// (out_features)
    pub bias: Option<B::Vector>,
}

/// From tokens to the residual.
pub struct Embedding<B: Backend> {
    /// (vocab_size, n_embd)
    pub tokens: B::Matrix,
    /// What is added for the position.
    pub position: PositionWeights<B>,
}

/// What the embedding adds for a row's position.
pub enum PositionWeights<B: Backend> {
    /// Nothing: positions count in attention, or not at all.
    None,
    /// The pass's encoding. (n_embd)
    Encoding,
    /// A row of the table. (max_seq_len or more, n_embd)
    Table(B::Matrix),
    /// A linear map of the pass's encoding.
    Map(Linear<B>),
}

/// Weights of one layer's attention.
pub struct AttentionWeights<B: Backend> {
    /// Before the projections.
    pub norm: Option<NormWeights<B::Vector>>,
    /// (n_head * head_dim, n_embd)
    pub q_proj: Linear<B>,
    /// (kv_dim, n_embd)
    pub k_proj: Linear<B>,
    /// (kv_dim, n_embd)
    pub v_proj: Linear<B>,
    /// Of each query head, before the rotation (arXiv:2010.04245). (head_dim)
    pub q_norm: Option<NormWeights<B::Vector>>,
    /// The same of each key head; there with `q_norm`. (head_dim)
    pub k_norm: Option<NormWeights<B::Vector>>,
    /// (n_embd, n_head * head_dim)
    pub o_proj: Linear<B>,
}

/// Weights of one layer's FFN.
pub struct FfnWeights<B: Backend> {
    /// Before the projections.
    pub norm: Option<NormWeights<B::Vector>>,
    /// The activation.
    pub kind: Ffn,
    /// SwiGLU only. (ffn_dim, n_embd)
    pub gate_proj: Option<Linear<B>>,
    /// (ffn_dim, n_embd)
    pub up_proj: Linear<B>,
    /// (n_embd, ffn_dim)
    pub down_proj: Linear<B>,
}

/// From the residual to logits.
pub struct Head<B: Backend> {
    /// Before the map.
    pub norm: Option<NormWeights<B::Vector>>,
    /// (vocab_size, n_embd)
    pub lm_head: Linear<B>,
    /// Logits become `softcap * tanh(logits / softcap)` (arXiv:2408.00118); 0 is off.
    pub softcap: f32,
}

/// Sizes that attention needs beside its operands.
#[derive(Clone, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads; query head h reads head h / (n_head / n_kv_head).
    pub n_kv_head: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// A query sees this many positions, its own included.
    pub window: usize,
    /// Whether queries and keys are rotated by the pass's encoding (RoPE, arXiv:2104.09864).
    pub rotate: bool,
    /// Slope of each head's linear bias (ALiBi, arXiv:2108.12409); zeros without it. (n_head)
    pub slopes: Vec<f32>,
}

/// The rows of a pass that logits are computed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// The last row of each span, as generating needs.
    Last,
    /// Every row, as scoring a text needs.
    All,
}

/// How large a backend's passes may be.
#[derive(Clone, Copy, Debug)]
pub struct PassLimits {
    /// Most rows of one pass.
    pub rows: usize,
    /// Most rows of one session in one pass.
    pub span_rows: usize,
    /// Most rows of one pass that logits are computed for.
    pub logit_rows: usize,
    /// Bytes that activations may take, even if the weights take fewer.
    pub bytes: usize,
}

/// A sampler's usual chain without penalties, with the place in its random numbers: what a device needs
/// to draw the same tokens by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawOptions {
    /// Key of the random numbers.
    pub seed: u64,
    /// Their counter: tokens drawn so far.
    pub step: u64,
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// No token whose logit is further below the largest one, at temperature 1, reaches `min_p`;
    /// -∞ if that is off.
    pub surely_below: f32,
    /// 0 is off.
    pub top_k: u32,
}

/// What differs from pass to pass.
pub struct PassInputs<'a> {
    /// One id below vocab_size for each row of the spans, in order.
    pub tokens: &'a [u32],
    /// Rotations or sinusoids of the rows' positions, by [`PassShape::encoding`] numbers each; for
    /// passes that draw, those of each step. (steps, rows, encoding)
    pub encoding: &'a [f32],
    /// Which rows logits are wanted for.
    pub logit_rows: LogitRows,
    /// How each row's next token is drawn on the device: (rows), or none if the host draws.
    pub draws: &'a [DrawOptions],
    /// How many passes are to come before the next beginning: 1 unless the device draws.
    pub steps: usize,
}

/// For what passes a [`Backend::Pass`] is made.
#[derive(Clone, Debug)]
pub struct PassShape {
    /// Most rows.
    pub rows: usize,
    /// Most rows that logits are wanted for.
    pub logit_rows: usize,
    /// Numbers of a row's positional encoding: cosines and sines, a sinusoid, or none.
    pub encoding: usize,
    /// The model.
    pub config: ModelConfig,
}

/// Activations of one forward pass of up to `shape.rows` rows; made once, used for every pass.
pub struct Activations<B: Backend> {
    /// What they are made for.
    pub shape: PassShape,
    /// What the device knows of the pass.
    pub pass: B::Pass,
    /// The residual. (rows, n_embd)
    pub x: B::Buffer,
    /// (rows, n_embd); after a pass the hidden states of the wanted rows, as the final norm left them.
    pub normed: B::Buffer,
    /// (rows, n_head, head_dim)
    pub q: B::Buffer,
    /// (rows, n_kv_head, head_dim)
    pub k: B::Buffer,
    /// (rows, n_kv_head, head_dim)
    pub v: B::Buffer,
    /// What attention returns. (rows, n_head, head_dim)
    pub mixed: B::Buffer,
    /// What is added to the residual, where that is not done at once. (rows, n_embd)
    pub branch: B::Buffer,
    /// (rows, ffn_dim)
    pub gate: B::Buffer,
    /// (rows, ffn_dim)
    pub up: B::Buffer,
    /// (logit_rows, vocab_size)
    pub logits: B::Buffer,
    /// Encodings on the host. (rows, encoding)
    pub host: Vec<f32>,
}

/// The operations of a pass, as [`Backend::run`] calls them.
pub type Operations<'o, B> =
    &'o mut dyn FnMut(&mut Activations<B>, &mut [Span<'_, <B as Backend>::Cache>]) -> Result<()>;

/// One device's implementation of the model's operations. All activations are f32 in row order.
///
/// Lengths are checked when a model is loaded and a session is made; implementations assert them in
/// debug builds only. Every operation may fail where a device can be lost; the CPU's never do.
pub trait Backend: Sized {
    /// Weights of a linear map or an embedding table, in the file's element type where possible.
    type Matrix: Clone;
    /// Weights of a norm or a bias, as f32.
    type Vector;
    /// Activations.
    type Buffer;
    /// Keys and values of one session.
    type Cache;
    /// Tokens, positions and all else that differs from pass to pass.
    type Pass;

    /// The device in words, such as "cpu, avx512, 1 thread".
    fn describe(&self) -> String;

    /// How large passes may be.
    fn limits(&self) -> PassLimits;

    /// Refuses a model that this device cannot run, before its weights are taken over.
    ///
    /// # Errors
    /// [`Error::NoDevice`](crate::error::Error::NoDevice) that names what does not fit.
    fn check(&self, weights: &Weights) -> Result<()>;

    /// Takes a (rows, columns) tensor over to the device.
    ///
    /// # Errors
    /// No memory on the device.
    fn matrix(&self, tensor: &Tensor) -> Result<Self::Matrix>;

    /// Takes numbers over to the device.
    ///
    /// # Errors
    /// No memory on the device.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector>;

    /// Makes room for activations, all zero. (rows, width)
    ///
    /// # Errors
    /// No memory on the device.
    fn buffer(&self, rows: usize, width: usize) -> Result<Self::Buffer>;

    /// Makes room for what differs from pass to pass.
    ///
    /// # Errors
    /// No memory on the device.
    fn pass(&self, shape: &PassShape) -> Result<Self::Pass>;

    /// Makes an empty cache.
    ///
    /// # Errors
    /// No memory on the device.
    fn cache(&self, shape: &KvShape) -> Result<Self::Cache>;

    /// Makes sure that `cache` has memory of its own for `rows` positions from `pos` on.
    ///
    /// # Errors
    /// No memory on the device.
    fn reserve(&self, cache: &mut Self::Cache, pos: usize, rows: usize) -> Result<()>;

    /// A second cache with the same contents, whose memory is shared until one of them writes.
    ///
    /// # Errors
    /// No memory on the device.
    fn fork(&self, cache: &Self::Cache) -> Result<Self::Cache>;

    /// Bytes of a cache's keys and values, and how many of them are shared with forks.
    fn cache_bytes(&self, cache: &Self::Cache) -> (usize, usize);

    /// Copies keys and values of positions that are in the cache to the host.
    /// `out`: (positions, n_layer, n_kv_head, 2, head_dim)
    ///
    /// # Errors
    /// The device is lost.
    fn read_cache(
        &self,
        out: &mut [f32],
        cache: &Self::Cache,
        positions: Range<usize>,
    ) -> Result<()>;

    /// The reverse of `read_cache`, for positions that are reserved.
    ///
    /// # Errors
    /// The device is lost.
    fn write_cache(
        &self,
        cache: &mut Self::Cache,
        positions: Range<usize>,
        values: &[f32],
    ) -> Result<()>;

    /// Brings what is new in a pass to the device.
    ///
    /// # Errors
    /// The device is lost.
    fn begin(
        &self,
        pass: &mut Self::Pass,
        inputs: &PassInputs<'_>,
        spans: &[Span<'_, Self::Cache>],
    ) -> Result<()>;

    /// Runs the operations of the pass that has begun, or repeats those of an earlier pass of the same
    /// shape. A pass that draws is run once for each of its steps.
    ///
    /// # Errors
    /// Those of the operations.
    fn run(
        &self,
        a: &mut Activations<Self>,
        spans: &mut [Span<'_, Self::Cache>],
        operations: Operations<'_, Self>,
    ) -> Result<()> {
        operations(a, spans)
    }

    /// x = the tokens' embeddings with what belongs to their positions.
    ///
    /// # Errors
    /// The device is lost; so for all operations.
    #[allow(clippy::missing_errors_doc)]
    fn embed(&self, a: &mut Activations<Self>, weights: &Embedding<Self>) -> Result<()>;

    /// q, k, v = the projections of norm(x); q and k normalised head by head if `weights` has norms for
    /// them, and then rotated if `shape` says so; k and v stored in the rows' caches under their
    /// positions.
    #[allow(clippy::missing_errors_doc)]
    fn qkv(
        &self,
        a: &mut Activations<Self>,
        layer: usize,
        weights: &AttentionWeights<Self>,
        shape: &AttentionShape,
        spans: &mut [Span<'_, Self::Cache>],
    ) -> Result<()>;

    /// mixed = softmax(q · keys) · values: each query sees the positions of its own session from
    /// `window` - 1 before it up to itself.
    #[allow(clippy::missing_errors_doc)]
    fn attention(
        &self,
        a: &mut Activations<Self>,
        layer: usize,
        shape: &AttentionShape,
        spans: &mut [Span<'_, Self::Cache>],
    ) -> Result<()>;

    /// x += o_proj(mixed).
    #[allow(clippy::missing_errors_doc)]
    fn attention_output(
        &self,
        a: &mut Activations<Self>,
        weights: &AttentionWeights<Self>,
    ) -> Result<()>;

    /// up = act(up_proj(norm(x))), or act(gate_proj(norm(x))) * up_proj(norm(x)) for SwiGLU.
    #[allow(clippy::missing_errors_doc)]
    fn ffn(&self, a: &mut Activations<Self>, weights: &FfnWeights<Self>) -> Result<()>;

    /// x += down_proj(up).
    #[allow(clippy::missing_errors_doc)]
    fn ffn_output(&self, a: &mut Activations<Self>, weights: &FfnWeights<Self>) -> Result<()>;

    /// normed = norm(x), logits = softcap(lm_head(normed)), for the wanted rows, which come first then.
    #[allow(clippy::missing_errors_doc)]
    fn logits(
        &self,
        a: &mut Activations<Self>,
        head: &Head<Self>,
        spans: &[Span<'_, Self::Cache>],
    ) -> Result<()>;

    /// Brings the first rows of the logits to the host, and rows of hidden states from
    /// `first_hidden` on. `logits`: (n, vocab_size), `hidden`: (m, n_embd)
    ///
    /// # Errors
    /// The device is lost, in this or in an earlier operation.
    fn read(
        &self,
        a: &mut Activations<Self>,
        logits: &mut [f32],
        hidden: &mut [f32],
        first_hidden: usize,
    ) -> Result<()>;

    /// Whether [`Backend::draw`] can do what a sampler does.
    fn can_draw(&self, _options: &DrawOptions, _vocab_size: usize) -> bool {
        false
    }

    /// Draws each row's next token from its logits and makes it the row's input at the position that
    /// follows: the next step of the pass.
    ///
    /// # Errors
    /// The device is lost.
    fn draw(&self, _a: &mut Activations<Self>) -> Result<()> {
        Ok(())
    }

    /// Brings the tokens of all steps to the host; [`u32::MAX`] where no token was possible.
    /// `tokens`: (steps, rows)
    ///
    /// # Errors
    /// The device is lost, in this or in an earlier operation.
    fn read_drawn(&self, _a: &mut Activations<Self>, _tokens: &mut [u32]) -> Result<()> {
        Ok(())
    }
}
