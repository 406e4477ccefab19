//! Models of other programs, as models of ours. `runtime/CONVERT.md` says what is understood.
//!
//! ```text
//! foreign file ─► its numbers, names and vocabulary ─► Source ─► a file of ours, or Weights
//!                 hf, gguf, llama2c, nanogpt, teenygpt
//! ```
//!
//! | file | holds | may import |
//! |---|---|---|
//! | `mod.rs` | [`Source`], the choice of a format | all others |
//! | `tensor.rs` | a foreign tensor as one of ours | gguf/dequant |
//! | `tensors.rs` | all tensors of a foreign model by their names | tensor |
//! | `json.rs` | typed reading of JSON files | – |
//! | `safetensors.rs` | tensors of safetensors files | tensors, json |
//! | `vocabulary.rs` | vocabularies that lie beside a model | json, tokenizer_json |
//! | `hf.rs`, `gpt2.rs` | a folder of Hugging Face's, Llama or GPT-2 | safetensors, vocabulary |
//! | `gguf.rs`, `gguf/` | GGUF | tensors |
//! | `llama2c.rs` | llama2.c | tensors, vocabulary |
//! | `nanogpt.rs`, `teenygpt.rs` | checkpoints of nanoGPT and teenyGPT | safetensors, vocabulary, gpt2 |
//! | `to_hf.rs`, `tokenizer_json.rs` | the way out: a model of ours as a folder of Hugging Face's | – |
//!
//! Files are untrusted, as in [`weights`](crate::weights): every offset, count and product is checked, and
//! no memory is asked for that the length of a file does not justify. What is not understood is refused
//! by its name; nothing is guessed.

mod gguf;
mod gpt2;
mod hf;
mod json;
mod llama2c;
mod nanogpt;
mod safetensors;
mod teenygpt;
mod tensor;
mod tensors;
mod to_hf;
mod tokenizer_json;
mod vocabulary;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chat::CHAT_TEMPLATE;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::format::{self, Dtype, TensorSpec, tensor_specs, write_tensors};
use crate::tokenizer::Tokenizer;
use crate::weights::{Bytes, LoadOptions, Progress, Weights};
use tensor::Mapped;
pub use to_hf::write_hugging_face;

/// What a file does not say itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// File of the vocabulary: `tokenizer.bin` of llama2.c (default: the one beside the model), or the
    /// characters of nanoGPT and teenyGPT as JSON.
    pub tokenizer: Option<PathBuf>,
    /// A `config.ini` of teenyGPT, whose checkpoints do not say what model they are of.
    pub config: Option<PathBuf>,
    /// Number of heads of a nanoGPT checkpoint, whose tensors do not show it.
    pub n_head: Option<usize>,
}

/// The programs whose models are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A folder as transformers saves it.
    HuggingFace,
    /// A file of llama.cpp.
    Gguf,
    /// A `.bin` of llama2.c.
    Llama2c,
    /// A checkpoint of nanoGPT as safetensors.
    NanoGpt,
    /// A checkpoint of teenyGPT as safetensors.
    TeenyGpt,
}

impl Format {
    /// As a message names it.
    pub fn name(self) -> &'static str {
        match self {
            Format::HuggingFace => "Hugging Face",
            Format::Gguf => "GGUF",
            Format::Llama2c => "llama2.c",
            Format::NanoGpt => "nanoGPT",
            Format::TeenyGpt => "teenyGPT",
        }
    }

    /// Refuses what a model of this format does not need, which somebody thought it would heed.
    fn check(self, options: &ImportOptions) -> Result<()> {
        let ImportOptions { tokenizer, config, n_head } = options;
        let (reads_tokenizer, reads_config, reads_n_head) = match self {
            Format::HuggingFace | Format::Gguf => (false, false, false),
            Format::Llama2c => (true, false, false),
            Format::NanoGpt => (true, false, true),
            Format::TeenyGpt => (true, true, false),
        };
        for (name, is_given, is_read) in [
            ("tokenizer", tokenizer.is_some(), reads_tokenizer),
            ("config", config.is_some(), reads_config),
            ("n_head", n_head.is_some(), reads_n_head),
        ] {
            if is_given && !is_read {
                return Err(Error::Argument {
                    name,
                    found: "one".to_owned(),
                    expected: format!("none: a model of {} says it itself", self.name()),
                });
            }
        }
        Ok(())
    }

    /// The format of a file or folder; none for a file of ours.
    ///
    /// # Errors
    /// A file that cannot be read, or of no known format.
    pub fn of(path: &Path) -> Result<Option<Format>> {
        if path.is_dir() {
            return Ok(Some(Format::HuggingFace));
        }
        let mut start = Vec::new();
        File::open(path).and_then(|file| file.take(9).read_to_end(&mut start)).map_err(
            |source| Error::Io { action: "cannot open model", path: path.to_owned(), source },
        )?;
        if start.starts_with(gguf::MAGIC) {
            return Ok(Some(Format::Gguf));
        }
        if start.get(8) == Some(&b'{') {
            return safetensors::format_of(path);
        }
        if llama2c::is_one(&start) {
            return Ok(Some(Format::Llama2c));
        }
        Err(refuse(
            &path.display().to_string(),
            format!("a file that begins with {start:?}"),
            "a safetensors, GGUF or llama2.c file, or a folder of Hugging Face's",
        ))
    }
}

/// A model of another program that is understood and complete. Its numbers stay in its files until they
/// are asked for.
#[derive(Debug)]
pub struct Source {
    format: Format,
    config: ModelConfig,
    tokenizer: Tokenizer,
    /// By the names of `runtime/FORMAT.md`: one for each of [`tensor_specs`].
    tensors: BTreeMap<String, Mapped>,
    /// How the model is talked to.
    chat_template: Option<String>,
}

impl Source {
    /// Opens a model of another program.
    ///
    /// # Errors
    /// A file of ours, of an unknown format, damaged, or with a part that is not understood: each names
    /// what it is.
    pub fn open(path: &Path, options: &ImportOptions) -> Result<Source> {
        let Some(format) = Format::of(path)? else {
            return Err(refuse(
                &path.display().to_string(),
                "a file of teeny's own",
                "one of another program",
            ));
        };
        format.check(options)?;
        let parts = match format {
            Format::HuggingFace => hf::open(path),
            Format::Gguf => gguf::open(path),
            Format::Llama2c => llama2c::open(path, options),
            Format::NanoGpt => nanogpt::open(path, options),
            Format::TeenyGpt => teenygpt::open(path, options),
        }?;
        let Parts { config, tokenizer, tensors, chat_template } = parts;
        Ok(Source { format, config, tokenizer, tensors, chat_template })
    }

    /// Whose it is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Shape and kind of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Writes the model as a file of ours, one tensor at a time. Without an element type each tensor has
    /// the one that is nearest to its own: blocks that ours have the numbers of stay as they are.
    ///
    /// # Errors
    /// A number that the type cannot hold; no memory for a tensor; any failure to write. A file that was
    /// there before is then as it was.
    pub fn write(&self, path: &Path, dtype: Option<Dtype>) -> Result<()> {
        let dtype = |spec: &TensorSpec| self.dtype(spec, dtype);
        let (config, tokenizer) = (&self.config, &self.tokenizer);
        write_tensors(path, config, tokenizer, &self.metadata(), &dtype, &mut |spec, dtype| {
            self.mapped(spec)?.encoded(spec, dtype)
        })
    }

    /// The model in memory. Tensors that need no change are used where they lie in their file, as
    /// [`Weights::map`] has it.
    ///
    /// # Errors
    /// As [`write`](Self::write), and [`Weights::load`]; `options.map` is of no account.
    pub fn load(&self, options: &LoadOptions, progress: Progress<'_>) -> Result<Weights> {
        let dtype = |spec: &TensorSpec| self.dtype(spec, options.dtype);
        let metadata = format::metadata(&self.config, &self.tokenizer, &self.metadata(), &dtype)?;
        let specs = tensor_specs(&self.config);
        let total = specs.iter().map(TensorSpec::len).sum::<usize>();
        let mut report = |done: usize| match progress(done as f32 / total as f32) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        };
        let (mut tensors, mut done) = (BTreeMap::new(), 0);
        report(0)?;
        for spec in specs {
            let tensor = self.mapped(&spec)?.tensor(&spec, dtype(&spec))?;
            done += spec.len();
            report(done)?;
            tensors.insert(spec.name, tensor);
        }
        let model = (self.config.clone(), self.tokenizer.clone());
        Weights::from_tensors(model, metadata, tensors, options.max_seq_len)
    }

    fn dtype(&self, spec: &TensorSpec, dtype: Option<Dtype>) -> Dtype {
        let own = || self.tensors.get(&spec.name).map_or(Dtype::F32, |mapped| mapped.dtype(spec));
        dtype.map_or_else(own, |dtype| dtype.of(spec))
    }

    fn mapped(&self, spec: &TensorSpec) -> Result<&Mapped> {
        let found = self.tensors.get(&spec.name);
        found.ok_or_else(|| refuse(&spec.name, "nothing", "a tensor of this name"))
    }

    fn metadata(&self) -> Vec<(String, String)> {
        let mut metadata = vec![("converted_from".to_owned(), self.format.name().to_owned())];
        metadata
            .extend(self.chat_template.iter().map(|text| (CHAT_TEMPLATE.to_owned(), text.clone())));
        metadata
    }
}

/// Opens a model of any format: a file of ours as [`Weights::load`] does, anything else by
/// [`Source::open`] and [`Source::load`].
///
/// # Errors
/// As these.
pub fn load(
    path: &Path,
    import: &ImportOptions,
    options: &LoadOptions,
    progress: Progress<'_>,
) -> Result<Weights> {
    match Format::of(path)? {
        None => Weights::load(path, options, progress),
        Some(_) => Source::open(path, import)?.load(options, progress),
    }
}

/// What an importer finds.
struct Parts {
    config: ModelConfig,
    tokenizer: Tokenizer,
    tensors: BTreeMap<String, Mapped>,
    chat_template: Option<String>,
}

/// An error that names a part of a foreign model.
fn refuse(what: &str, found: impl Into<String>, expected: impl Into<String>) -> Error {
    Error::Format { what: what.to_owned(), found: found.into(), expected: expected.into() }
}

fn cannot_open(path: &Path, source: std::io::Error) -> Error {
    Error::Io { action: "cannot open", path: path.to_owned(), source }
}

/// Maps a file. An empty one cannot be mapped and is none of a model.
fn map(path: &Path) -> Result<Arc<Bytes>> {
    let file = File::open(path).map_err(|source| cannot_open(path, source))?;
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if !is_file {
        return Err(cannot_open(path, std::io::Error::other("it is no file")));
    }
    let bytes = Bytes::map(&file).map_err(|source| cannot_open(path, source))?;
    Ok(Arc::new(bytes))
}

/// A value in a message, cut where it is long.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::ini::shown(&String::from_utf8_lossy(self.0)))
    }
}
