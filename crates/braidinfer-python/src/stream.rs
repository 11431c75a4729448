//! Streams of tokens.

use std::collections::BTreeMap;
use std::pin::pin;
use std::process;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use braidinfer::engine::TokenLogprobs;
use braidinfer::handle::{OutputStream, RequestError, RequestOutput, StreamId};
use braidinfer::{Handle, Output, Token};
use numpy::PyArray1;
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use crate::errors::ended;
use crate::notices::Notices;
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

/// A whole answer.
#[pyclass(frozen, get_all, module = "braidinfer._braidinfer")]
#[derive(Default)]
pub struct AnswerOutput {
    /// Index of the answer, as in `TokenOutput`.
    index: usize,
    /// With the end token.
    token_ids: Vec<u32>,
    text: String,
    reasoning: String,
    /// `stop` or `length`; `None` with an error.
    finish_reason: Option<&'static str>,
    /// Of each token, as far as asked for.
    logprobs: Vec<Logprobs>,
    prompt_logprobs: Option<Vec<Logprobs>>,
    num_cached_tokens: Option<usize>,
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
    outputs: Mutex<Outputs>,
    clock: OnceLock<Runtime>,
    bell: OnceLock<Bell>,
    notices: Arc<Notices>,
}

/// What is read of a stream.
struct Outputs {
    stream: OutputStream,
    /// The answers of which only whole ones are wanted, by their index, as far as they are there.
    unfinished: BTreeMap<usize, Vec<Token>>,
}

/// The tokens of an answer, and the error that ended it, if it was one.
type Ended = (usize, Vec<Token>, Option<RequestError>);

#[pymethods]
impl Stream {
    /// Waits for the next output and returns it with all that are there already; an empty list if all answers have ended.
    fn read(&self, py: Python<'_>) -> PyResult<Vec<TokenOutput>> {
        require_process(self.process)?;
        let clock = made_once(&self.clock, clock)?;
        let outputs = waited_on(py, clock, async { next(&mut self.outputs.lock().await.stream).await })?;
        self.notices.log(py);
        converted(py, outputs)
    }

    /// Like `read`, without waiting: None if there is no output yet. Then what `fileno` gives becomes readable once there is one.
    fn poll(&self, py: Python<'_>) -> PyResult<Option<Vec<TokenOutput>>> {
        let read = self.polled(|outputs, context| pin!(next(&mut outputs.stream)).poll(context))?;
        self.notices.log(py);
        read.map(|outputs| converted(py, outputs)).transpose()
    }

    /// Waits until an answer has ended, and returns it with all others that have; an empty list if there are no more.
    fn read_answers(&self, py: Python<'_>) -> PyResult<Vec<AnswerOutput>> {
        require_process(self.process)?;
        let clock = made_once(&self.clock, clock)?;
        let ended = waited_on(py, clock, async { self.outputs.lock().await.next_ended().await })?;
        self.notices.log(py);
        Ok(answers(py, ended))
    }

    /// Like `read_answers`, without waiting: None if no answer has ended since. Then what `fileno` gives becomes readable once there
    /// is something new.
    fn poll_answers(&self, py: Python<'_>) -> PyResult<Option<Vec<AnswerOutput>>> {
        let ended = self.polled(|outputs, context| pin!(outputs.next_ended()).poll(context))?;
        self.notices.log(py);
        Ok(ended.map(|ended| answers(py, ended)))
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
    pub fn new(handle: Handle, outputs: OutputStream, notices: Arc<Notices>) -> Self {
        let id = outputs.id();
        let outputs = Mutex::new(Outputs { stream: outputs, unfinished: BTreeMap::new() });
        Self { id, handle, process: process::id(), outputs, clock: OnceLock::new(), bell: OnceLock::new(), notices }
    }

    /// What a future gives that reads outputs, if it is ready. If it is not, it rings the bell.
    fn polled<T>(&self, poll: impl FnOnce(&mut Outputs, &mut Context<'_>) -> Poll<T>) -> PyResult<Option<T>> {
        require_process(self.process)?;
        let bell = self.bell()?;
        let mut outputs =
            self.outputs.try_lock().map_err(|_| PyRuntimeError::new_err("another thread reads this stream"))?;
        bell.silence();
        match poll(&mut outputs, &mut Context::from_waker(bell.waker())) {
            Poll::Ready(read) => Ok(Some(read)),
            Poll::Pending => Ok(None),
        }
    }

    fn bell(&self) -> PyResult<&Bell> {
        let make = || Bell::new().map_err(|error| PyOSError::new_err(format!("a socket for a stream: {error}")));
        made_once(&self.bell, make)
    }
}

impl Outputs {
    /// The answers that end next, whole; none if all have ended. What is read before stays here if the future is dropped.
    async fn next_ended(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        while ended.is_empty()
            && let Some(first) = self.stream.next().await
        {
            ended.extend(self.take(first));
            while let Some(output) = self.stream.try_next() {
                ended.extend(self.take(output));
            }
        }
        ended
    }

    /// Adds an output to its answer, and returns that if it was the last one.
    fn take(&mut self, output: RequestOutput) -> Option<Ended> {
        let RequestOutput { choice, output } = output;
        let tokens = self.unfinished.entry(choice).or_default();
        let error = match output {
            Ok(Output::Token(token)) => {
                let is_last = token.finished.is_some();
                tokens.push(token);
                if !is_last {
                    return None;
                }
                None
            }
            // Of a prompt that has no answer.
            Ok(Output::Embedding(_)) => None,
            Err(error) => Some(error),
        };
        self.unfinished.remove(&choice).map(|tokens| (choice, tokens, error))
    }
}

fn answers(py: Python<'_>, ended: Vec<Ended>) -> Vec<AnswerOutput> {
    ended.into_iter().map(|ended| AnswerOutput::new(py, ended)).collect()
}

impl AnswerOutput {
    fn new(py: Python<'_>, (index, tokens, error): Ended) -> Self {
        let error = error.map(|error| ended(&error).into_value(py).into_any());
        let mut answer = Self { index, error, ..Self::default() };
        for token in tokens {
            answer.token_ids.push(token.id);
            answer.text += &token.text;
            answer.reasoning += &token.reasoning;
            answer.finish_reason = token.finished.map(|reason| reason.as_str());
            answer.logprobs.extend(token.logprobs.map(logprobs));
            if let Some(prompt) = token.prompt {
                answer.num_cached_tokens = Some(prompt.num_cached_tokens);
                answer.prompt_logprobs = of_prompt(prompt.logprobs);
            }
        }
        answer
    }
}

fn logprobs(of: TokenLogprobs) -> Logprobs {
    (of.token, of.logprob, of.top)
}

fn of_prompt(of: Option<Vec<TokenLogprobs>>) -> Option<Vec<Logprobs>> {
    of.map(|of_prompt| of_prompt.into_iter().map(logprobs).collect())
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
        let (prompt_logprobs, num_cached_tokens) = match token.prompt {
            Some(prompt) => (of_prompt(prompt.logprobs), Some(prompt.num_cached_tokens)),
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
