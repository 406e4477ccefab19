//! A training step: windows, loss, gradient, update, all on the device.
//!
//! The host prepares a block of steps at once: where their windows begin and the numbers of their
//! updates. A counter on the device says which step of the block is next, so that a step needs nothing
//! from the host, and on CUDA all steps are replays of one graph.

use tch::{Device, Kind, Tensor};

use crate::cuda_graph::CudaGraph;
use crate::dataset::{Corpus, Purpose, mix};
use crate::distributed::ProcessGroup;
use crate::error::Result;
use crate::model::Gpt;
use crate::optim::{N_SCALARS, Optimizer};

/// Tokens that the CPU works on at a time. Activations of so many stay in its caches, and the gradients
/// of all parts add up to that of the whole step.
const CPU_TOKENS: usize = 4096;
/// Most steps of a block.
pub const BLOCK: usize = 128;
/// Steps that libtorch does before one is recorded: they choose kernels and make buffers.
pub const WARM_UP: usize = 3;

/// What a step needs on the device besides the model and the optimizer.
pub struct Stepper {
    seed: u64,
    /// Sequences that go through the model at a time.
    n_micro: i64,
    /// Number of the block's first step.
    first: u64,
    /// Steps of the block that are done.
    done: usize,
    /// The same on the device, `(1)` i64.
    counter: Tensor,
    /// Numbers of the updates, `(BLOCK, N_SCALARS)` f32.
    scalars: Tensor,
    /// Where windows begin, `(BLOCK, sequences)` i64.
    starts: Tensor,
    /// Losses of the block's steps, `(BLOCK)` f32.
    losses: Tensor,
    /// Lengths of their gradients, `(BLOCK)` f32.
    norms: Tensor,
    /// Requests to stop, of the processes of a group together, `(BLOCK)` f32.
    stops: Tensor,
    graph: Option<CudaGraph>,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// Mean loss of its sequences, nats a token.
    pub loss: f64,
    /// Length of the gradient before clipping. If it is not finite, nothing was updated.
    pub grad_norm: f64,
    /// Whether a process of the group asked that this step be the last one.
    pub is_last: bool,
}

impl StepResult {
    /// Whether the update was left out.
    pub fn was_skipped(&self) -> bool {
        !self.grad_norm.is_finite()
    }
}

impl Stepper {
    /// For steps of `n_batch * grad_accum` sequences of `n_context` tokens on `device`.
    pub fn new(
        seed: u64,
        n_batch: usize,
        grad_accum: usize,
        n_context: usize,
        device: Device,
    ) -> Stepper {
        let n_micro = match device {
            Device::Cpu => (CPU_TOKENS / n_context).clamp(1, n_batch),
            Device::Cuda(_) | Device::Mps | Device::Vulkan => n_batch,
        };
        let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, device));
        let block = BLOCK as i64;
        Stepper {
            seed,
            n_micro: n_micro as i64,
            first: 0,
            done: 0,
            counter: zeros(&[1], Kind::Int64),
            scalars: zeros(&[block, N_SCALARS as i64], Kind::Float),
            starts: zeros(&[block, (n_batch * grad_accum) as i64], Kind::Int64),
            losses: zeros(&[block], Kind::Float),
            norms: zeros(&[block], Kind::Float),
            stops: zeros(&[block], Kind::Float),
            graph: None,
        }
    }

    /// Sequences that go through the model at a time.
    pub fn n_micro(&self) -> i64 {
        self.n_micro
    }

    /// Prepares the steps from number `first` on. `starts`: windows of each; `scalars`: numbers of its
    /// update.
    pub fn prepare(&mut self, first: u64, starts: &[Vec<i64>], scalars: &[[f32; N_SCALARS]]) {
        let n = starts.len().min(BLOCK) as i64;
        tch::no_grad(|| {
            let starts = Tensor::from_slice(&starts.concat()).view([n, -1]);
            self.starts.narrow(0, 0, n).copy_(&starts);
            let scalars = Tensor::from_slice(&scalars.concat()).view([n, -1]);
            self.scalars.narrow(0, 0, n).copy_(&scalars);
            let _ = self.counter.zero_();
        });
        self.first = first;
        self.done = 0;
    }

    /// Records a step as a CUDA graph, which [`run`](Self::run) then replays. The state of model and
    /// optimizer afterwards is that before. [`WARM_UP`] steps must be prepared.
    ///
    /// # Errors
    /// CUDA's, such as memory that is used up.
    pub fn record(&mut self, device: usize, parts: &mut Parts<'_>) -> Result<()> {
        let optimizer = &parts.optimizer;
        let state: Vec<Tensor> =
            [&parts.model.params.theta, &optimizer.m, &optimizer.v, &self.counter]
                .into_iter()
                .chain(&optimizer.ema)
                .map(Tensor::shallow_clone)
                .collect();
        let before: Vec<Tensor> = state.iter().map(|tensor| tensor.detach().copy()).collect();
        // The counter goes on from step to step, here as in every replay.
        let graph = CudaGraph::record(device, WARM_UP, &mut || self.work(parts, false));
        tch::no_grad(|| {
            for (tensor, before) in state.iter().zip(&before) {
                tensor.detach().copy_(before);
            }
        });
        self.graph = Some(graph?);
        Ok(())
    }

    /// Does the next step of the block. `is_last`: the processes of the group should stop after it.
    ///
    /// # Errors
    /// A lost device or a lost process of the group.
    pub fn run(&mut self, parts: &mut Parts<'_>, is_last: bool) -> Result<()> {
        // Seeded by the step, so that a resumed run draws the same dropout masks; a graph reads the
        // seed when it is replayed. Processes of a group draw different ones.
        let i = self.first + self.done as u64;
        let seed = mix(self.seed.wrapping_add(parts.rank as u64), Purpose::Step, i);
        tch::manual_seed(seed as i64);
        self.done += 1;
        match &self.graph {
            Some(graph) => graph.replay(),
            None => self.work(parts, is_last),
        }
    }

    /// Losses and gradients of the block's steps from the `from`-th on, for which the device has to
    /// finish them.
    pub fn results(&self, from: usize) -> Vec<StepResult> {
        let n = (self.done - from) as i64;
        let read = |values: &Tensor| -> Vec<f64> {
            let values = values.narrow(0, from as i64, n).to_kind(Kind::Double);
            Vec::try_from(values.to_device(Device::Cpu)).unwrap_or_default()
        };
        let rows = read(&self.losses).into_iter().zip(read(&self.norms)).zip(read(&self.stops));
        rows.map(|((loss, grad_norm), stops)| StepResult { loss, grad_norm, is_last: stops > 0.0 })
            .collect()
    }

    /// Steps of the block that are done.
    pub fn done(&self) -> usize {
        self.done
    }

    fn work(&mut self, parts: &mut Parts<'_>, is_last: bool) -> Result<()> {
        let row = |table: &Tensor| table.index_select(0, &self.counter).view([-1]);
        let (tokens, targets) = parts.corpus.windows(&row(&self.starts));
        let (mut loss, mut grad) = gradient(parts.model, self.n_micro, &tokens, &targets);
        if let Some(group) = parts.group {
            group.all_reduce_mean(&mut grad)?;
            let stop = Tensor::from(f32::from(u8::from(is_last))).to_device(loss.device());
            let mut shared = Tensor::stack(&[&loss, &stop], 0);
            group.all_reduce_mean(&mut shared)?;
            loss = shared.get(0);
            let _ =
                tch::no_grad(|| self.stops.index_copy_(0, &self.counter, &shared.narrow(0, 1, 1)));
        }
        let scalars = row(&self.scalars);
        let norm = parts.optimizer.update(&parts.model.params, &grad, &scalars);
        tch::no_grad(|| {
            let _ = self.losses.index_copy_(0, &self.counter, &loss.view([1]));
            let _ = self.norms.index_copy_(0, &self.counter, &norm.view([1]));
            let _ = self.counter.g_add_scalar_(1);
        });
        Ok(())
    }
}

/// What a step works on.
pub struct Parts<'a> {
    /// The model.
    pub model: &'a Gpt,
    /// What updates it.
    pub optimizer: &'a mut Optimizer,
    /// The text.
    pub corpus: &'a Corpus,
    /// Other processes with the same model, whose gradients are averaged.
    pub group: Option<&'a ProcessGroup>,
    /// Which of them this one is.
    pub rank: usize,
}

/// Mean loss, `()` f32, of a batch, and its gradient, `(n_params)`, computed by `n_micro` sequences at a
/// time. `tokens`, `targets`: `(B, T)` i64
pub fn gradient(model: &Gpt, n_micro: i64, tokens: &Tensor, targets: &Tensor) -> (Tensor, Tensor) {
    let n_batch = tokens.size()[0];
    let mut sum: Option<(Tensor, Tensor)> = None;
    for (tokens, targets) in tokens.split(n_micro, 0).iter().zip(targets.split(n_micro, 0)) {
        let share = tokens.size()[0] as f64 / n_batch as f64;
        let mut loss = model.loss(tokens, &targets, true, false);
        if share < 1.0 {
            loss = &loss * share;
        }
        let grad = Tensor::run_backward(&[&loss], &[&model.params.theta], false, false).remove(0);
        let loss = loss.detach();
        sum = Some(match sum {
            None => (loss, grad),
            Some((total, mut grads)) => {
                let _ = grads.g_add_(&grad);
                (total + loss, grads)
            }
        });
    }
    sum.unwrap_or_else(|| {
        let theta = &model.params.theta;
        (Tensor::zeros([], (Kind::Float, theta.device())), theta.detach().zeros_like())
    })
}
