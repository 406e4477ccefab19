//! Decodes small GPTs from one memory-mapped safetensors file.
//!
//! ```text
//! file ─► Weights ─► Model ─► Session (KV cache) ─► logits ─► Sampler ─► Tokenizer ─► text
//! ```
//!
//! | module | holds | may import |
//! |---|---|---|
//! | [`error`] | the crate's one error type | – |
//! | `alloc` | memory whose size comes from outside | error |
//! | [`ini`] | INI text to (section, key, value), typed reading of keys | error |
//! | [`config`] | [`ModelConfig`] and its enums, the sections of `config.ini` | ini |
//! | [`tokenizer`] | text to tokens and back | error |
//! | [`dataset`] | the text of a configuration, encoded and split | config, tokenizer |
//! | [`format`](mod@format) | names, shapes and metadata of the file; its writer | config, tokenizer |
//! | [`weights`] | the file in memory, checked; conversion, fingerprint | format |
//! | [`quant`] | weights in blocks of 8 and 4 bits | – |
//! | `import` | models of other programs, with the feature of that name | format, weights |
//! | [`position`] | positional encodings as slopes, rotations, sinusoids | – |
//! | [`kv_cache`] | where keys and values lie | config |
//! | [`backend`] | what a device must be able to do | kv_cache, weights |
//! | [`cpu`] | the CPU backend | backend |
//! | `cuda` | the CUDA backend, with the feature of that name | backend, position |
//! | [`device`] | the choice between them when a program runs | cpu, cuda |
//! | [`model`] | the forward pass, written once over [`backend::Backend`] | backend, position |
//! | [`session`] | one sequence: prefill, decode, rollback, fork, overflow | model |
//! | [`batch`] | many sessions that decode together | session, sampler |
//! | [`state`] | sessions saved and restored | session, format |
//! | [`sampler`] | logits to a token; knows nothing of models | cpu, for its exponential; backend, for what a device may draw |
//! | [`generate`](mod@generate) | text as a stream, with stop conditions | session, sampler, tokenizer |
//! | [`chat`] | the shapes of conversations | tokenizer |
//! | [`score`](mod@score) | how likely a text is | session |
//!
//! ```no_run
//! use std::{ops::ControlFlow, path::Path, sync::Arc};
//! use teeny_runtime::{Cpu, GenerateOptions, Model, Overflow, Sampler, Session, Weights};
//!
//! # fn main() -> teeny_runtime::Result<()> {
//! let weights = Weights::map(Path::new("data/shakespeare.safetensors"))?;
//! let model = Arc::new(Model::load(Cpu::new(), &weights)?);
//! let mut session = Session::new(&model, Overflow::Slide)?;
//! let mut sampler = Sampler::new(Default::default())?;
//! let prompt = model.tokenizer().encode_prompt("ROMEO:")?;
//! let options = GenerateOptions { max_tokens: 512, ..Default::default() };
//! teeny_runtime::generate(&mut session, &mut sampler, &prompt, &options, &mut |text| {
//!     print!("{text}");
//!     ControlFlow::Continue(())
//! })?;
//! # Ok(())
//! # }
//! ```

mod alloc;
pub mod backend;
pub mod batch;
pub mod chat;
pub mod config;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dataset;
pub mod device;
pub mod error;
pub mod format;
pub mod generate;
#[cfg(feature = "import")]
pub mod import;
pub mod ini;
pub mod kv_cache;
pub mod model;
pub mod position;
pub mod quant;
pub mod sampler;
pub mod score;
pub mod session;
pub mod state;
pub mod tokenizer;
pub mod weights;

pub use batch::{Batch, BatchEntry};
pub use chat::Chat;
pub use config::{Ffn, ModelConfig, Norm, PositionalEncoding, RopeScaling};
pub use cpu::{Cpu, CpuOptions, KvDtype};
#[cfg(feature = "cuda")]
pub use cuda::Cuda;
pub use device::{AnyModel, AnySession, Device};
pub use error::{Error, Result};
pub use format::Dtype;
pub use generate::{EndReason, GenerateOptions, Generation, TextStream, generate};
pub use model::Model;
pub use sampler::{Sampler, SamplerOptions, Stage};
pub use score::{Score, TokenScore, score, score_windows};
pub use session::{CancelFlag, Overflow, Session, SessionStats};
pub use weights::{LoadOptions, Weights};
