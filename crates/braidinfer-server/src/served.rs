//! State that all HTTP handlers share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use braidinfer::compat::CompatReport;
use braidinfer::conversation::{ReasoningFormat, ToolCallFormat};
use braidinfer::engine::{ClientId, ConstraintFactory};
use braidinfer::executor::ActiveKernels;
use braidinfer::{
    AnswerForm, CancelFlag, Error, FormLimits, Handle, Llm, ModelText, SamplingParams, StructuredOutput, WeightsInfo,
};
use chrono::{DateTime, SecondsFormat, Utc};
use tokio::time::timeout_at;

use crate::api::ResponseStore;
use crate::budget::Budget;
use crate::fair_slots::{FairSlots, Slot};
use crate::http::{ApiError, Clients, Connections, FormatChoice, ServerConfig};
use crate::metrics::{Metrics, ServerMetrics};

/// Text normalization shortens a text by less than this factor.
const MAX_SHRINK: usize = 4;

/// Requests at once whose answers have a form that is not compiled yet. Each needs a process of its own; others wait.
const FORM_SLOTS: usize = 8;

/// A slot of [`Served::form_slots`].
pub type FormSlot = Slot<ClientId>;

/// State of the server, with its model once that is loaded.
pub struct App {
    pub config: ServerConfig,
    pub connections: Arc<Connections>,
    pub clients: Clients,
    /// What requests hold in memory.
    pub budget: Arc<Budget>,
    pub metrics: ServerMetrics,
    /// Responses that later requests go on from.
    pub responses: ResponseStore,
    served: OnceLock<Arc<Served>>,
    is_stopping: AtomicBool,
    requests: AtomicU64,
    /// Random prefix of request ids, which distinguishes the requests of different servers in logs.
    salt: u32,
}

/// The model that is served.
pub struct Served {
    pub name: String,
    /// Seconds since 1970.
    pub created: u64,
    pub text: Arc<ModelText>,
    pub engine: Handle,
    pub metrics: Arc<Metrics>,
    pub default_sampling: SamplingParams,
    pub context: usize,
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// The architecture's name in `config.json`.
    pub model_type: String,
    pub weights: WeightsInfo,
    /// Length of the longest token in bytes, if there is a tokenizer.
    longest_token: Option<usize>,
    pub kernels: ActiveKernels,
    pub compat: Option<CompatReport>,
    /// How the model marks its reasoning, if it does.
    pub reasoning_format: Option<ReasoningFormat>,
    /// The marks of the reasoning, which are shown where it is not told apart.
    pub reasoning_marks: Vec<&'static str>,
    /// How it writes tool calls.
    pub tool_calls: ToolCallFormat,
    /// Whether the chat template has a place for tools.
    pub takes_tools: bool,
    structured: Mutex<Option<Arc<StructuredOutput>>>,
    form_limits: FormLimits,
    /// Room for requests that constrain the form of their answers.
    pub form_slots: FairSlots<ClientId>,
}

impl Served {
    pub fn begin(llm: Llm, name: String, metrics: Arc<Metrics>, config: &ServerConfig) -> std::io::Result<Self> {
        let template = llm.chat_template();
        // Tried now, so that no request waits for it.
        let takes_tools = template.is_some_and(|template| template.has_place_for_tools().unwrap_or(false));
        let for_tools = template.and_then(|template| template.for_tools().ok());
        let own_reasoning = [template, for_tools].into_iter().flatten().find_map(ReasoningFormat::of);
        let own_tool_calls = || for_tools.map(ToolCallFormat::of).unwrap_or_default();
        Ok(Self {
            name,
            reasoning_marks: match config.reasoning_format {
                FormatChoice::Named(format) => Some(format),
                FormatChoice::Own | FormatChoice::None => own_reasoning,
            }
            .map(|format| format.marks())
            .unwrap_or_default(),
            reasoning_format: match config.reasoning_format {
                FormatChoice::Own => own_reasoning,
                FormatChoice::None => None,
                FormatChoice::Named(format) => Some(format),
            },
            tool_calls: config.tool_call_format.unwrap_or_else(own_tool_calls),
            takes_tools,
            created: seconds_since_1970(),
            text: Arc::clone(llm.text()),
            default_sampling: llm.default_sampling(),
            context: llm.context(),
            vocab_size: llm.spec().vocab_size,
            hidden_size: llm.spec().hidden_size,
            model_type: llm.spec().model_type.clone(),
            weights: llm.weights().clone(),
            longest_token: llm.text().longest_token(),
            kernels: llm.kernels(),
            compat: llm.compat().cloned(),
            engine: Handle::start(llm, Arc::<Metrics>::clone(&metrics))?,
            metrics,
            structured: Mutex::new(None),
            form_limits: config.form_limits,
            form_slots: FairSlots::new(FORM_SLOTS),
        })
    }

    /// Runs work that may take long on a blocking thread, so that it does not delay other requests.
    pub async fn run_blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> braidinfer::Result<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let served = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&served)).await;
        Ok(done.map_err(|error| ApiError::internal(format!("the request could not be read: {error}")))??)
    }

    /// Rejects a text that is certainly longer than the context, before it is tokenized.
    pub fn check_length(&self, bytes: usize) -> braidinfer::Result<()> {
        match self.longest_token.map(|longest| bytes / longest.max(1)) {
            Some(tokens) if tokens > self.context.saturating_mul(MAX_SHRINK) => {
                Err(Error::PromptTooLong { prompt: tokens, context: self.context })
            }
            _ => Ok(()),
        }
    }

    /// Whether a form can be used without another process.
    pub fn is_compiled(&self, form: &AnswerForm) -> bool {
        self.structured().is_ok_and(|structured| structured.is_compiled(form))
    }

    /// The constraint that makes answers follow `form`; `field` is the request field for error messages. `cancel` ends the
    /// work if nobody waits for it any more.
    pub fn constraint(
        &self,
        form: &AnswerForm,
        field: &str,
        cancel: &CancelFlag,
    ) -> braidinfer::Result<ConstraintFactory> {
        self.structured()?.constraint(form, field, cancel)
    }

    /// Created on first use, because that takes long for large vocabularies; others wait for it meanwhile.
    fn structured(&self) -> braidinfer::Result<Arc<StructuredOutput>> {
        let mut structured = self.structured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(structured) = &*structured {
            return Ok(Arc::clone(structured));
        }
        let made = Arc::new(StructuredOutput::new(&self.text, self.vocab_size, self.form_limits)?);
        Ok(Arc::clone(structured.insert(made)))
    }
}

impl App {
    pub fn new(config: ServerConfig) -> Self {
        Self {
            connections: Connections::new(config.max_connections, config.max_connections_per_client),
            clients: Clients::default(),
            budget: Budget::new(config.max_request_memory),
            metrics: ServerMetrics::default(),
            responses: ResponseStore::default(),
            config,
            served: OnceLock::new(),
            is_stopping: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            salt: rand::random(),
        }
    }

    pub fn serve(&self, served: Served) -> bool {
        self.served.set(Arc::new(served)).is_ok()
    }

    pub fn served(&self) -> Option<&Arc<Served>> {
        self.served.get()
    }

    /// The served model. Fails if `model` names another one; `None` means the served model.
    pub fn served_as(&self, model: Option<&str>) -> Result<&Arc<Served>, ApiError> {
        let served = self.served().ok_or_else(|| ApiError::not_ready("the model is being loaded"))?;
        match model {
            Some(model) if model != served.name && !self.config.model_names.include(model) => {
                Err(ApiError::no_such_model(model, &served.name))
            }
            _ => Ok(served),
        }
    }

    /// Deadline for the response to a request that arrived at `arrived`.
    pub fn deadline(&self, arrived: Instant) -> tokio::time::Instant {
        (arrived + self.config.request_timeout).into()
    }

    /// Runs `work` for a request that arrived at `arrived`; fails at the deadline of the request.
    pub async fn with_deadline<T>(
        &self,
        arrived: Instant,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        timeout_at(self.deadline(arrived), work).await.unwrap_or_else(|_| Err(ApiError::slow_answer()))
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// A new request id.
    pub fn next_id(&self) -> String {
        format!("{:08x}{:08x}", self.salt, self.requests.fetch_add(1, Ordering::Relaxed))
    }
}

/// The time now, as RFC 3339 writes it.
pub fn now_as_text() -> String {
    DateTime::<Utc>::from(SystemTime::now()).to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A time in seconds since 1970, as RFC 3339 writes it.
pub fn time_as_text(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    time.unwrap_or_default().to_rfc3339_opts(SecondsFormat::Secs, true)
}

pub fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
