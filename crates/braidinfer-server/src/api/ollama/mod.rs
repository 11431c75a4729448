//! The Ollama API: <https://github.com/ollama/ollama/blob/main/docs/api.md>.

mod chat;
mod embed;
mod fields;
mod generate;
mod messages;
mod models;
mod writer;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use serde_json::{Value, json};

pub use self::chat::ChatFields;
pub use self::fields::SharedFields;
pub use self::generate::GenerateFields;
use super::errors::ErrorForm;
use crate::http::ApiError;
use crate::served::{App, Served};

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/chat", post(chat::chat))
        .route("/api/generate", post(generate::generate))
        .route("/api/embed", post(embed::embed))
        .route("/api/embeddings", post(embed::embed_one))
        .route("/api/tags", get(models::tags))
        .route("/api/show", post(models::show))
        .route("/api/ps", get(models::running))
        .route("/api/version", get(models::version))
}

/// How errors are written.
pub const ERRORS: ErrorForm = ErrorForm {
    names: &[
        ("max_tokens", "options.num_predict"),
        ("temperature", "options.temperature"),
        ("top_k", "options.top_k"),
        ("top_p", "options.top_p"),
        ("min_p", "options.min_p"),
        ("repetition_penalty", "options.repeat_penalty"),
        ("presence_penalty", "options.presence_penalty"),
        ("frequency_penalty", "options.frequency_penalty"),
        ("stop", "options.stop"),
    ],
    write: error_body,
};

fn error_body(error: &ApiError) -> Value {
    json!({"error": error.message()})
}

/// Clients add this to the name of a model where people name none.
const TAG: &str = ":latest";

/// The model with this name, whose tag may be left out.
fn served_as<'a>(app: &'a App, name: &str) -> Result<&'a Arc<Served>, ApiError> {
    let found = app.served_as(Some(name));
    if found.is_ok() {
        return found;
    }
    let other = name.strip_suffix(TAG).map_or_else(|| format!("{name}{TAG}"), str::to_owned);
    app.served_as(Some(&other)).or(found)
}
