//! What every request passes: a name and a line in the log, the key, and whether there is a model yet.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, HOST, HeaderName};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::ApiError;
use crate::served::App;

/// Names a request, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name of a request that is taken from its sender.
const LONGEST_ID: usize = 128;

/// What a request is called in logs, and its answer after it.
#[derive(Debug, Clone)]
pub struct RequestName(pub String);

/// Keys by their digests: comparing those takes as long for a key that is nearly right as for any other.
#[derive(Clone)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    pub fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|key| Sha256::digest(key.trim().as_bytes()).into()).collect())
    }

    fn opens(&self, request: &Request) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let brought = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key =
            brought.and_then(|value| value.split_once(' ')).filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
        key.is_some_and(|(_, key)| {
            let digest: [u8; 32] = Sha256::digest(key.trim().as_bytes()).into();
            self.0.contains(&digest)
        })
    }
}

/// Refuses a request without a key of this server.
pub async fn authenticate(State(keys): State<Keys>, request: Request, next: Next) -> Response {
    if keys.opens(&request) { next.run(request).await } else { ApiError::unauthorized().into_response() }
}

/// Refuses a request that a page of another site sent, which its browser believes to be that site: on a server without keys
/// that only this machine can reach, the name it is called by must be one of this machine.
pub async fn require_own_name(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if is_own_name(host) { next.run(request).await } else { ApiError::foreign_host(host).into_response() }
}

/// Whether `host` is `localhost` or an address, with a port or without.
fn is_own_name(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// Refuses a request that needs the model, while there is none, or none any more.
pub async fn require_model(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.is_stopping() {
        return ApiError::not_ready("the server stops").into_response();
    }
    match app.served() {
        None => ApiError::not_ready("the model is being loaded").into_response(),
        Some(_) => next.run(request).await,
    }
}

/// Names a request, by what its sender calls it or by a name of our own, and logs how it was answered; never what it
/// said.
pub async fn name_and_log(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let given = request.headers().get(REQUEST_ID).filter(|id| is_fit(id)).cloned();
    let id = given.or_else(|| app.next_id().parse().ok()).unwrap_or(HeaderValue::from_static("unnamed"));
    let method = request.method().clone();
    // The pattern and not the path: what does not exist may be anything, and need not be in a log.
    let path = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let name = id.to_str().unwrap_or_default().to_owned();
    request.extensions_mut().insert(RequestName(name.clone()));
    let mut line = LogLine { name, method, path, started, status: None };
    let mut response = next.run(request).await;
    line.status = Some(response.status());
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// A line of the log: also of a request whose sender goes away before it is answered.
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

fn is_fit(id: &HeaderValue) -> bool {
    let visible = |byte: &u8| byte.is_ascii_graphic();
    (1..=LONGEST_ID).contains(&id.len()) && id.as_bytes().iter().all(visible)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_sites_do_not_know_our_name() {
        for host in ["localhost", "localhost:8080", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:8080", "[::1]", "10.0.0.2"]
        {
            assert!(is_own_name(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example:80"] {
            assert!(!is_own_name(host), "{host}");
        }
    }
}
