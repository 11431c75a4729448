//! Connections and middleware.

mod client;
mod connections;
mod error;
mod exchange;
mod guard;
mod harmless;
mod limits;
mod listener;
mod shown;
mod strict;
mod tls;

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use braidinfer::conversation::{ReasoningFormat, ToolCallFormat};
use braidinfer::{FormLimits, WorkerProgram};
pub use client::{Client, Clients};
pub use connections::Connections;
pub use error::{ApiError, Refusal};
pub use exchange::Kept;
pub use guard::{
    HttpRequestId, Keys, REQUEST_ID, assign_id_and_log, authenticate, refuse_doubled_headers, require_local_host,
    require_model,
};
pub use listener::Listener;
pub use shown::shown;
pub use strict::{IGNORED, Ignored, NoFields, Strict, parse_body, read_bytes};

/// Configuration of a server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Address to listen on.
    pub address: SocketAddr,
    /// API keys, one of which a request must have; if empty, no key is needed.
    pub api_keys: Vec<String>,
    /// Allow an address that other machines can reach although no key is set.
    pub public_without_key: bool,
    /// Origins of web pages that may send requests (CORS); `*` allows any.
    pub cors_origins: Vec<String>,
    /// Certificate and key for TLS; plain HTTP if `None`.
    pub tls: Option<TlsFiles>,
    /// Ignore unknown request fields and list them in a response header, instead of rejecting the request.
    pub lenient: bool,
    /// How reasoning is told from answers.
    pub reasoning_format: FormatChoice,
    /// How tool calls are written; as the model's chat template writes them if `None`.
    pub tool_call_format: Option<ToolCallFormat>,
    /// Most tokens of reasoning where a request does not say.
    pub thinking_budget: Option<usize>,
    /// Under which names reasoning is in answers.
    pub reasoning_fields: ReasoningFields,
    /// Names of the model in requests, besides the one that it is served under.
    pub model_names: ModelNames,
    /// What reads documents, in processes of its own; none are read if `None`.
    pub worker: Option<WorkerProgram>,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Most open connections. While all are taken, idle ones give way to new ones, and further ones are refused, except for
    /// probes of `/health`, `/ready` and `/metrics`.
    pub max_connections: usize,
    /// Most open connections of one address.
    pub max_connections_per_client: usize,
    /// Most memory for the answers to one request, in bytes.
    pub max_answer_bytes: usize,
    /// Most memory for the bodies, prompts and answers of all requests, in bytes; one client may hold half of it.
    pub max_request_memory: usize,
    /// Most time to receive the head of a request, and then its body.
    pub read_timeout: Duration,
    /// Most time for which a client may accept no data.
    pub write_timeout: Duration,
    /// Most time for an answer, from the arrival of the request.
    pub request_timeout: Duration,
    /// What a schema, expression or grammar may cost.
    pub form_limits: FormLimits,
    /// Most time for unfinished answers when the server stops.
    pub shutdown_timeout: Duration,
}

/// Names of the model in requests, besides the one that it is served under.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelNames {
    /// Names that `/v1/models` lists, too.
    pub listed: Vec<String>,
    /// A name that is taken, but not listed.
    pub unlisted: Option<String>,
    /// Whether any name is taken.
    pub any: bool,
}

impl ModelNames {
    /// Whether requests may use this name.
    pub fn include(&self, name: &str) -> bool {
        self.any || self.is_named(name)
    }

    /// Whether this is one of the names.
    pub fn is_named(&self, name: &str) -> bool {
        self.unlisted.as_deref() == Some(name) || self.listed.iter().any(|listed| listed == name)
    }
}

/// How reasoning is told from answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FormatChoice {
    /// By the marks in the model's chat template, if there are any.
    #[default]
    Own,
    /// Not at all.
    None,
    /// By these marks.
    Named(ReasoningFormat),
}

/// Names of reasoning in answers: clients and proxies look for one or the other, and some refuse a message that has both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReasoningFields {
    /// `reasoning_content` and `reasoning`.
    #[default]
    Both,
    /// `reasoning_content` alone.
    ReasoningContent,
    /// `reasoning` alone.
    Reasoning,
}

impl ReasoningFields {
    pub(crate) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Both => &["reasoning_content", "reasoning"],
            Self::ReasoningContent => &["reasoning_content"],
            Self::Reasoning => &["reasoning"],
        }
    }
}

/// PEM files for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain.
    pub certificates: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address could not be bound.
    #[error("{address}: {source}")]
    Bind {
        /// The address to listen on.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Other machines could use the server without a key.
    #[error(
        "{0} can be reached from other machines, and no API key is set: expected a key, an address of this machine alone such as 127.0.0.1, or leave to serve everybody"
    )]
    Public(SocketAddr),
    /// An invalid setting.
    #[error("{setting}: expected {expected}, found {found}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// What was expected.
        expected: Cow<'static, str>,
        /// What was found.
        found: String,
    },
    /// An invalid TLS file.
    #[error("{path}: {message}")]
    Tls {
        /// Path of the file.
        path: String,
        /// The error.
        message: String,
    },
}
