//! teeny-train: arguments and printing only.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use serde_json::{Map, Value, json};
use tch::Device;
use teeny_runtime::format::write_atomically;
use teeny_runtime::ini::Ini;
use teeny_trainer::config::Run;
use teeny_trainer::distributed::{ProcessGroup, World};
use teeny_trainer::report::Report;
use teeny_trainer::report_page::lr_range_page;
use teeny_trainer::run_dir::{self, RunDir};
use teeny_trainer::train::{Group, Outcome, Trainer};
use teeny_trainer::{Error, Result, device, dry_run, export, memory, mkl, threads};

/// Exit code after Ctrl-C, as shells expect it.
const INTERRUPTED: u8 = 130;
/// Exit code when what was asked for cannot work, found before training.
const REFUSED: u8 = 2;
/// Exit code when training failed.
const FAILED: u8 = 1;
/// How long a process waits for the others of its group.
const GROUP_TIMEOUT: Duration = Duration::from_secs(600);

/// Trains a small GPT on a text and exports it as one safetensors file for teeny-run.
///
/// Standard output gets the path of the exported file, standard error everything else.
///
/// Started by torchrun or mpirun, the processes train one model together: each step takes
/// n_batch * grad_accum sequences of each of them.
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
    /// Continue the run of a checkpoint, such as models/shakespeare.last.ckpt
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// CPU threads [default: the key threads of [train]; 0 chooses by a short timing]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
    /// Write TensorBoard event files into the run's folder too
    #[arg(long)]
    tensorboard: bool,
    /// Say what the run would take, and do not train
    #[arg(long, conflicts_with_all = ["resume", "find_lr", "export_only"])]
    dry_run: bool,
    /// Learning-rate range test: suggest lr_max, plot the losses, and do not train
    #[arg(long, conflicts_with_all = ["resume", "export_only"])]
    find_lr: bool,
    /// Export the model of a checkpoint, and do not train; it needs no configuration
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "resume")]
    export_only: Option<PathBuf>,
}

fn main() -> ExitCode {
    threads::set_environment();
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

/// Reads and checks everything, does what was asked for, and returns the exit code.
fn run(args: &Args) -> std::result::Result<u8, (Error, u8)> {
    // Before training, whatever is wrong is what was asked for.
    let refused = |error: Error| (error, REFUSED);
    let failed = |error: Error| (error, FAILED);
    if let Some(checkpoint) = &args.export_only {
        let file = export::export_checkpoint(checkpoint, &args.set).map_err(refused)?;
        println!("{}", file.display());
        return Ok(0);
    }
    let run = configure(args).map_err(refused)?;
    let world = World::from_env().map_err(refused)?;
    if world.is_some() && (args.dry_run || args.find_lr) {
        let message = "--dry-run and --find-lr: found a group of processes, expected one process";
        return Err(refused(Error::Setup(message.to_owned())));
    }
    let device = chosen_device(&run, world.as_ref()).map_err(refused)?;
    let is_first = world.as_ref().is_none_or(|world| world.rank == 0);
    if run.train.threads > 0 {
        tch::set_num_threads(i32::try_from(run.train.threads).unwrap_or(i32::MAX));
    }
    if is_first {
        print_run(&run);
    }
    let group = world.as_ref().map(|world| join(world, device)).transpose().map_err(refused)?;
    let mut trainer = Trainer::new(&run, device, group).map_err(refused)?;
    if device == Device::Cpu && run.train.threads == 0 && args.resume.is_none() {
        trainer.choose_threads().map_err(refused)?;
    }
    let mut notes = Vec::new();
    if let Some(checkpoint) = &args.resume {
        notes = trainer.resume(checkpoint).map_err(refused)?;
    }
    if is_first {
        eprintln!("\n{} parameters; {}", run.n_params(), place(device, world.as_ref()));
    }
    if args.dry_run {
        print!("{}", dry_run::dry_run(&run, &mut trainer).map_err(failed)?);
        return Ok(0);
    }
    // Until here there is nothing to save, and a signal just ends the program.
    let stop = stop_on_signals().map_err(refused)?;
    if args.find_lr {
        return find_lr(&run, &mut trainer, &stop).map_err(failed);
    }
    if is_first {
        trainer.check_files().map_err(refused)?;
    }
    let mut report = if is_first {
        report(args, &run, &trainer, device).map_err(refused)?
    } else {
        Report::silent(run.train.n_iters)
    };
    for note in notes {
        report.event(trainer.iteration(), &note);
    }
    let outcome = trainer.train(&stop, &mut report);
    report.finish();
    if outcome.is_err() {
        report.ended("failed", None);
    }
    let outcome = outcome.map_err(failed)?;
    if is_first {
        let speed = (report.tokens_per_second(), report.ms_per_step());
        eprintln!("{:.0} tokens/s, {:.1} ms/step", speed.0, speed.1);
        println!("{}", run.train.export_file.display());
    }
    Ok(match outcome {
        Outcome::Finished | Outcome::Patience => 0,
        Outcome::Stopped => INTERRUPTED,
    })
}

/// The device of the configuration; of several processes each takes the GPU of its number.
fn chosen_device(run: &Run, world: Option<&World>) -> Result<Device> {
    match (device::device(&run.train.device)?, world) {
        (Device::Cuda(_), Some(world)) => device::device(&format!("cuda:{}", world.local_rank)),
        (device, _) => Ok(device),
    }
}

fn join(world: &World, device: Device) -> Result<Group> {
    let group = ProcessGroup::connect(world, device, GROUP_TIMEOUT)?;
    Ok(Group { group, rank: world.rank, size: world.size })
}

/// The terminal and the run's folder.
fn report(args: &Args, run: &Run, trainer: &Trainer<'_>, device: Device) -> Result<Report> {
    let n_processes = trainer.n_processes();
    let tokens = (run.train.n_sequences() * run.train.n_context * n_processes) as u64;
    let mut report = Report::new(trainer.iteration(), run.train.n_iters, tokens);
    let info = info(run, trainer, device);
    let continued = args.resume.as_ref().map(|_| trainer.iteration());
    let run_dir = RunDir::open(&run.train.run_dir(), &info, continued, args.tensorboard)?;
    eprintln!("records: {}", run_dir.path().display());
    report.record_in(run_dir);
    if let Some(checkpoint) = &args.resume {
        report.event(trainer.iteration(), &format!("continued from {}", checkpoint.display()));
    }
    Ok(report)
}

/// What is known of a run before it begins.
fn info(run: &Run, trainer: &Trainer<'_>, device: Device) -> Value {
    let section = |entries: Vec<(&'static str, String)>| -> Value {
        let entries = entries.into_iter().map(|(key, value)| (key.to_owned(), Value::from(value)));
        Value::Object(entries.collect::<Map<_, _>>())
    };
    let mut model = run.model.to_metadata();
    model.push(("dropout", run.dropout.to_string()));
    json!({
        "started": run_dir::now_utc(),
        "command": std::env::args().collect::<Vec<_>>(),
        "teeny_version": env!("CARGO_PKG_VERSION"),
        "libtorch_version": "2.11.0",
        "git_commit": std::env::current_dir().ok().as_deref().and_then(run_dir::git_commit),
        "device": device::name(device),
        "processes": trainer.n_processes(),
        "threads": tch::get_num_threads(),
        "seed": run.train.seed,
        "parameters": run.n_params(),
        "data": run.dataset.config().input_file.display().to_string(),
        "dataset_sha256": trainer.sha256(),
        "config": {
            "dataset": section(run.dataset.config().to_metadata()),
            "model": section(model),
            "train": section(run.train.to_metadata()),
        },
    })
}

/// The learning-rate range test and its plot.
fn find_lr(run: &Run, trainer: &mut Trainer<'_>, stop: &AtomicBool) -> Result<u8> {
    let range = trainer.find_lr(stop)?;
    if stop.load(Ordering::Relaxed) {
        return Ok(INTERRUPTED);
    }
    for (lr, loss) in &range.points {
        eprintln!("lr {lr:.2e}: loss {loss:.4}");
    }
    let Some(suggestion) = range.suggestion() else {
        return Err(Error::Setup("the loss never fell: no learning rate to suggest".to_owned()));
    };
    let page = lr_range_page(&range.points, suggestion, &info(run, trainer, trainer.device()));
    let file = run.train.run_dir().join("lr_range.html");
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|source| {
        let action = "cannot make folder";
        Error::Runtime(teeny_runtime::Error::Io { action, path: folder.to_owned(), source })
    })?;
    write_atomically(&file, |out| std::io::Write::write_all(out, page.as_bytes()))?;
    eprintln!("plot: {}", file.display());
    println!("lr_max = {suggestion:.1e}");
    if run.train.optimizer == teeny_trainer::optim::OptimizerKind::Muon {
        println!("muon_lr = {:.1e}", suggestion / run.train.lr_max * run.train.muon_lr);
    }
    Ok(0)
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

/// Where the run takes place.
fn place(device: Device, world: Option<&World>) -> String {
    let place = match (device, tch::get_num_threads()) {
        (Device::Cpu, 1) => "1 CPU thread".to_owned(),
        (Device::Cpu, n) => format!("{n} CPU threads"),
        (Device::Cuda(_) | Device::Mps | Device::Vulkan, _) => {
            format!("device {}", device::name(device))
        }
    };
    world.map_or(place.clone(), |world| format!("{} processes, {place} each", world.size))
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

/// A flag that the first Ctrl-C or SIGTERM sets; a second one ends the program at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        eprintln!("\nstopping; once more to quit at once");
    })
    .map_err(|error| Error::Setup(format!("cannot handle Ctrl-C: {error}")))?;
    Ok(stop)
}
