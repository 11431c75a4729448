//! Middleware for requests: request id and log line, API key, host check, and whether the model is loaded.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderName, ORIGIN};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::ApiError;
use super::client::Peer;
use crate::app::App;

/// Header with the request id, in requests and responses.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Header in which clients of the Anthropic API send their key.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Longest request id that is accepted from a client.
const LONGEST_ID: usize = 128;

/// The request id, used in logs and in the id of the response.
#[derive(Debug, Clone)]
pub struct HttpRequestId(pub String);

/// Digests of the API keys. Comparing digests does not leak by its timing how much of a key is right.
#[derive(Clone)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    pub fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|key| Sha256::digest(key.trim().as_bytes()).into()).collect())
    }

    /// The digest of the key that a request brings, if that is a key of the server. `Ok(None)` if no key is needed.
    fn of(&self, request: &Request) -> Result<Option<[u8; 32]>, ApiError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let header = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let bearer = header(AUTHORIZATION).and_then(|value| value.split_once(' '));
        let bearer = bearer.filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer")).map(|(_, key)| key);
        let key = bearer.or_else(|| header(API_KEY));
        let digest = key.map(|key| <[u8; 32]>::from(Sha256::digest(key.trim().as_bytes())));
        match digest.filter(|digest| self.0.contains(digest)) {
            Some(digest) => Ok(Some(digest)),
            None => Err(ApiError::unauthorized()),
        }
    }
}

/// Rejects a request without a valid API key, and says of others whose they are.
pub async fn authenticate(State((keys, app)): State<(Keys, Arc<App>)>, mut request: Request, next: Next) -> Response {
    let key = match keys.of(&request) {
        Ok(key) => key,
        Err(error) => return error.into_response(),
    };
    let client = app.clients.client(key.as_ref(), request.extensions().get::<Peer>());
    request.extensions_mut().insert(client);
    next.run(request).await
}

/// Headers that decide something: of two, it would be unclear which one counts.
const SINGLE_HEADERS: [HeaderName; 7] =
    [HOST, AUTHORIZATION, API_KEY, CONTENT_TYPE, CONTENT_ENCODING, ORIGIN, REQUEST_ID];

/// Rejects a request with two headers of which only one can count, or whose target names another host than its header.
pub async fn refuse_doubled_headers(request: Request, next: Next) -> Response {
    let headers = request.headers();
    if let Some(name) = SINGLE_HEADERS.iter().find(|name| headers.get_all(*name).iter().nth(1).is_some()) {
        return ApiError::doubled_header(name).into_response();
    }
    let host = headers.get(HOST).map(HeaderValue::as_bytes);
    match request.uri().authority() {
        Some(target) if host.is_some_and(|host| !host.eq_ignore_ascii_case(target.as_str().as_bytes())) => {
            ApiError::other_authority(target.as_str()).into_response()
        }
        _ => next.run(request).await,
    }
}

/// Protects a local server without keys against DNS rebinding, by which a page of another site could reach it under its own
/// host name: rejects a request whose `Host` is neither `localhost` nor an address.
pub async fn require_local_host(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if is_local_host(host) { next.run(request).await } else { ApiError::foreign_host(host).into_response() }
}

/// Whether `host` is `localhost` or an address, with a port or without.
fn is_local_host(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// Rejects a request that needs the model while it is loading or the server is stopping.
pub async fn require_model(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.is_stopping() {
        return ApiError::not_ready("the server stops").into_response();
    }
    match app.models.is_ready() {
        false => ApiError::not_ready("the model is being loaded").into_response(),
        true => next.run(request).await,
    }
}

/// Assigns the request id, from the client or a new one, and logs the status of the response. Never logs the contents.
pub async fn assign_id_and_log(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let mut ids = request.headers().get_all(REQUEST_ID).iter();
    let given = ids.next().filter(|id| ids.next().is_none() && is_valid_id(id)).cloned();
    let id = given.or_else(|| app.next_id().parse().ok()).unwrap_or(HeaderValue::from_static("unnamed"));
    let method = request.method().clone();
    // Log the route pattern instead of the path, because the path of an unknown route may contain anything.
    let path = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let name = id.to_str().unwrap_or_default().to_owned();
    request.extensions_mut().insert(HttpRequestId(name.clone()));
    let mut line = LogLine { name, method, path, started, status: None };
    let mut response = next.run(request).await;
    line.status = Some(response.status());
    app.metrics.refused(&response);
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The log line of a request, written on drop: also if the client disconnects before the response.
struct LogLine {
    name: String,
    method: Method,
    path: String,
    started: Instant,
    status: Option<StatusCode>,
}

impl Drop for LogLine {
    fn drop(&mut self) {
        let Self { name, method, path, started, status } = self;
        let milliseconds = started.elapsed().as_millis() as u64;
        match status.map(|status| status.as_u16()) {
            Some(status) => tracing::info!(request = name, %method, path, status, milliseconds, "answered"),
            None => tracing::info!(request = name, %method, path, milliseconds, "the client went away"),
        }
    }
}

fn is_valid_id(id: &HeaderValue) -> bool {
    let visible = |byte: &u8| byte.is_ascii_graphic();
    (1..=LONGEST_ID).contains(&id.len()) && id.as_bytes().iter().all(visible)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_localhost_and_addresses_are_local_hosts() {
        for host in ["localhost", "localhost:8080", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:8080", "[::1]", "10.0.0.2"]
        {
            assert!(is_local_host(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example:80"] {
            assert!(!is_local_host(host), "{host}");
        }
    }
}
