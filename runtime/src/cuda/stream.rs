//! Work on the device: queued on a stream, or recorded once and repeated.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::{Context, Function, check};
use super::memory::{Memory, Pinned};
use crate::error::Result;

/// A queue of work on the device.
pub struct Stream {
    context: Arc<Context>,
    stream: sys::CUstream,
}

// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Stream {}
// SAFETY: as above, and at the same time: the driver queues in the order of the calls.
unsafe impl Sync for Stream {}

impl Stream {
    /// An empty one.
    pub fn new(context: &Arc<Context>) -> Result<Stream> {
        context.bind("make a stream")?;
        Ok(Stream { context: Arc::clone(context), stream: context.new_stream()? })
    }

    /// The context.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Waits for all work, and finds out whether it went well.
    pub fn wait(&self) -> Result<()> {
        self.context.bind("wait for the device")?;
        // SAFETY: a stream of its own.
        self.context.checked("run", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Copies the first `bytes` of `from` to `to`, later.
    pub fn upload(&self, to: &Memory, from: &Pinned, bytes: usize) -> Result<()> {
        assert!(bytes <= to.bytes && bytes <= from.bytes);
        // SAFETY: both sides have that many bytes and live longer than the stream's work.
        let result = unsafe {
            sys::cuMemcpyHtoDAsync_v2(to.address, from.address.cast(), bytes, self.stream)
        };
        self.context.checked("copy to the device", result)
    }

    /// Copies `bytes` of `from` to `to`, later.
    pub fn download(
        &self,
        to: &mut Pinned,
        to_offset: usize,
        from: &Memory,
        from_offset: usize,
        bytes: usize,
    ) -> Result<()> {
        assert!(to_offset + bytes <= to.bytes && from_offset + bytes <= from.bytes);
        let from = from.address + from_offset as u64;
        // SAFETY: both sides have that many bytes, by the assertion, and live longer than the work.
        let result = unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.address.add(to_offset).cast(), from, bytes, self.stream)
        };
        self.context.checked("copy from the device", result)
    }

    /// Starts a kernel.
    ///
    /// # Safety
    /// `arguments` is the kernel's one parameter, a struct of the same layout, and whatever it points
    /// to is on the device and stays there until the work is done; the grid is one that the kernel is
    /// made for.
    pub unsafe fn launch<A: Copy>(
        &self,
        function: Function,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        arguments: &A,
    ) -> Result<()> {
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { pad: [0; 64] },
        };
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: self.stream,
            attrs: &mut attribute,
            numAttrs: u32::from(self.context.programmatic),
        };
        const { assert!(size_of::<A>() <= 4096) };
        let mut parameters = [std::ptr::from_ref(arguments).cast_mut().cast::<c_void>()];
        // SAFETY: the driver copies the one parameter before it returns; all else by the caller's
        // promise.
        let result = unsafe {
            sys::cuLaunchKernelEx(
                &config,
                function.0,
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.context.checked("start a kernel", result)
    }

    /// Records the work that `enqueue` starts, without running it.
    pub fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        const ACTION: &str = "record a graph";
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream of its own, which nothing else captures.
        let result = unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) };
        self.context.checked(ACTION, result)?;
        let enqueued = enqueue();
        let mut graph = std::ptr::null_mut();
        // Even after a failure, or the stream would record for ever.
        // SAFETY: ends what was begun; writes a handle.
        let result = unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) };
        let mut executable = std::ptr::null_mut();
        let result = match (&enqueued, check(result)) {
            (Ok(()), Ok(())) => {
                // SAFETY: a graph that was just recorded; writes a handle.
                check(unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) })
            }
            (_, result) => result,
        };
        if !graph.is_null() {
            // SAFETY: made by ending the capture; the executable does not need it.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
        }
        enqueued?;
        result.map_err(|e| self.context.error(ACTION, e))?;
        Ok(Graph { context: Arc::clone(&self.context), executable })
    }

    /// Runs recorded work.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: what the graph's kernels use lives as long as the graph, and its runs follow each
        // other on one stream.
        let result = unsafe { sys::cuGraphLaunch(graph.executable, self.stream) };
        self.context.checked("start a graph", result)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Work may still use what is dropped after the stream.
        let _ = self.wait();
        // SAFETY: made by this value. A failure leaves nothing to be done.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
    }
}

/// Recorded work.
pub struct Graph {
    context: Arc<Context>,
    executable: sys::CUgraphExec,
}

// SAFETY: a handle that the driver lets any thread use, and that is never changed.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.context.bind("free a graph");
        // SAFETY: made by `Stream::record`. A failure leaves nothing to be done.
        let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
    }
}
