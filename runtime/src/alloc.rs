//! Memory whose size comes from a file or a caller is asked for here, so that there being none is an
//! error, where a `vec!` would end the process.

use crate::error::{Error, Result};

/// Room for `n` more values; `what` they are, for the message.
pub(crate) fn reserve<T>(values: &mut Vec<T>, n: usize, what: &'static str) -> Result<()> {
    let bytes = n.saturating_mul(size_of::<T>());
    values.try_reserve_exact(n).map_err(|_| Error::OutOfMemory { what, bytes })
}

/// `len` zeros.
pub(crate) fn zeros(what: &'static str, len: usize) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    reserve(&mut values, len, what)?;
    values.resize(len, 0.0);
    Ok(values)
}

/// `len` bytes of zero.
pub(crate) fn zeroed(what: &'static str, len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reserve(&mut bytes, len, what)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

/// Room for `n` more values in a list that goes on growing.
#[inline]
pub(crate) fn grow<T>(values: &mut Vec<T>, n: usize, what: &'static str) -> Result<()> {
    if values.capacity() - values.len() >= n {
        return Ok(());
    }
    let bytes = n.saturating_mul(size_of::<T>());
    values.try_reserve(n).map_err(|_| Error::OutOfMemory { what, bytes })
}
