//! Errors in the form of the API that was asked.

use axum::Json;
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::{anthropic, ollama, responses};
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

/// The form of errors at an address; `None` for that of the OpenAI API.
fn form_at(path: &str) -> Option<ErrorForm> {
    let forms = [("/api/", ollama::ERRORS), ("/v1/messages", anthropic::ERRORS), ("/v1/responses", responses::ERRORS)];
    forms.into_iter().find(|(prefix, _)| path.starts_with(prefix)).map(|(_, form)| form)
}

/// Writes the errors of all layers within in the form of the API whose address was asked for.
pub async fn in_own_form(request: Request, next: Next) -> Response {
    let form = form_at(request.uri().path());
    let response = next.run(request).await;
    match form {
        Some(form) => form.rewrite(response),
        None => response,
    }
}
