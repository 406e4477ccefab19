//! Times a tokenizer, for `tests/peers/tokenizing.py`, which times the libraries in turn with it.
//!
//! `cargo run --release -p teeny-runtime --example tokenize -- tokenizer.json|MODEL.model TEXT`
//!
//! Reads lines and answers each with a line: `load` with the milliseconds that reading the tokenizer's
//! parts of a model file takes, `encode` and `decode` with the MB/s of once through the text, `tokens` with
//! their number and a sum of them.

use std::error::Error;
use std::hint::black_box;
use std::io::BufRead;
use std::process::ExitCode;
use std::time::Instant;

use teeny_runtime::tokenizer::{SentencePiece, Table, Tokenizer};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: tokenize tokenizer.json|MODEL.model TEXT";

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (file, text) = (arguments.next().ok_or(USAGE)?, arguments.next().ok_or(USAGE)?);
    let tokenizer = if file.ends_with(".model") {
        Tokenizer::SentencePiece(SentencePiece::from_model(&std::fs::read(&file)?)?)
    } else {
        Tokenizer::from_hf_json(&std::fs::read_to_string(&file)?, None, None)?
    };
    let text = std::fs::read_to_string(text)?;
    let megabytes = text.len() as f64 / 1e6;
    let tokens = tokenizer.encode(&text)?;
    let json = tokenizer.to_json();
    let tables: Vec<Table<'_>> = tokenizer.tables();
    for line in std::io::stdin().lock().lines() {
        let start = Instant::now();
        match line?.as_str() {
            "load" => {
                black_box(Tokenizer::from_json_and_tables(&json, &tables)?);
                println!("{}", 1e3 * start.elapsed().as_secs_f64());
            }
            "encode" => {
                black_box(tokenizer.encode(black_box(&text))?);
                println!("{}", megabytes / start.elapsed().as_secs_f64());
            }
            "decode" => {
                black_box(tokenizer.decode(black_box(&tokens))?);
                println!("{}", megabytes / start.elapsed().as_secs_f64());
            }
            "tokens" => {
                let sum: u64 = tokens.iter().map(|token| u64::from(*token)).sum();
                println!("{} {sum}", tokens.len());
            }
            other => return Err(format!("{other}: {USAGE}").into()),
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tokenize: {error}");
            ExitCode::FAILURE
        }
    }
}
