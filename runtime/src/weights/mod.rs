//! A model in memory: mapped, read, or where somebody else has it; checked once, then handed out as
//! typed tensors.
//!
//! | file | holds | may import |
//! |---|---|---|
//! | `mod.rs` | ways of loading, conversion, fingerprint | header, memory |
//! | `header.rs` | parsing and checking the file's header | memory |
//! | `memory.rs` | the bytes and the tensors in them; all unsafe code | – |

mod header;
mod memory;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use xxhash_rust::xxh3::Xxh3;

use crate::alloc::zeros;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::format::{
    self, ALIGNMENT, Dtype, Encoded, Part, TensorSpec, Unit, encode, refused, write_tensors,
};
use crate::tokenizer::Tokenizer;
use header::damaged;
#[cfg(feature = "import")]
pub(crate) use header::read_header;
#[cfg(not(feature = "import"))]
use memory::{AlignedBytes, Bytes, Place};
#[cfg(feature = "import")]
pub(crate) use memory::{AlignedBytes, Bytes, Place};
pub use memory::{Owner, Tensor, TensorData};

/// Bytes that are read or copied, or elements that are converted, between two reports of progress.
const PIECE: usize = 1 << 20;

/// Is told how much is done, from 0 to 1, both included; may stop it.
pub type Progress<'a> = &'a mut dyn FnMut(f32) -> ControlFlow<()>;

/// How a model is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Maps a file instead of reading it. Default true.
    pub map: bool,
    /// Converts tensors of any other element type, into memory of our own. Default: none are.
    pub dtype: Option<Dtype>,
    /// A context shorter than the model's. Default: the model's own.
    pub max_seq_len: Option<usize>,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions { map: true, dtype: None, max_seq_len: None }
    }
}

/// A checked model file: configuration, tokenizer, metadata and tensors. Cloning it shares them.
#[derive(Clone)]
pub struct Weights(Arc<Contents>);

struct Contents {
    config: ModelConfig,
    tokenizer: Tokenizer,
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
    fingerprint: OnceLock<u128>,
}

impl Weights {
    /// Maps a model file. Nothing is copied; pages are read when they are first used.
    ///
    /// A file that somebody shortens while it is mapped ends the process (SIGBUS). Writers that
    /// rename a finished file into place, as [`format::write_model`] does, are safe; for files that
    /// others may write to, use [`Weights::read`].
    ///
    /// # Errors
    /// A file that cannot be opened or that fails a check of `runtime/FORMAT.md`.
    pub fn map(path: &Path) -> Result<Weights> {
        Weights::load(path, &LoadOptions::default(), &mut never_stop)
    }

    /// Reads a model file into memory of our own.
    ///
    /// # Errors
    /// As [`Weights::map`]; or no memory.
    pub fn read(path: &Path) -> Result<Weights> {
        let options = LoadOptions { map: false, ..LoadOptions::default() };
        Weights::load(path, &options, &mut never_stop)
    }

    /// Loads a model file.
    ///
    /// # Errors
    /// As [`Weights::map`]; no memory; [`Error::Argument`] for a `max_seq_len` of 0 or above the
    /// model's; [`Error::Cancelled`].
    pub fn load(path: &Path, options: &LoadOptions, progress: Progress<'_>) -> Result<Weights> {
        let mut steps = Steps::new(options, !options.map, progress)?;
        let bytes = if options.map {
            let cannot_open =
                |source| Error::Io { action: "cannot open model", path: path.to_owned(), source };
            open(path).and_then(|(file, _)| Bytes::map(&file)).map_err(cannot_open)?
        } else {
            Bytes::Owned(read(path, &mut steps)?)
        };
        Contents::new(&Arc::new(bytes))?.adapt(options, steps)
    }

    /// Copies a model file that the caller holds in memory.
    ///
    /// # Errors
    /// A failed check of `runtime/FORMAT.md`, or no memory.
    pub fn from_bytes(bytes: &[u8]) -> Result<Weights> {
        let options = LoadOptions::default();
        let mut progress = never_stop;
        let mut steps = Steps::new(&options, true, &mut progress)?;
        let bytes = Bytes::Owned(copy(bytes, &mut steps)?);
        Contents::new(&Arc::new(bytes))?.adapt(&options, steps)
    }

    /// Uses a model file in memory where it lies, if that begins at a multiple of 4 bytes; else
    /// copies it. The memory must not change.
    ///
    /// An owner whose memory is in use is dropped with the last tensor. One that is no longer
    /// needed, because its memory was copied or converted, is given back.
    ///
    /// # Errors
    /// As [`Weights::load`]. The owner is dropped then.
    pub fn from_owner(
        owner: Owner,
        options: &LoadOptions,
        progress: Progress<'_>,
    ) -> Result<(Weights, Option<Owner>)> {
        let data = (*owner).as_ref();
        let aligned = (data.as_ptr() as usize).is_multiple_of(4);
        let mut steps = Steps::new(options, !aligned, progress)?;
        if !aligned {
            let bytes = Bytes::Owned(copy(data, &mut steps)?);
            let weights = Contents::new(&Arc::new(bytes))?.adapt(options, steps)?;
            return Ok((weights, Some(owner)));
        }
        let bytes = Arc::new(Bytes::Shared(owner));
        let weights = Contents::new(&bytes)?.adapt(options, steps)?;
        // Ours is the only share of the bytes where converting has replaced every tensor.
        let owner = match Arc::into_inner(bytes) {
            Some(Bytes::Shared(owner)) => Some(owner),
            Some(Bytes::Mapped(_) | Bytes::Owned(_)) | None => None,
        };
        Ok((weights, owner))
    }

    /// The same model with every tensor in another element type, rounded to nearest even, in memory
    /// of our own. Which of them [`Dtype::Q8`] and [`Dtype::Q4`] have in blocks is in
    /// `runtime/FORMAT.md`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a number that the type cannot hold; no memory;
    /// [`Error::Cancelled`].
    pub fn convert(&self, dtype: Dtype, progress: Progress<'_>) -> Result<Weights> {
        let options = LoadOptions { dtype: Some(dtype), ..LoadOptions::default() };
        let mut steps = Steps::new(&options, false, progress)?;
        let tensors = convert(&self.0.tensors, dtype, &mut steps)?;
        steps.end()?;
        Ok(Weights(Arc::new(Contents {
            config: self.0.config.clone(),
            tokenizer: self.0.tokenizer.clone(),
            metadata: self.0.metadata.clone(),
            tensors,
            fingerprint: OnceLock::new(),
        })))
    }

    /// Writes the model as one file with every tensor in another element type, one tensor at a time,
    /// and all its metadata. Tensors that have the type already are copied as they are. The file appears
    /// when it is complete, as with [`format::write_model`].
    ///
    /// # Errors
    /// [`Error::Argument`] for a number that the type cannot hold; no memory for a tensor; any failure to
    /// write. A file that was there before is then as it was.
    pub fn write(&self, path: &Path, dtype: Dtype) -> Result<()> {
        let config = self.config();
        let own = config.to_metadata();
        let is_own = |key: &str| {
            ["format", "format_version", "tokenizer"].contains(&key)
                || own.iter().any(|(name, _)| *name == key)
        };
        let extra = self.metadata().iter().filter(|(key, _)| !is_own(key));
        let extra: Vec<_> = extra.map(|(key, value)| (key.clone(), value.clone())).collect();
        let dtype = |spec: &TensorSpec| dtype.of(spec);
        write_tensors(path, config, self.tokenizer(), &extra, &dtype, &mut |spec, dtype| {
            let Some(tensor) = self.0.tensors.get(&spec.name) else {
                return Err(damaged(&spec.name, "nothing", "a tensor of this name".to_owned()));
            };
            if tensor.dtype() == dtype {
                let (values, scales) = (tensor.bytes().into(), tensor.scale_bytes().into());
                return Ok(Encoded { values, scales });
            }
            Encoded::new(&tensor.to_f32()?, spec, dtype)
        })
    }

    /// A model whose tensors an importer has made: all that the configuration calls for, each with its
    /// shape, and the metadata that a file of them has.
    #[cfg(feature = "import")]
    pub(crate) fn from_tensors(
        (config, tokenizer): (ModelConfig, Tokenizer),
        metadata: Vec<(String, String)>,
        tensors: BTreeMap<String, Tensor>,
        max_seq_len: Option<usize>,
    ) -> Result<Weights> {
        let metadata = metadata.into_iter().collect();
        let fingerprint = OnceLock::new();
        let options = LoadOptions { max_seq_len, ..LoadOptions::default() };
        let mut progress = never_stop;
        let steps = Steps::new(&options, false, &mut progress)?;
        Contents { config, tokenizer, metadata, tensors, fingerprint }.adapt(&options, steps)
    }

    /// Shape and kind of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.0.config
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// Everything that `__metadata__` holds, the tokenizer's JSON included.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.0.metadata
    }

    /// Elements of all tensors together, without scales and padding of blocks.
    pub fn n_params(&self) -> usize {
        self.0.tensors.values().map(Tensor::len).sum()
    }

    /// Bytes of all tensors together, scales and padding of blocks included.
    pub fn n_bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.bytes().len() + tensor.scale_bytes().len();
        self.0.tensors.values().map(bytes).sum()
    }

    /// The element type of the model; none for a mixture that no writer of ours makes.
    pub fn dtype(&self) -> Option<Dtype> {
        Dtype::ALL.iter().copied().find(|dtype| is_of(&self.0.tensors, *dtype))
    }

    /// Every tensor with its name, in the order of the names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// A tensor by its name in `runtime/FORMAT.md`.
    ///
    /// # Errors
    /// A name that this model's configuration does not call for.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.0
            .tensors
            .get(name)
            .cloned()
            .ok_or_else(|| damaged(name, "nothing", "a tensor of this name".to_owned()))
    }

    /// XXH3-128 of everything that the logits depend on, and of the metadata: the same for the same
    /// file however it was loaded, another one if a tensor was converted or the context shortened.
    /// The first call reads the whole model. It tells models apart; against somebody who wants two
    /// to look alike it is no proof.
    pub fn fingerprint(&self) -> u128 {
        *self.0.fingerprint.get_or_init(|| self.0.hash())
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights")
            .field("config", self.config())
            .field("tensors", &self.0.tensors)
            .finish_non_exhaustive()
    }
}

impl Contents {
    fn new(bytes: &Arc<Bytes>) -> Result<Contents> {
        let (data_start, header) = header::read_header(bytes.get(), header::EXPECTED)?;
        let metadata: BTreeMap<_, _> =
            header.metadata().clone().unwrap_or_default().into_iter().collect();
        let config = format::config_from_metadata(&metadata)?;
        let tensors = header::check_tensors(bytes, data_start, &header, &config)?;
        let version = metadata.get("format_version").map_or("", String::as_str);
        let tables = header::tables(bytes.get(), data_start, &header)?;
        header::check_version(version, &tensors, &tables)?;
        let tokenizer = metadata.get("tokenizer").ok_or_else(|| {
            damaged("metadata key tokenizer", "nothing", "the vocabulary as JSON".to_owned())
        })?;
        let tokenizer = Tokenizer::from_json_and_tables(tokenizer, &tables)?;
        if tokenizer.vocab_size() != config.vocab_size {
            return Err(damaged(
                "tokenizer",
                format!("{} entries", tokenizer.vocab_size()),
                format!("vocab_size = {}", config.vocab_size),
            ));
        }
        Ok(Contents { config, tokenizer, metadata, tensors, fingerprint: OnceLock::new() })
    }

    /// What the options ask for beyond the file.
    fn adapt(mut self, options: &LoadOptions, mut steps: Steps<'_>) -> Result<Weights> {
        if let Some(max_seq_len) = options.max_seq_len {
            // A table of learned positions keeps its rows; only the first are used.
            if !(1..=self.config.max_seq_len).contains(&max_seq_len) {
                return Err(Error::Argument {
                    name: "max_seq_len",
                    found: max_seq_len.to_string(),
                    expected: format!("1 to {}, the model's own", self.config.max_seq_len),
                });
            }
            self.config.max_seq_len = max_seq_len;
        }
        if let Some(dtype) = options.dtype
            && !is_of(&self.tensors, dtype)
        {
            self.tensors = convert(&self.tensors, dtype, &mut steps)?;
        }
        steps.end()?;
        Ok(Weights(Arc::new(self)))
    }

    fn hash(&self) -> u128 {
        // Lengths go first, so that no two models give the same bytes.
        fn add(hash: &mut Xxh3, bytes: &[u8]) {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        let mut hash = Xxh3::new();
        hash.update(&(self.config.max_seq_len as u64).to_le_bytes());
        hash.update(&(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            add(&mut hash, key.as_bytes());
            add(&mut hash, value.as_bytes());
        }
        for (name, tensor) in &self.tensors {
            add(&mut hash, name.as_bytes());
            add(&mut hash, tensor.dtype().name().as_bytes());
            add(&mut hash, tensor.bytes());
            if tensor.dtype().is_quantised() {
                add(&mut hash, tensor.scale_bytes());
            }
        }
        for table in self.tokenizer.tables() {
            add(&mut hash, table.name.as_bytes());
            add(&mut hash, &table.bytes);
        }
        hash.digest128()
    }
}

/// Whether every tensor has the element type that it has in a model of `dtype`.
fn is_of(tensors: &BTreeMap<String, Tensor>, dtype: Dtype) -> bool {
    tensors.iter().all(|(name, tensor)| tensor.dtype() == target(name, tensor, dtype))
}

/// The element type that a tensor has in a model of `dtype`.
fn target(name: &str, tensor: &Tensor, dtype: Dtype) -> Dtype {
    dtype.of(&TensorSpec { name: name.to_owned(), shape: tensor.shape().to_vec() })
}

/// Every tensor in the element type of a model of `dtype`, in the order in which they lie, so that a
/// mapped file is read from its beginning to its end.
fn convert(
    tensors: &BTreeMap<String, Tensor>,
    dtype: Dtype,
    steps: &mut Steps<'_>,
) -> Result<BTreeMap<String, Tensor>> {
    let mut ordered: Vec<(&String, &Tensor)> = tensors.iter().collect();
    ordered.sort_by_key(|(_, tensor)| tensor.offset());
    let mut places = Vec::with_capacity(ordered.len());
    let (mut total, mut capacity, mut most) = (0, 0usize, 0);
    for (name, tensor) in &ordered {
        let stored = target(name, tensor, dtype).stored(tensor.shape());
        let values = capacity..capacity.saturating_add(stored.values.n_bytes());
        let n_scale_bytes = stored.scales.as_ref().map_or(0, Part::n_bytes);
        // Right behind their blocks, which take whole lines.
        let scales = values.end..values.end.saturating_add(n_scale_bytes);
        capacity = scales.end.div_ceil(ALIGNMENT).saturating_mul(ALIGNMENT);
        places.push(Place { values, scales });
        total += tensor.len();
        most = most.max(tensor.len().min(piece(&stored.unit).values));
    }
    let mut bytes = AlignedBytes::new(capacity)?;
    let mut values = zeros("a piece of a tensor", most)?;
    let mut done = 0;
    for ((name, tensor), place) in ordered.iter().zip(&places) {
        let dtype = target(name, tensor, dtype);
        let piece = piece(&dtype.stored(tensor.shape()).unit);
        let out = bytes.grow(place.values.len() + place.scales.len());
        let (out, mut scales) = out.split_at_mut(place.values.len());
        let mut from = 0;
        for out in out.chunks_mut(piece.bytes) {
            let n = piece.values.min(tensor.len() - from);
            let piece_of_scales;
            (piece_of_scales, scales) = scales.split_at_mut(piece.scale_bytes.min(scales.len()));
            if tensor.dtype() == dtype {
                let (bytes, scales) = (tensor.bytes(), tensor.scale_bytes());
                let unit = from / piece.values;
                out.copy_from_slice(&bytes[unit * piece.bytes..][..out.len()]);
                let scales = &scales[unit * piece.scale_bytes..][..piece_of_scales.len()];
                piece_of_scales.copy_from_slice(scales);
            } else {
                let values = &mut values[..n];
                tensor.read_f32(from, values);
                if let Some(value) = encode(values, tensor.columns(), dtype, out, piece_of_scales) {
                    return Err(refused(value, name, dtype));
                }
            }
            from += n;
            done += n;
            steps.at(done, total)?;
        }
    }
    let bytes = Arc::new(Bytes::Owned(bytes));
    let converted = |((name, tensor), place): ((&String, &Tensor), Place)| {
        let shape = tensor.shape().to_vec();
        let dtype = target(name, tensor, dtype);
        (name.clone(), Tensor::new(Arc::clone(&bytes), place, shape, dtype))
    };
    Ok(ordered.into_iter().zip(places).map(converted).collect())
}

/// As many units as are [`PIECE`] numbers, at least one.
fn piece(unit: &Unit) -> Unit {
    let n = (PIECE / unit.values).max(1);
    Unit { values: n * unit.values, bytes: n * unit.bytes, scale_bytes: n * unit.scale_bytes }
}

/// Opens a file; returns it and its size.
fn open(path: &Path) -> std::io::Result<(File, u64)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let found = match metadata.file_type() {
        kind if kind.is_file() => return Ok((file, metadata.len())),
        kind if kind.is_dir() => "a folder",
        _ => "a device or a pipe",
    };
    Err(std::io::Error::other(format!("it is {found}, expected a .safetensors file")))
}

/// Reads a whole file, as long as it is when it is opened.
fn read(path: &Path, steps: &mut Steps<'_>) -> Result<AlignedBytes> {
    let io = |source| Error::Io { action: "cannot read model", path: path.to_owned(), source };
    let (mut file, len) = open(path).map_err(io)?;
    let len = usize::try_from(len)
        .map_err(|_| Error::OutOfMemory { what: "the model", bytes: usize::MAX })?;
    let mut bytes = AlignedBytes::new(len)?;
    let mut done = 0;
    while done < len {
        let piece = bytes.grow(PIECE.min(len - done));
        file.read_exact(piece).map_err(|e| {
            let shortened = e.kind() == ErrorKind::UnexpectedEof;
            io(if shortened { std::io::Error::other("it was shortened meanwhile") } else { e })
        })?;
        done += piece.len();
        steps.at(done, len)?;
    }
    steps.next();
    Ok(bytes)
}

fn copy(from: &[u8], steps: &mut Steps<'_>) -> Result<AlignedBytes> {
    let mut bytes = AlignedBytes::new(from.len())?;
    let mut done = 0;
    for piece in from.chunks(PIECE) {
        bytes.grow(piece.len()).copy_from_slice(piece);
        done += piece.len();
        steps.at(done, from.len())?;
    }
    steps.next();
    Ok(bytes)
}

/// Progress over the parts of loading that take time: bringing the bytes here, and converting.
struct Steps<'a> {
    progress: Progress<'a>,
    parts: u8,
    /// How many of them are done.
    done: u8,
}

impl<'a> Steps<'a> {
    /// Reports the beginning.
    fn new(options: &LoadOptions, copies: bool, progress: Progress<'a>) -> Result<Steps<'a>> {
        let parts = u8::from(copies) + u8::from(options.dtype.is_some());
        let mut steps = Steps { progress, parts, done: 0 };
        steps.report(0.0)?;
        Ok(steps)
    }

    /// Reports how much of a part is done.
    fn at(&mut self, done: usize, total: usize) -> Result<()> {
        let part = done as f32 / total as f32;
        let whole = (f32::from(self.done) + part) / f32::from(self.parts);
        // The end comes once, when all is checked.
        if whole < 1.0 { self.report(whole) } else { Ok(()) }
    }

    fn next(&mut self) {
        self.done += 1;
    }

    fn end(mut self) -> Result<()> {
        self.report(1.0)
    }

    fn report(&mut self, done: f32) -> Result<()> {
        match (self.progress)(done) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}

fn never_stop(_: f32) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
