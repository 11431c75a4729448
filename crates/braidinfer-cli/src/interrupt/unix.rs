//! Signals of Unix.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::{fs, io, thread};

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Calls `received` with every signal that asks for the end, on a thread of its own.
pub fn catch(received: fn(i32)) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("signals cannot be caught")?;
    if !outlives_terminal() {
        signals.add_signal(SIGHUP).context("SIGHUP cannot be caught")?;
    }
    let waiting = move || signals.forever().for_each(received);
    thread::Builder::new().name("signals".into()).spawn(waiting).context("a thread that waits for signals")?;
    Ok(())
}

/// Whether the program was started to go on after the end of its terminal, as by `nohup`: then SIGHUP is ignored from the start.
/// Only Linux says so.
fn outlives_terminal() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (SIGHUP - 1) != 0)
}

/// Makes a file that grows beyond the user's limit (`ulimit -f`) an error of the write, which names the file, and not the end
/// of the program.
pub fn outlive_file_limit() -> anyhow::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::default()).context("SIGXFSZ cannot be caught")?;
    Ok(())
}

/// Signals that ask for the end, for asynchronous programs: Ctrl-C, SIGTERM, and SIGHUP (the end of the terminal) unless the program
/// is to outlive it.
pub struct Endings(Vec<Signal>);

impl Endings {
    /// Catches them from now on.
    pub fn catch() -> io::Result<Self> {
        let mut kinds = vec![SignalKind::interrupt(), SignalKind::terminate()];
        if !outlives_terminal() {
            kinds.push(SignalKind::hangup());
        }
        kinds.into_iter().map(signal).collect::<io::Result<_>>().map(Self)
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        poll_fn(|context| match self.0.iter_mut().any(|signal| signal.poll_recv(context).is_ready()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}
