//! The side of the worker process: limits itself, then answers requests one after the other.

use std::io;
use std::panic::resume_unwind;
use std::process;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use serde::{Deserialize, Serialize};

use super::{frames, message};

/// Stack of the thread that works. Parsers of untrusted text recurse; pages that are not touched cost nothing.
const STACK: usize = 256 << 20;
/// Address space for threads and allocator beside the work itself.
#[cfg(target_os = "linux")]
const SLACK: usize = 192 << 20;
/// Memory for what is made of the first message, such as a vocabulary, as a multiple of its size.
const PER_SETUP_BYTE: usize = 64;
/// Other processes come first: the forward pass of those who wait for tokens, above all.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;
/// What is added for work without hurry, which comes last of all.
#[cfg(target_os = "linux")]
const NICENESS_WITHOUT_HURRY: i32 = 9;

/// The first message to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    /// Most memory for the work, in bytes.
    pub(super) memory: usize,
    /// What the service is made of.
    #[serde(with = "serde_bytes")]
    pub(super) service: Vec<u8>,
}

/// What a worker process does.
pub(crate) trait Service {
    /// The reply to a request. Both are messages of the parts of this crate that use the worker.
    fn answer(&mut self, request: &[u8]) -> Vec<u8>;
}

/// Answers requests from standard input on standard output until the input ends. `begin` makes the service from the message
/// that the parent started the process with, and the first reply.
pub(crate) fn serve(
    begin: impl FnOnce(&[u8]) -> (Option<Box<dyn Service>>, Vec<u8>) + Send + 'static,
) -> io::Result<()> {
    let setup = frames::read(&mut io::stdin().lock())?;
    let setup: Setup = message::unpack(&setup).map_err(io::Error::other)?;
    limit(setup.memory.saturating_add(setup.service.len().saturating_mul(PER_SETUP_BYTE)))?;
    let (sender, requests) = channel();
    // If the parent ends or gives this process up, its end of the pipe is closed, whatever is being computed here.
    thread::Builder::new().spawn(move || {
        let mut stdin = io::stdin().lock();
        while let Ok(request) = frames::read(&mut stdin) {
            if sender.send(request).is_err() {
                break;
            }
        }
        process::exit(0);
    })?;
    let work = thread::Builder::new().stack_size(STACK).spawn(move || work(setup.service, begin, &requests))?;
    work.join().unwrap_or_else(|_| Err(io::Error::other("the work ended in a panic")))
}

fn work(
    setup: Vec<u8>,
    begin: impl FnOnce(&[u8]) -> (Option<Box<dyn Service>>, Vec<u8>),
    requests: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let (service, reply) = begin(&setup);
    drop(setup);
    frames::write(&mut stdout, &reply)?;
    let Some(mut service) = service else { return Ok(()) };
    while let Ok(request) = requests.recv() {
        frames::write(&mut stdout, &service.answer(&request))?;
    }
    Ok(())
}

/// Does work for which nobody's tokens wait, on a thread with less priority than the rest of the process.
pub(crate) fn without_hurry<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let worker = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || {
            // On Linux this is the priority of the thread. Without the right to change it, the work only competes more.
            #[cfg(target_os = "linux")]
            let _ = rustix::process::nice(NICENESS_WITHOUT_HURRY);
            work()
        });
        // A panic ends this process, which its parent reports as a failure of the work.
        let worker = worker.unwrap_or_else(|error| panic!("no thread could be started: {error}"));
        worker.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Limits the memory of this process to what it has now and `memory` bytes more.
#[cfg(target_os = "linux")]
fn limit(memory: usize) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, nice, setrlimit};
    // A dump of a process that went wrong would fill the disk.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: usize = statm.split(' ').next().and_then(|pages| pages.parse().ok()).unwrap_or(0);
    let now = pages.saturating_mul(rustix::param::page_size());
    let wanted = (now + 2 * STACK + SLACK).saturating_add(memory) as u64;
    let allowed = getrlimit(Resource::As);
    let most = allowed.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let most = allowed.current.map_or(most, |current| current.min(most));
    setrlimit(Resource::As, Rlimit { current: Some(most), maximum: Some(most) })?;
    // Without the right to change it, the work only competes more.
    let _ = nice(NICENESS);
    Ok(())
}

/// Other systems do not enforce a limit of memory.
#[cfg(not(target_os = "linux"))]
fn limit(_memory: usize) -> io::Result<()> {
    Ok(())
}
