//! Accepts connections, and lets them end when the server stops.

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

/// Before the next try, where the system has no room for another connection.
const NO_ROOM: Duration = Duration::from_millis(100);
/// For clients to take the last words of answers that were ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

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

    /// Where it listens.
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
        if timeout(app.config.shutdown_timeout, finished(graceful, &app)).await.is_err() {
            tracing::warn!("answers were cut short: connections that did not end in time are closed");
        }
    }
}

/// Waits for all connections to end; shortly before there is no more time, answers that are still written are ended.
async fn finished(graceful: GracefulShutdown, app: &App) {
    let enough = app.config.shutdown_timeout.saturating_sub(LAST_WORDS);
    let all = graceful.shutdown();
    tokio::pin!(all);
    if timeout(enough, &mut all).await.is_err() {
        tracing::warn!("answers are cut short: they did not end in time");
        if let Some(served) = app.served() {
            served.engine.end_all();
        }
        all.await;
    }
}

/// The next connection for which there is room.
async fn accept(socket: &TcpListener, room: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed, so that there always is a permit.
    let permit = Arc::clone(room).acquire_owned().await.ok();
    loop {
        match socket.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(NO_ROOM).await;
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
        // Tokens are small and must not wait for each other.
        let _ = stream.set_nodelay(true);
        // Whoever reads nothing any more must not hold the connection, and what is computed for it.
        let mut stream = Box::pin(TimeoutStream::new(stream));
        stream.as_mut().set_write_timeout_pinned(Some(self.write_timeout));
        match tls {
            None => self.speak(stream).await,
            Some(tls) => match timeout(self.read_timeout, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.speak(stream).await,
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => tracing::debug!("a TLS handshake took too long"),
            },
        }
    }

    async fn speak(self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(self.read_timeout);
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(self.router));
        if let Err(error) = self.watcher.watch(connection).await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}
