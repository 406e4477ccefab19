//! How many CPU threads libtorch uses, and how they wait for each other.
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
