//! The CUDA driver: devices, their contexts with the kernels loaded. What is made is freed when it is
//! dropped, and every call's result is checked, here and in the files beside. Over cudarc's bindings, which load the driver's library when they are first used.

#![allow(unsafe_code)]

use std::ffi::CStr;
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
    pub(super) stream: sys::CUstream,
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
    pub(super) fn error(&self, action: &'static str, result: CUresult) -> Error {
        Error::Device { device: self.device(), action, message: message(result) }
    }

    pub(super) fn checked(&self, action: &'static str, result: CUresult) -> Result<()> {
        check(result).map_err(|e| self.error(action, e))
    }

    pub(super) fn allocated(
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

    pub(super) fn new_stream(&self) -> Result<sys::CUstream> {
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
    pub(super) fn settle(&self, action: &'static str) -> Result<()> {
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

pub(super) fn check(result: CUresult) -> std::result::Result<(), CUresult> {
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
pub struct Function(pub(super) sys::CUfunction);

// SAFETY: a handle that is never changed, of a module that its context keeps.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}
