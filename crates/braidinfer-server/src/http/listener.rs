//! Accepts connections, and shuts them down gracefully when the server stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use super::{ServerConfig, StartError, tls};
use crate::api;
use crate::served::App;

/// Delay before the next attempt after a connection could not be accepted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Time for clients to receive the last events of answers that the shutdown ended.
const FINAL_EVENTS: Duration = Duration::from_secs(2);

/// A bound address.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    router_config: api::RouterConfig,
}

impl Listener {
    pub(crate) async fn bind(config: &ServerConfig) -> Result<Self, StartError> {
        let asked = config.address;
        if !asked.ip().is_loopback() && config.api_keys.is_empty() && !config.public_without_key {
            return Err(StartError::Public(asked));
        }
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let router_config = api::RouterConfig::of(config)?;
        let failed = |source| StartError::Bind { address: asked, source };
        let socket = TcpListener::bind(asked).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address, tls, router_config })
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn run(self, app: Arc<App>, stop: impl Future<Output = ()> + Send) {
        let Self { socket, tls, router_config, .. } = self;
        let router = api::router(Arc::clone(&app), router_config);
        let room = Arc::new(Semaphore::new(app.config.max_connections));
        let graceful = GracefulShutdown::new();
        tokio::pin!(stop);
        loop {
            let (stream, permit) = tokio::select! {
                () = &mut stop => break,
                accepted = accept(&socket, &room) => accepted,
            };
            let connection = Connection {
                router: router.clone(),
                read_timeout: app.config.read_timeout,
                write_timeout: app.config.write_timeout,
                watcher: graceful.watcher(),
                _permit: permit,
            };
            tokio::spawn(connection.serve(stream, tls.clone()));
        }
        drop(socket);
        app.stop();
        if timeout(app.config.shutdown_timeout, drain(graceful, &app)).await.is_err() {
            tracing::warn!("answers were cut short: connections that did not end in time are closed");
        }
    }
}

/// Waits for all connections to end. Shortly before the shutdown timeout, ends the unfinished answers.
async fn drain(graceful: GracefulShutdown, app: &App) {
    let until_end_all = app.config.shutdown_timeout.saturating_sub(FINAL_EVENTS);
    let all = graceful.shutdown();
    tokio::pin!(all);
    if timeout(until_end_all, &mut all).await.is_err() {
        tracing::warn!("answers are cut short: they did not end in time");
        if let Some(served) = app.served() {
            served.engine.end_all();
        }
        all.await;
    }
}

/// Accepts the next connection, once there are fewer than the maximum.
async fn accept(socket: &TcpListener, room: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // Never `None`, because the semaphore is never closed.
    let permit = Arc::clone(room).acquire_owned().await.ok();
    loop {
        match socket.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

struct Connection {
    router: Router,
    read_timeout: Duration,
    write_timeout: Duration,
    watcher: Watcher,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // Tokens are small packets, which Nagle's algorithm would delay.
        let _ = stream.set_nodelay(true);
        // A client that stops reading must not keep its connection and its requests alive.
        let mut stream = Box::pin(TimeoutStream::new(stream));
        stream.as_mut().set_write_timeout_pinned(Some(self.write_timeout));
        match tls {
            None => self.serve_http(stream).await,
            Some(tls) => match timeout(self.read_timeout, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.serve_http(stream).await,
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => tracing::debug!("a TLS handshake took too long"),
            },
        }
    }

    async fn serve_http(self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(self.read_timeout);
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(self.router));
        if let Err(error) = self.watcher.watch(connection).await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}
