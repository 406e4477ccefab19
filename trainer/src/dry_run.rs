//! What a run would take: parameters, memory, steps and time.

use std::fmt::Write;
use std::time::{Duration, Instant};

use tch::Device;

use crate::config::Run;
use crate::error::Result;
use crate::params::Params;
use crate::step::BLOCK;
use crate::train::Trainer;

/// Steps that are timed, at most, and for how long.
const MOST_STEPS: usize = 5;
const LONGEST: Duration = Duration::from_secs(20);

/// Times a few steps and an evaluation, and describes the run. `trainer` is of no use afterwards.
///
/// # Errors
/// Those of a step.
pub fn dry_run(run: &Run, trainer: &mut Trainer<'_>) -> Result<String> {
    let train = &run.train;
    // A GPU does many steps before anybody looks.
    let n = if trainer.device().is_cuda() { BLOCK as u64 } else { 1 };
    // The first ones also make what later ones use again.
    trainer.time_steps(n)?;
    let started = Instant::now();
    let mut times = Vec::new();
    while times.len() < MOST_STEPS && started.elapsed() < LONGEST {
        times.push(trainer.time_steps(n)?);
    }
    times.sort_by(f64::total_cmp);
    let step = times[times.len() / 2];
    let before = Instant::now();
    let _ = trainer.losses();
    let evaluation = before.elapsed().as_secs_f64();
    let n_evaluations = train.n_iters.div_ceil(train.n_est_loss_iters);
    let total = step * train.n_iters as f64 + evaluation * n_evaluations as f64;

    let n = run.n_params();
    let tokens = train.n_sequences() * train.n_context;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<22}{value}");
    };
    line(
        "parameters",
        format!("{n} ({} in matrices of the layers)", matrices(&trainer.model().params)),
    );
    line("tokens a step", format!("{tokens} ({} x {})", train.n_sequences(), train.n_context));
    line("steps", train.n_iters.to_string());
    let all = (tokens as u64).saturating_mul(train.n_iters);
    let text_tokens = run.dataset.chunks(teeny_runtime::dataset::Split::Train).tokens().len();
    line(
        "tokens",
        format!("{all}, {:.1} times the training text", all as f64 / text_tokens as f64),
    );
    line("memory", memory(trainer));
    line("exported file", format!("about {}", bytes(export_bytes(run))));
    line("a step", format!("{:.1} ms, {:.0} tokens/s", step * 1e3, tokens as f64 / step));
    line("an evaluation", format!("{evaluation:.1} s, {n_evaluations} times"));
    line("predicted time", duration(total));
    Ok(text)
}

fn matrices(params: &Params) -> i64 {
    params.n_matrix()
}

fn export_bytes(run: &Run) -> u64 {
    teeny_runtime::format::n_bytes(&run.model, run.train.export_dtype) as u64
}

/// State of the optimizer, and the peak of the process where the system tells it.
fn memory(trainer: &Trainer<'_>) -> String {
    let optimizer = trainer.optimizer();
    let floats = 2 * trainer.model().params.len() // parameters and gradient
        + optimizer.m.numel()
        + optimizer.v.numel()
        + optimizer.ema.as_ref().map_or(0, tch::Tensor::numel);
    let state = format!("{} for parameters, gradient and optimizer", bytes(4 * floats as u64));
    let on_cpu = trainer.model().params.theta.device() == Device::Cpu;
    match peak_of_process().filter(|_| on_cpu) {
        Some(peak) => format!("{state}; {} at the peak of the steps timed", bytes(peak)),
        None => state,
    }
}

/// Largest resident set so far, in bytes, where /proc tells it.
fn peak_of_process() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn bytes(n: u64) -> String {
    match n {
        0..10_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        10_000_000..10_000_000_000 => format!("{:.0} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}
