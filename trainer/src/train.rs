//! The training loop.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tch::{Device, Tensor};
use teeny_runtime::dataset::{Split, SplitMix64};

use crate::checkpoint::{self, History};
use crate::config::Run;
use crate::dataset::{Batches, Purpose, mix};
use crate::error::{Error, Result};
use crate::export::{self, Provenance};
use crate::model::Gpt;
use crate::optim::{AdamW, cosine_lr};
use crate::params::flat_to_vec;
use crate::report::Report;
use crate::sample::sample;
use crate::threads;

/// Tokens of a step that the CPU works on at a time. Activations of so many stay in its caches, and
/// the gradients of all parts add up to that of the whole step.
const CPU_TOKENS: usize = 4096;
/// Steps between two looks at the loss on a GPU, which must finish its queue for each.
const CUDA_LOSS_INTERVAL: u64 = 20;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every step was done.
    Finished,
    /// It was asked to stop.
    Stopped,
}

/// A run in progress.
pub struct Trainer<'a> {
    run: &'a Run,
    sha256: String,
    model: Gpt,
    optimizer: AdamW,
    batches: Batches<'a>,
    history: History,
    /// Steps done.
    iteration: u64,
    best: Option<Best>,
    /// Sequences that go through the model at a time.
    n_micro: usize,
}

/// The parameters with the lowest validation loss so far.
struct Best {
    theta: Tensor,
    provenance: Provenance,
}

impl<'a> Trainer<'a> {
    /// A fresh run; its files can be written, or this fails.
    ///
    /// # Errors
    /// A folder that cannot be made or written, or text that cannot be read.
    pub fn new(run: &'a Run, device: Device) -> Result<Trainer<'a>> {
        let train = &run.train;
        for file in [&train.checkpoint_file, &train.export_file] {
            check_writable(file)?;
        }
        let sha256 = export::sha256(&run.dataset.config().input_file)?;
        tch::manual_seed(train.seed as i64);
        let mut model = Gpt::new(&run.model, run.dropout, train.n_context, device);
        model.params.init(run.model.n_layer);
        let optimizer = AdamW::new(
            &model.params.theta,
            model.params.n_decay(),
            train.betas,
            train.weight_decay,
        );
        let batches =
            Batches::new(&run.dataset, train.seed, train.n_batch, train.n_context, device);
        let n_micro = if device.is_cuda() {
            train.n_batch
        } else {
            (CPU_TOKENS / train.n_context).clamp(1, train.n_batch)
        };
        Ok(Trainer {
            run,
            sha256,
            model,
            optimizer,
            batches,
            history: History::default(),
            iteration: 0,
            best: None,
            n_micro,
        })
    }

    /// Continues where a checkpoint of the same model left off, as if it had never stopped: every
    /// step is seeded by its number. The learning rate follows the schedule of this configuration.
    ///
    /// # Errors
    /// A file that is no checkpoint of this model, or one with no step left to do.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        let train = &self.run.train;
        let load = |trainer: &mut Trainer<'a>, path: &Path| {
            checkpoint::load(path, &mut trainer.model.params, &mut trainer.optimizer)
        };
        // The best parameters come from their own checkpoint, if that is the one of this history.
        let best = match load(self, &train.checkpoint_file) {
            Ok((iteration, _)) => Some((iteration, self.model.params.theta.detach().copy())),
            Err(_) => None,
        };
        let (iteration, history) = load(self, path)?;
        if iteration >= train.n_iters {
            return Err(Error::Setup(format!(
                "{} has done {iteration} steps: nothing is left of n_iters = {}",
                path.display(),
                train.n_iters
            )));
        }
        self.best = history.best().zip(best).and_then(|(i, (iteration, theta))| {
            (history.iterations[i] == iteration).then(|| Best {
                theta,
                provenance: Provenance {
                    iteration,
                    train_loss: Some(history.train_losses[i]),
                    val_loss: Some(history.val_losses[i]),
                    test_loss: None,
                },
            })
        });
        if self.best.is_none() {
            // Then the next evaluation is the best so far, instead of one whose parameters are gone.
            self.history = History::default();
        } else {
            self.history = history;
        }
        self.iteration = iteration;
        Ok(())
    }

    /// Steps done so far.
    pub fn iteration(&self) -> u64 {
        self.iteration
    }

    /// Trains until all steps are done or `stop` is set, and leaves a checkpoint and an export.
    ///
    /// # Errors
    /// A loss that is not a number, or a file that cannot be written.
    pub fn train(&mut self, stop: &AtomicBool, report: &mut Report) -> Result<Outcome> {
        let train = &self.run.train;
        while self.iteration < train.n_iters {
            if stop.load(Ordering::Relaxed) {
                report.finish();
                self.stopped(report)?;
                return Ok(Outcome::Stopped);
            }
            let started = Instant::now();
            let loss = self.step()?;
            report.step(self.iteration, loss, started.elapsed());
            let last = self.iteration == train.n_iters;
            if last || self.iteration.is_multiple_of(train.n_est_loss_iters) {
                self.evaluate(report)?;
            }
        }
        report.finish();
        self.finished(report)?;
        Ok(Outcome::Finished)
    }

    /// Lets libtorch use as many CPU threads as make this run fastest now, and returns how many.
    ///
    /// # Errors
    /// The training split is empty.
    pub fn choose_threads(&mut self) -> Result<i32> {
        let (tokens, targets) = self.batches.get(Split::Train, Purpose::Step, 0)?;
        let n_micro = self.n_micro as i64;
        let (tokens, targets) = (tokens.narrow(0, 0, n_micro), targets.narrow(0, 0, n_micro));
        let n = threads::choose(|| {
            let _ = self.backward(&tokens, &targets);
        });
        self.model.params.theta.zero_grad();
        Ok(n)
    }

    /// The evaluations so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The model in its present state.
    pub fn model(&self) -> &Gpt {
        &self.model
    }

    /// The optimizer in its present state.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// One step of the optimizer. Returns the loss where it was looked at.
    ///
    /// # Errors
    /// A loss that is not a number.
    pub fn step(&mut self) -> Result<Option<f64>> {
        let train = &self.run.train;
        let i = self.iteration;
        // Seeded by the step, so that a resumed run draws the same dropout masks.
        tch::manual_seed(mix(train.seed, Purpose::Step, i) as i64);
        let (tokens, targets) = self.batches.get(Split::Train, Purpose::Step, i)?;
        let loss = self.backward(&tokens, &targets);
        let lr = cosine_lr(i, train.n_iters, train.lr_max, train.lr_min);
        let theta = &mut self.model.params.theta;
        self.optimizer.step(theta, &theta.grad(), lr);
        theta.zero_grad();
        self.iteration += 1;

        let last = self.iteration == train.n_iters;
        let look = !theta.device().is_cuda()
            || last
            || self.iteration.is_multiple_of(CUDA_LOSS_INTERVAL)
            || self.iteration.is_multiple_of(train.n_est_loss_iters);
        if !look {
            return Ok(None);
        }
        let loss = loss.double_value(&[]);
        self.check_finite(loss)?;
        Ok(Some(loss))
    }

    /// Gathers the gradient of the mean loss of a batch and returns that loss, `()` f32.
    fn backward(&self, tokens: &Tensor, targets: &Tensor) -> Tensor {
        let mut total = Tensor::zeros([], (tch::Kind::Float, tokens.device()));
        let n_batch = tokens.size()[0];
        let n_micro = self.n_micro as i64;
        for (tokens, targets) in tokens.split(n_micro, 0).iter().zip(targets.split(n_micro, 0)) {
            let share = tokens.size()[0] as f64 / n_batch as f64;
            let loss = self.model.loss(tokens, &targets, true) * share;
            loss.backward();
            total += loss.detach();
        }
        total
    }

    /// Mean loss over the evaluation batches of a split, without dropout.
    fn estimate(&self, split: Split) -> Result<f64> {
        let n = self.run.train.n_est_loss_batches;
        let n_micro = self.n_micro as i64;
        tch::no_grad(|| {
            let mut total = 0.0;
            for i in 0..n {
                let (tokens, targets) = self.batches.get(split, Purpose::Evaluation, i as u64)?;
                let n_batch = tokens.size()[0];
                for (tokens, targets) in
                    tokens.split(n_micro, 0).iter().zip(targets.split(n_micro, 0))
                {
                    let share = tokens.size()[0] as f64 / n_batch as f64;
                    total += self.model.loss(tokens, &targets, false).double_value(&[]) * share;
                }
            }
            Ok(total / n as f64)
        })
    }

    /// Estimates the losses, keeps the best parameters and the newest state, prints a sample.
    fn evaluate(&mut self, report: &Report) -> Result<()> {
        let train_loss = self.estimate(Split::Train)?;
        let val_loss = self.estimate(Split::Val)?;
        self.check_finite(train_loss)?;
        self.check_finite(val_loss)?;
        self.history.iterations.push(self.iteration);
        self.history.train_losses.push(train_loss);
        self.history.val_losses.push(val_loss);
        let is_best = self.history.best() == Some(self.history.val_losses.len() - 1);
        report.line(&format!(
            "iteration {}: train loss {train_loss:.4}, val loss {val_loss:.4}{}",
            self.iteration,
            if is_best { ", best so far" } else { "" }
        ));
        if is_best {
            let provenance = Provenance {
                iteration: self.iteration,
                train_loss: Some(train_loss),
                val_loss: Some(val_loss),
                test_loss: None,
            };
            let theta = self.model.params.theta.detach().copy();
            self.save(&self.run.train.checkpoint_file)?;
            self.export(&theta, &provenance)?;
            self.best = Some(Best { theta, provenance });
        }
        self.save(&self.run.train.last_file())?;
        self.print_sample(report)
    }

    fn print_sample(&self, report: &Report) -> Result<()> {
        let length = self.run.train.sample_length;
        if length == 0 {
            return Ok(());
        }
        // Always after the same text, so that samples show progress.
        let dataset = &self.run.dataset;
        let window = self.run.train.n_context.min(32);
        let mut rng = SplitMix64::new(self.run.train.seed);
        let prompt = dataset.chunks(Split::Val).random_window(window, &mut rng)?;
        let tokenizer = dataset.tokenizer();
        let text = sample(&self.model, tokenizer, prompt, length, self.run.train.n_context);
        report.line(&format!("--- sample ---\n{text}\n--------------"));
        Ok(())
    }

    /// After the last step: the best parameters with their loss on the test split.
    fn finished(&mut self, report: &Report) -> Result<()> {
        let Some(mut best) = self.best.take() else {
            return Ok(());
        };
        if self.run.has_test_split() {
            self.model.params.set_flat(&best.theta);
            let test_loss = self.estimate(Split::Test)?;
            best.provenance.test_loss = Some(test_loss);
            report.line(&format!("test loss {test_loss:.4}"));
        }
        self.export(&best.theta, &best.provenance)?;
        report.line(&format!(
            "exported the parameters of iteration {}, the best on the validation split, to {}",
            best.provenance.iteration,
            self.run.train.export_file.display()
        ));
        self.best = Some(best);
        Ok(())
    }

    /// After a request to stop: the newest state, and an export if there is none yet.
    fn stopped(&mut self, report: &Report) -> Result<()> {
        let train = &self.run.train;
        let last = train.last_file();
        self.save(&last)?;
        report.line(&format!("stopped after {} of {} steps", self.iteration, train.n_iters));
        report.line(&format!("checkpoint: {}", last.display()));
        match &self.best {
            Some(best) => report.line(&format!(
                "exported model: {} (iteration {}, the best so far)",
                train.export_file.display(),
                best.provenance.iteration
            )),
            None => {
                let provenance = Provenance {
                    iteration: self.iteration,
                    train_loss: None,
                    val_loss: None,
                    test_loss: None,
                };
                self.export(&self.model.params.theta, &provenance)?;
                report.line(&format!(
                    "exported model: {} (iteration {}, never evaluated)",
                    train.export_file.display(),
                    self.iteration
                ));
            }
        }
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<()> {
        let params = &self.model.params;
        checkpoint::save(path, self.run, self.iteration, &self.history, params, &self.optimizer)
    }

    fn export(&self, theta: &Tensor, provenance: &Provenance) -> Result<()> {
        let flat = flat_to_vec(theta);
        export::export(self.run, &self.model.params, &flat, &self.sha256, provenance)
    }

    fn check_finite(&self, loss: f64) -> Result<()> {
        if loss.is_finite() {
            return Ok(());
        }
        let best = self.best.as_ref().map(|_| self.run.train.checkpoint_file.clone());
        Err(Error::NotFinite { iteration: self.iteration, loss, best })
    }
}

/// Makes the folder of a file and a file in it, so that a wrong path is found before training.
fn check_writable(file: &Path) -> Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let refuse =
        |error: std::io::Error| Error::Setup(format!("cannot write {}: {error}", file.display()));
    std::fs::create_dir_all(folder).map_err(refuse)?;
    let probe = folder.join(format!(".teeny-train.{}.tmp", std::process::id()));
    std::fs::write(&probe, b"").map_err(refuse)?;
    std::fs::remove_file(&probe).map_err(refuse)
}
