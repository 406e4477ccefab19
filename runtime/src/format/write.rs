//! The writer of the file.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::dtype::Stored;
use super::{
    ALIGNMENT, Dtype, FORMAT, Part, SCALE_SUFFIX, TABLES_VERSION, TensorSpec, encode,
    format_version, refused, tensor_specs,
};
use crate::alloc::zeroed;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::tokenizer::{Table, Tokenizer};

/// Writes a model as one safetensors file with metadata, tokenizer and 64-byte aligned data.
///
/// `values` is called once for each of [`tensor_specs`] and returns the tensor's elements in row
/// order. The file appears under its name only when it is complete: it is written beside it, synced
/// and renamed, so a program that has the old file mapped keeps reading the old one.
///
/// # Errors
/// An invalid configuration, a vocabulary of another size, a metadata key that the format itself
/// uses, values of a wrong count or that `dtype` cannot hold, no memory for one tensor, or any failure
/// to write; the old file then stays as it was.
pub fn write_model(
    path: &Path,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    extra_metadata: &[(String, String)],
    dtype: Dtype,
    values: &mut dyn FnMut(&TensorSpec) -> Vec<f32>,
) -> Result<()> {
    let dtype = |spec: &TensorSpec| dtype.of(spec);
    write_tensors(path, config, tokenizer, extra_metadata, &dtype, &mut |spec, dtype| {
        let values = values(spec);
        if values.len() != spec.len() {
            return Err(Error::Format {
                what: spec.name.clone(),
                found: format!("{} values", values.len()),
                expected: format!("as many as shape {:?} has", spec.shape),
            });
        }
        Encoded::new(&values, spec, dtype)
    })
}

/// The bytes of a tensor as they lie in a file.
pub(crate) struct Encoded<'a> {
    pub values: Cow<'a, [u8]>,
    /// Those of blocks; else none.
    pub scales: Cow<'a, [u8]>,
}

impl Encoded<'_> {
    pub fn new(values: &[f32], spec: &TensorSpec, dtype: Dtype) -> Result<Encoded<'static>> {
        let mut encoded = Encoded::zeroed(&dtype.stored(&spec.shape))?;
        let columns = spec.shape.last().copied().unwrap_or(1);
        let (bytes, scales) = (encoded.values.to_mut(), encoded.scales.to_mut());
        match encode(values, columns, dtype, bytes, scales) {
            Some(value) => Err(refused(value, &spec.name, dtype)),
            None => Ok(encoded),
        }
    }

    /// Room for a tensor.
    pub fn zeroed(stored: &Stored) -> Result<Encoded<'static>> {
        let n_scale_bytes = stored.scales.as_ref().map_or(0, Part::n_bytes);
        Ok(Encoded {
            values: zeroed("a tensor to be written", stored.values.n_bytes())?.into(),
            scales: zeroed("a tensor to be written", n_scale_bytes)?.into(),
        })
    }
}

/// As [`write_model`], with the tensors as bytes: `tensor` is called once for each, with the element
/// type that `dtype` gives it.
pub(crate) fn write_tensors<'a>(
    path: &Path,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    extra_metadata: &[(String, String)],
    dtype: &dyn Fn(&TensorSpec) -> Dtype,
    tensor: &mut dyn FnMut(&TensorSpec, Dtype) -> Result<Encoded<'a>>,
) -> Result<()> {
    config.validate()?;
    if tokenizer.vocab_size() != config.vocab_size {
        return Err(Error::Format {
            what: "tokenizer".into(),
            found: format!("{} entries", tokenizer.vocab_size()),
            expected: format!("vocab_size = {}", config.vocab_size),
        });
    }
    let metadata = metadata(config, tokenizer, extra_metadata, dtype)?;
    let tables = tokenizer.tables();
    write_file(path, config, &metadata, &tables, dtype, tensor)
}

/// A safetensors file with this metadata, the tensors that a valid configuration calls for, and tables.
pub(crate) fn write_file<'a>(
    path: &Path,
    config: &ModelConfig,
    metadata: &[(String, String)],
    tables: &[Table<'_>],
    dtype: &dyn Fn(&TensorSpec) -> Dtype,
    tensor: &mut dyn FnMut(&TensorSpec, Dtype) -> Result<Encoded<'a>>,
) -> Result<()> {
    let places = places(tensor_specs(config), dtype, tables);
    let header = header(metadata, &places);
    let data_start = 8 + header.len();
    let mut failure = None;
    let written = write_atomically(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for Place { content, start, .. } in &places {
            let spec = match content {
                Content::Values(spec) => spec,
                Content::Table(bytes) => {
                    file.seek(SeekFrom::Start((data_start + start) as u64))?;
                    file.write_all(bytes)?;
                    continue;
                }
                // Written with their blocks.
                Content::Scales(_) => continue,
            };
            let encoded = match tensor(spec, dtype(spec)) {
                Ok(encoded) => encoded,
                Err(error) => {
                    failure = Some(error);
                    return Err(std::io::Error::other(spec.name.clone()));
                }
            };
            file.seek(SeekFrom::Start((data_start + start) as u64))?;
            file.write_all(&encoded.values)?;
            // Scales can lie further on, and a tensor is made only once.
            let scales = places.iter().find(|place| place.content.is_scales_of(&spec.name));
            if let Some(Place { start, .. }) = scales {
                file.seek(SeekFrom::Start((data_start + start) as u64))?;
                file.write_all(&encoded.scales)?;
            }
        }
        Ok(())
    });
    failure.map_or(written, Err)
}

/// One tensor of the header.
struct Place<'a> {
    name: String,
    content: Content<'a>,
    part: Part,
    /// Where it begins behind the header.
    start: usize,
}

enum Content<'a> {
    Values(TensorSpec),
    /// Those of the tensor with this name.
    Scales(String),
    /// A table of the tokenizer.
    Table(&'a [u8]),
}

impl Content<'_> {
    fn is_scales_of(&self, name: &str) -> bool {
        match self {
            Content::Scales(of) => of == name,
            Content::Values(_) | Content::Table(_) => false,
        }
    }
}

/// Tensors whose size is a multiple of the alignment come first, so that all of those are aligned;
/// safetensors allows no gaps, so a bias of odd length would otherwise shift every later tensor. Of the
/// others, tables of numbers come first and tables of bytes last, for the same reason.
fn places<'a>(
    specs: Vec<TensorSpec>,
    dtype: &dyn Fn(&TensorSpec) -> Dtype,
    tables: &'a [Table<'_>],
) -> Vec<Place<'a>> {
    let mut places = Vec::new();
    for spec in specs {
        let stored = dtype(&spec).stored(&spec.shape);
        let name = spec.name.clone();
        let scales = |part| Place {
            name: format!("{name}{SCALE_SUFFIX}"),
            content: Content::Scales(name.clone()),
            part,
            start: 0,
        };
        let scales = stored.scales.map(scales);
        let content = Content::Values(spec);
        places.push(Place { name, content, part: stored.values, start: 0 });
        places.extend(scales);
    }
    for table in tables {
        let part = Part::of_table(table);
        let content = Content::Table(&table.bytes);
        places.push(Place { name: table.name.to_owned(), content, part, start: 0 });
    }
    places.sort_by_key(|place| {
        let order = match place.content {
            Content::Table(_) if place.part.alignment() > 1 => 0,
            Content::Values(_) | Content::Scales(_) => 1,
            Content::Table(_) => 2,
        };
        (!place.part.n_bytes().is_multiple_of(ALIGNMENT), order)
    });
    let mut start = 0;
    for place in &mut places {
        place.start = start;
        start += place.part.n_bytes();
    }
    places
}

/// The metadata of a file whose tensors have the element types that `dtype` gives them.
pub(crate) fn metadata(
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    extra: &[(String, String)],
    dtype: &dyn Fn(&TensorSpec) -> Dtype,
) -> Result<Vec<(String, String)>> {
    let in_blocks = tensor_specs(config).iter().map(dtype).find(|dtype| dtype.is_quantised());
    let version = match tokenizer.tables()[..] {
        [] => format_version(config, in_blocks.unwrap_or(Dtype::F32)),
        _ => TABLES_VERSION,
    };
    let mut metadata = vec![
        ("format".to_owned(), FORMAT.to_owned()),
        ("format_version".to_owned(), version.to_owned()),
    ];
    metadata.extend(config.to_metadata().into_iter().map(|(k, v)| (k.to_owned(), v)));
    metadata.push(("tokenizer".to_owned(), tokenizer.to_json()));
    for (key, value) in extra {
        if metadata.iter().any(|(known, _)| known == key) {
            return Err(Error::Format {
                what: format!("metadata key {key}"),
                found: "it twice".into(),
                expected: "a key that the format does not use itself".into(),
            });
        }
        metadata.push((key.clone(), value.clone()));
    }
    Ok(metadata)
}

/// The JSON header, padded with spaces so that the data behind it is aligned.
fn header(metadata: &[(String, String)], places: &[Place<'_>]) -> String {
    // Written field by field, because the order of a JSON map would be the alphabet's.
    let quote = |s: &str| serde_json::Value::from(s).to_string();
    let mut fields = Vec::new();
    let pairs: Vec<String> =
        metadata.iter().map(|(k, v)| format!("{}:{}", quote(k), quote(v))).collect();
    fields.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    for Place { name, part, start, .. } in places {
        fields.push(format!(
            "{}:{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{start},{}]}}",
            quote(name),
            part.dtype,
            part.shape,
            start + part.n_bytes()
        ));
    }
    let mut header = format!("{{{}}}", fields.join(","));
    // 8 bytes hold the header's length.
    while !(8 + header.len()).is_multiple_of(ALIGNMENT) {
        header.push(' ');
    }
    header
}

/// Writes a file beside `path`, syncs it and renames it into place.
///
/// # Errors
/// Any failure of the file system or of `write`; `path` is then untouched and nothing is left over.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    let mut temporary = PathBuf::from(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Another thread may be writing the same file.
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    temporary.set_file_name(format!(".{name}.{}-{count}.tmp", std::process::id()));
    let result = (|| {
        let mut file = BufWriter::new(File::create(&temporary)?);
        write(&mut file)?;
        file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        std::fs::rename(&temporary, path)?;
        // The rename itself lasts only when the folder is on the disk too.
        if let Some(folder) = path.parent() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            if let Ok(folder) = File::open(folder) {
                let _ = folder.sync_all();
            }
        }
        Ok(())
    })();
    result.map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        Error::Io { action: "cannot write", path: path.to_owned(), source }
    })
}
