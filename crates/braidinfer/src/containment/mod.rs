//! Work on untrusted input in processes of its own, which have limits and can be ended at any time.
//!
//! Some libraries that read untrusted text (chat templates, schemas, grammars) can be made to overflow their stack, to take
//! all memory, or to compute for hours. None of that can be stopped from inside a process. So the work is done by a second
//! process: the same program, started as a worker ([`WorkerProgram`]), which reads requests from its standard input and writes
//! replies to its standard output. It limits its own memory; its parent limits the time of each request, and kills it if a
//! limit is passed or if nobody wants the reply any more.
//!
//! [`process`] is the parent's side, [`child`] the worker's.

mod child;
mod frames;
pub(crate) mod message;
mod process;

use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

pub(crate) use child::{Service, serve, without_hurry};
pub(crate) use process::{Failure, Pending, Process};

/// How to start this program, or another one, as a worker: it must call [`run_worker`](crate::run_worker).
///
/// Clones share their [`WorkerStats`].
#[derive(Debug, Clone)]
pub struct WorkerProgram {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    stats: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    alive: AtomicUsize,
    started: AtomicUsize,
    out_of_time: AtomicUsize,
    out_of_memory: AtomicUsize,
    crashed: AtomicUsize,
}

/// What became of the worker processes of a [`WorkerProgram`] so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// Processes that exist now.
    pub alive: usize,
    /// Processes that were started.
    pub started: usize,
    /// Processes that were killed because a request took too long.
    pub out_of_time: usize,
    /// Processes that ended because they needed too much memory.
    pub out_of_memory: usize,
    /// Processes that ended in another way, such as by a stack overflow.
    pub crashed: usize,
}

impl WorkerProgram {
    /// The program at `program`, started with `args`.
    pub fn new(program: impl Into<PathBuf>, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        Self { program: program.into(), args, stats: Arc::default() }
    }

    /// This program itself, started with `args`. Also works after its file was replaced.
    ///
    /// Fails if the program does not know its own path.
    pub fn this(args: impl IntoIterator<Item = impl Into<OsString>>) -> std::io::Result<Self> {
        let own = Path::new("/proc/self/exe");
        Ok(Self::new(if own.exists() { own.to_owned() } else { std::env::current_exe()? }, args))
    }

    /// Counts of its processes.
    pub fn stats(&self) -> WorkerStats {
        let read = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        WorkerStats {
            alive: read(&self.stats.alive),
            started: read(&self.stats.started),
            out_of_time: read(&self.stats.out_of_time),
            out_of_memory: read(&self.stats.out_of_memory),
            crashed: read(&self.stats.crashed),
        }
    }
}

/// What a worker process is for; the first part of the message that it is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum WorkKind {
    /// Renders a chat template.
    Template,
    /// Holds answers to a form.
    Form,
    /// Reads documents.
    Document,
}

/// What a piece of contained work may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkLimits {
    /// Longest time of one request to a worker process.
    pub time: Duration,
    /// Most memory that a worker process may take for it, in bytes. Enforced on Linux.
    pub memory: usize,
}

/// Tells contained work that nobody waits for it any more. Clones share the answer.
#[derive(Debug, Clone, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// Nobody waits for the work any more.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Something that cancels the work when it is dropped, such as with a future that waits for it.
    pub fn cancel_on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }

    /// Whether [`CancelFlag::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Cancels work when it is dropped; see [`CancelFlag::cancel_on_drop`].
#[derive(Debug)]
pub struct CancelOnDrop(CancelFlag);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
