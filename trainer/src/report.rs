//! What a person sees of a run, on standard error: a progress bar on a terminal, lines elsewhere.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows how far a run is.
pub struct Report {
    bar: Option<ProgressBar>,
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
            n_iters,
            tokens_per_step,
            step_time: Duration::ZERO,
            n_steps: 0,
            started: now,
            first_iteration,
            last_line: now,
        }
    }

    /// After a step: its number counted from 1, its loss if it is known, and how long it took.
    pub fn step(&mut self, iteration: u64, loss: Option<f64>, time: Duration) {
        self.step_time += time;
        self.n_steps += 1;
        let due = self.last_line.elapsed() >= LINE_INTERVAL;
        if let Some(bar) = &self.bar {
            bar.set_position(iteration);
            bar.set_message(self.summary(iteration, loss));
        } else if due {
            self.last_line = Instant::now();
            eprintln!("{iteration}/{} {}", self.n_iters, self.summary(iteration, loss));
        }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
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

    fn summary(&self, iteration: u64, loss: Option<f64>) -> String {
        let mut text = String::new();
        if let Some(loss) = loss {
            let _ = write!(text, "loss {loss:.4}, ");
        }
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
