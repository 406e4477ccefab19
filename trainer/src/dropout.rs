//! Dropout that is cheap on the CPU.
//!
//! libtorch draws one float or one Bernoulli number an element there, one after the other, which
//! costs more than the matrix products of a small model. Four 16-bit numbers cut from each 64-bit
//! draw cost a fifth of it. On CUDA libtorch's own fused dropout is used.

use tch::{Kind, Tensor};

/// Numbers that a 16-bit draw can take; probabilities are rounded to this grid.
const DRAWS: f64 = 65536.0;

/// Zeroes each element with probability `p` and scales the others by `1/(1-p)`.
pub fn dropout(x: &Tensor, p: f64) -> Tensor {
    if p <= 0.0 {
        return x.shallow_clone();
    }
    if x.device().is_cuda() {
        return x.dropout(p, true);
    }
    let mut mask = keep_mask(&x.size(), p);
    let _ = mask.g_mul_scalar_(keep_scale(p));
    x * mask
}

/// Factor of the elements that stay, for a probability as [`keep_mask`] rounds it.
pub fn keep_scale(p: f64) -> f64 {
    DRAWS / (DRAWS - drop_count(p) as f64)
}

/// A CPU tensor of `shape` that is 0 with probability `p` and 1 otherwise, f32.
pub fn keep_mask(shape: &[i64], p: f64) -> Tensor {
    let len: i64 = shape.iter().product();
    let mut words = Tensor::empty([(len + 3) / 4], (Kind::Int64, tch::Device::Cpu));
    // With no upper bound and this lower one, all 64 bits are random.
    let _ = words.random_from_(i64::MIN, None);
    let draws = words.view_dtype(Kind::Int16).narrow(0, 0, len).view(shape);
    // Straight to f32: a tensor of booleans between would be one more pass over memory.
    let mask = Tensor::empty(shape, (Kind::Float, tch::Device::Cpu));
    draws.ge_scalar_out(&mask, i64::from(i16::MIN) + drop_count(p))
}

fn drop_count(p: f64) -> i64 {
    (p * DRAWS).round().min(DRAWS - 1.0) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_the_asked_share_and_keeps_the_mean() {
        tch::manual_seed(1);
        let x = Tensor::ones([1000, 1001], (Kind::Float, tch::Device::Cpu));
        let y = dropout(&x, 0.2);
        let dropped = y.eq(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
        assert!((dropped - 0.2).abs() < 0.002, "{dropped}");
        let mean = y.mean(Kind::Float).double_value(&[]);
        assert!((mean - 1.0).abs() < 0.003, "{mean}");
        assert_eq!(dropout(&x, 0.0), x);
    }

    #[test]
    fn neighbouring_masks_are_independent() {
        tch::manual_seed(2);
        // Correlation of an element with those 1, 4 and 256 places on, which share or do not share
        // a 64-bit draw.
        let mask = keep_mask(&[1 << 20], 0.5) - 0.5;
        for lag in [1, 2, 3, 4, 256] {
            let n = (1 << 20) - lag;
            let product = mask.narrow(0, 0, n) * mask.narrow(0, lag, n);
            let correlation = 4.0 * product.mean(Kind::Float).double_value(&[]);
            assert!(correlation.abs() < 0.005, "lag {lag}: {correlation}");
        }
    }
}
