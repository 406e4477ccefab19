//! The kernels of [`scalar`](super::scalar) in plain Rust that a compiler turns into SIMD.
//!
//! Every function is `inline(always)` so that [`dispatch`](super::dispatch) can compile it once for
//! each instruction set. Sums keep the lanes of the specification; blocks of R weight rows by T
//! activation rows only change which independent sums run side by side.

use super::scalar::{Element, LANES, biased, sum_lanes};

/// Dot products of R weight rows with T activation rows, all of one length. Result: (T, R)
#[inline(always)]
fn dots<E: Element, const R: usize, const T: usize>(w: [&[E]; R], x: [&[f32]; T]) -> [[f32; R]; T] {
    let len = x[0].len();
    let w = w.map(|w| &w[..len]);
    let x = x.map(|x| &x[..len]);
    let mut lanes = [[[0.0f32; LANES]; R]; T];
    let whole = len - len % LANES;
    let mut i = 0;
    while i < whole {
        for r in 0..R {
            let w = load(&w[r][i..i + LANES]);
            for t in 0..T {
                let x = load(&x[t][i..i + LANES]);
                for lane in 0..LANES {
                    lanes[t][r][lane] = w[lane].mul_add(x[lane], lanes[t][r][lane]);
                }
            }
        }
        i += LANES;
    }
    for r in 0..R {
        for t in 0..T {
            for lane in 0..len - whole {
                let (w, x) = (w[r][whole + lane].to_f32(), x[t][whole + lane]);
                lanes[t][r][lane] = w.mul_add(x, lanes[t][r][lane]);
            }
        }
    }
    lanes.map(|rows| rows.map(sum_lanes))
}

#[inline(always)]
fn load<E: Element>(from: &[E]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    for (lane, from) in lanes.iter_mut().zip(from) {
        *lane = from.to_f32();
    }
    lanes
}

/// As [`scalar::matmul`](super::scalar::matmul), in blocks of R by T.
#[inline(always)]
pub fn matmul<E: Element, const R: usize, const T: usize>(
    out: &mut [f32],
    x: &[f32],
    w: &[E],
    bias: Option<&[f32]>,
    rows: usize,
) {
    let width = x.len() / rows;
    let n = out.len() / rows;
    let mut first = 0;
    while first + R <= n {
        block::<E, R, T>(out, x, w, bias, [rows, width, n], first);
        first += R;
    }
    while first < n {
        block::<E, 1, T>(out, x, w, bias, [rows, width, n], first);
        first += 1;
    }
}

/// Columns `first` to `first + R` of the output, for all rows.
#[inline(always)]
fn block<E: Element, const R: usize, const T: usize>(
    out: &mut [f32],
    x: &[f32],
    w: &[E],
    bias: Option<&[f32]>,
    [rows, width, n]: [usize; 3],
    first: usize,
) {
    let w: [&[E]; R] = std::array::from_fn(|r| &w[(first + r) * width..][..width]);
    let bias: [f32; R] = std::array::from_fn(|r| bias.map_or(0.0, |bias| bias[first + r]));
    let mut t = 0;
    while t + T <= rows {
        let x: [&[f32]; T] = std::array::from_fn(|i| &x[(t + i) * width..][..width]);
        let products = dots(w, x);
        for i in 0..T {
            store(&mut out[(t + i) * n + first..][..R], products[i], bias);
        }
        t += T;
    }
    while t < rows {
        let products = dots(w, [&x[t * width..][..width]]);
        store(&mut out[t * n + first..][..R], products[0], bias);
        t += 1;
    }
}

#[inline(always)]
fn store<const R: usize>(out: &mut [f32], products: [f32; R], bias: [f32; R]) {
    for ((out, product), bias) in out.iter_mut().zip(products).zip(bias) {
        *out = product + bias;
    }
}

/// As [`scalar::score`](super::scalar::score), four keys at a time.
#[inline(always)]
pub fn score(scores: &mut [f32], q: &[f32], k: &[f32], scale: f32, slope: f32, distance: usize) {
    const R: usize = 4;
    let width = q.len();
    let n = scores.len();
    let mut i = 0;
    while i + R <= n {
        let k: [&[f32]; R] = std::array::from_fn(|r| &k[(i + r) * width..][..width]);
        let products = dots(k, [q])[0];
        for (r, product) in products.into_iter().enumerate() {
            scores[i + r] = biased(product, scale, slope, distance - i - r);
        }
        i += R;
    }
    while i < n {
        let product = dots([&k[i * width..][..width]], [q])[0][0];
        scores[i] = biased(product, scale, slope, distance - i);
        i += 1;
    }
}
