//! A model on its own thread that many callers use at once, from synchronous and asynchronous code.
//!
//! [`Handle::start`] moves an [`Llm`] to a new thread, which runs its steps. Callers submit prompts through the handle or a
//! clone of it and read outputs from an [`OutputStream`]. Requests of all callers are batched into the same steps. No async
//! runtime is needed, and any runtime works.
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Instant;
//!
//! use braidinfer::handle::{Handle, Task};
//! use braidinfer::model::ModelSource;
//! use braidinfer::{Llm, LoadOptions, Output, Prompt};
//!
//! let llm = Llm::open(&ModelSource::open("path/to/model")?, &LoadOptions::default(), &|_, _| {})?;
//! let task = Task::generate(llm.default_sampling());
//! let handle = Handle::start(llm, Arc::new(()))?;
//! let prompt = handle.text().encode(&Prompt::Text("Once upon a time".into()))?;
//! // In asynchronous code: `handle.submit(..).await?` and `outputs.next().await`.
//! let mut outputs = handle.submit_blocking(vec![prompt], task, Instant::now())?;
//! while let Some(output) = outputs.next_blocking() {
//!     if let Output::Token(token) = output.output? {
//!         print!("{}", token.text);
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod engine_thread;
mod observer;
mod stream;

use std::fmt;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::engine::{ClientId, Pooling, SamplingParams};
use crate::{Error, GenerateRequest, Llm, ModelText};

pub use self::observer::{AnswerEnd, EngineObserver, TokenTimes};
pub use self::stream::{OutputStream, RequestError, RequestOutput, StreamId};

use self::engine_thread::{Command, EngineThread, Submission};

/// What to compute for prompts.
#[derive(Debug, Clone)]
pub enum Task {
    /// Generated answers.
    Generate(Box<GenerateRequest>),
    /// Embeddings.
    Embed {
        /// How they are made of hidden states.
        pooling: Pooling,
        /// Index of the adapter to compute with, in [`Llm::adapters`].
        adapter: Option<u32>,
    },
}

impl Task {
    /// Generated answers without a constraint, as plain text.
    pub fn generate(params: SamplingParams) -> Self {
        Self::Generate(Box::new(GenerateRequest { params, ..GenerateRequest::default() }))
    }

    /// Number of answers to each prompt; an embedding counts as one.
    pub fn n(&self) -> usize {
        match self {
            Self::Generate(wanted) => wanted.params.n,
            Self::Embed { .. } => 1,
        }
    }
}

/// Why prompts were not queued.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The engine rejected one of the prompts, and none was queued. With [`Error::QueueFull`] the caller may retry later.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The thread that owns the model has ended unexpectedly, for example because of a panic.
    #[error("the engine has stopped")]
    EngineStopped,
}

/// A model on its own thread. Clones are cheap and refer to the same model.
///
/// When the last clone is dropped, unfinished answers end with [`RequestError::ShuttingDown`] after the current step, and the
/// thread drops the model and ends.
#[derive(Clone)]
pub struct Handle {
    commands: Sender<Command>,
    thread: Arc<JoinHandle<()>>,
    /// An error after which every step fails.
    fault: Arc<OnceLock<Arc<Error>>>,
    text: Arc<ModelText>,
    client: ClientId,
    most_unread: usize,
}

impl Handle {
    /// Moves a model to a new thread. `observer` is called on that thread with what the engine does; `Arc::new(())` ignores
    /// everything.
    ///
    /// Fails if the thread cannot be created.
    pub fn start(llm: Llm, observer: Arc<dyn EngineObserver>) -> io::Result<Self> {
        let (commands, received) = channel();
        let text = Arc::clone(llm.text());
        let fault = Arc::default();
        let engine = EngineThread::new(llm, observer, received, Arc::clone(&fault));
        let thread = thread::Builder::new().name("engine".into()).spawn(move || engine.run())?;
        let (client, most_unread) = (ClientId::default(), usize::MAX);
        Ok(Self { commands, thread: Arc::new(thread), fault, text, client, most_unread })
    }

    /// A handle to the same model that submits prompts for a client of its own. The engine takes turns between clients.
    pub fn for_client(&self, client: ClientId) -> Self {
        Self { client, ..self.clone() }
    }

    /// A handle to the same model whose streams keep no more than about `bytes` of outputs that nobody has read (see
    /// [`RequestOutput::bytes`]). A stream that has more ends with [`RequestError::Unread`]. Without this, streams keep
    /// everything until it is read.
    pub fn with_most_unread(&self, bytes: usize) -> Self {
        Self { most_unread: bytes, ..self.clone() }
    }

    /// The model's tokenizer, chat template and settings, which turn text into prompts.
    pub fn text(&self) -> &Arc<ModelText> {
        &self.text
    }

    /// Whether the thread runs. It ends before the last handle is dropped only after a panic.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// The first error after which every step fails ([`Error::is_lasting`]), if there was one: only a new start helps.
    pub fn fault(&self) -> Option<&Error> {
        self.fault.get().map(|error| &**error)
    }

    /// Queues prompts, given as token ids: either all of them or none. Latencies are measured from `arrived`, the arrival of
    /// the request.
    ///
    /// Waits for the end of the current step. If the future is dropped before it is ready, no prompt stays queued.
    pub async fn submit(
        &self,
        prompts: Vec<Vec<u32>>,
        task: Task,
        arrived: Instant,
    ) -> Result<OutputStream, SubmitError> {
        let (accepted, submitted) = self.send(with_task(prompts, &task), arrived)?;
        submitted.stream(accepted.await)
    }

    /// Like [`Handle::submit`], for synchronous code.
    ///
    /// # Panics
    ///
    /// If called within an asynchronous task of Tokio, which must not be blocked.
    pub fn submit_blocking(
        &self,
        prompts: Vec<Vec<u32>>,
        task: Task,
        arrived: Instant,
    ) -> Result<OutputStream, SubmitError> {
        let (accepted, submitted) = self.send(with_task(prompts, &task), arrived)?;
        submitted.stream(accepted.blocking_recv())
    }

    /// Like [`Handle::submit`], with a task of its own for each prompt.
    pub async fn submit_each(
        &self,
        requests: Vec<(Vec<u32>, Task)>,
        arrived: Instant,
    ) -> Result<OutputStream, SubmitError> {
        let (accepted, submitted) = self.send(requests, arrived)?;
        submitted.stream(accepted.await)
    }

    /// Sends prompts to the thread, which says whether it has queued them.
    fn send(
        &self,
        requests: Vec<(Vec<u32>, Task)>,
        arrived: Instant,
    ) -> Result<(oneshot::Receiver<crate::Result<()>>, Submitted), SubmitError> {
        let (outbox, outputs) = stream::channel(self.most_unread);
        let (accept, accepted) = oneshot::channel();
        let submitted = Submitted { id: StreamId::next(), outputs, answers: answers(&requests) };
        let (stream, client) = (submitted.id, self.client);
        let submission = Submission { stream, client, requests, arrived, outbox, accept };
        self.commands.send(Command::Submit(Box::new(submission))).map_err(|_| SubmitError::EngineStopped)?;
        Ok((accepted, submitted))
    }

    /// Calls `work` with the model, on its thread and between two steps, and waits for what it returns. Unfinished answers wait,
    /// too.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Llm) -> T + Send + 'static,
    ) -> Result<T, SubmitError> {
        let (answer, answered) = oneshot::channel();
        let call = move |llm: &mut Llm| {
            // If the caller no longer waits, nobody wants the answer.
            let _ = answer.send(work(llm));
        };
        self.commands.send(Command::Call(Box::new(call))).map_err(|_| SubmitError::EngineStopped)?;
        answered.await.map_err(|_| SubmitError::EngineStopped)
    }

    /// Ends the unfinished answers of a stream with [`RequestError::Cancelled`] before the next step. Dropping the stream
    /// does the same. Does nothing if the stream has ended.
    pub fn cancel(&self, stream: StreamId) {
        // If the thread has ended, so has the stream.
        let _ = self.commands.send(Command::Cancel(stream));
    }

    /// Ends every unfinished answer with [`RequestError::ShuttingDown`] before the next step. Prompts submitted later are
    /// still answered.
    pub fn end_all(&self) {
        // If the thread has ended, so have all answers.
        let _ = self.commands.send(Command::EndAll);
    }

    /// Ends every unfinished answer, and if this is the last handle to the model, waits until its thread has dropped it.
    pub fn end_and_wait(self) {
        self.end_all();
        let Self { commands, thread, .. } = self;
        drop(commands);
        if let Some(thread) = Arc::into_inner(thread) {
            // Who waits for an answer was told of a panic.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("is_alive", &self.is_alive()).finish_non_exhaustive()
    }
}

/// Prompts that were sent to the thread, which has not accepted or rejected them yet.
struct Submitted {
    id: StreamId,
    outputs: stream::Inbox,
    /// Number of answers to all prompts.
    answers: usize,
}

/// Number of answers to all of them.
fn answers(requests: &[(Vec<u32>, Task)]) -> usize {
    // Numbers are checked later.
    requests.iter().map(|(_, task)| task.n()).fold(0, usize::saturating_add)
}

fn with_task(prompts: Vec<Vec<u32>>, task: &Task) -> Vec<(Vec<u32>, Task)> {
    prompts.into_iter().map(|prompt| (prompt, task.clone())).collect()
}

impl Submitted {
    /// The stream, if the thread has queued the prompts.
    fn stream(
        self,
        accepted: Result<crate::Result<()>, oneshot::error::RecvError>,
    ) -> Result<OutputStream, SubmitError> {
        accepted.map_err(|_| SubmitError::EngineStopped)??;
        Ok(OutputStream::new(self.id, self.outputs, self.answers))
    }
}
