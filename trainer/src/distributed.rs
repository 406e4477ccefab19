//! Several processes that train one model: who they are, and the sums between them.
//!
//! By torch's own c10d (compiled in `shim/distributed.cpp`): the processes find each other through
//! its store over TCP, and reduce by NCCL where their tensors are on GPUs, one each, and by Gloo
//! where they are on the CPU. Both are inside libtorch.
//!
//! Any launcher that says who is who by environment variables will do:
//!
//! ```text
//! torchrun --no-python --nproc-per-node 2 teeny-train ...
//! mpirun -n 2 teeny-train ...
//! ```
//!
//! Gloo listens where the machine's host name leads; `GLOO_SOCKET_IFNAME` and `NCCL_SOCKET_IFNAME`
//! name other network interfaces, as they do for PyTorch.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tch::{Device, Kind, Tensor};

use crate::shim::check;
use crate::{Error, Result};

/// The place of this process among those that train together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of this process among those on the same machine: the GPU to use.
    pub local_rank: usize,
    /// How many processes there are, at least 2.
    pub size: usize,
    /// The machine on which they find each other.
    pub master_addr: String,
    /// The port there.
    pub master_port: u16,
    /// Whether the launcher holds the store at that port, as torchrun does; else rank 0 does.
    pub launcher_has_store: bool,
}

/// Variables of torchrun and of all launchers that follow it.
const TORCHRUN: [&str; 3] = ["RANK", "LOCAL_RANK", "WORLD_SIZE"];
/// Variables of Open MPI's mpirun.
const OPEN_MPI: [&str; 3] =
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"];

impl World {
    /// Reads `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`, as torchrun sets
    /// them; or `OMPI_COMM_WORLD_RANK`, `_LOCAL_RANK` and `_SIZE` of mpirun, where the master is
    /// 127.0.0.1:29500 unless the same two variables say otherwise. `None` where no launcher has
    /// set anything, and where there is only one process.
    ///
    /// # Errors
    /// [`Error::Setup`] that names the variable, what was found and what is expected.
    pub fn from_env() -> Result<Option<World>> {
        World::from_vars(|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()))
    }

    /// [`World::from_env`] over any source of variables.
    ///
    /// # Errors
    /// As there.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Option<World>> {
        let torchrun = var("RANK").is_some() || var("WORLD_SIZE").is_some();
        if !torchrun && OPEN_MPI.iter().all(|name| var(name).is_none()) {
            return Ok(None);
        }
        let names = if torchrun { TORCHRUN } else { OPEN_MPI };
        let [rank, local_rank, size] = names;
        let size = number(&var, size, 1, i32::MAX as usize)?;
        let rank = number(&var, rank, 0, size - 1)?;
        let local_rank = number(&var, local_rank, 0, size - 1)?;
        if size == 1 {
            return Ok(None);
        }
        let master_addr = match var("MASTER_ADDR").filter(|addr| !addr.is_empty()) {
            Some(addr) => addr,
            None if torchrun => return Err(missing("MASTER_ADDR", "the address of rank 0")),
            None => {
                let here = match var("OMPI_COMM_WORLD_LOCAL_SIZE") {
                    Some(_) => number(&var, "OMPI_COMM_WORLD_LOCAL_SIZE", 1, size)?,
                    None => size,
                };
                if here < size {
                    return Err(missing(
                        "MASTER_ADDR",
                        "the address of the machine of rank 0, \
                        since not all processes are on one machine",
                    ));
                }
                "127.0.0.1".to_owned()
            }
        };
        let master_port = match var("MASTER_PORT") {
            None if !torchrun => 29500,
            _ => number(&var, "MASTER_PORT", 1, usize::from(u16::MAX))? as u16,
        };
        let launcher_has_store =
            torchrun && var("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True");
        Ok(Some(World { rank, local_rank, size, master_addr, master_port, launcher_has_store }))
    }
}

/// The variable as a number from `least` to `most`.
fn number(
    var: &impl Fn(&str) -> Option<String>,
    name: &str,
    least: usize,
    most: usize,
) -> Result<usize> {
    let expected = if most >= i32::MAX as usize {
        format!("a whole number from {least} on")
    } else {
        format!("a whole number from {least} to {most}")
    };
    let Some(text) = var(name) else {
        return Err(missing(name, &expected));
    };
    match text.trim().parse() {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        Ok(_) | Err(_) => Err(Error::Setup(format!(
            "environment variable {name} is {text:?}; expected: {expected}"
        ))),
    }
}

fn missing(name: &str, expected: &str) -> Error {
    Error::Setup(format!(
        "environment variable {name} is not set, though others say that this is one of several \
         processes; expected: {expected}"
    ))
}

// shim/shim.h, the same in C.
#[repr(C)]
struct RawGroup {
    _private: [u8; 0],
}

#[repr(C)]
struct RawOptions {
    host: *const c_char,
    port: u16,
    prefix: *const c_char,
    serve: i32,
    rank: i32,
    size: i32,
    device: i32,
    timeout_ms: i64,
}

unsafe extern "C" {
    fn teeny_group_connect(options: *const RawOptions, out: *mut *mut RawGroup) -> *mut c_char;
    fn teeny_group_all_reduce(group: *mut RawGroup, tensor: *mut c_void) -> *mut c_char;
    fn teeny_group_broadcast(group: *mut RawGroup, tensor: *mut c_void, root: i32) -> *mut c_char;
    fn teeny_group_barrier(group: *mut RawGroup) -> *mut c_char;
    fn teeny_group_free(group: *mut RawGroup);
}

/// The longest timeout: c10d adds it to a clock that counts nanoseconds.
const MONTH_MS: i64 = 30 * 24 * 3600 * 1000;

/// Counts the groups of this process: processes connect in the same order, so the same number
/// means the same group in a store that outlives one.
static GROUPS: AtomicU32 = AtomicU32::new(0);

/// The processes, connected. All of them call the same operations in the same order on tensors of
/// the same shape; an operation then ends alike in each, or fails.
#[derive(Debug)]
pub struct ProcessGroup {
    raw: *mut RawGroup,
    rank: usize,
    size: usize,
    device: Device,
}

impl ProcessGroup {
    /// Connects to the others: by NCCL where `device` is a GPU, which must be another one in each
    /// process of a machine, else by Gloo. Returns when all have come. `timeout` is how long to
    /// wait for the others, here and in each operation.
    ///
    /// # Errors
    /// [`Error::Setup`] where the others cannot be reached or do not all come in time, with the
    /// ranks that are missing; and where the device's backend is not in this build.
    pub fn connect(world: &World, device: Device, timeout: Duration) -> Result<ProcessGroup> {
        let World { rank, size, master_addr, master_port, .. } = world;
        let fail = |reason: &str| {
            Error::Setup(format!(
                "cannot join the other processes as rank {rank} of {size} through \
                 {master_addr}:{master_port}: {reason}"
            ))
        };
        let index = match device {
            Device::Cpu => -1,
            Device::Cuda(index) => {
                i32::try_from(index).map_err(|_| fail(&format!("no GPU {index}")))?
            }
            Device::Mps | Device::Vulkan => {
                return Err(fail(&format!("{device:?} has no process groups: use a CPU or CUDA")));
            }
        };
        let group = GROUPS.fetch_add(1, Ordering::Relaxed);
        // torchrun may start all processes anew after a failure, over the same store.
        let attempt = std::env::var("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
        let prefix = CString::new(format!("teeny/{attempt}/{group}"))
            .map_err(|_| fail("TORCHELASTIC_RESTART_COUNT holds a NUL"))?;
        let host =
            CString::new(master_addr.as_str()).map_err(|_| fail("the address holds a NUL"))?;
        let narrow = |value: usize| i32::try_from(value).map_err(|_| fail("a number is too large"));
        let options = RawOptions {
            host: host.as_ptr(),
            port: *master_port,
            prefix: prefix.as_ptr(),
            serve: i32::from(*rank == 0 && !world.launcher_has_store),
            rank: narrow(*rank)?,
            size: narrow(*size)?,
            device: index,
            timeout_ms: i64::try_from(timeout.as_millis()).unwrap_or(MONTH_MS).clamp(1, MONTH_MS),
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the options and their strings outlive the call; `raw` is set where it succeeds.
        unsafe { check(teeny_group_connect(&options, &raw mut raw)) }.map_err(|reason| {
            let taken = reason.contains("EADDRINUSE");
            fail(&format!(
                "{reason}{}",
                if taken { " (MASTER_PORT chooses another port)" } else { "" }
            ))
        })?;
        let group = ProcessGroup { raw, rank: *rank, size: *size, device };
        // NCCL connects at its first operation: better here than in the middle of a step, or of
        // the recording of one. And whoever leaves early takes the store with it.
        group.barrier()?;
        Ok(group)
    }

    /// Replaces the tensor, in every process, by the mean of all processes' tensors, the same bits
    /// in each. On a GPU this only enqueues.
    ///
    /// # Errors
    /// [`Error::Setup`] for a tensor that is not contiguous, of floating point and on the group's
    /// device, and where a process is gone or late.
    pub fn all_reduce_mean(&self, tensor: &mut Tensor) -> Result<()> {
        self.check("average", tensor)?;
        let kind = tensor.kind();
        if !matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
            return Err(self.error("average a tensor", &format!("it holds {kind:?}, not floats")));
        }
        // SAFETY: the group lives until drop; the tensor is defined and outlives the call, since
        // c10d holds a reference of its own for as long as it needs it.
        unsafe { check(teeny_group_all_reduce(self.raw, tensor.as_mut_ptr().cast())) }
            .map_err(|reason| self.error("average a tensor", &reason))?;
        let size = self.size as f64;
        tch::no_grad(|| tensor.f_div_scalar_(size).map(drop))
            .map_err(|error| self.error("average a tensor", &error.to_string()))
    }

    /// Replaces the tensor, in every process, by that of process `root`.
    ///
    /// # Errors
    /// [`Error::Setup`] for a tensor that is not contiguous and on the group's device, a `root`
    /// that is no rank, and where a process is gone or late.
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<()> {
        self.check("send", tensor)?;
        if root >= self.size {
            let reason = format!("the sender is rank {root}; the last one is {}", self.size - 1);
            return Err(self.error("send a tensor", &reason));
        }
        // SAFETY: as in `all_reduce_mean`; `root` is below `size`, which fits an i32.
        unsafe { check(teeny_group_broadcast(self.raw, tensor.as_mut_ptr().cast(), root as i32)) }
            .map_err(|reason| self.error("send a tensor", &reason))
    }

    /// Returns when all processes have called this.
    ///
    /// # Errors
    /// [`Error::Setup`] where a process is gone or late.
    pub fn barrier(&self) -> Result<()> {
        // SAFETY: the group lives until drop.
        unsafe { check(teeny_group_barrier(self.raw)) }
            .map_err(|reason| self.error("wait for the others", &reason))
    }

    /// What c10d would answer with undefined behaviour, a hang, or an obscure message.
    fn check(&self, verb: &str, tensor: &Tensor) -> Result<()> {
        let what = format!("{verb} a tensor");
        if !tensor.defined() {
            return Err(self.error(&what, "it is undefined"));
        }
        if tensor.device() != self.device {
            let reason =
                format!("it is on {:?}; the group is on {:?}", tensor.device(), self.device);
            return Err(self.error(&what, &reason));
        }
        if tensor.is_sparse() || !tensor.is_contiguous() {
            return Err(self.error(&what, "it is not contiguous"));
        }
        Ok(())
    }

    fn error(&self, what: &str, reason: &str) -> Error {
        Error::Setup(format!(
            "rank {} of {} processes cannot {what}: {reason}",
            self.rank, self.size
        ))
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: `raw` came from teeny_group_connect, and is freed only here.
        unsafe { teeny_group_free(self.raw) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(vars: &[(&str, &str)]) -> Result<Option<World>> {
        World::from_vars(|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    const TWO: [(&str, &str); 5] = [
        ("RANK", "1"),
        ("LOCAL_RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("MASTER_ADDR", "10.0.0.7"),
        ("MASTER_PORT", "1234"),
    ];

    fn with(name: &str, value: Option<&str>) -> Result<Option<World>> {
        let mut vars: Vec<_> = TWO.iter().copied().filter(|(key, _)| *key != name).collect();
        vars.extend(value.map(|value| (name, value)));
        world(&vars)
    }

    #[test]
    fn worlds_of_torchrun_and_mpirun() {
        let expected = World {
            rank: 1,
            local_rank: 1,
            size: 2,
            master_addr: "10.0.0.7".to_owned(),
            master_port: 1234,
            launcher_has_store: false,
        };
        assert_eq!(world(&TWO).ok().flatten(), Some(expected.clone()));
        assert_eq!(
            with("TORCHELASTIC_USE_AGENT_STORE", Some("True")).ok().flatten(),
            Some(World { launcher_has_store: true, ..expected.clone() })
        );
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
        ];
        let local = World {
            rank: 3,
            size: 4,
            master_addr: "127.0.0.1".to_owned(),
            master_port: 29500,
            ..expected.clone()
        };
        assert_eq!(world(&mpi).ok().flatten(), Some(local.clone()));
        let mut far = mpi.to_vec();
        far.extend([("MASTER_ADDR", "node0"), ("MASTER_PORT", "7"), TWO[3], TWO[4]]);
        let far = world(&far).ok().flatten();
        assert_eq!(far, Some(World { master_addr: "node0".to_owned(), master_port: 7, ..local }));
        // torchrun within mpirun: torchrun is the nearer one.
        let both: Vec<_> = mpi.into_iter().chain(TWO).collect();
        assert_eq!(world(&both).ok().flatten(), Some(expected));
    }

    #[test]
    fn one_process_is_no_world() {
        assert_eq!(world(&[]).ok(), Some(None));
        assert_eq!(world(&[("MASTER_ADDR", "x"), ("LOCAL_RANK", "0")]).ok(), Some(None));
        let one = [("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")];
        assert_eq!(world(&one).ok(), Some(None));
    }

    #[test]
    fn wrong_variables_are_named_with_what_was_found_and_expected() {
        let range = "a whole number from 0 to 1";
        for (name, value, expected) in [
            ("RANK", None, range),
            ("RANK", Some("2"), range),
            ("RANK", Some("-1"), range),
            ("RANK", Some(""), range),
            ("LOCAL_RANK", None, range),
            ("LOCAL_RANK", Some("2"), range),
            ("WORLD_SIZE", None, "a whole number from 1 on"),
            ("WORLD_SIZE", Some("0"), "a whole number from 1 on"),
            ("WORLD_SIZE", Some("two"), "a whole number from 1 on"),
            ("WORLD_SIZE", Some("99999999999999999999"), "a whole number from 1 on"),
            ("MASTER_ADDR", None, "the address of rank 0"),
            ("MASTER_ADDR", Some(""), "the address of rank 0"),
            ("MASTER_PORT", None, "a whole number from 1 to 65535"),
            ("MASTER_PORT", Some("0"), "a whole number from 1 to 65535"),
            ("MASTER_PORT", Some("65536"), "a whole number from 1 to 65535"),
        ] {
            let message = with(name, value).err().map(|e| e.to_string()).unwrap_or_default();
            let found = match value {
                Some(value) if !value.is_empty() || name != "MASTER_ADDR" => {
                    format!("environment variable {name} is {value:?}")
                }
                Some(_) | None => format!("environment variable {name} is not set"),
            };
            assert!(message.starts_with(&found), "{name}={value:?}: {message}");
            assert!(message.contains(expected), "{name}={value:?}: {message}");
        }
        let several_machines = [
            ("OMPI_COMM_WORLD_RANK", "0"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        let message = world(&several_machines).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("MASTER_ADDR is not set"), "{message}");
    }
}
