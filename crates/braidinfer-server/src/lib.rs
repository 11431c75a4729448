//! A server over one model, which speaks the APIs of OpenAI, Anthropic and Ollama.
//!
//! A [`Handle`](braidinfer::Handle) owns the model and runs its steps on a separate thread. HTTP handlers turn requests into
//! prompts and the outputs of the engine into responses. Only `api/` knows the wire format.

mod api;
mod budget;
mod fair_slots;
mod http;
#[cfg(feature = "kv-events")]
mod kv_events;
mod metrics;
mod served;
mod worker_metrics;

use std::net::SocketAddr;
use std::sync::Arc;

use braidinfer::Llm;

#[doc(hidden)]
pub use self::api::fuzzing::parse_request;
pub use self::http::{FormatChoice, Listener, ModelNames, ReasoningFields, ServerConfig, StartError, TlsFiles};
#[cfg(feature = "kv-events")]
pub use self::kv_events::KvEventPublisher;

use self::metrics::Metrics;
use self::served::{App, Served};

/// A listening server. Until it is given a model through a [`ModelSlot`], it responds that it is not ready.
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

    /// Serves requests until `stop` completes. Then waits for unfinished answers, up to the configured shutdown timeout, and
    /// ends the remaining ones with an error.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) {
        self.listener.run(self.app, stop).await;
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
        let metrics = Arc::new(Metrics::new(&name, &self.0.metrics, llm.text().worker()));
        Ok(self.0.serve(Served::begin(llm, name, metrics, &self.0.config)?))
    }

    /// How conversations with the served model are read; `None` if there is no model, or it has no chat template.
    pub fn conversations(&self) -> Option<Conversations> {
        let served = self.0.served().filter(|served| served.text.chat_template().is_some())?;
        Some(Conversations {
            reasoning: served.reasoning_format.map(|format| format.name),
            tool_calls: served.takes_tools.then_some(served.tool_calls.name),
        })
    }
}
