//! Waiting for the engine: blocked, but for Ctrl-C, or by an event loop that watches a socket.
//!
//! No thread of ours ever calls Python: it could do so while the interpreter ends.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::process;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// How often a thread that waits looks for Ctrl-C.
pub const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Waits for a future. Ctrl-C drops it.
pub fn waited<F>(py: Python<'_>, future: F) -> PyResult<F::Output>
where
    F: Future + Send,
    F::Output: Send,
{
    waited_on(py, &clock()?, future)
}

/// What [`waited_on`] needs.
pub fn clock() -> PyResult<Runtime> {
    let built = Builder::new_current_thread().enable_time().build();
    built.map_err(|error| PyRuntimeError::new_err(format!("waiting for the engine: {error}")))
}

/// Like [`waited`], with a clock that is there.
pub fn waited_on<F>(py: Python<'_>, clock: &Runtime, future: F) -> PyResult<F::Output>
where
    F: Future + Send,
    F::Output: Send,
{
    let mut future = pin!(future);
    loop {
        let limited = async { timeout(SIGNAL_INTERVAL, future.as_mut()).await.ok() };
        let output = py.detach(|| clock.block_on(limited));
        // Also at the end: what comes next may call Python where Ctrl-C would be a panic.
        py.check_signals()?;
        if let Some(output) = output {
            return Ok(output);
        }
    }
}

/// Fails in a copy of the process that loaded a model: threads are not copied.
pub fn require_process(loaded_in: u32) -> PyResult<()> {
    if loaded_in == process::id() {
        return Ok(());
    }
    let message = "this process is a copy (fork) of the one that loaded the model, without its threads: load the model in each \
                   process, or start processes by `spawn`";
    Err(PyRuntimeError::new_err(message))
}

/// A socket that becomes readable when the waker is called.
pub struct Bell {
    reader: UnixStream,
    waker: Waker,
}

struct Ringer(UnixStream);

impl Wake for Ringer {
    fn wake(self: Arc<Self>) {
        // Full, it is readable already; closed, nobody waits.
        let _ = (&self.0).write(&[0]);
    }
}

impl Bell {
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        Ok(Self { reader, waker: Arc::new(Ringer(writer)).into() })
    }

    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Makes it silent, until the waker is called again.
    pub fn silence(&self) {
        while matches!((&self.reader).read(&mut [0; 64]), Ok(64)) {}
    }

    pub fn fileno(&self) -> i32 {
        self.reader.as_raw_fd()
    }
}
