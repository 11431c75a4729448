//! A model with its engine, on a thread of its own.

use std::path::PathBuf;
use std::process;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use braidinfer::engine::Pooling;
use braidinfer::executor::standard::LoadProgress;
use braidinfer::handle::{EngineObserver, OutputStream, Task};
use braidinfer::{GenerateRequest, Handle, Llm, Prompt, SamplingParams};
use braidinfer_server::KvEventPublisher;
use numpy::{PyArray2, PyArrayMethods};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::{ModelError, bad_argument, exception, refused};
use crate::notices::Notices;
use crate::options::{Options, chosen, source};
use crate::pipeline::{StageWork, connection, parsed};
use crate::prompts::{EncodedPrompt, RawPrompt, conversation};
use crate::sampling::overridden;
use crate::stream::Stream;
use crate::waiting::{SIGNAL_INTERVAL, require_process, waited};

/// Stack of a thread that loads: as large as that of a program's first thread.
const LOADING_STACK: usize = 8 << 20;

const POOLINGS: [(&str, Pooling); 2] = [("last", Pooling::Last), ("mean", Pooling::Mean)];

/// A model that many threads and tasks use at once.
#[pyclass(frozen, module = "braidinfer._braidinfer")]
pub struct Engine {
    handle: Mutex<Option<Handle>>,
    /// The process that loaded it: its threads are not in copies of the process.
    process: u32,
    defaults: SamplingParams,
    /// What the model is called in messages.
    #[pyo3(get)]
    label: String,
    #[pyo3(get)]
    kernels: &'static str,
    /// Longest sequence in tokens.
    #[pyo3(get)]
    context: usize,
    #[pyo3(get)]
    vocab_size: usize,
    #[pyo3(get)]
    hidden_size: usize,
    /// What was decided or ignored while loading.
    notes: Vec<String>,
    notices: Arc<Notices>,
    /// The report of the check by which kernels were chosen, as JSON.
    #[pyo3(get)]
    compat: Option<String>,
    /// Tokens that end an answer.
    #[pyo3(get)]
    eos_token_ids: Vec<u32>,
    #[pyo3(get)]
    bos_token_id: Option<u32>,
    /// Tokens of a block of the prefix cache.
    #[pyo3(get)]
    block_size: usize,
    /// Where changes of the prefix cache are published.
    #[pyo3(get)]
    kv_events: Option<String>,
}

#[pymethods]
impl Engine {
    /// Loads a model. `progress` is called with the number of layers that are loaded, and of all.
    #[new]
    fn new(py: Python<'_>, model: Option<PathBuf>, options: Options, progress: Option<Py<PyAny>>) -> PyResult<Self> {
        let (publisher, options) = (options.kv_events()?, options.load_options()?);
        let (llm, label) = LoadCallback::new(progress).run(py, move |progress| {
            let source = source(model)?;
            let llm = Llm::open(&source, &options, progress)?;
            Ok((llm, source.label()))
        })?;
        Self::started(llm, label, publisher)
    }

    /// Loads embedding and output head of a model whose layers are computed by stages, which were loaded by the same plan. Returns
    /// the model, and the work for the stages.
    #[staticmethod]
    fn over_stages(
        py: Python<'_>,
        model: Option<PathBuf>,
        options: Options,
        plan: &str,
        fitting_tokens: usize,
    ) -> PyResult<(Self, StageWork)> {
        let (publisher, options, plan) = (options.kv_events()?, options.load_options()?, parsed(plan)?);
        let (connection, work) = connection()?;
        let (llm, label) = LoadCallback::new(None).run(py, move |_| {
            let source = source(model)?;
            let llm = Llm::over_stages(&source, &options, &plan, fitting_tokens, connection)?;
            Ok((llm, source.label()))
        })?;
        Ok((Self::started(llm, label, publisher)?, work))
    }

    /// Queues prompts, each with its sampling parameters. Returns the stream of their answers, and each prompt as text, unless it
    /// was given as token ids, and as token ids.
    fn submit(
        &self,
        py: Python<'_>,
        prompts: Vec<RawPrompt>,
        params: Vec<Bound<'_, PyDict>>,
    ) -> PyResult<(Stream, Vec<PromptAs>)> {
        let handle = self.handle()?;
        let params = params.iter().map(|params| overridden(self.defaults.clone(), params));
        let params = params.collect::<PyResult<Vec<_>>>()?;
        let (requests, shown) = py.detach(|| requests(&handle, prompts, params))?;
        let stream = waited(py, handle.submit_each(requests, Instant::now()))?.map_err(refused)?;
        Ok((self.stream(handle, stream), shown))
    }

    /// Raises what `submit` would raise for this prompt and these sampling parameters.
    fn validate(&self, py: Python<'_>, prompt: RawPrompt, params: &Bound<'_, PyDict>) -> PyResult<()> {
        let handle = self.handle()?;
        let params = overridden(self.defaults.clone(), params)?;
        let ids = py.detach(|| prompt.encode(handle.text()))?.ids;
        let checked = waited(py, handle.call(move |llm| llm.check(&ids, &params)))?.map_err(refused)?;
        checked.map_err(|error| exception(&error))
    }

    /// Queues prompts for their embeddings.
    fn submit_embeddings(&self, py: Python<'_>, prompts: Vec<RawPrompt>, pooling: &str) -> PyResult<Stream> {
        let handle = self.handle()?;
        let task = Task::Embed { pooling: chosen("pooling", pooling, &POOLINGS)?, adapter: None };
        let ids = |prompt: RawPrompt| PyResult::Ok(prompt.encode(handle.text())?.ids);
        let prompts = py.detach(|| prompts.into_iter().map(ids).collect::<PyResult<_>>())?;
        let stream = waited(py, handle.submit(prompts, task, Instant::now()))?.map_err(refused)?;
        Ok(self.stream(handle, stream))
    }

    /// Logits `[rows, vocab_size]` in f32 after the last token of a prompt, or with `all` after each.
    fn logits<'py>(&self, py: Python<'py>, prompt: RawPrompt, all: bool) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let handle = self.handle()?;
        let ids = py.detach(|| prompt.encode(handle.text()))?.ids;
        let computed = handle.call(move |llm| llm.logits(&ids, all).map(|rows| (rows.concat(), rows.len())));
        let (values, rows) = waited(py, computed)?.map_err(refused)?.map_err(|error| exception(&error))?;
        let columns = values.len() / rows.max(1);
        PyArrayMethods::reshape(&numpy::PyArray1::from_vec(py, values), [rows, columns])
    }

    /// Token ids of a text; with `special`, the special tokens that the tokenizer adds to prompts as well.
    fn encode(&self, py: Python<'_>, text: String, special: bool) -> PyResult<Vec<u32>> {
        let handle = self.handle()?;
        let encode = || match special {
            true => handle.text().encode(&Prompt::Text(text)),
            false => handle.text().require_tokenizer()?.encode(&text, false),
        };
        py.detach(encode).map_err(|error| exception(&error))
    }

    /// The text of token ids.
    fn decode(&self, py: Python<'_>, ids: Vec<u32>, skip_special_tokens: bool) -> PyResult<String> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size) {
            return Err(bad_argument("ids", format!("ids below the vocabulary size {}", self.vocab_size), id));
        }
        let handle = self.handle()?;
        let decode = || handle.text().require_tokenizer()?.decode(&ids, skip_special_tokens);
        py.detach(decode).map_err(|error| exception(&error))
    }

    /// The prompt of a chat as text.
    fn render_chat(&self, py: Python<'_>, messages: &str, variables: &str) -> PyResult<String> {
        let handle = self.handle()?;
        py.detach(|| Ok(conversation(handle.text(), messages, variables)?.text))
    }

    /// What was decided or ignored while loading, and what was said since then.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.notes.iter().cloned().chain(self.notices.all()).collect()
    }

    /// Ends all answers and gives back what the model holds, once the last stream of it is gone. May be called again.
    fn close(&self, py: Python<'_>) {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        // In a copy of the process the thread is missing, and to wait for it would never end.
        if self.process == process::id() {
            py.detach(|| handle.into_iter().for_each(Handle::end_and_wait));
        }
    }
}

impl Engine {
    fn started(mut llm: Llm, label: String, publisher: Option<KvEventPublisher>) -> PyResult<Self> {
        let kv_events = publisher.as_ref().map(|publisher| publisher.address().to_string());
        if let Some(publisher) = publisher {
            llm.listen_to_blocks(publisher.into_listener()).map_err(|error| exception(&error))?;
        }
        let compat = llm.compat().map(serde_json::to_string).transpose();
        let compat = compat.map_err(|error| ModelError::new_err(error.to_string()))?;
        let (defaults, kernels, context) = (llm.default_sampling(), llm.kernels().as_str(), llm.context());
        let (vocab_size, hidden_size) = (llm.spec().vocab_size, llm.spec().hidden_size);
        let (notes, block_size) = (llm.notes().to_vec(), llm.block_size());
        let generation = llm.generation_config();
        let (eos_token_ids, bos_token_id) = (generation.eos_token_id.clone(), generation.bos_token_id);
        let notices = Arc::<Notices>::default();
        let observer: Arc<dyn EngineObserver> = Arc::clone(&notices) as _;
        let handle = Handle::start(llm, observer)
            .map_err(|error| PyRuntimeError::new_err(format!("a thread for the model: {error}")))?;
        Ok(Self {
            handle: Mutex::new(Some(handle)),
            process: process::id(),
            defaults,
            label,
            kernels,
            context,
            vocab_size,
            hidden_size,
            notes,
            notices,
            compat,
            eos_token_ids,
            bos_token_id,
            block_size,
            kv_events,
        })
    }

    fn stream(&self, handle: Handle, outputs: OutputStream) -> Stream {
        Stream::new(handle, outputs, Arc::clone(&self.notices))
    }

    /// Fails if the model was closed, or loaded by the process that this one is a copy of.
    fn handle(&self) -> PyResult<Handle> {
        require_process(self.process)?;
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).clone();
        handle.ok_or_else(|| PyRuntimeError::new_err("the model was closed"))
    }
}

type PromptAs = (Option<String>, Vec<u32>);

/// Prompts with what to compute for each, and as they are shown.
type Requests = (Vec<(Vec<u32>, Task)>, Vec<PromptAs>);

fn requests(handle: &Handle, prompts: Vec<RawPrompt>, params: Vec<SamplingParams>) -> PyResult<Requests> {
    let (mut requests, mut shown) = (Vec::with_capacity(prompts.len()), Vec::with_capacity(prompts.len()));
    for (prompt, params) in prompts.into_iter().zip(params) {
        let EncodedPrompt { text, ids, format } = prompt.encode(handle.text())?;
        let wanted = GenerateRequest { params, format, ..GenerateRequest::default() };
        requests.push((ids.clone(), Task::Generate(Box::new(wanted))));
        shown.push((text, ids));
    }
    Ok((requests, shown))
}

/// What is told of the progress of loading.
pub struct LoadCallback(Option<Py<PyAny>>);

enum Loading<T> {
    Layers(usize, usize),
    Done(Box<braidinfer::Result<T>>),
}

impl LoadCallback {
    pub fn new(callback: Option<Py<PyAny>>) -> Self {
        Self(callback)
    }

    /// Does `work` on another thread, so that this one sees Ctrl-C at once. After it the work goes on, and its result is dropped.
    pub fn run<T: Send + 'static>(
        self,
        py: Python<'_>,
        work: impl FnOnce(LoadProgress) -> braidinfer::Result<T> + Send + 'static,
    ) -> PyResult<T> {
        let (events, mut received) = channel();
        let load = move || loading(&events, work);
        thread::Builder::new()
            .name("loading".into())
            .stack_size(LOADING_STACK)
            .spawn(load)
            .map_err(|error| PyRuntimeError::new_err(format!("a thread that loads: {error}")))?;
        loop {
            match py.detach(|| next(&mut received)) {
                Ok(Loading::Done(result)) => return result.map_err(|error| exception(&error)),
                Ok(Loading::Layers(done, layers)) => {
                    if let Some(callback) = &self.0 {
                        callback.call1(py, (done, layers))?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(ModelError::new_err("loading ended unexpectedly; please report it"));
                }
            }
            py.check_signals()?;
        }
    }
}

fn next<T>(events: &mut Receiver<Loading<T>>) -> Result<Loading<T>, RecvTimeoutError> {
    events.recv_timeout(SIGNAL_INTERVAL)
}

fn loading<T: Send>(events: &Sender<Loading<T>>, work: impl FnOnce(LoadProgress) -> braidinfer::Result<T>) {
    // Where nobody waits any more, nobody is told.
    let done = work(&|done, layers| drop(events.send(Loading::Layers(done, layers))));
    let _ = events.send(Loading::Done(Box::new(done)));
}
