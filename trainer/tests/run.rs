//! Small training runs from configuration to files.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard};

use safetensors::tensor::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};
use teeny_runtime::format::tensor_specs;
use teeny_runtime::ini::Ini;
use teeny_trainer::config::Run;
use teeny_trainer::optim::AdamW;
use teeny_trainer::params::Params;
use teeny_trainer::report::Report;
use teeny_trainer::train::{Outcome, Trainer};
use teeny_trainer::{Error, checkpoint};

const SMALL: &[&str] = &[
    "dataset.tokens_per_chunk=100",
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=16",
    "model.max_seq_len=16",
    "train.n_iters=6",
    "train.n_batch=4",
    "train.n_est_loss_iters=3",
    "train.n_est_loss_batches=2",
    "train.sample_length=5",
];

/// libtorch's random numbers belong to the whole process: one run at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A configuration in `folder` over a text of a few letters.
fn ini(folder: &Path, set: &[&str]) -> Ini {
    let text = folder.join("text.txt");
    let letters: String = (0..4000u32).map(|i| char::from(b'a' + (i * i % 23 % 7) as u8)).collect();
    std::fs::write(&text, letters).unwrap();
    let mut ini = Ini::parse(Path::new("config.ini"), "[dataset]\n[model]\n[train]\n").unwrap();
    ini.set(&format!("dataset.input_file={}", text.display())).unwrap();
    ini.set(&format!("train.checkpoint_file={}", folder.join("new/x.pt").display())).unwrap();
    for assignment in SMALL.iter().chain(set) {
        ini.set(assignment).unwrap();
    }
    ini
}

fn run(folder: &Path, set: &[&str]) -> Run {
    Run::read(&ini(folder, set)).unwrap()
}

fn train(run: &Run) -> Result<Trainer<'_>, Error> {
    tch::set_num_threads(1);
    let mut trainer = Trainer::new(run, Device::Cpu)?;
    let mut report = Report::new(0, run.train.n_iters, 1);
    let outcome = trainer.train(&AtomicBool::new(false), &mut report)?;
    assert_eq!(outcome, Outcome::Finished);
    Ok(trainer)
}

#[test]
fn the_export_has_the_names_shapes_and_type_of_the_format() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    for (dtype, expected) in [("f32", Dtype::F32), ("f16", Dtype::F16), ("bf16", Dtype::BF16)] {
        let run = run(folder.path(), &[&format!("train.export_dtype={dtype}")]);
        train(&run).unwrap();
        let file = std::fs::read(folder.path().join("new/x.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let specs = tensor_specs(&run.model);
        assert_eq!(tensors.len(), specs.len());
        for spec in specs {
            let view = tensors.tensor(&spec.name).unwrap();
            assert_eq!((view.dtype(), view.shape()), (expected, &spec.shape[..]), "{}", spec.name);
        }
        let (_, header) = SafeTensors::read_metadata(&file).unwrap();
        let metadata = header.metadata().clone().unwrap();
        for key in ["train_loss", "val_loss", "test_loss", "dataset_sha256", "iteration"] {
            assert!(metadata.contains_key(key), "{key}");
        }
        assert_eq!(metadata["dataset_file"], "text.txt");
    }
}

#[test]
fn the_same_seed_gives_the_same_losses_and_another_seed_others() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let losses = |seed: &str| {
        let run = run(folder.path(), &[&format!("train.seed={seed}")]);
        train(&run).unwrap().history().clone()
    };
    let first = losses("1");
    assert_eq!(first.iterations, [3, 6]);
    assert_eq!(first, losses("1"));
    assert_ne!(first, losses("2"));
}

#[test]
fn a_checkpoint_holds_parameters_optimizer_and_losses() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), &[]);
    let trainer = train(&run).unwrap();
    let device = Device::Cpu;
    let mut params = Params::new(tensor_specs(&run.model), device);
    let mut optimizer = AdamW::new(&params.theta, params.n_decay(), [0.9, 0.95], 0.1);
    let last = folder.path().join("new/x.last.pt");
    let (iteration, history) = checkpoint::load(&last, &mut params, &mut optimizer).unwrap();
    assert_eq!((iteration, optimizer.n_steps), (6, 6));
    assert_eq!(&history, trainer.history());
    let expected = trainer.optimizer();
    assert_eq!((&optimizer.m, &optimizer.v), (&expected.m, &expected.v));
    assert_ne!(optimizer.v, Tensor::zeros([params.len() as i64], (Kind::Float, device)));

    // A model of another shape, and files that are no checkpoints, are refused.
    let mut other = run.model.clone();
    other.ffn_dim += 1;
    let mut params = Params::new(tensor_specs(&other), device);
    let mut optimizer = AdamW::new(&params.theta, params.n_decay(), [0.9, 0.95], 0.1);
    for file in [last, folder.path().join("new/x.safetensors"), folder.path().join("text.txt")] {
        let error = checkpoint::load(&file, &mut params, &mut optimizer).unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
    }
}

#[test]
fn a_request_to_stop_leaves_checkpoint_and_export() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), &[]);
    let mut trainer = Trainer::new(&run, Device::Cpu).unwrap();
    let mut report = Report::new(0, 6, 1);
    assert_eq!(trainer.train(&AtomicBool::new(true), &mut report).unwrap(), Outcome::Stopped);
    for file in ["new/x.last.pt", "new/x.safetensors"] {
        assert!(folder.path().join(file).exists(), "{file}");
    }
    assert!(!folder.path().join("new/x.pt").exists(), "nothing was evaluated");
}

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let run = run(
        folder.path(),
        &["model.norm=none", "model.final_norm=false", "train.lr_max=1000", "train.n_iters=200"],
    );
    let error = train(&run).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
}

#[test]
fn files_that_would_overwrite_each_other_are_refused() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for (set, key) in [
        (vec![format!("train.checkpoint_file={}", path("x.safetensors"))], "checkpoint_file"),
        (vec![format!("train.export_file={}", path("new/x.pt"))], "export_file"),
        (vec![format!("train.export_file={}", path("new/x.last.pt"))], "export_file"),
        (vec![format!("train.export_file={}", path("new/../new/x.pt"))], "export_file"),
        (vec![format!("train.export_file={}", folder.path().display())], "export_file"),
        (vec!["train.lr_min=1".to_owned()], "lr_min"),
        (vec!["train.n_context=17".to_owned()], "n_context"),
        (vec!["train.max_iters=0".to_owned()], "max_iters"),
    ] {
        std::fs::create_dir_all(folder.path().join("new")).unwrap();
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let error = Run::read(&ini(folder.path(), &set)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("[train] {key}:")), "{set:?}: {error}");
    }
}
