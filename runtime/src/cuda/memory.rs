//! Memory on the device and memory of the host that it copies from and to, freed when dropped.

#![allow(unsafe_code)]

use std::mem::{MaybeUninit, size_of_val};
use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::Context;
use crate::error::Result;

/// Memory on the device.
pub struct Memory {
    context: Arc<Context>,
    pub(super) address: u64,
    pub(super) bytes: usize,
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
    pub(super) address: *mut u8,
    pub(super) bytes: usize,
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
