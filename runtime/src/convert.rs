//! `teeny-convert`: arguments and printing only. Exit codes: 0 done, 1 the output could not be written,
//! 2 wrong arguments or files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{CommandFactory, Parser};
use teeny_runtime::{Dtype, Error, Weights};

/// Writes a model file in another element type.
///
/// q8 and q4 keep matrices in 8 and in about 5 bits a weight: smaller, faster, and less exact.
#[derive(Parser)]
#[command(name = "teeny-convert", version, max_term_width = 100)]
struct Args {
    /// Model file, as teeny-train exports it
    #[arg(value_name = "INPUT", required = true)]
    input: Option<PathBuf>,
    /// Element type of the output
    #[arg(short, long, value_name = "TYPE", required = true, value_parser = dtype_parser())]
    dtype: Option<Dtype>,
    /// File to write; it appears when it is complete
    #[arg(short, long, value_name = "FILE", required = true)]
    output: Option<PathBuf>,
    /// Print shell completions and exit
    #[arg(long, value_name = "SHELL", exclusive = true)]
    completions: Option<clap_complete::Shell>,
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
    // The parser has asked for all three.
    let (Some(input), Some(dtype), Some(output)) = (args.input, args.dtype, args.output) else {
        return ExitCode::from(2);
    };
    match run(&input, dtype, &output) {
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

fn run(input: &Path, dtype: Dtype, output: &Path) -> Result<(), Failure> {
    let weights = Weights::map(input)?;
    // It would be safe, as the old file stays until the new one is whole; but it cannot be undone.
    if is_same_file(input, output) {
        return Err(Failure::Use(format!(
            "--output: found the input {}, expected another file",
            output.display()
        )));
    }
    let quantised = weights.tensors().any(|(_, tensor)| tensor.dtype().is_quantised());
    if quantised && dtype.is_quantised() && weights.dtype() != Some(dtype) {
        eprintln!(
            "teeny-convert: {} is {} already, and what that lost does not come back: convert the \
             original if you have it",
            input.display(),
            type_name(&weights)
        );
    }
    weights.write(output, dtype).map_err(|error| {
        let message = error.to_string();
        if matches!(error, Error::Io { .. }) {
            Failure::Output(message)
        } else {
            Failure::Use(message)
        }
    })?;
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

fn is_same_file(a: &Path, b: &Path) -> bool {
    // What is not there yet is another file.
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn type_name(weights: &Weights) -> &'static str {
    weights.dtype().map_or("mixed", Dtype::name)
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
