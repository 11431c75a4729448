//! Errors in the form of the OpenAI API.

use axum::Json;
use axum::http::header::{HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use braidinfer::Error;
use braidinfer::handle::{RequestError, SubmitError};
use serde_json::{Value, json};

/// Seconds after which a client may retry when the server is busy or not ready.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Header that the official OpenAI clients read.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

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
        Self { status, message: message.into(), param: None, code: None }
    }

    /// An invalid request, because of one of its fields.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// An invalid request.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn unauthorized() -> Self {
        let message = "expected `Authorization: Bearer KEY` with a key of this server";
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, message) }
    }

    pub fn foreign_host(found: &str) -> Self {
        let message = format!("host: expected localhost or an address, found `{found}`; a key lets other names in");
        Self::new(StatusCode::FORBIDDEN, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub fn no_such_model(asked: &str, served: &str) -> Self {
        let message = format!("model: expected `{served}`, found `{asked}`");
        Self { param: Some("model".into()), code: Some("model_not_found"), ..Self::new(StatusCode::NOT_FOUND, message) }
    }

    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not take requests of this method")
    }

    pub fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("body: expected at most {limit} bytes"))
    }

    pub fn not_json(found: &str) -> Self {
        let message = format!("content-type: expected application/json, found {found}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    pub fn slow_request() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")
    }

    pub fn slow_answer() -> Self {
        let message = "the answer took longer than this server allows";
        Self { code: Some("timeout"), ..Self::new(StatusCode::GATEWAY_TIMEOUT, message) }
    }

    /// The model is being loaded, or the server stops.
    pub fn not_ready(message: &str) -> Self {
        Self { code: Some("not_ready"), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
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

    /// The response body.
    pub fn json(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind(), "param": self.param, "code": self.code}})
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let message = match error.advice() {
            Some(advice) => format!("{error}; {advice}"),
            None => error.to_string(),
        };
        match error {
            // The library's names of parameters are the names of request fields.
            Error::BadRequest { field, .. } => Self::field(field, message),
            Error::PromptTooLong { .. } => Self { code: Some("context_length_exceeded"), ..Self::bad_request(message) },
            Error::QueueFull { .. } => {
                Self { code: Some("queue_full"), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
            }
            Error::TooLittleMemory { .. } => Self::too_little_memory(message),
            Error::Unsupported(_) | Error::Text { .. } => Self::bad_request(message),
            _ => Self::internal(message),
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
            // Some of what a request asks for is only found to be impossible while it is answered.
            RequestError::Failed(error) => match &*error {
                Error::BadRequest { field, .. } => Self::field(field.clone(), error.to_string()),
                Error::TooLittleMemory { .. } => Self::too_little_memory(error.to_string()),
                _ => Self::internal(error.to_string()),
            },
            RequestError::Cancelled | RequestError::EngineStopped => Self::internal(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        let headers = response.headers_mut();
        match self.status {
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
