//! A training step as one CUDA graph: some hundred kernel launches become one.
//!
//! By torch's own class `at::cuda::CUDAGraph` (compiled in `shim/cuda_graph.cpp`), because a raw
//! capture would miss two things that a step needs: a memory pool that belongs to the graph, so
//! that what the step allocates lies at the same addresses in every replay, and the registration of
//! the device's random generator. What `work` must keep to is what PyTorch's documentation says of
//! whole-network capture ("CUDA semantics", "CUDA Graphs").
//!
//! **Random numbers.** A graph holds no seed: its kernels read seed and offset from device memory,
//! and [`CudaGraph::replay`] writes the generator's present ones there before it launches
//! (`CUDAGeneratorState::replay_prologue` in libtorch 2.11), then moves the offset on by what the
//! whole graph draws. So `tch::manual_seed` before a replay counts: it sets the seed of the CPU
//! and of every CUDA device, and the offset to 0, and the replay draws what the same step would
//! draw eagerly. Inside `work` it must not be called: under capture libtorch refuses any seed but
//! the present one.
//!
//! Without CUDA all of this fails with an [`Error::Setup`] that says why.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::ptr;

use crate::shim::check;
use crate::{Error, Result};

// shim/shim.h, the same in C. Opaque: only pointers to them exist here.
#[repr(C)]
struct RawRecording {
    _private: [u8; 0],
}

#[repr(C)]
struct RawGraph {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn teeny_cuda_synchronize(device: c_int) -> *mut c_char;
    fn teeny_recording_open(device: c_int, out: *mut *mut RawRecording) -> *mut c_char;
    fn teeny_recording_begin(recording: *mut RawRecording) -> *mut c_char;
    fn teeny_recording_end(recording: *mut RawRecording, out: *mut *mut RawGraph) -> *mut c_char;
    fn teeny_recording_close(recording: *mut RawRecording);
    fn teeny_graph_replay(graph: *mut RawGraph) -> *mut c_char;
    fn teeny_graph_free(graph: *mut RawGraph);
}

/// A training step recorded as one CUDA graph, with torch's private pool and registered generator.
///
/// It reads and writes the memory of the tensors that `work` used, so these must outlive it: tensors
/// made before the recording and changed in place, and those made in it and kept. A graph that
/// holds operations of a [`crate::distributed::ProcessGroup`] is dropped before the group.
#[derive(Debug)]
pub struct CudaGraph {
    graph: *mut RawGraph,
}

impl CudaGraph {
    /// Runs `work` `warm_up` times on a side stream, then records it once.
    ///
    /// The warm-up is real: it changes what `work` changes, while recording computes nothing. So a
    /// caller that must not lose its state saves it before, or counts the warm-up as steps. About
    /// three runs let cuBLAS and the like set themselves up, with NCCL about eleven.
    ///
    /// In `work` nothing may wait for the device (no `double_value`, no `copy_` to the host), copy
    /// from pageable host memory, or seed; and backward must not go through leaves whose gradients
    /// were accumulated on another stream: drop those (or use `Tensor::run_backward`, which
    /// accumulates nothing). Where `work` fails, or panics, in either phase, this thread's stream is
    /// as before, nothing is being captured, and eager work can go on.
    ///
    /// # Errors
    /// [`Error::Setup`] without CUDA or without that device, and where something in `work` cannot be
    /// recorded; the error of `work` where it gives one.
    pub fn record(
        device: usize,
        warm_up: usize,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<CudaGraph> {
        let recording = Recording::open(device)?;
        for _ in 0..warm_up {
            work()?;
        }
        recording.begin()?;
        work()?;
        recording.end()
    }

    /// Runs the recorded work once more, on this thread's current stream; does not wait for it.
    ///
    /// # Errors
    /// [`Error::Setup`] with what CUDA says. Failures of the work itself show at the next wait.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: `graph` came from teeny_recording_end and lives until drop.
        unsafe { check(teeny_graph_replay(self.graph)) }
            .map_err(|reason| Error::Setup(format!("cannot replay the CUDA graph: {reason}")))
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: `graph` came from teeny_recording_end, and is freed only here.
        unsafe { teeny_graph_free(self.graph) }
    }
}

/// Waits until the device has done all that was asked of it.
///
/// # Errors
/// [`Error::Setup`] without CUDA or without that device, and with the error of anything that was
/// running.
pub fn synchronize(device: usize) -> Result<()> {
    let index = index(device)?;
    // SAFETY: takes no pointers; checks its argument.
    unsafe { check(teeny_cuda_synchronize(index)) }.map_err(|reason| {
        Error::Setup(format!("cannot wait for the CUDA device {device}: {reason}"))
    })
}

fn index(device: usize) -> Result<c_int> {
    c_int::try_from(device).map_err(|_| {
        Error::Setup(format!("there is no CUDA device {device}: the number is too large"))
    })
}

/// A side stream that is current while this lives, and perhaps a capture on it.
struct Recording {
    device: usize,
    raw: *mut RawRecording,
}

impl Recording {
    fn open(device: usize) -> Result<Recording> {
        let index = index(device)?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` outlives the call, which sets it where it returns NULL.
        unsafe { check(teeny_recording_open(index, &raw mut raw)) }
            .map_err(|reason| failed(device, &reason))?;
        Ok(Recording { device, raw })
    }

    fn begin(&self) -> Result<()> {
        // SAFETY: `raw` came from teeny_recording_open and lives until drop.
        unsafe { check(teeny_recording_begin(self.raw)) }
            .map_err(|reason| failed(self.device, &reason))
    }

    fn end(&self) -> Result<CudaGraph> {
        let mut graph = ptr::null_mut();
        // SAFETY: as in `begin`; `graph` is set where the call returns NULL.
        unsafe { check(teeny_recording_end(self.raw, &raw mut graph)) }
            .map_err(|reason| failed(self.device, &reason))?;
        Ok(CudaGraph { graph })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: `raw` came from teeny_recording_open, and is freed only here.
        unsafe { teeny_recording_close(self.raw) }
    }
}

fn failed(device: usize, reason: &str) -> Error {
    Error::Setup(format!("cannot record a CUDA graph on device {device}: {reason}"))
}
