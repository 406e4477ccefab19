//! The choice of a device when a program runs, in the one place that matches over backends. A program
//! that knows its device when it is compiled uses [`Model`] and [`Session`] of that backend instead.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::config::ModelConfig;
use crate::cpu::{Cpu, CpuOptions, KvDtype};
#[cfg(feature = "cuda")]
use crate::cuda::Cuda;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::session::{CancelFlag, Overflow, Session, SessionStats};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// Where a model is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor: the same bits everywhere, at once there, and in nobody's way.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number, as the driver counts.
    Cuda(usize),
    /// The first GPU if there is one that can run the model, else the processor.
    Auto,
}

impl FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda` (which is `cuda:0`), `cuda:N` or `auto`.
    fn from_str(text: &str) -> Result<Device> {
        let number =
            |n: &str| n.parse::<u16>().ok().filter(|_| n.bytes().all(|b| b.is_ascii_digit()));
        match text {
            "cpu" => return Ok(Device::Cpu),
            "cuda" => return Ok(Device::Cuda(0)),
            "auto" => return Ok(Device::Auto),
            _ => {}
        }
        match text.strip_prefix("cuda:").and_then(number) {
            Some(index) => Ok(Device::Cuda(usize::from(index))),
            None => Err(Error::Argument {
                name: "device",
                found: format!("{text:?}"),
                expected: "cpu, cuda, cuda:N or auto".to_owned(),
            }),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
            Device::Auto => f.write_str("auto"),
        }
    }
}

/// A [`Model`] on a device that was chosen when the program ran.
#[derive(Clone)]
#[allow(missing_docs)]
pub enum AnyModel {
    Cpu(Arc<Model<Cpu>>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<Model<Cuda>>),
}

/// A [`Session`] of an [`AnyModel`].
#[allow(missing_docs)]
// One of them is as good as the other, and a session is large anyway.
#[allow(clippy::large_enum_variant)]
pub enum AnySession {
    Cpu(Session<Cpu>),
    #[cfg(feature = "cuda")]
    Cuda(Session<Cuda>),
}

/// Does the same with an [`AnyModel`] or [`AnySession`], whatever its device:
/// `on_device!(AnySession, session, s => generate(s, ..))`.
#[cfg(feature = "cuda")]
#[macro_export]
macro_rules! on_device {
    ($any:ident, $value:expr, $name:ident => $body:expr) => {
        match $value {
            $crate::device::$any::Cpu($name) => $body,
            $crate::device::$any::Cuda($name) => $body,
        }
    };
}

/// Does the same with an [`AnyModel`] or [`AnySession`], whatever its device:
/// `on_device!(AnySession, session, s => generate(s, ..))`.
#[cfg(not(feature = "cuda"))]
#[macro_export]
macro_rules! on_device {
    ($any:ident, $value:expr, $name:ident => $body:expr) => {
        match $value {
            $crate::device::$any::Cpu($name) => $body,
        }
    };
}

impl AnyModel {
    /// Brings checked weights to a device. [`Device::Auto`] goes on with the processor when anything is
    /// in the GPU's way, too little memory included; [`AnyModel::describe`] tells where it ended.
    ///
    /// # Errors
    /// As [`Model::load`]; [`Error::NoDevice`] for a GPU that is not there, or in a build without CUDA.
    pub fn load(device: Device, weights: &Weights) -> Result<AnyModel> {
        AnyModel::load_with(device, CpuOptions::default(), weights)
    }

    /// The same with options for the processor. Threads and `fast` are for it alone, so on a GPU they mean
    /// nothing; keys and values are f32 there, and another storage of them keeps [`Device::Auto`] on the
    /// processor.
    ///
    /// # Errors
    /// As [`AnyModel::load`]; [`Error::Argument`] for too many threads, or for keys and values on a GPU that
    /// are not f32.
    pub fn load_with(device: Device, options: CpuOptions, weights: &Weights) -> Result<AnyModel> {
        let cpu = Cpu::with_options(options)?;
        let on_cpu = || Ok(AnyModel::Cpu(Arc::new(Model::load(cpu, weights)?)));
        let f32_kv = options.kv_dtype == KvDtype::F32;
        match device {
            Device::Cpu => on_cpu(),
            Device::Auto if !f32_kv => on_cpu(),
            Device::Auto => AnyModel::load_cuda(0, weights).or_else(|_| on_cpu()),
            Device::Cuda(_) if !f32_kv => Err(Error::Argument {
                name: "kv_dtype",
                found: options.kv_dtype.name().to_owned(),
                expected: "f32 on a GPU".to_owned(),
            }),
            Device::Cuda(index) => AnyModel::load_cuda(index, weights),
        }
    }

    #[cfg(feature = "cuda")]
    fn load_cuda(index: usize, weights: &Weights) -> Result<AnyModel> {
        let model = Model::load(Cuda::new(index)?, weights)?;
        // Sooner rather than with the first session.
        model.give_activations(model.take_activations()?);
        Ok(AnyModel::Cuda(Arc::new(model)))
    }

    #[cfg(not(feature = "cuda"))]
    fn load_cuda(index: usize, _weights: &Weights) -> Result<AnyModel> {
        Err(Error::NoDevice {
            device: Device::Cuda(index).to_string(),
            found: "a build without CUDA".to_owned(),
            expected: "cpu, or a build with the feature cuda".to_owned(),
        })
    }

    /// Shape and kind of the model.
    pub fn config(&self) -> &ModelConfig {
        on_device!(AnyModel, self, m => m.config())
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        on_device!(AnyModel, self, m => m.tokenizer())
    }

    /// The file's metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        on_device!(AnyModel, self, m => m.metadata())
    }

    /// Number of parameters.
    pub fn n_params(&self) -> usize {
        on_device!(AnyModel, self, m => m.n_params())
    }

    /// Bytes of the weights as they are stored.
    pub fn n_bytes(&self) -> usize {
        on_device!(AnyModel, self, m => m.n_bytes())
    }

    /// The device in words.
    pub fn describe(&self) -> String {
        use crate::backend::Backend;
        on_device!(AnyModel, self, m => m.backend().describe())
    }

    /// As [`Model::check_tokens`].
    ///
    /// # Errors
    /// As there.
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        on_device!(AnyModel, self, m => m.check_tokens(tokens))
    }
}

impl AnySession {
    /// As [`Session::new`].
    ///
    /// # Errors
    /// As there.
    pub fn new(model: &AnyModel, overflow: Overflow) -> Result<AnySession> {
        match model {
            AnyModel::Cpu(model) => Session::new(model, overflow).map(AnySession::Cpu),
            #[cfg(feature = "cuda")]
            AnyModel::Cuda(model) => Session::new(model, overflow).map(AnySession::Cuda),
        }
    }

    /// As [`Session::fork`].
    ///
    /// # Errors
    /// As there.
    pub fn fork(&self) -> Result<AnySession> {
        match self {
            AnySession::Cpu(session) => session.fork().map(AnySession::Cpu),
            #[cfg(feature = "cuda")]
            AnySession::Cuda(session) => session.fork().map(AnySession::Cuda),
        }
    }
}

/// Methods of [`Session`] that are the same here.
macro_rules! same_as_session {
    ($($(#[$meta:meta])* $name:ident($($self:ident)+ $(; $arg:ident: $type:ty)*) -> $result:ty;)*) => {
        impl AnySession {
            $(
                #[doc = concat!("As [`Session::", stringify!($name), "`].")]
                $(#[$meta])*
                pub fn $name(&$($self)+ $(, $arg: $type)*) -> $result {
                    same_as_session!(@call $name, $($self)+ $(, $arg)*)
                }
            )*
        }
    };
    (@call $name:ident, mut $self:ident $(, $arg:ident)*) => {
        on_device!(AnySession, $self, s => s.$name($($arg),*))
    };
    (@call $name:ident, $self:ident $(, $arg:ident)*) => {
        on_device!(AnySession, $self, s => s.$name($($arg),*))
    };
}

same_as_session! {
    #[allow(clippy::missing_errors_doc)]
    prefill(mut self; tokens: &[u32]) -> Result<&[f32]>;
    #[allow(clippy::missing_errors_doc)]
    decode(mut self; token: u32) -> Result<&[f32]>;
    #[allow(clippy::missing_errors_doc)]
    truncate(mut self; n_tokens: usize) -> Result<()>;
    #[allow(clippy::missing_errors_doc)]
    reserve(mut self; n_tokens: usize) -> Result<()>;
    reset(mut self) -> ();
    logits(self) -> &[f32];
    hidden(self) -> &[f32];
    n_tokens(self) -> usize;
    room(self) -> Option<usize>;
    cancel_flag(self) -> &CancelFlag;
    stats(self) -> SessionStats;
    kv_bytes(self) -> (usize, usize);
    saved_len(self) -> usize;
    #[allow(clippy::missing_errors_doc)]
    save(self) -> Result<Vec<u8>>;
    #[allow(clippy::missing_errors_doc)]
    save_file(self; path: &Path) -> Result<()>;
    #[allow(clippy::missing_errors_doc)]
    restore(mut self; bytes: &[u8]) -> Result<()>;
    #[allow(clippy::missing_errors_doc)]
    restore_file(mut self; path: &Path) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("auto", Device::Auto),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:12", Device::Cuda(12)),
        ] {
            assert_eq!(text.parse::<Device>().expect("a device"), device);
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse::<Device>().expect("a device"), Device::Cuda(0));
        for wrong in
            ["", "gpu", "cuda:", "cuda:x", "cuda:+1", "cuda:-1", "cuda:65536", "CPU", "cuda:1 "]
        {
            let message = wrong.parse::<Device>().expect_err("no device").to_string();
            assert_eq!(
                message,
                format!("device: found {wrong:?}, expected cpu, cuda, cuda:N or auto")
            );
        }
    }
}
