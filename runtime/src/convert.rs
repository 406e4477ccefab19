//! `teeny-convert`: arguments and printing only. Exit codes: 0 done, 1 the output could not be written,
//! 2 wrong arguments or files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{CommandFactory, Parser, ValueEnum};
use teeny_runtime::import::{Format, ImportOptions, Source, write_hugging_face};
use teeny_runtime::{Dtype, Error, Weights};

/// Writes a model as teeny's file, or in another element type.
///
/// Reads files of teeny's own, folders of Hugging Face's (Llama, GPT-2), GGUF files (llama), llama2.c's .bin
/// files, and checkpoints of nanoGPT and teenyGPT as safetensors; runtime/CONVERT.md says what of each.
///
/// q8 and q4 keep matrices in 8 and in about 5 bits a weight: smaller, faster, and less exact.
#[derive(Parser)]
#[command(name = "teeny-convert", version, max_term_width = 100)]
struct Args {
    /// Model file, or folder of Hugging Face's
    #[arg(value_name = "INPUT", required = true)]
    input: Option<PathBuf>,
    /// Element type of the output [default: for each tensor the nearest to its own; a file of teeny's
    /// that stays one needs it]
    #[arg(short, long, value_name = "TYPE", value_parser = dtype_parser())]
    dtype: Option<Dtype>,
    /// File to write, which appears when it is complete; with --to hf a new folder
    #[arg(short, long, value_name = "PATH", required = true)]
    output: Option<PathBuf>,
    /// What to write
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "teeny")]
    to: Target,
    /// Vocabulary of llama2.c [default: tokenizer.bin beside INPUT], or of nanoGPT and teenyGPT:
    /// tokenizer.json, or a JSON file with all characters
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// The config.ini of a teenyGPT checkpoint
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Number of heads of a nanoGPT checkpoint [default: its metadata n_head]
    #[arg(long, value_name = "N")]
    n_head: Option<usize>,
    /// Print shell completions and exit
    #[arg(long, value_name = "SHELL", exclusive = true)]
    completions: Option<clap_complete::Shell>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Target {
    /// One file of teeny's
    Teeny,
    /// A folder that Hugging Face's transformers opens
    Hf,
}

fn dtype_parser() -> impl TypedValueParser<Value = Dtype> {
    let named = |name: String| Dtype::ALL.iter().copied().find(|dtype| dtype.name() == name);
    PossibleValuesParser::new(Dtype::ALL.iter().map(|dtype| dtype.name()))
        .try_map(move |name| named(name).ok_or("no element type"))
}

/// Why the program ends early.
enum Failure {
    /// Something the user can put right.
    Use(String),
    /// The output cannot be written.
    Output(String),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Use(e.to_string())
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let name = "teeny-convert";
    if let Some(shell) = args.completions {
        clap_complete::generate(shell, &mut Args::command(), name, &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Use(message)) => {
            eprintln!("{name}: {message}");
            ExitCode::from(2)
        }
        Err(Failure::Output(message)) => {
            eprintln!("{name}: {message}");
            ExitCode::from(1)
        }
    }
}

fn run(args: Args) -> Result<(), Failure> {
    // The parser has asked for both.
    let (Some(input), Some(output)) = (args.input, args.output) else { return Ok(()) };
    let options =
        ImportOptions { tokenizer: args.tokenizer, config: args.config, n_head: args.n_head };
    // It would be safe, as the old file stays until the new one is whole; but it cannot be undone.
    if is_read(&input, &options, &output) {
        return Err(Failure::Use(format!(
            "--output: found {}, which the model is read from, expected another file",
            output.display()
        )));
    }
    let Some(format) = Format::of(&input)? else {
        if options != ImportOptions::default() {
            return Err(Failure::Use(format!(
                "--tokenizer, --config, --n-head: found one of them, expected none, as {} is a file of \
                 teeny's",
                input.display()
            )));
        }
        return convert(&input, args.dtype, args.to, &output);
    };
    if args.to != Target::Teeny {
        return Err(Failure::Use(format!(
            "--to hf: found a model of {}, expected one of teeny's: convert it to that first",
            format.name()
        )));
    }
    let source = Source::open(&input, &options)?;
    source.write(&output, args.dtype).map_err(failed)?;
    let written = Weights::map(&output)?;
    let c = written.config();
    eprintln!(
        "{} ({}) -> {} ({}, {:.2} MB): {} layers, {} heads, width {}, context {}, {} tokens",
        input.display(),
        format.name(),
        output.display(),
        type_name(&written),
        written.n_bytes() as f64 / 1e6,
        c.n_layer,
        c.n_head,
        c.n_embd,
        c.max_seq_len,
        c.vocab_size
    );
    Ok(())
}

/// Converts a file of teeny's own.
fn convert(input: &Path, dtype: Option<Dtype>, to: Target, output: &Path) -> Result<(), Failure> {
    let weights = Weights::map(input)?;
    if to == Target::Hf {
        write_hugging_face(&weights, output, dtype).map_err(failed)?;
        eprintln!("{} -> {} (Hugging Face)", input.display(), output.display());
        return Ok(());
    }
    let Some(dtype) = dtype else {
        return Err(Failure::Use(
            "--dtype: found nothing, expected an element type, as the input is a file of teeny's"
                .to_owned(),
        ));
    };
    let quantised = weights.tensors().any(|(_, tensor)| tensor.dtype().is_quantised());
    if quantised && dtype.is_quantised() && weights.dtype() != Some(dtype) {
        eprintln!(
            "teeny-convert: {} is {} already, and what that lost does not come back: convert the \
             original if you have it",
            input.display(),
            type_name(&weights)
        );
    }
    weights.write(output, dtype).map_err(failed)?;
    let written = Weights::map(output)?;
    eprintln!(
        "{} ({}, {:.2} MB) -> {} ({}, {:.2} MB), {}",
        input.display(),
        type_name(&weights),
        weights.n_bytes() as f64 / 1e6,
        output.display(),
        type_name(&written),
        written.n_bytes() as f64 / 1e6,
        match difference(&weights, &written)? {
            0.0 => "the same numbers".to_owned(),
            off => format!("matrices off by {:.2}% (root mean square)", 100.0 * off),
        }
    );
    Ok(())
}

/// Tells what cannot be written from what cannot be converted.
fn failed(error: Error) -> Failure {
    let message = error.to_string();
    if matches!(error, Error::Io { .. }) { Failure::Output(message) } else { Failure::Use(message) }
}

/// Whether the conversion reads `output`: the input itself, a file in its folder, or one beside it.
fn is_read(input: &Path, options: &ImportOptions, output: &Path) -> bool {
    let inside = || {
        let parent = output.canonicalize().ok()?.parent()?.to_owned();
        Some(parent == input.canonicalize().ok()?)
    };
    let beside = input.with_file_name("tokenizer.bin");
    let others = [options.tokenizer.as_deref(), options.config.as_deref(), Some(beside.as_path())];
    is_same_file(input, output)
        || inside().unwrap_or(false)
        || others.into_iter().flatten().any(|file| is_same_file(file, output))
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    // What is not there yet is another file.
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The element type of a model, or of most of its numbers.
fn type_name(weights: &Weights) -> String {
    if let Some(dtype) = weights.dtype() {
        return dtype.name().to_owned();
    }
    let numbers = |dtype: &Dtype| -> usize {
        let of_type = weights.tensors().filter(|(_, tensor)| tensor.dtype() == *dtype);
        of_type.map(|(_, tensor)| tensor.len()).sum()
    };
    let most = Dtype::ALL.iter().max_by_key(|dtype| numbers(dtype));
    most.map_or("mixed".to_owned(), |dtype| format!("mostly {}", dtype.name()))
}

/// Root of the mean square of what the matrices differ by, in parts of that of their numbers.
fn difference(from: &Weights, to: &Weights) -> Result<f64, Error> {
    let (mut differences, mut squares) = (0.0, 0.0);
    for (name, tensor) in from.tensors().filter(|(_, tensor)| tensor.shape().len() == 2) {
        for (a, b) in tensor.to_f32()?.iter().zip(to.tensor(name)?.to_f32()?) {
            differences += f64::from(a - b).powi(2);
            squares += f64::from(*a).powi(2);
        }
    }
    Ok(if differences == 0.0 { 0.0 } else { (differences / squares).sqrt() })
}
