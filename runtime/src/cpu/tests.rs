//! Every kernel on every instruction set of this machine against the specification, bit for bit, on sizes
//! that no register divides and on numbers that nobody wants.
//!
//! What the specification itself computes is compared with PyTorch in `tests/parity.rs`.

use half::{bf16, f16};
use proptest::prelude::*;

use super::attention::{self, Bias, KvElement, Mixture, Page};
use super::blocks::{BlockScale, Quantised};
use super::columns::Columns;
use super::products::{PANEL, Rows, Weight};
use super::scalar::LANES;
use super::{Isa, dispatch};
use crate::config::Ffn;
use crate::kv_cache::PAGE;
use crate::quant::q4::{self, Q4};
use crate::quant::q8::{self, Q8};
use crate::quant::{BLOCK, Blocks, ROWS};

/// Random numbers (SplitMix64); `hostile` mixes in infinities, NaN, zeros, huge and tiny ones.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn number(&mut self, hostile: bool) -> f32 {
        let plain = (self.next() >> 40) as f32 / 8_388_608.0 - 1.0;
        if !hostile {
            return plain;
        }
        match self.next() % 48 {
            0 => f32::NAN,
            1 => f32::INFINITY,
            2 => f32::NEG_INFINITY,
            3 => -0.0,
            4 => plain * f32::MIN_POSITIVE,
            5 => plain * 1e-30,
            6 => plain * 1e38,
            7 => f32::from_bits(self.next() as u32),
            _ => plain,
        }
    }

    fn numbers(&mut self, n: usize, hostile: bool) -> Vec<f32> {
        // Most vectors have none, or every sum would be NaN.
        let hostile = hostile && self.next().is_multiple_of(3);
        (0..n).map(|_| self.number(hostile)).collect()
    }
}

/// Equal bits; any NaN equals any other.
fn same(found: &[f32], expected: &[f32]) -> bool {
    found.len() == expected.len()
        && found
            .iter()
            .zip(expected)
            .all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
}

/// Runs a kernel for every instruction set from the same start and compares it with the specification.
fn compare(start: &[f32], run: impl Fn(Isa, &mut [f32])) -> std::result::Result<(), TestCaseError> {
    let mut expected = start.to_vec();
    run(Isa::SCALAR, &mut expected);
    for isa in Isa::available() {
        let mut found = start.to_vec();
        run(isa, &mut found);
        prop_assert!(same(&found, &expected), "{}: {found:?}, expected {expected:?}", isa.name());
    }
    Ok(())
}

/// Sizes of a product, and what else differs.
#[derive(Clone, Copy, Debug)]
struct Case {
    n: usize,
    width: usize,
    rows: usize,
    add: bool,
    bias: bool,
    hostile: bool,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let sizes = (1usize..70, 1usize..200, prop_oneof![Just(1usize), 1usize..20]);
    (sizes, any::<bool>(), any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |((n, width, rows), add, bias, hostile, seed)| Case {
            n,
            width,
            rows,
            add,
            bias,
            hostile,
            seed,
        },
    )
}

fn float_product<E: Weight>(
    case: Case,
    round: impl Fn(f32) -> E,
) -> std::result::Result<(), TestCaseError> {
    let Case { n, width, rows, add, bias, hostile, seed } = case;
    let mut random = Random(seed);
    let w: Vec<E> = random.numbers(n * width, hostile).into_iter().map(round).collect();
    let x = random.numbers(rows * width, hostile);
    let start = random.numbers(rows * n, false);
    let biases = random.numbers(n, false);
    compare(&start, |isa, out| {
        let map = Rows { w: &w, bias: bias.then_some(&biases[..]), width };
        let mut panel = vec![f32::NAN; PANEL * width];
        dispatch::matmul(isa, &mut Columns::all(out, n), add, &x, rows, map, &mut panel);
    })
}

/// Activations in blocks, made by the specification and by every instruction set alike.
fn quantised(x: &[f32], width: usize, isa: Isa) -> (Vec<[i8; BLOCK]>, Vec<BlockScale>) {
    let blocks = width.div_ceil(BLOCK);
    let rows = x.len() / width;
    let mut q = vec![[99; BLOCK]; rows * blocks];
    let mut scales = vec![BlockScale::default(); rows * blocks];
    let places = q.chunks_mut(blocks).zip(scales.chunks_mut(blocks));
    for ((q, scales), x) in places.zip(x.chunks(width)) {
        dispatch::quantise(isa, q, scales, x);
    }
    (q, scales)
}

fn block_product(case: Case, four_bits: bool) -> std::result::Result<(), TestCaseError> {
    let Case { n, width, rows, add, bias, hostile, seed } = case;
    let mut random = Random(seed);
    let w = random.numbers(n * width, false);
    let x = random.numbers(rows * width, hostile);
    let start = random.numbers(rows * n, false);
    let biases = random.numbers(n, false);
    let Blocks { groups, blocks } = Blocks::new(n, width);
    let mut q8 = vec![0i8; groups * blocks * q8::BYTES];
    let mut q4 = vec![0u8; groups * blocks * q4::BYTES];
    let mut scales8 = vec![f16::ZERO; groups * blocks * ROWS];
    let mut scales4 = vec![f16::ZERO; groups * blocks * 2 * ROWS];
    for (i, row) in w.chunks(width).enumerate() {
        let (group, lane) = (i / ROWS * blocks, i % ROWS);
        q8::write_row(row, lane, &mut q8[group * q8::BYTES..][..blocks * q8::BYTES], {
            &mut scales8[group * ROWS..][..blocks * ROWS]
        });
        q4::write_row(row, lane, &mut q4[group * q4::BYTES..][..blocks * q4::BYTES], {
            &mut scales4[group * 2 * ROWS..][..blocks * 2 * ROWS]
        });
    }
    // A file may have any bytes: -128 too.
    for q in q8.iter_mut().step_by(37) {
        *q = random.next() as i8;
    }
    let (q, scales) = quantised(&x, width, Isa::SCALAR);
    for isa in Isa::available() {
        let (other_q, other_scales) = quantised(&x, width, isa);
        prop_assert_eq!(&q, &other_q, "{}", isa.name());
        for (a, b) in scales.iter().zip(&other_scales) {
            prop_assert!(same(&[a.scale], &[b.scale]) && a.sum == b.sum, "{}", isa.name());
        }
    }
    // All rows, and those from the second group on, as another thread has them.
    for first in [0, ROWS].into_iter().filter(|first| *first < n) {
        compare(&start, |isa, out| {
            let bias = bias.then_some(&biases[first..]);
            let x = Quantised { q: &q, scales: &scales, blocks };
            let all = Columns::all(out, n);
            #[allow(unsafe_code)]
            // SAFETY: `all` is not used beside it.
            let mut out = unsafe { all.part(first..n) };
            if four_bits {
                let w = Q4 { q: &q4, scales: &scales4, columns: width };
                dispatch::matmul_q4(isa, &mut out, add, first, x, rows, w, bias);
            } else {
                let w = Q8 { q: &q8, scales: &scales8, columns: width };
                dispatch::matmul_q8(isa, &mut out, add, first, x, rows, w, bias);
            }
        })?;
    }
    Ok(())
}

/// A query over two pages, of which it sees all from a slot of the first to a slot of the second.
fn attention_over_pages<E: KvElement>(
    (head_dim, from, to): (usize, usize, usize),
    (slope, hostile, seed): (f32, bool, u64),
    round: impl Fn(f32) -> E,
) -> std::result::Result<(), TestCaseError> {
    let mut random = Random(seed);
    let width = head_dim.next_multiple_of(LANES);
    let mut stored = |n| random.numbers(n, hostile).into_iter().map(&round).collect::<Vec<E>>();
    let pages: Vec<(Vec<E>, Vec<E>)> =
        (0..2).map(|_| (stored(head_dim * PAGE), stored(width * PAGE))).collect();
    let q = random.numbers(head_dim, hostile);
    let scales: Vec<bf16> = random.numbers(PAGE, false).into_iter().map(bf16::from_f32).collect();
    let scales = if E::SCALED { &scales[..] } else { &[] };
    compare(&vec![0.0; head_dim], |isa, out| {
        let mut mix = vec![f32::NAN; 2 * width];
        let mut mixture = Mixture::new(&mut mix);
        for (i, ((k, v), slots)) in pages.iter().zip([from..PAGE, 0..to]).enumerate() {
            let distance = ((1 - i) * PAGE + to - 1) as i32;
            let page = Page { k, v, k_scales: scales, v_scales: scales };
            let bias = Bias { scale: 0.25, slope, distance };
            dispatch::attend(isa, &mut mixture, &q, page, slots, bias);
        }
        mixture.finish(out);
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn float_products_are_those_of_the_specification(case in case()) {
        float_product(case, |w| w)?;
        float_product(case, f16::from_f32)?;
        float_product(case, bf16::from_f32)?;
    }

    #[test]
    fn block_products_are_those_of_the_specification(case in case()) {
        block_product(case, false)?;
        block_product(case, true)?;
    }

    #[test]
    fn attention_is_that_of_the_specification(
        sizes in (1usize..140, 0usize..PAGE, 1usize..=PAGE),
        numbers in (prop_oneof![Just(0.0f32), Just(0.5f32)], any::<bool>(), any::<u64>()),
    ) {
        attention_over_pages(sizes, numbers, |x| x)?;
        attention_over_pages(sizes, numbers, f16::from_f32)?;
        attention_over_pages(sizes, numbers, |x| (x * 127.0) as i8)?;
    }

    #[test]
    fn loops_over_numbers_are_those_of_the_specification(
        n in 1usize..150,
        hostile in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut random = Random(seed);
        let (x, y) = (random.numbers(2 * n, hostile), random.numbers(2 * n, hostile));
        compare(&x, |isa, out| dispatch::norm(isa, out, &x, &y, Some(&y), 1e-5, true))?;
        compare(&x, |isa, out| dispatch::norm(isa, out, &x, &y, None, 1e-5, false))?;
        compare(&x, |isa, out| dispatch::norm_in_place(isa, out, &y, 1e-5))?;
        compare(&x, |isa, out| dispatch::rotate(isa, out, &y))?;
        compare(&x, |isa, out| dispatch::softcap(isa, out, 15.0))?;
        for ffn in Ffn::ALL {
            compare(&x, |isa, out| dispatch::activate(isa, out, &y, *ffn))?;
        }
    }
}

/// The fast products, which round activations to bf16, against exact ones of the rounded numbers.
#[test]
fn fast_products_are_close() {
    let isa = Isa::detect();
    if !dispatch::has_fast(isa) {
        println!("SKIPPED: no bf16 instructions here");
        return;
    }
    let mut random = Random(3);
    for (n, width, rows) in [(1, 1, 1), (5, 33, 1), (19, 100, 5), (64, 256, 9), (3, 31, 4)] {
        let w: Vec<bf16> =
            random.numbers(n * width, false).into_iter().map(bf16::from_f32).collect();
        let x = random.numbers(rows * width, false);
        let mut found = vec![1.0; rows * n];
        let map = Rows { w: &w, bias: None, width };
        assert!(dispatch::matmul_fast(isa, &mut Columns::all(&mut found, n), true, &x, rows, map));
        for t in 0..rows {
            for i in 0..n {
                let product = |k: usize| {
                    w[i * width + k].to_f64() * bf16::from_f32(x[t * width + k]).to_f64()
                };
                let exact: f64 = (0..width).map(product).sum();
                let error = (f64::from(found[t * n + i]) - 1.0 - exact).abs();
                assert!(error < 1e-5 * width as f64, "{n} x {width}, row {t}, column {i}: {error}");
            }
        }
    }
}

/// The sums of the specification, against f64.
#[test]
fn products_are_close_to_exact_ones() {
    let mut random = Random(1);
    for width in [1, 17, 256, 1000] {
        let (w, x) = (random.numbers(width, false), random.numbers(width, false));
        let exact: f64 = w.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
        let bound: f64 = w.iter().zip(&x).map(|(w, x)| f64::from(w * x).abs()).sum::<f64>() * 1e-6;
        let found = f64::from(super::scalar::dot(&w, &x));
        assert!((found - exact).abs() <= bound, "{width}: {found}, exactly {exact}");
    }
}

/// Attention of the specification, against f64 and its definition.
#[test]
fn attention_is_close_to_its_definition() {
    let mut random = Random(2);
    let (head_dim, width, n) = (20, 32, 40);
    let (k, v) = (random.numbers(n * head_dim, false), random.numbers(n * head_dim, false));
    let q = random.numbers(head_dim, false);
    let (mut k_page, mut v_page) = (vec![0.0; head_dim * PAGE], vec![0.0; width * PAGE]);
    for i in 0..n {
        for d in 0..head_dim {
            k_page[d * PAGE + i] = k[i * head_dim + d];
            v_page[i * width + d] = v[i * head_dim + d];
        }
    }
    let (scale, slope, distance) = (0.3f32, 0.1f32, 39);
    let mut mix = vec![0.0; 2 * width];
    let mut mixture = Mixture::new(&mut mix);
    let page = Page { k: &k_page, v: &v_page, k_scales: &[], v_scales: &[] };
    attention::scalar(&mut mixture, &q, page, 0..n, Bias { scale, slope, distance });
    let mut found = vec![0.0; head_dim];
    mixture.finish(&mut found);
    let weight = |i: usize| {
        let product: f64 =
            (0..head_dim).map(|d| f64::from(q[d]) * f64::from(k[i * head_dim + d])).sum();
        (product * f64::from(scale) - f64::from(slope) * (39 - i) as f64).exp()
    };
    let total: f64 = (0..n).map(weight).sum();
    for d in 0..head_dim {
        let exact: f64 =
            (0..n).map(|i| weight(i) * f64::from(v[i * head_dim + d])).sum::<f64>() / total;
        assert!((f64::from(found[d]) - exact).abs() < 1e-6, "{d}: {}, exactly {exact}", found[d]);
    }
}
