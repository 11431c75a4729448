//! Streams of tokens.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use braidinfer::handle::{OutputStream, RequestOutput, StreamId};
use braidinfer::{Handle, Output, Token};
use numpy::PyArray1;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::errors::ended;

/// How often a thread that waits looks for Ctrl-C.
pub const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

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
    /// Why the answer ended, with its last token: `stop`, `length` or `cancelled`.
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
    outputs: Arc<Mutex<OutputStream>>,
    /// Waits for outputs with a time limit.
    waiting: OnceLock<Runtime>,
}

#[pymethods]
impl Stream {
    /// Waits for the next output and returns it with all that are there already; an empty list if all answers have ended.
    fn read(&self, py: Python<'_>) -> PyResult<Vec<TokenOutput>> {
        let waiting = self.waiting()?;
        loop {
            let outputs = Arc::clone(&self.outputs);
            let limited = || waiting.block_on(async { timeout(SIGNAL_INTERVAL, next(outputs)).await.ok() });
            if let Some(outputs) = py.detach(limited) {
                return converted(py, outputs);
            }
            py.check_signals()?;
        }
    }

    /// Like `read`, to be awaited in a task of asyncio. If that is cancelled, an output may be lost.
    fn read_async<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let outputs = Arc::clone(&self.outputs);
        pyo3_async_runtimes::tokio::future_into_py(py, async move {
            let outputs = next(outputs).await;
            Python::attach(|py| converted(py, outputs))
        })
    }

    /// Ends unfinished answers before the next step.
    fn cancel(&self) {
        self.handle.cancel(self.id);
    }
}

impl Stream {
    pub fn new(handle: Handle, outputs: OutputStream) -> Self {
        Self { id: outputs.id(), handle, outputs: Arc::new(Mutex::new(outputs)), waiting: OnceLock::new() }
    }

    fn waiting(&self) -> PyResult<&Runtime> {
        if let Some(runtime) = self.waiting.get() {
            return Ok(runtime);
        }
        let built = Builder::new_current_thread().enable_time().build();
        let runtime = built.map_err(|error| PyRuntimeError::new_err(format!("waiting for tokens: {error}")))?;
        Ok(self.waiting.get_or_init(|| runtime))
    }
}

/// The next output, and all that are there already.
async fn next(outputs: Arc<Mutex<OutputStream>>) -> Vec<RequestOutput> {
    let mut outputs = outputs.lock().await;
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
