//! The tensors of safetensors files that others have written: one file, or several with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};
use std::sync::Arc;

use ::safetensors::tensor::Dtype as FileDtype;

use super::json::Json;
use super::tensor::{Encoding, Values};
use super::tensors::Tensors;
use super::{Format, map, nanogpt, refuse, teenygpt};
use crate::error::Result;
use crate::format::FORMAT;
use crate::weights::{Bytes, read_header};

const EXPECTED: &str = "a safetensors file";

/// The format of a single safetensors file; none for a file of ours.
pub(super) fn format_of(path: &Path) -> Result<Option<Format>> {
    let bytes = map(path)?;
    let (_, header) = read_header(bytes.get(), EXPECTED)?;
    let metadata = header.metadata().as_ref();
    if metadata.and_then(|metadata| metadata.get("format")).is_some_and(|value| value == FORMAT) {
        return Ok(None);
    }
    let names = header.offset_keys();
    if names.iter().any(|name| nanogpt::is_name(name)) {
        return Ok(Some(Format::NanoGpt));
    }
    if names.iter().any(|name| teenygpt::is_name(name)) {
        return Ok(Some(Format::TeenyGpt));
    }
    if names.iter().any(|name| name.starts_with("model.layers.")) {
        return Err(refuse(
            &path.display().to_string(),
            "the tensors of a folder of Hugging Face's",
            "that folder, which has config.json and the vocabulary beside them",
        ));
    }
    // As a damaged file of ours, which the reader of these explains.
    Ok(None)
}

/// A file's tensors and metadata. Tensors whose names are `ignored` may have any element type.
pub(super) fn open(
    path: &Path,
    ignored: &dyn Fn(&str) -> bool,
) -> Result<(Tensors, BTreeMap<String, String>)> {
    let mut tensors = Tensors::default();
    let metadata = add(&mut tensors, path, ignored, &|_| true)?;
    Ok((tensors, metadata))
}

/// The tensors of `model.safetensors` in a folder, or of the files that `model.safetensors.index.json`
/// names.
pub(super) fn open_folder(folder: &Path, ignored: &dyn Fn(&str) -> bool) -> Result<Tensors> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(open(&single, ignored)?.0);
    }
    const INDEX: &str = "model.safetensors.index.json";
    if !folder.join(INDEX).exists() {
        return Err(refuse(
            &folder.display().to_string(),
            "no model.safetensors",
            format!("it, or {INDEX}: weights of older formats are not read"),
        ));
    }
    let index = Json::read(&folder.join(INDEX))?;
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, file) in index.object("weight_map")? {
        let what = format!("{INDEX}: weight_map.{name}");
        let Some(file) = file.as_str().filter(|file| is_plain(file)) else {
            return Err(refuse(&what, file.to_string(), "the name of a file in this folder"));
        };
        shards.entry(file.to_owned()).or_default().insert(name.clone());
    }
    let mut tensors = Tensors::default();
    for (file, names) in shards {
        add(&mut tensors, &folder.join(&file), ignored, &|name| names.contains(name))?;
        if let Some(missing) = names.iter().find(|name| !ignored(name) && !tensors.has(name)) {
            return Err(refuse(missing, "nothing", format!("it in {file}, as {INDEX} says")));
        }
    }
    Ok(tensors)
}

/// Whether a name is that of a file, and of none elsewhere.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

fn add(
    tensors: &mut Tensors,
    path: &Path,
    ignored: &dyn Fn(&str) -> bool,
    listed: &dyn Fn(&str) -> bool,
) -> Result<BTreeMap<String, String>> {
    let bytes: Arc<Bytes> = map(path)?;
    let (data_start, header) = read_header(bytes.get(), EXPECTED)?;
    for (name, info) in header.tensors() {
        if ignored(&name) {
            continue;
        }
        if !listed(&name) {
            let found = format!("it in {}", path.display());
            return Err(refuse(&name, found, "only tensors that the index lists"));
        }
        // The list of element types is safetensors' own; we take three of them.
        #[allow(clippy::wildcard_enum_match_arm)]
        let encoding = match info.dtype {
            FileDtype::F32 => Encoding::F32,
            FileDtype::F16 => Encoding::F16,
            FileDtype::BF16 => Encoding::Bf16,
            other => return Err(refuse(&name, other.to_string(), "F32, F16 or BF16")),
        };
        // `read_header` has checked that offsets lie within the file.
        let start = data_start + info.data_offsets.0;
        let values = Values::new(&name, &bytes, start, encoding, &info.shape)?;
        tensors.insert(name, values)?;
    }
    Ok(header.metadata().clone().unwrap_or_default().into_iter().collect())
}
