//! A model that is loaded.

use std::sync::{Arc, Mutex, PoisonError};

use braidinfer::compat::CompatReport;
use braidinfer::engine::{ClientId, ConstraintFactory};
use braidinfer::executor::ActiveKernels;
use braidinfer::text::ChatTemplate;
use braidinfer::{
    AnswerForm, CancelFlag, Error, FormLimits, Handle, Llm, LoadedAdapter, ModelText, SamplingParams, StructuredOutput,
};

use super::about::{About, Conversations};
use crate::fair_slots::{FairSlots, Slot};
use crate::http::{ApiError, ServerConfig};
use crate::metrics::Metrics;

/// Text normalization shortens a text by less than this factor.
const MAX_SHRINK: usize = 4;

/// Requests at once whose answers have a form that is not compiled yet. Each needs a process of its own; others wait.
const FORM_SLOTS: usize = 8;

/// A slot of [`Served::form_slots`].
pub type FormSlot = Slot<ClientId>;

/// A model that is served.
pub struct Served {
    pub name: String,
    pub about: Arc<About>,
    pub text: Arc<ModelText>,
    pub engine: Handle,
    pub default_sampling: SamplingParams,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Length of the longest token in bytes, if there is a tokenizer.
    longest_token: Option<usize>,
    pub kernels: ActiveKernels,
    pub compat: Option<CompatReport>,
    pub adapters: Vec<LoadedAdapter>,
    structured: Mutex<Option<Arc<StructuredOutput>>>,
    form_limits: FormLimits,
    /// Room for requests that constrain the form of their answers.
    pub form_slots: FairSlots<ClientId>,
}

impl Served {
    pub fn begin(llm: Llm, name: String, metrics: Metrics, config: &ServerConfig) -> std::io::Result<Self> {
        Ok(Self {
            name,
            // Templates are tried now, so that no request waits for it.
            about: Arc::new(About::of(&llm.outline(), config)),
            text: Arc::clone(llm.text()),
            default_sampling: llm.default_sampling(),
            context: llm.context(),
            longest_token: llm.text().longest_token(),
            kernels: llm.kernels(),
            compat: llm.compat().cloned(),
            adapters: llm.adapters().to_vec(),
            engine: Handle::start(llm, Arc::new(metrics))?,
            structured: Mutex::new(None),
            form_limits: config.form_limits,
            form_slots: FairSlots::new(FORM_SLOTS),
        })
    }

    /// How conversations with it are read.
    pub fn conversations(&self) -> &Conversations {
        &self.about.conversations
    }

    /// Whether the model reasons, or its chat template knows that some do.
    pub fn knows_reasoning(&self) -> bool {
        let mentions = |template: &ChatTemplate| ["thinking", "reasoning"].iter().any(|word| template.mentions(word));
        self.conversations().reasoning_format.is_some() || self.text.chat_template().is_some_and(mentions)
    }

    /// Fails if the engine will answer nothing any more.
    pub fn check_engine(&self) -> Result<(), ApiError> {
        if !self.engine.is_alive() {
            return Err(ApiError::not_ready("the engine has stopped"));
        }
        self.engine.fault().map_or(Ok(()), |fault| Err(fault.into()))
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
        let made = Arc::new(StructuredOutput::new(&self.text, self.about.vocab_size, self.form_limits)?);
        Ok(Arc::clone(structured.insert(made)))
    }
}
