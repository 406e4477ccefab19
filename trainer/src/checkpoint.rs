//! The state of a training run as a safetensors file: everything that continuing it needs.
//!
//! Tensors: each parameter under its exported name, f32, and AdamW's two running means of it under
//! `optimizer.m.<name>` and `optimizer.v.<name>`. `__metadata__` holds the kind, the counts, the
//! losses as JSON lists, the tokenizer and the whole configuration under `model.<key>` and
//! `train.<key>`. There is no generator state: step `i` of a run seeds its own (see `dataset::mix`).

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::Tensor;
use teeny_runtime::format::write_atomically;

use crate::config::Run;
use crate::error::{Error, Result};
use crate::optim::AdamW;
use crate::params::{Params, flat_to_vec};

/// Value of the metadata key `format`.
const FORMAT: &str = "teeny-checkpoint";
const VERSION: &str = "1";

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
}

/// Writes a checkpoint. The file appears under its name only when it is complete.
///
/// # Errors
/// A failure to write; the file that was there before then stays.
pub fn save(
    path: &Path,
    run: &Run,
    iteration: u64,
    history: &History,
    params: &Params,
    optimizer: &AdamW,
) -> Result<()> {
    let mut metadata: HashMap<String, String> = [
        ("format", FORMAT.to_owned()),
        ("format_version", VERSION.to_owned()),
        ("teeny_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("iteration", iteration.to_string()),
        ("optimizer_steps", optimizer.n_steps.to_string()),
        ("iterations", json(&history.iterations)),
        ("train_losses", json(&history.train_losses)),
        ("val_losses", json(&history.val_losses)),
        ("tokenizer", run.dataset.tokenizer().to_json()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    metadata.extend(run.model.to_metadata().into_iter().map(|(k, v)| (format!("model.{k}"), v)));
    metadata.insert("model.dropout".to_owned(), run.dropout.to_string());
    metadata.extend(run.train.to_metadata().into_iter().map(|(k, v)| (format!("train.{k}"), v)));

    let parts = [("", bytes(&params.theta)), (M, bytes(&optimizer.m)), (V, bytes(&optimizer.v))];
    let mut views = Vec::new();
    for (prefix, data) in &parts {
        for (spec, range) in params.entries() {
            let data = &data[range.start * 4..range.end * 4];
            let view = TensorView::new(Dtype::F32, spec.shape.clone(), data)
                .map_err(|error| damaged(path, error))?;
            views.push((format!("{prefix}{}", spec.name), view));
        }
    }
    let file =
        safetensors::serialize(views, Some(metadata)).map_err(|error| damaged(path, error))?;
    write_atomically(path, |out| out.write_all(&file))?;
    Ok(())
}

const M: &str = "optimizer.m.";
const V: &str = "optimizer.v.";

/// Puts parameters and optimizer back to where [`save`] found them, and returns the steps done and
/// the losses so far.
///
/// # Errors
/// A file that cannot be read, is not a checkpoint, or holds another model.
pub fn load(path: &Path, params: &mut Params, optimizer: &mut AdamW) -> Result<(u64, History)> {
    let file = std::fs::read(path).map_err(|source| {
        Error::Runtime(teeny_runtime::Error::Io {
            action: "cannot read checkpoint",
            path: path.to_owned(),
            source,
        })
    })?;
    let (_, header) = SafeTensors::read_metadata(&file).map_err(|error| damaged(path, error))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let get = |key: &str| {
        metadata.get(key).ok_or_else(|| damaged(path, format!("metadata key {key} is missing")))
    };
    if get("format")? != FORMAT || get("format_version")? != VERSION {
        return Err(damaged(path, format!("not a {FORMAT} of version {VERSION}")));
    }
    let count = |key: &str| -> Result<u64> {
        get(key)?.parse().map_err(|error| damaged(path, format!("{key}: {error}")))
    };
    let iteration = count("iteration")?;
    let n_steps = count("optimizer_steps")?;
    let history = History {
        iterations: parse(path, "iterations", get("iterations")?)?,
        train_losses: parse(path, "train_losses", get("train_losses")?)?,
        val_losses: parse(path, "val_losses", get("val_losses")?)?,
    };
    let tensors = SafeTensors::deserialize(&file).map_err(|error| damaged(path, error))?;
    let read = |prefix: &str| -> Result<Tensor> {
        let mut flat = vec![0u8; params.len() * 4];
        for (spec, range) in params.entries() {
            let name = format!("{prefix}{}", spec.name);
            let view = tensors.tensor(&name).map_err(|error| damaged(path, error))?;
            if view.dtype() != Dtype::F32 || view.shape() != spec.shape {
                let found = format!("{:?} {:?}", view.dtype(), view.shape());
                let reason = format!("{name}: found {found}, expected F32 {:?}", spec.shape);
                return Err(damaged(path, reason));
            }
            flat[range.start * 4..range.end * 4].copy_from_slice(view.data());
        }
        let floats: Vec<f32> =
            flat.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Tensor::from_slice(&floats))
    };
    let (theta, m, v) = (read("")?, read(M)?, read(V)?);
    params.set_flat(&theta);
    optimizer.m.copy_(&m);
    optimizer.v.copy_(&v);
    optimizer.n_steps = n_steps;
    Ok((iteration, history))
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

fn parse<T: FromStr>(path: &Path, key: &str, text: &str) -> Result<Vec<T>> {
    let wrong = || damaged(path, format!("metadata key {key} is not a list of numbers"));
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).ok_or_else(wrong)?;
    let items = inner.split(',').map(str::trim).filter(|item| !item.is_empty());
    items.map(|item| item.parse().map_err(|_| wrong())).collect()
}
