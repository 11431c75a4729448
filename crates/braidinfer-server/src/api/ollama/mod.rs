//! The Ollama API: <https://github.com/ollama/ollama/blob/main/docs/api.md>.

mod chat;
mod embed;
mod fields;
mod generate;
mod messages;
mod models;
mod pull;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

pub use self::chat::ChatFields;
pub use self::fields::SharedFields;
pub use self::generate::GenerateFields;
use self::writer::{Place, without_answer};
use super::errors::ErrorForm;
use crate::app::App;
use crate::http::ApiError;
use crate::models::{Keep, Lease};

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/chat", post(chat::chat))
        .route("/api/generate", post(generate::generate))
        .route("/api/embed", post(embed::embed))
        .route("/api/embeddings", post(embed::embed_one))
        .route("/api/tags", get(models::tags))
        .route("/api/show", post(models::show))
        .route("/api/ps", get(models::running))
        .route("/api/pull", post(pull::pull))
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

/// Bytes as digests are written.
fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Clients add this to the name of a model where people name none.
const TAG: &str = ":latest";

/// The name by which the server knows a model, whose tag may be left out.
fn known_name(app: &App, name: &str) -> String {
    let other = name.strip_suffix(TAG).map_or_else(|| format!("{name}{TAG}"), str::to_owned);
    if !app.models.has(name) && app.models.has(&other) { other } else { name.to_owned() }
}

/// The model with this name, whose tag may be left out. It is loaded if it is not, and `keep` says how long it will stay.
async fn lease(app: &App, name: &str, keep: Option<Keep>) -> Result<Lease, ApiError> {
    let name = known_name(app, name);
    let lease = app.lease(Some(&name)).await?;
    keep.map_or(Ok(()), |keep| app.models.keep(&name, keep))?;
    Ok(lease)
}

/// Answers a request that asks nothing: it loads the model, or unloads it.
async fn load_or_unload(app: &App, shared: &SharedFields, place: Place) -> Result<Json<Value>, ApiError> {
    let (keep, name) = (shared.keep()?, known_name(app, &shared.model));
    if keep != Some(Keep::For(Duration::ZERO)) {
        lease(app, &shared.model, keep).await?;
        return Ok(Json(without_answer(&shared.model, place, "load")));
    }
    // One that the server was started with stays, as with other values.
    if app.models.listed(&name)?.is_on_demand {
        app.models.unload(&name).await?;
    }
    Ok(Json(without_answer(&shared.model, place, "unload")))
}
