//! A model that many callers use at once, from synchronous and from asynchronous code.
//!
//! [`Handle::start`] gives an [`Llm`] to a thread of its own, which runs its steps. Whoever has the handle, or a clone of
//! it, submits prompts and reads what comes from an [`OutputStream`]. Requests of all callers take part in the same
//! steps. No async runtime is needed, and any will do.
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
//! let task = Task::Generate(Box::new(llm.default_sampling()), None);
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
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use crate::engine::{ConstraintFactory, Pooling, SamplingParams};
use crate::{Error, Llm, ModelText};

pub use self::observer::{AnswerEnd, EngineObserver, TokenTimes};
pub use self::stream::{OutputStream, RequestError, RequestOutput, StreamId};

use self::engine_thread::{Command, EngineThread, Submission};

/// What is wanted of prompts.
#[derive(Debug, Clone)]
pub enum Task {
    /// Answers, which may have to have a form.
    Generate(Box<SamplingParams>, Option<ConstraintFactory>),
    /// Vectors.
    Embed(Pooling),
}

impl Task {
    /// Answers to each prompt; a vector counts as one.
    pub fn n(&self) -> usize {
        match self {
            Self::Generate(params, _) => params.n,
            Self::Embed(_) => 1,
        }
    }
}

/// Why prompts were not queued.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The engine cannot or will not run one of them: none was queued. [`Error::QueueFull`] says that there is no room now.
    #[error(transparent)]
    Refused(#[from] Error),
    /// The thread that owns the model has ended, because something in it is broken.
    #[error("the engine has stopped")]
    EngineStopped,
}

/// A model on its own thread. Clones are cheap and stand for the same model.
///
/// When the last clone is dropped, answers that are unfinished end with [`RequestError::ShuttingDown`] after the step that
/// runs, and the thread drops the model and ends.
#[derive(Clone)]
pub struct Handle {
    commands: Sender<Command>,
    thread: Arc<JoinHandle<()>>,
    text: Arc<ModelText>,
}

impl Handle {
    /// Gives a model to a new thread. `observer` is told there what the engine does; `Arc::new(())` ignores it.
    ///
    /// Fails where the system gives no thread.
    pub fn start(llm: Llm, observer: Arc<dyn EngineObserver>) -> io::Result<Self> {
        let (commands, received) = channel();
        let text = Arc::clone(llm.text());
        let engine = EngineThread::new(llm, observer, received);
        let thread = thread::Builder::new().name("engine".into()).spawn(move || engine.run())?;
        Ok(Self { commands, thread: Arc::new(thread), text })
    }

    /// The model's tokenizer, chat template and settings, which turn text into prompts.
    pub fn text(&self) -> &Arc<ModelText> {
        &self.text
    }

    /// Whether the thread runs. It ends before the last handle is dropped only if something in it is broken.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Queues prompts, given as token ids: all of them, or none. `arrived` is when they were asked for, from which times
    /// are counted.
    ///
    /// Waits for the end of the step that runs. If the future is dropped before it is ready, nothing stays queued.
    pub async fn submit(
        &self,
        prompts: Vec<Vec<u32>>,
        task: Task,
        arrived: Instant,
    ) -> Result<OutputStream, SubmitError> {
        let (accepted, submitted) = self.send(prompts, task, arrived)?;
        submitted.stream(accepted.await)
    }

    /// As [`Handle::submit`], for synchronous code.
    ///
    /// # Panics
    ///
    /// Within an asynchronous task of Tokio, which must not be blocked.
    pub fn submit_blocking(
        &self,
        prompts: Vec<Vec<u32>>,
        task: Task,
        arrived: Instant,
    ) -> Result<OutputStream, SubmitError> {
        let (accepted, submitted) = self.send(prompts, task, arrived)?;
        submitted.stream(accepted.blocking_recv())
    }

    /// Sends prompts to the thread, which says whether it has queued them.
    fn send(
        &self,
        prompts: Vec<Vec<u32>>,
        task: Task,
        arrived: Instant,
    ) -> Result<(oneshot::Receiver<crate::Result<()>>, Submitted), SubmitError> {
        let (sender, outputs) = mpsc::unbounded_channel();
        let (accept, accepted) = oneshot::channel();
        let submitted = Submitted { id: StreamId::next(), outputs, prompts: prompts.len(), n: task.n() };
        let submission = Submission { stream: submitted.id, prompts, task, arrived, outputs: sender, accept };
        self.commands.send(Command::Submit(Box::new(submission))).map_err(|_| SubmitError::EngineStopped)?;
        Ok((accepted, submitted))
    }

    /// Ends the unfinished answers of a stream with [`RequestError::Cancelled`] before the next step, from wherever; to
    /// drop the stream does the same. A stream that has ended is left as it is.
    pub fn cancel(&self, stream: StreamId) {
        // A thread that is gone has ended it already.
        let _ = self.commands.send(Command::Cancel(stream));
    }

    /// Ends every unfinished answer with [`RequestError::ShuttingDown`] before the next step. What is submitted later is
    /// answered.
    pub fn end_all(&self) {
        // A thread that is gone has ended them already.
        let _ = self.commands.send(Command::EndAll);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("is_alive", &self.is_alive()).finish_non_exhaustive()
    }
}

/// Prompts that were sent to the thread and may be refused by it.
struct Submitted {
    id: StreamId,
    outputs: mpsc::UnboundedReceiver<RequestOutput>,
    prompts: usize,
    /// Answers to each prompt.
    n: usize,
}

impl Submitted {
    /// The stream, if the thread has queued the prompts.
    fn stream(
        self,
        accepted: Result<crate::Result<()>, oneshot::error::RecvError>,
    ) -> Result<OutputStream, SubmitError> {
        accepted.map_err(|_| SubmitError::EngineStopped)??;
        Ok(OutputStream::new(self.id, self.outputs, self.prompts * self.n))
    }
}
