//! The section `[train]`, and everything that one run needs, resolved and checked.

use std::path::{Path, PathBuf};

use teeny_runtime::config::{
    CHECKPOINT_FILE, EXPORT_FILE, ModelConfig, ModelSection, model_section, output_files,
};
use teeny_runtime::dataset::{Dataset, Split, dataset_section};
use teeny_runtime::format::{Dtype, n_params};
use teeny_runtime::ini::{Ini, Key, Section};

use crate::dataset::Sampling;
use crate::error::Result;
use crate::optim::{OptimConfig, OptimizerKind};
use crate::params::Init;
use crate::schedule::{LearningRate, Schedule};

const fn key(name: &'static str, aliases: &'static [&'static str]) -> Key {
    Key { name, aliases }
}

/// The keys of `[train]`; the aliases are nanoGPT's names.
pub const KEYS: &[Key] = &[
    key("n_iters", &["max_iters"]),
    key("n_context", &["block_size"]),
    key("n_batch", &["batch_size"]),
    key("grad_accum", &["gradient_accumulation_steps"]),
    key("sampling", &[]),
    key("n_est_loss_iters", &["eval_interval"]),
    key("n_est_loss_batches", &["eval_iters"]),
    key("patience", &[]),
    key("optimizer", &[]),
    key("schedule", &[]),
    key("lr_max", &["learning_rate"]),
    key("lr_min", &["min_lr"]),
    key("muon_lr", &[]),
    key("warmup_iters", &[]),
    key("decay_fraction", &[]),
    key("weight_decay", &[]),
    key("betas", &[]),
    key("grad_clip", &[]),
    key("ema", &[]),
    key("init_std", &[]),
    key("zero_init", &[]),
    key("dtype", &[]),
    key("run_dir", &[]),
    CHECKPOINT_FILE,
    EXPORT_FILE,
    key("export_dtype", &[]),
    key("seed", &[]),
    key("sample_length", &[]),
    key("device", &[]),
    key("threads", &[]),
];

/// What `dtype` may say.
const DTYPES: &[(&str, Option<Dtype>)] = &[
    ("auto", None),
    ("f32", Some(Dtype::F32)),
    ("float32", Some(Dtype::F32)),
    ("bf16", Some(Dtype::Bf16)),
    ("bfloat16", Some(Dtype::Bf16)),
];

/// The section `[train]`.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// Steps of the optimizer.
    pub n_iters: u64,
    /// Tokens that the model sees at once.
    pub n_context: usize,
    /// Sequences whose gradient is computed at once.
    pub n_batch: usize,
    /// Batches whose gradients make one step.
    pub grad_accum: usize,
    /// How sequences are chosen.
    pub sampling: Sampling,
    /// Steps between two evaluations.
    pub n_est_loss_iters: u64,
    /// Batches that the training loss is estimated from; the validation loss is exact.
    pub n_est_loss_batches: usize,
    /// Evaluations without a better one after which training ends; 0: never.
    pub patience: u64,
    /// AdamW or Muon.
    pub optimizer: OptimizerKind,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// Largest learning rate of AdamW.
    pub lr_max: f64,
    /// Learning rate at the end.
    pub lr_min: f64,
    /// Largest learning rate of Muon; it falls in the ratio of AdamW's.
    pub muon_lr: f64,
    /// Steps in which the learning rate rises.
    pub warmup_iters: u64,
    /// Share of the steps in which the schedule wsd falls.
    pub decay_fraction: f64,
    /// Decay of weights, times the learning rate, a step.
    pub weight_decay: f64,
    /// AdamW's decay rates of the two running means.
    pub betas: [f64; 2],
    /// Longest gradient; 0: no limit.
    pub grad_clip: f64,
    /// Weight of the past in the average of the parameters; 0: no average.
    pub ema: f64,
    /// How parameters are drawn.
    pub init: Init,
    /// What matrix products compute in; `None` chooses by the device.
    pub dtype: Option<Dtype>,
    /// Folder of the run's records; `None`: beside the checkpoint.
    run_dir: Option<PathBuf>,
    /// Best checkpoint; the last one lies beside it, see [`TrainConfig::last_file`].
    pub checkpoint_file: PathBuf,
    /// The exported model.
    pub export_file: PathBuf,
    /// Element type of the exported model.
    pub export_dtype: Dtype,
    /// Seed of the parameters, the batches and dropout.
    pub seed: u64,
    /// Tokens of the sample after each evaluation; 0 for none.
    pub sample_length: usize,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// CPU threads; 0 chooses what is fastest when training starts.
    pub threads: usize,
}

impl TrainConfig {
    /// Reads the section. `max_seq_len` of the model is the default of `n_context`.
    ///
    /// # Errors
    /// An unknown key, a value of the wrong type or out of range, or files that would overwrite
    /// each other.
    pub fn read(ini: &Ini, max_seq_len: usize) -> Result<TrainConfig> {
        let s = ini.section("train", KEYS)?;
        let (checkpoint_file, export_file) = output_files(ini)?;
        let config = TrainConfig {
            n_iters: s.usize("n_iters", 5000, 1..=1_000_000_000)? as u64,
            n_context: s.usize("n_context", max_seq_len, 1..=1 << 24)?,
            n_batch: s.usize("n_batch", 64, 1..=1 << 20)?,
            grad_accum: s.usize("grad_accum", 1, 1..=1 << 16)?,
            sampling: s.one_of("sampling", Sampling::SPELLINGS, Sampling::Random)?,
            n_est_loss_iters: s.usize("n_est_loss_iters", 100, 1..=1_000_000_000)? as u64,
            n_est_loss_batches: s.usize("n_est_loss_batches", 10, 1..=1_000_000)?,
            patience: s.usize("patience", 0, 0..=1_000_000)? as u64,
            optimizer: s.one_of("optimizer", OptimizerKind::SPELLINGS, OptimizerKind::AdamW)?,
            schedule: s.one_of("schedule", Schedule::SPELLINGS, Schedule::Cosine)?,
            lr_max: s.f64("lr_max", 1e-3, 0.0..=1e3)?,
            lr_min: s.f64("lr_min", 1e-5, 0.0..=1e3)?,
            muon_lr: s.f64("muon_lr", 0.02, 0.0..=1e3)?,
            warmup_iters: s.usize("warmup_iters", 0, 0..=1_000_000_000)? as u64,
            decay_fraction: s.f64("decay_fraction", 0.3, 0.0..=1.0)?,
            weight_decay: s.f64("weight_decay", 0.1, 0.0..=1e3)?,
            betas: s.f64_list("betas", [0.9, 0.95], 0.0..1.0)?,
            grad_clip: s.f64("grad_clip", 0.0, 0.0..=1e6)?,
            ema: s.f64("ema", 0.0, 0.0..1.0)?,
            init: Init {
                std: s.f64("init_std", 0.02, 0.0..=10.0)?,
                zero: s.bool("zero_init", false)?,
            },
            dtype: s.one_of("dtype", DTYPES, None)?,
            run_dir: s.optional("run_dir").map(PathBuf::from),
            checkpoint_file,
            export_file,
            export_dtype: read_export_dtype(&s)?,
            seed: s.u64("seed", 0)?,
            sample_length: s.usize("sample_length", 200, 0..=1 << 20)?,
            device: s.string("device", "auto")?,
            threads: s.usize("threads", 0, 0..=4096)?,
        };
        config.check(&s, max_seq_len)?;
        Ok(config)
    }

    /// Where the newest state is kept, beside the best one: `x.last.pt` for `x.pt`.
    pub fn last_file(&self) -> PathBuf {
        let extension = match self.checkpoint_file.extension() {
            Some(extension) => format!("last.{}", extension.to_string_lossy()),
            None => "last".to_owned(),
        };
        self.checkpoint_file.with_extension(extension)
    }

    /// Where the records of the run are kept: `x.run` for the checkpoint `x.ckpt`, unless the key says
    /// otherwise.
    pub fn run_dir(&self) -> PathBuf {
        self.run_dir.clone().unwrap_or_else(|| self.checkpoint_file.with_extension("run"))
    }

    /// Sequences in a step.
    pub fn n_sequences(&self) -> usize {
        self.n_batch * self.grad_accum
    }

    /// What the optimizer needs to know. `muon_kind`: what Muon computes in.
    pub fn optim(&self, muon_kind: tch::Kind) -> OptimConfig {
        OptimConfig {
            kind: self.optimizer,
            lr: LearningRate {
                schedule: self.schedule,
                max: self.lr_max,
                min: self.lr_min,
                warmup_iters: self.warmup_iters,
                decay_fraction: self.decay_fraction,
                n_iters: self.n_iters,
            },
            muon_lr: self.muon_lr,
            betas: self.betas,
            weight_decay: self.weight_decay,
            grad_clip: self.grad_clip,
            ema: self.ema,
            muon_kind,
        }
    }

    /// Every key with its resolved value, in the order of [`KEYS`].
    pub fn to_metadata(&self) -> Vec<(&'static str, String)> {
        vec![
            ("n_iters", self.n_iters.to_string()),
            ("n_context", self.n_context.to_string()),
            ("n_batch", self.n_batch.to_string()),
            ("grad_accum", self.grad_accum.to_string()),
            ("sampling", self.sampling.name().to_owned()),
            ("n_est_loss_iters", self.n_est_loss_iters.to_string()),
            ("n_est_loss_batches", self.n_est_loss_batches.to_string()),
            ("patience", self.patience.to_string()),
            ("optimizer", self.optimizer.name().to_owned()),
            ("schedule", self.schedule.name().to_owned()),
            ("lr_max", self.lr_max.to_string()),
            ("lr_min", self.lr_min.to_string()),
            ("muon_lr", self.muon_lr.to_string()),
            ("warmup_iters", self.warmup_iters.to_string()),
            ("decay_fraction", self.decay_fraction.to_string()),
            ("weight_decay", self.weight_decay.to_string()),
            ("betas", format!("{:?}", self.betas)),
            ("grad_clip", self.grad_clip.to_string()),
            ("ema", self.ema.to_string()),
            ("init_std", self.init.std.to_string()),
            ("zero_init", self.init.zero.to_string()),
            ("dtype", self.dtype.map_or("auto", Dtype::name).to_owned()),
            ("run_dir", self.run_dir().display().to_string()),
            ("checkpoint_file", self.checkpoint_file.display().to_string()),
            ("export_file", self.export_file.display().to_string()),
            ("export_dtype", self.export_dtype.name().to_owned()),
            ("seed", self.seed.to_string()),
            ("sample_length", self.sample_length.to_string()),
            ("device", self.device.clone()),
            ("threads", self.threads.to_string()),
        ]
    }

    fn check(&self, s: &Section, max_seq_len: usize) -> Result<()> {
        if self.n_context > max_seq_len {
            let expected = format!("at most max_seq_len = {max_seq_len} of [model]");
            return Err(s.error("n_context", self.n_context.to_string(), expected).into());
        }
        if self.lr_min > self.lr_max {
            let expected = format!("at most lr_max = {}", self.lr_max);
            return Err(s.error("lr_min", self.lr_min.to_string(), expected).into());
        }
        if self.warmup_iters >= self.n_iters {
            let found = self.warmup_iters.to_string();
            let expected = format!("fewer than n_iters = {}", self.n_iters);
            return Err(s.error("warmup_iters", found, expected).into());
        }
        let run_dir = absolute(&self.run_dir());
        if run_dir.exists() && !run_dir.is_dir() {
            let found = format!("{:?}, which is a file", self.run_dir().display().to_string());
            return Err(s.error("run_dir", found, "the name of a folder").into());
        }
        for (key, file) in [
            ("checkpoint_file", &self.checkpoint_file),
            ("export_file", &self.export_file),
            ("checkpoint_file", &self.last_file()),
        ] {
            if absolute(file) == run_dir {
                let key = if s.has(key) { key } else { "checkpoint_file" };
                let found = file.display().to_string();
                return Err(s.error(key, found, "another name than that of run_dir").into());
            }
        }
        let export = absolute(&self.export_file);
        for (file, what) in [(&self.checkpoint_file, "best"), (&self.last_file(), "last")] {
            if absolute(file) == export {
                let key = if s.has("export_file") { "export_file" } else { "checkpoint_file" };
                let found = self.export_file.display().to_string();
                let expected = format!(
                    "another file than that of the {what} checkpoint (export_file may name one)"
                );
                return Err(s.error(key, found, expected).into());
            }
        }
        for (key, file) in
            [("checkpoint_file", &self.checkpoint_file), ("export_file", &self.export_file)]
        {
            if file.file_name().is_none() || file.is_dir() {
                let found = format!("{:?}", file.display().to_string());
                return Err(s.error(key, found, "the name of a file").into());
            }
        }
        Ok(())
    }
}

/// How an exported file stores numbers, and nothing else from `[train]`.
///
/// # Errors
/// A value that is no element type.
pub fn export_dtype(ini: &Ini) -> Result<Dtype> {
    read_export_dtype(&ini.section("train", KEYS)?)
}

fn read_export_dtype(s: &Section) -> Result<Dtype> {
    let dtypes: Vec<(&str, Dtype)> = Dtype::ALL.iter().map(|d| (d.name(), *d)).collect();
    Ok(s.one_of("export_dtype", &dtypes, Dtype::Bf16)?)
}

/// Everything that a run needs.
pub struct Run {
    /// The text, encoded and split.
    pub dataset: Dataset,
    /// The model.
    pub model: ModelConfig,
    /// Share of activations zeroed in training.
    pub dropout: f64,
    /// The training.
    pub train: TrainConfig,
}

impl Run {
    /// Reads and checks a configuration, and loads its text.
    ///
    /// # Errors
    /// Anything that would keep the run from working; nothing has been written then.
    pub fn read(ini: &Ini) -> Result<Run> {
        ini.check_sections(&["dataset", "model", "train"])?;
        // Once with a stand-in for the vocabulary's size: a wrong key should not wait for the text.
        let ModelSection { config, .. } = model_section(ini, 1)?;
        let train = TrainConfig::read(ini, config.max_seq_len)?;
        let dataset = Dataset::load_learning(&dataset_section(ini)?, &crate::vocabulary::learn)?;
        dataset.check_context(train.n_context)?;
        let vocab_size = dataset.tokenizer().vocab_size();
        let ModelSection { config: model, dropout, .. } = model_section(ini, vocab_size)?;
        Ok(Run { dataset, model, dropout, train })
    }

    /// Number of parameters of the model.
    pub fn n_params(&self) -> usize {
        n_params(&self.model)
    }

    /// Whether there is text that neither training nor the choice of the best model sees.
    pub fn has_test_split(&self) -> bool {
        !self.dataset.chunks(Split::Test).is_empty()
    }
}

/// The path without links and relative parts, as far as it exists; for comparison only.
fn absolute(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().or_else(|_| std::path::absolute(folder));
    folder.unwrap_or_default().join(path.file_name().unwrap_or_default())
}
