//! What handlers share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use braidinfer::compat::CompatReport;
use braidinfer::engine::ConstraintFactory;
use braidinfer::executor::ActiveKernels;
use braidinfer::{AnswerForm, Error, Handle, Llm, ModelText, SamplingParams, StructuredOutput};
use tokio::time::timeout_at;

use crate::http::{ApiError, ServerConfig};
use crate::metrics::Metrics;

/// Normalizing makes a text shorter by less than this factor.
const SHRINKS: usize = 4;

/// The server, with or without its model.
pub struct App {
    pub config: ServerConfig,
    served: OnceLock<Arc<Served>>,
    is_stopping: AtomicBool,
    requests: AtomicU64,
    /// Tells the requests of one server from those of another in logs.
    salt: u32,
}

/// A model that is served.
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
    /// Bytes, if there is a tokenizer.
    longest_token: Option<usize>,
    pub kernels: ActiveKernels,
    pub compat: Option<CompatReport>,
    /// Made when it is first asked for: large vocabularies take their time.
    structured: OnceLock<StructuredOutput>,
}

impl Served {
    pub fn begin(llm: Llm, name: String, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        Ok(Self {
            name,
            created: seconds_since_1970(),
            text: Arc::clone(llm.text()),
            default_sampling: llm.default_sampling(),
            context: llm.context(),
            vocab_size: llm.spec().vocab_size,
            longest_token: llm.text().longest_token(),
            kernels: llm.kernels(),
            compat: llm.compat().cloned(),
            engine: Handle::start(llm, Arc::<Metrics>::clone(&metrics))?,
            metrics,
            structured: OnceLock::new(),
        })
    }

    /// Does something that takes its time, which is not taken from other requests.
    pub async fn aside<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> braidinfer::Result<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let served = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&served)).await;
        Ok(done.map_err(|error| ApiError::internal(format!("the request could not be read: {error}")))??)
    }

    /// Refuses a text that cannot fit into the context, before it is cut into tokens.
    pub fn check_length(&self, bytes: usize) -> braidinfer::Result<()> {
        match self.longest_token.map(|longest| bytes / longest.max(1)) {
            Some(tokens) if tokens > self.context.saturating_mul(SHRINKS) => {
                Err(Error::PromptTooLong { prompt: tokens, context: self.context })
            }
            _ => Ok(()),
        }
    }

    /// What holds answers to a form; `field` is for messages.
    pub fn constraint(&self, form: &AnswerForm, field: &str) -> braidinfer::Result<ConstraintFactory> {
        let structured = match self.structured.get() {
            Some(structured) => structured,
            None => {
                let made = StructuredOutput::new(&self.text, self.vocab_size)?;
                self.structured.get_or_init(|| made)
            }
        };
        structured.constraint(form, field)
    }
}

impl App {
    pub fn new(config: ServerConfig) -> Self {
        Self {
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

    /// What is served, if that is what was asked for; whoever names no model means it.
    pub fn served_as(&self, model: Option<&str>) -> Result<&Arc<Served>, ApiError> {
        let served = self.served().ok_or_else(|| ApiError::not_ready("the model is being loaded"))?;
        match model {
            Some(model) if model != served.name => Err(ApiError::no_such_model(model, &served.name)),
            _ => Ok(served),
        }
    }

    /// When a request must be answered that arrived then.
    pub fn deadline(&self, arrived: Instant) -> tokio::time::Instant {
        (arrived + self.config.request_timeout).into()
    }

    /// Does something for a request that arrived then, or says that it took too long.
    pub async fn in_time<T>(
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

    /// A name for the next request.
    pub fn next_id(&self) -> String {
        format!("{:08x}{:08x}", self.salt, self.requests.fetch_add(1, Ordering::Relaxed))
    }
}

pub fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
