//! The CUDA backend: our own kernels on an NVIDIA GPU, of which only the driver is needed.
//!
//! | file | holds | may import |
//! |---|---|---|
//! | [`driver`] | devices and their contexts, freed when dropped | ptx |
//! | `memory` | memory on the device, and of the host for copies | driver |
//! | `stream` | queued and recorded work | driver, memory |
//! | `ptx` | the compiled kernels, chosen by the device | – |
//! | `launch` | one checked function for each kernel | driver, stream |
//! | `cache` | keys and values of a session, in pages | memory |
//! | `pass` | what differs from pass to pass, and recorded passes | memory, stream, launch |
//! | `mod.rs` | the operations of [`Backend`] | all of them |
//! | `kernels/` | the kernels (CUDA C++), and `compile.py`, which makes `ptx/` of them | – |
//!
//! Weights are copied to the device in their element type, activations, keys and values are f32. Rows
//! of weights and activations begin at multiples of [`LD`] elements and are zero beyond their width, so
//! that kernels load 16 bytes at a time and know no rests.
//!
//! A decode step is recorded as a graph the second time it comes by, and repeated from then on: tokens,
//! positions and where keys and values lie are in device memory, written before each pass. Sessions that
//! draw on the device run many such steps without the host.
//!
//! Results depend on the inputs alone, not on timing: no kernel adds in an order of arrival. Up to eight
//! rows go through matrix-vector products in f32; more go through tensor cores, each f32 split into
//! bf16 parts, so a prompt in one piece and the same in small ones agree to about 1e-5, not bit for bit.

mod cache;
pub mod driver;
mod launch;
mod memory;
mod pass;
mod ptx;
mod stream;

use std::ops::Range;
use std::sync::Arc;

use self::cache::CudaCache;
use self::driver::Context;
use self::launch::{
    ActivateArgs, Address, AttentionArgs, EmbedArgs, Encoding, Kernels, LINEAR_ROWS, LinearArgs,
    LinearMatrix, MAX_HEAD_DIM, MAX_ROWS, MatmulArgs, Norm, NormArgs, RotateArgs,
};
use self::memory::Memory;
use self::pass::CudaPass;
use crate::backend::{
    Activations, AttentionShape, AttentionWeights, Backend, DrawOptions, Embedding, FfnWeights,
    Head, Linear, NormWeights, Operations, PassInputs, PassLimits, PassShape, PositionWeights,
    Span,
};
use crate::config::Ffn;
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::kv_cache::KvShape;
use crate::weights::{Tensor, Weights};

pub use driver::device_count;

/// Rows of weights and activations begin at multiples of this many elements.
pub const LD: usize = 32;

/// The padded width of a row.
fn ld(width: usize) -> usize {
    width.next_multiple_of(LD)
}

/// A size as the kernels take it. All sizes of a model are below 2^24 or are counted in rows and
/// columns apart.
fn u(size: usize) -> u32 {
    debug_assert!(u32::try_from(size).is_ok());
    size as u32
}

/// Runs the model on one NVIDIA GPU.
#[derive(Clone)]
pub struct Cuda {
    context: Arc<Context>,
    kernels: Arc<Kernels>,
}

/// Weights on the device.
#[derive(Clone)]
pub struct CudaMatrix {
    memory: Arc<Memory>, // (rows, ld) elements
    dtype: Dtype,
    rows: usize,
    columns: usize,
}

impl CudaMatrix {
    fn ld(&self) -> u32 {
        u(ld(self.columns))
    }
}

/// Activations on the device.
pub struct CudaBuffer {
    memory: Memory, // (rows, ld) f32
    width: usize,
}

impl CudaBuffer {
    fn address(&self) -> Address {
        self.memory.address()
    }

    fn ld(&self) -> u32 {
        u(ld(self.width))
    }

    /// Address of a row.
    fn row(&self, row: usize) -> Address {
        self.address() + 4 * (row * ld(self.width)) as u64
    }
}

/// Address of numbers that may not be there.
fn address(vector: Option<&Memory>) -> Address {
    vector.map_or(0, Memory::address)
}

fn norm_args(norm: Option<&NormWeights<Memory>>) -> Norm {
    match norm {
        None => Norm::default(),
        Some(norm) => Norm {
            weight: norm.weight.address(),
            bias: address(norm.bias.as_ref()),
            eps: norm.eps,
            kind: if norm.subtract_mean { Norm::LAYER } else { Norm::RMS },
        },
    }
}

/// The number that kernels know the soft cap of logits by.
const ACTIVATION_CAP: u32 = 4;

/// Activations by the number that kernels know them by.
fn activation(ffn: Ffn) -> u32 {
    match ffn {
        Ffn::Classic => 0,
        Ffn::Gelu => 1,
        Ffn::Swiglu => 2,
        Ffn::Relu2 => 3,
        Ffn::GeluTanh => 5,
    }
}

impl Cuda {
    /// Opens device `index` and loads the kernels. The first time on a machine the driver compiles them,
    /// which takes a few seconds.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without an NVIDIA driver, with one older than 525 (CUDA 12.0), or without such
    /// a device.
    pub fn new(index: usize) -> Result<Cuda> {
        let context = Context::shared(index)?;
        let kernels = Arc::new(Kernels::new(&context)?);
        Ok(Cuda { context, kernels })
    }

    /// Bytes of the device's memory that are free, and all of them.
    ///
    /// # Errors
    /// The device is lost.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.memory()
    }

    /// `a.normed` = norm(rows of `a.x`).
    fn norm(
        &self,
        a: &Activations<Cuda>,
        norm: Option<&NormWeights<Memory>>,
        pick: Address,
        rows: usize,
    ) -> Result<()> {
        let args = NormArgs {
            out: a.normed.address(),
            x: a.x.address(),
            pick,
            norm: norm_args(norm),
            out_ld: a.normed.ld(),
            x_ld: a.x.ld(),
            width: u(a.x.width),
            rows: u(rows),
        };
        self.kernels.norm(&a.pass.stream, &args)
    }

    /// The input of products of norm(x): for few rows of moderate width x itself, with the norm left to
    /// the kernel; else `a.normed`, which is computed here.
    fn normed<'a>(
        &self,
        a: &'a Activations<Cuda>,
        norm: Option<&NormWeights<Memory>>,
        rows: usize,
    ) -> Result<(&'a CudaBuffer, Norm)> {
        if norm.is_none() {
            return Ok((&a.x, Norm::default()));
        }
        if rows <= LINEAR_ROWS && Kernels::norm_fits(rows, a.x.width) {
            return Ok((&a.x, norm_args(norm)));
        }
        self.norm(a, norm, 0, rows)?;
        Ok((&a.normed, Norm::default()))
    }

    /// `out = w · x + bias`, or `out +=` that, for any number of rows.
    fn product(
        &self,
        a: &Activations<Cuda>,
        out: &CudaBuffer,
        x: &CudaBuffer,
        linear: &Linear<Cuda>,
        rows: usize,
        add: bool,
    ) -> Result<()> {
        let w = &linear.weight;
        if rows <= LINEAR_ROWS {
            let args = LinearArgs {
                x: x.address(),
                out: out.address(),
                matrix: [matrix(linear), LinearMatrix::default(), LinearMatrix::default()],
                rows: u(rows),
                k: u(w.columns),
                x_ld: x.ld(),
                out_ld: out.ld(),
                w_ld: w.ld(),
                epilogue: if add { LinearArgs::ADD } else { LinearArgs::STORE },
                ..LinearArgs::default()
            };
            return self.kernels.linear(&a.pass.stream, w.dtype, args);
        }
        let args = MatmulArgs {
            out: out.address(),
            x: x.address(),
            w: w.memory.address(),
            bias: address(linear.bias.as_ref()),
            partial: a.pass.matmul_partial.address(),
            arrived: a.pass.matmul_arrived.address(),
            rows: u(rows),
            n: u(w.rows),
            k: u(w.columns),
            out_ld: out.ld(),
            x_ld: x.ld(),
            w_ld: w.ld(),
            add: u32::from(add),
            ..MatmulArgs::default()
        };
        self.kernels.matmul(&a.pass.stream, w.dtype, args)
    }
}

/// The element type that a matrix has on the device, and its size. There are no kernels for blocks yet,
/// so those become f32, which has each of their numbers.
fn on_device(tensor: &Tensor) -> (Dtype, usize) {
    match tensor.dtype() {
        Dtype::F32 | Dtype::Q8 | Dtype::Q4 => (Dtype::F32, 4),
        dtype @ (Dtype::F16 | Dtype::Bf16) => (dtype, 2),
    }
}

/// A matrix of a [`LinearArgs`].
fn matrix(linear: &Linear<Cuda>) -> LinearMatrix {
    LinearMatrix {
        w: linear.weight.memory.address(),
        bias: address(linear.bias.as_ref()),
        n: u(linear.weight.rows),
        units: 0,
    }
}

impl Backend for Cuda {
    type Matrix = CudaMatrix;
    type Vector = Memory;
    type Buffer = CudaBuffer;
    type Cache = CudaCache;
    type Pass = CudaPass;

    fn describe(&self) -> String {
        let c = &self.context;
        format!("{}, {}, sm_{}", c.device(), c.name, c.capability)
    }

    fn limits(&self) -> PassLimits {
        PassLimits { rows: 1024, span_rows: 1024, logit_rows: 256, bytes: 256 << 20 }
    }

    fn check(&self, weights: &Weights) -> Result<()> {
        let refuse = |found, expected: &str| {
            let device = self.context.device();
            Err(Error::NoDevice { device, found, expected: format!("{expected}, or device cpu") })
        };
        let head_dim = weights.config().head_dim;
        if head_dim > MAX_HEAD_DIM {
            let found = format!("a model with head_dim {head_dim}");
            return refuse(found, &format!("one of up to {MAX_HEAD_DIM}"));
        }
        // Kernels count elements of a matrix in 32 bits.
        let most = u32::MAX as usize;
        let too_large = |tensor: &Tensor| {
            tensor.shape().len() == 2
                && tensor.shape()[0].saturating_mul(ld(tensor.shape()[1])) > most
        };
        let too_many_rows =
            |tensor: &Tensor| tensor.shape().len() == 2 && tensor.shape()[0] > MAX_ROWS;
        if let Some((name, tensor)) = weights.tensors().find(|(_, tensor)| too_many_rows(tensor)) {
            let found = format!("{name} of {} rows", tensor.shape()[0]);
            return refuse(found, &format!("matrices of up to {MAX_ROWS} rows"));
        }
        if let Some((name, tensor)) = weights.tensors().find(|(_, tensor)| too_large(tensor)) {
            let found = format!("{name} of {} elements", tensor.len());
            return refuse(found, &format!("matrices of up to {most} elements"));
        }
        // One kernel reads several matrices.
        let mut matrices = weights.tensors().filter(|(_, tensor)| tensor.shape().len() == 2);
        if let Some((first_name, first)) = matrices.next()
            && let Some((name, other)) =
                matrices.find(|(_, other)| on_device(other) != on_device(first))
        {
            let found = format!(
                "{first_name} in {}, {name} in {}",
                first.dtype().name(),
                other.dtype().name()
            );
            return refuse(found, "matrices of one type (see LoadOptions::dtype)");
        }
        Ok(())
    }

    fn matrix(&self, tensor: &Tensor) -> Result<CudaMatrix> {
        let (rows, columns) = (tensor.shape()[0], tensor.shape()[1]);
        let (dtype, size) = on_device(tensor);
        let (width, pitch) = (columns * size, ld(columns) * size);
        let memory = Memory::zeros(&self.context, "weights in GPU memory", rows * pitch)?;
        if tensor.dtype() == dtype {
            memory.write_rows(0, tensor.bytes(), width, pitch)?;
        } else {
            memory.write_rows(0, memory::bytes_of(&tensor.to_f32()?), width, pitch)?;
        }
        Ok(CudaMatrix { memory: Arc::new(memory), dtype, rows, columns })
    }

    fn vector(&self, values: &[f32]) -> Result<Memory> {
        let memory = Memory::zeros(&self.context, "weights in GPU memory", 4 * values.len())?;
        memory.write(0, memory::bytes_of(values))?;
        Ok(memory)
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<CudaBuffer> {
        let memory =
            Memory::zeros(&self.context, "activations in GPU memory", 4 * rows * ld(width))?;
        Ok(CudaBuffer { memory, width })
    }

    fn pass(&self, shape: &PassShape) -> Result<CudaPass> {
        CudaPass::new(&self.context, shape)
    }

    fn cache(&self, shape: &KvShape) -> Result<CudaCache> {
        Ok(CudaCache::new(&self.context, shape))
    }

    fn reserve(&self, cache: &mut CudaCache, pos: usize, rows: usize) -> Result<()> {
        cache.reserve(pos, rows)
    }

    fn fork(&self, cache: &CudaCache) -> Result<CudaCache> {
        cache.fork()
    }

    fn cache_bytes(&self, cache: &CudaCache) -> (usize, usize) {
        cache.bytes()
    }

    fn read_cache(
        &self,
        out: &mut [f32],
        cache: &CudaCache,
        positions: Range<usize>,
    ) -> Result<()> {
        cache.read(out, positions)
    }

    fn write_cache(
        &self,
        cache: &mut CudaCache,
        positions: Range<usize>,
        values: &[f32],
    ) -> Result<()> {
        cache.write(positions, values)
    }

    fn begin(
        &self,
        pass: &mut CudaPass,
        inputs: &PassInputs<'_>,
        spans: &[Span<'_, CudaCache>],
    ) -> Result<()> {
        self.context.bind("begin a pass")?;
        pass.begin(inputs, spans)
    }

    fn run(
        &self,
        a: &mut Activations<Cuda>,
        spans: &mut [Span<'_, CudaCache>],
        operations: Operations<'_, Cuda>,
    ) -> Result<()> {
        let Some(key) = a.pass.repeatable() else {
            return operations(a, spans);
        };
        let stream = Arc::clone(&a.pass.stream);
        if let Some(graph) = a.pass.graphs.find(key) {
            return stream.replay(graph);
        }
        // What comes but once is not worth recording.
        if !a.pass.graphs.seen(key) {
            return operations(a, spans);
        }
        match stream.record(|| operations(a, spans)) {
            Ok(graph) => stream.replay(a.pass.graphs.keep(key, graph)),
            // There may be no memory for it: it works without.
            Err(_) => {
                a.pass.graphs.refuse();
                operations(a, spans)
            }
        }
    }

    fn embed(&self, a: &mut Activations<Cuda>, weights: &Embedding<Cuda>) -> Result<()> {
        let mut args = EmbedArgs {
            x: a.x.address(),
            tokens: weights.tokens.memory.address(),
            rows: a.pass.rows(),
            encoding: a.pass.encoding(),
            x_ld: a.x.ld(),
            w_ld: weights.tokens.ld(),
            n_embd: u(a.x.width),
            ..EmbedArgs::default()
        };
        match &weights.position {
            PositionWeights::None => args.kind = EmbedArgs::POSITION_NONE,
            PositionWeights::Encoding => args.kind = EmbedArgs::POSITION_ENCODING,
            PositionWeights::Table(table) => {
                args.kind = EmbedArgs::POSITION_TABLE;
                args.position = table.memory.address();
            }
            PositionWeights::Map(map) => {
                args.kind = EmbedArgs::POSITION_MAP;
                args.position = map.weight.memory.address();
                args.map_ld = map.weight.ld();
                args.bias = address(map.bias.as_ref());
            }
        }
        self.kernels.embed(&a.pass.stream, weights.tokens.dtype, &args, a.pass.n_rows())
    }

    fn qkv(
        &self,
        a: &mut Activations<Cuda>,
        layer: usize,
        weights: &AttentionWeights<Cuda>,
        shape: &AttentionShape,
        _spans: &mut [Span<'_, CudaCache>],
    ) -> Result<()> {
        let rows = a.pass.n_rows();
        let encoding = if shape.rotate { a.pass.encoding() } else { Default::default() };
        let kv = a.pass.kv(layer);
        let rotate = RotateArgs {
            q: a.q.address(),
            k: a.k.address(),
            v: a.v.address(),
            rows: a.pass.rows(),
            encoding,
            kv,
            q_norm: norm_args(weights.q_norm.as_ref()),
            k_norm: norm_args(weights.k_norm.as_ref()),
            q_ld: a.q.ld(),
            kv_ld: a.k.ld(),
            n_head: u(shape.n_head),
        };
        if rows <= LINEAR_ROWS {
            let (x, norm) = self.normed(a, weights.norm.as_ref(), rows)?;
            let w = &weights.q_proj.weight;
            let args = LinearArgs {
                x: x.address(),
                out: a.q.address(),
                matrix: [matrix(&weights.q_proj), matrix(&weights.k_proj), matrix(&weights.v_proj)],
                norm,
                row: a.pass.rows(),
                // What has a norm is rotated after it.
                encoding: if weights.q_norm.is_none() { encoding } else { Encoding::default() },
                kv,
                rows: u(rows),
                k: u(w.columns),
                x_ld: x.ld(),
                out_ld: a.q.ld(),
                w_ld: w.ld(),
                epilogue: LinearArgs::QKV,
                ..LinearArgs::default()
            };
            self.kernels.linear(&a.pass.stream, w.dtype, args)?;
            if weights.q_norm.is_some() {
                let in_cache = RotateArgs { k: 0, v: 0, ..rotate };
                self.kernels.rotate(&a.pass.stream, &in_cache, rows)?;
            }
            return Ok(());
        }
        let x = self.normed(a, weights.norm.as_ref(), rows)?.0;
        self.product(a, &a.q, x, &weights.q_proj, rows, false)?;
        self.product(a, &a.k, x, &weights.k_proj, rows, false)?;
        self.product(a, &a.v, x, &weights.v_proj, rows, false)?;
        self.kernels.rotate(&a.pass.stream, &rotate, rows)
    }

    fn attention(
        &self,
        a: &mut Activations<Cuda>,
        layer: usize,
        shape: &AttentionShape,
        _spans: &mut [Span<'_, CudaCache>],
    ) -> Result<()> {
        let pass = &a.pass;
        let args = AttentionArgs {
            out: a.mixed.address(),
            q: a.q.address(),
            rows: pass.rows(),
            slopes: pass.slopes(),
            partial: pass.partial.address(),
            arrived: pass.arrived.address(),
            kv: pass.kv(layer),
            q_ld: a.q.ld(),
            out_ld: a.mixed.ld(),
            n_head: u(shape.n_head),
            window: u(shape.window),
            split_pages: u(pass.split_pages),
            splits: u(pass.splits()),
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            n_rows: 0,
        };
        for span in pass.attention_spans() {
            let at = |rows: Range<usize>| AttentionArgs {
                out: a.mixed.row(rows.start),
                q: a.q.row(rows.start),
                rows: pass.row(rows.start),
                n_rows: u(rows.len()),
                ..args
            };
            if span.one_session && self.kernels.prefills(shape.head_dim) {
                self.kernels.prefill(&pass.stream, &at(span.rows.clone()))?;
                continue;
            }
            for start in span.rows.clone().step_by(pass.decode_rows) {
                let rows = start..span.rows.end.min(start + pass.decode_rows);
                self.kernels.attention(&pass.stream, &at(rows))?;
            }
        }
        Ok(())
    }

    fn attention_output(
        &self,
        a: &mut Activations<Cuda>,
        weights: &AttentionWeights<Cuda>,
    ) -> Result<()> {
        self.product(a, &a.x, &a.mixed, &weights.o_proj, a.pass.n_rows(), true)
    }

    fn ffn(&self, a: &mut Activations<Cuda>, weights: &FfnWeights<Cuda>) -> Result<()> {
        let rows = a.pass.n_rows();
        let (x, norm) = self.normed(a, weights.norm.as_ref(), rows)?;
        let w = &weights.up_proj.weight;
        if rows <= LINEAR_ROWS {
            let none = LinearMatrix::default();
            let up = matrix(&weights.up_proj);
            let gate = weights.gate_proj.as_ref().map(matrix);
            let args = LinearArgs {
                x: x.address(),
                out: a.up.address(),
                matrix: gate.map_or([up, none, none], |gate| [gate, up, none]),
                norm,
                rows: u(rows),
                k: u(w.columns),
                x_ld: x.ld(),
                out_ld: a.up.ld(),
                w_ld: w.ld(),
                epilogue: if gate.is_some() { LinearArgs::GATED } else { LinearArgs::ACTIVATE },
                activation: activation(weights.kind),
                ..LinearArgs::default()
            };
            return self.kernels.linear(&a.pass.stream, w.dtype, args);
        }
        if let Some(gate_proj) = &weights.gate_proj {
            self.product(a, &a.gate, x, gate_proj, rows, false)?;
        }
        self.product(a, &a.up, x, &weights.up_proj, rows, false)?;
        let args = ActivateArgs {
            up: a.up.address(),
            gate: if weights.gate_proj.is_some() { a.gate.address() } else { 0 },
            ld: a.up.ld(),
            width: u(a.up.width),
            rows: u(rows),
            activation: activation(weights.kind),
            cap: 0.0,
        };
        self.kernels.activate(&a.pass.stream, &args)
    }

    fn ffn_output(&self, a: &mut Activations<Cuda>, weights: &FfnWeights<Cuda>) -> Result<()> {
        self.product(a, &a.x, &a.up, &weights.down_proj, a.pass.n_rows(), true)
    }

    fn logits(
        &self,
        a: &mut Activations<Cuda>,
        head: &Head<Cuda>,
        _spans: &[Span<'_, CudaCache>],
    ) -> Result<()> {
        let rows = a.pass.n_wanted();
        self.norm(a, head.norm.as_ref(), a.pass.pick(), rows)?;
        self.product(a, &a.logits, &a.normed, &head.lm_head, rows, false)?;
        if head.softcap == 0.0 {
            return Ok(());
        }
        let args = ActivateArgs {
            up: a.logits.address(),
            gate: 0,
            ld: a.logits.ld(),
            width: u(a.logits.width),
            rows: u(rows),
            activation: ACTIVATION_CAP,
            cap: head.softcap,
        };
        self.kernels.activate(&a.pass.stream, &args)
    }

    fn read(
        &self,
        a: &mut Activations<Cuda>,
        logits: &mut [f32],
        hidden: &mut [f32],
        first_hidden: usize,
    ) -> Result<()> {
        self.context.bind("read results")?;
        let parts = &mut [(logits, &a.logits, 0), (hidden, &a.normed, first_hidden)];
        a.pass.read(parts)
    }

    fn can_draw(&self, options: &DrawOptions, vocab_size: usize) -> bool {
        Kernels::can_draw(options, vocab_size)
    }

    fn draw(&self, a: &mut Activations<Cuda>) -> Result<()> {
        let args = a.pass.sample_args(a.logits.address(), a.logits.ld(), a.logits.width);
        self.kernels.sample(&a.pass.stream, &args)
    }

    fn read_drawn(&self, a: &mut Activations<Cuda>, tokens: &mut [u32]) -> Result<()> {
        self.context.bind("read tokens")?;
        a.pass.read_drawn(tokens)
    }
}
