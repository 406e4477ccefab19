//! A model file in memory: mapped or read, checked once, then handed out as typed tensors.
//!
//! Unsafe code lives here for two things: mapping a file and viewing checked bytes as numbers.
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as FileDtype, Metadata};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::format::{self, Dtype, TensorSpec};
use crate::tokenizer::Tokenizer;

#[cfg(target_endian = "big")]
compile_error!("model files are little-endian and are used where they lie");

/// A checked model file: configuration, tokenizer, metadata and tensors.
#[derive(Debug)]
pub struct Weights {
    config: ModelConfig,
    tokenizer: Tokenizer,
    metadata: HashMap<String, String>,
    tensors: HashMap<String, Tensor>,
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
        let io = |source| Error::Io { action: "cannot open model", path: path.to_owned(), source };
        let file = open(path).map_err(io)?;
        // SAFETY: the mapping is private and read-only; its hazard, another process shortening the
        // file, is documented above, and `read` is the way without it.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Weights::new(Bytes::Mapped(map))
    }

    /// Reads a model file into memory of our own.
    ///
    /// # Errors
    /// As [`Weights::map`].
    pub fn read(path: &Path) -> Result<Weights> {
        let io = |source| Error::Io { action: "cannot read model", path: path.to_owned(), source };
        let mut bytes = Vec::new();
        open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(io)?;
        Weights::from_bytes(&bytes)
    }

    /// Copies a model file that the caller holds in memory.
    ///
    /// # Errors
    /// A failed check of `runtime/FORMAT.md`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Weights> {
        Weights::new(Bytes::Owned(AlignedBytes::copy(bytes)))
    }

    fn new(bytes: Bytes) -> Result<Weights> {
        let bytes = Arc::new(bytes);
        let (data_start, header) = read_header(bytes.get())?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let config = format::config_from_metadata(&metadata)?;
        let tensors = check_tensors(&bytes, data_start, &header, &config)?;
        let tokenizer = metadata.get("tokenizer").ok_or_else(|| {
            damaged("metadata key tokenizer", "nothing", "the vocabulary as JSON".to_owned())
        })?;
        let tokenizer = Tokenizer::from_json(tokenizer)?;
        if tokenizer.vocab_size() != config.vocab_size {
            return Err(damaged(
                "tokenizer",
                format!("{} entries", tokenizer.vocab_size()),
                format!("vocab_size = {}", config.vocab_size),
            ));
        }
        Ok(Weights { config, tokenizer, metadata, tensors })
    }

    /// Shape and kind of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Everything that `__metadata__` holds, the tokenizer's JSON included.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// Bytes of all tensors together.
    pub fn n_bytes(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.len * tensor.dtype.size()).sum()
    }

    /// A tensor by its name in `runtime/FORMAT.md`.
    ///
    /// # Errors
    /// A name that this model's configuration does not call for.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.tensors
            .get(name)
            .cloned()
            .ok_or_else(|| damaged(name, "nothing", "a tensor of this name".to_owned()))
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(std::io::Error::other("it is a folder, expected a .safetensors file"));
    }
    Ok(file)
}

fn damaged(what: &str, found: impl Into<String>, expected: String) -> Error {
    Error::Format { what: what.to_owned(), found: found.into(), expected }
}

/// Parses and checks the header; returns where the tensor data begins.
fn read_header(bytes: &[u8]) -> Result<(usize, Metadata)> {
    const EXPECTED: &str = "a safetensors file as teeny-train writes";
    if bytes.get(8).is_some_and(|byte| *byte != b'{') {
        return Err(damaged(
            "header",
            format!("first byte {:#04x}", bytes[8]),
            format!("'{{': {EXPECTED}"),
        ));
    }
    let (length, header) = SafeTensors::read_metadata(bytes).map_err(|e| {
        damaged("header", format!("{} bytes, {e}", bytes.len()), EXPECTED.to_owned())
    })?;
    // `read_metadata` has checked that 8 + length lies within the file and is UTF-8 JSON.
    let data_start = 8 + length;
    let json = String::from_utf8_lossy(&bytes[8..data_start]);
    let checked =
        serde_json::Deserializer::from_str(&json).deserialize_map(UniqueKeys { depth: 0 });
    if let Err(e) = checked {
        return Err(damaged("header", e.to_string(), "each name once".to_owned()));
    }
    Ok((data_start, header))
}

/// Visits a JSON object and the object under its `__metadata__`; fails when a key comes twice,
/// which a map would silently merge.
struct UniqueKeys {
    depth: usize,
}

impl<'de> Visitor<'de> for UniqueKeys {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if self.depth == 0 && key == "__metadata__" {
                map.next_value_seed(UniqueKeys { depth: 1 })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            if let Some(twice) = seen.replace(key) {
                return Err(serde::de::Error::custom(format!("the name {twice:?} twice")));
            }
        }
        Ok(())
    }
}

impl<'de> serde::de::DeserializeSeed<'de> for UniqueKeys {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

/// Every tensor that the configuration calls for, with its shape checked, and no other.
fn check_tensors(
    bytes: &Arc<Bytes>,
    data_start: usize,
    header: &Metadata,
    config: &ModelConfig,
) -> Result<HashMap<String, Tensor>> {
    let infos = header.tensors();
    // A layer has at least six matrices, so a hostile n_layer ends here, before names are made.
    if config.n_layer > infos.len() {
        return Err(damaged(
            "n_layer",
            config.n_layer.to_string(),
            format!("no more layers than the file's {} tensors make", infos.len()),
        ));
    }
    let specs = format::tensor_specs(config);
    let mut tensors = HashMap::with_capacity(specs.len());
    for TensorSpec { name, shape } in specs {
        let Some(info) = infos.get(&name) else {
            return Err(damaged(&name, "nothing", format!("a tensor of shape {shape:?}")));
        };
        if info.shape != shape {
            return Err(damaged(
                &name,
                format!("shape {:?}", info.shape),
                format!("{shape:?} from the configuration in the file"),
            ));
        }
        // The list of element types is safetensors' own; we take three of them.
        #[allow(clippy::wildcard_enum_match_arm)]
        let dtype = match info.dtype {
            FileDtype::F32 => Dtype::F32,
            FileDtype::F16 => Dtype::F16,
            FileDtype::BF16 => Dtype::Bf16,
            other => return Err(damaged(&name, other.to_string(), "F32, F16 or BF16".to_owned())),
        };
        // `read_metadata` has checked that offsets lie within the file and agree with shape and
        // element type, so neither this sum nor the product of the shape overflows.
        let offset = data_start + info.data_offsets.0;
        let address = bytes.get().as_ptr() as usize + offset;
        if !address.is_multiple_of(dtype.size()) {
            return Err(damaged(
                &name,
                format!("data at byte {offset}"),
                format!("a multiple of {}", dtype.size()),
            ));
        }
        let len = shape.iter().product();
        tensors.insert(name, Tensor { bytes: Arc::clone(bytes), offset, len, shape, dtype });
    }
    if let Some(name) = infos.keys().find(|name| !tensors.contains_key(*name)) {
        return Err(damaged(name, "it", "no such tensor in this configuration".to_owned()));
    }
    Ok(tensors)
}

/// A tensor that lies in a model file. Cloning it shares the file.
#[derive(Clone)]
pub struct Tensor {
    bytes: Arc<Bytes>,
    offset: usize,
    len: usize,
    shape: Vec<usize>,
    dtype: Dtype,
}

/// The numbers of a tensor, where they lie.
#[derive(Clone, Copy, Debug)]
pub enum TensorData<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// Upper halves of singles.
    Bf16(&'a [bf16]),
}

impl Tensor {
    /// Outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type in the file.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The elements in row order, borrowed from the file.
    pub fn data(&self) -> TensorData<'_> {
        let start = self.bytes.get()[self.offset..][..self.len * self.dtype.size()].as_ptr();
        // SAFETY: the slice above covers `len` elements; `check_tensors` has checked the alignment;
        // every bit pattern is a valid f32, f16 and bf16; the bytes live as long as `self`.
        unsafe {
            match self.dtype {
                Dtype::F32 => TensorData::F32(std::slice::from_raw_parts(start.cast(), self.len)),
                Dtype::F16 => TensorData::F16(std::slice::from_raw_parts(start.cast(), self.len)),
                Dtype::Bf16 => TensorData::Bf16(std::slice::from_raw_parts(start.cast(), self.len)),
            }
        }
    }

    /// The elements as single precision, copied.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.data() {
            TensorData::F32(data) => data.to_vec(),
            TensorData::F16(data) => data.iter().map(|v| v.to_f32()).collect(),
            TensorData::Bf16(data) => data.iter().map(|v| v.to_f32()).collect(),
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({:?} {})", self.shape, self.dtype.name())
    }
}

/// The bytes of a whole file.
#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Owned(AlignedBytes),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes.get(),
        }
    }
}

/// Bytes that begin at a multiple of 64, as a mapped file does.
#[derive(Debug)]
struct AlignedBytes {
    lines: Vec<CacheLine>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

impl AlignedBytes {
    fn copy(bytes: &[u8]) -> AlignedBytes {
        let mut lines = Vec::with_capacity(bytes.len().div_ceil(64));
        for chunk in bytes.chunks(64) {
            let mut line = CacheLine([0; 64]);
            line.0[..chunk.len()].copy_from_slice(chunk);
            lines.push(line);
        }
        AlignedBytes { lines, len: bytes.len() }
    }

    fn get(&self) -> &[u8] {
        // SAFETY: a CacheLine is 64 bytes without padding, and `copy` made enough for `len`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}
