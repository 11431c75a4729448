//! Whether standard output was open when the program was started.
//!
//! Rust opens `/dev/null` in the place of a closed standard stream before `main`, and results would vanish there in silence.
//! So this is asked before that.

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether standard output was closed when the program was started, as after `>&-`.
pub fn was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

// SAFETY: it runs before `main`, where Rust promises little of its library. It makes one system call and stores an atomic:
// nothing that allocates, panics, or needs what `main` sets up.
#[cfg(unix)]
#[ctor::ctor(unsafe)]
fn ask() {
    let flags = rustix::io::fcntl_getfd(rustix::stdio::stdout());
    CLOSED.store(flags.is_err(), Ordering::Relaxed);
}
