//! Training on a GPU. Without one, each test says that it was skipped.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use tch::{Cuda, Device, Tensor};
use teeny_runtime::ini::Ini;
use teeny_trainer::config::Run;
use teeny_trainer::report::Report;
use teeny_trainer::train::{Outcome, Trainer};

fn has_gpu() -> bool {
    let found = Cuda::is_available();
    if !found {
        // Not println!, which the test runner keeps to itself.
        let _ = writeln!(std::io::stderr(), "SKIPPED: libtorch finds no CUDA GPU on this machine");
    }
    found
}

fn run(folder: &Path, set: &[&str]) -> Run {
    let text = folder.join("text.txt");
    let letters: String =
        (0..40_000u32).map(|i| char::from(b'a' + (i * i % 23 % 7) as u8)).collect();
    std::fs::write(&text, letters).unwrap();
    let mut ini = Ini::parse(Path::new("config.ini"), "[dataset]\n[model]\n[train]\n").unwrap();
    let all = [
        &format!("dataset.input_file={}", text.display())[..],
        &format!("train.checkpoint_file={}", folder.join("x.ckpt").display()),
        "dataset.tokens_per_chunk=1000",
        "model.n_layer=2",
        "model.n_head=2",
        "model.n_embd=64",
        "model.max_seq_len=64",
        "train.n_iters=20",
        "train.n_batch=64",
        "train.n_est_loss_iters=10",
        "train.sample_length=0",
    ];
    for assignment in all.iter().chain(set) {
        ini.set(assignment).unwrap();
    }
    Run::read(&ini).unwrap()
}

fn theta(trainer: &Trainer<'_>) -> Tensor {
    trainer.model().params.theta.detach().to_device(Device::Cpu)
}

fn largest(difference: &Tensor) -> f64 {
    difference.abs().max().double_value(&[])
}

const MUON: &[&str] = &[
    "train.optimizer=muon",
    "train.schedule=wsd",
    "train.sampling=epochs",
    "train.ema=0.9",
    "train.grad_clip=1",
    "model.qk_norm=true",
    "model.ffn=relu2",
    "model.norm=rmsnorm",
    "model.logit_softcap=15",
];

/// The steps that a CUDA graph replays are those that libtorch does one operation at a time, with the
/// same dropout masks; and what is resumed is what was never stopped, bit for bit.
#[test]
fn a_recorded_step_is_the_step() {
    if !has_gpu() {
        return;
    }
    for set in [&["model.dropout=0.2"][..], &["train.dtype=f32"], MUON] {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path(), set);
        let mut eager = Trainer::new(&run, Device::Cuda(0), None).unwrap();
        eager.run_steps(20).unwrap();
        let recorded = |stop_after: Option<&Path>| {
            let mut trainer = Trainer::new(&run, Device::Cuda(0), None).unwrap();
            if let Some(checkpoint) = stop_after {
                trainer.resume(checkpoint).unwrap();
            }
            let mut report = Report::new(trainer.iteration(), 20, 1);
            let outcome = trainer.train(&AtomicBool::new(false), &mut report).unwrap();
            assert_eq!(outcome, Outcome::Finished);
            theta(&trainer)
        };
        let whole = recorded(None);
        let difference = largest(&(&whole - theta(&eager)));
        assert!(difference < 1e-4, "{set:?}: {difference}");

        // Ten steps, a checkpoint of another process, and ten more.
        let mut first = Trainer::new(&run, Device::Cuda(0), None).unwrap();
        first.run_steps(10).unwrap();
        let mut report = Report::new(10, 20, 1);
        first.train(&AtomicBool::new(true), &mut report).unwrap();
        let resumed = recorded(Some(&folder.path().join("x.last.ckpt")));
        assert!(largest(&(&resumed - theta(&eager))) < 1e-4, "{set:?}");
        assert_eq!(recorded(Some(&folder.path().join("x.last.ckpt"))), resumed, "{set:?}");
    }
}

/// The same model learns the same on both devices.
#[test]
fn a_gpu_learns_what_a_cpu_learns() {
    if !has_gpu() {
        return;
    }
    for set in [&["train.optimizer=adamw"][..], MUON] {
        let folder = tempfile::tempdir().unwrap();
        let set: Vec<&str> =
            set.iter().copied().chain(["model.dropout=0", "train.dtype=f32"]).collect();
        let run = run(folder.path(), &set);
        let losses = |device| {
            let results = Trainer::new(&run, device, None).unwrap().run_steps(10).unwrap();
            results.iter().map(|result| result.loss).collect::<Vec<_>>()
        };
        for (cpu, gpu) in losses(Device::Cpu).iter().zip(losses(Device::Cuda(0))) {
            assert!((cpu - gpu).abs() < 5e-3, "{set:?}: {cpu} {gpu}");
        }
    }
}
