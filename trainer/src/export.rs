//! The trained model as the one file that the runtime decodes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tch::Device;
use teeny_runtime::ModelConfig;
use teeny_runtime::config::output_files;
use teeny_runtime::format::{tensor_specs, write_model};
use teeny_runtime::ini::Ini;

use crate::checkpoint::Checkpoint;
use crate::config::Run;
use crate::error::{Error, Result};
use crate::params::{Params, flat_to_vec};

/// Where the exported parameters stand in their training.
#[derive(Clone, Copy, Debug)]
pub struct Provenance {
    /// Steps done.
    pub iteration: u64,
    /// Loss on the training split, nats a token.
    pub train_loss: Option<f64>,
    /// Loss on the validation split.
    pub val_loss: Option<f64>,
    /// Loss on the test split, measured at the end of training only.
    pub test_loss: Option<f64>,
}

/// What an exported file says of itself besides the model.
struct Origin<'a> {
    dataset_file: &'a str,
    dataset_sha256: &'a str,
    seed: &'a str,
    n_iters: &'a str,
}

/// Writes the model with the parameters `flat`, in the layout of `params`.
///
/// # Errors
/// A failure to write; the file that was there before then stays.
pub fn export(
    run: &Run,
    params: &Params,
    flat: &[f32],
    sha256: &str,
    provenance: &Provenance,
) -> Result<()> {
    let origin = Origin {
        dataset_file: &run.dataset.config().input_file.to_string_lossy(),
        dataset_sha256: sha256,
        seed: &run.train.seed.to_string(),
        n_iters: &run.train.n_iters.to_string(),
    };
    let tokenizer = run.dataset.tokenizer();
    let extra = metadata(&origin, provenance);
    let (file, dtype) = (&run.train.export_file, run.train.export_dtype);
    write_model(file, &run.model, tokenizer, &extra, dtype, &mut |spec| {
        params.range(&spec.name).map_or(Vec::new(), |range| flat[range].to_vec())
    })?;
    Ok(())
}

fn metadata(origin: &Origin<'_>, provenance: &Provenance) -> Vec<(String, String)> {
    let file_name = Path::new(origin.dataset_file).file_name().unwrap_or_default();
    let mut extra = vec![
        ("teeny_version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("dataset_file".to_owned(), file_name.to_string_lossy().into_owned()),
        ("dataset_sha256".to_owned(), origin.dataset_sha256.to_owned()),
        ("seed".to_owned(), origin.seed.to_owned()),
        ("n_iters".to_owned(), origin.n_iters.to_owned()),
        ("iteration".to_owned(), provenance.iteration.to_string()),
    ];
    for (key, loss) in [
        ("train_loss", provenance.train_loss),
        ("val_loss", provenance.val_loss),
        ("test_loss", provenance.test_loss),
    ] {
        extra.extend(loss.map(|loss| (key.to_owned(), format!("{loss:.4}"))));
    }
    extra
}

/// Exports the model of a checkpoint, which needs neither the text nor the configuration that it was
/// trained with, and returns where it is. `overrides`: assignments to `train.export_file` and
/// `train.export_dtype`; other keys are those of the checkpoint.
///
/// # Errors
/// A file that is no checkpoint, another override, a failure to write.
pub fn export_checkpoint(path: &Path, overrides: &[String]) -> Result<PathBuf> {
    let checkpoint = Checkpoint::read(path)?;
    let train: String = checkpoint
        .section("train")
        .filter(|(key, _)| EXPORT_KEYS.contains(key))
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect();
    let mut ini = Ini::parse(path, &format!("[train]\n{train}"))?;
    for assignment in overrides {
        let key = assignment.split('=').next().unwrap_or_default().trim();
        if !["train.export_file", "train.export_dtype"].contains(&key) {
            return Err(Error::Setup(format!(
                "--set with --export-only: found {assignment:?}, expected train.export_file or \
                 train.export_dtype: all else is what the checkpoint says"
            )));
        }
        ini.set(assignment)?;
    }
    let (_, export_file) = output_files(&ini)?;
    let dtype = crate::config::export_dtype(&ini)?;
    let model: HashMap<&str, &str> = checkpoint.section("model").collect();
    let config = ModelConfig::from_metadata(|key| model.get(key).copied())?;
    let tokenizer = checkpoint.tokenizer()?;

    let params = Params::new(tensor_specs(&config), Device::Cpu);
    let flat = flat_to_vec(&checkpoint.exported(&params)?);
    let progress = checkpoint.progress()?;
    let history = &progress.history;
    let at = history.iterations.iter().position(|i| *i == progress.iteration);
    let provenance = Provenance {
        iteration: progress.iteration,
        train_loss: at.map(|i| history.train_losses[i]),
        val_loss: at.map(|i| history.val_losses[i]),
        test_loss: None,
    };
    let origin = Origin {
        dataset_file: checkpoint.get("dataset.input_file")?,
        dataset_sha256: checkpoint.get("dataset.sha256")?,
        seed: checkpoint.get("train.seed")?,
        n_iters: checkpoint.get("train.n_iters")?,
    };
    let extra = metadata(&origin, &provenance);
    write_model(&export_file, &config, &tokenizer, &extra, dtype, &mut |spec| {
        params.range(&spec.name).map_or(Vec::new(), |range| flat[range].to_vec())
    })?;
    Ok(export_file)
}

/// Keys of `[train]` that an export depends on.
const EXPORT_KEYS: &[&str] = &["checkpoint_file", "export_file", "export_dtype"];

/// SHA-256 of a file in hexadecimal, which names the text that a model learned.
///
/// # Errors
/// The file cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|source| {
        Error::Runtime(teeny_runtime::Error::Io {
            action: "cannot read",
            path: path.to_owned(),
            source,
        })
    })?;
    Ok(Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}
