//! Attention of one query over one page of keys and values at a time, with online softmax
//! (arXiv:1805.02867): what belongs to a page is multiplied with it while it is near, and only a maximum, a
//! sum and the mixture so far go on to the next.
//!
//! Keys are stored by columns, so that a lane is a position and no sum crosses a vector; values are stored
//! by rows, so that a lane is a column of the result.

use std::ops::Range;

use half::{bf16, f16};

use super::scalar::{LANES, biased, exp, sum_lanes};
use super::simd::Simd;
use crate::kv_cache::PAGE;

/// A stored key or value.
pub trait KvElement: Copy + Send + Sync + 'static {
    /// Whether each position has a scale of its own.
    const SCALED: bool;
    /// Its value, without the scale.
    fn to_f32(self) -> f32;
    /// [`LANES`] of them.
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F;
}

impl KvElement for f32 {
    const SCALED: bool = false;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32; LANES]) -> S::F {
        s.load(from)
    }
}

impl KvElement for f16 {
    const SCALED: bool = false;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        super::scalar::Element::to_f32(self)
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f16; LANES]) -> S::F {
        s.load_f16(from)
    }
}

impl KvElement for i8 {
    const SCALED: bool = true;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from(self)
    }

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[i8; LANES]) -> S::F {
        s.load_i8(from)
    }
}

/// Keys and values of one head for the positions of one page.
#[derive(Clone, Copy)]
pub struct Page<'a, E> {
    /// (head_dim, PAGE)
    pub k: &'a [E],
    /// (PAGE, width), where width is head_dim up to a multiple of [`LANES`].
    pub v: &'a [E],
    /// Scale of each position's key, or nothing.
    pub k_scales: &'a [bf16],
    /// Scale of each position's value, or nothing.
    pub v_scales: &'a [bf16],
}

/// What a query makes of the product with a key.
#[derive(Clone, Copy)]
pub struct Bias {
    /// Its factor.
    pub scale: f32,
    /// Is taken off for each position between key and query (ALiBi); 0 without.
    pub slope: f32,
    /// Positions from the page's first slot to the query.
    pub distance: i32,
}

/// A query's way over the pages.
pub struct Mixture<'a> {
    /// The largest score.
    max: f32,
    /// Σ e^(score - max), in lanes: slot i of a page goes to lane i.
    sum: [f32; LANES],
    /// Σ e^(score - max) v, even slots and odd slots apart. (2, width)
    mix: &'a mut [f32],
}

impl<'a> Mixture<'a> {
    /// Over no positions yet. `mix`: (2, width)
    #[inline(always)]
    pub fn new(mix: &'a mut [f32]) -> Mixture<'a> {
        mix.fill(0.0);
        Mixture { max: f32::NEG_INFINITY, sum: [0.0; LANES], mix }
    }

    /// The mixture of the values. `out`: (head_dim)
    #[inline(always)]
    pub fn finish(self, out: &mut [f32]) {
        let scale = 1.0 / sum_lanes(self.sum);
        let (even, odd) = self.mix.split_at(self.mix.len() / 2);
        for ((out, even), odd) in out.iter_mut().zip(even).zip(odd) {
            *out = (even + odd) * scale;
        }
    }

    /// Turns a page's scores into weights and brings what was there to the new maximum.
    #[inline(always)]
    fn weigh(&mut self, scores: &mut [f32; PAGE], slots: Range<usize>) {
        // Loops over whole vectors, so that a compiler makes vectors of them.
        scores[..slots.start].fill(f32::NEG_INFINITY);
        scores[slots.end..].fill(f32::NEG_INFINITY);
        let mut largest = [f32::NEG_INFINITY; LANES];
        for scores in scores.as_chunks::<LANES>().0 {
            for (largest, score) in largest.iter_mut().zip(scores) {
                *largest = if *score > *largest { *score } else { *largest };
            }
        }
        let max = largest.iter().fold(self.max, |max, x| if *x > max { *x } else { max });
        if max > self.max {
            let scale = exp(self.max - max);
            self.sum.iter_mut().for_each(|sum| *sum *= scale);
            self.mix.iter_mut().for_each(|mix| *mix *= scale);
            self.max = max;
        }
        for score in scores.iter_mut() {
            *score = exp(*score - max);
        }
        scores[..slots.start].fill(0.0);
        scores[slots.end..].fill(0.0);
        for scores in scores.as_chunks::<LANES>().0 {
            for (sum, score) in self.sum.iter_mut().zip(scores) {
                *sum += score;
            }
        }
    }
}

/// The specification: the positions in `slots` of a page, one number at a time.
pub fn scalar<E: KvElement>(
    mixture: &mut Mixture<'_>,
    q: &[f32],
    page: Page<'_, E>,
    slots: Range<usize>,
    bias: Bias,
) {
    let mut scores = [0.0; PAGE];
    for slot in slots.clone() {
        let keys = page.k.chunks_exact(PAGE);
        let mut score =
            q.iter().zip(keys).fold(0.0, |sum, (q, k)| k[slot].to_f32().mul_add(*q, sum));
        if E::SCALED {
            score *= page.k_scales[slot].to_f32();
        }
        scores[slot] = biased(score, bias.scale, bias.slope, bias.distance - slot as i32);
    }
    mixture.weigh(&mut scores, slots.clone());
    let width = page.v.len() / PAGE;
    for slot in slots {
        let weight =
            if E::SCALED { scores[slot] * page.v_scales[slot].to_f32() } else { scores[slot] };
        let mix = &mut mixture.mix[slot % 2 * width..][..width];
        for (mix, v) in mix.iter_mut().zip(&page.v[slot * width..]) {
            *mix = v.to_f32().mul_add(weight, *mix);
        }
    }
}

/// The same for an instruction set.
#[inline(always)]
pub fn page<S: Simd, E: KvElement>(
    s: S,
    mixture: &mut Mixture<'_>,
    q: &[f32],
    page: Page<'_, E>,
    slots: Range<usize>,
    bias: Bias,
) {
    const TILES: usize = PAGE / LANES;
    let mut scores = [0.0; PAGE];
    // All four quarters, unless the positions are few.
    if slots.end <= LANES {
        score::<S, E, 1>(s, &mut scores, q, page.k);
    } else if slots.end <= 2 * LANES {
        score::<S, E, 2>(s, &mut scores, q, page.k);
    } else {
        score::<S, E, TILES>(s, &mut scores, q, page.k);
    }
    if E::SCALED {
        for (score, scale) in scores.iter_mut().zip(page.k_scales) {
            *score *= super::scalar::Element::to_f32(*scale);
        }
    }
    for (slot, score) in (0..).zip(scores.iter_mut()) {
        *score = biased(*score, bias.scale, bias.slope, bias.distance - slot);
    }
    mixture.weigh(&mut scores, slots.clone());
    if E::SCALED {
        for (weight, scale) in scores.iter_mut().zip(page.v_scales) {
            *weight *= super::scalar::Element::to_f32(*scale);
        }
    }
    let width = page.v.len() / PAGE;
    let mut column = 0;
    while column + 2 * LANES <= width {
        mix::<S, E, 2>(s, mixture.mix, &scores, page.v, width, slots.clone(), column);
        column += 2 * LANES;
    }
    if column < width {
        mix::<S, E, 1>(s, mixture.mix, &scores, page.v, width, slots, column);
    }
}

/// Products of the query with the keys of the first N quarters of a page.
#[inline(always)]
fn score<S: Simd, E: KvElement, const N: usize>(
    s: S,
    scores: &mut [f32; PAGE],
    q: &[f32],
    k: &[E],
) {
    let mut sums = [s.splat(0.0); N];
    let (k, _) = k.as_chunks::<PAGE>();
    for (q, k) in q.iter().zip(k) {
        let (q, k) = (s.splat(*q), k.as_chunks::<LANES>().0);
        for i in 0..N {
            sums[i] = s.mul_add(E::load(s, &k[i]), q, sums[i]);
        }
    }
    for (sums, scores) in sums.into_iter().zip(scores.as_chunks_mut::<LANES>().0) {
        s.store(sums, scores);
    }
}

/// Adds the weighted values to N times [`LANES`] columns of the mixture.
#[inline(always)]
fn mix<S: Simd, E: KvElement, const N: usize>(
    s: S,
    mix: &mut [f32],
    weights: &[f32; PAGE],
    v: &[E],
    width: usize,
    slots: Range<usize>,
    column: usize,
) {
    let (even, odd) = mix.split_at_mut(width);
    let even = &mut even[column..].as_chunks_mut::<LANES>().0[..N];
    let odd = &mut odd[column..].as_chunks_mut::<LANES>().0[..N];
    let mut sums = [[s.splat(0.0); N]; 2];
    for i in 0..N {
        sums[0][i] = s.load(&even[i]);
        sums[1][i] = s.load(&odd[i]);
    }
    let v = &v[column..];
    let mut slot = slots.start;
    if slot % 2 == 1 && slot < slots.end {
        sums[1] = add(s, sums[1], weights[slot], &v[slot * width..]);
        slot += 1;
    }
    while slot + 2 <= slots.end {
        sums[0] = add(s, sums[0], weights[slot], &v[slot * width..]);
        sums[1] = add(s, sums[1], weights[slot + 1], &v[(slot + 1) * width..]);
        slot += 2;
    }
    if slot < slots.end {
        sums[0] = add(s, sums[0], weights[slot], &v[slot * width..]);
    }
    for i in 0..N {
        s.store(sums[0][i], &mut even[i]);
        s.store(sums[1][i], &mut odd[i]);
    }
}

/// Adds a weighted value.
#[inline(always)]
fn add<S: Simd, E: KvElement, const N: usize>(
    s: S,
    mut sums: [S::F; N],
    weight: f32,
    v: &[E],
) -> [S::F; N] {
    let (weight, v) = (s.splat(weight), &v.as_chunks::<LANES>().0[..N]);
    for i in 0..N {
        sums[i] = s.mul_add(E::load(s, &v[i]), weight, sums[i]);
    }
    sums
}
