//! `teeny_model`: a loaded model.

use std::ffi::{c_char, c_void};
use std::mem::offset_of;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use teeny_runtime::cpu::MOST_THREADS;
use teeny_runtime::weights::LoadOptions;
use teeny_runtime::{AnyModel, CpuOptions, Device, Dtype, Error, KvDtype, Weights};

use crate::arg::{self, teeny_text};
use crate::handle;
use crate::log::{log, teeny_log_level as Level};
use crate::options::{self, Versioned};
use crate::status::{Failure, call, call_or, teeny_status};

/// A loaded model. Nothing changes it, so any number of threads may use one at the same time.
pub struct teeny_model;

pub(crate) struct ModelObject {
    pub(crate) model: AnyModel,
}

impl handle::Kind for ModelObject {
    type Handle = teeny_model;
    const NAME: &'static str = "teeny_model";
    const TAG: usize = 1;
}

// What the comment of `teeny_model` promises.
const _: () = {
    const fn any_number_of_threads<T: Send + Sync>() {}
    any_number_of_threads::<ModelObject>();
};

/// Element types of weights.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum teeny_dtype {
    /// As the file has them.
    TEENY_DTYPE_AS_STORED = 0,
    /// Single precision.
    TEENY_DTYPE_F32 = 1,
    /// Half precision.
    TEENY_DTYPE_F16 = 2,
    /// The upper halves of single precision.
    TEENY_DTYPE_BF16 = 3,
    /// Matrices in blocks of 8 bits.
    TEENY_DTYPE_Q8 = 4,
    /// Matrices of the layers in blocks of 4 bits, embedding and output projection in blocks of 8.
    TEENY_DTYPE_Q4 = 5,
}

/// How the sessions of a model on the CPU store keys and values.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum teeny_kv_dtype {
    /// Single precision, as they are computed.
    TEENY_KV_F32 = 0,
    /// Half precision: half the memory, almost the same logits.
    TEENY_KV_F16 = 1,
    /// 8 bits with a scale for each head and position: about a quarter of the memory, and logits that
    /// differ by about a hundredth.
    TEENY_KV_Q8 = 2,
}

/// Is told how much of a model is loaded, from 0 to 1, at least at the beginning and at the end.
/// Return 0 to go on, anything else to stop.
pub type teeny_progress_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, done: f32) -> i32>;

/// Is told that teeny needs the caller's memory no more.
pub type teeny_release_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, data: *const c_void, len: usize)>;

/// How to load a model. `teeny_model_options_init` fills it with the defaults; then set what is to
/// differ. Later versions of teeny may add members at the end, and programs built with this header
/// go on working.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct teeny_model_options {
    /// `sizeof(teeny_model_options)`, which says which members are there.
    pub size: usize,
    /// Where the model runs, ending in a zero byte: "cpu"; "cuda" or "cuda:N" for an NVIDIA GPU, N
    /// counting from 0, TEENY_UNSUPPORTED if it is not there; "auto" for the first GPU if it can run the
    /// model, else the CPU; NULL is "cpu", which gives the same bits everywhere and is in no other
    /// program's way. Default NULL.
    pub device: *const c_char,
    /// Default NULL: nobody is told.
    pub progress: teeny_progress_callback,
    /// Passed to `progress`. Default NULL.
    pub progress_user_data: *mut c_void,
    /// A shorter context than the model's, which takes less memory; 0 keeps the model's. Default 0.
    pub max_seq_len: usize,
    /// Threads that work on one call on the CPU, the caller's included, at most 256; 0 chooses as many as
    /// pay for the model's size. Loading starts them, and they end with the model. Results do not depend
    /// on it. Default 0.
    pub threads: u32,
    /// A teeny_dtype: others than TEENY_DTYPE_AS_STORED convert the weights into memory of their
    /// own. Default TEENY_DTYPE_AS_STORED.
    pub dtype: i32,
    /// 1 maps a file; 0 reads it into memory, which is safe from others who overwrite the file.
    /// Default 1.
    pub map: i32,
    /// A teeny_kv_dtype: how sessions store keys and values. On a GPU only TEENY_KV_F32; with another one
    /// "auto" is the CPU. Default TEENY_KV_F32.
    pub kv_dtype: i32,
    /// 1 multiplies bf16 weights by the CPU's bf16 instructions (AVX512-BF16) where it has them: faster,
    /// but logits then differ a little from those of other CPUs. Default 0.
    pub fast: i32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: repr(C), `size` first, and the assertions below; an address that is no function is the
// caller's to avoid.
unsafe impl Versioned for teeny_model_options {
    const NAME: &'static str = "teeny_model_options";
    const FIRST_SIZE: usize = offset_of!(teeny_model_options, kv_dtype) + size_of::<i32>();
}

// The layout is part of the ABI. Its end has no padding, so that a new member changes the size.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(teeny_model_options::SIZE == 64 && align_of::<teeny_model_options>() == 8);
    assert!(teeny_model_options::FIRST_SIZE == 56);
    assert!(offset_of!(teeny_model_options, reserved) + 4 == 64);
};

impl teeny_model_options {
    fn defaults(size: usize) -> teeny_model_options {
        teeny_model_options {
            size,
            device: std::ptr::null(),
            progress: None,
            progress_user_data: std::ptr::null_mut(),
            max_seq_len: 0,
            threads: 0,
            dtype: teeny_dtype::TEENY_DTYPE_AS_STORED as i32,
            map: 1,
            kv_dtype: teeny_kv_dtype::TEENY_KV_F32 as i32,
            fast: 0,
            reserved: 0,
        }
    }

    /// # Safety
    /// As of [`options::read`].
    unsafe fn read(options: *const teeny_model_options) -> Result<teeny_model_options, Failure> {
        let defaults = teeny_model_options::defaults(teeny_model_options::SIZE);
        // SAFETY: the caller's promise.
        let options = unsafe { options::read(options, defaults) }?;
        options::check_reserved(options.reserved)?;
        // SAFETY: the caller's promise.
        unsafe { options.device() }?;
        Ok(options)
    }

    /// # Safety
    /// `device` is NULL or points to text that ends in a zero byte.
    unsafe fn device(&self) -> Result<Device, Failure> {
        if self.device.is_null() {
            return Ok(Device::Cpu);
        }
        // SAFETY: the caller's promise.
        let device = unsafe { arg::terminated_text(self.device, "options.device") }?;
        device.parse().map_err(|_| {
            let expected = "cpu, cuda, cuda:N or auto";
            Failure::argument("options.device", format!("{device:?}"), expected)
        })
    }

    fn load_options(&self) -> Result<LoadOptions, Failure> {
        const AS_STORED: i32 = teeny_dtype::TEENY_DTYPE_AS_STORED as i32;
        const F32: i32 = teeny_dtype::TEENY_DTYPE_F32 as i32;
        const F16: i32 = teeny_dtype::TEENY_DTYPE_F16 as i32;
        const BF16: i32 = teeny_dtype::TEENY_DTYPE_BF16 as i32;
        const Q8: i32 = teeny_dtype::TEENY_DTYPE_Q8 as i32;
        const Q4: i32 = teeny_dtype::TEENY_DTYPE_Q4 as i32;
        Ok(LoadOptions {
            map: flag(self.map, "options.map")?,
            dtype: match self.dtype {
                AS_STORED => None,
                F32 => Some(Dtype::F32),
                F16 => Some(Dtype::F16),
                BF16 => Some(Dtype::Bf16),
                Q8 => Some(Dtype::Q8),
                Q4 => Some(Dtype::Q4),
                other => {
                    let found = other.to_string();
                    return Err(Failure::argument("options.dtype", found, "a teeny_dtype"));
                }
            },
            max_seq_len: (self.max_seq_len > 0).then_some(self.max_seq_len),
        })
    }

    /// `device` is where the model is to run.
    fn cpu_options(&self, device: Device) -> Result<CpuOptions, Failure> {
        const F32: i32 = teeny_kv_dtype::TEENY_KV_F32 as i32;
        const F16: i32 = teeny_kv_dtype::TEENY_KV_F16 as i32;
        const Q8: i32 = teeny_kv_dtype::TEENY_KV_Q8 as i32;
        let threads = self.threads as usize;
        if threads > MOST_THREADS {
            let expected = format!("0 to {MOST_THREADS}");
            return Err(Failure::argument("options.threads", threads.to_string(), &expected));
        }
        let wrong_kv = |expected| {
            Err(Failure::argument("options.kv_dtype", self.kv_dtype.to_string(), expected))
        };
        let kv_dtype = match (self.kv_dtype, device) {
            (F32, _) => KvDtype::F32,
            (F16 | Q8, Device::Cuda(_)) => return wrong_kv("TEENY_KV_F32 = 0 on a GPU"),
            (F16, _) => KvDtype::F16,
            (Q8, _) => KvDtype::Q8,
            _ => return wrong_kv("a teeny_kv_dtype"),
        };
        Ok(CpuOptions { threads, kv_dtype, fast: flag(self.fast, "options.fast")? })
    }
}

/// What C has for a bool.
fn flag(value: i32, name: &str) -> Result<bool, Failure> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Failure::argument(name, other.to_string(), "0 or 1")),
    }
}

/// Fills options with the defaults. `size` is `sizeof(teeny_model_options)`.
///
/// Fails with TEENY_INVALID_ARGUMENT for a size that no version of the options has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_options_init(
    options: *mut teeny_model_options,
    size: usize,
) -> teeny_status {
    call(|| {
        // SAFETY: the caller's promise.
        unsafe { options::output(options, "options", size) }?.write(teeny_model_options::defaults);
        Ok(())
    })
}

/// Loads a model that teeny-train has exported. `options` may be NULL for the defaults.
///
/// The file is mapped, not copied: loading takes the same short time for every size, and processes
/// that load the same file share its memory. While the model lives, the file may be deleted or
/// replaced by renaming another one to its name, but it must not be overwritten or shortened: set
/// `options.map` to 0 where others may do that. The file may come from anyone: whatever is wrong with
/// it is found here.
///
/// `path` is UTF-8 that ends in a zero byte. `*out` is set on success; `teeny_model_free` frees it.
///
/// Fails with TEENY_IO for a file that cannot be opened, TEENY_FORMAT for one that is no model,
/// TEENY_UNSUPPORTED for a device that is not there, TEENY_CANCELLED when the progress callback asked
/// to stop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_load(
    path: *const c_char,
    options: *const teeny_model_options,
    out: *mut *mut teeny_model,
) -> teeny_status {
    call(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { arg::terminated_text(path, "path") }?;
        // SAFETY: the caller's promise.
        let options = unsafe { teeny_model_options::read(options) }?;
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(out, "out") }?;
        let load_options = options.load_options()?;
        let model = load(&options, path, |progress| {
            Weights::load(Path::new(path), &load_options, progress)
        })?;
        out.write(handle::new(model)?);
        Ok(())
    })
}

/// Memory of the caller's, given back when the last tensor in it is gone.
struct CallersMemory {
    data: *const u8,
    len: usize,
    release: teeny_release_callback,
    user_data: *mut c_void,
    /// Whether it is ours: not before loading has succeeded.
    taken: Arc<AtomicBool>,
}

// SAFETY: nobody changes the memory, by the caller's promise, and `release` may be called on the
// thread that frees the last session, as its comment says.
unsafe impl Send for CallersMemory {}
// SAFETY: as above.
unsafe impl Sync for CallersMemory {}

impl AsRef<[u8]> for CallersMemory {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `teeny_model_load_memory` has checked the pointer, and that the memory stays until
        // `release` is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl Drop for CallersMemory {
    fn drop(&mut self) {
        if let (true, Some(release)) = (self.taken.load(Ordering::Acquire), self.release) {
            // SAFETY: that it is a function of this type is the caller's promise.
            unsafe { release(self.user_data, self.data.cast(), self.len) };
        }
    }
}

/// Loads a model from `len` bytes of memory that hold the contents of a model file, such as an array
/// in the program itself. `options` may be NULL for the defaults; `options.map` does not matter.
///
/// The memory is used where it lies if `data` is a multiple of 4 (64 is best), else it is copied. It
/// must not change until `release` is called with `user_data`, `data` and `len`: once, as soon as
/// teeny needs it no more, which is when the model and its last session are freed, on the thread that
/// frees the last of them, or during this call if the bytes were copied or converted. `release` may
/// be NULL, for memory that is always there. If the load fails it is not called, and the memory is
/// the caller's as before.
///
/// `*out` is set on success; `teeny_model_free` frees it. Fails as `teeny_model_load`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_load_memory(
    data: *const c_void,
    len: usize,
    release: teeny_release_callback,
    user_data: *mut c_void,
    options: *const teeny_model_options,
    out: *mut *mut teeny_model,
) -> teeny_status {
    call(|| {
        // SAFETY: the caller's promise.
        let bytes = unsafe { arg::slice(data.cast::<u8>(), len, "data") }?;
        // SAFETY: the caller's promise.
        let options = unsafe { teeny_model_options::read(options) }?;
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(out, "out") }?;
        let load_options = options.load_options()?;
        let taken = Arc::new(AtomicBool::new(false));
        let data = bytes.as_ptr();
        let memory = CallersMemory { data, len, release, user_data, taken: Arc::clone(&taken) };
        let mut copied = None;
        let model = load(&options, "memory", |progress| {
            let (weights, owner) = Weights::from_owner(Box::new(memory), &load_options, progress)?;
            copied = owner;
            Ok(weights)
        })?;
        let handle = handle::new(model)?;
        if !data.addr().is_multiple_of(4) {
            log(Level::TEENY_LOG_WARN, || {
                format!("data: {data:p} is no multiple of 4: {len} bytes were copied")
            });
        }
        taken.store(true, Ordering::Release);
        // Releases what was copied.
        drop(copied);
        out.write(handle);
        Ok(())
    })
}

/// What both ways of loading share: progress, the log, and the model itself.
fn load(
    options: &teeny_model_options,
    from: &str,
    weights: impl FnOnce(&mut dyn FnMut(f32) -> ControlFlow<()>) -> teeny_runtime::Result<Weights>,
) -> Result<ModelObject, Failure> {
    let start = Instant::now();
    // SAFETY: `options` were read, which has checked it, and are the caller's as long as this runs.
    let device = unsafe { options.device() }?;
    let cpu_options = options.cpu_options(device)?;
    let mut answer = 0;
    let weights = weights(&mut |done| {
        if let Some(progress) = options.progress {
            // SAFETY: that it is a function of this type is the caller's promise.
            answer = unsafe { progress(options.progress_user_data, done) };
        }
        if answer == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    if answer != 0 {
        return Err(Failure::cancelled(answer));
    }
    let weights = weights.map_err(|error| {
        // Which file it is, where the runtime does not say so.
        let damaged = matches!(error, Error::Format { .. });
        let failure = Failure::from(error);
        if damaged { failure.with_context(from) } else { failure }
    })?;
    let model = AnyModel::load_with(device, cpu_options, &weights)?;
    log(Level::TEENY_LOG_INFO, || {
        format!(
            "loaded {from}: {} parameters, {} bytes, {}, {:.1} ms",
            model.n_params(),
            model.n_bytes(),
            model.describe(),
            start.elapsed().as_secs_f64() * 1e3
        )
    });
    Ok(ModelObject { model })
}

/// Frees a model. NULL is fine. Sessions of it keep it alive, so the order does not matter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_free(model: *mut teeny_model) {
    call(|| handle::free::<ModelObject>(model, "model"));
}

/// Number of tokens in the vocabulary; their ids are below it. 0 for what is no model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_vocab_size(model: *const teeny_model) -> usize {
    get(model, |model| model.config().vocab_size)
}

/// Number of tokens that the model looks back on, its context length. 0 for what is no model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_max_seq_len(model: *const teeny_model) -> usize {
    get(model, |model| model.config().max_seq_len)
}

/// Width of the model: how many numbers `teeny_session_hidden` gives. 0 for what is no model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_n_embd(model: *const teeny_model) -> usize {
    get(model, |model| model.config().n_embd)
}

/// Number of parameters. 0 for what is no model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_n_params(model: *const teeny_model) -> usize {
    get(model, AnyModel::n_params)
}

/// Bytes of the weights, whether they are mapped, the caller's or teeny's own. 0 for what is no
/// model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_memory_used(model: *const teeny_model) -> usize {
    get(model, AnyModel::n_bytes)
}

/// Number of entries of the file's metadata: its configuration, its vocabulary, where it comes from.
/// 0 for what is no model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_metadata_count(model: *const teeny_model) -> usize {
    get(model, |model| model.metadata().len())
}

/// An entry of the metadata, in the order of the keys. Both texts are UTF-8 and the model's: they
/// live as long as it or a session of it.
///
/// Fails with TEENY_NOT_FOUND from index `teeny_model_metadata_count` on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_metadata_at(
    model: *const teeny_model,
    index: usize,
    key: *mut teeny_text,
    value: *mut teeny_text,
) -> teeny_status {
    call(|| {
        let model = handle::get::<ModelObject>(model, "model")?;
        // SAFETY: the caller's promise.
        let key_out = unsafe { arg::output(key, "key") }?;
        // SAFETY: the caller's promise.
        let value_out = unsafe { arg::output(value, "value") }?;
        let metadata = model.model.metadata();
        let (key, value) = metadata.iter().nth(index).ok_or_else(|| {
            let message =
                format!("index: found {index}, expected one below the {} entries", metadata.len());
            Failure::new(teeny_status::TEENY_NOT_FOUND, message)
        })?;
        key_out.write(teeny_text::of(key.as_bytes()));
        value_out.write(teeny_text::of(value.as_bytes()));
        Ok(())
    })
}

/// The metadata's value for a key of `key_len` bytes. It is UTF-8 and the model's: it lives as long
/// as the model or a session of it.
///
/// Fails with TEENY_NOT_FOUND if there is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn teeny_model_metadata_get(
    model: *const teeny_model,
    key: *const c_char,
    key_len: usize,
    value: *mut teeny_text,
) -> teeny_status {
    call(|| {
        let model = handle::get::<ModelObject>(model, "model")?;
        // SAFETY: the caller's promise.
        let key = unsafe { arg::text(key, key_len, "key") }?;
        // SAFETY: the caller's promise.
        let out = unsafe { arg::output(value, "value") }?;
        let value = model.model.metadata().get(key).ok_or_else(|| {
            let message = format!("key: found {key:?}, expected one of the model's metadata");
            Failure::new(teeny_status::TEENY_NOT_FOUND, message)
        })?;
        out.write(teeny_text::of(value.as_bytes()));
        Ok(())
    })
}

fn get(model: *const teeny_model, value: impl FnOnce(&AnyModel) -> usize) -> usize {
    call_or(0, || Ok(value(&handle::get::<ModelObject>(model, "model")?.model)))
}
