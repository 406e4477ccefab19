//! Times decoding on a GPU, or writes logits: what `tests/peers/README.md` asks of the program of this name.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use serde_json::{Value, json};
use teeny_runtime::backend::Backend;
use teeny_runtime::device::AnyModel;
use teeny_runtime::{
    Batch, BatchEntry, Device, Model, Overflow, Sampler, SamplerOptions, Session, Weights,
    on_device,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Times decoding, batches and prompts, or writes logits.
#[derive(Parser)]
struct Args {
    /// Model file
    model: PathBuf,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value_t = Device::Cuda(0))]
    device: Device,
    /// Where the report goes
    #[arg(long)]
    json: PathBuf,
    /// Tokens of a run
    #[arg(long, default_value_t = 256)]
    steps: usize,
    /// Timed runs of each kind
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Sequences at a time; 0 leaves batches out
    #[arg(long, default_value_t = 0)]
    batch: usize,
    /// Tokens of a prompt; 0 leaves prompts out
    #[arg(long, default_value_t = 0)]
    prefill: usize,
    /// Write the logits after each of these tokens instead of timing: little-endian u32
    #[arg(long)]
    tokens: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu_decode: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let model = AnyModel::load(args.device, &Weights::map(&args.model)?)?;
    let mut report = json!({ "device": model.describe(), "kv_element_bytes": 4 });
    match &args.tokens {
        Some(tokens) => on_device!(AnyModel, &model, m => logits(m, tokens, args, &mut report))?,
        None => on_device!(AnyModel, &model, m => time(m, args, &mut report))?,
    }
    std::fs::write(&args.json, serde_json::to_string(&report)?)?;
    Ok(())
}

/// Greedy, or as the sampled runs are to draw.
fn sampler(sampled: bool, seed: u64) -> Result<Sampler> {
    if !sampled {
        return Ok(Sampler::greedy());
    }
    let options = SamplerOptions {
        temperature: 0.8,
        top_k: 40,
        top_p: 1.0,
        min_p: 0.0,
        seed,
        ..SamplerOptions::default()
    };
    Ok(Sampler::new(options)?)
}

/// Two untimed runs, then the timed ones: their seconds, and what the last of them gave.
fn measure<T>(runs: usize, mut run: impl FnMut() -> Result<(f64, T)>) -> Result<(Vec<f64>, T)> {
    let mut last = run()?;
    last = (run()?.0, last.1);
    let mut seconds = Vec::new();
    for _ in 0..runs {
        last = run()?;
        seconds.push(last.0);
    }
    Ok((seconds, last.1))
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn time<B: Backend>(model: &Arc<Model<B>>, args: &Args, report: &mut Value) -> Result<()> {
    let vocab_size = model.config().vocab_size as u32;
    for (prefix, sampled) in [("", false), ("sampled_", true)] {
        let (runs, tokens) = decode(model, args, 1, sampled)?;
        report[format!("{prefix}tok_s")] = json!(args.steps as f64 / median(&runs));
        report[format!("{prefix}runs")] = json!(runs);
        report[format!("{prefix}tokens")] = json!(tokens);
        if args.batch > 0 {
            let (runs, tokens) = decode(model, args, args.batch, sampled)?;
            let tokens: Vec<Vec<u32>> = (0..args.batch)
                .map(|i| tokens.iter().skip(i).step_by(args.batch).copied().collect())
                .collect();
            let total = (args.steps * args.batch) as f64;
            report[format!("batch_{prefix}tok_s")] = json!(total / median(&runs));
            report[format!("batch_{prefix}runs")] = json!(runs);
            report[format!("batch_{prefix}tokens")] = json!(tokens);
        }
    }
    if args.prefill > 0 {
        let prompt: Vec<u32> =
            (0..args.prefill as u64).map(|i| (7919 * i % u64::from(vocab_size)) as u32).collect();
        let mut session = Session::new(model, Overflow::Slide)?;
        let (runs, ()) = measure(args.runs, || {
            session.reset();
            let start = Instant::now();
            session.prefill(&prompt)?;
            Ok((start.elapsed().as_secs_f64(), ()))
        })?;
        report["prefill_s"] = json!(median(&runs));
        report["prefill_runs"] = json!(runs);
    }
    Ok(())
}

/// `batch` sequences of `steps` tokens each, in runs. The tokens of the last one: (steps, batch)
fn decode<B: Backend>(
    model: &Arc<Model<B>>,
    args: &Args,
    batch: usize,
    sampled: bool,
) -> Result<(Vec<f64>, Vec<u32>)> {
    let vocab_size = model.config().vocab_size;
    let mut sessions = Vec::new();
    for _ in 0..batch {
        sessions.push(Session::new(model, Overflow::Slide)?);
    }
    let mut together = Batch::new(model);
    measure(args.runs, || {
        let mut samplers = Vec::new();
        for (i, session) in sessions.iter_mut().enumerate() {
            session.reset();
            samplers.push(sampler(sampled, i as u64)?);
        }
        let mut entries = Vec::new();
        for (i, (session, sampler)) in sessions.iter_mut().zip(&mut samplers).enumerate() {
            entries.push(BatchEntry { session, sampler, token: (i % vocab_size) as u32 });
        }
        let start = Instant::now();
        let tokens = together.generate(&mut entries, args.steps)?;
        Ok((start.elapsed().as_secs_f64(), tokens))
    })
}

fn logits<B: Backend>(
    model: &Arc<Model<B>>,
    tokens: &Path,
    args: &Args,
    report: &mut Value,
) -> Result<()> {
    let bytes = std::fs::read(tokens)?;
    let tokens: Vec<u32> =
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let mut one_by_one = Vec::new();
    let mut session = Session::new(model, Overflow::Slide)?;
    for token in &tokens {
        put(&mut one_by_one, session.decode(*token)?);
    }
    let mut at_once = Vec::new();
    session.reset();
    session.prefill_each(&tokens, &mut |_, logits| put(&mut at_once, logits))?;
    for (key, suffix, bytes) in
        [("logits_file", "logits", one_by_one), ("prefill_logits_file", "prefill.logits", at_once)]
    {
        let path = args.json.with_extension(suffix);
        std::fs::write(&path, bytes)?;
        report[key] = json!(path);
    }
    Ok(())
}

fn put(bytes: &mut Vec<u8>, values: &[f32]) {
    for value in values {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
}
