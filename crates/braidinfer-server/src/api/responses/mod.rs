//! The OpenAI Responses API: <https://platform.openai.com/docs/api-reference/responses>.

mod endpoints;
mod fields;
mod items;
mod store;
mod writer;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use serde_json::Value;

pub use self::fields::ResponseFields;
pub use self::store::ResponseStore;
use super::errors::ErrorForm;
use crate::app::App;
use crate::http::ApiError;

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/responses", post(endpoints::create))
        .route("/v1/responses/{id}", get(endpoints::retrieve).delete(endpoints::delete))
}

/// How errors are written.
pub const ERRORS: ErrorForm = ErrorForm { names: &[("max_tokens", "max_output_tokens")], write: error_body };

fn error_body(error: &ApiError) -> Value {
    error.json()
}
