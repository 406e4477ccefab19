//! AdamW and Muon over the flat parameters, with clipping and an average of the weights.
//!
//! libtorch's own optimizers are not used: tch can neither save their state, without which a run cannot
//! be resumed, nor fuse them. Here a step is about a dozen operations on flat tensors. What changes from
//! step to step is read from a tensor on the device, so that a CUDA graph can hold the whole step; and a
//! gradient that is not finite changes nothing, without the host having to look.

use tch::{Kind, Tensor};

use crate::muon::Orthogonalizer;
use crate::params::Params;
use crate::schedule::LearningRate;

/// Keeps the denominator of AdamW's update away from zero; PyTorch's default.
const EPS: f64 = 1e-8;
/// Keeps the divisor of clipping away from zero; PyTorch's.
const CLIP_EPS: f64 = 1e-6;
/// Muon's momentum at first, at last, and the steps between.
const MOMENTUM: [f64; 2] = [0.85, 0.95];
const MOMENTUM_ITERS: f64 = 300.0;

/// How the parameters follow their gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptimizerKind {
    /// AdamW (Loshchilov and Hutter, 2019) with PyTorch's conventions.
    AdamW,
    /// Muon for the matrices of the layers, AdamW for everything else. See [`Orthogonalizer`].
    Muon,
}

impl OptimizerKind {
    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            OptimizerKind::AdamW => "adamw",
            OptimizerKind::Muon => "muon",
        }
    }

    /// Every spelling that a configuration may use.
    pub const SPELLINGS: &[(&str, OptimizerKind)] =
        &[("adamw", OptimizerKind::AdamW), ("muon", OptimizerKind::Muon)];
}

/// Everything that says how parameters are updated.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimConfig {
    /// Which optimizer.
    pub kind: OptimizerKind,
    /// AdamW's learning rate.
    pub lr: LearningRate,
    /// Muon's largest learning rate, which changes in the ratio of AdamW's.
    pub muon_lr: f64,
    /// Decay rates of AdamW's two running means.
    pub betas: [f64; 2],
    /// Share by which matrices shrink in a step, times the learning rate of their optimizer.
    pub weight_decay: f64,
    /// Longest gradient; longer ones are shortened to it. 0: no limit.
    pub grad_clip: f64,
    /// Weight of the past in the average of the parameters. 0: no average.
    pub ema: f64,
    /// What Muon computes in.
    pub muon_kind: Kind,
}

/// Numbers of a step, in the order in which [`Optimizer::scalars`] gives them.
#[derive(Clone, Copy)]
enum Scalar {
    /// Share by which AdamW's matrices shrink.
    AdamDecay,
    /// AdamW's learning rate divided by the first mean's correction.
    AdamRate,
    /// One over the root of the second mean's correction.
    SecondCorrection,
    /// Share by which Muon's matrices shrink.
    MuonDecay,
    /// Muon's learning rate.
    MuonRate,
    /// Muon's momentum.
    Momentum,
}

/// How many numbers a step has.
pub const N_SCALARS: usize = 6;

/// An optimizer with its state.
pub struct Optimizer {
    config: OptimConfig,
    /// Running mean of the gradient, `(n_params)`; for Muon's matrices the momentum.
    pub m: Tensor,
    /// Running mean of the squared gradient of what AdamW updates, `(n_params - n_muon)`.
    pub v: Tensor,
    /// Average of the parameters, `(n_params)`, if there is to be one.
    pub ema: Option<Tensor>,
    /// Parameters at the head that Muon updates.
    n_muon: i64,
    orthogonalizer: Option<Orthogonalizer>,
}

impl Optimizer {
    /// An optimizer that has not done a step. The average begins at the present parameters.
    pub fn new(params: &Params, config: &OptimConfig) -> Optimizer {
        let (n_muon, orthogonalizer) = match config.kind {
            OptimizerKind::AdamW => (0, None),
            OptimizerKind::Muon => {
                (params.n_matrix(), Some(Orthogonalizer::new(params, config.muon_kind)))
            }
        };
        let n = params.len() as i64;
        let zeros = |n: i64| Tensor::zeros([n], (Kind::Float, params.theta.device()));
        Optimizer {
            config: config.clone(),
            m: zeros(n),
            v: zeros(n - n_muon),
            ema: (config.ema > 0.0).then(|| params.theta.detach().copy()),
            n_muon,
            orthogonalizer,
        }
    }

    /// How parameters are updated.
    pub fn config(&self) -> &OptimConfig {
        &self.config
    }

    /// Parameters at the head of the flat tensor that have no second mean.
    pub fn n_muon(&self) -> i64 {
        self.n_muon
    }

    /// The numbers of step `i`, counted from 0, whose learning rates are `lr_scale` times those of the
    /// schedule.
    pub fn scalars(&self, i: u64, lr_scale: f64) -> [f32; N_SCALARS] {
        let lr = self.config.lr;
        let share = if lr.max > 0.0 { lr.at(i) / lr.max } else { 0.0 };
        self.scalars_at(i, share, lr_scale)
    }

    /// As [`scalars`](Self::scalars), but `share` of the largest learning rates instead of what the
    /// schedule says.
    pub fn scalars_at(&self, i: u64, share: f64, lr_scale: f64) -> [f32; N_SCALARS] {
        let c = &self.config;
        let [beta1, beta2] = c.betas;
        let t = (i + 1) as f64;
        let lr = c.lr.max * share * lr_scale;
        let muon_lr = c.muon_lr * share * lr_scale;
        let momentum =
            MOMENTUM[0] + (MOMENTUM[1] - MOMENTUM[0]) * (i as f64 / MOMENTUM_ITERS).min(1.0);
        let mut scalars = [0.0; N_SCALARS];
        for (scalar, value) in [
            (Scalar::AdamDecay, lr * c.weight_decay),
            (Scalar::AdamRate, lr / (1.0 - beta1.powf(t))),
            (Scalar::SecondCorrection, 1.0 / (1.0 - beta2.powf(t)).sqrt()),
            (Scalar::MuonDecay, muon_lr * c.weight_decay),
            (Scalar::MuonRate, muon_lr),
            (Scalar::Momentum, momentum),
        ] {
            scalars[scalar as usize] = value as f32;
        }
        scalars
    }

    /// One update of `params` with `grad`, `(n_params)`. `scalars`: those of the step, `(N_SCALARS)` f32
    /// on the device. Returns the length of the gradient, `()` f32: if it is not finite, nothing has
    /// changed.
    pub fn update(&mut self, params: &Params, grad: &Tensor, scalars: &Tensor) -> Tensor {
        tch::no_grad(|| self.update_without_graph(params, grad, scalars))
    }

    fn update_without_graph(&mut self, params: &Params, grad: &Tensor, scalars: &Tensor) -> Tensor {
        let norm = grad.norm();
        let is_finite = norm.isfinite();
        let mut grad = grad.shallow_clone();
        if grad.device().is_cuda() {
            let zero = Tensor::zeros([], (Kind::Float, grad.device()));
            grad = grad.where_self(&is_finite, &zero);
        } else if is_finite.int64_value(&[]) == 0 {
            return norm;
        }
        // Factor of everything that changes: 1, or 0 for a gradient that is not finite.
        let factor = is_finite.to_kind(Kind::Float);
        if self.config.grad_clip > 0.0 {
            let shortened = (self.config.grad_clip / (&norm + CLIP_EPS)).clamp_max(1.0);
            // Into a tensor of its own: the caller keeps the gradient as it was.
            grad = &grad * shortened.nan_to_num(0.0, 0.0, 0.0);
        }
        let scalar = |which: Scalar| scalars.get(which as i64) * &factor;

        let n_adam = params.len() as i64 - self.n_muon;
        let n_decay = params.n_decay() - self.n_muon;
        let theta = params.theta.detach();
        if let Some(orthogonalizer) = &self.orthogonalizer {
            let grad = grad.narrow(0, 0, self.n_muon);
            let mut theta = theta.narrow(0, 0, self.n_muon);
            let mut mean = self.m.narrow(0, 0, self.n_muon);
            let momentum = scalars.get(Scalar::Momentum as i64);
            let _ = mean.lerp_tensor_(&grad, &((1.0 - &momentum) * &factor));
            let direction = grad.lerp_tensor(&mean, &momentum); // Nesterov's
            orthogonalizer.apply(&direction);
            let _ = theta.g_mul_(&(1.0 - scalar(Scalar::MuonDecay)));
            let _ = theta.addcmul_(&direction, &-scalar(Scalar::MuonRate));
        }
        {
            let [beta1, beta2] = self.config.betas;
            let grad = grad.narrow(0, self.n_muon, n_adam);
            let mut theta = theta.narrow(0, self.n_muon, n_adam);
            let mut mean = self.m.narrow(0, self.n_muon, n_adam);
            let _ = mean.lerp_tensor_(&grad, &(&factor * (1.0 - beta1)));
            let _ = self.v.lerp_tensor_(&grad.square(), &(&factor * (1.0 - beta2)));
            let _ = theta.narrow(0, 0, n_decay).g_mul_(&(1.0 - scalar(Scalar::AdamDecay)));
            let mut denominator = self.v.sqrt();
            let _ = denominator.g_mul_(&scalars.get(Scalar::SecondCorrection as i64));
            let _ = denominator.g_add_scalar_(EPS);
            let _ = theta.addcmul_(&(mean / denominator), &-scalar(Scalar::AdamRate));
        }
        if let Some(ema) = &mut self.ema {
            let _ = ema.lerp_tensor_(&theta, &(&factor * (1.0 - self.config.ema)));
        }
        norm
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;
    use teeny_runtime::format::TensorSpec;

    use super::*;
    use crate::schedule::Schedule;

    fn params(values: &[f32], n_decay: usize) -> Params {
        let spec = |name: &str, shape: &[usize]| TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
        };
        let mut params = Params::new(
            vec![
                spec("lm_head.weight", &[1, n_decay]),
                spec("lm_head.bias", &[values.len() - n_decay]),
            ],
            Device::Cpu,
        );
        params.set_flat(&Tensor::from_slice(values));
        params
    }

    fn config(lr: f64) -> OptimConfig {
        OptimConfig {
            kind: OptimizerKind::AdamW,
            lr: LearningRate {
                schedule: Schedule::Cosine,
                max: lr,
                min: lr,
                warmup_iters: 0,
                decay_fraction: 0.3,
                n_iters: 20,
            },
            muon_lr: 0.02,
            betas: [0.9, 0.95],
            weight_decay: 0.1,
            grad_clip: 0.0,
            ema: 0.0,
            muon_kind: Kind::Float,
        }
    }

    fn step(optimizer: &mut Optimizer, params: &Params, grad: &Tensor, i: u64) -> f64 {
        let scalars = Tensor::from_slice(&optimizer.scalars(i, 1.0));
        optimizer.update(params, grad, &scalars).double_value(&[])
    }

    #[test]
    fn a_learning_rate_of_zero_changes_nothing() {
        let params = params(&[0.5, -1.0], 1);
        let before = params.theta.copy();
        let mut optimizer = Optimizer::new(&params, &config(0.0));
        step(&mut optimizer, &params, &Tensor::ones_like(&before), 0);
        assert_eq!(params.theta, before);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
            let params = params(&[0.5, -1.0, 2.0], 2);
            let config = OptimConfig { ema: 0.9, grad_clip: 1.0, ..config(0.1) };
            let mut optimizer = Optimizer::new(&params, &config);
            step(&mut optimizer, &params, &Tensor::from_slice(&[1.0f32, 1.0, 1.0]), 0);
            let state = |o: &Optimizer, p: &Params| {
                [&p.theta, &o.m, &o.v]
                    .map(|t| t.detach().copy())
                    .into_iter()
                    .chain(o.ema.as_ref().map(Tensor::copy))
                    .collect::<Vec<_>>()
            };
            let before = state(&optimizer, &params);
            let norm = step(&mut optimizer, &params, &Tensor::from_slice(&[1.0f32, bad, bad]), 1);
            assert!(!norm.is_finite(), "{bad}");
            assert_eq!(state(&optimizer, &params), before, "{bad}");
        }
    }
}
