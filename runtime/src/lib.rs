//! Decodes small GPTs from one memory-mapped safetensors file.
//!
//! ```text
//! file ─► Weights ─► Model ─► Session (KV cache) ─► logits ─► Sampler ─► Tokenizer ─► text
//! ```
//!
//! | module | holds | may import |
//! |---|---|---|
//! | [`error`] | the crate's one error type | – |
//! | [`ini`] | INI text to (section, key, value), typed reading of keys | error |
//! | [`config`] | [`ModelConfig`] and its enums, the sections of `config.ini` | ini |
//! | [`tokenizer`] | text to tokens and back | error |
//! | [`dataset`] | the text of a config, encoded and split | config, tokenizer |
pub mod config;
pub mod dataset;
pub mod error;
pub mod ini;
pub mod tokenizer;

pub use config::{Ffn, ModelConfig, Norm, PositionalEncoding};
pub use error::{Error, Result};
