//! The CUDA driver, as far as teeny uses it: what is made is freed when it is dropped, and every call's
//! result is checked. Over cudarc's bindings, which load the driver's library when they are first used.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::mem::{MaybeUninit, size_of};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::sys::{self, CUresult};

use super::ptx;
use crate::error::{Error, Result};

/// The oldest driver whose functions and PTX version teeny uses: CUDA 12.0, driver 525.
pub const OLDEST_DRIVER: i32 = 12_000;
/// From this driver on, kernels in a graph may start before their predecessors have ended.
const PROGRAMMATIC_GRAPHS: i32 = 12_030;

/// A device's primary context, with teeny's kernels loaded.
pub struct Context {
    index: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    module: sys::CUmodule,
    /// For copies and fills outside of passes.
    stream: sys::CUstream,
    /// The device's name as the driver gives it, such as "NVIDIA H100 PCIe".
    pub name: String,
    /// Compute capability, such as 90.
    pub capability: u32,
    /// Multiprocessors.
    pub processors: u32,
    /// Whether kernels may overlap with their predecessors' ends.
    pub programmatic: bool,
}

// SAFETY: the driver's functions may be called from any thread with the context made current, which
// every function here does first; the handles are never changed.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

fn no_device(index: usize, found: impl Into<String>, expected: &str) -> Error {
    Error::NoDevice {
        device: format!("cuda:{index}"),
        found: found.into(),
        expected: expected.to_owned(),
    }
}

/// What the driver says of an error.
fn message(result: CUresult) -> String {
    let text = |get: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: `text` is where the driver writes the address of a constant string, or NULL.
        let found = unsafe { get(result, &mut text) };
        if found != CUresult::CUDA_SUCCESS || text.is_null() {
            return None;
        }
        // SAFETY: the driver's constant string.
        Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    let name = text(sys::cuGetErrorName).unwrap_or_else(|| format!("error {}", result as u32));
    match text(sys::cuGetErrorString) {
        Some(words) => format!("{words} ({name})"),
        None => name,
    }
}

/// How many devices there are; none where there is no driver or one that is too old.
pub fn device_count() -> usize {
    driver(0).unwrap_or(0)
}

/// Makes the driver ready; the number of its devices. `index` is for messages.
fn driver(index: usize) -> Result<usize> {
    // SAFETY: opens a library whose name only NVIDIA's driver has.
    if !unsafe { sys::is_culib_present() } {
        return Err(no_device(
            index,
            "no NVIDIA driver (libcuda)",
            "an NVIDIA GPU with driver 525 or newer; --device cpu works anywhere",
        ));
    }
    let mut version = 0;
    // SAFETY: writes a number; may be called before anything else.
    let result = unsafe { sys::cuDriverGetVersion(&mut version) };
    if result != CUresult::CUDA_SUCCESS {
        return Err(no_device(index, message(result), "a driver that works"));
    }
    if version < OLDEST_DRIVER {
        let found = format!("a driver for CUDA {}.{}", version / 1000, version % 1000 / 10);
        return Err(no_device(index, found, "one for CUDA 12.0 or newer: driver 525"));
    }
    let mut count = 0;
    // SAFETY: initialises the driver, then writes a number.
    let result = check(unsafe { sys::cuInit(0) })
        // SAFETY: as above.
        .and_then(|()| check(unsafe { sys::cuDeviceGetCount(&mut count) }));
    match result {
        Ok(()) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(CUresult::CUDA_ERROR_NO_DEVICE) => Ok(0),
        Err(error) => Err(no_device(index, message(error), "a driver that works")),
    }
}

impl Context {
    /// The context of device `index`, shared by all who have it open. Whoever is first loads the kernels,
    /// which the driver compiles for the device once and keeps in its cache.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without driver or device, or with one that is too old.
    pub fn shared(index: usize) -> Result<Arc<Context>> {
        static OPEN: Mutex<Vec<Weak<Context>>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|context| context.strong_count() > 0);
        let found = open.iter().filter_map(Weak::upgrade).find(|context| context.index == index);
        if let Some(context) = found {
            return Ok(context);
        }
        let context = Context::open(index)?;
        open.push(Arc::downgrade(&context));
        Ok(context)
    }

    /// As [`Context::shared`], a new one.
    fn open(index: usize) -> Result<Arc<Context>> {
        let count = driver(index)?;
        if index >= count {
            let found = match count {
                0 => "no device".to_owned(),
                1 => "1 device, cuda:0".to_owned(),
                n => format!("{n} devices, cuda:0 to cuda:{}", n - 1),
            };
            return Err(no_device(index, found, "a device of this number"));
        }
        let failed = |result, what: &str| no_device(index, message(result), what);
        let mut device = 0;
        // SAFETY: writes a handle; the index is below the count.
        check(unsafe { sys::cuDeviceGet(&mut device, index as i32) })
            .map_err(|e| failed(e, "a device that can be opened"))?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: writes a number for a device that is there.
            check(unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })
                .map_err(|e| failed(e, "a device that can be asked"))?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        use sys::CUdevice_attribute as A;
        let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let processors = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let capability = major * 10 + minor;
        let Some(packed) = ptx::for_capability(capability) else {
            let found = format!("compute capability {major}.{minor}");
            return Err(no_device(index, found, "7.5 or newer (Turing)"));
        };
        let mut version = 0;
        // SAFETY: writes a number.
        let _ = unsafe { sys::cuDriverGetVersion(&mut version) };

        let mut context = std::ptr::null_mut();
        // SAFETY: writes a handle for a device that is there; dropping `Context` releases it.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })
            .map_err(|e| failed(e, "a device that is free to use"))?;
        let mut opened = Context {
            index,
            device,
            context,
            module: std::ptr::null_mut(),
            stream: std::ptr::null_mut(),
            name: device_name(device),
            capability,
            processors,
            programmatic: capability >= 90 && version >= PROGRAMMATIC_GRAPHS,
        };
        opened.bind("open")?;
        let ptx = ptx::unpack(packed)?;
        // SAFETY: `ptx` is text that ends in a zero byte.
        check(unsafe { sys::cuModuleLoadData(&mut opened.module, ptx.as_ptr().cast()) })
            .map_err(|e| failed(e, "a driver that can compile teeny's kernels for this device"))?;
        opened.stream = opened.new_stream()?;
        Ok(Arc::new(opened))
    }

    /// The device as a user names it.
    pub fn device(&self) -> String {
        format!("cuda:{}", self.index)
    }

    /// An error of a call that failed.
    fn error(&self, action: &'static str, result: CUresult) -> Error {
        Error::Device { device: self.device(), action, message: message(result) }
    }

    fn checked(&self, action: &'static str, result: CUresult) -> Result<()> {
        check(result).map_err(|e| self.error(action, e))
    }

    fn allocated(
        &self,
        action: &'static str,
        result: CUresult,
        what: &'static str,
        bytes: usize,
    ) -> Result<()> {
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(Error::OutOfMemory { what, bytes });
        }
        self.checked(action, result)
    }

    /// Makes this context the calling thread's.
    pub fn bind(&self, action: &'static str) -> Result<()> {
        // SAFETY: a context that is retained.
        self.checked(action, unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// A kernel by its name.
    pub fn function(&self, name: &'static CStr) -> Result<Function> {
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, `name` ends in a zero byte.
        let result = unsafe { sys::cuModuleGetFunction(&mut function, self.module, name.as_ptr()) };
        self.checked("find a kernel", result)?;
        Ok(Function(function))
    }

    fn new_stream(&self) -> Result<sys::CUstream> {
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let mut stream = std::ptr::null_mut();
        // SAFETY: writes a handle.
        self.checked("make a stream", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        Ok(stream)
    }

    /// Free and total bytes of the device's memory.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind("ask for memory")?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        self.checked("ask for memory", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }

    /// Waits until all copies and fills outside of passes are done.
    fn settle(&self, action: &'static str) -> Result<()> {
        // SAFETY: a stream of this context.
        self.checked(action, unsafe { sys::cuStreamSynchronize(self.stream) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: nothing made from them is left: whatever it was held this context. Errors, as of a
        // device that is lost, leave nothing to be done.
        unsafe {
            let _ = sys::cuCtxSetCurrent(self.context);
            if !self.stream.is_null() {
                let _ = sys::cuStreamDestroy_v2(self.stream);
            }
            if !self.module.is_null() {
                let _ = sys::cuModuleUnload(self.module);
            }
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

fn check(result: CUresult) -> std::result::Result<(), CUresult> {
    if result == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(result) }
}

fn device_name(device: sys::CUdevice) -> String {
    let mut name = [0; 128];
    // SAFETY: writes up to 127 characters and a zero.
    let result = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 127, device) };
    if result != CUresult::CUDA_SUCCESS {
        return "unknown".to_owned();
    }
    // SAFETY: it ends in a zero byte, the last one at the latest.
    unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned()
}

/// A kernel of the loaded module.
#[derive(Clone, Copy, Debug)]
pub struct Function(sys::CUfunction);

// SAFETY: a handle that is never changed, of a module that its context keeps.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// Memory on the device.
pub struct Memory {
    context: Arc<Context>,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// `bytes` zeros. `what` is for messages.
    pub fn zeros(context: &Arc<Context>, what: &'static str, bytes: usize) -> Result<Memory> {
        const ACTION: &str = "allocate memory";
        context.bind(ACTION)?;
        let mut address = 0;
        // The driver refuses zero bytes.
        let size = bytes.max(16);
        // SAFETY: writes an address.
        let result = unsafe { sys::cuMemAlloc_v2(&mut address, size) };
        context.allocated(ACTION, result, what, bytes)?;
        let memory = Memory { context: Arc::clone(context), address, bytes: size };
        // SAFETY: within the memory just allocated.
        let result = unsafe { sys::cuMemsetD8Async(address, 0, size, context.stream) };
        context.checked(ACTION, result)?;
        context.settle(ACTION)?;
        Ok(memory)
    }

    /// Its address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies from the host and waits.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.write_rows(offset, bytes, bytes.len(), bytes.len())
    }

    /// Copies rows of `width` bytes, which lie together, to rows that begin every `pitch` bytes, and
    /// waits.
    pub fn write_rows(
        &self,
        offset: usize,
        bytes: &[u8],
        width: usize,
        pitch: usize,
    ) -> Result<()> {
        const ACTION: &str = "copy to the device";
        if bytes.is_empty() {
            return Ok(());
        }
        let rows = bytes.len() / width;
        assert!(width <= pitch && offset + (rows - 1) * pitch + width <= self.bytes);
        self.context.bind(ACTION)?;
        let result = if width == pitch {
            let to = self.address + offset as u64;
            // SAFETY: both sides have that many bytes, and `settle` waits below.
            unsafe {
                sys::cuMemcpyHtoDAsync_v2(
                    to,
                    bytes.as_ptr().cast(),
                    bytes.len(),
                    self.context.stream,
                )
            }
        } else {
            let copy = sys::CUDA_MEMCPY2D {
                srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
                srcHost: bytes.as_ptr().cast(),
                srcPitch: width,
                dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                dstDevice: self.address + offset as u64,
                dstPitch: pitch,
                WidthInBytes: width,
                Height: rows,
                // SAFETY: addresses, numbers and handles, for which zero is a value: none.
                ..unsafe { MaybeUninit::zeroed().assume_init() }
            };
            // SAFETY: all rows lie within both sides, by the assertion.
            unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.context.stream) }
        };
        self.context.checked(ACTION, result)?;
        self.context.settle(ACTION)
    }

    /// Copies to the host and waits.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        const ACTION: &str = "copy from the device";
        assert!(offset + bytes.len() <= self.bytes);
        self.context.bind(ACTION)?;
        let from = self.address + offset as u64;
        // SAFETY: both sides have that many bytes, and `settle` waits before they are looked at.
        let result = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                bytes.as_mut_ptr().cast(),
                from,
                bytes.len(),
                self.context.stream,
            )
        };
        self.context.checked(ACTION, result)?;
        self.context.settle(ACTION)
    }

    /// Becomes a copy of `other`, and waits.
    pub fn copy(&self, other: &Memory) -> Result<()> {
        const ACTION: &str = "copy on the device";
        assert!(self.bytes >= other.bytes);
        self.context.bind(ACTION)?;
        // SAFETY: this memory is no smaller, by the assertion.
        let result = unsafe {
            sys::cuMemcpyDtoDAsync_v2(self.address, other.address, other.bytes, self.context.stream)
        };
        self.context.checked(ACTION, result)?;
        self.context.settle(ACTION)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = self.context.bind("free memory");
        // SAFETY: allocated by this value, and no pass is running that knows it: passes are waited for
        // before what they use is dropped. A failure leaves nothing to be done.
        let _ = unsafe { sys::cuMemFree_v2(self.address) };
    }
}

/// Numbers, or structs of numbers without gaps: any bytes are a value, and a value is its bytes.
///
/// # Safety
/// Just that.
pub unsafe trait Plain: Copy {}
// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: numbers.
unsafe impl Plain for u32 {}
// SAFETY: numbers.
unsafe impl Plain for u64 {}

/// Values as bytes.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` values are their bytes.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Values as bytes that can be written.
pub fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: any bytes are `Plain` values.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// Memory of the host that the device copies from and to without help.
pub struct Pinned {
    context: Arc<Context>,
    address: *mut u8,
    bytes: usize,
}

// SAFETY: memory that this value alone owns.
unsafe impl Send for Pinned {}
// SAFETY: as above; sharing it allows reading only.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `bytes` zeros. `what` is for messages.
    pub fn zeros(context: &Arc<Context>, what: &'static str, bytes: usize) -> Result<Pinned> {
        const ACTION: &str = "allocate memory of the host";
        context.bind(ACTION)?;
        let mut address = std::ptr::null_mut();
        let bytes = bytes.max(16);
        // SAFETY: writes an address.
        let result = unsafe { sys::cuMemHostAlloc(&mut address, bytes, 0) };
        context.allocated(ACTION, result, what, bytes)?;
        // SAFETY: that many bytes have just been allocated.
        unsafe { address.cast::<u8>().write_bytes(0, bytes) };
        Ok(Pinned { context: Arc::clone(context), address: address.cast(), bytes })
    }

    /// Its bytes. No copy may be under way that changes them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: initialised when it was made; copies are waited for by `Stream::wait`.
        unsafe { std::slice::from_raw_parts(self.address, self.bytes) }
    }

    /// Its bytes, to be written. No copy may be under way.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else looks at them.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.bind("free memory of the host");
        // SAFETY: allocated by this value; no copy is under way, as for `Memory`.
        let _ = unsafe { sys::cuMemFreeHost(self.address.cast()) };
    }
}

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
