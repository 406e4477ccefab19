//! What a device must be able to do for [`Model::forward`](crate::model::Model::forward): about ten
//! operations at the granularity of a transformer, each with the name that its kernels have.
//!
//! An operation works on T rows at once: a prompt is T rows of one session, a decode step is one
//! row, a batch is one row of each of several sessions. [`Span`]s say which rows belong to whom;
//! only operations that depend on positions look at them.
//!
//! Every row's result must depend on that row alone and be accumulated in a fixed order, so that a
//! prompt in one piece, in many pieces, or in a batch gives the same bits.

use std::ops::Range;

use crate::config::Ffn;
use crate::error::Result;
use crate::kv_cache::KvShape;
use crate::weights::Tensor;

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
    /// (n_embd)
    pub weight: V,
    /// (n_embd)
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
    /// Slope of each head's linear bias (ALiBi, arXiv:2108.12409); zeros without it. (n_head)
    pub slopes: Vec<f32>,
}

/// One device's implementation of the model's operations. All activations are f32 in row order.
///
/// Lengths are checked when a model is loaded and a session is made; implementations assert them in
/// debug builds only.
pub trait Backend: Sized {
    /// Weights of a linear map or an embedding table, in the file's element type where possible.
    type Matrix;
    /// Weights of a norm or a bias, as f32.
    type Vector;
    /// Activations.
    type Buffer;
    /// Keys and values of one session.
    type Cache;

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

    /// Makes room for `len` activations, all zero.
    ///
    /// # Errors
    /// No memory on the device.
    fn buffer(&self, len: usize) -> Result<Self::Buffer>;

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
    fn read_cache(&self, out: &mut [f32], cache: &Self::Cache, positions: Range<usize>);

    /// The reverse of `read_cache`, for positions that are reserved.
    fn write_cache(&self, cache: &mut Self::Cache, positions: Range<usize>, values: &[f32]);

    /// `out[t] = table[ids[t]]`. `table`: (n, width), `out`: (T, width); every id is below n.
    fn embed(&self, out: &mut Self::Buffer, table: &Self::Matrix, ids: &[u32]);

    /// Copies `values` to the start of `out`.
    fn write(&self, out: &mut Self::Buffer, values: &[f32]);

    /// x += y. Both (T, width), `len` = T * width.
    fn add(&self, x: &mut Self::Buffer, y: &Self::Buffer, len: usize);

    /// `out[t] = norm(x[t])` for `rows` rows; a plain copy without weights. Both (T, n_embd).
    fn norm(
        &self,
        out: &mut Self::Buffer,
        x: &Self::Buffer,
        weights: Option<&NormWeights<Self::Vector>>,
        rows: usize,
        n_embd: usize,
    );

    /// `out[t] = weight · x[t] + bias` for `rows` rows. `x`: (T, in_features), `out`: (T, out_features).
    fn linear(&self, out: &mut Self::Buffer, x: &Self::Buffer, linear: &Linear<Self>, rows: usize);

    /// Rotates the pairs (i, i + head_dim/2) of each head of each row (RoPE, arXiv:2104.09864).
    /// `x`: (T, n_head, head_dim); `rotations`: (T, head_dim/2, 2) with cosine and sine.
    fn rotate(
        &self,
        x: &mut Self::Buffer,
        rotations: &Self::Buffer,
        rows: usize,
        n_head: usize,
        head_dim: usize,
    );

    /// Stores each row's key and value under its position, then lets each query see the positions
    /// of its own session from `window` - 1 before it up to itself.
    /// `q`, `out`: (T, n_head, head_dim); `k`, `v`: (T, n_kv_head, head_dim).
    #[allow(clippy::too_many_arguments)] // the operands of the formula, no fewer
    fn attention(
        &self,
        out: &mut Self::Buffer,
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        layer: usize,
        shape: &AttentionShape,
        spans: &mut [Span<'_, Self::Cache>],
    );

    /// up = act(up), or act(gate) * up for SwiGLU. Both (T, ffn_dim), `len` = T * ffn_dim.
    fn activate(&self, up: &mut Self::Buffer, gate: &Self::Buffer, ffn: Ffn, len: usize);

    /// Copies row `from` of `x` over row `to` of `out`; rows are `width` wide.
    fn copy_row(
        &self,
        out: &mut Self::Buffer,
        to: usize,
        x: &Self::Buffer,
        from: usize,
        width: usize,
    );

    /// Brings the first `out.len()` values of `x` to the host.
    fn read(&self, out: &mut [f32], x: &Self::Buffer);
}
