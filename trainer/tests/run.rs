//! Small training runs from configuration to files.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard};

use safetensors::tensor::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};
use teeny_runtime::Weights;
use teeny_runtime::dataset::Split;
use teeny_runtime::format::tensor_specs;
use teeny_runtime::ini::Ini;
use teeny_trainer::Error;
use teeny_trainer::checkpoint::Checkpoint;
use teeny_trainer::config::{KEYS, Run, TrainConfig};
use teeny_trainer::dry_run::dry_run;
use teeny_trainer::export::export_checkpoint;
use teeny_trainer::optim::Optimizer;
use teeny_trainer::params::Params;
use teeny_trainer::report::Report;
use teeny_trainer::train::{Outcome, Trainer};

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

fn trainer(run: &Run) -> Trainer<'_> {
    tch::set_num_threads(1);
    Trainer::new(run, Device::Cpu, None).unwrap()
}

fn finish(trainer: &mut Trainer<'_>, n_iters: u64) -> Result<Outcome, Error> {
    let mut report = Report::new(trainer.iteration(), n_iters, 1);
    trainer.train(&AtomicBool::new(false), &mut report)
}

fn train(run: &Run) -> Result<Trainer<'_>, Error> {
    let mut trainer = trainer(run);
    trainer.check_files()?;
    assert_eq!(finish(&mut trainer, run.train.n_iters)?, Outcome::Finished);
    Ok(trainer)
}

/// Every tensor that training changes.
fn state(trainer: &Trainer<'_>) -> Vec<Vec<f32>> {
    let optimizer = trainer.optimizer();
    let tensors = [&trainer.model().params.theta, &optimizer.m, &optimizer.v];
    let tensors = tensors.into_iter().chain(&optimizer.ema);
    tensors.map(|tensor| Vec::try_from(tensor.detach()).unwrap()).collect()
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
fn an_export_in_blocks_is_near_the_one_in_f32() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let export = |dtype: &str| {
        let run = run(folder.path(), &[&format!("train.export_dtype={dtype}")]);
        train(&run).unwrap();
        Weights::read(&run.train.export_file).unwrap()
    };
    let expected = export("f32");
    for (dtype, allowed) in [("q8", 0.005), ("q4", 0.08)] {
        let found = export(dtype);
        assert_eq!(found.dtype().map(|dtype| dtype.name()), Some(dtype));
        assert_eq!(found.metadata()["val_loss"], expected.metadata()["val_loss"]);
        for (name, tensor) in expected.tensors() {
            let expected = tensor.to_f32().unwrap();
            let found = found.tensor(name).unwrap().to_f32().unwrap();
            let largest = expected.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() <= allowed * largest, "{dtype} {name}");
            }
        }
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

/// What makes a run more than the plainest one.
const EVERYTHING: &[&str] = &[
    "model.head_dim=12",
    "model.ffn=gelu_tanh",
    "model.rope_scaling=linear",
    "model.rope_factor=2",
    "train.optimizer=muon",
    "train.schedule=wsd",
    "train.warmup_iters=2",
    "train.sampling=epochs",
    "train.grad_accum=2",
    "train.grad_clip=0.5",
    "train.ema=0.9",
    "train.lr_max=1e-2",
];

#[test]
fn a_checkpoint_holds_parameters_optimizer_and_losses() {
    let _turn = alone();
    for set in [&[][..], EVERYTHING] {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path(), set);
        let trained = train(&run).unwrap();
        let last = folder.path().join("new/x.last.pt");
        let checkpoint = Checkpoint::read(&last).unwrap();
        let progress = checkpoint.progress().unwrap();
        assert_eq!(progress.iteration, 6);
        assert_eq!(&progress.history, trained.history());
        let mut params = Params::new(tensor_specs(&run.model), Device::Cpu);
        let mut optimizer = Optimizer::new(&params, &run.train.optim(Kind::Float));
        checkpoint.load(&mut params, &mut optimizer).unwrap();
        let expected = trained.optimizer();
        assert_eq!(params.theta, trained.model().params.theta);
        assert_eq!((&optimizer.m, &optimizer.v), (&expected.m, &expected.v));
        assert_eq!(optimizer.ema, expected.ema);
        assert_ne!(optimizer.v, optimizer.v.zeros_like());

        // A model of another shape, and files that are no checkpoints, are refused.
        let mut other = run.model.clone();
        other.ffn_dim += 1;
        let mut params = Params::new(tensor_specs(&other), Device::Cpu);
        let mut optimizer = Optimizer::new(&params, &run.train.optim(Kind::Float));
        let error = checkpoint.load(&mut params, &mut optimizer).unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
        for file in ["new/x.safetensors", "text.txt"] {
            let error = Checkpoint::read(&folder.path().join(file)).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
        }
    }
}

/// Seven steps are four, a checkpoint, and three more, bit for bit.
#[test]
fn resuming_equals_never_having_stopped() {
    let _turn = alone();
    let learned = &["dataset.tokenizer=bpe", "dataset.vocab_size=270"][..];
    for set in [&["model.dropout=0.3"][..], EVERYTHING, learned] {
        let folder = tempfile::tempdir().unwrap();
        let set: Vec<&str> =
            set.iter().copied().chain(["train.n_iters=7", "train.lr_min=1e-4"]).collect();
        let run = run(folder.path(), &set);
        let whole = train(&run).unwrap();
        let (expected, history) = (state(&whole), whole.history().clone());
        // Evaluations do not change what is trained, so the second run has one of its own.
        let mut evaluated = set.clone();
        evaluated.push("train.n_est_loss_iters=4");
        let run = self::run(folder.path(), &evaluated);
        let mut first = trainer(&run);
        first.run_steps(4).unwrap();
        let stopped = finish_now(&mut first);
        assert_eq!(stopped, Outcome::Stopped);
        let run = self::run(folder.path(), &set);
        let mut second = trainer(&run);
        second.resume(&folder.path().join("new/x.last.pt")).unwrap();
        assert_eq!(second.iteration(), 4);
        finish(&mut second, 7).unwrap();
        assert!(state(&second) == expected, "{set:?}");
        assert_eq!(second.history().val_losses.last(), history.val_losses.last());
    }
}

/// The tables of a vocabulary are in every file that needs them.
#[test]
fn a_learned_vocabulary_outlives_its_run() {
    let _turn = alone();
    for kind in ["bpe", "sentencepiece"] {
        let folder = tempfile::tempdir().unwrap();
        let kind = format!("dataset.tokenizer={kind}");
        let set = [kind.as_str(), "dataset.vocab_size=270", "train.export_dtype=f32"];
        let run = run(folder.path(), &set);
        let tokenizer = run.dataset.tokenizer();
        assert!(tokenizer.vocab_size() > 257, "{kind}");
        train(&run).unwrap();
        let (export, last) = ("new/x.safetensors", folder.path().join("new/x.last.pt"));
        let exported = Weights::map(&folder.path().join(export)).unwrap();
        assert!(exported.tokenizer() == tokenizer, "{kind}");
        let again = export_checkpoint(&last, &[]).unwrap();
        assert!(Weights::map(&again).unwrap().tokenizer() == tokenizer, "{kind}");

        // Another size, and the same size with another piece.
        let resume = |vocab_size: &str| {
            let set = [&set[..], &[vocab_size, "train.n_iters=9"]].concat();
            trainer(&self::run(folder.path(), &set)).resume(&last).map_err(|e| e.to_string())
        };
        resume("dataset.vocab_size=270").unwrap();
        let error = resume("dataset.vocab_size=269").unwrap_err();
        assert!(error.contains("dataset.vocab_size is 270 there, but 269"), "{error}");
        let mut file = std::fs::read(&last).unwrap();
        let pieces = SafeTensors::deserialize(&file).unwrap();
        let pieces = pieces.tensor("tokenizer.pieces").unwrap().data().as_ptr_range();
        let end = pieces.end as usize - file.as_ptr() as usize;
        file[end - 1] = b'h'; // the text has a to g only
        std::fs::write(&last, file).unwrap();
        let error = resume("dataset.vocab_size=270").unwrap_err();
        // Byte-level BPE would have a merge that makes something else.
        let noticed = ["the vocabulary is another one", "tokenizer.merges: found"];
        assert!(noticed.iter().any(|part| error.contains(part)), "{error}");
    }
}

fn finish_now(trainer: &mut Trainer<'_>) -> Outcome {
    let mut report = Report::new(trainer.iteration(), 7, 1);
    trainer.train(&AtomicBool::new(true), &mut report).unwrap()
}

#[test]
fn a_run_is_not_continued_as_another_one() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    train(&run(folder.path(), EVERYTHING)).unwrap();
    let last = folder.path().join("new/x.last.pt");
    let resume = |set: &[&str]| {
        let set: Vec<&str> = EVERYTHING.iter().chain(set).copied().collect();
        let run = run(folder.path(), &set);
        trainer(&run).resume(&last).map_err(|error| error.to_string())
    };
    for (set, key) in [
        ("train.seed=1", "train.seed"),
        ("train.lr_max=2e-2", "train.lr_max"),
        ("train.optimizer=adamw", "train.optimizer"),
        ("model.dropout=0.1", "model.dropout"),
        ("model.n_embd=32", "model.ffn_dim"),
        ("model.head_dim=6", "model.head_dim"),
        ("model.rope_factor=3", "model.rope_factor"),
        ("model.qk_norm=true", "model.qk_norm"),
        ("model.logit_softcap=9", "model.logit_softcap"),
        ("dataset.tokens_per_chunk=120", "dataset.tokens_per_chunk"),
    ] {
        let error = resume(&[set, "train.n_iters=9"]).unwrap_err();
        assert!(error.contains(&format!("{key} is ")), "{set}: {error}");
    }
    let error = resume(&[]).unwrap_err();
    assert!(error.contains("nothing is left"), "{error}");
    resume(&["train.n_iters=9", "train.sample_length=0"]).unwrap();
    // Nor one with more parts than this one.
    train(&run(folder.path(), &[EVERYTHING, &["model.qk_norm=true"]].concat())).unwrap();
    let error = resume(&["train.n_iters=9"]).unwrap_err();
    assert!(error.contains("model.qk_norm is true there, but not set"), "{error}");
    train(&run(folder.path(), EVERYTHING)).unwrap();

    // The same configuration over another text.
    let other = tempfile::tempdir().unwrap();
    let run = run(other.path(), &[EVERYTHING, &["train.n_iters=9"]].concat());
    std::fs::write(other.path().join("text.txt"), "abcdefg".repeat(600)).unwrap();
    let error = trainer(&run).resume(&last).unwrap_err().to_string();
    assert!(error.contains("dataset.sha256"), "{error}");
}

#[test]
fn accumulated_gradients_are_those_of_one_batch() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let theta = |n_batch: usize, grad_accum: usize| {
        let run = run(
            folder.path(),
            &[
                "model.dropout=0",
                &format!("train.n_batch={n_batch}"),
                &format!("train.grad_accum={grad_accum}"),
            ],
        );
        let mut trainer = trainer(&run);
        let results = trainer.run_steps(3).unwrap();
        (trainer.model().params.theta.detach().copy(), results)
    };
    let (one, a) = theta(8, 1);
    let (parts, b) = theta(2, 4);
    for (a, b) in a.iter().zip(&b) {
        assert!((a.loss - b.loss).abs() < 1e-5 && (a.grad_norm - b.grad_norm).abs() < 1e-4);
    }
    assert!((one - parts).abs().max().double_value(&[]) < 1e-4);
}

#[test]
fn products_in_bf16_give_nearly_the_same_losses() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let losses = |dtype: &str| {
        let run = run(folder.path(), &[&format!("train.dtype={dtype}"), "model.dropout=0"]);
        let results = trainer(&run).run_steps(5).unwrap();
        results.iter().map(|result| result.loss).collect::<Vec<_>>()
    };
    let (f32, bf16) = (losses("f32"), losses("bf16"));
    assert_ne!(f32, bf16);
    for (a, b) in f32.iter().zip(&bf16) {
        assert!((a - b).abs() < 0.01, "{a} {b}");
    }
}

/// The exact loss against a sum over single tokens in double precision.
#[test]
fn the_validation_loss_is_the_mean_over_every_target() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let run =
        run(folder.path(), &["model.dropout=0.5", "train.n_est_loss_iters=2", "train.n_iters=2"]);
    let trained = train(&run).unwrap();
    let chunks = run.dataset.chunks(Split::Val);
    let (mut sum, mut n) = (0.0, 0);
    for chunk in chunks.tokens().chunks(chunks.chunk_len()) {
        for start in (0..chunk.len() - 1).step_by(run.train.n_context) {
            let end = (start + run.train.n_context).min(chunk.len() - 1);
            let ids: Vec<i64> = chunk[start..=end].iter().map(|t| i64::from(*t)).collect();
            let inputs = Tensor::from_slice(&ids[..ids.len() - 1]).unsqueeze(0);
            let logits = tch::no_grad(|| trained.model().logits(&inputs, false));
            let log_probs =
                logits.squeeze_dim(0).to_kind(Kind::Double).log_softmax(-1, Kind::Double);
            for (row, target) in ids[1..].iter().enumerate() {
                sum -= log_probs.double_value(&[row as i64, *target]);
                n += 1;
            }
        }
    }
    let found = trained.history().val_losses[0];
    assert!((found - sum / f64::from(n)).abs() < 1e-6, "{found}");
}

#[test]
fn averaged_parameters_are_evaluated_and_exported() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let set = ["train.ema=0.5", "train.lr_max=1e-2", "train.export_dtype=f32"];
    let run = run(folder.path(), &set);
    let trained = train(&run).unwrap();
    let best = trained.history().best().unwrap();
    assert_eq!(best, 1, "the last evaluation is the best: {:?}", trained.history());
    let ema = trained.optimizer().ema.as_ref().unwrap();
    assert_ne!(ema, &trained.model().params.theta);
    let file = std::fs::read(folder.path().join("new/x.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let params = &trained.model().params;
    let values: Vec<f32> = Vec::try_from(ema).unwrap();
    for (spec, range) in params.entries() {
        let bytes: Vec<u8> = values[range].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(tensors.tensor(&spec.name).unwrap().data(), bytes, "{}", spec.name);
    }
}

#[test]
fn a_request_to_stop_leaves_checkpoint_and_export() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), &[]);
    let mut trainer = trainer(&run);
    trainer.check_files().unwrap();
    assert_eq!(finish_now(&mut trainer), Outcome::Stopped);
    for file in ["new/x.last.pt", "new/x.safetensors"] {
        assert!(folder.path().join(file).exists(), "{file}");
    }
    assert!(!folder.path().join("new/x.pt").exists(), "nothing was evaluated");
}

#[test]
fn a_resumed_run_says_in_what_it_is_another_one() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let first = run(folder.path(), &[]);
    let history = train(&first).unwrap().history().clone();
    let last = folder.path().join("new/x.last.pt");
    let further = run(folder.path(), &["train.n_iters=9"]);
    let mut second = trainer(&further);
    assert_eq!(second.resume(&last).unwrap(), Vec::<String>::new());

    // Another number of threads, which is asked for: noted.
    let threads = run(folder.path(), &["train.n_iters=9", "train.threads=2"]);
    let mut third = trainer(&threads);
    tch::set_num_threads(2);
    let notes = third.resume(&last).unwrap();
    tch::set_num_threads(1);
    assert!(
        notes.len() == 1 && notes[0].contains("2 threads, after cpu in f32 with 1"),
        "{notes:?}"
    );

    // The best parameters are gone: said, and the next evaluation is exported, however bad.
    std::fs::remove_file(folder.path().join("new/x.pt")).unwrap();
    std::fs::remove_file(folder.path().join("new/x.safetensors")).unwrap();
    let mut fourth = trainer(&further);
    let notes = fourth.resume(&last).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("are not there"), "{notes:?}");
    assert_eq!(fourth.history(), &history);
    finish(&mut fourth, 9).unwrap();
    assert_eq!(fourth.history().iterations, [3, 6, 9]);
    assert!(folder.path().join("new/x.safetensors").exists());

    // The checkpoint of two processes is refused by one.
    let mut bytes = std::fs::read(&last).unwrap();
    let one = br#""processes":"1""#;
    let at = bytes.windows(one.len()).position(|window| window == one).unwrap();
    bytes[at + one.len() - 2] = b'2';
    let two = folder.path().join("two.pt");
    std::fs::write(&two, bytes).unwrap();
    let further = run(folder.path(), &["train.n_iters=12"]);
    let error = trainer(&further).resume(&two).unwrap_err().to_string();
    assert!(error.contains("2 processes trained together there, 1 do"), "{error}");
}

#[test]
fn a_request_to_stop_before_the_first_evaluation_keeps_an_earlier_model() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    train(&run(folder.path(), &[])).unwrap();
    let export = folder.path().join("new/x.safetensors");
    let before = std::fs::read(&export).unwrap();
    let run = run(folder.path(), &["train.seed=3"]);
    assert_eq!(finish_now(&mut trainer(&run)), Outcome::Stopped);
    assert!(std::fs::read(&export).unwrap() == before);
}

const DIVERGES: &[&str] = &["model.norm=none", "model.final_norm=false", "train.n_iters=200"];

#[test]
fn a_run_that_diverges_whatever_the_rate_fails() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let run =
        run(folder.path(), &[DIVERGES, &["train.lr_max=1e3", "train.weight_decay=1e3"]].concat());
    let error = train(&run).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
}

/// Training that diverges goes back to where it was sound and goes on with a lower rate.
#[test]
fn a_run_that_diverges_goes_back_with_a_lower_rate() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), &[DIVERGES, &["train.lr_max=20"]].concat());
    let trained = train(&run).unwrap();
    let progress =
        Checkpoint::read(&folder.path().join("new/x.last.pt")).unwrap().progress().unwrap();
    assert!(progress.lr_scale < 1.0 && progress.n_skipped > 0, "{progress:?}");
    assert_eq!(trained.iteration(), 200);
    assert!(trained.history().val_losses.iter().all(|loss| loss.is_finite()));
}

#[test]
fn patience_ends_a_run_that_gets_no_better() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    // A rate of zero never gets better.
    let set = ["train.lr_max=0", "train.lr_min=0", "train.n_iters=100", "train.patience=4"];
    let run = run(folder.path(), &set);
    let mut trainer = trainer(&run);
    trainer.check_files().unwrap();
    assert_eq!(finish(&mut trainer, 100).unwrap(), Outcome::Patience);
    assert_eq!(trainer.iteration(), 15, "one evaluation and four no better, three steps apart");
    assert!(folder.path().join("new/x.safetensors").exists());
}

#[test]
fn a_checkpoint_can_be_exported_alone() {
    let _turn = alone();
    for set in [&[][..], EVERYTHING] {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path(), set);
        let trained = train(&run).unwrap();
        assert_eq!(trained.history().best(), Some(1), "{:?}", trained.history());
        let export = folder.path().join("new/x.safetensors");
        let tensors = |file: &Path| {
            let file = std::fs::read(file).unwrap();
            let tensors = SafeTensors::deserialize(&file).unwrap();
            let mut all: Vec<_> =
                tensors.iter().map(|(n, t)| (n.to_owned(), t.dtype(), t.data().to_vec())).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        let expected = tensors(&export);
        std::fs::remove_file(&export).unwrap();
        // The text is not needed.
        std::fs::remove_file(folder.path().join("text.txt")).unwrap();
        let best = folder.path().join("new/x.pt");
        let found = export_checkpoint(&best, &[]).unwrap();
        assert_eq!(found, export);
        assert!(tensors(&export) == expected);
        let other = folder.path().join("other.safetensors");
        let set =
            [format!("train.export_file={}", other.display()), "train.export_dtype=f32".to_owned()];
        assert_eq!(export_checkpoint(&best, &set).unwrap(), other);
        assert_eq!(tensors(&other)[0].1, Dtype::F32);
        for (path, set, named) in [
            (&best, "model.n_embd=32", "model.n_embd=32"),
            (&best, "train.export_dtype=f8", "export_dtype"),
            (&export, "train.export_dtype=f32", "x.safetensors"),
            (&PathBuf::from("nowhere.ckpt"), "train.export_dtype=f32", "nowhere.ckpt"),
        ] {
            let error = export_checkpoint(path, &[set.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(named), "{set}: {error}");
        }
    }
}

#[test]
fn the_range_test_finds_a_rate_that_learns() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), &["model.dropout=0"]);
    let range = trainer(&run).find_lr(&AtomicBool::new(false)).unwrap();
    let lr = range.suggestion().unwrap();
    assert!((1e-4..1e-1).contains(&lr), "{lr}");
    let losses = |lr: f64| {
        let set = [
            format!("train.lr_max={lr}"),
            "train.lr_min=0".to_owned(),
            "train.n_iters=60".to_owned(),
        ];
        let run = self::run(folder.path(), &set.iter().map(String::as_str).collect::<Vec<_>>());
        train(&run).unwrap().history().val_losses.iter().copied().fold(f64::INFINITY, f64::min)
    };
    let (slow, suggested) = (losses(lr / 100.0), losses(lr));
    assert!(suggested < slow - 0.1, "{suggested} {slow}");

    let run = self::run(folder.path(), &["train.lr_max=0", "train.lr_min=0"]);
    let error = trainer(&run).find_lr(&AtomicBool::new(false)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("lr_max"), "{error}");
}

#[test]
fn a_dry_run_says_what_a_run_would_take() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), &["train.grad_accum=3"]);
    let text = dry_run(&run, &mut trainer(&run)).unwrap();
    let n = tensor_specs(&run.model).iter().map(|spec| spec.len()).sum::<usize>();
    for expected in [
        &format!("parameters            {n} (")[..],
        "192 (12 x 16)",
        "steps                 6",
        "predicted time",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!folder.path().join("new").exists(), "nothing is written");
}

/// What config.ini says of `[train]` is what holds without it, and it says something of every key.
#[test]
fn the_documented_configuration_is_the_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config.ini");
    let documented = Ini::read(&path).unwrap();
    let empty = Ini::parse(Path::new("empty.ini"), "[train]\n").unwrap();
    let read = |ini: &Ini| TrainConfig::read(ini, 256).unwrap().to_metadata();
    assert_eq!(read(&documented), read(&empty));
    let text = std::fs::read_to_string(&path).unwrap();
    for key in KEYS {
        let is_there =
            |line: &str| line.trim_start_matches("# ").starts_with(&format!("{} = ", key.name));
        assert!(text.lines().any(is_there), "{} is not documented", key.name);
    }
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
        (vec![format!("train.run_dir={}", path("text.txt"))], "run_dir"),
        (vec!["train.lr_min=1".to_owned()], "lr_min"),
        (vec!["train.warmup_iters=6".to_owned()], "warmup_iters"),
        (vec!["train.ema=1".to_owned()], "ema"),
        (vec!["train.optimizer=sgd".to_owned()], "optimizer"),
        (vec!["train.schedule=step".to_owned()], "schedule"),
        (vec!["train.sampling=all".to_owned()], "sampling"),
        (vec!["train.dtype=f16".to_owned()], "dtype"),
        (vec!["train.decay_fraction=1.5".to_owned()], "decay_fraction"),
        (vec!["train.n_context=17".to_owned()], "n_context"),
        (vec!["train.max_iters=0".to_owned()], "max_iters"),
    ] {
        std::fs::create_dir_all(folder.path().join("new")).unwrap();
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let error = Run::read(&ini(folder.path(), &set)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("[train] {key}:")), "{set:?}: {error}");
    }
}
