//! Threads that share the work of one operation.
//!
//! An operation of a decode step takes microseconds, so its parts cannot be handed to threads that sleep.
//! Those of a [`Pool`] look for work for [`SPIN`] after the last one and then sleep until there is more: a
//! program that generates text finds them awake, one that does not pays nothing. Nobody ever waits for a
//! thread that has not begun: whoever asked for the work does its own part, then every part that is still
//! untouched, and waits only for those under way. On a machine whose cores are busy with other programs the
//! work therefore goes on at the speed of one thread.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, TryLockError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread looks for work before it sleeps.
pub const SPIN: Duration = Duration::from_micros(60);

/// How long one waits for a part under way before letting other programs run in between.
const PATIENCE: u32 = 2000;

/// The threads of one model.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the thread whose work the pool does.
    busy: Mutex<()>,
}

/// A job's parts by their numbers, or the share of each thread by its own.
type Job<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    /// Number of the newest job.
    epoch: Line<AtomicUsize>,
    /// What it is. Written before `epoch` and only while no part is under way.
    job: UnsafeCell<Option<Job<'static>>>,
    /// One for each thread, the first for whoever asks.
    parts: Box<[Line<Part>]>,
    stop: AtomicBool,
    panicked: AtomicBool,
}

// SAFETY: all but `job` may be shared anyway; a thread reads `job` only after it has claimed a part of it,
// and it is not written before that part is done.
unsafe impl Sync for Shared {}
// SAFETY: a job is a reference to what may be used by several threads.
unsafe impl Send for Shared {}

/// Lies on cache lines of its own, of which some processors fetch two at a time.
#[repr(align(128))]
struct Line<T>(T);

/// One part of every job, and the thread that is meant for it.
#[derive(Default)]
struct Part {
    /// The newest job whose part somebody has begun.
    claimed: AtomicUsize,
    /// The newest job whose part is done.
    done: AtomicUsize,
    sleeping: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Pool {
    /// Starts `threads` - 1 threads; fewer if the system gives no more.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            epoch: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            parts: (0..threads.max(1)).map(|_| Line(Part::default())).collect(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        });
        let start = |i| {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name(format!("teeny-{i}"));
            thread.spawn(move || shared.work(i)).ok()
        };
        let workers = (1..threads).map_while(start).collect();
        Pool { shared, workers, busy: Mutex::new(()) }
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job` once with each number below `parts` and the number of the thread that does it, on as many
    /// threads as there are, and returns when all calls have. Up to as many parts as threads, each thread
    /// finds the same part again in the next job, and with it the same weights in its caches; more parts go
    /// to whoever is free. Another thread's work, if the pool is at it, goes on undisturbed: the caller then
    /// does all of its own.
    pub fn run(&self, parts: usize, job: &(dyn Fn(usize, usize) + Sync)) {
        let threads = parts.min(self.threads());
        let busy = match self.busy.try_lock() {
            _ if threads < 2 => None,
            Ok(guard) => Some(guard),
            // A job that panicked was over before the panic went on.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if busy.is_none() {
            return (0..parts).for_each(|part| job(part, 0));
        }
        if parts == threads {
            return self.shared.run(threads, &|thread| job(thread, thread));
        }
        let next = AtomicUsize::new(0);
        self.shared.run(threads, &|thread| {
            loop {
                let part = next.fetch_add(1, Ordering::Relaxed);
                if part >= parts {
                    return;
                }
                job(part, thread);
            }
        });
    }
}

impl Shared {
    /// Part 0 here, the others wherever they are begun first. The caller has the pool to itself.
    fn run(&self, n: usize, job: Job<'_>) {
        let epoch = self.epoch.0.load(Ordering::Relaxed).wrapping_add(1);
        // SAFETY: only its lifetime changes. Nobody uses it after this function, which waits for
        // every part that was begun; and no part is under way now, so nobody reads it.
        unsafe { *self.job.get() = Some(std::mem::transmute::<Job<'_>, Job<'static>>(job)) };
        for part in &self.parts[n..] {
            part.0.claimed.store(epoch, Ordering::Relaxed);
        }
        // With the loads of `sleeping` and `epoch` in one order: no thread falls asleep unseen.
        self.epoch.0.store(epoch, Ordering::SeqCst);
        for part in &self.parts[1..n] {
            if part.0.sleeping.load(Ordering::SeqCst)
                && let Some(thread) = part.0.thread.get()
            {
                thread.unpark();
            }
        }
        let mut result = catch_unwind(AssertUnwindSafe(|| job(0)));
        for (i, part) in self.parts.iter().enumerate().take(n).skip(1) {
            if part.0.claim(epoch) {
                let other = catch_unwind(AssertUnwindSafe(|| job(i)));
                result = result.and(other);
                part.0.done.store(epoch, Ordering::Relaxed);
            }
        }
        for part in &self.parts[1..n] {
            part.0.wait(epoch);
        }
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        assert!(
            !self.panicked.swap(false, Ordering::Relaxed),
            "a part of an operation has panicked"
        );
    }

    /// What thread `i` does all its life.
    fn work(&self, i: usize) {
        let part = &self.parts[i].0;
        // Nobody else sets it.
        let _ = part.thread.set(thread::current());
        let mut seen = 0;
        loop {
            seen = self.next(part, seen);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if !part.claim(seen) {
                continue;
            }
            // SAFETY: the part is claimed and not done, so the job is this one and stays.
            let job = unsafe { *self.job.get() };
            let run = || job.into_iter().for_each(|job| job(i));
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            part.done.store(seen, Ordering::Release);
        }
    }

    /// Waits for a job other than `seen`, or the end, and returns its number.
    fn next(&self, part: &Part, seen: usize) -> usize {
        let mut since = None;
        loop {
            for _ in 0..64 {
                let epoch = self.epoch.0.load(Ordering::Acquire);
                if epoch != seen {
                    return epoch;
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            if now.duration_since(*since.get_or_insert(now)) < SPIN {
                continue;
            }
            part.sleeping.store(true, Ordering::SeqCst);
            while self.epoch.0.load(Ordering::SeqCst) == seen {
                thread::park();
            }
            part.sleeping.store(false, Ordering::Relaxed);
        }
    }
}

impl Part {
    /// Takes the part of a job, unless somebody else has it or it is over.
    fn claim(&self, epoch: usize) -> bool {
        let before = epoch.wrapping_sub(1);
        self.claimed.compare_exchange(before, epoch, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Waits until the part of a job is done.
    fn wait(&self, epoch: usize) {
        let mut turns = 0u32;
        while self.done.load(Ordering::Acquire) != epoch {
            turns = turns.saturating_add(1);
            if turns < PATIENCE {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // It catches every panic.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the calls for each number.
    fn counted(pool: &Pool, parts: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
        pool.run(parts, &|i, thread| {
            assert!(thread < pool.threads());
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_part_is_done_once() {
        for threads in [0, 1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for round in 0..2000 {
                let parts = round % 20;
                assert_eq!(counted(&pool, parts), vec![1; parts], "{threads} threads");
            }
            // Asleep by then.
            thread::sleep(2 * SPIN);
            assert_eq!(counted(&pool, 5), [1; 5]);
        }
    }

    #[test]
    fn one_pool_serves_many_threads() {
        let pool = Pool::new(3);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| assert_eq!(counted(&pool, 7), [1; 7])));
            }
        });
    }

    #[test]
    fn a_job_may_use_the_pool_itself() {
        let pool = Pool::new(2);
        let count = AtomicUsize::new(0);
        pool.run(2, &|_, _| {
            pool.run(3, &|_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            })
        });
        assert_eq!(count.into_inner(), 6);
    }

    #[test]
    fn a_panic_comes_out_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for wrong in 0..3 {
            let run = || pool.run(3, &|i, _| assert_ne!(i, wrong, "wanted"));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "part {wrong}");
            assert_eq!(counted(&pool, 6), [1; 6]);
        }
    }

    #[test]
    fn idle_threads_use_no_time() {
        let pool = Pool::new(2);
        counted(&pool, 2);
        thread::sleep(10 * SPIN);
        let sleeping = || pool.shared.parts[1].0.sleeping.load(Ordering::SeqCst);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !sleeping() {
            assert!(Instant::now() < deadline, "still looking for work");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
