//! The state of a training run as a safetensors file: everything that continuing it needs.
//!
//! Tensors: each parameter under its exported name, f32; the optimizer's two running means of it under
//! `optimizer.m.<name>` and `optimizer.v.<name>` (Muon has no second one); the average of it under
//! `ema.<name>`, if there is to be one; the tables of a vocabulary that has some, as in a model file.
//! `__metadata__` holds the kind, the counts, the losses as JSON lists, where the run took place, the
//! tokenizer, the SHA-256 of the text, and the whole configuration under `dataset.<key>`, `model.<key>` and
//! `train.<key>`. There is no generator state: step `i` of a run seeds its own (see `dataset::mix`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::Tensor;
use teeny_runtime::format::{TensorSpec, write_atomically};
use teeny_runtime::tokenizer::tables::names;
use teeny_runtime::tokenizer::{Table, TableDtype, Tokenizer};

use crate::config::Run;
use crate::error::{Error, Result};
use crate::optim::Optimizer;
use crate::params::{Params, flat_to_vec};

/// Value of the metadata key `format`.
const FORMAT: &str = "teeny-checkpoint";
const VERSION: &str = "2";

/// Losses so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Steps done at each evaluation.
    pub iterations: Vec<u64>,
    /// Loss on the training split at each.
    pub train_losses: Vec<f64>,
    /// Loss on the validation split at each.
    pub val_losses: Vec<f64>,
}

impl History {
    /// Index of the evaluation with the lowest validation loss.
    pub fn best(&self) -> Option<usize> {
        (0..self.val_losses.len())
            .min_by(|a, b| self.val_losses[*a].total_cmp(&self.val_losses[*b]))
    }

    /// Forgets evaluations after step `iteration`.
    pub fn truncate(&mut self, iteration: u64) {
        let n = self.iterations.partition_point(|i| *i <= iteration);
        self.iterations.truncate(n);
        self.train_losses.truncate(n);
        self.val_losses.truncate(n);
    }
}

/// Where a run stands, besides its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Steps done.
    pub iteration: u64,
    /// The evaluations so far.
    pub history: History,
    /// Factor of the learning rate; less than 1 after training had to go back.
    pub lr_scale: f64,
    /// Steps whose gradient was not finite.
    pub n_skipped: u64,
    /// Seconds that training has taken.
    pub seconds: f64,
}

impl Default for Progress {
    fn default() -> Progress {
        let history = History::default();
        Progress { iteration: 0, history, lr_scale: 1.0, n_skipped: 0, seconds: 0.0 }
    }
}

/// What the last digits of a run's losses depend on, besides its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Processes that train together.
    pub n_processes: usize,
    /// `cpu` or `cuda`.
    pub device: String,
    /// What matrix products compute in: `f32` or `bf16`.
    pub dtype: String,
    /// CPU threads in use; 0 on CUDA.
    pub n_threads: i32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { device, dtype, n_threads, .. } = self;
        write!(f, "{device} in {dtype}")?;
        match n_threads {
            0 => Ok(()),
            1 => f.write_str(" with 1 thread"),
            n => write!(f, " with {n} threads"),
        }
    }
}

/// The configuration as metadata.
fn configuration(run: &Run, sha256: &str) -> Vec<(String, String)> {
    let mut all = vec![("dataset.sha256".to_owned(), sha256.to_owned())];
    let mut add = |section: &str, entries: Vec<(&'static str, String)>| {
        all.extend(entries.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)));
    };
    add("dataset", run.dataset.config().to_metadata());
    add("model", run.model.to_metadata());
    add("model", vec![("dropout", run.dropout.to_string())]);
    add("train", run.train.to_metadata());
    all
}

/// Keys that do not change what a run computes, or that a resumed run may want to differ.
const MAY_DIFFER: &[&str] = &[
    "dataset.input_file",
    "train.n_iters",
    "train.n_est_loss_iters",
    "train.n_est_loss_batches",
    "train.patience",
    "train.checkpoint_file",
    "train.export_file",
    "train.export_dtype",
    "train.run_dir",
    "train.sample_length",
    "train.device",
    "train.threads",
];

/// Writes a checkpoint. The file appears under its name only when it is complete.
///
/// # Errors
/// A failure to write; the file that was there before then stays.
pub fn save(
    path: &Path,
    run: &Run,
    sha256: &str,
    progress: &Progress,
    place: &Place,
    params: &Params,
    optimizer: &Optimizer,
) -> Result<()> {
    let history = &progress.history;
    let tokenizer = run.dataset.tokenizer();
    let mut metadata: HashMap<String, String> = [
        ("format", FORMAT.to_owned()),
        ("format_version", VERSION.to_owned()),
        ("teeny_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("iteration", progress.iteration.to_string()),
        ("iterations", json(&history.iterations)),
        ("train_losses", json(&history.train_losses)),
        ("val_losses", json(&history.val_losses)),
        ("lr_scale", progress.lr_scale.to_string()),
        ("n_skipped", progress.n_skipped.to_string()),
        ("seconds", progress.seconds.to_string()),
        ("processes", place.n_processes.to_string()),
        ("device", place.device.clone()),
        ("dtype", place.dtype.clone()),
        ("threads", place.n_threads.to_string()),
        ("tokenizer", tokenizer.to_json()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    metadata.extend(configuration(run, sha256));

    // Of each part the place in the flat tensor at which it begins.
    let n_muon = optimizer.n_muon() as usize;
    let mut parts = vec![
        ("", 0, bytes(&params.theta)),
        (M, 0, bytes(&optimizer.m)),
        (V, n_muon, bytes(&optimizer.v)),
    ];
    parts.extend(optimizer.ema.as_ref().map(|ema| (EMA, 0, bytes(ema))));
    let mut views = Vec::new();
    for (prefix, first, data) in &parts {
        for (spec, range) in params.entries().filter(|(_, range)| range.start >= *first) {
            let data = &data[(range.start - first) * 4..(range.end - first) * 4];
            let view = TensorView::new(Dtype::F32, spec.shape.clone(), data)
                .map_err(|error| damaged(path, error))?;
            views.push((format!("{prefix}{}", spec.name), view));
        }
    }
    let tables = tokenizer.tables();
    for table in &tables {
        let view = TensorView::new(of_table(table.dtype), table.shape.clone(), &table.bytes)
            .map_err(|error| damaged(path, error))?;
        views.push((table.name.to_owned(), view));
    }
    let file =
        safetensors::serialize(views, Some(metadata)).map_err(|error| damaged(path, error))?;
    write_atomically(path, |out| out.write_all(&file))?;
    Ok(())
}

/// The element type of a vocabulary's table in the file.
fn of_table(dtype: TableDtype) -> Dtype {
    match dtype {
        TableDtype::U8 => Dtype::U8,
        TableDtype::U32 => Dtype::U32,
        TableDtype::F32 => Dtype::F32,
    }
}

const M: &str = "optimizer.m.";
const V: &str = "optimizer.v.";
const EMA: &str = "ema.";

/// A checkpoint in memory.
pub struct Checkpoint {
    path: std::path::PathBuf,
    file: Vec<u8>,
    metadata: HashMap<String, String>,
}

impl Checkpoint {
    /// Reads a checkpoint.
    ///
    /// # Errors
    /// A file that cannot be read or is not a checkpoint.
    pub fn read(path: &Path) -> Result<Checkpoint> {
        let file = std::fs::read(path).map_err(|source| {
            Error::Runtime(teeny_runtime::Error::Io {
                action: "cannot read checkpoint",
                path: path.to_owned(),
                source,
            })
        })?;
        let (_, header) =
            SafeTensors::read_metadata(&file).map_err(|error| damaged(path, error))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let checkpoint = Checkpoint { path: path.to_owned(), file, metadata };
        if checkpoint.get("format")? != FORMAT {
            return Err(damaged(path, format!("not a {FORMAT}")));
        }
        let version = checkpoint.get("format_version")?;
        if version != VERSION {
            let reason = format!("found version {version} of the format, expected {VERSION}");
            return Err(damaged(path, reason));
        }
        Ok(checkpoint)
    }

    /// A value of the metadata.
    ///
    /// # Errors
    /// There is none under this key.
    pub fn get(&self, key: &str) -> Result<&str> {
        let value = self.metadata.get(key).map(String::as_str);
        value.ok_or_else(|| self.damaged(format!("metadata key {key} is missing")))
    }

    /// Keys and values of a section of the configuration.
    pub fn section<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.metadata.iter().filter_map(move |(key, value)| {
            Some((key.strip_prefix(name)?.strip_prefix('.')?, value.as_str()))
        })
    }

    /// Refuses to continue a run of another model, text or way of training.
    ///
    /// # Errors
    /// The first key that differs, with both values.
    pub fn check_same(&self, run: &Run, sha256: &str) -> Result<()> {
        let expected: BTreeMap<String, String> = configuration(run, sha256).into_iter().collect();
        let sections = ["dataset.", "model.", "train."];
        let found = self.metadata.keys().filter(|key| sections.iter().any(|s| key.starts_with(s)));
        // A key may be on either side alone: some are left out where they say nothing.
        let keys: BTreeSet<&String> = expected.keys().chain(found).collect();
        for key in keys {
            let (found, expected) = (self.metadata.get(key), expected.get(key));
            if found == expected || MAY_DIFFER.contains(&key.as_str()) {
                continue;
            }
            let shown = |value: Option<&String>| value.map_or("not set", String::as_str).to_owned();
            return Err(self.damaged(format!(
                "{key} is {} there, but {} in this run: a run can only be continued as it began",
                shown(found),
                shown(expected)
            )));
        }
        // One that was learned by another version of the library, or a file that has changed.
        if self.tokenizer()? != *run.dataset.tokenizer() {
            return Err(self.damaged(
                "the vocabulary is another one than this run has: a run can only be continued as it began",
            ));
        }
        Ok(())
    }

    /// The vocabulary of the run.
    ///
    /// # Errors
    /// None that can be read.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let tensors = self.tensors()?;
        let mut tables = Vec::new();
        for (name, view) in tensors.iter().filter(|(name, _)| name.starts_with(names::PREFIX)) {
            let known = [TableDtype::U8, TableDtype::U32, TableDtype::F32];
            let dtype = known.into_iter().find(|dtype| of_table(*dtype) == view.dtype());
            let wrong = || self.damaged(format!("{name} is of {:?}", view.dtype()));
            let dtype = dtype.ok_or_else(wrong)?;
            let (shape, bytes) = (view.shape().to_vec(), view.data().into());
            tables.push(Table { name, dtype, shape, bytes });
        }
        let json = self.get("tokenizer")?;
        Tokenizer::from_json_and_tables(json, &tables).map_err(|error| self.damaged(error))
    }

    /// Where the run stood.
    ///
    /// # Errors
    /// A value that is missing or no number.
    pub fn progress(&self) -> Result<Progress> {
        let history = History {
            iterations: self.list("iterations")?,
            train_losses: self.list("train_losses")?,
            val_losses: self.list("val_losses")?,
        };
        let n = history.iterations.len();
        if history.train_losses.len() != n || history.val_losses.len() != n {
            return Err(self.damaged("there are more losses than evaluations"));
        }
        Ok(Progress {
            iteration: self.number("iteration")?,
            history,
            lr_scale: self.number("lr_scale")?,
            n_skipped: self.number("n_skipped")?,
            seconds: self.number("seconds")?,
        })
    }

    /// Where the run took place.
    ///
    /// # Errors
    /// A value that is missing or no number.
    pub fn place(&self) -> Result<Place> {
        Ok(Place {
            n_processes: self.number("processes")?,
            device: self.get("device")?.to_owned(),
            dtype: self.get("dtype")?.to_owned(),
            n_threads: self.number("threads")?,
        })
    }

    /// Puts parameters and optimizer back to where [`save`] found them.
    ///
    /// # Errors
    /// A checkpoint of another model or optimizer; nothing has changed then.
    pub fn load(&self, params: &mut Params, optimizer: &mut Optimizer) -> Result<()> {
        let tensors = self.tensors()?;
        let n_muon = optimizer.n_muon() as usize;
        let read = |prefix: &str, first: usize| self.flat(&tensors, params, prefix, first);
        let (theta, m, v) = (read("", 0)?, read(M, 0)?, read(V, n_muon)?);
        let ema = optimizer.ema.as_ref().map(|_| read(EMA, 0)).transpose()?;
        params.set_flat(&theta);
        optimizer.m.copy_(&m);
        optimizer.v.copy_(&v);
        if let Some((to, from)) = optimizer.ema.as_mut().zip(ema) {
            to.copy_(&from);
        }
        Ok(())
    }

    /// The parameters that an export takes: the averaged ones, if there are any. `(n_params)` in the
    /// layout of `params`
    ///
    /// # Errors
    /// A checkpoint of another model.
    pub fn exported(&self, params: &Params) -> Result<Tensor> {
        let tensors = self.tensors()?;
        let averaged = tensors.names().iter().any(|name| name.starts_with(EMA));
        self.flat(&tensors, params, if averaged { EMA } else { "" }, 0)
    }

    fn tensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.file).map_err(|error| self.damaged(error))
    }

    /// All tensors of a prefix that begin at `first` or later in the layout, one after the other.
    fn flat(
        &self,
        tensors: &SafeTensors<'_>,
        params: &Params,
        prefix: &str,
        first: usize,
    ) -> Result<Tensor> {
        let mut flat = vec![0f32; params.len() - first];
        for (spec, range) in params.entries().filter(|(_, range)| range.start >= first) {
            let TensorSpec { name, shape } = spec;
            let name = format!("{prefix}{name}");
            let view = tensors.tensor(&name).map_err(|error| self.damaged(error))?;
            if view.dtype() != Dtype::F32 || view.shape() != shape {
                let found = format!("{:?} {:?}", view.dtype(), view.shape());
                return Err(self.damaged(format!("{name}: found {found}, expected F32 {shape:?}")));
            }
            let values = view.data().chunks_exact(4);
            for (to, from) in flat[range.start - first..range.end - first].iter_mut().zip(values) {
                *to = f32::from_le_bytes([from[0], from[1], from[2], from[3]]);
            }
        }
        Ok(Tensor::from_slice(&flat))
    }

    fn number<T: FromStr<Err: std::fmt::Display>>(&self, key: &str) -> Result<T> {
        self.get(key)?.parse().map_err(|error| self.damaged(format!("{key}: {error}")))
    }

    fn list<T: FromStr>(&self, key: &str) -> Result<Vec<T>> {
        let wrong = || self.damaged(format!("metadata key {key} is not a list of numbers"));
        let text = self.get(key)?;
        let inner =
            text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).ok_or_else(wrong)?;
        let items = inner.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(|item| item.parse().map_err(|_| wrong())).collect()
    }

    fn damaged(&self, reason: impl ToString) -> Error {
        damaged(&self.path, reason)
    }
}

fn bytes(flat: &Tensor) -> Vec<u8> {
    flat_to_vec(flat).iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn damaged(path: &Path, reason: impl ToString) -> Error {
    Error::Checkpoint { path: path.to_owned(), reason: reason.to_string() }
}

/// A list of numbers as JSON. Rust prints the shortest digits that read back as the same number.
fn json<T: std::fmt::Debug>(values: &[T]) -> String {
    format!("{values:?}")
}
