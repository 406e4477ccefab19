//! Keeps libtorch's CPU threads from fighting with other programs.
//!
//! A step consists of thousands of short parallel regions. GNU OpenMP, which libtorch uses, lets a
//! thread that waits for the others at the end of a region spin for milliseconds. That is fine on an
//! idle machine; where another program wants the same processors, the spinning threads take the time
//! that those they wait for would need: with one busy program beside it on two cores, a step was
//! measured to take three to five times as long as with a short spin.
//!
//! The library reads its settings from the environment when it is loaded, which is before `main`, so
//! the only way to give it one is to start the program again with it.

#[cfg(target_os = "linux")]
use std::process::Command;

/// Rounds that a waiting thread spins before it sleeps: a fraction of a millisecond, more than the
/// pauses between the regions of a step. GNU OpenMP's default is 300000.
const SPIN_COUNT: &str = "10000";

/// Variables by which a user has already decided how threads wait.
const DECIDED: [&str; 2] = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"];

/// Starts the program again, in the same process and with the same arguments, so that waiting
/// threads soon sleep. Returns where that is done, decided otherwise, or not possible.
pub fn wait_politely() {
    if DECIDED.iter().any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    #[cfg(target_os = "linux")]
    if let Ok(program) = std::env::current_exe() {
        use std::os::unix::process::CommandExt;
        // Returns only if it fails, and then this process trains, at worst more slowly.
        let _ = Command::new(program)
            .args(std::env::args_os().skip(1))
            .env(DECIDED[0], SPIN_COUNT)
            .exec();
    }
}
