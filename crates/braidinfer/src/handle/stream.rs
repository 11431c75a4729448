//! What the engine says to those who submitted prompts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::{Error, Output, Token};

/// What one step did for one answer.
#[derive(Debug)]
pub struct RequestOutput {
    /// Which of the answers, counted from 0: all answers to the first prompt, then those to the second, and so on.
    pub choice: usize,
    /// What is new; after an error the answer has ended.
    pub output: Result<Output, RequestError>,
}

impl RequestOutput {
    /// Whether nothing comes after it for the same answer.
    pub fn is_last(&self) -> bool {
        !matches!(&self.output, Ok(Output::Token(Token { finished: None, .. })))
    }
}

/// Why an answer ended before it was complete.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    /// The model could not be run, or gave no number that can be chosen from.
    #[error("{0}")]
    Failed(Arc<Error>),
    /// [`Handle::cancel`](super::Handle::cancel) ended it.
    #[error("the answer was cancelled")]
    Cancelled,
    /// [`Handle::end_all`](super::Handle::end_all) ended it, or the last handle was dropped.
    #[error("the engine shuts down; the answer was ended")]
    ShuttingDown,
    /// The thread that owns the model has ended, because something in it is broken.
    #[error("the engine stopped before the answer was complete")]
    EngineStopped,
}

/// Names an [`OutputStream`]; no two of a process have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

impl StreamId {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The answers to some prompts, token by token, in the order in which they are written.
///
/// For each answer the last output is a token that says why it is finished, a vector, or an error. When this is dropped,
/// unfinished answers are cancelled before the next step.
#[derive(Debug)]
pub struct OutputStream {
    id: StreamId,
    outputs: UnboundedReceiver<RequestOutput>,
    /// Answers that have not ended.
    unfinished: BTreeSet<usize>,
}

impl OutputStream {
    pub(super) fn new(id: StreamId, outputs: UnboundedReceiver<RequestOutput>, answers: usize) -> Self {
        Self { id, outputs, unfinished: (0..answers).collect() }
    }

    /// What to call it when [`Handle::cancel`](super::Handle::cancel) shall end it.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// The next token or vector of any answer; `None` when all have ended.
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    pub async fn next(&mut self) -> Option<RequestOutput> {
        let received = self.outputs.recv().await;
        self.or_stopped(received)
    }

    /// As [`OutputStream::next`], for synchronous code.
    ///
    /// # Panics
    ///
    /// Within an asynchronous task of Tokio, which must not be blocked.
    pub fn next_blocking(&mut self) -> Option<RequestOutput> {
        let received = self.outputs.blocking_recv();
        self.or_stopped(received)
    }

    /// Takes note of answers that end. If the thread is gone and owes the end of an answer, this is the end.
    fn or_stopped(&mut self, received: Option<RequestOutput>) -> Option<RequestOutput> {
        let stopped = |&choice| RequestOutput { choice, output: Err(RequestError::EngineStopped) };
        let output = received.or_else(|| self.unfinished.first().map(stopped))?;
        if output.is_last() {
            self.unfinished.remove(&output.choice);
        }
        Some(output)
    }
}
