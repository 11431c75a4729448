//! `/api/tags`, `/api/show`, `/api/ps` and `/api/version`.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{TAG, hexadecimal, known_name};
use crate::app::App;
use crate::clock::{seconds_since_1970, time_as_text};
use crate::http::{ApiError, Strict};
use crate::models::{About, ListedModel, ModelState};

/// When a model is unloaded that stays until its memory is needed.
const NEVER: &str = "9999-12-31T23:59:59Z";
/// The same in seconds since 1970.
const LAST_SECOND: u64 = 253_402_300_799;

/// The version of Ollama whose API this is. Clients refuse servers that they think are too old.
const VERSION: &str = "0.12.6";

#[derive(Debug, Deserialize)]
pub struct ShowFields {
    model: Option<String>,
    /// An earlier name of `model`.
    name: Option<String>,
    /// Ignored: long lists of tokens are never returned.
    #[serde(rename = "verbose")]
    _verbose: Option<bool>,
}

pub async fn version() -> Json<Value> {
    Json(json!({"version": VERSION}))
}

pub async fn tags(State(app): State<Arc<App>>) -> Json<Value> {
    let models: Vec<Value> = app.models.list().iter().map(listed).collect();
    Json(json!({"models": models}))
}

pub async fn running(State(app): State<Arc<App>>) -> Json<Value> {
    let running = |model: ListedModel| {
        let ModelState::Loaded { context, remaining, memory, .. } = model.state else { return None };
        let mut running = listed(&model);
        // Clients read a time, also where there is none.
        let at = remaining.map(|time| seconds_since_1970().saturating_add(time.as_secs()));
        let expires = at.filter(|at| *at < LAST_SECOND).map_or(NEVER.to_owned(), time_as_text);
        running["expires_at"] = json!(expires);
        running["size"] = json!(memory);
        running["size_vram"] = json!(0);
        running["context_length"] = json!(context);
        Some(running)
    };
    let models: Vec<Value> = app.models.list().into_iter().filter_map(running).collect();
    Json(json!({"models": models}))
}

pub async fn show(State(app): State<Arc<App>>, request: Strict<ShowFields>) -> Response {
    let Strict { first: ShowFields { model, name, .. }, ignored, .. } = request;
    let shown = async {
        let asked = model.or(name).ok_or_else(|| ApiError::field("model", "model: expected a name, found none"))?;
        let name = known_name(&app, &asked);
        let about = app.models.about(&name).await?;
        Ok(Json(described(&app.models.listed(&name)?, &about)))
    };
    (ignored, app.with_deadline(Instant::now(), shown).await).into_response()
}

/// A model as lists have it.
fn listed(model: &ListedModel) -> Value {
    let name = if model.name.contains(':') { model.name.clone() } else { format!("{}{TAG}", model.name) };
    json!({
        "name": name,
        "model": name,
        "modified_at": time_as_text(model.created),
        "size": model.bytes.unwrap_or_default(),
        "digest": digest(model),
        "details": details(model.about.as_deref()),
    })
}

/// Tells one entry of the list from another. It is not the digest of the files.
fn digest(model: &ListedModel) -> String {
    hexadecimal(&Sha256::digest(format!("{} {}", model.name, model.bytes.unwrap_or_default())))
}

/// What is known of a model; of one that was never looked at, little is.
fn details(about: Option<&About>) -> Value {
    let family = about.map_or("", |about| &about.model_type);
    let families: Vec<&str> = about.iter().map(|about| &*about.model_type).collect();
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": families,
        "parameter_size": about.map_or(String::new(), |about| in_words(about.weights.parameters)),
        "quantization_level": about.map_or(String::new(), |about| about.weights.dtype.to_ascii_uppercase()),
    })
}

/// A number of parameters, such as 134.5M.
fn in_words(parameters: usize) -> String {
    let millions = parameters as f64 / 1e6;
    if millions >= 1e3 { format!("{:.1}B", millions / 1e3) } else { format!("{millions:.1}M") }
}

fn described(model: &ListedModel, about: &About) -> Value {
    let architecture = &about.model_type;
    let mut info = Map::from_iter([
        ("general.architecture".to_owned(), json!(architecture)),
        ("general.basename".to_owned(), json!(model.name)),
        ("general.parameter_count".to_owned(), json!(about.weights.parameters)),
    ]);
    let context = match model.state {
        ModelState::Loaded { context, .. } => context,
        _ => about.context,
    };
    let numbers =
        [("context_length", context), ("embedding_length", about.hidden_size), ("vocab_size", about.vocab_size)];
    info.extend(numbers.map(|(name, number)| (format!("{architecture}.{name}"), json!(number))));
    json!({
        "modelfile": "",
        "parameters": "",
        "template": about.chat_template.as_deref().unwrap_or_default(),
        "details": details(Some(about)),
        "model_info": info,
        "capabilities": about.capabilities(),
        "modified_at": time_as_text(model.created),
    })
}
