//! Signals that end a program: Ctrl-C (SIGINT), SIGTERM and SIGHUP, or what Windows has of them. They stop generation or the writing
//! of a file cleanly, and end the program at any other time.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::{io, process};

use signal_hook::consts::SIGINT;

use self::system::Endings;
pub use self::system::outlive_file_limit;
use crate::stderr;

#[cfg(unix)]
#[path = "interrupt/unix.rs"]
mod system;
#[cfg(windows)]
#[path = "interrupt/windows.rs"]
mod system;

/// Whether a server looks after signals itself.
static SERVING: AtomicBool = AtomicBool::new(false);
static WORKING: AtomicBool = AtomicBool::new(false);
/// The signal that asks for the end, or 0.
static REQUESTED: AtomicI32 = AtomicI32::new(0);

/// Installs the handler for the signals; may be called repeatedly.
pub fn install() -> anyhow::Result<()> {
    static INSTALLED: Once = Once::new();
    let mut result = Ok(());
    INSTALLED.call_once(|| result = system::catch(received));
    result
}

fn received(signal: i32) {
    if SERVING.load(Ordering::SeqCst) {
        return;
    }
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

/// Signals that ask for the end of a server, which alone decides from now on what they do.
pub fn of_server() -> io::Result<Endings> {
    SERVING.store(true, Ordering::SeqCst);
    Endings::catch()
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
