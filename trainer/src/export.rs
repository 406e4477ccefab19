//! The trained model as the one file that the runtime decodes.

use std::path::Path;

use sha2::{Digest, Sha256};
use teeny_runtime::format::write_model;

use crate::config::Run;
use crate::error::{Error, Result};
use crate::params::Params;

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
    let file_name = run.dataset.config().input_file.file_name().unwrap_or_default();
    let mut extra = vec![
        ("teeny_version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("dataset_file".to_owned(), file_name.to_string_lossy().into_owned()),
        ("dataset_sha256".to_owned(), sha256.to_owned()),
        ("seed".to_owned(), run.train.seed.to_string()),
        ("n_iters".to_owned(), run.train.n_iters.to_string()),
        ("iteration".to_owned(), provenance.iteration.to_string()),
    ];
    for (key, loss) in [
        ("train_loss", provenance.train_loss),
        ("val_loss", provenance.val_loss),
        ("test_loss", provenance.test_loss),
    ] {
        extra.extend(loss.map(|loss| (key.to_owned(), format!("{loss:.4}"))));
    }
    let tokenizer = run.dataset.tokenizer();
    let dtype = run.train.export_dtype;
    write_model(&run.train.export_file, &run.model, tokenizer, &extra, dtype, &mut |spec| {
        params.range(&spec.name).map_or(Vec::new(), |range| flat[range].to_vec())
    })?;
    Ok(())
}

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
