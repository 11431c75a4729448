//! State that all HTTP handlers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use braidinfer::engine::ClientId;
use tokio::time::timeout_at;

use crate::api::ResponseStore;
use crate::budget::Budget;
use crate::fair_slots::FairSlots;
use crate::http::{ApiError, Clients, Connections, ServerConfig};
use crate::metrics::ServerMetrics;
use crate::models::{Lease, Models};

/// Documents that are read at once.
const DOCUMENT_SLOTS: usize = 4;

/// State of the server.
pub struct App {
    pub config: Arc<ServerConfig>,
    pub connections: Arc<Connections>,
    pub clients: Clients,
    /// What requests hold in memory.
    pub budget: Arc<Budget>,
    pub metrics: Arc<ServerMetrics>,
    /// Responses that later requests go on from.
    pub responses: ResponseStore,
    pub models: Arc<Models>,
    /// Room for requests whose documents are read.
    pub document_slots: FairSlots<ClientId>,
    is_stopping: AtomicBool,
    requests: AtomicU64,
    /// Random prefix of request ids, which distinguishes the requests of different servers in logs.
    salt: u32,
}

impl App {
    pub fn new(config: ServerConfig) -> Self {
        let (config, metrics) = (Arc::new(config), Arc::new(ServerMetrics::new()));
        Self {
            connections: Connections::new(config.max_connections, config.max_connections_per_client),
            clients: Clients::default(),
            budget: Budget::new(config.max_request_memory),
            responses: ResponseStore::default(),
            models: Models::new(&config, &metrics),
            document_slots: FairSlots::new(DOCUMENT_SLOTS),
            config,
            metrics,
            is_stopping: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            salt: rand::random(),
        }
    }

    /// The model with this name, or the only one if `None`; loaded if it is not, which may take long.
    pub async fn lease(&self, model: Option<&str>) -> Result<Lease, ApiError> {
        self.models.lease(model).await
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
