//! Times decoding one round at a time, for `tests/peers/cpu.py`, which runs rounds of other programs in turn.
//!
//! `cargo run --release -p teeny-runtime --example measure -- MODEL [--threads N] [--kv f32|f16|q8] [--fast]`
//!
//! Reads lines and answers each with a line of JSON; `tests/peers/README.md` has the table.

use std::error::Error;
use std::fmt::Write;
use std::hint::black_box;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use teeny_runtime::{Batch, Cpu, CpuOptions, Model, Overflow, Session, Weights};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: measure MODEL [--threads N] [--kv f32|f16|q8] [--fast]";
/// Bytes that a measurement of the read bandwidth reads at least, so that starting threads is nothing.
const LEAST_READ: usize = 2 << 30;

struct Bench {
    model: Arc<Model<Cpu>>,
    threads: usize,
    sessions: Vec<Session>,
    read: Vec<u64>,
}

impl Bench {
    fn new(mut arguments: impl Iterator<Item = String>) -> Result<Bench> {
        let path = arguments.next().ok_or(USAGE)?;
        let mut options = CpuOptions::default();
        while let Some(flag) = arguments.next() {
            match flag.as_str() {
                "--threads" => options.threads = arguments.next().ok_or(USAGE)?.parse()?,
                "--kv" => options.kv_dtype = arguments.next().ok_or(USAGE)?.parse()?,
                "--fast" => options.fast = true,
                _ => return Err(USAGE.into()),
            }
        }
        let cpu = Cpu::with_options(options)?;
        let model = Arc::new(Model::load(cpu, &Weights::map(Path::new(&path))?)?);
        let threads = model.backend().threads();
        Ok(Bench { model, threads, sessions: Vec::new(), read: Vec::new() })
    }

    /// Token `i`, the same on every side.
    fn fixed(&self, i: usize) -> u32 {
        (i * 7919 % self.model.config().vocab_size) as u32
    }

    /// As many empty sessions, with memory for `n_tokens`.
    fn prepare(&mut self, n_sessions: usize, n_tokens: usize) -> Result<()> {
        while self.sessions.len() < n_sessions {
            self.sessions.push(Session::new(&self.model, Overflow::Error)?);
        }
        self.sessions.truncate(n_sessions.max(1));
        for session in &mut self.sessions {
            session.reset();
            session.reserve(n_tokens)?;
        }
        Ok(())
    }

    /// Seconds for `n` tokens, one at a time, with an arg-max of each one's logits.
    fn decode(&mut self, n: usize) -> Result<f64> {
        self.prepare(1, n)?;
        let tokens: Vec<u32> = (0..n).map(|i| self.fixed(i)).collect();
        let start = Instant::now();
        for token in tokens {
            black_box(likeliest(self.sessions[0].decode(token)?));
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn prefill(&mut self, n: usize) -> Result<f64> {
        self.prepare(1, n)?;
        let tokens: Vec<u32> = (0..n).map(|i| self.fixed(i)).collect();
        let start = Instant::now();
        black_box(likeliest(self.sessions[0].prefill(&tokens)?));
        Ok(start.elapsed().as_secs_f64())
    }

    /// As [`Bench::decode`], `n` tokens for each of so many sessions, which decode together.
    fn batch(&mut self, n_sessions: usize, n: usize) -> Result<f64> {
        self.prepare(n_sessions, n)?;
        let tokens: Vec<u32> = (0..n + n_sessions).map(|i| self.fixed(i)).collect();
        let mut batch = Batch::new(&self.model);
        let start = Instant::now();
        for i in 0..n {
            let sessions = self.sessions.iter_mut().zip(&tokens[i..]);
            let mut entries: Vec<_> = sessions.map(|(session, token)| (session, *token)).collect();
            batch.decode(&mut entries)?;
            for (session, _) in &entries {
                black_box(likeliest(session.logits()));
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// The logits after the last of these tokens, which are fed one by one.
    fn logits(&mut self, tokens: &[usize]) -> Result<String> {
        self.prepare(1, tokens.len())?;
        for token in tokens {
            self.sessions[0].decode(u32::try_from(*token)?)?;
        }
        let mut text = String::new();
        for logit in self.sessions[0].logits() {
            write!(text, "{}{logit}", if text.is_empty() { "" } else { ", " })?;
        }
        Ok(text)
    }

    /// Reads as many bytes as the weights have, each thread its part, again and again: seconds, bytes.
    fn read(&mut self) -> (f64, usize) {
        let n = self.model.n_bytes().div_ceil(size_of::<u64>());
        self.read.resize(n, 1);
        let passes = (LEAST_READ / (n * size_of::<u64>())).max(4);
        let start = Instant::now();
        thread::scope(|scope| {
            for part in self.read.chunks(n.div_ceil(self.threads)) {
                scope.spawn(move || {
                    for _ in 0..passes {
                        black_box(sum(black_box(part)));
                    }
                });
            }
        });
        (start.elapsed().as_secs_f64(), passes * n * size_of::<u64>())
    }

    /// The answer to one line.
    fn answer(&mut self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap_or_default();
        let numbers = words.map(str::parse).collect::<std::result::Result<Vec<usize>, _>>()?;
        let seconds = match (command, &numbers[..]) {
            ("decode", [n]) => self.decode(*n)?,
            ("prefill", [n]) => self.prefill(*n)?,
            ("batch", [n_sessions, n]) => self.batch(*n_sessions, *n)?,
            ("logits", tokens @ [_, ..]) => {
                return Ok(format!("{{\"logits\": [{}]}}", self.logits(tokens)?));
            }
            ("read", []) => {
                let (seconds, bytes) = self.read();
                return Ok(format!("{{\"seconds\": {seconds}, \"bytes\": {bytes}}}"));
            }
            _ => return Err(format!("unknown request: {line}").into()),
        };
        Ok(format!("{{\"seconds\": {seconds}}}"))
    }
}

/// Index of the greatest number.
fn likeliest(logits: &[f32]) -> usize {
    let (mut best, mut greatest) = (0, f32::NEG_INFINITY);
    for (i, logit) in logits.iter().enumerate() {
        if *logit > greatest {
            (best, greatest) = (i, *logit);
        }
    }
    best
}

/// The least work per byte that reads all of them.
fn sum(words: &[u64]) -> u64 {
    #[inline(always)]
    fn body(words: &[u64]) -> u64 {
        let mut lanes = [0u64; 32];
        for words in words.chunks_exact(32) {
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane = lane.wrapping_add(*word);
            }
        }
        lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2(words: &[u64]) -> u64 {
            body(words)
        }
        if is_x86_feature_detected!("avx2") {
            #[allow(unsafe_code)]
            // SAFETY: the feature has just been detected.
            return unsafe { avx2(words) };
        }
    }
    body(words)
}

fn run() -> Result<()> {
    let mut bench = Bench::new(std::env::args().skip(1))?;
    for line in std::io::stdin().lines() {
        println!("{}", bench.answer(&line?)?);
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("measure: {error}");
            ExitCode::FAILURE
        }
    }
}
