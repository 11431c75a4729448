//! What Windows has of signals. Compiled, and never run so far.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{io, thread};

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::signal::windows::{
    CtrlBreak, CtrlC, CtrlClose, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown,
};

/// How often the thread that waits for signals looks for one: here they cannot be waited for.
const INTERVAL: Duration = Duration::from_millis(20);

/// Calls `received` with signals that ask for the end, on a thread of its own; two within the interval count as one.
pub fn catch(received: fn(i32)) -> anyhow::Result<()> {
    let last = Arc::new(AtomicUsize::new(0));
    for signal in [SIGINT, SIGTERM] {
        let registered = signal_hook::flag::register_usize(signal, Arc::clone(&last), signal as usize);
        registered.context("signals cannot be caught")?;
    }
    let waiting = move || {
        loop {
            match last.swap(0, Ordering::SeqCst) {
                0 => thread::sleep(INTERVAL),
                signal => received(signal as i32),
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(waiting).context("a thread that waits for signals")?;
    Ok(())
}

/// There is no limit of files here.
pub fn outlive_file_limit() -> anyhow::Result<()> {
    Ok(())
}

/// Signals that ask for the end, for asynchronous programs: Ctrl-C, Ctrl-Break, and the end of the terminal or of the system, after which
/// Windows ends the program within seconds.
pub struct Endings {
    ctrl_c: CtrlC,
    ctrl_break: CtrlBreak,
    ctrl_close: CtrlClose,
    ctrl_shutdown: CtrlShutdown,
}

impl Endings {
    /// Catches them from now on.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            ctrl_c: ctrl_c()?,
            ctrl_break: ctrl_break()?,
            ctrl_close: ctrl_close()?,
            ctrl_shutdown: ctrl_shutdown()?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.ctrl_c.recv() => {}
            _ = self.ctrl_break.recv() => {}
            _ = self.ctrl_close.recv() => {}
            _ = self.ctrl_shutdown.recv() => {}
        }
    }
}
