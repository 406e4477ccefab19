//! Structs that begin with their size, so that later versions can add members at the end.

use crate::arg;
use crate::status::Failure;

/// Options or results of C.
///
/// # Safety
/// The type is `repr(C)`, begins with a `usize` that holds its size, has no padding at its end, and
/// every bit pattern is a value of it.
pub(crate) unsafe trait Versioned: Copy {
    /// As messages name it.
    const NAME: &'static str;
    const SIZE: usize = size_of::<Self>();
}

/// No version of any of them will be larger; a size above it was never set.
const MAX_SIZE: usize = 4096;

/// A caller's options, or the defaults for NULL.
///
/// # Safety
/// A pointer that is not NULL points to as many bytes as its first member says.
pub(crate) unsafe fn read<T: Versioned>(options: *const T, defaults: T) -> Result<T, Failure> {
    if options.is_null() {
        return Ok(defaults);
    }
    arg::check(options, "options")?;
    // SAFETY: not NULL and aligned; `size` comes first in every version.
    let size = unsafe { options.cast::<usize>().read() };
    check_size::<T>(size, "options.size")?;
    // SAFETY: the caller's promise; `check_size` has seen that it is at least ours.
    let bytes = unsafe { arg::slice(options.cast::<u8>(), size, "options") }?;
    if let Some(at) = bytes[T::SIZE..].iter().position(|byte| *byte != 0) {
        return Err(Failure::argument(
            "options",
            format!("a value at byte {}", T::SIZE + at),
            &format!(
                "only the {} bytes that teeny {} knows: it is older than the program's teeny.h",
                T::SIZE,
                env!("CARGO_PKG_VERSION")
            ),
        ));
    }
    // SAFETY: as above.
    Ok(unsafe { options.read() })
}

/// A checked place for options or results of a version's size, so that a call can refuse it before
/// the work and write after.
pub(crate) struct Output<T> {
    place: arg::Output<T>,
    pointer: *mut T,
    size: usize,
}

/// Where a struct may be written; `name` and `size` are arguments of the function.
///
/// # Safety
/// A pointer that is not NULL points to memory of `size` bytes.
pub(crate) unsafe fn output<T: Versioned>(
    pointer: *mut T,
    name: &str,
    size: usize,
) -> Result<Output<T>, Failure> {
    // SAFETY: the caller's promise, once the size is seen to be enough.
    let place = unsafe { arg::output(pointer, name) }?;
    check_size::<T>(size, "size")?;
    Ok(Output { place, pointer, size })
}

impl<T: Versioned> Output<T> {
    /// `value` has this size in its first member; what a newer header has beyond becomes 0.
    pub(crate) fn write(self, value: impl FnOnce(usize) -> T) {
        // SAFETY: memory of `size` bytes is the promise to `output`.
        unsafe { self.pointer.cast::<u8>().write_bytes(0, self.size) };
        self.place.write(value(self.size));
    }
}

fn check_size<T: Versioned>(size: usize, name: &str) -> Result<(), Failure> {
    if (T::SIZE..=MAX_SIZE).contains(&size) {
        return Ok(());
    }
    Err(Failure::argument(name, size.to_string(), &format!("sizeof({}) = {}", T::NAME, T::SIZE)))
}

/// A member that is kept for later.
pub(crate) fn check_reserved(reserved: u32) -> Result<(), Failure> {
    if reserved == 0 {
        return Ok(());
    }
    Err(Failure::argument("options.reserved", reserved.to_string(), "0"))
}
