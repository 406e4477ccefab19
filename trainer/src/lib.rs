//! Trains small GPTs with libtorch and exports them for `teeny_runtime`.
//!
//! ```text
//! config.ini ─► Run ─► Batches ─► Gpt (forward, backward) ─► AdamW ─► checkpoint, export
//! ```
//!
//! | module | holds | may import |
//! |---|---|---|
//! | [`error`] | the crate's one error type | – |
//! | [`config`] | the section `[train]` and a whole run, checked | error |
//! | [`device`] | the name of a device to libtorch's | error |
//! | [`mkl`], [`memory`] | what makes libtorch fast on a CPU (unsafe) | – |
//! | [`threads`] | what keeps it fast beside other programs | – |
//! | [`params`] | all parameters as one tensor, with names | – |
//! | [`dropout`] | dropout that is cheap on the CPU | – |
//! | [`attention`] | causal self-attention | dropout |
//! | [`model`] | the forward pass: the file to read first | attention, params |
//! | [`optim`] | AdamW and the learning rate | – |
//! | [`dataset`] | random batches | – |
//! | [`sample`] | a short text from the model in training | model |
//! | [`checkpoint`] | the state of a run as a file | config, optim, params |
//! | [`export`] | the trained model as a file | config, params |
//! | [`report`] | progress on standard error | – |
//! | [`train`] | the loop | all of them |

pub mod attention;
pub mod checkpoint;
pub mod config;
pub mod dataset;
pub mod device;
pub mod dropout;
pub mod error;
pub mod export;
pub mod memory;
pub mod mkl;
pub mod model;
pub mod optim;
pub mod params;
pub mod report;
pub mod sample;
pub mod threads;
pub mod train;

pub use error::{Error, Result};
