//! The operations of a pass: what is computed where, and by which thread.
//!
//! A linear map is split by rows of weights, in groups of [`ROWS`]; what precedes it (a norm, the integers
//! that blocks are multiplied with) is split by rows of activations. Attention is split by heads.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::attention::{Bias, KvElement, Mixture, Page};
use super::blocks::{BlockScale, Quantised};
use super::buffer::Buffer;
use super::cache::{CpuCache, Visitor};
use super::columns::Columns;
use super::products::{PANEL, Rows};
use super::scalar::{Element, LANES};
use super::{Cpu, Isa, dispatch};
use crate::alloc::{reserve, zeros};
use crate::backend::{
    AttentionShape, FfnWeights, Linear, LogitRows, NormWeights, PassInputs, PassShape, Span,
};
use crate::config::Ffn;
use crate::error::Result;
use crate::kv_cache::PAGE;
use crate::quant::{BLOCK, ROWS};
use crate::weights::{Tensor, TensorData};

/// Bytes of weights (times rows of activations) below which a part of an operation does not pay for handing
/// it to another thread.
const GRAIN: usize = 16 << 10;
/// Parts for each thread in operations on many rows.
const SPARE: usize = 4;

/// What differs from pass to pass, and what operations need for a moment.
pub struct CpuPass {
    pub(super) tokens: Vec<u32>,    // (rows)
    pub(super) positions: Vec<u32>, // (rows), for tables, where positions are below max_seq_len
    pub(super) encoding: Vec<f32>,  // (rows, encoding)
    pub(super) logit_rows: LogitRows,
    /// The input of a linear map in blocks. (rows, blocks)
    q: Vec<[i8; BLOCK]>,
    scales: Vec<BlockScale>,
    /// For each thread: a panel of weights, or the mixture of a head's values.
    scratch: Vec<Mutex<Buffer>>,
}

impl CpuPass {
    pub(super) fn new(shape: &PassShape, threads: usize) -> Result<CpuPass> {
        const WHAT: &str = "activations";
        let c = &shape.config;
        let width = c.n_embd.max(c.q_dim()).max(c.ffn_dim);
        let blocks = shape.rows * width.div_ceil(BLOCK);
        let (mut q, mut scales, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
        reserve(&mut q, blocks, WHAT)?;
        q.resize(blocks, [0; BLOCK]);
        reserve(&mut scales, blocks, WHAT)?;
        scales.resize(blocks, BlockScale::default());
        let len = (PANEL * width).max(2 * c.head_dim.next_multiple_of(LANES));
        for _ in 0..threads {
            scratch.push(Mutex::new(Buffer::zeros(WHAT, len)?));
        }
        Ok(CpuPass {
            tokens: Vec::with_capacity(shape.rows),
            positions: Vec::with_capacity(shape.rows),
            encoding: zeros(WHAT, shape.rows * shape.encoding)?,
            logit_rows: LogitRows::Last,
            q,
            scales,
            scratch,
        })
    }

    pub(super) fn begin(&mut self, inputs: &PassInputs<'_>, spans: &[Span<'_, CpuCache>]) {
        self.tokens.clear();
        self.tokens.extend_from_slice(inputs.tokens);
        self.positions.clear();
        let positions = spans.iter().flat_map(|span| span.pos..span.pos + span.rows);
        // Only tables look at them, whose positions are below max_seq_len: there the cast is exact.
        self.positions.extend(positions.map(|pos| pos as u32));
        self.encoding[..inputs.encoding.len()].copy_from_slice(inputs.encoding);
        self.logit_rows = inputs.logit_rows;
    }
}

/// The input of a linear map: as it is, and in blocks if a map asks for them.
#[derive(Clone, Copy)]
struct Input<'a> {
    x: &'a [f32], // (rows, width)
    blocks: Quantised<'a>,
    rows: usize,
}

/// The range of a whole that falls to a part.
fn share(whole: usize, parts: usize, part: usize) -> Range<usize> {
    whole * part / parts..whole * (part + 1) / parts
}

/// The rows of weights of some of the groups of a matrix of `n` rows.
fn rows_of(groups: Range<usize>, n: usize) -> Range<usize> {
    (groups.start * ROWS).min(n)..(groups.end * ROWS).min(n)
}

fn is_quantised(tensor: &Tensor) -> bool {
    match tensor.data() {
        TensorData::F32(_) | TensorData::F16(_) | TensorData::Bf16(_) => false,
        TensorData::Q8(_) | TensorData::Q4(_) => true,
    }
}

impl Cpu {
    /// How many parts an operation is worth that reads so many bytes for each of some rows: one for each
    /// thread; several where it takes long, so that no thread waits for a slower one.
    fn parts(&self, bytes: usize, rows: usize) -> usize {
        let threads = self.pool().threads();
        let most = if rows > 1 && threads > 1 { SPARE * threads } else { threads };
        (bytes.saturating_mul(rows) / GRAIN).clamp(1, most)
    }

    /// Calls `f` with ranges that together are 0 to `rows`, each on a thread, for rows of `width` numbers.
    fn by_rows(&self, rows: usize, width: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        let parts = self.parts(4 * width, rows).min(rows);
        self.pool().run(parts, &|part, _| f(share(rows, parts, part)));
    }

    /// `out[t] = norm(x[t])` for `rows` rows; a plain copy without weights. Both (T, width).
    pub(super) fn norm(
        &self,
        out: &mut [f32],
        x: &[f32],
        weights: Option<&NormWeights<Vec<f32>>>,
        rows: usize,
        width: usize,
    ) {
        let Some(NormWeights { weight, bias, eps, subtract_mean }) = weights else {
            out[..rows * width].copy_from_slice(&x[..rows * width]);
            return;
        };
        let all = Columns::all(out, width);
        self.by_rows(rows, width, &|range| {
            // SAFETY: each row belongs to one part.
            let mut out = unsafe { all.part(0..width) };
            for t in range {
                let (out, x) = (out.row(t), &x[t * width..][..width]);
                dispatch::norm(self.isa, out, x, weight, bias.as_deref(), *eps, *subtract_mean);
            }
        });
    }

    /// Normalises and rotates the heads of queries or keys where they lie; rotates the pairs
    /// (i, i + head_dim/2) unless `encoding` is empty. `x`: (T, width), `encoding`: (T, head_dim/2, 2) with
    /// cosine and sine.
    pub(super) fn heads(
        &self,
        x: &mut [f32],
        norm: Option<&NormWeights<Vec<f32>>>,
        encoding: &[f32],
        rows: usize,
        width: usize,
        head_dim: usize,
    ) {
        if norm.is_none() && encoding.is_empty() {
            return;
        }
        let all = Columns::all(x, width);
        self.by_rows(rows, width, &|range| {
            // SAFETY: each row belongs to one part.
            let mut x = unsafe { all.part(0..width) };
            for t in range {
                for head in x.row(t).chunks_exact_mut(head_dim) {
                    if let Some(NormWeights { weight, eps, .. }) = norm {
                        dispatch::norm_in_place(self.isa, head, weight, *eps);
                    }
                    if !encoding.is_empty() {
                        dispatch::rotate(self.isa, head, &encoding[t * head_dim..][..head_dim]);
                    }
                }
            }
        });
    }

    /// The input of linear maps, ready for the weights' element types.
    fn input<'a>(
        &self,
        pass: &'a mut CpuPass,
        x: &'a [f32],
        rows: usize,
        width: usize,
        quantise: bool,
    ) -> (Input<'a>, &'a [Mutex<Buffer>]) {
        let x = &x[..rows * width];
        let blocks = width.div_ceil(BLOCK);
        if quantise {
            let (q, scales) = (&mut pass.q[..rows * blocks], &mut pass.scales[..rows * blocks]);
            let (q, scales) = (Columns::all(q, blocks), Columns::all(scales, blocks));
            self.by_rows(rows, width, &|range| {
                // SAFETY: each row belongs to one part.
                let (mut q, mut scales) = unsafe { (q.part(0..blocks), scales.part(0..blocks)) };
                for t in range {
                    let x = &x[t * width..][..width];
                    dispatch::quantise(self.isa, q.row(t), scales.row(t), x);
                }
            });
        }
        let blocks = Quantised { q: &pass.q, scales: &pass.scales, blocks };
        (Input { x, blocks, rows }, &pass.scratch)
    }

    /// `out[t] = weight · x[t] + bias` for each map, added to what is there for `add`. `x`: (rows,
    /// in_features), the outputs (rows, out_features).
    pub(super) fn linears<const N: usize>(
        &self,
        pass: &mut CpuPass,
        x: &[f32],
        rows: usize,
        maps: [(&Linear<Cpu>, &mut Buffer); N],
        add: bool,
    ) {
        let width = maps[0].0.weight.shape()[1];
        let quantise = maps.iter().any(|(linear, _)| is_quantised(&linear.weight));
        let (input, scratch) = self.input(pass, x, rows, width, quantise);
        let bytes: usize = maps.iter().map(|(linear, _)| linear.weight.bytes().len()).sum();
        let maps = maps.map(|(linear, out)| {
            let n = linear.weight.shape()[0];
            (linear, Columns::all(&mut out[..rows * n], n), n.div_ceil(ROWS))
        });
        let groups: usize = maps.iter().map(|(.., groups)| groups).sum();
        let parts = self.parts(bytes, rows).min(groups);
        self.pool().run(parts, &|part, thread| {
            let range = share(groups, parts, part);
            let mut before = 0;
            for (linear, out, groups) in &maps {
                let inside = |group: usize| group.clamp(before, before + groups) - before;
                let rows = rows_of(inside(range.start)..inside(range.end), out.width());
                before += groups;
                if rows.is_empty() {
                    continue;
                }
                // SAFETY: the groups of rows belong to one part each, and so do their columns.
                let mut out = unsafe { out.part(rows.clone()) };
                self.product(&mut out, rows.start, input, linear, add, &scratch[thread]);
            }
        });
    }

    /// up = act(up_proj(x)), or act(gate_proj(x)) * up_proj(x): each part multiplies and activates rows of
    /// its own. `x`: (rows, n_embd); `gate`, `up`: (rows, ffn_dim)
    pub(super) fn gated(
        &self,
        pass: &mut CpuPass,
        x: &[f32],
        rows: usize,
        weights: &FfnWeights<Cpu>,
        gate: &mut [f32],
        up: &mut [f32],
    ) {
        let shape = weights.up_proj.weight.shape();
        let (ffn_dim, n_embd) = (shape[0], shape[1]);
        let gate_weight = weights.gate_proj.as_ref().map(|gate| &gate.weight);
        let quantise =
            is_quantised(&weights.up_proj.weight) || gate_weight.is_some_and(is_quantised);
        let (input, scratch) = self.input(pass, x, rows, n_embd, quantise);
        let bytes = weights.up_proj.weight.bytes().len()
            + gate_weight.map_or(0, |weight| weight.bytes().len());
        let groups = ffn_dim.div_ceil(ROWS);
        let parts = self.parts(bytes, rows).min(groups);
        let gates = Columns::all(&mut gate[..rows * ffn_dim], ffn_dim);
        let ups = Columns::all(&mut up[..rows * ffn_dim], ffn_dim);
        self.pool().run(parts, &|part, thread| {
            let range = rows_of(share(groups, parts, part), ffn_dim);
            // SAFETY: the groups of rows belong to one part each, and so do their columns.
            let (mut gate, mut up) =
                unsafe { (gates.part(range.clone()), ups.part(range.clone())) };
            self.product(&mut up, range.start, input, &weights.up_proj, false, &scratch[thread]);
            if let Some(gate_proj) = &weights.gate_proj {
                self.product(&mut gate, range.start, input, gate_proj, false, &scratch[thread]);
            }
            for t in 0..rows {
                let gate = match weights.kind {
                    Ffn::Swiglu => &*gate.row(t),
                    Ffn::Classic | Ffn::Gelu | Ffn::GeluTanh | Ffn::Relu2 => &[],
                };
                dispatch::activate(self.isa, up.row(t), gate, weights.kind);
            }
        });
    }

    /// Columns from `first` on of a linear map's result.
    fn product(
        &self,
        out: &mut Columns<'_>,
        first: usize,
        input: Input<'_>,
        linear: &Linear<Cpu>,
        add: bool,
        scratch: &Mutex<Buffer>,
    ) {
        let (isa, Input { x, blocks, rows }) = (self.isa, input);
        let n = out.width();
        let bias = linear.bias.as_ref().map(|bias| &bias[first..][..n]);
        let width = linear.weight.shape()[1];
        let of = first * width..(first + n) * width;
        let mut panel = scratch.lock().unwrap_or_else(PoisonError::into_inner);
        match linear.weight.data() {
            TensorData::F32(w) => {
                let w = Rows { w: &w[of], bias, width };
                dispatch::matmul(isa, out, add, x, rows, w, &mut panel);
            }
            TensorData::F16(w) => {
                let w = Rows { w: &w[of], bias, width };
                dispatch::matmul(isa, out, add, x, rows, w, &mut panel);
            }
            TensorData::Bf16(w) => {
                let w = Rows { w: &w[of], bias, width };
                if !(self.options.fast && dispatch::matmul_fast(isa, out, add, x, rows, w)) {
                    dispatch::matmul(isa, out, add, x, rows, w, &mut panel);
                }
            }
            TensorData::Q8(w) => dispatch::matmul_q8(isa, out, add, first, blocks, rows, w, bias),
            TensorData::Q4(w) => dispatch::matmul_q4(isa, out, add, first, blocks, rows, w, bias),
        }
    }

    /// Each row's heads over the positions that it sees. `out`, `q`: (rows, n_head, head_dim)
    pub(super) fn attend(
        &self,
        out: &mut [f32],
        q: &[f32],
        pass: &CpuPass,
        layer: usize,
        shape: &AttentionShape,
        spans: &[Span<'_, CpuCache>],
    ) {
        let (head_dim, q_dim) = (shape.head_dim, shape.n_head * shape.head_dim);
        let group = shape.n_head / shape.n_kv_head;
        let rows = pass.tokens.len();
        let seen: usize = spans.iter().map(|span| span.rows * (span.pos + span.rows)).sum();
        let parts =
            self.parts(seen.saturating_mul(4 * q_dim) / rows, rows).min(shape.n_head * rows);
        // Heads first; rows too, where there are fewer heads than threads.
        let chunks = parts.div_ceil(shape.n_head).min(rows);
        let units = shape.n_head * chunks;
        let all = Columns::all(&mut out[..rows * q_dim], q_dim);
        self.pool().run(parts, &|part, thread| {
            let mut scratch = pass.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner);
            for unit in share(units, parts, part) {
                let (head, chunk) = (unit / chunks, share(rows, chunks, unit % chunks));
                let columns = head * head_dim..(head + 1) * head_dim;
                // SAFETY: a unit is some rows of one head's columns, and belongs to one part.
                let mut out = unsafe { all.part(columns.clone()) };
                let mut before = 0;
                for span in spans {
                    let own = before..before + span.rows;
                    before = own.end;
                    for row in own.start.max(chunk.start)..own.end.min(chunk.end) {
                        let pos = span.pos + row - own.start;
                        let first = (pos + 1).saturating_sub(shape.window);
                        let mut head = Attend {
                            isa: self.isa,
                            q: &q[row * q_dim..][columns.clone()],
                            mixture: Mixture::new(&mut scratch[..2 * span.cache.width()]),
                            scale: 1.0 / (head_dim as f32).sqrt(),
                            slope: shape.slopes[head],
                            pos,
                        };
                        let of = (layer, unit / chunks / group);
                        span.cache.visit(of, (first, pos), &mut head);
                        head.mixture.finish(out.row(row));
                    }
                }
            }
        });
    }
}

/// One row of one head on its way over the pages.
struct Attend<'a> {
    isa: Isa,
    q: &'a [f32],
    mixture: Mixture<'a>,
    scale: f32,
    slope: f32,
    pos: usize,
}

impl Visitor for Attend<'_> {
    fn visit<E: KvElement>(&mut self, page: Page<'_, E>, slots: Range<usize>, start: usize) {
        // At most a window, and a page at its beginning.
        let distance = i32::try_from(self.pos - start).unwrap_or(i32::MAX);
        let bias = Bias { scale: self.scale, slope: self.slope, distance };
        dispatch::attend(self.isa, &mut self.mixture, self.q, page, slots, bias);
    }
}

/// `out[t] = table[ids[t]]`. `table`: (n, width), `out`: (T, width); every id is below n.
pub(super) fn lookup(out: &mut [f32], table: &Tensor, ids: &[u32]) {
    fn copy<E: Element>(out: &mut [f32], row: &[E]) {
        out.iter_mut().zip(row).for_each(|(out, row)| *out = row.to_f32());
    }
    let width = table.shape()[1];
    for (out, id) in out.chunks_exact_mut(width).zip(ids) {
        let (row, of) = (*id as usize, *id as usize * width..(*id as usize + 1) * width);
        match table.data() {
            TensorData::F32(table) => out.copy_from_slice(&table[of]),
            TensorData::F16(table) => copy(out, &table[of]),
            TensorData::Bf16(table) => copy(out, &table[of]),
            TensorData::Q8(table) => table.read_row(row, 0, out),
            TensorData::Q4(table) => table.read_row(row, 0, out),
        }
    }
}

/// x += y
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

const _: () = assert!(PAGE.is_multiple_of(LANES));
