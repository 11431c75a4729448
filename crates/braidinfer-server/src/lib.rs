//! A server over one model or several, which speaks the APIs of OpenAI, Anthropic and Ollama.
//!
//! A [`Handle`](braidinfer::Handle) owns the model and runs its steps on a separate thread. HTTP handlers turn requests into
//! prompts and the outputs of the engine into responses. Only `api/` knows the wire format.

mod api;
mod app;
mod budget;
mod clock;
mod fair_slots;
mod http;
#[cfg(feature = "kv-events")]
mod kv_events;
mod metrics;
mod models;
mod worker_metrics;

use std::net::SocketAddr;
use std::sync::Arc;

use braidinfer::Llm;

#[doc(hidden)]
pub use self::api::fuzzing::parse_request;
pub use self::http::{FormatChoice, Listener, ModelNames, ReasoningFields, ServerConfig, StartError, TlsFiles};
#[cfg(feature = "kv-events")]
pub use self::kv_events::KvEventPublisher;

pub use self::models::{Catalog, Fetch, FetchProgress, ModelOnDemand, OnDemand};

use self::app::App;

/// A listening server. Until it has a model, through a [`ModelSlot`] or [`Server::serve_on_demand`], it responds that it is not
/// ready.
pub struct Server {
    app: Arc<App>,
    listener: Listener,
}

impl Server {
    /// Binds the address of `config`. Call it within a Tokio runtime.
    ///
    /// Fails if the address is in use, if other machines can reach it and no API key is set, or if the TLS files are invalid.
    pub async fn bind(config: ServerConfig) -> Result<Self, StartError> {
        let listener = Listener::bind(&config).await?;
        Ok(Self { app: Arc::new(App::new(config)), listener })
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// The slot through which the server is given its model.
    pub fn model_slot(&self) -> ModelSlot {
        ModelSlot(Arc::clone(&self.app))
    }

    /// Serves models that are loaded when somebody asks for them. Returns `false` if the server already has a model.
    pub fn serve_on_demand(&self, models: OnDemand) -> bool {
        self.app.models.on_demand(models)
    }

    /// Serves requests until `stop` completes. Then waits for unfinished answers, up to the configured shutdown timeout, and
    /// ends the remaining ones with an error.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) {
        let idle = tokio::spawn(Arc::clone(&self.app.models).unload_idle());
        self.listener.run(self.app, stop).await;
        idle.abort();
    }
}

/// The place for the one model of a server.
#[derive(Clone)]
pub struct ModelSlot(Arc<App>);

/// How conversations with a model are read, by the names of the formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversations {
    /// How reasoning is told from answers; `None` if it is not.
    pub reasoning: Option<&'static str>,
    /// How tool calls are written; `None` if the chat template has no place for tools.
    pub tool_calls: Option<&'static str>,
}

impl ModelSlot {
    /// Serves a model under a name from now on. Returns `false` if the server already has a model.
    ///
    /// Fails if the thread for the model cannot be created.
    pub fn serve(&self, llm: Llm, name: String) -> std::io::Result<bool> {
        self.0.models.give(llm, name)
    }

    /// How conversations with the served model are read; `None` if there is no model, or it has no chat template.
    pub fn conversations(&self) -> Option<Conversations> {
        let served = self.0.models.given().filter(|served| served.text.chat_template().is_some())?;
        let found = served.conversations();
        Some(Conversations {
            reasoning: found.reasoning_format.map(|format| format.name),
            tool_calls: found.takes_tools.then_some(found.tool_calls.name),
        })
    }
}
