//! Connections, and what every request passes on its way.

mod error;
mod guard;
mod listener;
mod strict;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use error::ApiError;
pub use guard::{Keys, REQUEST_ID, RequestName, authenticate, name_and_log, require_model, require_own_name};
pub use listener::Listener;
pub use strict::{IGNORED, Ignored, Strict};

/// How a server answers.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where it listens.
    pub address: SocketAddr,
    /// Keys, one of which a request must bring; if there is none, anybody may ask.
    pub api_keys: Vec<String>,
    /// Listen where other machines can reach it, without a key.
    pub public_without_key: bool,
    /// Origins of web pages that may ask; `*` is any.
    pub cors_origins: Vec<String>,
    /// Speak TLS.
    pub tls: Option<TlsFiles>,
    /// Ignore fields of requests that mean nothing here, and name them in a header, instead of refusing the request.
    pub lenient: bool,
    /// Largest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// Connections at once; others wait.
    pub max_connections: usize,
    /// For a request to arrive: its head, and then its body.
    pub read_timeout: Duration,
    /// For a client to take some of what is sent to it.
    pub write_timeout: Duration,
    /// For an answer, from the arrival of the request on.
    pub request_timeout: Duration,
    /// For answers that are being written when the server stops.
    pub shutdown_timeout: Duration,
}

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those that vouch for it.
    pub certificates: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Why a server could not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address.
    #[error("{address}: {source}")]
    Bind {
        /// Where it should listen.
        address: SocketAddr,
        /// The system's own reason.
        source: io::Error,
    },
    /// Everybody could use it.
    #[error(
        "{0} can be reached from other machines, and no API key is set: expected a key, an address of this machine alone such as 127.0.0.1, or leave to serve everybody"
    )]
    Public(SocketAddr),
    /// A setting that cannot be used.
    #[error("{setting}: expected {expected}, found {found}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// A TLS file.
    #[error("{path}: {message}")]
    Tls {
        /// The file.
        path: String,
        /// What is wrong with it.
        message: String,
    },
}
