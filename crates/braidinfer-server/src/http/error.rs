//! Errors, in the form of the OpenAI API unless that of a route writes them otherwise.

use axum::Json;
use axum::http::header::{HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use braidinfer::Error;
use braidinfer::handle::{RequestError, SubmitError};
use serde_json::{Value, json};

use super::shown::{cut, file_name, shown, without_folder};
use crate::budget::OverBudget;

/// Seconds after which a client may retry when the server is busy or not ready.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Code of a request that asks for more answers than there is ever room for.
const TOO_MANY_ANSWERS: &str = "too_many_answers";

/// Header that the official OpenAI clients read.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Most characters of a message, and of the name of a field.
const MOST_OF_MESSAGE: usize = 1000;
const MOST_OF_FIELD: usize = 200;

/// Why a response refuses work that the server has no room or time for, as an extension of it; the label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub &'static str);

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    /// The invalid request field.
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: cut(&message.into(), MOST_OF_MESSAGE).into_owned(), param: None, code: None }
    }

    /// An invalid request, because of one of its fields.
    pub fn field(param: impl AsRef<str>, message: impl Into<String>) -> Self {
        let param = cut(param.as_ref(), MOST_OF_FIELD).into_owned();
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// An invalid request, because of one of its fields: what was expected of it, and what was found.
    pub fn expected(param: &str, expected: &str, found: &str) -> Self {
        Self::field(param, format!("{param}: expected {expected}, found `{}`", shown(found)))
    }

    /// An invalid request, because of a field that it has not.
    pub fn missing(param: &str) -> Self {
        Self::field(param, format!("{param}: expected a value, found none"))
    }

    /// The same error about the field `param`, with the first of `from` in its message as `to`; `None` if it is not in there.
    pub fn moved(&self, from: &str, to: &str, param: &str) -> Option<Self> {
        let is_whole = |rest: &str| rest.is_empty() || rest.starts_with(['/', '\'', '.', ' ']);
        let at = self.message.find(from).filter(|at| is_whole(&self.message[at + from.len()..]))?;
        let message = format!("{}{to}{}", &self.message[..at], &self.message[at + from.len()..]);
        Some(Self { param: Some(param.to_owned()), message, ..self.clone() })
    }

    /// The same error about the field `param`, with `what` before its message.
    pub fn about(&self, what: &str, param: &str) -> Self {
        let message = cut(&format!("{what}: {}", self.message), MOST_OF_MESSAGE).into_owned();
        Self { param: Some(param.to_owned()), message, ..self.clone() }
    }

    /// The same error, with the name that its field has in another API: `names` has the own name of a field and the other.
    pub fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        let known = names.iter().find(|(own, _)| self.param.as_deref() == Some(*own));
        if let Some((own, other)) = known {
            if let Some(rest) = self.message.strip_prefix(own) {
                self.message = format!("{other}{rest}");
            }
            self.param = Some((*other).to_owned());
        }
        self
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// A word for programs, if there is one for this error.
    pub fn code(&self) -> Option<&'static str> {
        self.code
    }

    fn refusal(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { code: Some(code), ..Self::new(status, message) }
    }

    /// A header that a request has more than once.
    pub fn doubled_header(name: &HeaderName) -> Self {
        Self::bad_request(format!("{name}: expected this header once, found it several times"))
    }

    /// A request for another host than that of its `Host` header.
    pub fn other_authority(target: &str) -> Self {
        Self::bad_request(format!("host: expected that of the request target, which is `{}`", shown(target)))
    }

    pub fn answer_too_large(limit: usize) -> Self {
        let message =
            format!("max_tokens: expected answers of at most {limit} bytes, found more; ask for fewer or shorter ones");
        Self {
            param: Some("max_tokens".into()),
            ..Self::refusal(StatusCode::PAYLOAD_TOO_LARGE, "answer_too_large", message)
        }
    }

    pub fn encoded(found: &str) -> Self {
        let message = format!("content-encoding: expected none, or identity, found `{}`", shown(found));
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    pub fn no_connection(most: usize) -> Self {
        let message = format!("all {most} connections of this server are taken; try again later");
        Self::refusal(StatusCode::SERVICE_UNAVAILABLE, "connections", message)
    }

    pub fn no_connection_of_client(most: usize) -> Self {
        let message =
            format!("expected at most {most} connections of one client, found one more; use those, or end some");
        Self::refusal(StatusCode::TOO_MANY_REQUESTS, "client_connections", message)
    }

    /// An invalid request.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn unauthorized() -> Self {
        let message = "expected `Authorization: Bearer KEY` or `x-api-key: KEY` with a key of this server";
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, message) }
    }

    pub fn foreign_host(found: &str) -> Self {
        let message =
            format!("host: expected localhost or an address, found `{}`; a key lets other names in", shown(found));
        Self::new(StatusCode::FORBIDDEN, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// A model that is not among those with these names.
    pub fn no_such_model(asked: &str, names: &str) -> Self {
        let message = format!("model: expected {names}, found `{}`", shown(asked));
        Self { param: Some("model".into()), code: Some("model_not_found"), ..Self::new(StatusCode::NOT_FOUND, message) }
    }

    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not take requests of this method")
    }

    pub fn too_large(limit: usize) -> Self {
        let message = format!("body: expected at most {limit} bytes, found more");
        Self::refusal(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }

    pub fn of_another_kind(expected: &str, found: &str) -> Self {
        let message = format!("content-type: expected {expected}, found {}", shown(found));
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    pub fn slow_request() -> Self {
        Self::refusal(StatusCode::REQUEST_TIMEOUT, "slow_request", "the request did not arrive in time")
    }

    pub fn slow_answer() -> Self {
        let message = "the answer took longer than this server allows";
        Self { code: Some("timeout"), ..Self::new(StatusCode::GATEWAY_TIMEOUT, message) }
    }

    /// The model is being loaded, the server stops, or it must be started anew.
    pub fn not_ready(message: &str) -> Self {
        Self { code: Some("not_ready"), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// A model that could not be loaded when it was asked for.
    pub fn model_not_loaded() -> Self {
        let message = "the model could not be loaded; the server's log says why";
        Self { code: Some("model_not_loaded"), ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, message) }
    }

    /// A client that asks for a model from elsewhere, of a server that does not fetch any.
    pub fn no_fetching() -> Self {
        let message = "this server fetches no models for clients: it must be started with --allow-pull";
        Self { code: Some("no_fetching"), ..Self::new(StatusCode::FORBIDDEN, message) }
    }

    /// A client that asks for a model from elsewhere while `most` others wait for theirs.
    pub fn too_many_fetches(most: usize) -> Self {
        let message = format!("{most} models are being fetched, or wait for that: try again later");
        Self { code: Some("too_many_fetches"), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    pub fn not_fetched(name: &str, reason: &str) -> Self {
        let message = format!("{}: {reason}", shown(name));
        Self { code: Some("not_fetched"), ..Self::new(StatusCode::BAD_GATEWAY, message) }
    }

    /// A model that can never be loaded within the memory of the server.
    pub fn model_too_large(name: &str, bytes: u64, most: usize) -> Self {
        Self::too_little_memory(format!(
            "{}: expected weights that fit the memory for models, which is {}, found {}",
            shown(name),
            braidinfer::size(most),
            braidinfer::size(bytes)
        ))
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// There is too little memory for what a request asks for, at least now.
    fn too_little_memory(message: String) -> Self {
        Self { code: Some("too_little_memory"), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// The response body in the OpenAI API.
    pub fn json(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind(), "param": self.param, "code": self.code}})
    }
}

/// What a client is told of an error. Paths of files are this server's own business: only the file's name is told.
fn message_of(error: &Error) -> String {
    let advised = |message: String| match error.advice() {
        Some(advice) => format!("{message}; {advice}"),
        None => message,
    };
    match error {
        Error::BadRequest { field, expected, found } => advised(format!(
            "{}: expected {}, found {}",
            shown(field),
            cut(expected, MOST_OF_MESSAGE / 2),
            shown(found)
        )),
        Error::Text { path, message } => format!("{}: {message}", file_name(path)),
        Error::DamagedWeights { path, reason } => format!("{}: {reason}", file_name(path)),
        Error::Unsupported(message) => without_folder(message).into_owned(),
        Error::PromptTooLong { .. } | Error::QueueFull { .. } | Error::TooManyAnswers { .. } => {
            advised(error.to_string())
        }
        Error::Internal(_) | Error::NotFinite { .. } => error.to_string(),
        // These name files, or come from elsewhere.
        _ => "the server could not do this; its log says why".into(),
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<&Error> for ApiError {
    fn from(error: &Error) -> Self {
        let message = message_of(error);
        match error {
            // The library's names of parameters are the names of request fields.
            Error::BadRequest { field, .. } => Self::field(field, message),
            Error::PromptTooLong { .. } => Self { code: Some("context_length_exceeded"), ..Self::bad_request(message) },
            Error::QueueFull { of_client, .. } => {
                let code = if *of_client { "client_queue_full" } else { "queue_full" };
                Self::refusal(StatusCode::TOO_MANY_REQUESTS, code, message)
            }
            Error::TooLittleMemory { .. } => Self::too_little_memory(message),
            // The log has it from the step that found it; probes would repeat it every second.
            Error::DamagedWeights { .. } => Self::not_ready(&message),
            Error::TooManyAnswers { .. } => Self::refusal(StatusCode::TOO_MANY_REQUESTS, TOO_MANY_ANSWERS, message),
            Error::Unsupported(_) | Error::Text { .. } => {
                tracing::debug!(%error, "a request was refused");
                Self::bad_request(message)
            }
            _ => {
                tracing::error!(%error, "a request failed");
                Self::internal(message)
            }
        }
    }
}

impl From<OverBudget> for ApiError {
    fn from(error: OverBudget) -> Self {
        match error.of_client {
            true => Self::refusal(StatusCode::TOO_MANY_REQUESTS, "client_memory", error.to_string()),
            false => Self::refusal(StatusCode::TOO_MANY_REQUESTS, "memory", error.to_string()),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Refused(error) => error.into(),
            SubmitError::EngineStopped => Self::internal("the engine has stopped; the server must be started anew"),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::ShuttingDown => Self::not_ready("the server stops; the answer was ended"),
            RequestError::Failed(error) => Self::from(&*error),
            RequestError::Unread { .. } => Self::refusal(StatusCode::REQUEST_TIMEOUT, "unread", error.to_string()),
            RequestError::Cancelled | RequestError::EngineStopped => Self::internal(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        let of_limits = [
            StatusCode::PAYLOAD_TOO_LARGE,
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::GATEWAY_TIMEOUT,
        ];
        let is_refusal = of_limits.contains(&self.status);
        // For the API of the route, which may have another form for it.
        response.extensions_mut().insert(self.clone());
        if let Some(code) = self.code.filter(|_| is_refusal) {
            response.extensions_mut().insert(Refusal(code));
        }
        let headers = response.headers_mut();
        match self.status {
            // Will never do.
            StatusCode::TOO_MANY_REQUESTS if self.code == Some(TOO_MANY_ANSWERS) => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
            }
            // A retry would probably fail again; without this header, clients try three times.
            StatusCode::GATEWAY_TIMEOUT | StatusCode::INTERNAL_SERVER_ERROR => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(error: Error) -> String {
        ApiError::from(error).message
    }

    #[test]
    fn messages_are_short_and_name_no_folder() {
        let long = "x".repeat(70_000);
        for error in [
            ApiError::no_such_model(&long, "`demo`"),
            ApiError::of_another_kind("application/json", &long),
            ApiError::foreign_host(&long),
            ApiError::encoded(&long),
            ApiError::field(&long, long.clone()),
            ApiError::from(Error::bad_request("stop", "something", &long)),
            ApiError::from(Error::Text { path: "a".into(), message: long.clone() }),
        ] {
            assert!(error.json().to_string().len() < 2000, "{error:?}");
            assert!(error.message.contains("(70000 characters)") || error.message.len() > 900, "{error:?}");
        }
        let text = Error::Text { path: "/srv/models/m/chat_template.jinja".into(), message: "no".into() };
        assert_eq!(message(text), "chat_template.jinja: no");
        let file = Error::File { path: "/srv/x".into(), source: std::io::ErrorKind::NotFound.into() };
        assert!(!message(file).contains("/srv"));
    }
}
