//! The stream of outputs for submitted prompts.

use std::collections::BTreeSet;
use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::engine::PromptInfo;
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

    /// About how much memory it takes.
    pub fn bytes(&self) -> usize {
        let of_prompt = |prompt: &PromptInfo| {
            prompt.logprobs.iter().flatten().map(crate::engine::TokenLogprobs::bytes).sum::<usize>()
        };
        let more = match &self.output {
            Ok(Output::Token(Token { text, reasoning, logprobs, prompt, .. })) => {
                let logprobs = logprobs.as_ref().map_or(0, |logprobs| logprobs.bytes());
                text.capacity() + reasoning.capacity() + logprobs + prompt.as_ref().map_or(0, of_prompt)
            }
            Ok(Output::Embedding(embedding)) => embedding.values.len() * size_of::<f32>(),
            Err(_) => 0,
        };
        size_of::<Self>() + more
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
    /// Too much of the stream was unread; see [`Handle::with_most_unread`](super::Handle::with_most_unread).
    #[error("the answer was ended, because its reader is too slow: expected at most {most} unread bytes")]
    Unread {
        /// How many bytes may be unread.
        most: usize,
    },
    /// The thread that owns the model has ended unexpectedly, for example because of a panic.
    #[error("the engine stopped before the answer was complete")]
    EngineStopped,
}

/// Identifies an [`OutputStream`]; unique within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

impl StreamId {
    pub(super) fn number(self) -> u64 {
        self.0
    }

    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Both ends of a stream whose outputs may take about `most` unread bytes.
pub(super) fn channel(most: usize) -> (Outbox, Inbox) {
    let (sender, receiver) = unbounded_channel();
    let unread = Arc::new(AtomicUsize::new(0));
    (Outbox { sender, unread: Arc::clone(&unread), most }, Inbox { receiver, unread })
}

/// The engine's end of a stream.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    sender: UnboundedSender<RequestOutput>,
    unread: Arc<AtomicUsize>,
    most: usize,
}

impl Outbox {
    /// Whether the other end was dropped.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// The error with which the stream must end, if too much of it is unread.
    pub(super) fn too_much_unread(&self) -> Option<RequestError> {
        let is_too_much = self.unread.load(Ordering::Relaxed) > self.most;
        is_too_much.then_some(RequestError::Unread { most: self.most })
    }

    pub(super) fn send(&self, output: RequestOutput) {
        self.unread.fetch_add(output.bytes(), Ordering::Relaxed);
        // If the other end was dropped, the engine ends the request before its next step.
        let _ = self.sender.send(output);
    }
}

/// The reader's end of a stream.
#[derive(Debug)]
pub(super) struct Inbox {
    receiver: UnboundedReceiver<RequestOutput>,
    unread: Arc<AtomicUsize>,
}

impl Inbox {
    async fn next(&mut self) -> Option<RequestOutput> {
        let received = self.receiver.recv().await;
        self.counted(received)
    }

    fn next_blocking(&mut self) -> Option<RequestOutput> {
        let received = self.receiver.blocking_recv();
        self.counted(received)
    }

    fn try_next(&mut self) -> Option<RequestOutput> {
        let received = self.receiver.try_recv().ok();
        self.counted(received)
    }

    fn counted(&self, received: Option<RequestOutput>) -> Option<RequestOutput> {
        received.inspect(|output| {
            self.unread.fetch_sub(output.bytes(), Ordering::Relaxed);
        })
    }
}

/// The answers to the submitted prompts, token by token, in the order of generation.
///
/// The last output of each answer is a token with a finish reason, an embedding, or an error. Dropping the stream cancels
/// unfinished answers before the next step.
#[derive(Debug)]
pub struct OutputStream {
    id: StreamId,
    outputs: Inbox,
    /// Indices of the unfinished answers.
    unfinished: BTreeSet<usize>,
}

impl OutputStream {
    pub(super) fn new(id: StreamId, outputs: Inbox, answers: usize) -> Self {
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
        let received = self.outputs.next().await;
        self.or_stopped(received)
    }

    /// Like [`OutputStream::next`], for synchronous code.
    ///
    /// # Panics
    ///
    /// If called within an asynchronous task of Tokio, which must not be blocked.
    pub fn next_blocking(&mut self) -> Option<RequestOutput> {
        let received = self.outputs.next_blocking();
        self.or_stopped(received)
    }

    /// The next output, if it is there already.
    pub fn try_next(&mut self) -> Option<RequestOutput> {
        let received = self.outputs.try_next()?;
        self.or_stopped(Some(received))
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
