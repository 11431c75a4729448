//! The stream of outputs for submitted prompts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::{Error, Output, Token};

/// The output of one step for one answer.
#[derive(Debug)]
pub struct RequestOutput {
    /// Index of the answer: all answers to the first prompt come first, then those to the second, and so on.
    pub choice: usize,
    /// The new output; an error ends the answer.
    pub output: Result<Output, RequestError>,
}

impl RequestOutput {
    /// Whether this is the last output of its answer.
    pub fn is_last(&self) -> bool {
        !matches!(&self.output, Ok(Output::Token(Token { finished: None, .. })))
    }
}

/// Why an answer ended before it was complete.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    /// The engine failed, for example because logits were not finite.
    #[error("{0}")]
    Failed(Arc<Error>),
    /// The answer was cancelled by [`Handle::cancel`](super::Handle::cancel).
    #[error("the answer was cancelled")]
    Cancelled,
    /// The answer was ended by [`Handle::end_all`](super::Handle::end_all), or the last handle was dropped.
    #[error("the engine shuts down; the answer was ended")]
    ShuttingDown,
    /// The thread that owns the model has ended unexpectedly, for example because of a panic.
    #[error("the engine stopped before the answer was complete")]
    EngineStopped,
}

/// Identifies an [`OutputStream`]; unique within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

impl StreamId {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The answers to the submitted prompts, token by token, in the order of generation.
///
/// The last output of each answer is a token with a finish reason, an embedding, or an error. Dropping the stream cancels
/// unfinished answers before the next step.
#[derive(Debug)]
pub struct OutputStream {
    id: StreamId,
    outputs: UnboundedReceiver<RequestOutput>,
    /// Indices of the unfinished answers.
    unfinished: BTreeSet<usize>,
}

impl OutputStream {
    pub(super) fn new(id: StreamId, outputs: UnboundedReceiver<RequestOutput>, answers: usize) -> Self {
        Self { id, outputs, unfinished: (0..answers).collect() }
    }

    /// The id for [`Handle::cancel`](super::Handle::cancel).
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// The next token or embedding of any answer; `None` when all answers have ended.
    ///
    /// No output is lost if the future is dropped before it is ready.
    pub async fn next(&mut self) -> Option<RequestOutput> {
        let received = self.outputs.recv().await;
        self.or_stopped(received)
    }

    /// Like [`OutputStream::next`], for synchronous code.
    ///
    /// # Panics
    ///
    /// If called within an asynchronous task of Tokio, which must not be blocked.
    pub fn next_blocking(&mut self) -> Option<RequestOutput> {
        let received = self.outputs.blocking_recv();
        self.or_stopped(received)
    }

    /// Records answers that end. If the thread has ended without ending an answer, returns an error that ends it.
    fn or_stopped(&mut self, received: Option<RequestOutput>) -> Option<RequestOutput> {
        let stopped = |&choice| RequestOutput { choice, output: Err(RequestError::EngineStopped) };
        let output = received.or_else(|| self.unfinished.first().map(stopped))?;
        if output.is_last() {
            self.unfinished.remove(&output.choice);
        }
        Some(output)
    }
}
