//! Ctrl-C: stops generation or the writing of a file cleanly, and ends the program at any other time.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};

use anyhow::Context;

use crate::stderr;

static WORKING: AtomicBool = AtomicBool::new(false);
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Installs the handler for Ctrl-C; may be called repeatedly.
pub fn install() -> anyhow::Result<()> {
    static INSTALLED: Once = Once::new();
    let mut result = Ok(());
    INSTALLED.call_once(|| result = catch());
    result
}

fn catch() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        let again = REQUESTED.swap(true, Ordering::SeqCst);
        if again || !WORKING.load(Ordering::SeqCst) {
            stderr::flush();
            process::exit(i32::from(crate::INTERRUPTED));
        }
    })
    .context("Ctrl-C cannot be caught")
}

/// Makes a file that grows beyond the user's limit (`ulimit -f`) an error of the write, which names the file, and not the end
/// of the program.
#[cfg(unix)]
pub fn outlive_file_limit() -> anyhow::Result<()> {
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).context("SIGXFSZ cannot be caught")?;
    Ok(())
}

/// Whether Ctrl-C was pressed since the work began.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Like [`requested`], and resets it.
pub fn take() -> bool {
    REQUESTED.swap(false, Ordering::SeqCst)
}

/// Guard: while it lives, Ctrl-C does not end the program but makes [`requested`] true.
pub struct Working(());

impl Working {
    /// Begins the work.
    pub fn begin() -> Self {
        REQUESTED.store(false, Ordering::SeqCst);
        WORKING.store(true, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        WORKING.store(false, Ordering::SeqCst);
    }
}
