//! An OpenAI-compatible server over one model.
//!
//! One thread owns the model and runs its steps (`worker`); handlers turn requests into prompts for it and what it says
//! into answers. Only `api/` knows the wire format.

mod api;
mod http;
mod metrics;
mod served;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;

use braidinfer::Llm;

pub use self::http::{Listener, ServerConfig, StartError, TlsFiles};

use self::metrics::Metrics;
use self::served::{App, Served};

/// A server that listens, and has a model as soon as it is given one. Until then it answers that it is not ready.
pub struct Server {
    app: Arc<App>,
    listener: Listener,
}

impl Server {
    /// Binds the address of `config`. Call it within a Tokio runtime.
    ///
    /// Fails where the address is taken, or reachable from other machines without a key, and on TLS files that cannot be
    /// used.
    pub async fn bind(config: ServerConfig) -> Result<Self, StartError> {
        let listener = Listener::bind(&config).await?;
        Ok(Self { app: Arc::new(App::new(config)), listener })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Hands over what a model is given to the server with.
    pub fn door(&self) -> Door {
        Door(Arc::clone(&self.app))
    }

    /// Answers requests until `stop` is done; then finishes the answers that are being written, for as long as the
    /// configuration allows, and tells the others.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) {
        self.listener.run(self.app, stop).await;
    }
}

/// Where a model enters a server.
#[derive(Clone)]
pub struct Door(Arc<App>);

impl Door {
    /// Serves a model from now on, under a name. A server takes one model; returns whether this was it.
    ///
    /// Fails where the system gives no thread for it.
    pub fn serve(&self, llm: Llm, name: String) -> std::io::Result<bool> {
        let metrics = Arc::new(Metrics::new(&name));
        Ok(self.0.serve(Served::begin(llm, name, metrics)?))
    }
}
