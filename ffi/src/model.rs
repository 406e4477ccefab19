//! `teeny_model`: a loaded model.

use std::ffi::c_char;
use std::path::Path;
use std::sync::Arc;

use teeny_runtime::{Cpu, Model, Weights};

use crate::arg;
use crate::status::{Failure, call, call_or, teeny_status};

/// A loaded model. Nothing changes it, so any number of threads may use one at the same time.
pub struct teeny_model {
    model: Arc<Model<Cpu>>,
}

impl teeny_model {
    /// A share of the model, which lives on if the handle is freed.
    pub(crate) fn share(&self) -> Arc<Model<Cpu>> {
        Arc::clone(&self.model)
    }
}

// What the comment of `teeny_model` promises.
const _: () = {
    const fn any_number_of_threads<T: Send + Sync>() {}
    any_number_of_threads::<teeny_model>();
};

/// Loads a model that teeny-train has exported.
///
/// The file is mapped, not copied: loading takes the same short time for every size, and processes
/// that load the same file share its memory. While the model lives, the file may be deleted or
/// replaced by renaming another one to its name, but it must not be overwritten or shortened. The
/// file may come from anyone: whatever is wrong with it is found here.
///
/// `path` is UTF-8 that ends in a zero byte. `*out` is set on success; `teeny_model_free` frees it.
///
/// Fails with TEENY_IO for a file that cannot be opened, TEENY_FORMAT for one that is no model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_load(
    path: *const c_char,
    out: *mut *mut teeny_model,
) -> teeny_status {
    call(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { arg::terminated_text(path, "path") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(out, "out") }?;
        let weights = Weights::map(Path::new(path))?;
        let model = Arc::new(Model::load(Cpu::new(), &weights)?);
        out.write(Box::into_raw(Box::new(teeny_model { model })));
        Ok(())
    })
}

/// Frees a model. NULL is fine. No call on another thread may be using it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_free(model: *mut teeny_model) {
    call(|| {
        if !model.is_null() {
            arg::check(model, "model")?;
            // SAFETY: not NULL and aligned; that it comes from `teeny_model_load` and is freed once
            // is the caller's promise.
            drop(unsafe { Box::from_raw(model) });
        }
        Ok(())
    });
}

/// Number of tokens in the vocabulary; their ids are below it. 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_vocab_size(model: *const teeny_model) -> usize {
    // SAFETY: the caller's promise.
    unsafe { get(model, |model| model.config().vocab_size) }
}

/// Number of tokens that the model looks back on, its context length. 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_max_seq_len(model: *const teeny_model) -> usize {
    // SAFETY: the caller's promise.
    unsafe { get(model, |model| model.config().max_seq_len) }
}

/// Number of parameters. 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_n_params(model: *const teeny_model) -> usize {
    // SAFETY: the caller's promise.
    unsafe { get(model, Model::n_params) }
}

/// # Safety
/// A pointer that is not NULL points to a model.
unsafe fn get(model: *const teeny_model, value: impl FnOnce(&Model<Cpu>) -> usize) -> usize {
    call_or(0, || {
        // SAFETY: the caller's promise.
        let model: Result<&teeny_model, Failure> = unsafe { arg::reference(model, "model") };
        Ok(value(&model?.model))
    })
}
