//! Accepts connections, and shuts them down gracefully when the server stops.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::http::{Request, Response};
use axum::response::IntoResponse;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::client::Peer;
use super::connections::{NoRoom, Place};
use super::exchange::{Exchange, HalfOpen};
use super::{ServerConfig, StartError, tls};
use crate::api;
use crate::app::App;

/// Delay before the next attempt after a connection could not be accepted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Time for clients to receive the last events of answers that the shutdown ended.
const FINAL_EVENTS: Duration = Duration::from_secs(2);
/// What spare connections are served: what orchestrators ask for.
const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];
/// Most time for the head of a request on a spare connection.
const SPARE_READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A bound address.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    router_config: api::RouterConfig,
}

impl Listener {
    pub(crate) async fn bind(config: &ServerConfig) -> Result<Self, StartError> {
        config.validate()?;
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
        let stopping = watch::Sender::new(false);
        tokio::pin!(stop);
        loop {
            let (stream, peer) = tokio::select! {
                () = &mut stop => break,
                accepted = accept(&socket) => accepted,
            };
            let connection = Connection {
                router: router.clone(),
                peer,
                place: app.connections.enter(peer),
                read_timeout: app.config.read_timeout,
                write_timeout: app.config.write_timeout,
                stopping: stopping.subscribe(),
                app: Arc::clone(&app),
            };
            tokio::spawn(connection.serve(stream, tls.clone()));
        }
        drop(socket);
        app.stop();
        if timeout(app.config.shutdown_timeout, drain(&stopping, &app)).await.is_err() {
            tracing::warn!("answers were cut short: connections that did not end in time are closed");
        }
    }
}

/// Waits for all connections to end. Shortly before the shutdown timeout, ends the unfinished answers.
async fn drain(stopping: &watch::Sender<bool>, app: &App) {
    let until_end_all = app.config.shutdown_timeout.saturating_sub(FINAL_EVENTS);
    stopping.send_replace(true);
    let all = stopping.closed();
    tokio::pin!(all);
    if timeout(until_end_all, &mut all).await.is_err() {
        tracing::warn!("answers are cut short: they did not end in time");
        app.models.end_answers();
        all.await;
    }
}

/// Accepts the next connection.
async fn accept(socket: &TcpListener) -> (TcpStream, Peer) {
    loop {
        match socket.accept().await {
            Ok((stream, address)) => return (stream, Peer::of(address.ip())),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

struct Connection {
    router: Router,
    peer: Peer,
    place: Place,
    read_timeout: Duration,
    write_timeout: Duration,
    /// Becomes true when the server stops.
    stopping: watch::Receiver<bool>,
    app: Arc<App>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // Tokens are small packets, which Nagle's algorithm would delay.
        let _ = stream.set_nodelay(true);
        // A client that stops reading must not keep its connection and its requests alive.
        let mut stream = Box::pin(TimeoutStream::new(stream));
        stream.as_mut().set_write_timeout_pinned(Some(self.write_timeout));
        let Some(tls) = tls else { return self.serve_http(stream).await };
        let shaken = tokio::select! {
            shaken = timeout(self.read_timeout(), tls.accept(stream)) => shaken,
            () = self.place.gives_way() => return,
        };
        match shaken {
            Ok(Ok(stream)) => self.serve_http(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    fn read_timeout(&self) -> Duration {
        match self.place.no_room {
            Some(_) => self.read_timeout.min(SPARE_READ_TIMEOUT),
            None => self.read_timeout,
        }
    }

    async fn serve_http(self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let read_timeout = self.read_timeout();
        let Self { router, peer, place, mut stopping, app, .. } = self;
        let exchange = Arc::clone(&place.exchange);
        let service = ConnectionService { router, peer, exchange: Arc::clone(&exchange), no_room: place.no_room, app };
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(read_timeout);
        let stream = TokioIo::new(HalfOpen::new(stream, Arc::clone(&exchange)));
        let mut connection = std::pin::pin!(http.serve_connection(stream, service));
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = place.gives_way() => None,
            _ = stopping.wait_for(|is_stopping| *is_stopping) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            // Nothing was asked, or only a part of a question came.
            None if exchange.idle_since().is_some() => return,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

/// Serves the requests of one connection.
struct ConnectionService {
    router: Router,
    peer: Peer,
    exchange: Arc<Exchange>,
    no_room: Option<NoRoom>,
    app: Arc<App>,
}

impl Service<Request<Incoming>> for ConnectionService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let ongoing = self.exchange.begin(&request);
        let mut request = request.map(|body| ongoing.receiving(body));
        request.extensions_mut().insert(self.peer);
        let is_refused = self.no_room.filter(|_| !PROBES.contains(&request.uri().path()));
        let (router, app, is_spare) = (self.router.clone(), Arc::clone(&self.app), self.no_room.is_some());
        Box::pin(async move {
            let mut response = match is_refused {
                Some(no_room) => {
                    let refusal = no_room.error().into_response();
                    app.metrics.refused(&refusal);
                    refusal
                }
                None => router.oneshot(request).await?,
            };
            if is_spare {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(|body| ongoing.answering(body)))
        })
    }
}
