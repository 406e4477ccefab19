//! Memory for when there is none: small allocations that the system refuses come from a reserve.
//!
//! Rust ends the process when an allocation fails that was not asked for with `try_`. Everything whose
//! size depends on a model or on input is asked for so and comes back as TEENY_OUT_OF_MEMORY; what
//! remains is small: messages, names, handles. The reserve serves those until the next large one
//! fails in order. It costs no memory before it is used.
//!
//! The idea is that of the emergency pool for exceptions in GNU libstdc++ (eh_alloc.cc).

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Largest allocation that the reserve serves, in bytes.
const LARGEST: usize = 16 << 10;
const UNIT: usize = 256;
const UNITS: usize = (1 << 20) / UNIT;

/// Units of memory, and which of them are taken.
#[repr(align(256))]
struct Units {
    memory: UnsafeCell<[u8; UNITS * UNIT]>,
    taken: UnsafeCell<[bool; UNITS]>,
    locked: AtomicBool,
}

// SAFETY: `taken` is touched under the lock only, and each unit of `memory` by its owner only.
unsafe impl Sync for Units {}

static RESERVE: Units = Units {
    memory: UnsafeCell::new([0; UNITS * UNIT]),
    taken: UnsafeCell::new([false; UNITS]),
    locked: AtomicBool::new(false),
};

impl Units {
    fn with_taken<T>(&self, f: impl FnOnce(&mut [bool; UNITS]) -> T) -> T {
        while self.locked.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        // SAFETY: the lock is ours, and `f` cannot come back here.
        let result = f(unsafe { &mut *self.taken.get() });
        self.locked.store(false, Ordering::Release);
        result
    }

    fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LARGEST || layout.align() > UNIT {
            return ptr::null_mut();
        }
        let n = layout.size().div_ceil(UNIT);
        let first = self.with_taken(|taken| {
            let mut free = 0;
            for unit in 0..UNITS {
                free = if taken[unit] { 0 } else { free + 1 };
                if free == n {
                    let first = unit + 1 - n;
                    taken[first..=unit].fill(true);
                    return Some(first);
                }
            }
            None
        });
        match first {
            // SAFETY: a unit within the array.
            Some(first) => unsafe { self.memory.get().cast::<u8>().add(first * UNIT) },
            None => ptr::null_mut(),
        }
    }

    /// Offset of an address in the reserve, if it is there.
    fn offset(&self, pointer: *mut u8) -> Option<usize> {
        let offset = pointer.addr().wrapping_sub(self.memory.get().addr());
        (offset < UNITS * UNIT).then_some(offset)
    }

    fn dealloc(&self, offset: usize, size: usize) {
        let first = offset / UNIT;
        self.with_taken(|taken| taken[first..first + size.div_ceil(UNIT)].fill(false));
    }
}

struct WithReserve;

// SAFETY: the system's allocator, and where that returns null, units of the reserve that nobody else
// has; each goes back to where it came from.
unsafe impl GlobalAlloc for WithReserve {
    // SAFETY: as the trait demands of the caller.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`.
        let pointer = unsafe { System.alloc(layout) };
        if pointer.is_null() { RESERVE.alloc(layout) } else { pointer }
    }

    // SAFETY: as the trait demands of the caller.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if !pointer.is_null() {
            return pointer;
        }
        let pointer = RESERVE.alloc(layout);
        if !pointer.is_null() {
            // SAFETY: memory of this size that is ours.
            unsafe { pointer.write_bytes(0, layout.size()) };
        }
        pointer
    }

    // SAFETY: as the trait demands of the caller.
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let reserved = RESERVE.offset(old).is_some();
        if !reserved {
            // SAFETY: it came from there, and the caller keeps the contract of `realloc`.
            let pointer = unsafe { System.realloc(old, layout, new_size) };
            if !pointer.is_null() {
                return pointer;
            }
        }
        let Ok(new_layout) = Layout::from_size_align(new_size, layout.align()) else {
            return ptr::null_mut();
        };
        // Out of the reserve if there is memory again.
        // SAFETY: `new_size` is not 0, by the contract of `realloc`.
        let pointer = unsafe { self.alloc(new_layout) };
        if !pointer.is_null() {
            // SAFETY: two allocations of at least this size; the old one is not used any more.
            unsafe {
                ptr::copy_nonoverlapping(old, pointer, layout.size().min(new_size));
                self.dealloc(old, layout);
            }
        }
        pointer
    }

    // SAFETY: as the trait demands of the caller.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match RESERVE.offset(pointer) {
            Some(offset) => RESERVE.dealloc(offset, layout.size()),
            // SAFETY: it came from there, and the caller keeps the contract of `dealloc`.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }
}

#[global_allocator]
static ALLOCATOR: WithReserve = WithReserve;

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).expect("valid")
    }

    /// One test, because the reserve is one for all.
    #[test]
    fn the_reserve_gives_each_unit_to_one_owner_and_takes_it_back() {
        let mut owned = Vec::new();
        let sizes = [1, 255, 256, 257, 4000, LARGEST];
        for i in 0.. {
            let layout = layout(sizes[i % sizes.len()]);
            let pointer = RESERVE.alloc(layout);
            if pointer.is_null() {
                break;
            }
            // SAFETY: memory of this size that is ours.
            unsafe { pointer.write_bytes(i as u8, layout.size()) };
            owned.push((i as u8, pointer, layout));
        }
        assert!(owned.len() > 100, "{}", owned.len());
        for (i, pointer, layout) in &owned {
            // SAFETY: written above.
            let bytes = unsafe { std::slice::from_raw_parts(*pointer, layout.size()) };
            assert!(bytes.iter().all(|byte| byte == i), "nobody else wrote there");
        }
        assert!(RESERVE.alloc(layout(LARGEST + 1)).is_null());
        let strict = Layout::from_size_align(8, 2 * UNIT).expect("valid");
        assert!(RESERVE.alloc(strict).is_null());

        // From the reserve to the system and never back.
        let (i, pointer, from) = owned.pop().expect("not empty");
        // SAFETY: an allocation with its layout.
        let moved = unsafe { ALLOCATOR.realloc(pointer, from, 100_000) };
        assert!(RESERVE.offset(moved).is_none());
        // SAFETY: copied from what was written above.
        assert_eq!(unsafe { *moved }, i);
        // SAFETY: an allocation with its layout.
        unsafe { ALLOCATOR.dealloc(moved, layout(100_000)) };
        for (_, pointer, layout) in owned {
            // SAFETY: an allocation with its layout.
            unsafe { ALLOCATOR.dealloc(pointer, layout) };
        }
        RESERVE.with_taken(|taken| assert!(taken.iter().all(|taken| !taken)));
    }
}
