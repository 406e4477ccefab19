//! What a person sees of a run: a progress bar or lines on standard error, and the records in the run's
//! folder.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::Result;
use crate::run_dir::{Evaluation, RunDir, Step};
use crate::step::StepResult;

/// Time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Most steps of a run whose losses are recorded one by one; of longer runs some are left out.
const MOST_RECORDED: u64 = 10_000;

/// Shows how far a run is.
pub struct Report {
    bar: Option<ProgressBar>,
    run_dir: Option<RunDir>,
    /// Whether a failure to write records has been reported.
    has_complained: bool,
    /// False for the processes of a group but the first.
    is_heard: bool,
    n_iters: u64,
    tokens_per_step: u64,
    /// Time spent in steps only: evaluations and samples would blur tokens/s.
    step_time: Duration,
    n_steps: u64,
    started: Instant,
    first_iteration: u64,
    last_line: Instant,
}

impl Report {
    /// A report of a run that continues after `first_iteration` of `n_iters` steps.
    pub fn new(first_iteration: u64, n_iters: u64, tokens_per_step: u64) -> Report {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar =
                ProgressBar::with_draw_target(Some(n_iters), ProgressDrawTarget::stderr_with_hz(4));
            // The template is fixed and correct; a plain bar would do as well.
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
                bar.set_style(style);
            }
            bar.set_position(first_iteration);
            bar
        });
        let now = Instant::now();
        Report {
            bar,
            run_dir: None,
            has_complained: false,
            is_heard: true,
            n_iters,
            tokens_per_step,
            step_time: Duration::ZERO,
            n_steps: 0,
            started: now,
            first_iteration,
            last_line: now,
        }
    }

    /// A report that says nothing, for the processes of a group but the first.
    pub fn silent(n_iters: u64) -> Report {
        let mut report = Report::new(0, n_iters, 0);
        if let Some(bar) = report.bar.take() {
            bar.finish_and_clear();
        }
        report.is_heard = false;
        report
    }

    /// Keeps records in a folder too.
    pub fn record_in(&mut self, run_dir: RunDir) {
        self.run_dir = Some(run_dir);
    }

    /// After a step: its number counted from 1, its learning rate, how long it took, and the seconds
    /// since training began.
    pub fn step(
        &mut self,
        iteration: u64,
        result: StepResult,
        lr: f64,
        time: Duration,
        seconds: f64,
    ) {
        self.step_time += time;
        self.n_steps += 1;
        if let Some(bar) = &self.bar {
            bar.set_position(iteration);
            bar.set_message(self.summary(iteration, result.loss));
        } else if self.is_heard && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            eprintln!("{iteration}/{} {}", self.n_iters, self.summary(iteration, result.loss));
        }
        if iteration.is_multiple_of(self.n_iters.div_ceil(MOST_RECORDED)) {
            let tokens_per_second = self.tokens_per_second();
            self.write(|run_dir| {
                run_dir.step(&Step {
                    iteration,
                    loss: result.loss,
                    lr,
                    grad_norm: Some(result.grad_norm),
                    tokens_per_second,
                    seconds,
                })
            });
        }
    }

    /// After an evaluation, with a text that the model wrote, if there is one.
    pub fn evaluation(&mut self, evaluation: &Evaluation, sample: Option<&str>) {
        let Evaluation { iteration, train_loss, val_loss, val_bits_per_byte, .. } = *evaluation;
        self.line(&format!(
            "iteration {iteration}: train loss {train_loss:.4}, val loss {val_loss:.4} \
             ({val_bits_per_byte:.4} bits a byte){}",
            if evaluation.is_best { ", best so far" } else { "" }
        ));
        if let Some(text) = sample {
            self.line(&format!("--- sample ---\n{text}\n--------------"));
            self.write(|run_dir| run_dir.sample(iteration, text));
        }
        // Last, because it rewrites the page, which shows the sample too.
        self.write(|run_dir| run_dir.evaluation(evaluation));
    }

    /// Something that does not happen in every run.
    pub fn event(&mut self, iteration: u64, message: &str) {
        self.line(&format!("iteration {iteration}: {message}"));
        self.write(|run_dir| run_dir.event(iteration, message));
    }

    /// Training went back from one iteration to an earlier one.
    pub fn rolled_back(&mut self, from: u64, to: u64, message: &str) {
        self.event(from, message);
        self.write(|run_dir| run_dir.roll_back(to));
    }

    /// The end of the run.
    pub fn ended(&mut self, outcome: &str, test_loss: Option<f64>) {
        self.write(|run_dir| run_dir.finish(outcome, test_loss));
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None if self.is_heard => eprintln!("{text}"),
            None => {}
        }
    }

    /// Tokens trained on a second, over the steps alone.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds = self.step_time.as_secs_f64();
        if seconds > 0.0 { (self.n_steps * self.tokens_per_step) as f64 / seconds } else { 0.0 }
    }

    /// Milliseconds a step, over the steps alone.
    pub fn ms_per_step(&self) -> f64 {
        self.step_time.as_secs_f64() * 1e3 / self.n_steps.max(1) as f64
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Writes a record. Training is worth more than its records: a failure is reported once.
    fn write(&mut self, record: impl FnOnce(&mut RunDir) -> Result<()>) {
        let Some(Err(error)) = self.run_dir.as_mut().map(record) else {
            return;
        };
        if !self.has_complained {
            self.has_complained = true;
            self.line(&format!("records are incomplete: {error}; training goes on"));
        }
    }

    fn summary(&self, iteration: u64, loss: f64) -> String {
        let mut text = format!("loss {loss:.4}, ");
        // Evaluations are part of what is left, so the clock counts here, not the steps alone.
        let done = iteration.saturating_sub(self.first_iteration).max(1);
        let left = self
            .started
            .elapsed()
            .mul_f64(self.n_iters.saturating_sub(iteration) as f64 / done as f64);
        let _ = write!(
            text,
            "{:.0} tokens/s, {} left",
            self.tokens_per_second(),
            HumanDuration(Duration::from_secs(left.as_secs()))
        );
        text
    }
}
