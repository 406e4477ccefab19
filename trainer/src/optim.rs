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
