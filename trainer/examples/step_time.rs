//! Does a training step of the default model for each line on standard input and prints how many
//! milliseconds it took: our side of `tests/peers/train_step.py`.
//!
//! Arguments: number of CPU threads, then `section.key=value` overrides.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use teeny_runtime::ini::Ini;
use teeny_trainer::config::Run;
use teeny_trainer::train::Trainer;
use teeny_trainer::{memory, mkl, threads};

/// Distinct characters of the made-up text, as many as tiny Shakespeare has.
const VOCAB_SIZE: usize = 65;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    threads::set_environment();
    mkl::link();
    memory::keep_freed_memory();
    let mut args = std::env::args().skip(1);
    let n_threads: i32 = args.next().ok_or("how many threads?")?.parse()?;
    tch::set_num_threads(n_threads);

    let folder = std::env::temp_dir().join(format!("teeny-step-time-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let text = folder.join("text.txt");
    let chars: Vec<char> = ('!'..).take(VOCAB_SIZE).collect();
    std::fs::write(
        &text,
        (0..200_000).map(|i| chars[i * i % 1009 % VOCAB_SIZE]).collect::<String>(),
    )?;
    let mut ini = Ini::parse(Path::new("config.ini"), "[dataset]\n[model]\n[train]\n")?;
    ini.set(&format!("dataset.input_file={}", text.display()))?;
    ini.set(&format!("train.checkpoint_file={}", folder.join("x.ckpt").display()))?;
    for (key, value) in [
        ("n_layer", "4"),
        ("n_head", "8"),
        ("n_embd", "256"),
        ("max_seq_len", "256"),
        ("dropout", "0.2"),
    ] {
        ini.set(&format!("model.{key}={value}"))?;
    }
    for assignment in args {
        ini.set(&assignment)?;
    }
    let run = Run::read(&ini)?;
    let mut trainer = Trainer::new(&run, tch::Device::Cpu, None)?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let started = Instant::now();
        trainer.run_steps(1)?;
        println!("{:.3}", started.elapsed().as_secs_f64() * 1e3);
        std::io::stdout().flush()?;
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
