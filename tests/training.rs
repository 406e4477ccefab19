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

/// A run of seconds, whose files are in `folder` under `name`.
fn small(folder: &Path, name: &str, set: &[&str]) -> Command {
    let mut command = Command::new(program("teeny-train"));
    command.current_dir(folder).arg("--config").arg(root().join("config.ini"));
    command.env_remove("WORLD_SIZE");
    for assignment in [
        &format!("dataset.input_file={}", corpus().display())[..],
        "dataset.tokens_per_chunk=2000",
        "model.n_layer=1",
        "model.n_embd=32",
        "model.max_seq_len=32",
        "train.n_context=32",
        "train.n_batch=4",
        "train.n_iters=60",
        "train.n_est_loss_iters=3",
        "train.n_est_loss_batches=1",
        "train.sample_length=0",
        "train.device=cpu",
        "train.threads=1",
        "train.export_dtype=f32",
        &format!("train.checkpoint_file={name}.ckpt"),
        &format!("train.export_file={name}.safetensors"),
    ]
    .iter()
    .chain(set)
    {
        command.args(["--set", assignment]);
    }
    // A text that is short enough to be evaluated in no time.
    command.args(["--set", "dataset.fraction_train=0.98", "--set", "dataset.fraction_val=0.004"]);
    command
}

fn run_to_the_end(mut command: Command) -> Output {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

/// Everything in an exported file but what is said of its making.
fn tensors(folder: &Path, name: &str) -> Vec<Vec<u32>> {
    let weights = Weights::map(&folder.join(name)).expect("the export");
    let specs = teeny_runtime::format::tensor_specs(weights.config());
    let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let all = specs.iter().map(|s| weights.tensor(&s.name).expect("there").to_f32());
    all.map(|tensor| bits(tensor.expect("enough memory"))).collect()
}

/// What a run of its own process leaves is continued by another one as if there had been only one:
/// with every option that has a state.
#[test]
fn a_run_that_is_killed_again_and_again_ends_as_one_that_was_not() {
    const KILLS: u32 = 50;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = [
        "train.optimizer=muon",
        "train.schedule=wsd",
        "train.sampling=epochs",
        "train.ema=0.9",
        "train.grad_clip=1",
        "train.n_iters=1500",
    ];
    run_to_the_end(small(folder.path(), "whole", &options));

    // Random, but the same in every run of the test.
    let mut rng = teeny_runtime::dataset::SplitMix64::new(1);
    let last = folder.path().join("parts.last.ckpt");
    let (mut kills, mut starts) = (0, 0);
    loop {
        starts += 1;
        assert!(starts < 4 * KILLS, "it gets nowhere");
        let mut command = small(folder.path(), "parts", &options);
        if last.exists() {
            command.args(["--resume", "parts.last.ckpt"]);
        }
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut lines =
            BufReader::new(child.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
        let mut log = Vec::new();
        if kills < KILLS {
            // Not before it trains, or it would get nowhere; then at any moment, while it writes its
            // files most likely.
            for line in lines.by_ref() {
                let trains = line.contains("val loss");
                log.push(line);
                if trains {
                    break;
                }
            }
            let drain = std::thread::spawn(move || lines.for_each(drop));
            std::thread::sleep(std::time::Duration::from_micros(rng.below(60_000) as u64));
            child.kill().expect("SIGKILL");
            kills += u32::from(!child.wait().expect("it ends").success());
            drain.join().expect("the pipe ends");
        } else {
            log.extend(lines);
            assert!(child.wait().expect("it ends").success(), "{}", log.join("\n"));
            break;
        }
        // Whatever is there is whole.
        if !last.exists() {
            continue;
        }
        let output = Command::new(program("teeny-train"))
            .args([
                "--export-only",
                "parts.last.ckpt",
                "--set",
                "train.export_file=now.safetensors",
            ])
            .current_dir(folder.path())
            .output()
            .expect("the program starts");
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert!(
        tensors(folder.path(), "whole.safetensors") == tensors(folder.path(), "parts.safetensors"),
        "the parameters differ"
    );
    println!("{kills} kills, {starts} starts");
}

/// What cannot be continued is refused before training.
#[test]
fn another_run_is_not_continued() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    run_to_the_end(small(folder.path(), "x", &["train.n_iters=3"]));
    for (checkpoint, set, named) in [
        ("x.last.ckpt", "train.n_iters=3", "nothing is left"),
        ("x.last.ckpt", "train.lr_max=5e-4", "train.lr_max is 0.001 there, but 0.0005"),
        ("x.last.ckpt", "dataset.random_seed=7", "dataset.random_seed"),
        ("nowhere.ckpt", "train.n_iters=9", "nowhere.ckpt"),
        ("x.safetensors", "train.n_iters=9", "x.safetensors"),
    ] {
        let mut command = small(folder.path(), "x", &["train.n_iters=9", set]);
        let output = command.args(["--resume", checkpoint]).output().expect("the program starts");
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(named) && !message.contains("panicked"), "{message}");
    }
}

/// A disk that is full while a checkpoint is written: training goes on, the one before it stays, and
/// the message says so. The limit on the size of files stands for the disk.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_no_checkpoint_that_was_there() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    run_to_the_end(small(folder.path(), "x", &["train.n_iters=3"]));
    let before = std::fs::read(folder.path().join("x.last.ckpt")).expect("the checkpoint");
    let full = small(folder.path(), "x", &["train.n_iters=6"]);
    let mut command = Command::new("bash");
    // In units of 1 KiB; the signal would end the process, the error is what a full disk gives.
    command.args(["-c", "trap '' XFSZ; ulimit -f 20; exec \"$@\"", "bash"]);
    command.arg(full.get_program()).args(full.get_args()).args(["--resume", "x.last.ckpt"]);
    let output = command.current_dir(folder.path()).output().expect("bash");
    let message = stderr(&output);
    assert!(!output.status.success(), "the last checkpoint is missing: {message}");
    assert!(message.contains("x.last.ckpt") && !message.contains("panicked"), "{message}");
    assert!(
        message.contains("checkpoint not saved") && message.contains("is as it was"),
        "{message}"
    );
    assert!(std::fs::read(folder.path().join("x.last.ckpt")).expect("still there") == before);
    run_to_the_end({
        let mut command = small(folder.path(), "x", &["train.n_iters=6"]);
        command.args(["--resume", "x.last.ckpt"]);
        command
    });
}

/// `--dry-run`, `--find-lr` and `--export-only`.
#[test]
fn what_is_not_training_trains_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = |arg: &[&str]| {
        let mut command = small(folder.path(), "x", &[]);
        command.args(arg);
        run_to_the_end(command)
    };
    let text = String::from_utf8(run(&["--dry-run"]).stdout).expect("UTF-8");
    assert!(text.contains("parameters") && text.contains("predicted time"), "{text}");
    assert!(std::fs::read_dir(folder.path()).expect("the folder").next().is_none());

    let output = run(&["--find-lr"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lr: f64 =
        text.trim().strip_prefix("lr_max = ").and_then(|lr| lr.parse().ok()).expect(&text);
    assert!((1e-4..1.0).contains(&lr), "{lr}");
    let page =
        std::fs::read_to_string(folder.path().join("x.run/lr_range.html")).expect("the plot");
    assert!(page.contains("<svg"), "{page}");
    assert!(!folder.path().join("x.last.ckpt").exists());

    run(&[]);
    let expected = tensors(folder.path(), "x.safetensors");
    let output = Command::new(program("teeny-train"))
        .args(["--export-only", "x.ckpt", "--set", "train.export_file=y.safetensors"])
        .current_dir(folder.path())
        .output()
        .expect("the program starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "y.safetensors\n", "{}", stderr(&output));
    assert!(tensors(folder.path(), "y.safetensors") == expected);
    for args in [&["--export-only", "nowhere.ckpt"][..], &["--dry-run", "--find-lr"]] {
        let output = Command::new(program("teeny-train")).args(args).output().expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    }
}

/// The records of a run are there and agree with each other.
#[test]
fn a_run_leaves_its_records() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let set = ["train.n_iters=7", "train.sample_length=20"];
    let mut command = small(folder.path(), "x", &set);
    command.arg("--tensorboard");
    run_to_the_end(command);
    let mut command = small(folder.path(), "x", &["train.n_iters=9", "train.sample_length=20"]);
    command.args(["--resume", "x.last.ckpt"]);
    run_to_the_end(command);

    let read = |name: &str| {
        let path = folder.path().join("x.run").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let info: serde_json::Value = serde_json::from_str(&read("run.json")).expect("JSON");
    assert_eq!(info["config"]["train"]["n_iters"], "9");
    assert_eq!(info["dataset_sha256"].as_str().map(str::len), Some(64));
    assert_eq!((&info["device"], &info["seed"]), (&"cpu".into(), &0.into()));
    let metrics = read("metrics.jsonl");
    let lines: Vec<serde_json::Value> =
        metrics.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let iterations = |kind: &str| -> Vec<u64> {
        let lines = lines.iter().filter(|line| line["type"] == kind);
        lines.map(|line| line["iteration"].as_u64().expect("a count")).collect()
    };
    assert_eq!(iterations("step"), (1..=9).collect::<Vec<u64>>(), "{metrics}");
    assert_eq!(iterations("evaluation"), [3, 6, 7, 9], "{metrics}");
    assert!(read("samples.txt").matches("iteration").count() >= 4);
    let page = read("report.html");
    assert!(page.contains("<svg") && page.contains("finished"), "{page}");
    let events = std::fs::read_dir(folder.path().join("x.run")).expect("the folder");
    let names = events.map_while(Result::ok).map(|e| e.file_name().into_string().expect("UTF-8"));
    assert_eq!(names.filter(|name| name.contains("tfevents")).count(), 1);
}

/// Every preset is a configuration that works.
#[test]
fn presets_are_valid() {
    let presets = std::fs::read_dir(root().join("trainer/presets")).expect("the presets");
    let mut n = 0;
    for preset in presets.map_while(Result::ok) {
        let mut ini = teeny_runtime::ini::Ini::read(&preset.path()).expect("readable");
        ini.set(&format!("dataset.input_file={}", corpus().display())).expect("an assignment");
        let run = teeny_trainer::config::Run::read(&ini);
        let run = run.unwrap_or_else(|error| panic!("{}: {error}", preset.path().display()));
        println!("{}: {} parameters", preset.path().display(), run.n_params());
        n += 1;
    }
    assert!(n >= 3);
}

/// Two processes with half the batch each learn what one does.
#[cfg(target_os = "linux")]
#[test]
fn two_processes_learn_what_one_does_with_twice_the_batch() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let losses = |name: &str| -> Vec<f64> {
        let path = folder.path().join(format!("{name}.run/metrics.jsonl"));
        let text = std::fs::read_to_string(path).expect("the records");
        let lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let steps = lines.filter(|line: &serde_json::Value| line["type"] == "step");
        steps.map(|line| line["loss"].as_f64().expect("a number")).collect()
    };
    let set = ["model.dropout=0", "train.n_iters=20", "train.optimizer=muon"];
    run_to_the_end(small(folder.path(), "one", &[&set[..], &["train.n_batch=8"]].concat()));

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port().to_string();
    drop(listener);
    let children: Vec<_> = ["0", "1"]
        .iter()
        .map(|rank| {
            let mut command = small(folder.path(), "two", &set);
            command.envs([("RANK", *rank), ("LOCAL_RANK", *rank), ("WORLD_SIZE", "2")]);
            command.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)]);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command.spawn().expect("the program starts")
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let (one, two) = (losses("one"), losses("two"));
    assert_eq!((one.len(), two.len()), (20, 20));
    for (i, (one, two)) in one.iter().zip(&two).enumerate() {
        assert!((one - two).abs() < 2e-4, "step {i}: {one} {two}");
    }
    assert!(one[19] < one[0] - 0.3, "it learns: {one:?}");
}

/// Ctrl-C or SIGTERM ends the run in order: the last checkpoint and an export are there.
#[cfg(unix)]
#[test]
fn an_interrupt_saves_and_leaves() {
    for signal in ["-INT", "-TERM"] {
        interrupt_with(signal);
    }
}

#[cfg(unix)]
fn interrupt_with(signal: &str) {
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
    let interrupt = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(interrupt.expect("kill starts").success());
    log.extend(lines);
    let log = log.join("\n");
    assert_eq!(child.wait().expect("it ends").code(), Some(130), "{log}");
    assert!(folder.path().join("models/shakespeare.last.ckpt").exists(), "{log}");
    Weights::map(&folder.path().join("models/shakespeare.safetensors")).expect("an export");
}
