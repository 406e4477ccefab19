//! `teeny-run`: arguments and printing only. Text goes to standard output, all else to standard
//! error. Exit codes: 0 done, 1 the output could not be written, 2 wrong arguments or files.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory, Parser, ValueEnum};
use teeny_runtime::chat::{Before, CHAT_TEMPLATE};
use teeny_runtime::config::{n_context, output_files};
use teeny_runtime::cpu::Isa;
use teeny_runtime::dataset::{Dataset, Split, SplitMix64, dataset_section};
use teeny_runtime::import::{self, ImportOptions};
use teeny_runtime::ini::Ini;
use teeny_runtime::{
    AnyModel, AnySession, Chat, CpuOptions, Device, EndReason, Error, GenerateOptions, Generation,
    KvDtype, LoadOptions, Overflow, Sampler, SamplerOptions, generate, on_device,
};

const DEFAULT_MODEL: &str = "data/shakespeare.safetensors";

/// Continues text with a model that teeny-train has exported.
#[derive(Parser)]
#[command(name = "teeny-run", version = version(), max_term_width = 100)]
struct Args {
    /// Model file, or one that teeny-convert reads without further options, such as a folder of Hugging
    /// Face's or a GGUF file [default: the export of --config, else data/shakespeare.safetensors]
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Text to continue; none or an empty one begins after a line break
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    prompt: Option<String>,
    /// Continue the text of a file instead
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Tokens to generate
    #[arg(short = 'n', long, visible_alias = "n-predict", value_name = "N", default_value_t = 256)]
    length: usize,
    /// Divides the logits: lower is safer, 0 always takes the most likely token
    #[arg(long, visible_alias = "temp", value_name = "T", default_value_t = 0.8)]
    temperature: f32,
    /// Draw from the K most likely tokens only; 0 is off
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Draw from the most likely tokens that together reach probability P; 1 is off
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Draw only tokens at least P times as likely as the most likely one; 0 is off
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    min_p: f32,
    /// Make recent tokens less likely; 1 is off
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repeat_penalty: f32,
    /// Make recent tokens less likely by X for each time that they occur; 0 is off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Make recent tokens less likely by X, however often they occur; 0 is off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// How many tokens are recent for the penalties
    #[arg(long, visible_alias = "repeat-last-n", value_name = "N", default_value_t = 64)]
    penalty_last_n: usize,
    /// The same seed gives the same text [default: from the clock, shown by --stats]
    #[arg(short, long, value_name = "N")]
    seed: Option<u64>,
    /// End when this text appears, without printing it; may be given several times
    #[arg(short = 'r', long, value_name = "TEXT")]
    stop: Vec<String>,
    /// What to do past the model's context: slide goes on without end
    #[arg(long, value_name = "POLICY", value_enum, default_value = "slide")]
    overflow: Policy,
    /// Where to run: cpu, cuda (the first NVIDIA GPU), cuda:N, or auto (a GPU if one can run it)
    #[arg(short, long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    device: Device,
    /// CPU threads; 0 takes as many as pay for the model's size
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// How keys and values are stored on the CPU: f32, f16 or q8
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    kv_dtype: KvDtype,
    /// Use the CPU's bf16 instructions for bf16 weights, where it has them: faster, other last digits
    #[arg(long)]
    fast: bool,
    /// Talk to a model that was trained for it: --prompt is a message, or each line of the input is one
    #[arg(long, conflicts_with_all = ["file", "config"])]
    chat: bool,
    /// What the model is told before the conversation [default: what its template says]
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Go on behind a token that ends a text
    #[arg(long, conflicts_with = "chat")]
    ignore_eos: bool,
    /// Print the generated text only
    #[arg(long)]
    no_display_prompt: bool,
    /// Report time to first token, tokens per second and bytes per second
    #[arg(long)]
    stats: bool,
    /// Continue random places of the corpus of this configuration instead of a prompt
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "file"])]
    config: Option<PathBuf>,
    /// Which part of that corpus
    #[arg(long, value_enum, value_name = "SPLIT", default_value = "test", requires = "config")]
    split: SplitName,
    /// How many places
    #[arg(long, value_name = "N", default_value_t = 5, requires = "config")]
    examples: usize,
    /// Print shell completions and exit
    #[arg(long, value_name = "SHELL", exclusive = true)]
    completions: Option<clap_complete::Shell>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Policy {
    /// Forget the oldest tokens
    Slide,
    /// End the text
    Stop,
    /// Fail
    Error,
}

#[derive(Clone, Copy, ValueEnum)]
enum SplitName {
    Train,
    Val,
    Test,
}

/// Version, and what this build can run on here.
fn version() -> String {
    let backends = if cfg!(feature = "cuda") { "cpu, cuda" } else { "cpu" };
    format!(
        "{} (backends: {backends}; instruction sets here: {})",
        env!("CARGO_PKG_VERSION"),
        Isa::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
    )
}

/// Why the program ends early.
enum Failure {
    /// Something the user can put right.
    Use(String),
    /// Standard output was closed or is full.
    Output(std::io::Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Use(e.to_string())
    }
}

fn main() -> ExitCode {
    let start = Instant::now();
    let args = Args::parse();
    if let Some(shell) = args.completions {
        clap_complete::generate(shell, &mut Args::command(), "teeny-run", &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    match run(&args, start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Use(message)) => {
            eprintln!("teeny-run: {message}");
            ExitCode::from(2)
        }
        // A reader that closes the pipe, as `head` does, has what it wanted.
        Err(Failure::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Output(e)) => {
            eprintln!("teeny-run: cannot write the text: {e}");
            ExitCode::from(1)
        }
    }
}

fn run(args: &Args, start: Instant) -> Result<(), Failure> {
    let mut sampler_options = SamplerOptions {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repeat_penalty: args.repeat_penalty,
        frequency_penalty: args.frequency_penalty,
        presence_penalty: args.presence_penalty,
        penalty_last_n: args.penalty_last_n,
        seed: args.seed.unwrap_or_else(clock_seed),
    };
    Sampler::new(sampler_options.clone())?;
    let import = ImportOptions::default();
    let file = model_file(args)?;
    let go_on = &mut |_| ControlFlow::Continue(());
    let weights = import::load(&file, &import, &LoadOptions::default(), go_on)?;
    let options = CpuOptions { threads: args.threads, kv_dtype: args.kv_dtype, fast: args.fast };
    let model = AnyModel::load_with(args.device, options, &weights)?;
    let mut session = AnySession::new(&model, args.overflow.into())?;
    let options = GenerateOptions {
        max_tokens: args.length,
        stop: args.stop.clone(),
        ignore_end: args.ignore_eos,
        begin_text: true,
        ..GenerateOptions::default()
    };

    if let Some(config) = &args.config {
        let seed = sampler_options.seed;
        let prompts = corpus_prompts(&model, config, args.split, args.examples, seed)?;
        for (i, prompt) in prompts.iter().enumerate() {
            let title = format!("EXAMPLE {}", i + 1);
            let rule = "-".repeat(title.len());
            print(&format!("\n{rule}\n{title}\n{rule}\n\n"))?;
            if !args.no_display_prompt {
                let text = model.tokenizer().decode(prompt)?;
                print(&format!("{} [[START]] ", String::from_utf8_lossy(&text)))?;
            }
            // Each example has random numbers of its own, and --examples 1 gives the first.
            sampler_options.seed = seed.wrapping_add(i as u64);
            let mut sampler = Sampler::new(sampler_options.clone())?;
            session.reset();
            let done = stream(&mut session, &mut sampler, prompt, &options)?;
            print("\n")?;
            if args.stats {
                report(&model, &session, &done, sampler_options.seed, start);
            }
        }
        return Ok(());
    }

    if args.chat {
        let template = weights.metadata().get(CHAT_TEMPLATE).ok_or_else(|| {
            let model = "--chat: found a model without a chat template, expected one that was trained to talk";
            Failure::Use(model.to_owned())
        })?;
        let chat = Chat::new(template, model.tokenizer())?;
        let seed = sampler_options.seed;
        let mut sampler = Sampler::new(sampler_options)?;
        let told = Told { model: &model, args, seed, start };
        return converse(&chat, &mut session, &mut sampler, &options, &told);
    }

    let text = prompt_text(args)?;
    let mut prompt = model.tokenizer().encode(&text)?;
    let begins = model.tokenizer().specials().is_some_and(|specials| specials.add_bos);
    if prompt.is_empty() && !begins {
        // Something must come first.
        prompt = model.tokenizer().encode("\n")?;
    }
    if !args.no_display_prompt {
        print(&text)?;
    }
    let seed = sampler_options.seed;
    let mut sampler = Sampler::new(sampler_options)?;
    let done = stream(&mut session, &mut sampler, &prompt, &options)?;
    if std::io::stdout().is_terminal() {
        print("\n")?;
    }
    if done.reason == EndReason::ContextFull {
        eprintln!("teeny-run: the context of {} tokens is full", model.config().max_seq_len);
    }
    if args.stats {
        report(&model, &session, &done, seed, start);
    }
    Ok(())
}

impl From<Policy> for Overflow {
    fn from(policy: Policy) -> Overflow {
        match policy {
            Policy::Slide => Overflow::Slide,
            Policy::Stop => Overflow::Stop,
            Policy::Error => Overflow::Error,
        }
    }
}

/// What the report of an answer needs.
struct Told<'a> {
    model: &'a AnyModel,
    args: &'a Args,
    seed: u64,
    start: Instant,
}

/// Answers the prompt, or every line of the input until it ends.
fn converse(
    chat: &Chat,
    session: &mut AnySession,
    sampler: &mut Sampler,
    options: &GenerateOptions,
    told: &Told<'_>,
) -> Result<(), Failure> {
    let Told { model, args, seed, start } = told;
    let options =
        GenerateOptions { feed_last: true, end_tokens: vec![chat.end()], ..options.clone() };
    let mut before = Before::Nothing;
    let mut answer = |message: &str| -> Result<(), Failure> {
        let system = args.system.as_deref();
        let prompt = chat.turn(model.tokenizer(), before, system, message)?;
        let done = stream(session, sampler, &prompt, &options)?;
        before = match done.reason {
            EndReason::EndToken => Before::Ended,
            EndReason::Length
            | EndReason::StopText
            | EndReason::ContextFull
            | EndReason::Cancelled
            | EndReason::Failed => Before::CutOff,
        };
        print("\n")?;
        if args.stats {
            report(model, session, &done, *seed, *start);
        }
        Ok(())
    };
    if let Some(message) = &args.prompt {
        return answer(message);
    }
    let input = std::io::stdin();
    let asks = input.is_terminal();
    loop {
        if asks {
            eprint!("> ");
        }
        let mut line = String::new();
        let n = input.read_line(&mut line).map_err(|e| Failure::Use(format!("input: {e}")))?;
        if n == 0 {
            return Ok(());
        }
        let line = line.trim_end_matches(['\n', '\r']);
        if !line.is_empty() {
            answer(line)?;
        }
    }
}

/// Generates and prints each piece of text as it comes.
fn stream(
    session: &mut AnySession,
    sampler: &mut Sampler,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<Generation, Failure> {
    let mut failure = None;
    let on_text = &mut |text: &str| match print(text) {
        Ok(()) => ControlFlow::Continue(()),
        Err(e) => {
            failure = Some(e);
            ControlFlow::Break(())
        }
    };
    let done =
        on_device!(AnySession, session, s => generate(s, sampler, prompt, options, on_text))?;
    failure.map_or(Ok(done), Err)
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// The model asked for; with `--config` the one that teeny-train has exported by it, if it has; else
/// the one that ships, from the current folder or from where the source was built.
fn model_file(args: &Args) -> Result<PathBuf, Failure> {
    if let Some(path) = &args.model {
        return Ok(path.clone());
    }
    if let Some(config) = &args.config {
        let (_, export) = output_files(&Ini::read(config)?)?;
        if export.exists() {
            return Ok(export);
        }
        eprintln!("teeny-run: {} is not there yet: using the model that ships", export.display());
    }
    let here = PathBuf::from(DEFAULT_MODEL);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(DEFAULT_MODEL);
    Ok(if !here.exists() && source.exists() { source } else { here })
}

fn prompt_text(args: &Args) -> Result<String, Failure> {
    if let Some(path) = &args.file {
        return std::fs::read_to_string(path)
            .map_err(|e| Failure::Use(format!("--file {}: {e}", path.display())));
    }
    Ok(args.prompt.clone().unwrap_or_default())
}

/// Prompts of the configuration's `n_context` tokens from random places of a split.
fn corpus_prompts(
    model: &AnyModel,
    config: &Path,
    split: SplitName,
    examples: usize,
    seed: u64,
) -> Result<Vec<Vec<u32>>, Failure> {
    let ini = Ini::read(config)?;
    ini.check_sections(teeny_runtime::config::SECTIONS)?;
    let dataset = Dataset::load_with(&dataset_section(&ini)?, model.tokenizer().clone())?;
    let n_context = n_context(&ini, model.config().max_seq_len)?;
    dataset.check_context(n_context)?;
    let split = match split {
        SplitName::Train => Split::Train,
        SplitName::Val => Split::Val,
        SplitName::Test => Split::Test,
    };
    let mut rng = SplitMix64::new(seed);
    let window = |_| Ok(dataset.chunks(split).random_window(n_context, &mut rng)?.to_vec());
    (0..examples).map(window).collect()
}

/// A seed that differs from run to run.
fn clock_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64)
}

/// Bytes of memory that is this process's own, mapped files left out, where the system tells it.
fn own_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()? * 1024.0)
}

fn report(model: &AnyModel, session: &AnySession, done: &Generation, seed: u64, start: Instant) {
    let c = model.config();
    eprintln!(
        "model    {:.2} M parameters, {} layers, {} heads, width {}, context {}, {:.1} MB",
        model.n_params() as f64 / 1e6,
        c.n_layer,
        c.n_head,
        c.n_embd,
        c.max_seq_len,
        model.n_bytes() as f64 / 1e6
    );
    eprintln!("device   {}", model.describe());
    let kv = session.kv_bytes().0 as f64 / 1e6;
    match own_memory() {
        Some(all) => {
            eprintln!("memory   {kv:.2} MB of keys and values, {:.2} MB else", all / 1e6 - kv);
        }
        None => eprintln!("memory   {kv:.2} MB of keys and values"),
    }
    eprintln!("seed     {seed}");
    let prefill = done.prefill_time.as_secs_f64();
    eprintln!(
        "prompt   {} tokens in {:.1} ms, {:.0} tok/s",
        done.prompt_tokens,
        prefill * 1e3,
        done.prompt_tokens as f64 / prefill
    );
    let first = start.elapsed().saturating_sub(done.decode_time).as_secs_f64();
    eprintln!("first    token {:.1} ms after the start of the program", first * 1e3);
    if done.decode_steps > 0 {
        let per_token = done.decode_time.as_secs_f64() / done.decode_steps as f64;
        eprintln!(
            "decode   {} tokens in {:.1} ms, {:.0} tok/s, {:.1} GB/s of weights",
            done.tokens,
            done.decode_time.as_secs_f64() * 1e3,
            1.0 / per_token,
            model.n_bytes() as f64 / per_token / 1e9
        );
    }
}
