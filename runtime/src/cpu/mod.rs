//! The CPU backend.
//!
//! | file | holds |
//! |---|---|
//! | [`scalar`] | the specification: every kernel as a plain loop, and the order of every sum |
//! | [`kernels`] | the kernels that pay for a second form, blocked for SIMD |
//! | [`dispatch`] | detection of the instruction set and one entry per kernel |
//!
//! Weights stay in the mapped file in their element type; activations, keys and values are f32.

pub mod dispatch;
pub mod kernels;
pub mod scalar;

pub use dispatch::Isa;

use std::ops::Range;
use std::sync::Arc;

use crate::alloc::zeros;
use crate::backend::{
    Activations, AttentionShape, AttentionWeights, Backend, Embedding, FfnWeights, Head, Linear,
    LogitRows, NormWeights, PassInputs, PassLimits, PassShape, PositionWeights, Span,
};
use crate::error::Result;
use crate::kv_cache::{KvShape, PAGE};
use crate::weights::{Tensor, TensorData, Weights};

/// Runs the model on one thread of the CPU.
#[derive(Clone, Debug)]
pub struct Cpu {
    isa: Isa,
}

impl Cpu {
    /// With the best instruction set of this machine.
    pub fn new() -> Cpu {
        Cpu { isa: Isa::detect() }
    }

    /// With a given one; the results are the same.
    pub fn with_isa(isa: Isa) -> Cpu {
        Cpu { isa }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

impl Default for Cpu {
    fn default() -> Cpu {
        Cpu::new()
    }
}

/// What differs from pass to pass.
#[derive(Debug)]
pub struct CpuPass {
    tokens: Vec<u32>,    // (rows)
    positions: Vec<u32>, // (rows), for tables, where positions are below max_seq_len
    encoding: Vec<f32>,  // (rows, encoding)
    logit_rows: LogitRows,
}

/// Keys and values of one session.
#[derive(Debug)]
pub struct CpuCache {
    shape: KvShape,
    /// Allocated when a position first reaches them, shared with forks until one of them writes.
    /// Each: (n_layer, n_kv_head, 2, PAGE, head_dim)
    pages: Vec<Arc<Vec<f32>>>,
    /// Scores of one query over the window.
    scores: Vec<f32>,
}

impl Backend for Cpu {
    type Matrix = Tensor;
    type Vector = Vec<f32>;
    type Buffer = Vec<f32>;
    type Cache = CpuCache;
    type Pass = CpuPass;

    fn describe(&self) -> String {
        format!("cpu, {}, 1 thread", self.isa.name())
    }

    fn limits(&self) -> PassLimits {
        PassLimits { rows: 64, span_rows: 64, logit_rows: 64, bytes: 0 }
    }

    fn check(&self, _weights: &Weights) -> Result<()> {
        Ok(())
    }

    fn matrix(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<Vec<f32>> {
        zeros("activations", rows * width)
    }

    fn pass(&self, shape: &PassShape) -> Result<CpuPass> {
        Ok(CpuPass {
            tokens: Vec::with_capacity(shape.rows),
            positions: Vec::with_capacity(shape.rows),
            encoding: zeros("activations", shape.rows * shape.encoding)?,
            logit_rows: LogitRows::Last,
        })
    }

    fn cache(&self, shape: &KvShape) -> Result<CpuCache> {
        Ok(CpuCache { shape: shape.clone(), pages: Vec::new(), scores: Vec::new() })
    }

    fn reserve(&self, cache: &mut CpuCache, pos: usize, rows: usize) -> Result<()> {
        let reached = pos.saturating_add(rows).min(cache.shape.slots);
        while cache.pages.len() * PAGE < reached {
            let page = zeros("keys and values", cache.shape.page_len())?;
            cache.scores = zeros("attention scores", (cache.pages.len() + 1) * PAGE)?;
            cache.pages.push(Arc::new(page));
        }
        // Here and not while storing, because here it may fail.
        let n_pages = cache.shape.slots / PAGE;
        for page in (pos / PAGE..pos.saturating_add(rows).div_ceil(PAGE)).take(n_pages) {
            let page = &mut cache.pages[page % n_pages];
            if Arc::get_mut(page).is_none() {
                let mut own = zeros("keys and values", page.len())?;
                own.copy_from_slice(page);
                *page = Arc::new(own);
            }
        }
        Ok(())
    }

    fn fork(&self, cache: &CpuCache) -> Result<CpuCache> {
        Ok(CpuCache {
            shape: cache.shape.clone(),
            pages: cache.pages.clone(),
            scores: zeros("attention scores", cache.scores.len())?,
        })
    }

    fn cache_bytes(&self, cache: &CpuCache) -> (usize, usize) {
        let page = cache.shape.page_len() * size_of::<f32>();
        let shared = cache.pages.iter().filter(|page| Arc::strong_count(page) > 1).count();
        (cache.pages.len() * page, shared * page)
    }

    fn read_cache(&self, out: &mut [f32], cache: &CpuCache, positions: Range<usize>) -> Result<()> {
        let shape = &cache.shape;
        for (out, pos) in out.chunks_exact_mut(shape.position_len()).zip(positions) {
            let (page, slot) = shape.locate(pos);
            let rows = cache.pages[page].chunks_exact(PAGE * shape.head_dim);
            for (out, rows) in out.chunks_exact_mut(shape.head_dim).zip(rows) {
                out.copy_from_slice(&rows[slot * shape.head_dim..][..shape.head_dim]);
            }
        }
        Ok(())
    }

    fn write_cache(
        &self,
        cache: &mut CpuCache,
        positions: Range<usize>,
        values: &[f32],
    ) -> Result<()> {
        let shape = &cache.shape;
        for (values, pos) in values.chunks_exact(shape.position_len()).zip(positions) {
            let (page, slot) = shape.locate(pos);
            let page = Arc::make_mut(&mut cache.pages[page]);
            let rows = page.chunks_exact_mut(PAGE * shape.head_dim);
            for (values, rows) in values.chunks_exact(shape.head_dim).zip(rows) {
                rows[slot * shape.head_dim..][..shape.head_dim].copy_from_slice(values);
            }
        }
        Ok(())
    }

    fn begin(
        &self,
        pass: &mut CpuPass,
        inputs: &PassInputs<'_>,
        spans: &[Span<'_, CpuCache>],
    ) -> Result<()> {
        pass.tokens.clear();
        pass.tokens.extend_from_slice(inputs.tokens);
        pass.positions.clear();
        let positions = spans.iter().flat_map(|span| span.pos..span.pos + span.rows);
        // Only tables look at them, whose positions are below max_seq_len: there the cast is exact.
        pass.positions.extend(positions.map(|pos| pos as u32));
        pass.encoding[..inputs.encoding.len()].copy_from_slice(inputs.encoding);
        pass.logit_rows = inputs.logit_rows;
        Ok(())
    }

    fn embed(&self, a: &mut Activations<Cpu>, weights: &Embedding<Cpu>) -> Result<()> {
        let len = a.pass.tokens.len() * weights.tokens.shape()[1];
        lookup(&mut a.x, &weights.tokens, &a.pass.tokens);
        match &weights.position {
            PositionWeights::None => {}
            PositionWeights::Encoding => add(&mut a.x, &a.pass.encoding, len),
            PositionWeights::Table(table) => {
                lookup(&mut a.branch, table, &a.pass.positions);
                add(&mut a.x, &a.branch, len);
            }
            PositionWeights::Map(map) => {
                self.linear(&mut a.branch, &a.pass.encoding, map, a.pass.tokens.len());
                add(&mut a.x, &a.branch, len);
            }
        }
        Ok(())
    }

    fn qkv(
        &self,
        a: &mut Activations<Cpu>,
        layer: usize,
        weights: &AttentionWeights<Cpu>,
        shape: &AttentionShape,
        spans: &mut [Span<'_, CpuCache>],
    ) -> Result<()> {
        let rows = a.pass.tokens.len();
        let (n_embd, kv_dim) = (shape.n_head * shape.head_dim, shape.n_kv_head * shape.head_dim);
        self.norm(&mut a.normed, &a.x, weights.norm.as_ref(), rows, n_embd);
        self.linear(&mut a.q, &a.normed, &weights.q_proj, rows);
        self.linear(&mut a.k, &a.normed, &weights.k_proj, rows);
        self.linear(&mut a.v, &a.normed, &weights.v_proj, rows);
        let (heads, kv_heads) = (rows * shape.n_head, rows * shape.n_kv_head);
        self.norm_heads(&mut a.q, &mut a.branch, weights.q_norm.as_ref(), heads, shape.head_dim);
        self.norm_heads(&mut a.k, &mut a.branch, weights.k_norm.as_ref(), kv_heads, shape.head_dim);
        if shape.rotate {
            self.rotate(&mut a.q[..rows * n_embd], &a.pass.encoding, n_embd, shape.head_dim);
            self.rotate(&mut a.k[..rows * kv_dim], &a.pass.encoding, kv_dim, shape.head_dim);
        }
        let (mut k, mut v) = (a.k.chunks_exact(kv_dim), a.v.chunks_exact(kv_dim));
        for span in spans {
            for (pos, (k, v)) in (span.pos..).zip(k.by_ref().zip(v.by_ref()).take(span.rows)) {
                store(span.cache, layer, pos, k, v);
            }
        }
        Ok(())
    }

    fn attention(
        &self,
        a: &mut Activations<Cpu>,
        layer: usize,
        shape: &AttentionShape,
        spans: &mut [Span<'_, CpuCache>],
    ) -> Result<()> {
        let n_embd = shape.n_head * shape.head_dim;
        let mut rows = a.mixed.chunks_exact_mut(n_embd).zip(a.q.chunks_exact(n_embd));
        for span in spans {
            for (pos, (out, q)) in (span.pos..).zip(rows.by_ref().take(span.rows)) {
                attend(self.isa, out, q, span.cache, layer, pos, shape);
            }
        }
        Ok(())
    }

    fn attention_output(
        &self,
        a: &mut Activations<Cpu>,
        weights: &AttentionWeights<Cpu>,
    ) -> Result<()> {
        let rows = a.pass.tokens.len();
        self.linear(&mut a.branch, &a.mixed, &weights.o_proj, rows);
        add(&mut a.x, &a.branch, rows * weights.o_proj.weight.shape()[0]);
        Ok(())
    }

    fn ffn(&self, a: &mut Activations<Cpu>, weights: &FfnWeights<Cpu>) -> Result<()> {
        let rows = a.pass.tokens.len();
        let (ffn_dim, n_embd) =
            (weights.up_proj.weight.shape()[0], weights.up_proj.weight.shape()[1]);
        self.norm(&mut a.normed, &a.x, weights.norm.as_ref(), rows, n_embd);
        if let Some(gate_proj) = &weights.gate_proj {
            self.linear(&mut a.gate, &a.normed, gate_proj, rows);
        }
        self.linear(&mut a.up, &a.normed, &weights.up_proj, rows);
        let len = rows * ffn_dim;
        dispatch::activate(self.isa, &mut a.up[..len], &a.gate[..len], weights.kind);
        Ok(())
    }

    fn ffn_output(&self, a: &mut Activations<Cpu>, weights: &FfnWeights<Cpu>) -> Result<()> {
        let rows = a.pass.tokens.len();
        self.linear(&mut a.branch, &a.up, &weights.down_proj, rows);
        add(&mut a.x, &a.branch, rows * weights.down_proj.weight.shape()[0]);
        Ok(())
    }

    fn logits(
        &self,
        a: &mut Activations<Cpu>,
        head: &Head<Cpu>,
        spans: &[Span<'_, CpuCache>],
    ) -> Result<()> {
        let n_embd = head.lm_head.weight.shape()[1];
        let rows = match a.pass.logit_rows {
            LogitRows::All => a.pass.tokens.len(),
            LogitRows::Last => {
                // The last row of each span moves to the front, which is never behind it.
                let mut end = 0;
                for (i, span) in spans.iter().enumerate() {
                    end += span.rows;
                    a.x.copy_within((end - 1) * n_embd..end * n_embd, i * n_embd);
                }
                spans.len()
            }
        };
        self.norm(&mut a.normed, &a.x, head.norm.as_ref(), rows, n_embd);
        self.linear(&mut a.logits, &a.normed, &head.lm_head, rows);
        if head.softcap != 0.0 {
            let len = rows * head.lm_head.weight.shape()[0];
            dispatch::softcap(self.isa, &mut a.logits[..len], head.softcap);
        }
        Ok(())
    }

    fn read(
        &self,
        a: &mut Activations<Cpu>,
        logits: &mut [f32],
        hidden: &mut [f32],
        first_hidden: usize,
    ) -> Result<()> {
        logits.copy_from_slice(&a.logits[..logits.len()]);
        let from = first_hidden * a.shape.config.n_embd;
        hidden.copy_from_slice(&a.normed[from..from + hidden.len()]);
        Ok(())
    }
}

impl Cpu {
    /// `out[t] = norm(x[t])` for `rows` rows; a plain copy without weights. Both (T, width).
    fn norm(
        &self,
        out: &mut [f32],
        x: &[f32],
        weights: Option<&NormWeights<Vec<f32>>>,
        rows: usize,
        width: usize,
    ) {
        let (out, x) = (&mut out[..rows * width], &x[..rows * width]);
        let Some(NormWeights { weight, bias, eps, subtract_mean }) = weights else {
            out.copy_from_slice(x);
            return;
        };
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            dispatch::norm(self.isa, out, x, weight, bias.as_deref(), *eps, *subtract_mean);
        }
    }

    /// Normalises `heads` heads where they lie; nothing without weights. `x`: (heads, head_dim);
    /// `scratch` is at least as long.
    fn norm_heads(
        &self,
        x: &mut [f32],
        scratch: &mut [f32],
        weights: Option<&NormWeights<Vec<f32>>>,
        heads: usize,
        head_dim: usize,
    ) {
        if weights.is_some() {
            let len = heads * head_dim;
            scratch[..len].copy_from_slice(&x[..len]);
            self.norm(x, scratch, weights, heads, head_dim);
        }
    }

    /// `out[t] = weight · x[t] + bias` for `rows` rows. `x`: (T, in_features), `out`: (T, out_features).
    fn linear(&self, out: &mut [f32], x: &[f32], linear: &Linear<Cpu>, rows: usize) {
        let (out_features, in_features) = (linear.weight.shape()[0], linear.weight.shape()[1]);
        let out = &mut out[..rows * out_features];
        let x = &x[..rows * in_features];
        let bias = linear.bias.as_deref();
        match linear.weight.data() {
            TensorData::F32(weight) => dispatch::matmul(self.isa, out, x, weight, bias, rows),
            TensorData::F16(weight) => dispatch::matmul(self.isa, out, x, weight, bias, rows),
            TensorData::Bf16(weight) => dispatch::matmul(self.isa, out, x, weight, bias, rows),
            TensorData::Q8(weight) => self.dequantised(out, x, bias, rows, &mut |row, out| {
                weight.read_row(row, 0, out);
            }),
            TensorData::Q4(weight) => self.dequantised(out, x, bias, rows, &mut |row, out| {
                weight.read_row(row, 0, out);
            }),
        }
    }

    /// [`Cpu::linear`] with a matrix in blocks, one row of which `read_row` writes as f32.
    fn dequantised(
        &self,
        out: &mut [f32],
        x: &[f32],
        bias: Option<&[f32]>,
        rows: usize,
        read_row: &mut dyn FnMut(usize, &mut [f32]),
    ) {
        let (out_features, in_features) = (out.len() / rows, x.len() / rows);
        let mut weight = vec![0.0; in_features];
        let mut column = vec![0.0; rows];
        for row in 0..out_features {
            read_row(row, &mut weight);
            let bias = bias.map(|bias| &bias[row..=row]);
            dispatch::matmul(self.isa, &mut column, x, &weight, bias, rows);
            for (out, value) in out[row..].iter_mut().step_by(out_features).zip(&column) {
                *out = *value;
            }
        }
    }

    /// Rotates the pairs (i, i + head_dim/2) of each head of each row.
    /// `x`: (T, width), `rotations`: (T, head_dim/2, 2) with cosine and sine.
    fn rotate(&self, x: &mut [f32], rotations: &[f32], width: usize, head_dim: usize) {
        for (row, rotation) in x.chunks_exact_mut(width).zip(rotations.chunks_exact(head_dim)) {
            for head in row.chunks_exact_mut(head_dim) {
                dispatch::rotate(self.isa, head, rotation);
            }
        }
    }
}

/// `out[t] = table[ids[t]]`. `table`: (n, width), `out`: (T, width); every id is below n.
fn lookup(out: &mut [f32], table: &Tensor, ids: &[u32]) {
    fn rows<E: scalar::Element>(out: &mut [f32], table: &[E], ids: &[u32], width: usize) {
        for (out, id) in out.chunks_exact_mut(width).zip(ids) {
            let row = &table[*id as usize * width..][..width];
            for (out, row) in out.iter_mut().zip(row) {
                *out = row.to_f32();
            }
        }
    }
    let width = table.shape()[1];
    match table.data() {
        TensorData::F32(table) => rows(out, table, ids, width),
        TensorData::F16(table) => rows(out, table, ids, width),
        TensorData::Bf16(table) => rows(out, table, ids, width),
        TensorData::Q8(table) => {
            for (out, id) in out.chunks_exact_mut(width).zip(ids) {
                table.read_row(*id as usize, 0, out);
            }
        }
        TensorData::Q4(table) => {
            for (out, id) in out.chunks_exact_mut(width).zip(ids) {
                table.read_row(*id as usize, 0, out);
            }
        }
    }
}

/// x += y for the first `len` numbers.
fn add(x: &mut [f32], y: &[f32], len: usize) {
    for (x, y) in x[..len].iter_mut().zip(&y[..len]) {
        *x += y;
    }
}

/// Puts the keys and values of one position into its slot. `k`, `v`: (n_kv_head, head_dim)
fn store(cache: &mut CpuCache, layer: usize, pos: usize, k: &[f32], v: &[f32]) {
    let shape = &cache.shape;
    let (page, slot) = shape.locate(pos);
    // `reserve` has made the page our own, so nothing is copied.
    let page = Arc::make_mut(&mut cache.pages[page]);
    let width = shape.head_dim;
    for head in 0..shape.n_kv_head {
        let from = head * width..(head + 1) * width;
        page[shape.keys(layer, head) + slot * width..][..width].copy_from_slice(&k[from.clone()]);
        page[shape.values(layer, head) + slot * width..][..width].copy_from_slice(&v[from]);
    }
}

/// One query row over its window, head by head. `q`, `out`: (n_head, head_dim)
fn attend(
    isa: Isa,
    out: &mut [f32],
    q: &[f32],
    cache: &mut CpuCache,
    layer: usize,
    pos: usize,
    shape: &AttentionShape,
) {
    let width = shape.head_dim;
    let group = shape.n_head / shape.n_kv_head;
    let scale = 1.0 / (width as f32).sqrt();
    let first = (pos + 1).saturating_sub(shape.window);
    let CpuCache { shape: kv, pages, scores } = cache;
    let scores = &mut scores[..pos + 1 - first];
    for (head, (out, q)) in out.chunks_exact_mut(width).zip(q.chunks_exact(width)).enumerate() {
        let (keys, values) = (kv.keys(layer, head / group), kv.values(layer, head / group));
        for run in runs(kv, first, pos) {
            let k = &pages[run.page][keys + run.slot * width..][..run.len * width];
            let scores = &mut scores[run.pos - first..][..run.len];
            dispatch::score(isa, scores, q, k, scale, shape.slopes[head], pos - run.pos);
        }
        dispatch::softmax(isa, scores);
        out.fill(0.0);
        for run in runs(kv, first, pos) {
            let v = &pages[run.page][values + run.slot * width..][..run.len * width];
            dispatch::mix(isa, out, &scores[run.pos - first..][..run.len], v);
        }
    }
}

/// Positions that lie together in one page.
struct Run {
    page: usize,
    slot: usize,
    pos: usize,
    len: usize,
}

/// The positions `first..=last` in order, page by page.
fn runs(shape: &KvShape, first: usize, last: usize) -> impl Iterator<Item = Run> + use<'_> {
    let mut pos = first;
    std::iter::from_fn(move || {
        if pos > last {
            return None;
        }
        let (page, slot) = shape.locate(pos);
        let len = (PAGE - slot).min(last + 1 - pos);
        let run = Run { page, slot, pos, len };
        pos += len;
        Some(run)
    })
}
