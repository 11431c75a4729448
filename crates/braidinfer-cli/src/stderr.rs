//! Standard error at best effort: nothing waits for its reader, nothing fails with it, and lost lines are counted.
//!
//! Lines go through a bounded queue to a thread that writes them. Where nobody reads a full pipe, only that thread waits.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::panic;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

/// Lines that wait for a slow reader; later ones are lost and counted.
const WAITING: usize = 1024;

/// Stack of the thread that writes them: it does nothing else, and where memory is limited, the default of 2 MiB is missed
/// by what matters.
const STACK: usize = 256 << 10;
/// How long the end of the program waits for a reader.
const PATIENCE: Duration = Duration::from_secs(1);

/// What has been queued by [`write`].
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Writes whole lines, which end in a newline, to standard error, or loses them if its reader is too slow.
pub fn write(lines: String) {
    write_soon(lines);
    // Progress bars are drawn on the same terminal: a line must be there before they go on.
    if io::stderr().is_terminal() {
        flush();
    }
}

/// Like [`write`], and never waits, not even for a terminal that was stopped.
pub fn write_soon(lines: String) {
    QUEUE.get_or_init(Queue::to_stderr).push(lines);
}

/// Waits until everything is written, but not for a reader that does not read.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.backlog.wait(PATIENCE);
    }
}

/// A panic is told in the same way as notes: the default hook would wait for the reader.
pub fn tell_panics() {
    panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let backtrace = Backtrace::capture();
        let trace = match backtrace.status() {
            BacktraceStatus::Captured => format!("{backtrace}\n"),
            _ => String::new(),
        };
        write(format!("thread '{}' {info}\n{trace}", thread.name().unwrap_or("unnamed")));
    }));
}

/// The sending side of a bounded queue of lines.
struct Queue {
    sender: SyncSender<String>,
    backlog: Arc<Backlog>,
}

/// What is between those who write lines and standard error.
#[derive(Default)]
struct Backlog {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Lines {
    waiting: usize,
    /// Lost since that was last told.
    lost: usize,
}

impl Queue {
    fn new(waiting: usize) -> (Self, Receiver<String>) {
        let (sender, receiver) = sync_channel(waiting);
        (Self { sender, backlog: Arc::default() }, receiver)
    }

    fn to_stderr() -> Self {
        let (queue, lines) = Self::new(WAITING);
        let backlog = Arc::clone(&queue.backlog);
        let writer = thread::Builder::new().name("standard error".to_owned()).stack_size(STACK);
        // Without a thread all lines are lost, because the receiver is gone: no program fails for its notes.
        let _ = writer.spawn(move || backlog.write_all(&lines, &mut io::stderr()));
        queue
    }

    /// Never waits.
    fn push(&self, lines: String) {
        self.backlog.lock().waiting += 1;
        if self.sender.try_send(lines).is_err() {
            let mut lines = self.backlog.lock();
            lines.waiting -= 1;
            lines.lost += 1;
        }
    }
}

impl Backlog {
    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is queued until the sending side is gone.
    fn write_all(&self, lines: &Receiver<String>, to: &mut impl Write) {
        for lines in lines {
            let written = to.write_all(lines.as_bytes()).and_then(|()| self.tell_lost(to));
            let mut backlog = self.lock();
            // Nobody can be told now that standard error cannot be written, but perhaps later.
            backlog.lost += usize::from(written.is_err());
            backlog.waiting -= 1;
            drop(backlog);
            self.changed.notify_all();
        }
    }

    fn tell_lost(&self, to: &mut impl Write) -> io::Result<()> {
        let lost = self.lock().lost;
        if lost > 0 {
            writeln!(to, "note: {lost} lines were lost here: nobody read standard error")?;
            self.lock().lost -= lost;
        }
        to.flush()
    }

    fn wait(&self, patience: Duration) {
        let waited = self.changed.wait_timeout_while(self.lock(), patience, |lines| lines.waiting > 0);
        drop(waited);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a reader sees of `lines` that come before it reads.
    fn written(room: usize, lines: &[&str], to: &mut impl Write) -> Lines {
        let (queue, receiver) = Queue::new(room);
        lines.iter().for_each(|line| queue.push((*line).to_owned()));
        let Queue { sender, backlog } = queue;
        drop(sender);
        backlog.write_all(&receiver, to);
        backlog.wait(PATIENCE);
        std::mem::take(&mut backlog.lock())
    }

    #[test]
    fn lines_that_do_not_fit_are_counted_and_told() {
        let mut to = Vec::new();
        let left = written(2, &["a\n", "b\n", "lost\n", "lost, too\n"], &mut to);
        let expected = "a\nnote: 2 lines were lost here: nobody read standard error\nb\n";
        assert_eq!(String::from_utf8(to).expect("it is text"), expected);
        assert_eq!(left, Lines::default());
    }

    #[test]
    fn a_closed_standard_error_is_no_failure() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(written(2, &["a\n", "b\n"], &mut Closed), Lines { waiting: 0, lost: 2 });
    }
}
