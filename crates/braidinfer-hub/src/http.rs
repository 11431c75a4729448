//! HTTP requests: redirects are followed here, so that only the Hub receives the token; errors are classified as
//! transient or permanent, and transient ones are retried.

use std::io::{self, Read};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use crate::error::shown;
use crate::{HubError, HubId, Progress, Result, Retry, Settings};

const MAX_REDIRECTS: usize = 10;
const USER_AGENT: &str = concat!("braidinfer/", env!("CARGO_PKG_VERSION"));
/// Timeout for the headers of a response, and for the whole body of a response that is read into memory.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(120);

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum FetchError {
    /// The error may go away. `wait` is the delay that the server asked for.
    Transient { error: HubError, wait: Option<Duration> },
    /// Another attempt would fail the same way.
    Permanent(HubError),
}

impl FetchError {
    pub fn transient(error: HubError) -> Self {
        Self::Transient { error, wait: None }
    }
}

impl From<HubError> for FetchError {
    fn from(error: HubError) -> Self {
        Self::Permanent(error)
    }
}

/// The repository or file that a request is for, for messages.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub id: &'a HubId,
    pub file: Option<&'a str>,
}

impl Subject<'_> {
    fn name(&self) -> String {
        match self.file {
            Some(file) => format!("{}/{}", self.id.repo(), shown(file)),
            None => self.id.repo().to_owned(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Head,
    /// Requests the bytes from this offset on.
    Get(u64),
}

/// A response, with the headers of the redirects that led to it.
pub(crate) struct HttpResponse {
    /// The URL of the response, without its query, for messages.
    pub url: String,
    pub inner: Response<Body>,
    /// Headers of the redirects, in order.
    pub redirects: Vec<HeaderMap>,
}

impl HttpResponse {
    /// A header of the response itself, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        text(self.inner.headers(), name)
    }

    /// A header of the response or, if it has none, of the last redirect that has it.
    pub fn last_header(&self, name: &str) -> Option<&str> {
        self.header(name).or_else(|| self.redirects.iter().rev().find_map(|headers| text(headers, name)))
    }

    pub fn status(&self) -> u16 {
        self.inner.status().as_u16()
    }
}

/// An HTTP client for one Hub.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    authorization: Option<String>,
    retry: Retry,
}

impl Client {
    pub fn new(settings: &Settings) -> Result<Self> {
        let endpoint = settings.endpoint.trim_end_matches('/').to_owned();
        let origin = Origin::of_endpoint(&endpoint).ok_or_else(|| HubError::Setting {
            name: "HF_ENDPOINT".into(),
            expected: "an address like https://huggingface.co, without user, password or query".into(),
            found: format!("`{}`", shown(&without_query(&endpoint))),
        })?;
        let config = Agent::config_builder()
            .user_agent(USER_AGENT)
            // A compressed body would have another length than the file.
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(Some(settings.timeouts.connect))
            .timeout_connect(Some(settings.timeouts.connect))
            .timeout_recv_response(Some(RESPONSE_TIMEOUT))
            .timeout_per_read(Some(settings.timeouts.stall))
            .timeout_per_write(Some(settings.timeouts.stall))
            .build();
        let authorization = settings.token.as_ref().map(|token| format!("Bearer {}", token.secret()));
        Ok(Self { agent: config.into(), endpoint, origin, authorization, retry: settings.retry })
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A counter for the attempts of one operation.
    pub fn attempts(&self) -> Attempts {
        Attempts { retry: self.retry, failures: 0 }
    }

    /// Downloads the body of `url`, at most `limit` bytes.
    pub fn fetch(&self, url: &str, limit: u64, subject: Subject) -> Result<Vec<u8>, FetchError> {
        let mut response = self.request(Method::Get(0), url, subject)?;
        let mut body = Vec::new();
        let (started, mut buffer) = (Instant::now(), [0; 1 << 14]);
        let mut reader = response.inner.body_mut().as_reader();
        loop {
            let read = reader
                .read(&mut buffer)
                .map_err(|error| FetchError::transient(connection_failed(&response.url, &error)))?;
            if read == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&buffer[..read]);
            if body.len() as u64 > limit {
                return Err(invalid_response(&response.url, "length", &format!("at most {limit} bytes"), "more").into());
            }
            // A body that arrives slowly but steadily never triggers the stall timeout.
            if started.elapsed() > RESPONSE_TIMEOUT {
                return Err(FetchError::transient(connection_failed(
                    &response.url,
                    &io::Error::from(io::ErrorKind::TimedOut),
                )));
            }
        }
    }

    /// Sends a request and follows redirects. A [`Method::Head`] stops at a redirect whose headers already describe the
    /// file, because the target's headers say less. Any other response than a success (or 416, which concerns the
    /// requested range) is an error.
    pub fn request(&self, method: Method, url: &str, subject: Subject) -> Result<HttpResponse, FetchError> {
        let mut url = url.to_owned();
        let mut redirects = Vec::new();
        loop {
            let response = self.send(method, &url)?;
            let status = response.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                let response = HttpResponse { url: without_query(&url), inner: response, redirects };
                return if matches!(status, 200 | 206 | 416) {
                    Ok(response)
                } else {
                    Err(self.refusal(&response, subject))
                };
            }
            let next = next_url(&url, response.headers())?;
            redirects.push(response.headers().clone());
            if method == Method::Head && describes_file(response.headers()) {
                return Ok(HttpResponse { url: without_query(&url), inner: response, redirects });
            }
            drain(response);
            if redirects.len() > MAX_REDIRECTS {
                let expected = format!("at most {MAX_REDIRECTS} redirects");
                return Err(invalid_response(&without_query(&url), "Location", &expected, "more").into());
            }
            url = next;
        }
    }

    fn send(&self, method: Method, url: &str) -> Result<Response<Body>, FetchError> {
        let mut request = match method {
            Method::Head => self.agent.head(url),
            Method::Get(_) => self.agent.get(url),
        };
        if let Method::Get(from @ 1..) = method {
            request = request.header("Range", format!("bytes={from}-"));
        }
        if let Some(authorization) = self.authorization.as_ref().filter(|_| self.origin.is_of(url)) {
            request = request.header("Authorization", authorization);
        }
        request.call().map_err(|error| transport_error(&without_query(url), error))
    }

    /// The error for an unsuccessful response.
    fn refusal(&self, response: &HttpResponse, subject: Subject) -> FetchError {
        let status = response.status();
        let url = response.url.clone();
        let message = response.header("x-error-message").map(|text| format!(" ({})", shown(text))).unwrap_or_default();
        let foreign = !self.origin.is_of(&url);
        match status {
            // A storage server behind the Hub, whose signed URL may have expired. The next attempt gets a new URL.
            401 | 403 if foreign && response.header("x-error-code").is_none() => {
                FetchError::transient(HubError::Status { url, status, message })
            }
            401 | 403 => {
                let advice = self.advice_on_denial(response, subject);
                HubError::Denied { what: subject.name(), status, message, advice }.into()
            }
            404 => not_found(response, subject, message).into(),
            429 => {
                let advice = match self.authorization {
                    Some(_) => "try again later".into(),
                    None => "try again later, or set HF_TOKEN: known users may ask more often".into(),
                };
                FetchError::Transient {
                    error: HubError::RateLimited { url, message, advice },
                    wait: requested_wait(response),
                }
            }
            408 | 500..=599 => FetchError::Transient {
                error: HubError::Status { url, status, message },
                wait: requested_wait(response),
            },
            _ => HubError::Status { url, status, message }.into(),
        }
    }

    fn advice_on_denial(&self, response: &HttpResponse, subject: Subject) -> String {
        let repo = subject.id.repo();
        let endpoint = &self.endpoint;
        let gated = response.header("x-error-code") == Some("GatedRepo");
        match (gated, self.authorization.is_some(), self.origin.is_of(&response.url)) {
            (_, _, false) => format!(
                "{endpoint} redirects to another Hub, which does not get the token: set HF_ENDPOINT to that one"
            ),
            (true, true, _) => {
                format!("The repository is gated: ask for access at {endpoint}/{repo} with the account of the token")
            }
            (true, false, _) => format!(
                "The repository is gated: ask for access at {endpoint}/{repo}, then set HF_TOKEN to a token of that \
                 account ({endpoint}/settings/tokens)"
            ),
            (false, true, _) => format!(
                "Either there is no repository {repo}, or it is private, or the token is not valid for it: check the \
                 name, and HF_TOKEN"
            ),
            (false, false, _) => format!(
                "Either there is no repository {repo}, or it is private or gated: check the name, or set HF_TOKEN \
                 ({endpoint}/settings/tokens)"
            ),
        }
    }
}

fn not_found(response: &HttpResponse, subject: Subject, message: String) -> HubError {
    let id = subject.id;
    let revision = id.revision().unwrap_or("main");
    let (what, advice) = match (response.header("x-error-code"), subject.file) {
        (Some("RevisionNotFound"), _) => {
            (format!("revision {revision} of {}", id.repo()), "Check the name of the branch, tag or commit".to_owned())
        }
        (Some("RepoNotFound"), _) => (id.repo().to_owned(), "There is no such repository; check the name".to_owned()),
        (_, Some(_)) => (subject.name(), "The repository has no such file, though it listed it; try again".to_owned()),
        (_, None) => (
            id.repo().to_owned(),
            format!("There is no such repository, or it has no revision {revision}; check the name"),
        ),
    };
    HubError::NotFound { what, message, advice }
}

/// The attempts of one operation, with the delays between them.
pub(crate) struct Attempts {
    retry: Retry,
    failures: u32,
}

impl Attempts {
    /// Calls `attempt` until it succeeds or fails permanently.
    pub fn run<T>(
        mut self,
        progress: &mut dyn Progress,
        mut attempt: impl FnMut() -> Result<T, FetchError>,
    ) -> Result<T, HubError> {
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(failure) => self.after(failure, progress)?,
            }
        }
    }

    /// Waits before the next attempt, or returns the error if there is to be none.
    pub fn after(&mut self, failure: FetchError, progress: &mut dyn Progress) -> Result<()> {
        let (error, wait) = match failure {
            FetchError::Permanent(error) => return Err(error),
            FetchError::Transient { error, wait } => (error, wait),
        };
        self.failures += 1;
        if self.failures >= self.retry.attempts {
            return Err(error);
        }
        let doubled = self.retry.first_delay.saturating_mul(1 << (self.failures - 1).min(16));
        let delay = wait.unwrap_or(doubled.min(self.retry.longest_delay));
        if delay > self.retry.longest_delay {
            return Err(too_long(error, delay));
        }
        progress.note(&format!(
            "{error}; trying again in {delay:?} ({} of {})",
            self.failures,
            self.retry.attempts - 1
        ));
        thread::sleep(delay);
        Ok(())
    }

    /// Resets the number of failures, after progress was made.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// The error if the server asks for a longer delay than allowed.
fn too_long(error: HubError, delay: Duration) -> HubError {
    match error {
        HubError::RateLimited { url, message, .. } => {
            let advice = format!("it asks to wait for {} s. Run again after that", delay.as_secs());
            HubError::RateLimited { url, message, advice }
        }
        other => other,
    }
}

/// `Retry-After` in seconds. Its other form, a date, is rare; then the usual delay applies.
fn requested_wait(response: &HttpResponse) -> Option<Duration> {
    response.header("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs)
}

/// Classifies the HTTP client's errors: possible network problems are transient, the rest is permanent.
fn transport_error(url: &str, error: ureq::Error) -> FetchError {
    use ureq::Error;
    match error {
        // Certificate errors have this kind, and are permanent.
        Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            invalid_response(url, "connection", "one that can be trusted", &error.to_string()).into()
        }
        Error::Io(_)
        | Error::Timeout(_)
        | Error::HostNotFound
        | Error::ConnectionFailed
        | Error::ConnectProxyFailed(_) => FetchError::transient(connection_failed(url, &error)),
        error => invalid_response(url, "answer", "one that follows HTTP", &error.to_string()).into(),
    }
}

/// The connection failed or was interrupted.
pub(crate) fn connection_failed(url: &str, error: &dyn std::fmt::Display) -> HubError {
    HubError::Unreachable { url: url.to_owned(), reason: shown(&error.to_string()) }
}

/// A response that a Hub would not send.
pub(crate) fn invalid_response(url: &str, field: &str, expected: &str, found: &str) -> HubError {
    HubError::InvalidResponse {
        url: url.to_owned(),
        field: field.into(),
        expected: expected.into(),
        found: shown(found),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether the headers of a redirect already have the file's entity tag and length.
fn describes_file(headers: &HeaderMap) -> bool {
    headers.contains_key("x-linked-etag") && headers.contains_key("x-linked-size")
}

/// Reads the rest of a short body, so that the connection can be reused. Errors do not matter.
fn drain(mut response: Response<Body>) {
    const SHORT: u64 = 1 << 16;
    let _ = io::copy(&mut response.body_mut().as_reader().take(SHORT), &mut io::sink());
}

/// The target of a redirect from `url`.
fn next_url(url: &str, headers: &HeaderMap) -> Result<String> {
    let location = text(headers, "location").unwrap_or_default();
    let origin = Origin::of(url).map(|origin| origin.to_string()).unwrap_or_default();
    let next = match location {
        path if path.starts_with("//") => format!("{}:{path}", url.split(':').next().unwrap_or_default()),
        path if path.starts_with('/') => format!("{origin}{path}"),
        absolute => absolute.to_owned(),
    };
    match Origin::of(&next) {
        Some(_) => Ok(next),
        None => Err(invalid_response(&without_query(url), "Location", "an http or https address", location)),
    }
}

/// `url` without its query, which may contain a signature.
fn without_query(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// Scheme, host and port, to which a token is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let default = match scheme.as_str() {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        Some(Self { scheme, host, port: uri.port_u16().unwrap_or(default) })
    }

    fn of_endpoint(endpoint: &str) -> Option<Self> {
        Self::of(endpoint).filter(|_| !endpoint.contains(['@', '?', '#']))
    }

    fn is_of(&self, url: &str) -> bool {
        Self::of(url).is_some_and(|origin| origin == *self)
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

/// Percent-encodes `path`, except for its slashes.
pub(crate) fn escaped(path: &str) -> String {
    let escape = |byte: u8| match byte {
        b'/' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    path.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(url: &str, location: &str) -> Result<String> {
        let mut headers = HeaderMap::new();
        headers.insert("location", location.parse().expect("a header"));
        next_url(url, &headers)
    }

    #[test]
    fn redirect_targets_are_validated() {
        let from = "https://hub.example/a/b?c=/d";
        assert_eq!(location(from, "/x/y").expect("a path"), "https://hub.example:443/x/y");
        assert_eq!(location(from, "//cdn.example/y").expect("a host"), "https://cdn.example/y");
        assert_eq!(location(from, "http://cdn.example:1/y?z").expect("whole"), "http://cdn.example:1/y?z");
        for bad in ["", "x/y", "file:///etc/passwd", "ftp://a/b", "https://", "https:///x"] {
            let error = location(from, bad).expect_err(bad).to_string();
            assert!(error.contains("https://hub.example/a/b: Location") && !error.contains("c="), "{error}");
        }
    }

    #[test]
    fn a_token_is_bound_to_scheme_host_and_port() {
        let origin = Origin::of_endpoint("https://Hub.example/mirror").expect("an endpoint");
        for same in ["https://hub.example/x", "https://hub.example:443/x", "HTTPS://HUB.EXAMPLE/"] {
            assert!(origin.is_of(same), "{same}");
        }
        for other in [
            "http://hub.example/x",
            "https://hub.example:444/x",
            "https://x.hub.example/",
            "https://hub.example.x/",
            "",
        ] {
            assert!(!origin.is_of(other), "{other}");
        }
        for bad in ["", "hub.example", "ftp://hub.example", "https://u:p@hub.example", "https://hub.example?x"] {
            assert_eq!(Origin::of_endpoint(bad), None, "{bad}");
        }
    }

    #[test]
    fn paths_are_escaped() {
        assert_eq!(escaped("Q8_0/a-b.c~d"), "Q8_0/a-b.c~d");
        assert_eq!(escaped("a b?c#d%e+ü"), "a%20b%3Fc%23d%25e%2B%C3%BC");
    }
}
