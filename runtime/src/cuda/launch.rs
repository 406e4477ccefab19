//! One checked function for each kernel: arguments in, grid and block chosen here. The structs are
//! twins of those in `kernels/*.cu`; a test compares their sizes with what the compiled kernels ask for.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::driver::{Context, Function};
use super::memory::Plain;
use super::stream::Stream;
use crate::backend::DrawOptions;
use crate::error::Result;
use crate::format::Dtype;

/// Most rows of [`Kernels::linear`]; more go through [`Kernels::matmul`].
pub const LINEAR_ROWS: usize = 8;
/// So many warps keep any device's memory busy.
const LINEAR_WARPS: u32 = 2048;
/// Widest head.
pub const MAX_HEAD_DIM: usize = 512;
/// Most splits of one row's attention.
pub const MAX_SPLITS: usize = 32;
/// Rows of a tile of [`Kernels::matmul`], and columns of the large one; the small one has half of them.
const MATMUL_TILE: u32 = 64;
/// Columns of x that a block of small tiles takes at a time.
const MATMUL_DEPTH: u32 = 128;
/// Most rows of a matrix of weights: a grid has no more than 65,535 rows of blocks.
pub const MAX_ROWS: usize = 65_535 * MATMUL_TILE as usize / 2;
/// So many large tiles fill any device. Numbers, and not what this device has, so that a model takes the
/// same sums on every GPU.
const MATMUL_LARGE: u32 = 192;
/// Up to so many blocks share the sums of small tiles.
const MATMUL_BLOCKS: u32 = 264;
/// Bytes of [`MatmulArgs::partial`] and of [`MatmulArgs::arrived`].
pub const MATMUL_SCRATCH: (usize, usize) =
    (4 * (MATMUL_BLOCKS * MATMUL_TILE * MATMUL_TILE / 2) as usize, 4 * MATMUL_BLOCKS as usize);
/// Most candidates that [`Kernels::sample`] sorts.
const MOST_SORTED: usize = 1024;
/// Bytes of shared memory that every device has for a block without being asked.
const SHARED_BYTES: usize = 48 << 10;

/// Address on the device; 0 for none.
pub type Address = u64;

/// One row of a pass.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Row {
    /// Position in its session.
    pub pos: u64,
    /// Addresses of the session's pages.
    pub table: Address,
    /// Its input.
    pub token: u32,
    /// Of the ring, `pos % slots`.
    pub slot: u32,
}

/// Where the keys and values of one layer lie in a page.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct KvLayout {
    pub slots: u32,
    pub layer: u32,
    pub n_kv_head: u32,
    pub head_dim: u32,
    pub head_ld: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Norm {
    pub weight: Address,
    pub bias: Address,
    pub eps: f32,
    pub kind: u32,
}

impl Norm {
    pub const NONE: u32 = 0;
    pub const LAYER: u32 = 1;
    pub const RMS: u32 = 2;
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Encoding {
    pub values: Address,
    pub step: Address,
    pub width: u32,
    pub rows: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct EmbedArgs {
    pub x: Address,
    pub tokens: Address,
    pub rows: Address,
    pub encoding: Encoding,
    pub position: Address,
    pub bias: Address,
    pub x_ld: u32,
    pub w_ld: u32,
    pub map_ld: u32,
    pub n_embd: u32,
    pub kind: u32,
}

impl EmbedArgs {
    pub const POSITION_NONE: u32 = 0;
    pub const POSITION_ENCODING: u32 = 1;
    pub const POSITION_TABLE: u32 = 2;
    pub const POSITION_MAP: u32 = 3;
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct NormArgs {
    pub out: Address,
    pub x: Address,
    pub pick: Address,
    pub norm: Norm,
    pub out_ld: u32,
    pub x_ld: u32,
    pub width: u32,
    pub rows: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LinearMatrix {
    pub w: Address,
    pub bias: Address,
    pub n: u32,
    pub units: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LinearArgs {
    pub x: Address,
    pub out: Address,
    pub matrix: [LinearMatrix; 3],
    pub norm: Norm,
    pub row: Address,
    pub encoding: Encoding,
    pub kv: KvLayout,
    pub rows: u32,
    pub k: u32,
    pub x_ld: u32,
    pub out_ld: u32,
    pub w_ld: u32,
    pub units: u32,
    pub unit_warps: u32,
    pub epilogue: u32,
    pub activation: u32,
}

impl LinearArgs {
    pub const STORE: u32 = 0;
    pub const ADD: u32 = 1;
    pub const QKV: u32 = 2;
    pub const GATED: u32 = 3;
    pub const ACTIVATE: u32 = 4;
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RotateArgs {
    pub q: Address,
    pub k: Address,
    pub v: Address,
    pub rows: Address,
    pub encoding: Encoding,
    pub kv: KvLayout,
    pub q_norm: Norm,
    pub k_norm: Norm,
    pub q_ld: u32,
    pub kv_ld: u32,
    pub n_head: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionArgs {
    pub out: Address,
    pub q: Address,
    pub rows: Address,
    pub slopes: Address,
    pub partial: Address,
    pub arrived: Address,
    pub kv: KvLayout,
    pub q_ld: u32,
    pub out_ld: u32,
    pub n_head: u32,
    pub window: u32,
    pub n_rows: u32,
    pub split_pages: u32,
    pub splits: u32,
    pub scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ActivateArgs {
    pub up: Address,
    pub gate: Address,
    pub ld: u32,
    pub width: u32,
    pub rows: u32,
    pub activation: u32,
    pub cap: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MatmulArgs {
    pub out: Address,
    pub x: Address,
    pub w: Address,
    pub bias: Address,
    pub partial: Address,
    pub arrived: Address,
    pub rows: u32,
    pub n: u32,
    pub k: u32,
    pub out_ld: u32,
    pub x_ld: u32,
    pub w_ld: u32,
    pub add: u32,
    pub small: u32,
}

/// One session's sampler.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Draw {
    pub seed: u64,
    pub step: u64,
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    pub top_k: u32,
    pub surely_below: f32,
    pub reserved: u32,
}

impl From<&DrawOptions> for Draw {
    fn from(options: &DrawOptions) -> Draw {
        let DrawOptions { seed, step, temperature, top_p, min_p, surely_below, top_k } = *options;
        Draw { seed, step, temperature, top_p, min_p, top_k, surely_below, reserved: 0 }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SampleArgs {
    pub logits: Address,
    pub ld: u32,
    pub vocab_size: u32,
    pub n_rows: u32,
    pub slots: u32,
    pub rows: Address,
    pub draws: Address,
    pub drawn: Address,
    pub step: Address,
    pub arrived: Address,
}

// SAFETY: numbers without gaps.
unsafe impl Plain for Row {}
// SAFETY: numbers without gaps.
unsafe impl Plain for Draw {}

/// The kernels of a context.
#[derive(Debug)]
pub struct Kernels {
    embed: [Function; 3],
    norm: Function,
    linear1: [Function; 3],
    linear8: [Function; 3],
    matmul: [Function; 3],
    rotate: Function,
    rotate_normed: Function,
    attention: Function,
    /// By the widest head. None before Ampere.
    prefill: Vec<(usize, Function)>,
    activate: Function,
    sample: Function,
}

fn of(functions: &[Function; 3], dtype: Dtype) -> Function {
    match dtype {
        // Blocks become f32 when they are brought to the device.
        Dtype::F32 | Dtype::Q8 | Dtype::Q4 => functions[0],
        Dtype::F16 => functions[1],
        Dtype::Bf16 => functions[2],
    }
}

impl Kernels {
    /// Looks them all up.
    pub fn new(context: &Arc<Context>) -> Result<Kernels> {
        context.bind("find kernels")?;
        let f = |name| context.function(name);
        Ok(Kernels {
            embed: [f(c"embed_f32")?, f(c"embed_f16")?, f(c"embed_bf16")?],
            norm: f(c"norm")?,
            linear1: [f(c"linear1_f32")?, f(c"linear1_f16")?, f(c"linear1_bf16")?],
            linear8: [f(c"linear8_f32")?, f(c"linear8_f16")?, f(c"linear8_bf16")?],
            matmul: [f(c"matmul_f32")?, f(c"matmul_f16")?, f(c"matmul_bf16")?],
            rotate: f(c"rotate")?,
            rotate_normed: f(c"rotate_normed")?,
            attention: f(c"attention")?,
            prefill: if context.capability < 80 {
                Vec::new()
            } else {
                vec![(32, f(c"prefill_32")?), (64, f(c"prefill_64")?), (128, f(c"prefill_128")?)]
            },
            activate: f(c"activate")?,
            sample: f(c"sample")?,
        })
    }

    /// Whether [`LinearArgs::norm`] can be used: the normed rows must fit in shared memory.
    pub fn norm_fits(rows: usize, width: usize) -> bool {
        let rows = if rows == 1 { 1 } else { LINEAR_ROWS };
        // Beside the sums of the warps.
        4 * rows * super::ld(width) + 4 * 4 * 2 * rows <= SHARED_BYTES
    }

    /// Whether a prefill kernel is made for such heads.
    pub fn prefills(&self, head_dim: usize) -> bool {
        self.prefill.iter().any(|(most, _)| head_dim <= *most)
    }

    /// x = embeddings. A block for each row.
    pub fn embed(
        &self,
        stream: &Stream,
        dtype: Dtype,
        args: &EmbedArgs,
        rows: usize,
    ) -> Result<()> {
        // SAFETY: `embed_*` takes EmbedArgs, any number of rows.
        unsafe { stream.launch(of(&self.embed, dtype), [rows as u32, 1, 1], 256, 0, args) }
    }

    /// out = norm(x). A warp for each row.
    pub fn norm(&self, stream: &Stream, args: &NormArgs) -> Result<()> {
        // SAFETY: `norm` takes NormArgs and looks at the number of rows.
        unsafe { stream.launch(self.norm, [args.rows.div_ceil(4), 1, 1], 128, 0, args) }
    }

    /// Products of up to [`LINEAR_ROWS`] rows. Sets the units, and how many warps share one.
    pub fn linear(&self, stream: &Stream, dtype: Dtype, mut args: LinearArgs) -> Result<()> {
        debug_assert!(args.rows as usize <= LINEAR_ROWS);
        let rotates = args.epilogue == LinearArgs::QKV && args.encoding.width > 0;
        args.units = 0;
        for matrix in &mut args.matrix {
            matrix.units = match (args.epilogue, rotates) {
                (LinearArgs::GATED, _) => matrix.n,
                (_, true) => matrix.n / 2,
                (_, false) => matrix.n.div_ceil(2),
            };
            args.units += matrix.units;
        }
        if args.epilogue == LinearArgs::GATED {
            args.units = args.matrix[0].units;
        }
        // A long sum in one warp leaves most of a large device idle: share it while there are few units.
        // It depends on the shapes alone, so that a model takes the same sums on every GPU.
        args.unit_warps = 1;
        while args.unit_warps < 4
            && args.w_ld > 256 * args.unit_warps
            && args.units * args.unit_warps < LINEAR_WARPS
        {
            args.unit_warps *= 2;
        }
        let blocks = (args.units * args.unit_warps).div_ceil(4);
        let (functions, rows) =
            if args.rows == 1 { (&self.linear1, 1) } else { (&self.linear8, LINEAR_ROWS as u32) };
        let shared = if args.norm.kind == Norm::NONE { 0 } else { 4 * rows * args.w_ld };
        // SAFETY: `linear*` takes LinearArgs; a block has four warps, and the shared memory is that of
        // the normed rows.
        unsafe { stream.launch(of(functions, dtype), [blocks, 1, 1], 128, shared, &args) }
    }

    /// Products of any number of rows. Sets the tile.
    pub fn matmul(&self, stream: &Stream, dtype: Dtype, mut args: MatmulArgs) -> Result<()> {
        let rows = args.rows.div_ceil(MATMUL_TILE);
        let large = rows * args.n.div_ceil(MATMUL_TILE);
        args.small = u32::from(args.rows <= MATMUL_TILE / 2 || large < MATMUL_LARGE);
        let (columns, parts) = if args.small == 1 {
            let columns = args.n.div_ceil(MATMUL_TILE / 2);
            // Few tiles leave a device idle: their sums are shared out, each part of equal length.
            let steps = args.k.div_ceil(MATMUL_DEPTH);
            let parts = (MATMUL_BLOCKS / (rows * columns)).clamp(1, steps);
            (columns, steps.div_ceil(steps.div_ceil(parts)))
        } else {
            (args.n.div_ceil(MATMUL_TILE), 1)
        };
        // SAFETY: `matmul_*` takes MatmulArgs and looks at rows and columns; there are at most
        // MATMUL_BLOCKS tiles in parts, for which `MATMUL_SCRATCH` is room.
        unsafe { stream.launch(of(&self.matmul, dtype), [rows, columns, parts], 256, 0, &args) }
    }

    /// Norms of heads, if there are any, rotation, and the way into the cache. A block for each row, or a
    /// warp for each head of a row where heads have norms.
    pub fn rotate(&self, stream: &Stream, args: &RotateArgs, rows: usize) -> Result<()> {
        if args.q_norm.kind != Norm::NONE {
            let parts = if args.k == 0 { 1 } else { 2 };
            let heads = args.n_head + parts * args.kv.n_kv_head;
            let grid = [rows as u32, heads.div_ceil(4), 1];
            // SAFETY: `rotate_normed` takes RotateArgs and looks at the number of heads.
            return unsafe { stream.launch(self.rotate_normed, grid, 128, 0, args) };
        }
        // SAFETY: `rotate` takes RotateArgs, any number of rows.
        unsafe { stream.launch(self.rotate, [rows as u32, 1, 1], 128, 0, args) }
    }

    /// Attention of rows that have nothing to do with each other.
    pub fn attention(&self, stream: &Stream, args: &AttentionArgs) -> Result<()> {
        let grid = [args.kv.n_kv_head, args.splits, args.n_rows];
        // SAFETY: `attention` takes AttentionArgs; a block for each head, split and row.
        unsafe { stream.launch(self.attention, grid, 128, 0, args) }
    }

    /// Attention of consecutive rows of one session, for heads that [`Kernels::prefills`].
    pub fn prefill(&self, stream: &Stream, args: &AttentionArgs) -> Result<()> {
        let fits = |(most, _): &&(usize, Function)| args.kv.head_dim as usize <= *most;
        let Some((_, function)) = self.prefill.iter().find(fits) else {
            return self.attention(stream, args);
        };
        let grid = [args.n_rows.div_ceil(32), args.n_head, 1];
        // SAFETY: `prefill_*` takes AttentionArgs; any number of blocks for each head.
        unsafe { stream.launch(*function, grid, 128, 0, args) }
    }

    /// up = act(up), or act(gate) * up; or logits bent to stay within their cap.
    pub fn activate(&self, stream: &Stream, args: &ActivateArgs) -> Result<()> {
        // SAFETY: `activate` takes ActivateArgs; 256 columns a block, a row of blocks for each row.
        unsafe {
            stream.launch(self.activate, [args.width.div_ceil(256), args.rows, 1], 256, 0, args)
        }
    }

    /// Draws tokens. A block for each row.
    pub fn sample(&self, stream: &Stream, args: &SampleArgs) -> Result<()> {
        let threads = (args.vocab_size as usize).next_power_of_two().clamp(32, MOST_SORTED) as u32;
        // SAFETY: `sample` takes SampleArgs; any number of rows, and a thread for each candidate.
        unsafe { stream.launch(self.sample, [args.n_rows, 1, 1], threads, 0, args) }
    }

    /// Whether [`Kernels::sample`] can do what a sampler does: it sorts so many candidates and no more.
    pub fn can_draw(options: &DrawOptions, vocab_size: usize) -> bool {
        let top_k = options.top_k as usize;
        options.temperature == 0.0
            || (1..=MOST_SORTED).contains(&top_k)
            || vocab_size <= MOST_SORTED
    }
}
