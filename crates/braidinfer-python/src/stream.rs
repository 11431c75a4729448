//! Streams of tokens.

use std::pin::pin;
use std::process;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use braidinfer::handle::{OutputStream, RequestOutput, StreamId};
use braidinfer::{Handle, Output, Token};
use numpy::PyArray1;
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use crate::errors::ended;
use crate::waiting::{Bell, clock, require_process, waited_on};

/// A token with its log-probability, and the likeliest tokens at its place with theirs.
type Logprobs = (u32, f32, Vec<(u32, f32)>);

/// What one step gave for one answer.
#[pyclass(frozen, get_all, module = "braidinfer._braidinfer")]
pub struct TokenOutput {
    /// Index of the answer: all answers to the first prompt come first, then those to the second, and so on.
    index: usize,
    /// `None` with an embedding or an error.
    token_id: Option<u32>,
    /// The text that is now certain; often empty, sometimes that of several tokens.
    text: String,
    /// The same of the reasoning before the answer.
    reasoning: String,
    /// Why the answer ended, with its last token: `stop` or `length`.
    finish_reason: Option<&'static str>,
    logprobs: Option<Logprobs>,
    /// Of every token of the prompt but the first, with the first token of the answer.
    prompt_logprobs: Option<Vec<Logprobs>>,
    /// Tokens of the prompt that were taken from the prefix cache, with the first token of the answer.
    num_cached_tokens: Option<usize>,
    /// `[hidden_size]` in f32.
    embedding: Option<Py<PyArray1<f32>>>,
    /// The exception that ended the answer.
    error: Option<Py<PyAny>>,
}

/// The outputs of submitted prompts, in the order of generation. Dropping it cancels answers that are unfinished.
#[pyclass(frozen, module = "braidinfer._braidinfer")]
pub struct Stream {
    id: StreamId,
    handle: Handle,
    /// The process that loaded the model.
    process: u32,
    outputs: Mutex<OutputStream>,
    clock: OnceLock<Runtime>,
    bell: OnceLock<Bell>,
}

#[pymethods]
impl Stream {
    /// Waits for the next output and returns it with all that are there already; an empty list if all answers have ended.
    fn read(&self, py: Python<'_>) -> PyResult<Vec<TokenOutput>> {
        require_process(self.process)?;
        let clock = made_once(&self.clock, clock)?;
        let outputs = waited_on(py, clock, async { next(&mut *self.outputs.lock().await).await })?;
        converted(py, outputs)
    }

    /// Like `read`, without waiting: None if there is no output yet. Then what `fileno` gives becomes readable once there is one.
    fn poll(&self, py: Python<'_>) -> PyResult<Option<Vec<TokenOutput>>> {
        require_process(self.process)?;
        let bell = self.bell()?;
        let mut outputs =
            self.outputs.try_lock().map_err(|_| PyRuntimeError::new_err("another thread reads this stream"))?;
        bell.silence();
        match pin!(next(&mut outputs)).poll(&mut Context::from_waker(bell.waker())) {
            Poll::Ready(outputs) => converted(py, outputs).map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// The number of a socket for the event loop to watch.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.bell()?.fileno())
    }

    /// Ends unfinished answers before the next step.
    fn cancel(&self) {
        self.handle.cancel(self.id);
    }
}

impl Stream {
    pub fn new(handle: Handle, outputs: OutputStream) -> Self {
        let (clock, bell) = (OnceLock::new(), OnceLock::new());
        Self { id: outputs.id(), handle, process: process::id(), outputs: Mutex::new(outputs), clock, bell }
    }

    fn bell(&self) -> PyResult<&Bell> {
        let make = || Bell::new().map_err(|error| PyOSError::new_err(format!("a socket for a stream: {error}")));
        made_once(&self.bell, make)
    }
}

/// What is in the cell, or else what is made now; if another thread was faster, what that made.
fn made_once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> PyResult<T>) -> PyResult<&T> {
    match cell.get() {
        Some(made) => Ok(made),
        None => make().map(|made| cell.get_or_init(|| made)),
    }
}

/// The next output, and all that are there already.
async fn next(outputs: &mut OutputStream) -> Vec<RequestOutput> {
    let Some(first) = outputs.next().await else { return Vec::new() };
    let mut read = vec![first];
    while let Some(output) = outputs.try_next() {
        read.push(output);
    }
    read
}

fn converted(py: Python<'_>, outputs: Vec<RequestOutput>) -> PyResult<Vec<TokenOutput>> {
    outputs.into_iter().map(|output| TokenOutput::new(py, output)).collect()
}

impl TokenOutput {
    fn new(py: Python<'_>, output: RequestOutput) -> PyResult<Self> {
        let empty = Self {
            index: output.choice,
            token_id: None,
            text: String::new(),
            reasoning: String::new(),
            finish_reason: None,
            logprobs: None,
            prompt_logprobs: None,
            num_cached_tokens: None,
            embedding: None,
            error: None,
        };
        Ok(match output.output {
            Ok(Output::Token(token)) => empty.with_token(token),
            Ok(Output::Embedding(embedding)) => {
                Self { embedding: Some(PyArray1::from_vec(py, embedding.values).unbind()), ..empty }
            }
            Err(error) => Self { error: Some(ended(&error).into_value(py).into_any()), ..empty },
        })
    }

    fn with_token(self, token: Token) -> Self {
        let logprobs = |of: braidinfer::engine::TokenLogprobs| (of.token, of.logprob, of.top);
        let (prompt_logprobs, num_cached_tokens) = match token.prompt {
            Some(prompt) => {
                let of_prompt = prompt.logprobs.map(|of_prompt| of_prompt.into_iter().map(logprobs).collect());
                (of_prompt, Some(prompt.num_cached_tokens))
            }
            None => (None, None),
        };
        Self {
            token_id: Some(token.id),
            text: token.text,
            reasoning: token.reasoning,
            finish_reason: token.finished.map(|reason| reason.as_str()),
            logprobs: token.logprobs.map(logprobs),
            prompt_logprobs,
            num_cached_tokens,
            ..self
        }
    }
}
