//! The threads of the kernels.
//!
//! A decode step is some hundred short phases that wait for each other, so that what counts is how fast a phase
//! starts and ends. The caller publishes a job with one atomic store and works on it itself. Workers that are awake
//! join by claiming a task, whoever comes late finds nothing to claim, and the caller waits only for claimed tasks:
//! a worker that sleeps or was descheduled holds nobody up.

#![allow(unsafe_code, reason = "one of the two homes of `unsafe`: a job on other threads borrows from the caller")]

mod parts;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::cell::UnsafeCell;
use std::io;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use parts::{Chunks, Items, Parts, PerThread, Ranges};

/// How long a worker looks for the next job before it sleeps: longer than the serial work between two phases, and
/// short enough to cost little after the last one.
const SPIN: Duration = Duration::from_micros(100);

/// Looks at memory for each look at the clock, each some 20 to 50 ns.
const LOOKS_PER_CLOCK: u32 = 32;

/// Looks at memory before a waiting thread makes way for others.
const LOOKS_PER_YIELD: u32 = 256;

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Threads that run the tasks of one job at a time, together with the caller.
///
/// Workers stay awake for a moment after each job, then sleep until the next one.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// What `Shared::finished` is between jobs.
    finished: usize,
}

/// As many threads as cores can be used: the physical cores, or fewer where affinity or a quota allows fewer.
pub fn default_threads() -> usize {
    usable_threads().min(num_cpus::get_physical()).max(1)
}

fn usable_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

impl Pool {
    /// A pool of `threads` threads, the caller of [`Pool::run`] being one of them.
    ///
    /// # Errors
    ///
    /// `threads` is zero, or the system refuses to start a thread.
    pub fn new(threads: usize) -> io::Result<Self> {
        Self::with_spin(threads, SPIN)
    }

    fn with_spin(threads: usize, spin: Duration) -> io::Result<Self> {
        if threads == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a pool has at least one thread"));
        }
        let mut pool = Self { shared: Arc::new(Shared::new(spin)), workers: Vec::new(), finished: 0 };
        for thread in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("braidinfer-{thread}"));
            pool.workers.push(builder.spawn(move || shared.serve(thread))?);
        }
        Ok(pool)
    }

    /// The number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(index, thread)` once for each index in `0..tasks`, and returns when all have ended.
    ///
    /// `thread` is less than [`Pool::threads`], and no two tasks run under the same one at a time; the caller is 0.
    /// Which thread runs a task differs from call to call. Taking a task costs some 50 ns: a task should take a
    /// microsecond, and there should be several for each thread, so that none waits long for the slowest.
    ///
    /// # Panics
    ///
    /// A panic of a task resumes here once no thread is in `task` any more, the first of several. The other tasks
    /// may or may not have run. The pool can be used again.
    pub fn run(&mut self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(|index| task(index, 0));
        }
        // Nothing from here to the end of the wait unwinds: workers may be in `task` until then.
        self.shared.publish(task, tasks);
        let done = self.shared.perform(task, 0, 0) + self.shared.work(0);
        self.finished = self.finished.wrapping_add(tasks - done);
        self.shared.wait_for_workers(self.finished);
        self.shared.resume_panic();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.ring();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of tasks, and has none of its own.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

/// What the threads of a pool share.
///
/// `unclaimed` both publishes a job and hands out its tasks. It is positive only while tasks of the current job are
/// unclaimed, and whoever takes it down from a positive value owns one task. The caller sets it again only after all
/// tasks of the previous job are finished, so that who owns a task may read the job and call its closure until it
/// counts the task in `finished`.
struct Shared {
    board: Padded<Board>,
    /// Tasks that workers have finished in all jobs so far, wrapping; the caller counts its own.
    finished: Padded<AtomicUsize>,
    bell: Padded<Bell>,
    panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    spin: Duration,
}

/// On cache lines of its own; two, since processors fetch them in pairs.
#[repr(align(128))]
struct Padded<T>(T);

/// The current job. Its counter is next to it, since who claims a task reads the job next.
struct Board {
    unclaimed: AtomicIsize,
    job: UnsafeCell<Option<Job>>,
}

#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    tasks: usize,
}

/// Where workers sleep.
struct Bell {
    /// Some worker may sleep. Set by workers and cleared by the caller, both under the lock.
    sleeping: AtomicBool,
    rings: Mutex<u64>,
    rung: Condvar,
}

// SAFETY: all fields but the job are `Send` and `Sync`. The job is written by the caller while no task is claimed,
// and read by owners of tasks; its closure is `Sync`, and is called only while `Pool::run` borrows it.
unsafe impl Send for Shared {}

// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(spin: Duration) -> Self {
        let bell = Bell { sleeping: AtomicBool::new(false), rings: Mutex::new(0), rung: Condvar::new() };
        Self {
            board: Padded(Board { unclaimed: AtomicIsize::new(0), job: UnsafeCell::new(None) }),
            finished: Padded(AtomicUsize::new(0)),
            bell: Padded(bell),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            spin,
        }
    }

    /// Makes all tasks but the first claimable: that one is the caller's.
    fn publish(&self, task: &Task<'_>, tasks: usize) {
        let claimable = isize::try_from(tasks - 1).expect("a job has at most isize::MAX tasks");
        // SAFETY: this changes only the lifetime. The closure is called only by owners of tasks, and `Pool::run`,
        // which borrows it, does not return before all of them have finished.
        let task = unsafe { std::mem::transmute::<&Task<'_>, &Task<'static>>(task) };
        // SAFETY: the caller is alone here (`Pool::run` takes `&mut self`), and no worker reads the job: all tasks of
        // the previous one are finished, which `wait_for_workers` saw with `Acquire`, and none of this is claimable.
        unsafe { *self.board.0.job.get() = Some(Job { task, tasks }) };
        // `Release` publishes the job and all that the caller wrote before; a claim is a read-modify-write, and so
        // continues the release sequence for the next claim. `SeqCst`, because either this thread sees that a worker
        // went to sleep, or that worker sees the tasks, see `sleep`.
        self.board.0.unclaimed.swap(claimable, Ordering::SeqCst);
        if self.bell.0.sleeping.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    /// Claims a task, and tells how many there were. `Acquire` pairs with the release in `publish`.
    fn claim(&self) -> Option<usize> {
        // A look first: it leaves the line with those who need it, and the counter never falls further below zero
        // than there are threads. A late thread may look at one job and claim from the next: the claim counts.
        if self.board.0.unclaimed.load(Ordering::Relaxed) <= 0 {
            return None;
        }
        usize::try_from(self.board.0.unclaimed.fetch_sub(1, Ordering::Acquire)).ok().filter(|&left| left > 0)
    }

    /// Runs tasks until none is unclaimed, and returns how many.
    fn work(&self, thread: usize) -> usize {
        let mut done = 0;
        while let Some(left) = self.claim() {
            // SAFETY: this thread owns a task and has not counted it as finished: nobody writes the job.
            let job = unsafe { *self.board.0.job.get() }.expect("a claimed task has a job");
            // SAFETY: for the same reason `Pool::run` still borrows the closure.
            let task = unsafe { &*job.task };
            done += self.perform(task, job.tasks - left, thread);
        }
        done
    }

    /// Runs one task, and counts it even if it panics.
    fn perform(&self, task: &Task<'_>, index: usize, thread: usize) -> usize {
        // Unwind safe, since the caller's panic resumes.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task(index, thread))) {
            self.keep_panic(payload);
        }
        1
    }

    #[cold]
    fn keep_panic(&self, payload: Box<dyn Any + Send>) {
        let mut first = lock(&self.panic);
        match *first {
            None => *first = Some(payload),
            // To drop it could panic, here where nothing may unwind.
            Some(_) => std::mem::forget(payload),
        }
        // Read after the task is counted as finished, which orders it.
        self.panicked.store(true, Ordering::Relaxed);
    }

    fn resume_panic(&self) {
        if self.panicked.load(Ordering::Relaxed) {
            self.panicked.store(false, Ordering::Relaxed);
            if let Some(payload) = lock(&self.panic).take() {
                resume_unwind(payload);
            }
        }
    }

    /// Waits until workers have finished so many tasks in all. `Acquire` sees all that they did: each `fetch_add`
    /// releases, and continues the release sequences of those before it.
    fn wait_for_workers(&self, finished: usize) {
        let mut spin = Spin::new(self.spin);
        while self.finished.0.load(Ordering::Acquire) != finished {
            if !spin.again() {
                std::thread::yield_now();
            }
        }
    }

    /// The life of a worker.
    fn serve(&self, thread: usize) {
        while self.wait_for_job() {
            let done = self.work(thread);
            if done > 0 {
                // These tasks keep their job open, so that they are all of one job. Nothing of it is used after this.
                self.finished.0.fetch_add(done, Ordering::Release);
            }
        }
    }

    /// Returns true when there is a task to claim, and false when the pool stops.
    fn wait_for_job(&self) -> bool {
        let mut spin = Spin::new(self.spin);
        while self.board.0.unclaimed.load(Ordering::Relaxed) <= 0 {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            if !spin.again() {
                self.sleep();
                spin = Spin::new(self.spin);
            }
        }
        true
    }

    /// Sleeps until the bell rings, unless there is something to do.
    ///
    /// No ring is missed. Of the store and the load here and the swap and the load in `publish`, all `SeqCst`, one
    /// load comes last and sees the other thread's write: either this worker sees the tasks, or the caller sees the
    /// sleeper and rings; and it rings under the lock, hence when this worker waits already.
    fn sleep(&self) {
        let rings = lock(&self.bell.0.rings);
        let heard = *rings;
        self.bell.0.sleeping.store(true, Ordering::SeqCst);
        // `stop` is set before the lock is taken to ring for it, so that it is seen here or rung for.
        if self.board.0.unclaimed.load(Ordering::SeqCst) > 0 || self.stop.load(Ordering::Relaxed) {
            return;
        }
        let woken = self.bell.0.rung.wait_while(rings, |rings| *rings == heard);
        drop(woken.unwrap_or_else(PoisonError::into_inner));
    }

    /// Wakes all workers that sleep.
    #[cold]
    fn ring(&self) {
        let mut rings = lock(&self.bell.0.rings);
        *rings = rings.wrapping_add(1);
        // Cleared by the ringer, so that the next job does not ring for workers that are waking up.
        self.bell.0.sleeping.store(false, Ordering::SeqCst);
        drop(rings);
        self.bell.0.rung.notify_all();
    }
}

/// Nothing here panics under a lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waiting that is worth its processor time.
struct Spin {
    limit: Duration,
    looks: u32,
    start: Option<Instant>,
}

impl Spin {
    fn new(limit: Duration) -> Self {
        Self { limit, looks: 0, start: None }
    }

    /// Pauses, and tells whether to look again.
    ///
    /// Most waits end before the first look at the clock. One that does not makes way now and then: where there are
    /// more threads than cores, or the system put two on one core, the other may be the one that is waited for.
    fn again(&mut self) -> bool {
        std::hint::spin_loop();
        self.looks = self.looks.wrapping_add(1);
        if !self.looks.is_multiple_of(LOOKS_PER_CLOCK) {
            return true;
        }
        if self.looks.is_multiple_of(LOOKS_PER_YIELD) {
            std::thread::yield_now();
        }
        self.start.get_or_insert_with(Instant::now).elapsed() < self.limit
    }
}
