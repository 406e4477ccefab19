//! teeny-train: arguments and printing only.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use teeny_runtime::ini::Ini;
use teeny_trainer::config::Run;
use teeny_trainer::report::Report;
use teeny_trainer::train::{Outcome, Trainer};
use teeny_trainer::{Error, Result, device, memory, mkl, threads};

/// Exit code after Ctrl-C, as shells expect it.
const INTERRUPTED: u8 = 130;
/// Exit code when what was asked for cannot work, found before training.
const REFUSED: u8 = 2;
/// Exit code when training failed.
const FAILED: u8 = 1;

/// Trains a small GPT on a text and exports it as one safetensors file for teeny-run.
///
/// Standard output gets the path of the exported file, standard error everything else.
#[derive(Parser)]
#[command(name = "teeny-train", version)]
struct Args {
    /// Configuration file; every key is documented in the config.ini of the repository
    #[arg(short, long, value_name = "FILE", default_value = "config.ini")]
    config: PathBuf,
    /// Override a key of the configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Train on this device: auto, cpu, cuda or cuda:N [default: the key device of [train]]
    #[arg(long)]
    device: Option<String>,
    /// Continue from a checkpoint of the same model, such as models/shakespeare.last.ckpt
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// CPU threads [default: the key threads of [train]; 0 chooses by a short timing]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    mkl::link();
    memory::keep_freed_memory();
    let args = Args::parse();
    // tch turns libtorch's exceptions, such as memory that is used up, into panics.
    std::panic::set_hook(Box::new(|info| {
        let message = match info.payload().downcast_ref::<String>() {
            Some(message) => message.as_str(),
            None => info.payload().downcast_ref::<&str>().copied().unwrap_or("unknown failure"),
        };
        eprintln!("teeny-train: {}", libtorch_message(message));
    }));
    match std::panic::catch_unwind(|| run(&args)) {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err((error, code))) => {
            eprintln!("teeny-train: {error}");
            ExitCode::from(code)
        }
        Err(_) => ExitCode::from(FAILED),
    }
}

/// What libtorch says in a panic of tch, without the C++ stack that follows it.
fn libtorch_message(panic: &str) -> String {
    let Some((_, message)) = panic.split_once("Torch(\"") else {
        return panic.to_owned();
    };
    let end = message.find("\\nException raised").unwrap_or(message.len());
    format!("libtorch failed: {}", message[..end].replace("\\n", "\n"))
}

/// Reads and checks everything, trains, and returns the exit code.
fn run(args: &Args) -> std::result::Result<u8, (Error, u8)> {
    // Before training, whatever is wrong is what was asked for.
    let refused = |error: Error| (error, REFUSED);
    let run = configure(args).map_err(refused)?;
    let device = device::device(&run.train.device).map_err(refused)?;
    if run.train.threads > 0 {
        tch::set_num_threads(i32::try_from(run.train.threads).unwrap_or(i32::MAX));
    }
    let on_cpu = device == tch::Device::Cpu;
    if on_cpu && tch::get_num_threads() > 1 {
        threads::wait_politely();
    }
    print_run(&run);
    let stop = stop_on_ctrl_c().map_err(refused)?;
    let mut trainer = Trainer::new(&run, device).map_err(refused)?;
    if on_cpu && run.train.threads == 0 {
        trainer.choose_threads().map_err(refused)?;
    }
    if let Some(checkpoint) = &args.resume {
        trainer.resume(checkpoint).map_err(refused)?;
        eprintln!("\ncontinuing after step {} of {}", trainer.iteration(), checkpoint.display());
    }
    eprintln!("\n{} parameters; {}", run.n_params(), place(device));
    train(&run, &mut trainer, &stop).map_err(|error| (error, FAILED))
}

fn configure(args: &Args) -> Result<Run> {
    let mut ini = Ini::read(&args.config)?;
    for assignment in &args.set {
        ini.set(assignment)?;
    }
    if let Some(name) = &args.device {
        ini.set(&format!("train.device={name}"))?;
    }
    if let Some(threads) = args.threads {
        ini.set(&format!("train.threads={threads}"))?;
    }
    Run::read(&ini)
}

fn train(run: &Run, trainer: &mut Trainer<'_>, stop: &AtomicBool) -> Result<u8> {
    let tokens_per_step = (run.train.n_batch * run.train.n_context) as u64;
    let mut report = Report::new(trainer.iteration(), run.train.n_iters, tokens_per_step);
    let outcome = trainer.train(stop, &mut report);
    report.finish();
    let outcome = outcome?;
    eprintln!("{:.0} tokens/s, {:.1} ms/step", report.tokens_per_second(), report.ms_per_step());
    println!("{}", run.train.export_file.display());
    Ok(match outcome {
        Outcome::Finished => 0,
        Outcome::Stopped => INTERRUPTED,
    })
}

/// Where the run takes place.
fn place(device: tch::Device) -> String {
    match (device, tch::get_num_threads()) {
        (tch::Device::Cpu, 1) => "1 CPU thread".to_owned(),
        (tch::Device::Cpu, n) => format!("{n} CPU threads"),
        (tch::Device::Cuda(_) | tch::Device::Mps | tch::Device::Vulkan, _) => {
            format!("device {}", device::name(device))
        }
    }
}

/// The resolved configuration, so that a run can be understood from its log.
fn print_run(run: &Run) {
    eprintln!("[dataset]");
    for (key, value) in run.dataset.config().to_metadata() {
        eprintln!("{key} = {value}");
    }
    eprintln!("\n[model]");
    for (key, value) in run.model.to_metadata() {
        eprintln!("{key} = {value}");
    }
    eprintln!("dropout = {}", run.dropout);
    eprintln!("\n[train]");
    for (key, value) in run.train.to_metadata() {
        eprintln!("{key} = {value}");
    }
}

/// A flag that the first Ctrl-C sets; a second one ends the program at once.
fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        eprintln!("\nstopping after this step; Ctrl-C again to quit at once");
    })
    .map_err(|error| Error::Setup(format!("cannot handle Ctrl-C: {error}")))?;
    Ok(stop)
}
