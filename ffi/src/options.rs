//! Structs that begin with their size, so that later versions can add members at the end.

use std::ptr;

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
    /// Size of its first version, the smallest that a program can have.
    const FIRST_SIZE: usize;
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
    // SAFETY: the caller's promise.
    let bytes = unsafe { arg::slice(options.cast::<u8>(), size, "options") }?;
    let known = size.min(T::SIZE);
    if let Some(at) = bytes[known..].iter().position(|byte| *byte != 0) {
        return Err(Failure::argument(
            "options",
            format!("a value at byte {}", known + at),
            &format!(
                "only the {known} bytes that teeny {} knows: it is older than the program's teeny.h",
                env!("CARGO_PKG_VERSION")
            ),
        ));
    }
    // What an older program does not know keeps its default.
    let mut read = defaults;
    // SAFETY: `known` bytes are there on both sides, and every bit pattern is a value.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut read).cast(), known) };
    Ok(read)
}

/// A checked place for options or results of a version's size, so that a call can refuse it before
/// the work and write after.
pub(crate) struct Output<T> {
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
    arg::check(pointer, name)?;
    check_size::<T>(size, "size")?;
    Ok(Output { pointer, size })
}

impl<T: Versioned> Output<T> {
    /// `value` has this size in its first member; an older program gets its part of it, and what a
    /// newer header has beyond becomes 0.
    pub(crate) fn write(self, value: impl FnOnce(usize) -> T) {
        let Output { pointer, size } = self;
        let value = value(size);
        let known = size.min(T::SIZE);
        // SAFETY: memory of `size` bytes is the promise to `output`.
        unsafe {
            ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), pointer.cast(), known);
            pointer.cast::<u8>().add(known).write_bytes(0, size - known);
        }
    }
}

fn check_size<T: Versioned>(size: usize, name: &str) -> Result<(), Failure> {
    if (T::FIRST_SIZE..=MAX_SIZE).contains(&size) && size.is_multiple_of(align_of::<T>()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A struct that has grown: `later` was not in its first version.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Grown {
        size: usize,
        first: u64,
        later: u64,
    }

    // SAFETY: repr(C), `size` first, no padding.
    unsafe impl Versioned for Grown {
        const NAME: &'static str = "grown";
        const FIRST_SIZE: usize = 16;
    }

    fn defaults(size: usize) -> Grown {
        Grown { size, first: 1, later: 2 }
    }

    fn read_one(options: &Grown) -> Result<Grown, Failure> {
        // SAFETY: no test says a larger size than there is.
        unsafe { read(options, defaults(Grown::SIZE)) }
    }

    #[test]
    fn an_older_program_gets_the_defaults_of_what_it_does_not_know() {
        let old = Grown { size: 16, first: 7, later: 99 };
        assert_eq!(read_one(&old).expect("valid"), Grown { size: 16, first: 7, later: 2 });
        let new = Grown { size: 24, ..old };
        assert_eq!(read_one(&new).expect("valid"), new);
        for size in [0, 8, 15, 17, 23, MAX_SIZE + 1, usize::MAX] {
            assert!(read_one(&Grown { size, ..old }).is_err(), "{size}");
        }
    }

    #[test]
    fn a_newer_program_may_ask_for_nothing_that_is_not_known() {
        let mut newer = [defaults(24 + 16), Grown { size: 0, first: 0, later: 5 }];
        // SAFETY: 40 bytes of the array.
        let read = |newer: &[Grown; 2]| unsafe { read(newer.as_ptr(), defaults(24)) };
        assert_eq!(read(&newer).expect("the rest is 0"), newer[0]);
        newer[1].first = 1;
        assert!(read(&newer).is_err());
    }

    #[test]
    fn no_more_is_written_than_the_program_has_room_for() {
        let untouched = Grown { size: 9, first: 9, later: 9 };
        let write = |size| {
            let mut place = [untouched; 2];
            // SAFETY: no size here is beyond the array.
            let out = unsafe { output(place.as_mut_ptr(), "place", size) };
            out.map(|out| {
                out.write(defaults);
                place
            })
        };
        let old = write(16).expect("the first version");
        assert_eq!(old, [Grown { later: 9, ..defaults(16) }, untouched]);
        assert_eq!(write(24).expect("this version"), [defaults(24), untouched]);
        let newer = write(40).expect("a later version");
        assert_eq!(newer, [defaults(40), Grown { size: 0, first: 0, later: 9 }]);
        assert!(write(15).is_err());
    }
}
