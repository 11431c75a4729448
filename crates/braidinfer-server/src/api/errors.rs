//! Errors in the form of the API that was asked.

use axum::Json;
use axum::http::header::CONTENT_LENGTH;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::http::ApiError;

/// How an API writes errors.
#[derive(Clone, Copy)]
pub struct ErrorForm {
    /// Names of request fields: those of the OpenAI API, and this one's.
    pub names: &'static [(&'static str, &'static str)],
    /// The body.
    pub write: fn(&ApiError) -> Value,
}

impl ErrorForm {
    pub fn body(&self, error: &ApiError) -> Value {
        (self.write)(&error.clone().renamed(self.names))
    }

    /// A response in this form, if it is an error in another one.
    pub fn rewrite(self, mut response: Response) -> Response {
        let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
        let (mut parts, _) = response.into_parts();
        parts.headers.remove(CONTENT_LENGTH);
        let (_, body) = Json(self.body(&error)).into_response().into_parts();
        Response::from_parts(parts, body)
    }
}
