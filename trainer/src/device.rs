//! The device that trains.

use tch::{Cuda, Device};

use crate::error::{Error, Result};

/// The device called `name`: `auto` (CUDA where there is a GPU, else the CPU), `cpu`, `cuda` or
/// `cuda:N`.
///
/// # Errors
/// Another name, or a GPU that is not there.
pub fn device(name: &str) -> Result<Device> {
    let n_gpus = if Cuda::is_available() { Cuda::device_count().max(0) as usize } else { 0 };
    let lower = name.trim().to_ascii_lowercase();
    let gpu = match lower.as_str() {
        "auto" => return Ok(if n_gpus > 0 { Device::Cuda(0) } else { Device::Cpu }),
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        other => other.strip_prefix("cuda:").and_then(|n| n.parse().ok()).ok_or_else(|| {
            Error::Setup(format!("device: found {name:?}, expected auto, cpu, cuda or cuda:N"))
        })?,
    };
    if gpu < n_gpus {
        return Ok(Device::Cuda(gpu));
    }
    let found = match n_gpus {
        0 => "libtorch finds no CUDA GPU on this machine".to_owned(),
        1 => "there is one GPU, cuda:0".to_owned(),
        n => format!("there are {n} GPUs, cuda:0 to cuda:{}", n - 1),
    };
    Err(Error::Setup(format!("device {name} was asked for, but {found}")))
}

/// The name of a device as a user writes it.
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(n) => format!("cuda:{n}"),
        Device::Cpu => "cpu".to_owned(),
        Device::Mps => "mps".to_owned(),
        Device::Vulkan => "vulkan".to_owned(),
    }
}
