//! Trains small GPTs with libtorch and exports them for `teeny_runtime`.
//!
//! ```text
//! config.ini ─► Run ─► Windows ─► Stepper: Gpt (forward, backward) ─► Optimizer ─► checkpoint, export
//!                                    └── one CUDA graph                       └──► Report: terminal, RunDir
//! ```
//!
//! | module | holds | may import |
//! |---|---|---|
//! | [`error`] | the crate's one error type | – |
//! | [`device`] | the name of a device to libtorch's | error |
//! | [`mkl`], [`memory`] | what makes libtorch fast on a CPU (unsafe) | – |
//! | [`threads`] | what libtorch reads from the environment, and how many threads pay | – |
//! | `shim` | errors of the C++ code in `shim/` (unsafe) | – |
//! | [`cuda_graph`] | a step as one CUDA graph (unsafe) | error, shim |
//! | [`distributed`] | several processes as one (unsafe) | error, shim |
//! | [`params`] | all parameters as one tensor, with names | – |
//! | [`dropout`] | dropout that is cheap on the CPU | – |
//! | [`attention`] | causal self-attention | dropout |
//! | [`model`] | the forward pass: the file to read first | attention, params |
//! | [`schedule`] | learning rates | – |
//! | [`muon`], [`optim`] | Muon's direction; AdamW, Muon, clipping and averaging | params, schedule |
//! | [`dataset`] | which windows of the text a step sees | – |
//! | [`vocabulary`] | subwords learned from a text | – |
//! | [`config`] | the section `[train]` and a whole run, checked | dataset, optim, schedule, vocabulary |
//! | [`step`] | a step, all on the device | cuda_graph, dataset, distributed, model, optim |
//! | [`evaluate`] | the loss on a split | dataset, model |
//! | [`sample`] | a short text from the model in training | model |
//! | [`checkpoint`] | the state of a run as a file | config, optim, params |
//! | [`export`] | the trained model as a file | checkpoint, config, params |
//! | [`lr_range`] | the learning-rate range test | – |
//! | [`tensorboard`] | event files for TensorBoard | error |
//! | [`chart`] | charts for a page | – |
//! | [`report_page`] | the record of a run as a page | chart |
//! | [`run_dir`] | the folder with the record of a run | error, report_page, tensorboard |
//! | [`report`] | progress on standard error, and the record | run_dir, step |
//! | [`train`] | the loop | all of the above |
//! | [`dry_run`] | what a run would take | train |

pub mod attention;
pub mod chart;
pub mod checkpoint;
pub mod config;
pub mod cuda_graph;
pub mod dataset;
pub mod device;
pub mod distributed;
pub mod dropout;
pub mod dry_run;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod lr_range;
pub mod memory;
pub mod mkl;
pub mod model;
pub mod muon;
pub mod optim;
pub mod params;
pub mod report;
pub mod report_page;
pub mod run_dir;
pub mod sample;
pub mod schedule;
mod shim;
pub mod step;
pub mod tensorboard;
pub mod threads;
pub mod train;
pub mod vocabulary;

pub use error::{Error, Result};
