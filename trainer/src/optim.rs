//! AdamW over the flat parameters, and the learning-rate schedule.
//!
//! libtorch's own optimizer is not used because tch cannot save its state, without which a training
//! run cannot be resumed.

use tch::{Kind, Tensor};

/// Keeps the denominator of an update away from zero; PyTorch's default.
const EPS: f64 = 1e-8;

/// AdamW (Loshchilov and Hutter, 2019) with PyTorch's conventions.
pub struct AdamW {
    /// Running mean of the gradient, `(n_params)`.
    pub m: Tensor,
    /// Running mean of the squared gradient, `(n_params)`.
    pub v: Tensor,
    /// Steps done.
    pub n_steps: u64,
    betas: [f64; 2],
    weight_decay: f64,
    n_decay: i64,
}

impl AdamW {
    /// An optimizer for `theta`, `(n_params)`, whose first `n_decay` elements are decayed.
    pub fn new(theta: &Tensor, n_decay: i64, betas: [f64; 2], weight_decay: f64) -> AdamW {
        let zeros = || Tensor::zeros(theta.size(), (Kind::Float, theta.device()));
        AdamW { m: zeros(), v: zeros(), n_steps: 0, betas, weight_decay, n_decay }
    }

    /// One update of `theta` with `grad`, both `(n_params)`, at learning rate `lr`.
    pub fn step(&mut self, theta: &Tensor, grad: &Tensor, lr: f64) {
        let [beta1, beta2] = self.betas;
        self.n_steps += 1;
        let t = self.n_steps as f64;
        let correction1 = 1.0 - beta1.powf(t);
        let correction2 = 1.0 - beta2.powf(t);
        tch::no_grad(|| {
            let mut theta = theta.detach();
            let mut decayed = theta.narrow(0, 0, self.n_decay);
            let _ = decayed.g_mul_scalar_(1.0 - lr * self.weight_decay);
            let _ = self.m.lerp_(grad, 1.0 - beta1);
            let _ = self.v.lerp_(&grad.square(), 1.0 - beta2);
            // theta -= lr/correction1 * m / (sqrt(v/correction2) + eps), with the constants moved
            // into the denominator because tch's addcdiv_ takes no factor.
            let mut denominator = self.v.sqrt();
            let _ = denominator.g_mul_scalar_(-correction1 / (lr * correction2.sqrt()));
            let _ = denominator.g_add_scalar_(-EPS * correction1 / lr);
            if lr > 0.0 {
                let _ = theta.addcdiv_(&self.m, &denominator);
            }
        });
    }
}

/// Learning rate of step `i` of `n`, counted from 0: half a cosine from `max` to `min`, as PyTorch's
/// `CosineAnnealingLR` with `T_max = n`.
pub fn cosine_lr(i: u64, n: u64, max: f64, min: f64) -> f64 {
    let phase = std::f64::consts::PI * i as f64 / n.max(1) as f64;
    min + (max - min) * (1.0 + phase.cos()) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: u64 = 20;

    /// Made with torch 2.11.0, one parameter group of weights (decay 0.1) and one of biases:
    /// `AdamW(groups, lr=1e-2, betas=(0.9, 0.95))` with
    /// `CosineAnnealingLR(opt, T_max=20, eta_min=1e-4)`, the gradient of step `t` (from 0) being
    /// `sin(arange(1, 7) * (t + 1)) + 0.1 * theta`.
    const EXPECTED: [f64; 6] = [0.4564725, -0.9900162, 1.9340595, 0.0117799, 0.1245989, -0.1082186];

    #[test]
    fn twenty_steps_agree_with_pytorch() {
        let theta = Tensor::from_slice(&[0.5f32, -1.0, 2.0, 0.0, 0.1, -0.2]);
        let mut optimizer = AdamW::new(&theta, 4, [0.9, 0.95], 0.1);
        for t in 0..N {
            let angle = Tensor::arange_start(1, 7, (Kind::Float, theta.device())) * (t + 1) as f64;
            let grad = angle.sin() + &theta * 0.1;
            optimizer.step(&theta, &grad, cosine_lr(t, N, 1e-2, 1e-4));
        }
        let found: Vec<f32> = Vec::try_from(&theta).expect("one dimension");
        for (found, expected) in found.iter().zip(EXPECTED) {
            assert!((f64::from(*found) - expected).abs() < 2e-6, "{found} and {expected}");
        }
    }

    #[test]
    fn the_schedule_is_that_of_cosine_annealing() {
        // `opt.param_groups[0]["lr"]` of the same run.
        for (i, expected) in [
            (0, 0.01),
            (1, 0.009939057285945933),
            (7, 0.00729725297371076),
            (19, 0.0001609427140540686),
        ] {
            assert!((cosine_lr(i, N, 1e-2, 1e-4) - expected).abs() < 1e-12);
        }
        assert_eq!(cosine_lr(N, N, 1e-2, 1e-4), 1e-4);
    }

    #[test]
    fn a_learning_rate_of_zero_changes_nothing() {
        let theta = Tensor::from_slice(&[0.5f32, -1.0]);
        let before = theta.copy();
        AdamW::new(&theta, 2, [0.9, 0.95], 0.1).step(&theta, &Tensor::ones_like(&theta), 0.0);
        assert_eq!(theta, before);
    }
}
