//! The kernels as the driver takes them: PTX text, made from `kernels/` by `kernels/compile.py` and
//! committed, so that neither building nor running needs a CUDA toolkit. `build.rs` packs it, or it
//! would be most of the library.

use std::ffi::CString;

use crate::alloc::reserve;
use crate::error::{Error, Result};

macro_rules! packed {
    ($target:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $target, ".ptx.deflate"))
    };
}

/// The newest text that a device of the given compute capability (such as 86) can run, packed; none for
/// one before Turing.
pub fn for_capability(capability: u32) -> Option<&'static [u8]> {
    match capability {
        90.. => Some(packed!("sm_90")),
        80..90 => Some(packed!("sm_80")),
        75..80 => Some(packed!("sm_75")),
        0..75 => None,
    }
}

/// The text, ending in a zero byte.
pub fn unpack(packed: &[u8]) -> Result<CString> {
    // Several times what it is today.
    const MOST: usize = 16 << 20;
    let damaged = || Error::Device {
        device: "cuda".to_owned(),
        action: "unpack the kernels",
        message: "this program is damaged".to_owned(),
    };
    let text = miniz_oxide::inflate::decompress_to_vec_with_limit(packed, MOST);
    let mut text = text.map_err(|_| damaged())?;
    // Here, where it may fail.
    reserve(&mut text, 1, "kernels")?;
    CString::new(text).map_err(|_| damaged())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_there_for_its_devices() {
        for (capability, target) in [(75, 75), (79, 75), (80, 80), (89, 80), (90, 90), (120, 90)] {
            let text = unpack(for_capability(capability).expect("a text")).expect("our own");
            let text = text.to_str().expect("ASCII");
            assert!(text.contains(&format!(".target sm_{target}")), "{capability}");
        }
        assert!(for_capability(72).is_none());
    }
}
