//! The CPU backend.
//!
//! | file | holds |
//! |---|---|
//! | [`scalar`] | the specification: every kernel as a plain loop, and the order of every sum |
//! | [`simd`] | what kernels need of an instruction set; in plain Rust |
//! | `avx2`, `avx512`, `neon` | the same with their instructions |
//! | [`products`], [`blocks`] | products with float weights; with weights of 8 and 4 bits |
//! | [`attention`] | one query over one page of keys and values |
//! | [`dispatch`] | detection of the instruction set and one entry per kernel |
//! | [`cache`] | keys and values of a session |
//! | [`columns`], [`buffer`] | parts of a matrix for several threads; memory for activations |
//! | [`threads`] | the threads |
//! | `pass` | an operation of the model: what is computed where, by which thread |
//!
//! Weights stay in the mapped file as they are there. Activations are f32, and integers of 8 bits where they
//! meet weights of 8 or 4 bits. Every result has the same bits whatever the instruction set and the number
//! of threads, for a row alone or among others.

pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod blocks;
pub mod buffer;
pub mod cache;
pub mod columns;
pub mod dispatch;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pass;
pub mod products;
pub mod scalar;
pub mod simd;
#[cfg(test)]
mod tests;
pub mod threads;

pub use cache::{CpuCache, KvDtype};
pub use dispatch::Isa;
pub use pass::CpuPass;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::backend::{
    Activations, AttentionShape, AttentionWeights, Backend, Embedding, FfnWeights, Head, LogitRows,
    PassInputs, PassLimits, PassShape, PositionWeights, Span,
};
use crate::error::{Error, Result};
use crate::kv_cache::KvShape;
use crate::weights::{Tensor, Weights};
use buffer::Buffer;
use threads::Pool;

/// Rows of one pass: enough that weights are read once for many of them, few enough for the caches.
const PASS_ROWS: usize = 64;
/// Most threads that are asked for.
pub const MOST_THREADS: usize = 256;
/// Bytes of weights that pay for one more thread.
const BYTES_PER_THREAD: usize = 1 << 20;
/// Threads that are started without being asked for: more only share the memory's bandwidth.
const DEFAULT_THREADS: usize = 8;

/// How the model runs on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that work on one pass, the caller's included; 0 for as many as pay for the model's size.
    /// Results do not depend on it.
    pub threads: usize,
    /// How keys and values are stored.
    pub kv_dtype: KvDtype,
    /// Multiplies bf16 weights by the processor's bf16 instructions where it has them (AVX512-BF16), which
    /// round activations to bf16: faster, but no longer the same bits everywhere.
    pub fast: bool,
}

/// Runs the model on the CPU.
#[derive(Clone)]
pub struct Cpu {
    isa: Isa,
    options: CpuOptions,
    /// Started when a model is loaded, whose size says how many threads pay.
    pool: Arc<OnceLock<Pool>>,
}

impl Cpu {
    /// With the best instruction set of this machine and as many threads as pay.
    pub fn new() -> Cpu {
        Cpu::with_isa(Isa::detect())
    }

    /// With a given instruction set; the results are the same.
    pub fn with_isa(isa: Isa) -> Cpu {
        Cpu { isa, options: CpuOptions::default(), pool: Arc::default() }
    }

    /// With options.
    ///
    /// # Errors
    /// [`Error::Argument`] for more than [`MOST_THREADS`] threads.
    pub fn with_options(options: CpuOptions) -> Result<Cpu> {
        Cpu::new().and_options(options)
    }

    /// The same with other options, and threads of its own.
    ///
    /// # Errors
    /// As [`Cpu::with_options`].
    pub fn and_options(self, options: CpuOptions) -> Result<Cpu> {
        if options.threads > MOST_THREADS {
            return Err(Error::Argument {
                name: "threads",
                found: options.threads.to_string(),
                expected: format!("0 to {MOST_THREADS}"),
            });
        }
        Ok(Cpu { isa: self.isa, options, pool: Arc::default() })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads that work on one pass of a loaded model.
    pub fn threads(&self) -> usize {
        self.pool.get().map_or(self.options.threads, Pool::threads)
    }

    fn pool(&self) -> &Pool {
        self.pool.get_or_init(|| Pool::new(self.options.threads))
    }
}

impl Default for Cpu {
    fn default() -> Cpu {
        Cpu::new()
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cpu({}, {:?})", self.isa.name(), self.options)
    }
}

/// As many threads as pay for a model that reads so many bytes for each token: none that would have less
/// than its share, no more than the machine has cores for.
fn default_threads(bytes: usize) -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    // Two threads of one core share its registers' ports and its caches, and both are busy already.
    let smt = std::fs::read_to_string("/sys/devices/system/cpu/smt/active");
    let cores = if smt.is_ok_and(|smt| smt.trim() == "1") { logical.div_ceil(2) } else { logical };
    (bytes / BYTES_PER_THREAD).clamp(1, cores.min(DEFAULT_THREADS))
}

impl Backend for Cpu {
    type Matrix = Tensor;
    type Vector = Vec<f32>;
    type Buffer = Buffer;
    type Cache = CpuCache;
    type Pass = CpuPass;

    fn describe(&self) -> String {
        let threads = self.threads();
        let s = if threads == 1 { "" } else { "s" };
        let kv = match self.options.kv_dtype {
            KvDtype::F32 => String::new(),
            kv @ (KvDtype::F16 | KvDtype::Q8) => format!(", keys and values in {}", kv.name()),
        };
        let fast = if self.options.fast && dispatch::has_fast(self.isa) { ", bf16" } else { "" };
        format!("cpu, {}, {threads} thread{s}{kv}{fast}", self.isa.name())
    }

    fn limits(&self) -> PassLimits {
        PassLimits { rows: PASS_ROWS, span_rows: PASS_ROWS, logit_rows: PASS_ROWS, bytes: 0 }
    }

    fn check(&self, weights: &Weights) -> Result<()> {
        self.pool.get_or_init(|| {
            Pool::new(match self.options.threads {
                0 => default_threads(weights.n_bytes()),
                threads => threads,
            })
        });
        Ok(())
    }

    fn matrix(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<Buffer> {
        Buffer::zeros("activations", rows * width)
    }

    fn pass(&self, shape: &PassShape) -> Result<CpuPass> {
        CpuPass::new(shape, self.pool().threads())
    }

    fn cache(&self, shape: &KvShape) -> Result<CpuCache> {
        Ok(CpuCache::new(shape, self.options.kv_dtype))
    }

    fn reserve(&self, cache: &mut CpuCache, pos: usize, rows: usize) -> Result<()> {
        cache.reserve(pos, rows)
    }

    fn fork(&self, cache: &CpuCache) -> Result<CpuCache> {
        Ok(cache.fork())
    }

    fn cache_bytes(&self, cache: &CpuCache) -> (usize, usize) {
        cache.bytes()
    }

    fn read_cache(&self, out: &mut [f32], cache: &CpuCache, positions: Range<usize>) -> Result<()> {
        cache.read(out, positions);
        Ok(())
    }

    fn write_cache(
        &self,
        cache: &mut CpuCache,
        positions: Range<usize>,
        values: &[f32],
    ) -> Result<()> {
        cache.write(positions, values);
        Ok(())
    }

    fn begin(
        &self,
        pass: &mut CpuPass,
        inputs: &PassInputs<'_>,
        spans: &[Span<'_, CpuCache>],
    ) -> Result<()> {
        pass.begin(inputs, spans);
        Ok(())
    }

    fn embed(&self, a: &mut Activations<Cpu>, weights: &Embedding<Cpu>) -> Result<()> {
        let rows = a.pass.tokens.len();
        let len = rows * weights.tokens.shape()[1];
        pass::lookup(&mut a.x, &weights.tokens, &a.pass.tokens);
        match &weights.position {
            PositionWeights::None => {}
            PositionWeights::Encoding => pass::add(&mut a.x[..len], &a.pass.encoding),
            PositionWeights::Table(table) => {
                pass::lookup(&mut a.branch, table, &a.pass.positions);
                pass::add(&mut a.x[..len], &a.branch);
            }
            PositionWeights::Map(map) => {
                let encoding = std::mem::take(&mut a.pass.encoding);
                self.linears(&mut a.pass, &encoding, rows, [(map, &mut a.x)], true);
                a.pass.encoding = encoding;
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
        let n_embd = weights.q_proj.weight.shape()[1];
        let (q_dim, kv_dim) = (shape.n_head * shape.head_dim, shape.n_kv_head * shape.head_dim);
        self.norm(&mut a.normed, &a.x, weights.norm.as_ref(), rows, n_embd);
        let maps =
            [(&weights.q_proj, &mut a.q), (&weights.k_proj, &mut a.k), (&weights.v_proj, &mut a.v)];
        self.linears(&mut a.pass, &a.normed, rows, maps, false);
        let encoding = if shape.rotate { &a.pass.encoding[..] } else { &[] };
        self.heads(&mut a.q, weights.q_norm.as_ref(), encoding, rows, q_dim, shape.head_dim);
        self.heads(&mut a.k, weights.k_norm.as_ref(), encoding, rows, kv_dim, shape.head_dim);
        let (mut k, mut v) = (a.k.chunks_exact(kv_dim), a.v.chunks_exact(kv_dim));
        for span in spans {
            for (pos, (k, v)) in (span.pos..).zip(k.by_ref().zip(v.by_ref()).take(span.rows)) {
                span.cache.store(layer, pos, k, v);
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
        self.attend(&mut a.mixed, &a.q, &a.pass, layer, shape, spans);
        Ok(())
    }

    fn attention_output(
        &self,
        a: &mut Activations<Cpu>,
        weights: &AttentionWeights<Cpu>,
    ) -> Result<()> {
        let rows = a.pass.tokens.len();
        self.linears(&mut a.pass, &a.mixed, rows, [(&weights.o_proj, &mut a.x)], true);
        Ok(())
    }

    fn ffn(&self, a: &mut Activations<Cpu>, weights: &FfnWeights<Cpu>) -> Result<()> {
        let rows = a.pass.tokens.len();
        let n_embd = weights.up_proj.weight.shape()[1];
        self.norm(&mut a.normed, &a.x, weights.norm.as_ref(), rows, n_embd);
        self.gated(&mut a.pass, &a.normed, rows, weights, &mut a.gate, &mut a.up);
        Ok(())
    }

    fn ffn_output(&self, a: &mut Activations<Cpu>, weights: &FfnWeights<Cpu>) -> Result<()> {
        let rows = a.pass.tokens.len();
        self.linears(&mut a.pass, &a.up, rows, [(&weights.down_proj, &mut a.x)], true);
        Ok(())
    }

    fn logits(
        &self,
        a: &mut Activations<Cpu>,
        head: &Head<Cpu>,
        spans: &[Span<'_, CpuCache>],
    ) -> Result<()> {
        let (vocab_size, n_embd) = (head.lm_head.weight.shape()[0], head.lm_head.weight.shape()[1]);
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
        self.linears(&mut a.pass, &a.normed, rows, [(&head.lm_head, &mut a.logits)], false);
        if head.softcap != 0.0 {
            dispatch::softcap(self.isa, &mut a.logits[..rows * vocab_size], head.softcap);
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
