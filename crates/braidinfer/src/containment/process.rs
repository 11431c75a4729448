//! The side of the parent: a worker process with a thread that passes requests to it, one at a time.

use std::fmt;
use std::io::{self, Read};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::child::Setup;
use super::{CancelFlag, WorkLimits, WorkerProgram, frames, message};

/// How often it is looked whether a request is still wanted.
const PATIENCE: Duration = Duration::from_millis(20);
/// Most bytes of a worker's error output that are read.
const ERROR_OUTPUT: u64 = 4096;

/// Why there is no reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It took longer than this.
    Time(Duration),
    /// It needed more than this many bytes.
    Memory(usize),
    /// It was nested too deep for the stack.
    Stack,
    /// Nobody wanted it any more.
    Cancelled,
    /// The worker ended, or could not be started.
    Worker(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Time(limit) => write!(f, "one that takes longer than {limit:?}"),
            Self::Memory(limit) => write!(f, "one that takes more than {} MiB of memory", limit >> 20),
            Self::Stack => f.write_str("one that is nested too deep"),
            Self::Cancelled => f.write_str("one that nobody waits for any more"),
            Self::Worker(reason) => write!(f, "one that ended the worker process ({reason})"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Worker(error.to_string())
    }
}

/// A request to a process.
struct Job {
    request: Vec<u8>,
    limit: Duration,
    cancel: CancelFlag,
    reply: Sender<Result<Vec<u8>, Failure>>,
}

/// A worker process. Dropping it ends the process, whatever it does.
#[derive(Debug)]
pub(crate) struct Process {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
    /// Set when it is dropped.
    given_up: CancelFlag,
}

/// A reply that may not be there yet.
#[derive(Debug)]
pub(crate) struct Pending(Receiver<Result<Vec<u8>, Failure>>);

impl Pending {
    /// The reply, if it comes within `patience`.
    pub(crate) fn within(&self, patience: Duration) -> Option<Result<Vec<u8>, Failure>> {
        match self.0.recv_timeout(patience) {
            Ok(reply) => Some(reply),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(gone())),
        }
    }

    /// The reply. There is one in the end: every request has a limit of time.
    pub(crate) fn wait(&self) -> Result<Vec<u8>, Failure> {
        self.0.recv().unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> Failure {
    Failure::Worker("it has ended".into())
}

impl Process {
    /// Starts a worker with a service that is made of the message `service`; the second value is its first reply.
    ///
    /// Fails if there can be no process or no thread for it.
    pub(crate) fn start(
        program: &WorkerProgram,
        service: Vec<u8>,
        limits: WorkLimits,
        cancel: CancelFlag,
    ) -> Result<(Self, Pending), Failure> {
        let setup = Setup { memory: limits.memory, service };
        let setup = message::pack(&setup).map_err(Failure::Worker)?;
        let mut command = Command::new(&program.program);
        command.args(&program.args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C in a terminal is for the parent.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let (Some(input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::Worker("it has no pipes".into()));
        };
        let (sender, replies) = channel();
        let worker = Worker::new(child, input, replies, limits.memory, program.clone());
        let (jobs, received) = channel();
        let given_up = CancelFlag::default();
        let of_thread = given_up.clone();
        let thread = thread::Builder::new().name("worker".into()).spawn(move || worker.run(&received, &of_thread))?;
        thread::Builder::new().name("worker output".into()).spawn(move || {
            while let Ok(reply) = frames::read(&mut output) {
                if sender.send(reply).is_err() {
                    break;
                }
            }
        })?;
        let process = Self { jobs, thread, given_up };
        let ready = process.submit(setup, limits.time, cancel);
        Ok((process, ready))
    }

    /// Whether requests can still be answered.
    pub(crate) fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Queues a request, which may take `limit` from when the ones before it are done.
    pub(crate) fn submit(&self, request: Vec<u8>, limit: Duration, cancel: CancelFlag) -> Pending {
        let (reply, pending) = channel();
        // If the thread has ended, so has the channel of the reply.
        let _ = self.jobs.send(Job { request, limit, cancel, reply });
        Pending(pending)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.given_up.cancel();
    }
}

/// What the thread of a process owns.
struct Worker {
    child: Child,
    input: ChildStdin,
    replies: Receiver<Vec<u8>>,
    memory: usize,
    program: WorkerProgram,
}

impl Worker {
    fn new(child: Child, input: ChildStdin, replies: Receiver<Vec<u8>>, memory: usize, program: WorkerProgram) -> Self {
        use std::sync::atomic::Ordering::Relaxed;
        program.stats.started.fetch_add(1, Relaxed);
        program.stats.alive.fetch_add(1, Relaxed);
        Self { child, input, replies, memory, program }
    }

    /// Passes on requests until the process ends or is given up.
    fn run(mut self, jobs: &Receiver<Job>, given_up: &CancelFlag) {
        while let Ok(job) = jobs.recv() {
            if job.cancel.is_cancelled() {
                let _ = job.reply.send(Err(Failure::Cancelled));
                continue;
            }
            let reply = self.pass_on(&job, given_up);
            let failed = reply.as_ref().err().cloned();
            // If nobody reads it, it was not wanted any more.
            let _ = job.reply.send(reply);
            if let Some(failure) = failed {
                self.count(&failure);
                drop(self);
                // The requests behind it did nothing wrong, but what they need is lost.
                jobs.try_iter().for_each(|job| drop(job.reply.send(Err(gone()))));
                return;
            }
        }
    }

    fn pass_on(&mut self, job: &Job, given_up: &CancelFlag) -> Result<Vec<u8>, Failure> {
        let deadline = Instant::now() + job.limit;
        if let Err(error) = frames::write(&mut self.input, &job.request) {
            return Err(self.end(Failure::Worker(error.to_string())));
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if job.cancel.is_cancelled() || given_up.is_cancelled() {
                return Err(Failure::Cancelled);
            }
            match self.replies.recv_timeout(left.min(PATIENCE)) {
                Ok(reply) => return Ok(reply),
                Err(RecvTimeoutError::Disconnected) => return Err(self.end(gone())),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Err(Failure::Time(job.limit)),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Why the process has ended, by what it wrote last; `otherwise` if it wrote nothing that is known.
    fn end(&mut self, otherwise: Failure) -> Failure {
        let _ = self.child.kill();
        let status = self.child.wait();
        let mut said = Vec::new();
        if let Some(errors) = self.child.stderr.take() {
            let _ = errors.take(ERROR_OUTPUT).read_to_end(&mut said);
        }
        let said = String::from_utf8_lossy(&said);
        // The words of Rust's standard library.
        if said.contains("memory allocation of") || said.contains("failed to allocate") {
            return Failure::Memory(self.memory);
        }
        if said.contains("overflowed its stack") {
            return Failure::Stack;
        }
        match (said.trim().lines().next(), status) {
            (Some(line), _) => Failure::Worker(line.to_owned()),
            (None, Ok(status)) if !status.success() => Failure::Worker(status.to_string()),
            (None, _) => otherwise,
        }
    }

    fn count(&self, failure: &Failure) {
        let counter = match failure {
            Failure::Time(_) => &self.program.stats.out_of_time,
            Failure::Memory(_) => &self.program.stats.out_of_memory,
            Failure::Stack | Failure::Worker(_) => &self.program.stats.crashed,
            Failure::Cancelled => return,
        };
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already; it must not stay as a zombie either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.program.stats.alive.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}
