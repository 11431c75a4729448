//! The thread pool of the kernels.
//!
//! A decode step is some hundred short phases, each of which waits for the previous one, so what counts is how fast a
//! phase starts and ends. The caller publishes a parallel run with one atomic store and executes tasks of it itself.
//! Awake workers join by claiming a task; a late worker finds nothing to claim. The caller waits only for claimed
//! tasks, so a worker that sleeps or was descheduled delays nobody.

#![allow(unsafe_code, reason = "the home of `unsafe`: a run on other threads borrows from the caller")]

mod cores;
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

/// How long a worker polls for the next run before it sleeps: longer than the serial work between two phases, and short
/// enough to cost little after the last one.
const SPIN: Duration = Duration::from_micros(100);

/// Polls per reading of the clock, which takes some 20 to 50 ns.
const POLLS_PER_CLOCK: u32 = 32;

/// Polls before a waiting thread yields the core to other threads.
const POLLS_PER_YIELD: u32 = 256;

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// A thread pool that executes the tasks of one parallel run at a time, together with the calling thread.
///
/// Workers poll for a moment after each run, then sleep until the next one.
pub struct Pool {
    state: Arc<PoolState>,
    workers: Vec<JoinHandle<()>>,
    /// The value of `PoolState::finished` between runs.
    finished: usize,
}

/// The number of threads to use: the physical cores, or the fast ones of a machine that has slow ones as well; fewer if
/// affinity or a CPU quota allows fewer.
pub fn default_threads() -> usize {
    let cores = cores::performance_cores().unwrap_or_else(num_cpus::get_physical);
    usable_threads().min(cores).max(1)
}

fn usable_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

impl Pool {
    /// A pool of `threads` threads, including the caller of [`Pool::run`].
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
        let mut pool = Self { state: Arc::new(PoolState::new(spin)), workers: Vec::new(), finished: 0 };
        for thread in 1..threads {
            let state = Arc::clone(&pool.state);
            let builder = std::thread::Builder::new().name(format!("braidinfer-{thread}"));
            pool.workers.push(builder.spawn(move || state.worker_loop(thread))?);
        }
        Ok(pool)
    }

    /// The number of threads, including the caller.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(index, thread)` once for each index in `0..tasks`, and returns when all have ended.
    ///
    /// `thread` is less than [`Pool::threads`], and no two tasks run at the same time with the same `thread`; the
    /// caller is 0. Which thread runs a task differs from call to call. Claiming a task costs some 50 ns: a task should
    /// take at least a microsecond, and there should be several tasks per thread, so that no thread waits long for the
    /// slowest.
    ///
    /// # Panics
    ///
    /// If tasks panic, the first panic is resumed here, once no thread runs `task` any more. The other tasks may or may
    /// not have run. The pool can be used again.
    pub fn run(&mut self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(|index| task(index, 0));
        }
        // Nothing from here to the end of the wait may unwind: until then, workers may be running `task`.
        self.state.publish(task, tasks);
        let done = self.state.run_task(task, 0, 0) + self.state.run_claimed_tasks(0);
        self.finished = self.finished.wrapping_add(tasks - done);
        self.state.wait_for_workers(self.finished);
        self.state.resume_panic();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        self.state.notify_workers();
        for worker in self.workers.drain(..) {
            // Workers catch the panics of tasks, and do not panic themselves.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

/// State shared by the threads of a pool.
///
/// `unclaimed` both publishes a run and hands out its tasks. It is positive only while the current run has unclaimed
/// tasks, and the thread that decrements it from a positive value owns one task. The caller sets it again only after
/// all tasks of the previous run are finished. Therefore the owner of a task may read the run and call its closure
/// until it counts the task in `finished`.
struct PoolState {
    counter: Padded<TaskCounter>,
    /// Number of tasks that workers have finished in all runs so far, wrapping; the caller counts its own separately.
    finished: Padded<AtomicUsize>,
    wakeup: Padded<Wakeup>,
    panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    spin: Duration,
}

/// Aligned to cache lines of its own; two lines, because processors prefetch them in pairs.
#[repr(align(128))]
struct Padded<T>(T);

/// The current run. The counter is stored next to it, because a thread that claims a task reads the run next.
struct TaskCounter {
    unclaimed: AtomicIsize,
    run: UnsafeCell<Option<ParallelRun>>,
}

#[derive(Clone, Copy)]
struct ParallelRun {
    task: *const Task<'static>,
    tasks: usize,
}

/// How sleeping workers are woken.
struct Wakeup {
    /// Whether some worker may be asleep. Set by workers and cleared by the caller, both under the lock.
    sleeping: AtomicBool,
    notifications: Mutex<u64>,
    notified: Condvar,
}

// SAFETY: all fields except the run are `Send` and `Sync`. The run is written by the caller while no task is claimed,
// and read by owners of tasks; its closure is `Sync`, and is called only while `Pool::run` borrows it.
unsafe impl Send for PoolState {}

// SAFETY: as above.
unsafe impl Sync for PoolState {}

impl PoolState {
    fn new(spin: Duration) -> Self {
        let wakeup =
            Wakeup { sleeping: AtomicBool::new(false), notifications: Mutex::new(0), notified: Condvar::new() };
        Self {
            counter: Padded(TaskCounter { unclaimed: AtomicIsize::new(0), run: UnsafeCell::new(None) }),
            finished: Padded(AtomicUsize::new(0)),
            wakeup: Padded(wakeup),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            spin,
        }
    }

    /// Makes all tasks except the first claimable; the caller runs the first one.
    fn publish(&self, task: &Task<'_>, tasks: usize) {
        let claimable = isize::try_from(tasks - 1).expect("a run has at most isize::MAX tasks");
        debug_assert!(self.counter.0.unclaimed.load(Ordering::Relaxed) <= 0, "the previous run is over");
        // SAFETY: this changes only the lifetime. The closure is called only by owners of tasks, and `Pool::run`, which
        // borrows it, does not return before all of them have finished.
        let task = unsafe { std::mem::transmute::<&Task<'_>, &Task<'static>>(task) };
        // SAFETY: only one caller can be here (`Pool::run` takes `&mut self`), and no worker reads the run: all tasks
        // of the previous run are finished, which `wait_for_workers` observed with `Acquire`, and no task of this one
        // is claimable.
        unsafe { *self.counter.0.run.get() = Some(ParallelRun { task, tasks }) };
        // `Release` publishes the run and everything that the caller wrote before; a claim is a read-modify-write, and
        // so continues the release sequence for the next claim. `SeqCst`, so that either this thread sees that a worker
        // went to sleep, or that worker sees the tasks; see `sleep`.
        self.counter.0.unclaimed.swap(claimable, Ordering::SeqCst);
        if self.wakeup.0.sleeping.load(Ordering::SeqCst) {
            self.notify_workers();
        }
    }

    /// Claims a task, and returns how many tasks were unclaimed. `Acquire` pairs with the release in `publish`.
    fn claim(&self) -> Option<usize> {
        // The load first: it does not take the cache line from threads that write to it, and it limits how far below
        // zero the counter falls to the number of threads. A late thread may load during one run and claim in the next:
        // only the claim counts.
        if self.counter.0.unclaimed.load(Ordering::Relaxed) <= 0 {
            return None;
        }
        usize::try_from(self.counter.0.unclaimed.fetch_sub(1, Ordering::Acquire)).ok().filter(|&left| left > 0)
    }

    /// Runs tasks until none is unclaimed, and returns how many this thread ran.
    fn run_claimed_tasks(&self, thread: usize) -> usize {
        let mut done = 0;
        while let Some(left) = self.claim() {
            // SAFETY: this thread owns a task and has not counted it as finished, so nobody writes the run.
            let run = unsafe { *self.counter.0.run.get() }.expect("a claimed task has a run");
            debug_assert!(left < run.tasks, "a claimed task is one of the run, and not its first");
            // SAFETY: for the same reason, `Pool::run` still borrows the closure.
            let task = unsafe { &*run.task };
            done += self.run_task(task, run.tasks - left, thread);
        }
        done
    }

    /// Runs one task. Returns 1 even if it panics, so that it is counted.
    fn run_task(&self, task: &Task<'_>, index: usize, thread: usize) -> usize {
        // Unwind safe, because the panic is resumed in the caller.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task(index, thread))) {
            self.store_panic(payload);
        }
        1
    }

    #[cold]
    fn store_panic(&self, payload: Box<dyn Any + Send>) {
        let mut first = lock(&self.panic);
        match *first {
            None => *first = Some(payload),
            // Dropping the payload could panic, and nothing may unwind here.
            Some(_) => std::mem::forget(payload),
        }
        // The load in `resume_panic` comes after the task is counted as finished, which orders it after this store.
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

    /// Waits until workers have finished `finished` tasks in total. `Acquire` makes all their writes visible: each
    /// `fetch_add` releases, and continues the release sequences of those before it.
    fn wait_for_workers(&self, finished: usize) {
        let mut spin = Spin::new(self.spin);
        while self.finished.0.load(Ordering::Acquire) != finished {
            if !spin.poll_again() {
                std::thread::yield_now();
            }
        }
    }

    /// The main loop of a worker.
    fn worker_loop(&self, thread: usize) {
        while self.wait_for_run() {
            let done = self.run_claimed_tasks(thread);
            if done > 0 {
                // The run cannot end before these tasks are counted, so they all belong to one run. After this, the
                // worker does not access the run any more.
                self.finished.0.fetch_add(done, Ordering::Release);
            }
        }
    }

    /// Returns true when there is a task to claim, and false when the pool stops.
    fn wait_for_run(&self) -> bool {
        let mut spin = Spin::new(self.spin);
        while self.counter.0.unclaimed.load(Ordering::Relaxed) <= 0 {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            if !spin.poll_again() {
                self.sleep();
                spin = Spin::new(self.spin);
            }
        }
        true
    }

    /// Sleeps until notified, unless there are tasks or the pool stops.
    ///
    /// No notification is missed. Of the store and the load here and the swap and the load in `publish`, all `SeqCst`,
    /// one load comes last and sees the other thread's write: either this worker sees the tasks, or the caller sees the
    /// sleeper and notifies it; and it notifies under the lock, hence when this worker is already waiting.
    fn sleep(&self) {
        let notifications = lock(&self.wakeup.0.notifications);
        let seen = *notifications;
        self.wakeup.0.sleeping.store(true, Ordering::SeqCst);
        // `stop` is set before the lock is taken to notify, so that it is either seen here or its notification is
        // received.
        if self.counter.0.unclaimed.load(Ordering::SeqCst) > 0 || self.stop.load(Ordering::Relaxed) {
            return;
        }
        let woken = self.wakeup.0.notified.wait_while(notifications, |notifications| *notifications == seen);
        drop(woken.unwrap_or_else(PoisonError::into_inner));
    }

    /// Wakes all sleeping workers.
    #[cold]
    fn notify_workers(&self) {
        let mut notifications = lock(&self.wakeup.0.notifications);
        *notifications = notifications.wrapping_add(1);
        // Cleared here and not by the workers, so that the next run does not notify workers that are already waking up.
        self.wakeup.0.sleeping.store(false, Ordering::SeqCst);
        drop(notifications);
        self.wakeup.0.notified.notify_all();
    }
}

/// Ignores poisoning: nothing in this file panics under a lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A busy wait with a time limit.
struct Spin {
    limit: Duration,
    polls: u32,
    start: Option<Instant>,
}

impl Spin {
    fn new(limit: Duration) -> Self {
        Self { limit, polls: 0, start: None }
    }

    /// Pauses, and returns whether to poll again.
    ///
    /// Most waits end before the first reading of the clock. Longer waits yield now and then: if there are more threads
    /// than cores, or the system put two threads on one core, the other thread may be the one that is waited for.
    fn poll_again(&mut self) -> bool {
        std::hint::spin_loop();
        self.polls = self.polls.wrapping_add(1);
        if !self.polls.is_multiple_of(POLLS_PER_CLOCK) {
            return true;
        }
        if self.polls.is_multiple_of(POLLS_PER_YIELD) {
            std::thread::yield_now();
        }
        self.start.get_or_insert_with(Instant::now).elapsed() < self.limit
    }
}
