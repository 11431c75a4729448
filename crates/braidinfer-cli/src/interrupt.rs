//! Signals that end a program: Ctrl-C (SIGINT), SIGTERM and SIGHUP. They stop generation or the writing of a file cleanly, and
//! end the program at any other time.

use std::fs;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Once};
use std::thread;

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::stderr;

static WORKING: AtomicBool = AtomicBool::new(false);
/// The signal that asks for the end, or 0.
static REQUESTED: AtomicI32 = AtomicI32::new(0);

/// Installs the handler for the signals; may be called repeatedly.
pub fn install() -> anyhow::Result<()> {
    static INSTALLED: Once = Once::new();
    let mut result = Ok(());
    INSTALLED.call_once(|| result = catch());
    result
}

fn catch() -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("signals cannot be caught")?;
    if !outlives_terminal() {
        signals.add_signal(SIGHUP).context("SIGHUP cannot be caught")?;
    }
    let waiting = move || signals.forever().for_each(received);
    thread::Builder::new().name("signals".into()).spawn(waiting).context("a thread that waits for signals")?;
    Ok(())
}

fn received(signal: i32) {
    let again = REQUESTED.swap(signal, Ordering::SeqCst) != 0;
    if again || !WORKING.load(Ordering::SeqCst) {
        stderr::flush();
        process::exit(i32::from(exit_code(signal)));
    }
}

/// The exit code after a signal, as shells have it.
fn exit_code(signal: i32) -> u8 {
    128 + signal as u8
}

/// Whether the program was started to go on after the end of its terminal, as by `nohup`: then SIGHUP is ignored from the start.
/// Only Linux says so.
pub fn outlives_terminal() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (SIGHUP - 1) != 0)
}

/// Makes a file that grows beyond the user's limit (`ulimit -f`) an error of the write, which names the file, and not the end
/// of the program.
#[cfg(unix)]
pub fn outlive_file_limit() -> anyhow::Result<()> {
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).context("SIGXFSZ cannot be caught")?;
    Ok(())
}

/// Whether a signal has asked for the end since the work began.
pub fn requested() -> bool {
    requested_code().is_some()
}

/// The exit code of a program that was asked to end, if it was.
pub fn requested_code() -> Option<u8> {
    let signal = REQUESTED.load(Ordering::SeqCst);
    (signal != 0).then(|| exit_code(signal))
}

/// Forgets a Ctrl-C, after which the program goes on. Other signals end it all the same.
pub fn forget_ctrl_c() {
    let _ = REQUESTED.compare_exchange(SIGINT, 0, Ordering::SeqCst, Ordering::SeqCst);
}

/// Guard: while it lives, signals do not end the program but make [`requested`] true.
pub struct Working(());

impl Working {
    /// Begins the work.
    pub fn begin() -> Self {
        REQUESTED.store(0, Ordering::SeqCst);
        WORKING.store(true, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        WORKING.store(false, Ordering::SeqCst);
    }
}
