//! Keeps the C allocator from giving every large tensor back to the system.
//!
//! A training step on the CPU makes and drops the same tensors of tens of megabytes again and
//! again. By default glibc maps and unmaps each, and the kernel must find and clear its pages every
//! time, which costs more than most operations on them.
#![allow(unsafe_code)]

/// Tells glibc to serve every size from its heap and to keep what is freed. Call it before the
/// first tensor is made; on systems without glibc it does nothing.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets options of the allocator and may be called at any time; values that
    // it does not accept change nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}
