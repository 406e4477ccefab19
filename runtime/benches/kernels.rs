//! The kernels of the CPU on one thread, without a model around them.
//!
//! `cargo bench -p teeny-runtime --bench kernels -- FILTER`
//!
//! | group | one iteration | rate |
//! |---|---|---|
//! | `matvec/NxWIDTH/SIZE` | copies of a matrix, at least this size together, by a vector; `read` only adds up as many bytes | bytes of weights |
//! | `matmul/NxWIDTH` | the same matrices by [`ROWS`] rows of activations | multiply-adds |
//! | `attention/HEAD_DIM` | one query for each of [`HEADS`] heads over [`POSITIONS`] positions | bytes of keys and values |
//! | `quantise/WIDTH` | a row of activations brought to 8 bits | numbers |
//!
//! Then follow the element type and the instruction set. `scalar` and `portable` run only if the filter
//! names them.

mod common;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use half::{bf16, f16};
use teeny_runtime::cpu::Isa;
use teeny_runtime::cpu::attention::{Bias, KvElement, Mixture, Page};
use teeny_runtime::cpu::blocks::{BlockScale, Quantised};
use teeny_runtime::cpu::columns::Columns;
use teeny_runtime::cpu::dispatch;
use teeny_runtime::cpu::products::{PANEL, Rows, Weight};
use teeny_runtime::cpu::scalar::LANES;
use teeny_runtime::kv_cache::PAGE;
use teeny_runtime::quant::q4::{self, Q4};
use teeny_runtime::quant::q8::{self, Q8};
use teeny_runtime::quant::{self, BLOCK, Blocks};
use teeny_runtime::{Dtype, KvDtype};

/// (n, width) of the matrices: of small models, and one of a model of 135M.
const SHAPES: [(usize, usize); 4] = [(256, 256), (704, 256), (256, 704), (1536, 576)];
/// Bytes of matrices that few second caches hold; about what a small model has.
const SMALL: usize = 4_000_000;
/// Bytes of matrices that no cache holds.
const LARGE: usize = 200_000_000;
/// Rows of activations in one pass of a prefill.
const ROWS: usize = 64;
/// Heads in all layers of a small model, each with keys and values of its own.
const HEADS: usize = 32;
const POSITIONS: usize = 256;

fn main() {
    let mut c = common::criterion(Duration::from_millis(300));
    for shape in SHAPES {
        matvec(&mut c, shape, SMALL);
    }
    matvec(&mut c, SHAPES[3], LARGE);
    SHAPES.into_iter().for_each(|shape| matmul(&mut c, shape));
    [32, 64].into_iter().for_each(|head_dim| attention(&mut c, head_dim));
    [256, 704].into_iter().for_each(|width| quantise(&mut c, width));
    c.final_summary();
}

/// Those that are worth the time. They are told by the command line, since a benchmark is not told its
/// filter.
fn isas() -> impl Iterator<Item = Isa> {
    let asked = |isa: &Isa| std::env::args().skip(1).any(|arg| arg.contains(isa.name()));
    Isa::available()
        .into_iter()
        .filter(move |isa| !["scalar", "portable"].contains(&isa.name()) || asked(isa))
}

/// Runs a kernel once over all its data. Made only when it is first run, which a filter may prevent.
type Pass = Box<dyn FnMut(Isa)>;

fn matvec(c: &mut Criterion, (n, width): (usize, usize), bytes: usize) {
    let mut group = c.benchmark_group(format!("matvec/{n}x{width}/{}MB", bytes / 1_000_000));
    group.throughput(Throughput::BytesDecimal(bytes as u64));
    group.bench_function("read", |b| {
        let words = Copies::new(&vec![1; bytes / size_of::<u64>()], 1);
        b.iter(|| black_box(&words).each().map(sum).sum::<u64>());
    });
    for dtype in Dtype::ALL {
        let copies = bytes.div_ceil(matrix_bytes(*dtype, n, width));
        group
            .throughput(Throughput::BytesDecimal((copies * matrix_bytes(*dtype, n, width)) as u64));
        let mut pass = None;
        for isa in isas() {
            group.bench_function(BenchmarkId::new(dtype.name(), isa.name()), |b| {
                let pass = pass.get_or_insert_with(|| product(*dtype, (n, width), copies, 1));
                b.iter(|| pass(isa));
            });
        }
    }
    group.finish();
}

fn matmul(c: &mut Criterion, (n, width): (usize, usize)) {
    let mut group = c.benchmark_group(format!("matmul/{n}x{width}"));
    group.sampling_mode(SamplingMode::Flat);
    for dtype in Dtype::ALL {
        let copies = SMALL.div_ceil(matrix_bytes(*dtype, n, width));
        group.throughput(Throughput::Elements((copies * n * width * ROWS) as u64));
        let mut pass = None;
        for isa in isas() {
            group.bench_function(BenchmarkId::new(dtype.name(), isa.name()), |b| {
                let pass = pass.get_or_insert_with(|| product(*dtype, (n, width), copies, ROWS));
                b.iter(|| pass(isa));
            });
        }
    }
    group.finish();
}

fn attention(c: &mut Criterion, head_dim: usize) {
    let mut group = c.benchmark_group(format!("attention/{head_dim}"));
    for dtype in KvDtype::ALL {
        let (element, scale) = match dtype {
            KvDtype::F32 => (size_of::<f32>(), 0),
            KvDtype::F16 => (size_of::<f16>(), 0),
            KvDtype::Q8 => (size_of::<i8>(), size_of::<bf16>()),
        };
        let bytes = HEADS * POSITIONS * 2 * (head_dim * element + scale);
        group.throughput(Throughput::BytesDecimal(bytes as u64));
        let mut pass = None;
        for isa in isas() {
            group.bench_function(BenchmarkId::new(dtype.name(), isa.name()), |b| {
                let pass = pass.get_or_insert_with(|| match dtype {
                    KvDtype::F32 => attend::<f32>(head_dim, |x| x),
                    KvDtype::F16 => attend::<f16>(head_dim, f16::from_f32),
                    KvDtype::Q8 => attend::<i8>(head_dim, |x| (x * 127.0) as i8),
                });
                b.iter(|| pass(isa));
            });
        }
    }
    group.finish();
}

fn quantise(c: &mut Criterion, width: usize) {
    let mut group = c.benchmark_group(format!("quantise/{width}"));
    group.throughput(Throughput::Elements(width as u64));
    let x: Vec<f32> = common::numbers().take(width).collect();
    let (mut q, mut scales) = empty_blocks(width.div_ceil(BLOCK));
    for isa in isas() {
        group.bench_function(isa.name(), |b| {
            b.iter(|| dispatch::quantise(isa, black_box(&mut q), &mut scales, black_box(&x)));
        });
    }
    group.finish();
}

/// Bytes of an (n, width) matrix, with its scales.
fn matrix_bytes(dtype: Dtype, n: usize, width: usize) -> usize {
    let blocks = Blocks::new(n, width).len();
    match dtype {
        Dtype::F32 => n * width * size_of::<f32>(),
        Dtype::F16 | Dtype::Bf16 => n * width * size_of::<f16>(),
        Dtype::Q8 => blocks * (q8::BYTES + quant::ROWS * size_of::<f16>()),
        Dtype::Q4 => blocks * (q4::BYTES + 2 * quant::ROWS * size_of::<f16>()),
    }
}

/// Copies of a matrix, each by as many rows of activations.
fn product(dtype: Dtype, shape: (usize, usize), copies: usize, rows: usize) -> Pass {
    match dtype {
        Dtype::F32 => float_product::<f32>(shape, copies, rows, |x| x),
        Dtype::F16 => float_product::<f16>(shape, copies, rows, f16::from_f32),
        Dtype::Bf16 => float_product::<bf16>(shape, copies, rows, bf16::from_f32),
        Dtype::Q8 | Dtype::Q4 => block_product(dtype, shape, copies, rows),
    }
}

fn float_product<E: Weight>(
    (n, width): (usize, usize),
    copies: usize,
    rows: usize,
    round: fn(f32) -> E,
) -> Pass {
    let w: Vec<E> = common::numbers().take(n * width).map(round).collect();
    let w = Copies::new(&w, copies);
    // Activations begin at a cache line too.
    let mut x = Copies::new(&common::numbers().take(rows * width).collect::<Vec<f32>>(), 1);
    let mut panel = Copies::new(&vec![0.0; PANEL * width], 1);
    let mut out = vec![0.0; rows * n];
    Box::new(move |isa| {
        let (x, panel) = (x.first(), panel.first());
        for w in w.each() {
            let (out, w) = (&mut Columns::all(&mut out, n), Rows { w, bias: None, width });
            dispatch::matmul(isa, out, false, x, rows, w, panel);
        }
        black_box(&mut out);
    })
}

fn block_product(dtype: Dtype, (n, width): (usize, usize), copies: usize, rows: usize) -> Pass {
    // Any bytes are weights, and all are multiplied alike.
    let Blocks { groups, blocks } = Blocks::new(n, width);
    let bytes = |len| common::numbers().map(|x| (x * 127.0) as i8).take(groups * blocks * len);
    let halves = |len| common::numbers().map(f16::from_f32).take(groups * blocks * len);
    let x: Vec<f32> = common::numbers().take(rows * width).collect();
    let (mut q, mut scales) = empty_blocks(rows * blocks);
    let places = q.chunks_mut(blocks).zip(scales.chunks_mut(blocks));
    for (x, (q, scales)) in x.chunks(width).zip(places) {
        dispatch::quantise(Isa::detect(), q, scales, x);
    }
    let mut out = vec![0.0; rows * n];
    if dtype == Dtype::Q4 {
        let w: Vec<u8> = bytes(q4::BYTES).map(|q| q as u8).collect();
        let w_scales: Vec<f16> = halves(2 * quant::ROWS).collect();
        let (w, w_scales) = (Copies::new(&w, copies), Copies::new(&w_scales, copies));
        Box::new(move |isa| {
            let x = Quantised { q: &q, scales: &scales, blocks };
            for (q, scales) in w.each().zip(w_scales.each()) {
                let (out, w) = (&mut Columns::all(&mut out, n), Q4 { q, scales, columns: width });
                dispatch::matmul_q4(isa, out, false, 0, x, rows, w, None);
            }
            black_box(&mut out);
        })
    } else {
        let (w, w_scales): (Vec<i8>, Vec<f16>) =
            (bytes(q8::BYTES).collect(), halves(quant::ROWS).collect());
        let (w, w_scales) = (Copies::new(&w, copies), Copies::new(&w_scales, copies));
        Box::new(move |isa| {
            let x = Quantised { q: &q, scales: &scales, blocks };
            for (q, scales) in w.each().zip(w_scales.each()) {
                let (out, w) = (&mut Columns::all(&mut out, n), Q8 { q, scales, columns: width });
                dispatch::matmul_q8(isa, out, false, 0, x, rows, w, None);
            }
            black_box(&mut out);
        })
    }
}

/// A query over the keys and values of each head, which lie page by page.
fn attend<E: KvElement>(head_dim: usize, round: fn(f32) -> E) -> Pass {
    let width = head_dim.next_multiple_of(LANES);
    let pages = HEADS * POSITIONS / PAGE;
    let stored = |len: usize| {
        Copies::new(&common::numbers().take(len).map(round).collect::<Vec<E>>(), pages)
    };
    let (k, v) = (stored(head_dim * PAGE), stored(width * PAGE));
    let page_scales = if E::SCALED { PAGE } else { 0 };
    let scales = vec![bf16::from_f32(1.0 / 127.0); 2 * pages * page_scales];
    let q: Vec<f32> = common::numbers().take(head_dim).collect();
    let (mut mix, mut out) = (vec![0.0; 2 * width], vec![0.0; head_dim]);
    Box::new(move |isa| {
        let mut pages = k.each().zip(v.each()).enumerate().map(|(page, (k, v))| {
            let scales = &scales[2 * page * page_scales..][..2 * page_scales];
            let (k_scales, v_scales) = scales.split_at(page_scales);
            Page { k, v, k_scales, v_scales }
        });
        for _ in 0..HEADS {
            let mut mixture = Mixture::new(&mut mix);
            for (first, page) in (0..POSITIONS).step_by(PAGE).zip(pages.by_ref()) {
                let distance = (POSITIONS - 1 - first) as i32;
                let bias = Bias { scale: 0.125, slope: 0.0, distance };
                dispatch::attend(isa, &mut mixture, &q, page, 0..PAGE, bias);
            }
            mixture.finish(black_box(&mut out));
        }
    })
}

/// Room for blocks of activations.
fn empty_blocks(n: usize) -> (Vec<[i8; BLOCK]>, Vec<BlockScale>) {
    (vec![[0; BLOCK]; n], vec![BlockScale::default(); n])
}

/// The same numbers again and again, each time elsewhere in memory, from the start of a cache line on as
/// in a file.
struct Copies<E> {
    all: Vec<E>,
    start: usize,
    len: usize,
}

impl<E: Copy> Copies<E> {
    fn new(one: &[E], n: usize) -> Copies<E> {
        const LINE: usize = 64;
        let mut all = Vec::<E>::with_capacity(LINE + n * one.len());
        let start = all.as_ptr().align_offset(LINE);
        all.resize(start, one[0]);
        (0..n).for_each(|_| all.extend_from_slice(one));
        Copies { all, start, len: one.len() }
    }

    fn first(&mut self) -> &mut [E] {
        &mut self.all[self.start..][..self.len]
    }

    fn each(&self) -> impl Iterator<Item = &[E]> {
        self.all[self.start..].chunks_exact(self.len)
    }
}

/// The least work per byte that reads all of them.
fn sum(words: &[u64]) -> u64 {
    #[inline(always)]
    fn body(words: &[u64]) -> u64 {
        let mut lanes = [0u64; 32];
        for words in words.chunks_exact(32) {
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane = lane.wrapping_add(*word);
            }
        }
        lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2(words: &[u64]) -> u64 {
            body(words)
        }
        if is_x86_feature_detected!("avx2") {
            #[allow(unsafe_code)]
            // SAFETY: the feature has just been detected.
            return unsafe { avx2(words) };
        }
    }
    body(words)
}
