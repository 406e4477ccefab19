//! One real training run on tiny Shakespeare, through the programs: the loss must beat a bigram
//! model's, and teeny-run must decode the export.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use teeny_runtime::dataset::{Dataset, DatasetConfig, Split};
use teeny_runtime::{Cpu, Model, Overflow, Session, Weights};
use teeny_tests::program;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn corpus() -> PathBuf {
    let path = root().join("data/tiny_shakespeare.txt");
    assert!(path.exists(), "data/fetch.sh has not been run");
    path
}

fn train(folder: &Path, config: &Path, set: &[&str]) -> Output {
    let mut command = Command::new(program("teeny-train"));
    command.arg("--config").arg(config).current_dir(folder);
    command.args(["--set", "train.device=cpu"]);
    for assignment in set {
        command.args(["--set", assignment]);
    }
    command.output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn dataset() -> Dataset {
    let config = DatasetConfig { input_file: corpus(), ..DatasetConfig::default() };
    Dataset::load(&config).expect("tiny Shakespeare")
}

/// Mean negative log-likelihood per character, in nats, that the pairs of the training split give
/// the validation split; counts begin at one half, so that no pair is impossible.
fn bigram_loss(dataset: &Dataset) -> f64 {
    let n = dataset.tokenizer().vocab_size();
    let mut counts = vec![0.5f64; n * n];
    let pairs = |split| {
        let chunks = dataset.chunks(split);
        chunks.tokens().chunks(chunks.chunk_len()).flat_map(|chunk| chunk.windows(2))
    };
    for pair in pairs(Split::Train) {
        counts[pair[0] as usize * n + pair[1] as usize] += 1.0;
    }
    let totals: Vec<f64> = counts.chunks(n).map(|row| row.iter().sum()).collect();
    let (mut loss, mut length) = (0.0, 0.0);
    for pair in pairs(Split::Val) {
        let row = pair[0] as usize;
        loss -= (counts[row * n + pair[1] as usize] / totals[row]).ln();
        length += 1.0;
    }
    loss / length
}

/// The exported model's own loss on the validation split, by the runtime: windows of the context,
/// each from its second token on.
fn runtime_loss(path: &Path, dataset: &Dataset) -> f64 {
    let weights = Weights::map(path).expect("the export");
    let model = std::sync::Arc::new(Model::load(Cpu::new(), &weights).expect("the export"));
    let mut session = Session::new(&model, Overflow::Error).expect("enough memory");
    let tokens = dataset.chunks(Split::Val).tokens();
    let (mut loss, mut length) = (0.0, 0.0);
    for window in tokens.chunks_exact(model.config().max_seq_len).step_by(8) {
        session.reset();
        for pair in window.windows(2) {
            let logits = session.decode(pair[0]).expect("within the context");
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let total: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
            loss += total.ln() - f64::from(logits[pair[1] as usize] - max);
            length += 1.0;
        }
    }
    loss / length
}

#[test]
fn a_small_model_learns_more_than_pairs_of_letters() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = train(
        folder.path(),
        &root().join("config.ini"),
        &[
            &format!("dataset.input_file={}", corpus().display()),
            "model.n_layer=2",
            "model.n_head=4",
            "model.n_kv_head=2",
            "model.n_embd=96",
            "model.ffn_dim=128",
            "model.max_seq_len=64",
            "model.dropout=0",
            "train.n_context=64",
            "train.n_batch=24",
            "train.n_iters=500",
            "train.n_est_loss_iters=250",
            "train.n_est_loss_batches=8",
            "train.lr_max=4e-3",
            "train.sample_length=40",
            "train.export_dtype=f32",
        ],
    );
    let log = stderr(&output);
    assert!(output.status.success(), "{log}");
    let export = folder.path().join(String::from_utf8_lossy(&output.stdout).trim());
    assert_eq!(export, folder.path().join("models/shakespeare.safetensors"), "{log}");

    let dataset = dataset();
    let bigram = bigram_loss(&dataset);
    assert!((2.4..2.6).contains(&bigram), "tiny Shakespeare's bigram loss is about 2.5: {bigram}");
    let weights = Weights::map(&export).expect("the export");
    let reported: f64 = weights.metadata()["val_loss"].parse().expect("a number");
    assert!(reported < bigram - 0.2, "val loss {reported}, bigram {bigram}\n{log}");
    // The runtime sees the same model: its loss over other windows of the split is close.
    let measured = runtime_loss(&export, &dataset);
    assert!((measured - reported).abs() < 0.1, "runtime {measured}, trainer {reported}");

    let run = Command::new(program("teeny-run"))
        .args(["-p", "ROMEO:", "-n", "300", "-s", "1", "-m"])
        .arg(&export)
        .output()
        .expect("the program starts");
    let text = String::from_utf8(run.stdout).expect("UTF-8");
    assert!(
        run.status.success() && text.starts_with("ROMEO:"),
        "{}",
        stderr(&Output { stdout: vec![], ..run })
    );
    assert_eq!(text.chars().count(), 306);
    assert!(text.matches(' ').count() > 20 && text.contains('\n'), "{text}");
}

/// A configuration in teenyGPT's own names trains unchanged, and gives teenyGPT's architecture.
#[test]
fn a_teenygpt_configuration_trains_unchanged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(folder.path().join("data")).expect("a new folder");
    let text = std::fs::read_to_string(corpus()).expect("UTF-8");
    let start: String = text.chars().take(60_000).collect();
    std::fs::write(folder.path().join("data/tiny_shakespeare.txt"), start).expect("written");
    for (encoding, ffn, norm) in [
        ("LEARNED_SINUSOIDAL", "SWISH_GLU", "CLASSIC"),
        ("LEARNED_EMBEDDING", "CLASSIC", "RMS"),
        ("ALIBI", "CLASSIC", "NONE"),
    ] {
        let config = folder.path().join("config.ini");
        let ini = format!(
            "[dataset]\ninput_file=data/tiny_shakespeare.txt\ninput_file_encoding=utf-8-sig\n\
             tokens_per_chunk=1000\nfraction_train=0.8\nfraction_val=0.1\nrandom_seed=0\n\
             [model]\nn_dim=32\nn_attn_heads=4\nn_attn_layers=1\np_dropout=0.2\n\
             positional_encoding_type={encoding}\nffn_type={ffn}\nlayer_norm_type={norm}\n\
             n_context_max=32\n\
             [train]\nn_iters=6\nn_context=32\nn_batch=4\nn_est_loss_iters=3\n\
             n_est_loss_batches=2\nlr_max=1e-3\nlr_min=1e-5\nweight_decay=1e-1\n\
             betas=[0.9, 0.95]\ncheckpoint_file=models/teenygpt/tiny_shakespeare.pt\n"
        );
        std::fs::write(&config, ini).expect("written");
        let output = train(folder.path(), &config, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let export = folder.path().join("models/teenygpt/tiny_shakespeare.safetensors");
        let weights = Weights::map(&export).expect("the export");
        let c = weights.config();
        assert_eq!((c.n_embd, c.n_head, c.n_layer, c.ffn_dim, c.max_seq_len), (32, 4, 1, 32, 32));
        assert!(c.lm_head_bias && !c.final_norm && !c.tie_embeddings && !c.attention_bias);
        assert_eq!(c.ffn_bias, ffn == "CLASSIC");
        assert_eq!(c.norm_bias, norm == "CLASSIC");
        assert!(folder.path().join("models/teenygpt/tiny_shakespeare.pt").exists());
    }
}

#[test]
fn what_cannot_work_is_refused_before_training() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = root().join("config.ini");
    let input = format!("dataset.input_file={}", corpus().display());
    for (set, named) in [
        ("model.n_layres=2", "n_layer"),
        ("model.n_layer=two", "n_layer: found \"two\""),
        ("model.n_head=7", "n_head"),
        ("model.n_kv_head=3", "n_kv_head"),
        ("model.positional_encoding=rop", "rope"),
        ("model.dropout=1.5", "dropout"),
        ("train.n_context=512", "max_seq_len"),
        ("train.betas=0.9", "betas"),
        ("train.lr_max=nan", "lr_max"),
        ("train.device=tpu", "device"),
        ("train.export_dtype=int8", "export_dtype"),
        ("dataset.tokens_per_chunk=200", "tokens_per_chunk"),
        ("dataset.tokens_per_chunk=500000", "tokens_per_chunk"),
        ("dataset.fraction_train=0.99", "fraction"),
        ("dataset.input_file=nowhere.txt", "nowhere.txt"),
        ("dataset.input_file_encoding=utf-16", "input_file_encoding"),
        ("trian.n_iters=5", "train"),
        ("train.checkpoint_file=/proc/nowhere/x.ckpt", "/proc/nowhere"),
        ("nonsense", "nonsense"),
    ] {
        // Small enough to fail quickly should it train after all.
        let small = ["model.n_embd=32", "train.n_batch=1", "train.n_iters=1"];
        let output = train(folder.path(), &config, &[&[&input[..]], &small[..], &[set]].concat());
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{set}: {message}");
        assert!(message.contains(named) && !message.contains("panicked"), "{set}: {message}");
        assert!(!message.contains("iteration"), "{set} is refused before training: {message}");
    }
    let output = Command::new(program("teeny-train"))
        .args(["--config", "nowhere.ini"])
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("nowhere.ini"));
}

/// Three steps, a new process, and three more are six steps, bit for bit.
#[test]
fn resuming_equals_never_having_stopped() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = root().join("config.ini");
    let run = |name: &str, n_iters: usize, resume: Option<&str>| {
        let mut command = Command::new(program("teeny-train"));
        command.current_dir(folder.path()).arg("--config").arg(&config);
        for assignment in [
            &format!("dataset.input_file={}", corpus().display())[..],
            "model.n_embd=32",
            "model.max_seq_len=32",
            "train.n_context=32",
            "train.n_batch=4",
            "train.n_est_loss_iters=3",
            "train.n_est_loss_batches=1",
            "train.sample_length=0",
            "train.device=cpu",
            "train.threads=1",
            "train.lr_min=1e-3", // as lr_max, so that the schedule does not depend on n_iters
            "train.export_dtype=f32",
            &format!("train.n_iters={n_iters}"),
            &format!("train.checkpoint_file={name}.ckpt"),
            &format!("train.export_file={name}.safetensors"),
        ] {
            command.args(["--set", assignment]);
        }
        if let Some(checkpoint) = resume {
            command.args(["--resume", checkpoint]);
        }
        command.output().expect("the program starts")
    };
    for (name, n_iters, resume) in
        [("whole", 6, None), ("parts", 3, None), ("parts", 6, Some("parts.last.ckpt"))]
    {
        let output = run(name, n_iters, resume);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let weights = |name: &str| {
        let path = folder.path().join(name).with_extension("safetensors");
        let weights = Weights::map(&path).expect("the export");
        assert_eq!(weights.metadata()["iteration"], "6");
        let specs = teeny_runtime::format::tensor_specs(weights.config());
        let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        specs
            .iter()
            .map(|s| bits(weights.tensor(&s.name).expect("there").to_f32().expect("enough memory")))
            .collect::<Vec<_>>()
    };
    assert!(weights("whole") == weights("parts"), "the parameters differ");

    for (checkpoint, n_iters, named) in [
        ("parts.last.ckpt", 6, "nothing is left"),
        ("nowhere.ckpt", 9, "nowhere.ckpt"),
        ("parts.safetensors", 9, "parts.safetensors"),
    ] {
        let output = run("parts", n_iters, Some(checkpoint));
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(named), "{}", stderr(&output));
    }
}

/// Ctrl-C ends the run in order: the last checkpoint and an export are there.
#[cfg(unix)]
#[test]
fn an_interrupt_saves_and_leaves() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut child = Command::new(program("teeny-train"))
        .arg("--config")
        .arg(root().join("config.ini"))
        .args(["--device", "cpu", "--set", &format!("dataset.input_file={}", corpus().display())])
        .args(["--set", "model.n_embd=32", "--set", "model.max_seq_len=32"])
        .args(["--set", "train.n_context=32", "--set", "train.n_batch=4"])
        .args(["--set", "train.n_iters=100000000", "--set", "train.n_est_loss_iters=100000000"])
        .current_dir(folder.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    // Once it reports its speed it is in the middle of training.
    let mut lines =
        BufReader::new(child.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
    let mut log: Vec<String> = Vec::new();
    for line in lines.by_ref() {
        let is_training = line.contains("tokens/s");
        log.push(line);
        if is_training {
            break;
        }
    }
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupt.expect("kill starts").success());
    log.extend(lines);
    let log = log.join("\n");
    assert_eq!(child.wait().expect("it ends").code(), Some(130), "{log}");
    assert!(folder.path().join("models/shakespeare.last.ckpt").exists(), "{log}");
    Weights::map(&folder.path().join("models/shakespeare.safetensors")).expect("an export");
}
