//! What element types cost: the loss of model files on a split of a corpus, as training evaluates it.
//!
//! ```sh
//! cargo run --release --example perplexity -- --config config.ini --split test MODEL...
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use teeny_runtime::config::n_context;
use teeny_runtime::dataset::{Dataset, Split, dataset_section};
use teeny_runtime::ini::Ini;
use teeny_runtime::{Cpu, Dtype, Model, Overflow, Result, Score, Session, Weights, score_windows};

/// Prints the loss of each model on a split of a corpus, and the difference to that of the first.
#[derive(Parser)]
struct Args {
    /// Configuration that says what the corpus is and how it is divided
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which part of the corpus: train, val or test
    #[arg(long, value_name = "SPLIT", default_value = "test", value_parser = split)]
    split: Split,
    /// Model files of one vocabulary
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,
}

fn split(text: &str) -> std::result::Result<Split, &'static str> {
    Split::parse(text).ok_or("expected train, val or test")
}

fn main() -> std::process::ExitCode {
    match run(&Args::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perplexity: {error}");
            std::process::ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<()> {
    println!("| weights | MB | loss | difference | perplexity | file |\n|---|---|---|---|---|---|");
    let mut first = None;
    for path in &args.models {
        let weights = Weights::map(path)?;
        let started = Instant::now();
        let score = evaluate(args, &weights)?;
        let first = *first.get_or_insert(score.loss());
        println!(
            "| {} | {:.2} | {:.4} | {:+.4} | {:.4} | `{}` |",
            weights.dtype().map_or("mixed", Dtype::name),
            weights.n_bytes() as f64 / 1e6,
            score.loss(),
            score.loss() - first,
            score.perplexity(),
            path.display()
        );
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("{}: {} tokens in {seconds:.0} s", path.display(), score.n_scored);
    }
    Ok(())
}

/// Scores every token of the split but the first of each piece.
fn evaluate(args: &Args, weights: &Weights) -> Result<Score> {
    let ini = Ini::read(&args.config)?;
    ini.check_sections(teeny_runtime::config::SECTIONS)?;
    let n_context = n_context(&ini, weights.config().max_seq_len)?;
    let dataset = Dataset::load_with(&dataset_section(&ini)?, weights.tokenizer().clone())?;
    let model = Arc::new(Model::load(Cpu::new(), weights)?);
    let mut session = Session::new(&model, Overflow::Error)?;
    let chunks = dataset.chunks(args.split);
    let mut total = Score::default();
    for piece in chunks.tokens().chunks(chunks.chunk_len().max(1)) {
        let score = score_windows(&mut session, piece, n_context)?;
        total.n_scored += score.n_scored;
        total.log_prob += score.log_prob;
    }
    Ok(total)
}
