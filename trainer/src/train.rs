//! The training loop.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tch::{Device, Kind, Tensor};
use teeny_runtime::dataset::{Split, SplitMix64};
use teeny_runtime::format::Dtype;

use crate::checkpoint::{self, Checkpoint, History, Place, Progress};
use crate::config::Run;
use crate::dataset::{Corpus, Windows};
use crate::distributed::ProcessGroup;
use crate::error::{Error, Result};
use crate::evaluate::{estimated_loss, exact_loss};
use crate::export::{self, Provenance};
use crate::lr_range::{self, LrRange};
use crate::model::Gpt;
use crate::optim::Optimizer;
use crate::params::flat_to_vec;
use crate::report::Report;
use crate::run_dir::Evaluation;
use crate::sample::sample;
use crate::step::{BLOCK, Parts, StepResult, Stepper, WARM_UP, gradient};
use crate::threads;

/// Steps in a row without a finite gradient after which training goes back.
const MOST_SKIPPED: u64 = 10;
/// What the learning rate is multiplied by then.
const LOWER_RATE: f64 = 0.5;
/// Times that training goes back before it gives up.
const MOST_ROLLBACKS: u32 = 8;

/// Validation loss, in multiples of the best one or of an untrained model's, up to which a state is one to go back to.
const SOUND: f64 = 2.0;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every step was done.
    Finished,
    /// The validation loss has not fallen for as many evaluations as `patience` says.
    Patience,
    /// It was asked to stop.
    Stopped,
}

impl Outcome {
    /// In a word, for the records.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Finished => "finished",
            Outcome::Patience => "stopped early",
            Outcome::Stopped => "interrupted",
        }
    }
}

/// A run in progress.
pub struct Trainer<'a> {
    run: &'a Run,
    sha256: String,
    device: Device,
    model: Gpt,
    optimizer: Optimizer,
    windows: Windows,
    stepper: Stepper,
    /// Training, validation, test.
    corpora: [Corpus; 3],
    group: Option<Group>,
    progress: Progress,
    best: Option<Best>,
    /// Where training goes back to.
    good: Option<Good>,
    n_rollbacks: u32,
    /// Steps in a row without a finite gradient.
    n_skipped_now: u64,
    started: Instant,
}

/// What became of some steps.
enum Steps {
    Done,
    /// Too many in a row had no finite gradient.
    Unsound,
    /// Somebody asked to stop.
    Stopped,
}

/// Other processes that train the same model on other sequences.
pub struct Group {
    /// Their connection.
    pub group: ProcessGroup,
    /// Number of this one.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
}

/// The parameters with the lowest validation loss so far.
struct Best {
    theta: Tensor,
    provenance: Provenance,
    is_exported: bool,
}

/// A state of training that is known to be sound.
struct Good {
    iteration: u64,
    tensors: Vec<Tensor>,
}

impl<'a> Trainer<'a> {
    /// A fresh run.
    ///
    /// # Errors
    /// Text that cannot be read.
    pub fn new(run: &'a Run, device: Device, group: Option<Group>) -> Result<Trainer<'a>> {
        let train = &run.train;
        let sha256 = export::sha256(&run.dataset.config().input_file)?;
        tch::manual_seed(train.seed as i64);
        let mut model = Gpt::new(&run.model, run.dropout, train.n_context, device);
        model.products = products(train.dtype, device);
        model.params.init(run.model.n_layer, train.init);
        let optimizer =
            Optimizer::new(&model.params, &train.optim(muon_kind(model.products, device)));
        let windows = Windows::new(
            run.dataset.chunks(Split::Train),
            train.sampling,
            train.seed,
            train.n_context,
        );
        let stepper =
            Stepper::new(train.seed, train.n_batch, train.grad_accum, train.n_context, device);
        let corpora = [Split::Train, Split::Val, Split::Test]
            .map(|split| Corpus::new(run.dataset.chunks(split), train.n_context, device));
        Ok(Trainer {
            run,
            sha256,
            device,
            model,
            optimizer,
            windows,
            stepper,
            corpora,
            group,
            progress: Progress::default(),
            best: None,
            good: None,
            n_rollbacks: 0,
            n_skipped_now: 0,
            started: Instant::now(),
        })
    }

    /// Makes sure that the files of the run can be written.
    ///
    /// # Errors
    /// A folder that cannot be made or written.
    pub fn check_files(&self) -> Result<()> {
        for file in [&self.run.train.checkpoint_file, &self.run.train.export_file] {
            check_writable(file)?;
        }
        Ok(())
    }

    /// Continues where a checkpoint of the same run left off, as if it had never stopped: every step is
    /// seeded by its number. The learning rate follows the schedule of this configuration, and unless
    /// that says otherwise as many CPU threads are used as before. Should training go back, then at
    /// most to here.
    ///
    /// Returns what the user should know: in what it cannot be as if it had never stopped.
    ///
    /// # Errors
    /// A file that is no checkpoint of this run, or one with no step left to do.
    pub fn resume(&mut self, path: &Path) -> Result<Vec<String>> {
        let train = &self.run.train;
        let checkpoint = Checkpoint::read(path)?;
        checkpoint.check_same(self.run, &self.sha256)?;
        let before = checkpoint.place()?;
        if before.n_processes != self.n_processes() {
            return Err(Error::Checkpoint {
                path: path.to_owned(),
                reason: format!(
                    "{} processes trained together there, {} do in this run: a run can only be \
                     continued as it began",
                    before.n_processes,
                    self.n_processes()
                ),
            });
        }
        let progress = checkpoint.progress()?;
        if progress.iteration >= train.n_iters {
            return Err(Error::Setup(format!(
                "{} has done {} steps: nothing is left of n_iters = {}",
                path.display(),
                progress.iteration,
                train.n_iters
            )));
        }
        checkpoint.load(&mut self.model.params, &mut self.optimizer)?;
        let mut notes = Vec::new();
        if self.device == Device::Cpu && train.threads == 0 && before.device == "cpu" {
            tch::set_num_threads(before.n_threads);
        }
        let now = self.place();
        if now != before {
            notes.push(format!("continued on {now}, after {before}: losses differ in last digits"));
        }
        if let Some(best) = progress.history.best() {
            match self.read_best(&progress.history) {
                Ok(found) => self.best = Some(found),
                Err(error) => notes.push(format!(
                    "the best parameters so far, of iteration {}, are not there: {error}; the next \
                     evaluation takes their place",
                    progress.history.iterations[best]
                )),
            }
        }
        self.progress = progress;
        Ok(notes)
    }

    /// The best parameters, from their own checkpoint.
    fn read_best(&self, history: &History) -> Result<Best> {
        let file = &self.run.train.checkpoint_file;
        let checkpoint = Checkpoint::read(file)?;
        checkpoint.check_same(self.run, &self.sha256)?;
        let iteration = checkpoint.progress()?.iteration;
        let i = history.iterations.iter().position(|i| *i == iteration).ok_or_else(|| {
            let reason =
                format!("it is of iteration {iteration}, which this run has not evaluated");
            Error::Checkpoint { path: file.clone(), reason }
        })?;
        let theta = checkpoint.exported(&self.model.params)?.to_device(self.device);
        let provenance = Provenance {
            iteration,
            train_loss: Some(history.train_losses[i]),
            val_loss: Some(history.val_losses[i]),
            test_loss: None,
        };
        Ok(Best { theta, provenance, is_exported: self.run.train.export_file.exists() })
    }

    /// What the last digits of losses depend on.
    fn place(&self) -> Place {
        Place {
            n_processes: self.n_processes(),
            device: if self.device.is_cuda() { "cuda" } else { "cpu" }.to_owned(),
            dtype: if self.model.products == Kind::BFloat16 { "bf16" } else { "f32" }.to_owned(),
            n_threads: if self.device.is_cuda() { 0 } else { tch::get_num_threads() },
        }
    }

    /// Where it trains.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Processes that train together.
    pub fn n_processes(&self) -> usize {
        self.group.as_ref().map_or(1, |group| group.size)
    }

    /// Steps done so far.
    pub fn iteration(&self) -> u64 {
        self.progress.iteration
    }

    /// SHA-256 of the text, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Lets libtorch use as many CPU threads as make this run fastest now, and returns how many.
    /// Processes of a group use as many as the first of them.
    ///
    /// # Errors
    /// A lost process of the group.
    pub fn choose_threads(&mut self) -> Result<i32> {
        let starts = self.windows.of_step(0, self.stepper.n_micro() as usize);
        let (tokens, targets) = self.corpora[0].windows(&Tensor::from_slice(&starts));
        let n = threads::choose(|| {
            let _ = gradient(&self.model, self.stepper.n_micro(), &tokens, &targets);
        });
        let [n] = self.as_the_first([f64::from(n)])?;
        tch::set_num_threads(n as i32);
        Ok(n as i32)
    }

    /// Numbers of the first process of the group: what processes decide by must be the same bits.
    fn as_the_first<const N: usize>(&self, numbers: [f64; N]) -> Result<[f64; N]> {
        let Some(group) = &self.group else {
            return Ok(numbers);
        };
        let mut shared = Tensor::from_slice(&numbers).to_device(self.device);
        group.group.broadcast(&mut shared, 0)?;
        Ok(std::array::from_fn(|i| shared.double_value(&[i as i64])))
    }

    /// Gives every process of the group the state of the first. It is theirs already, unless their
    /// processors round differently.
    fn align(&self) -> Result<()> {
        if let Some(group) = &self.group {
            for mut tensor in self.state() {
                group.group.broadcast(&mut tensor, 0)?;
            }
        }
        Ok(())
    }

    /// The evaluations so far.
    pub fn history(&self) -> &History {
        &self.progress.history
    }

    /// The model in its present state.
    pub fn model(&self) -> &Gpt {
        &self.model
    }

    /// The optimizer in its present state.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Trains until all steps are done, the loss has stopped falling or `stop` is set, and leaves a
    /// checkpoint and an export.
    ///
    /// # Errors
    /// Gradients that are not finite whatever the learning rate; a last checkpoint or an export that
    /// cannot be written.
    pub fn train(&mut self, stop: &AtomicBool, report: &mut Report) -> Result<Outcome> {
        let n_iters = self.run.train.n_iters;
        self.started = Instant::now();
        self.remember();
        if let Err(error) = self.record() {
            let message = format!("{error}; steps are launched kernel by kernel, which is slower");
            report.event(self.progress.iteration, &message);
        }
        let mut outcome = Outcome::Finished;
        while self.progress.iteration < n_iters {
            let until = self.next_evaluation();
            let stopped = match self.steps(until, stop, report)? {
                Steps::Done => false,
                Steps::Unsound => {
                    self.roll_back(report)?;
                    continue;
                }
                Steps::Stopped => true,
            };
            // Also when stopping, which a group may do just here: nothing would make up for it.
            if self.progress.iteration == until && self.is_evaluated(until) {
                if !self.evaluate(report)? {
                    self.roll_back(report)?;
                } else if self.out_of_patience() {
                    outcome = Outcome::Patience;
                    break;
                }
            }
            if stopped && self.progress.iteration < n_iters {
                outcome = Outcome::Stopped;
                break;
            }
        }
        report.finish();
        match outcome {
            Outcome::Stopped => self.stopped(report)?,
            Outcome::Finished | Outcome::Patience => self.finished(outcome, report)?,
        }
        Ok(outcome)
    }

    /// Seconds that a step takes when training does it: the mean of `n` further ones, at most [`BLOCK`],
    /// after the preparations that `train` makes.
    ///
    /// # Errors
    /// A lost device.
    pub fn time_steps(&mut self, n: u64) -> Result<f64> {
        let first = self.progress.iteration;
        if first == 0 {
            // It fails where steps are launched kernel by kernel instead.
            let _ = self.record();
        }
        let started = Instant::now();
        self.prepare(first, first + n);
        for _ in 0..n {
            self.step(false)?;
        }
        let _ = self.stepper.results(0);
        Ok(started.elapsed().as_secs_f64() / n as f64)
    }

    /// Does `n` steps without looking at anything.
    ///
    /// # Errors
    /// A lost device.
    pub fn run_steps(&mut self, n: u64) -> Result<Vec<StepResult>> {
        let mut results = Vec::new();
        for _ in 0..n {
            let i = self.progress.iteration;
            self.prepare(i, i + 1);
            self.step(false)?;
            results.extend(self.stepper.results(0));
        }
        Ok(results)
    }

    /// The learning-rate range test, see [`lr_range`]: steps from the present state on, which is of no
    /// use afterwards. `rate` of them is AdamW's; Muon's is in its usual ratio to it.
    ///
    /// # Errors
    /// A largest learning rate of 0; a lost device.
    pub fn find_lr(&mut self, stop: &AtomicBool) -> Result<LrRange> {
        let scheduled = self.optimizer.config().lr;
        if scheduled.max <= 0.0 {
            return Err(Error::Setup("lr_max: found 0, expected more for --find-lr".to_owned()));
        }
        let mut range = LrRange::default();
        while !stop.load(Ordering::Relaxed) {
            let i = range.points.len() as u64;
            self.progress.lr_scale = lr_range::rate(range.points.len()) / scheduled.max;
            let starts = [self.windows.of_step(i, self.run.train.n_sequences())];
            let scalars = [self.optimizer.scalars_at(i, 1.0, self.progress.lr_scale)];
            self.stepper.prepare(i, &starts, &scalars);
            self.step(false)?;
            if !self.stepper.results(0).iter().all(|result| range.push(result.loss)) {
                break;
            }
        }
        Ok(range)
    }

    /// Records the step as a CUDA graph, where that can be: on one GPU.
    fn record(&mut self) -> Result<()> {
        let (Device::Cuda(device), None) = (self.device, &self.group) else {
            return Ok(());
        };
        let first = self.progress.iteration;
        self.prepare(first, first + WARM_UP as u64);
        let mut parts = Parts {
            model: &self.model,
            optimizer: &mut self.optimizer,
            corpus: &self.corpora[0],
            group: None,
            rank: 0,
        };
        self.stepper.record(device, &mut parts)
    }

    /// The steps at which losses are measured are multiples of `n_est_loss_iters`, and the last one.
    fn is_evaluated(&self, iteration: u64) -> bool {
        let train = &self.run.train;
        iteration == train.n_iters || iteration.is_multiple_of(train.n_est_loss_iters)
    }

    fn next_evaluation(&self) -> u64 {
        let train = &self.run.train;
        let every = train.n_est_loss_iters;
        ((self.progress.iteration / every + 1) * every).min(train.n_iters)
    }

    /// Prepares the steps from `first` to `end`.
    fn prepare(&mut self, first: u64, end: u64) {
        let n = self.run.train.n_sequences();
        let (rank, size) = self.group.as_ref().map_or((0, 1), |group| (group.rank, group.size));
        let lr_scale = self.progress.lr_scale;
        let starts: Vec<Vec<i64>> = (first..end)
            .map(|i| self.windows.of_step(i, n * size)[n * rank..n * (rank + 1)].to_vec())
            .collect();
        let scalars: Vec<_> = (first..end).map(|i| self.optimizer.scalars(i, lr_scale)).collect();
        self.stepper.prepare(first, &starts, &scalars);
    }

    /// `is_last`: a group should stop after this step.
    fn step(&mut self, is_last: bool) -> Result<()> {
        let mut parts = Parts {
            model: &self.model,
            optimizer: &mut self.optimizer,
            corpus: &self.corpora[0],
            group: self.group.as_ref().map(|group| &group.group),
            rank: self.group.as_ref().map_or(0, |group| group.rank),
        };
        self.stepper.run(&mut parts, is_last)?;
        self.progress.iteration += 1;
        Ok(())
    }

    /// Steps until `until` or a request to stop.
    fn steps(&mut self, until: u64, stop: &AtomicBool, report: &mut Report) -> Result<Steps> {
        // A GPU would have to finish its queue for a look at a loss.
        let looks_at_each = !self.device.is_cuda();
        while self.progress.iteration < until {
            let first = self.progress.iteration;
            let n = (until - first).min(BLOCK as u64);
            self.prepare(first, first + n);
            let mut started = Instant::now();
            let mut looked = 0;
            for i in 1..=n {
                // Processes of a group must do the same steps: they hear of the request with the next
                // one's results.
                if self.group.is_none() && stop.load(Ordering::Relaxed) {
                    let results = self.stepper.results(looked);
                    let time = started.elapsed() / results.len().max(1) as u32;
                    let is_sound = self.look(&results, time, report);
                    return Ok(if is_sound { Steps::Stopped } else { Steps::Unsound });
                }
                self.step(stop.load(Ordering::Relaxed))?;
                if i < n && !looks_at_each {
                    continue;
                }
                let results = self.stepper.results(looked);
                looked = self.stepper.done();
                let time = started.elapsed() / results.len().max(1) as u32;
                started = Instant::now();
                if !self.look(&results, time, report) {
                    return Ok(Steps::Unsound);
                }
                if results.iter().any(|result| result.is_last) {
                    return Ok(Steps::Stopped);
                }
            }
        }
        Ok(Steps::Done)
    }

    /// Counts and reports steps that have just been done. Whether training is sound.
    fn look(
        &mut self,
        results: &[StepResult],
        time: std::time::Duration,
        report: &mut Report,
    ) -> bool {
        let first = self.progress.iteration + 1 - results.len() as u64;
        for (i, result) in (first..).zip(results) {
            if result.was_skipped() {
                self.progress.n_skipped += 1;
                self.n_skipped_now += 1;
                report.event(i, "a gradient that is not finite: the step was skipped");
            } else {
                self.n_skipped_now = 0;
            }
            let lr = self.optimizer.config().lr.at(i - 1) * self.progress.lr_scale;
            report.step(i, *result, lr, time, self.seconds());
            if self.n_skipped_now >= MOST_SKIPPED {
                return false;
            }
        }
        true
    }

    /// Seconds of training so far, in all processes that have continued it.
    fn seconds(&self) -> f64 {
        self.progress.seconds + self.started.elapsed().as_secs_f64()
    }

    /// Tensors that training changes.
    fn state(&self) -> Vec<Tensor> {
        let o = &self.optimizer;
        let tensors = [&self.model.params.theta, &o.m, &o.v].into_iter().chain(&o.ema);
        tensors.map(Tensor::detach).collect()
    }

    /// Keeps the present state as one to go back to.
    fn remember(&mut self) {
        let tensors = self.state().iter().map(Tensor::copy).collect();
        self.good = Some(Good { iteration: self.progress.iteration, tensors });
    }

    /// Goes back to the last sound state, with a lower learning rate.
    fn roll_back(&mut self, report: &mut Report) -> Result<()> {
        let iteration = self.progress.iteration;
        self.n_rollbacks += 1;
        let Some(good) = self.good.as_ref().filter(|_| self.n_rollbacks <= MOST_ROLLBACKS) else {
            let best = self.best.as_ref().map(|_| self.run.train.checkpoint_file.clone());
            return Err(Error::NotFinite { iteration, lr_scale: self.progress.lr_scale, best });
        };
        tch::no_grad(|| {
            for (tensor, sound) in self.state().iter_mut().zip(&good.tensors) {
                tensor.copy_(sound);
            }
        });
        self.progress.iteration = good.iteration;
        self.progress.history.truncate(good.iteration);
        self.progress.lr_scale *= LOWER_RATE;
        self.n_skipped_now = 0;
        report.rolled_back(
            iteration,
            good.iteration,
            &format!(
                "losses or gradients are not finite: back to iteration {}, with {} of the learning rate",
                good.iteration, self.progress.lr_scale
            ),
        );
        Ok(())
    }

    /// The parameters that are evaluated and exported: the averaged ones, if there are any.
    fn exported(&self) -> Tensor {
        self.optimizer.ema.as_ref().unwrap_or(&self.model.params.theta).detach().copy()
    }

    /// Does something with other parameters in the place of the model's.
    fn with_parameters<T>(&mut self, theta: &Tensor, work: impl FnOnce(&Self) -> T) -> T {
        let before = self.model.params.theta.detach().copy();
        self.model.params.set_flat(theta);
        let result = work(self);
        self.model.params.set_flat(&before);
        result
    }

    /// Measures the losses, keeps the best parameters and the newest state, prints a sample. Whether
    /// training is sound.
    fn evaluate(&mut self, report: &mut Report) -> Result<bool> {
        let train = &self.run.train;
        self.align()?;
        let exported = self.exported();
        let (train_loss, val_loss) = self.with_parameters(&exported, Self::losses);
        let [train_loss, val_loss] = self.as_the_first([train_loss, val_loss])?;
        if !train_loss.is_finite() || !val_loss.is_finite() {
            return Ok(false);
        }
        let iteration = self.progress.iteration;
        let history = &mut self.progress.history;
        history.truncate(iteration - 1);
        history.iterations.push(iteration);
        history.train_losses.push(train_loss);
        history.val_losses.push(val_loss);
        let best_loss = history.best().map_or(val_loss, |best| history.val_losses[best]);
        // Of those whose parameters are there: a resumed run may have lost some.
        let kept = self.best.as_ref().and_then(|best| best.provenance.val_loss);
        let is_best = kept.is_none_or(|kept| val_loss < kept);
        let sample = self.sample();
        let evaluation = Evaluation {
            iteration,
            train_loss,
            val_loss,
            val_bits_per_byte: self.per_byte(Split::Val, val_loss) / std::f64::consts::LN_2,
            is_best,
            seconds: self.seconds(),
        };
        report.evaluation(&evaluation, sample.as_deref());
        // What is far from the best, or from knowing nothing, is no place to go back to.
        let ignorance = (self.run.model.vocab_size as f64).ln();
        if val_loss <= SOUND * best_loss.min(ignorance) {
            self.remember();
        }
        if is_best {
            let provenance = Provenance {
                iteration,
                train_loss: Some(train_loss),
                val_loss: Some(val_loss),
                test_loss: None,
            };
            self.save_or_say(&train.checkpoint_file, report);
            let exporting = self.export(&exported, &provenance);
            let is_exported = exporting.is_ok();
            if let Err(error) = exporting {
                report.event(iteration, &format!("{error}; training goes on"));
            }
            self.best = Some(Best { theta: exported, provenance, is_exported });
        }
        self.save_or_say(&train.last_file(), report);
        Ok(true)
    }

    /// The estimated loss on the training split and the exact one on the validation split.
    pub fn losses(&self) -> (f64, f64) {
        let train = &self.run.train;
        let n_micro = self.stepper.n_micro();
        let estimate = self.windows.of_estimate(train.n_est_loss_batches * train.n_batch);
        (
            estimated_loss(&self.model, &self.corpora[0], &estimate, n_micro),
            exact_loss(&self.model, &self.corpora[1], n_micro),
        )
    }

    /// A split's mean loss of a token, as that of a byte of its text.
    fn per_byte(&self, split: Split, loss: f64) -> f64 {
        let chunks = self.run.dataset.chunks(split);
        loss * chunks.tokens().len() as f64 / chunks.n_bytes().max(1) as f64
    }

    /// Whether this process writes files.
    fn is_first(&self) -> bool {
        self.group.as_ref().is_none_or(|group| group.rank == 0)
    }

    fn out_of_patience(&self) -> bool {
        let patience = self.run.train.patience;
        let history = &self.progress.history;
        let since = history.best().map_or(0, |best| history.val_losses.len() - 1 - best);
        patience > 0 && since as u64 >= patience
    }

    /// A text by the parameters that would be exported, if there is to be one.
    fn sample(&mut self) -> Option<String> {
        let train = &self.run.train;
        if train.sample_length == 0 || !self.is_first() {
            return None;
        }
        // Always after the same text, so that samples show progress.
        let dataset = &self.run.dataset;
        let window = train.n_context.min(32);
        let mut rng = SplitMix64::new(train.seed);
        let prompt = dataset.chunks(Split::Val).random_window(window, &mut rng).ok()?;
        let exported = self.exported();
        let (length, n_context) = (train.sample_length, train.n_context);
        Some(self.with_parameters(&exported, |trainer| {
            sample(&trainer.model, dataset.tokenizer(), prompt, length, n_context)
        }))
    }

    /// After the last step: the best parameters with their loss on the test split.
    fn finished(&mut self, outcome: Outcome, report: &mut Report) -> Result<()> {
        let Some(mut best) = self.best.take() else {
            return Ok(());
        };
        // It fails here, if it must: nothing comes that could make up for it.
        self.save(&self.run.train.last_file())?;
        if outcome == Outcome::Patience {
            report.event(
                self.progress.iteration,
                &format!(
                    "stopped early: no better validation loss in {} evaluations",
                    self.run.train.patience
                ),
            );
        }
        if self.run.has_test_split() {
            let n_micro = self.stepper.n_micro();
            let test_loss = self.with_parameters(&best.theta, |trainer| {
                exact_loss(&trainer.model, &trainer.corpora[2], n_micro)
            });
            best.provenance.test_loss = Some(test_loss);
        }
        if let Some(last) = self.progress.history.val_losses.last() {
            report.line(&format!(
                "validation loss: {last:.4} at the end, {:.4} at best, in iteration {}",
                best.provenance.val_loss.unwrap_or(f64::NAN),
                best.provenance.iteration
            ));
        }
        if let Some(loss) = best.provenance.test_loss {
            let bits = self.per_byte(Split::Test, loss) / std::f64::consts::LN_2;
            report.line(&format!("test loss {loss:.4} ({bits:.4} bits a byte)"));
        }
        self.export(&best.theta, &best.provenance)?;
        report.line(&format!(
            "exported the parameters of iteration {}, the best on the validation split, to {}",
            best.provenance.iteration,
            self.run.train.export_file.display()
        ));
        report.ended(outcome.name(), best.provenance.test_loss);
        self.best = Some(best);
        Ok(())
    }

    /// After a request to stop: the newest state, and an export if there is none yet.
    fn stopped(&mut self, report: &mut Report) -> Result<()> {
        let train = &self.run.train;
        let iteration = self.progress.iteration;
        let last = train.last_file();
        self.save(&last)?;
        report.line(&format!("stopped after {iteration} of {} steps", train.n_iters));
        report.line(&format!("checkpoint: {}", last.display()));
        let export_file = train.export_file.display();
        match &self.best {
            Some(best) => {
                if !best.is_exported {
                    self.export(&best.theta, &best.provenance)?;
                }
                report.line(&format!(
                    "exported model: {export_file} (iteration {}, the best so far)",
                    best.provenance.iteration
                ));
            }
            // It may be a better one, of an earlier run.
            None if train.export_file.exists() => report.line(&format!(
                "not exported, as nothing has been evaluated: {export_file} is as it was; \
                 --export-only {} makes a model of the checkpoint",
                last.display()
            )),
            None => {
                let provenance =
                    Provenance { iteration, train_loss: None, val_loss: None, test_loss: None };
                self.export(&self.exported(), &provenance)?;
                report.line(&format!(
                    "exported model: {export_file} (iteration {iteration}, never evaluated)",
                ));
            }
        }
        report.event(iteration, "interrupted");
        report.ended(Outcome::Stopped.name(), None);
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<()> {
        if !self.is_first() {
            return Ok(());
        }
        let progress = Progress { seconds: self.seconds(), ..self.progress.clone() };
        let params = &self.model.params;
        let (optimizer, place) = (&self.optimizer, self.place());
        checkpoint::save(path, self.run, &self.sha256, &progress, &place, params, optimizer)
    }

    /// Saves, or says why that was not possible: the run is worth more than one of its checkpoints.
    fn save_or_say(&self, path: &Path, report: &mut Report) {
        if let Err(error) = self.save(path) {
            let kept = if path.exists() { "the one before it is as it was; " } else { "" };
            let message = format!("checkpoint not saved: {error}; {kept}training goes on");
            report.event(self.progress.iteration, &message);
        }
    }

    /// Exports, if this process writes files.
    fn export(&self, theta: &Tensor, provenance: &Provenance) -> Result<()> {
        if !self.is_first() {
            return Ok(());
        }
        let flat = flat_to_vec(theta);
        export::export(self.run, &self.model.params, &flat, &self.sha256, provenance)
    }
}

/// What matrix products compute in on a device.
fn products(dtype: Option<Dtype>, device: Device) -> Kind {
    match (dtype, device) {
        (Some(Dtype::Bf16), _) => Kind::BFloat16,
        (Some(Dtype::F32 | Dtype::F16 | Dtype::Q8 | Dtype::Q4), _) | (None, Device::Cpu) => {
            Kind::Float
        }
        (None, Device::Cuda(_) | Device::Mps | Device::Vulkan) => Kind::BFloat16,
    }
}

/// What Muon's Newton–Schulz steps compute in: bf16 suffices where it is faster, as on every GPU.
fn muon_kind(products: Kind, device: Device) -> Kind {
    if device.is_cuda() { Kind::BFloat16 } else { products }
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
