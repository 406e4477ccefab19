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
use crate::backend::{AttentionShape, Backend, Linear, NormWeights, Span};
use crate::config::Ffn;
use crate::error::Result;
use crate::kv_cache::{KvShape, PAGE};
use crate::weights::{Tensor, TensorData};

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

    fn matrix(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn buffer(&self, len: usize) -> Result<Vec<f32>> {
        zeros("activations", len)
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

    fn read_cache(&self, out: &mut [f32], cache: &CpuCache, positions: Range<usize>) {
        let shape = &cache.shape;
        for (out, pos) in out.chunks_exact_mut(shape.position_len()).zip(positions) {
            let (page, slot) = shape.locate(pos);
            let rows = cache.pages[page].chunks_exact(PAGE * shape.head_dim);
            for (out, rows) in out.chunks_exact_mut(shape.head_dim).zip(rows) {
                out.copy_from_slice(&rows[slot * shape.head_dim..][..shape.head_dim]);
            }
        }
    }

    fn write_cache(&self, cache: &mut CpuCache, positions: Range<usize>, values: &[f32]) {
        let shape = &cache.shape;
        for (values, pos) in values.chunks_exact(shape.position_len()).zip(positions) {
            let (page, slot) = shape.locate(pos);
            let page = Arc::make_mut(&mut cache.pages[page]);
            let rows = page.chunks_exact_mut(PAGE * shape.head_dim);
            for (values, rows) in values.chunks_exact(shape.head_dim).zip(rows) {
                rows[slot * shape.head_dim..][..shape.head_dim].copy_from_slice(values);
            }
        }
    }

    fn embed(&self, out: &mut Vec<f32>, table: &Tensor, ids: &[u32]) {
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
        }
    }

    fn write(&self, out: &mut Vec<f32>, values: &[f32]) {
        out[..values.len()].copy_from_slice(values);
    }

    fn add(&self, x: &mut Vec<f32>, y: &Vec<f32>, len: usize) {
        for (x, y) in x[..len].iter_mut().zip(&y[..len]) {
            *x += y;
        }
    }

    fn norm(
        &self,
        out: &mut Vec<f32>,
        x: &Vec<f32>,
        weights: Option<&NormWeights<Vec<f32>>>,
        rows: usize,
        n_embd: usize,
    ) {
        let (out, x) = (&mut out[..rows * n_embd], &x[..rows * n_embd]);
        let Some(NormWeights { weight, bias, eps, subtract_mean }) = weights else {
            out.copy_from_slice(x);
            return;
        };
        for (out, x) in out.chunks_exact_mut(n_embd).zip(x.chunks_exact(n_embd)) {
            dispatch::norm(self.isa, out, x, weight, bias.as_deref(), *eps, *subtract_mean);
        }
    }

    fn linear(&self, out: &mut Vec<f32>, x: &Vec<f32>, linear: &Linear<Cpu>, rows: usize) {
        let (out_features, in_features) = (linear.weight.shape()[0], linear.weight.shape()[1]);
        let out = &mut out[..rows * out_features];
        let x = &x[..rows * in_features];
        let bias = linear.bias.as_deref();
        match linear.weight.data() {
            TensorData::F32(weight) => dispatch::matmul(self.isa, out, x, weight, bias, rows),
            TensorData::F16(weight) => dispatch::matmul(self.isa, out, x, weight, bias, rows),
            TensorData::Bf16(weight) => dispatch::matmul(self.isa, out, x, weight, bias, rows),
        }
    }

    fn rotate(
        &self,
        x: &mut Vec<f32>,
        rotations: &Vec<f32>,
        rows: usize,
        n_head: usize,
        head_dim: usize,
    ) {
        let x = x[..rows * n_head * head_dim].chunks_exact_mut(n_head * head_dim);
        for (row, rotation) in x.zip(rotations.chunks_exact(head_dim)) {
            for head in row.chunks_exact_mut(head_dim) {
                dispatch::rotate(self.isa, head, rotation);
            }
        }
    }

    fn attention(
        &self,
        out: &mut Vec<f32>,
        q: &Vec<f32>,
        k: &Vec<f32>,
        v: &Vec<f32>,
        layer: usize,
        shape: &AttentionShape,
        spans: &mut [Span<'_, CpuCache>],
    ) {
        let n_embd = shape.n_head * shape.head_dim;
        let kv_dim = shape.n_kv_head * shape.head_dim;
        let mut row = 0;
        for span in spans {
            for i in 0..span.rows {
                let (k, v) =
                    (&k[(row + i) * kv_dim..][..kv_dim], &v[(row + i) * kv_dim..][..kv_dim]);
                store(span.cache, layer, span.pos + i, k, v);
            }
            for i in 0..span.rows {
                let (q, out) =
                    (&q[(row + i) * n_embd..][..n_embd], &mut out[(row + i) * n_embd..][..n_embd]);
                attend(self.isa, out, q, span.cache, layer, span.pos + i, shape);
            }
            row += span.rows;
        }
    }

    fn activate(&self, up: &mut Vec<f32>, gate: &Vec<f32>, ffn: Ffn, len: usize) {
        dispatch::activate(self.isa, &mut up[..len], &gate[..len], ffn);
    }

    fn copy_row(&self, out: &mut Vec<f32>, to: usize, x: &Vec<f32>, from: usize, width: usize) {
        out[to * width..][..width].copy_from_slice(&x[from * width..][..width]);
    }

    fn read(&self, out: &mut [f32], x: &Vec<f32>) {
        out.copy_from_slice(&x[..out.len()]);
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
