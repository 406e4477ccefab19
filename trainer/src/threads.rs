//! How many CPU threads libtorch uses, how they wait for each other, and what else it reads from the
//! environment.
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
use std::time::{Duration, Instant};

/// What libtorch is told, unless one of the variables is set already.
const SETTINGS: &[(&[&str], &str)] = &[
    // Rounds that a waiting thread spins before it sleeps: a fraction of a millisecond, more than the
    // pauses between the regions of a step. GNU OpenMP's default is 300000.
    (&["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"], "10000"),
    // Products of f32 matrices on tensor cores, which round their operands to 10 bits (TF32). tch has
    // no other way to ask for it.
    (&["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"], "1"),
];

/// Starts the program again, in the same process and with the same arguments, with the settings that
/// libtorch should find in its environment. Returns where they are there, or it is not possible.
pub fn set_environment() {
    let is_set = |name: &&str| std::env::var_os(name).is_some();
    let missing = || SETTINGS.iter().filter(|(names, _)| !names.iter().any(is_set));
    if missing().next().is_none() {
        return;
    }
    #[cfg(target_os = "linux")]
    if let Ok(program) = std::env::current_exe() {
        use std::os::unix::process::CommandExt;
        // Returns only if it fails, and then this process trains, at worst more slowly.
        let _ = Command::new(program)
            .args(std::env::args_os().skip(1))
            .envs(missing().map(|(names, value)| (names[0], value)))
            .exec();
    }
}

/// Sets the number of threads, from all down to one by halves, to the one with which `work` is done
/// soonest, and returns it. More are not always better: threads must meet after each operation, which
/// small models, and processors that another program uses, make dearer than it is worth.
pub fn choose(mut work: impl FnMut()) -> i32 {
    let all = tch::get_num_threads().max(1);
    // The first time pays for memory that later ones reuse.
    work();
    let mut best = (Duration::MAX, all);
    let mut n = all;
    loop {
        tch::set_num_threads(n);
        let times = [(); 2].map(|()| {
            let started = Instant::now();
            work();
            started.elapsed()
        });
        best = best.min((times[0].min(times[1]), n));
        if n == 1 {
            break;
        }
        n /= 2;
    }
    tch::set_num_threads(best.1);
    best.1
}
