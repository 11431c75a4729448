//! `/api/tags`, `/api/show`, `/api/ps` and `/api/version`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use braidinfer::text::InfillTokens;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{TAG, served_as};
use crate::http::{ApiError, Strict};
use crate::served::{App, Served, time_as_text};

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

pub async fn tags(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let served = app.served_as(None)?;
    let models: Vec<Value> = names(&app, served).map(|name| listed(served, &name)).collect();
    Ok(Json(json!({"models": models})))
}

pub async fn running(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let served = app.served_as(None)?;
    let running = |name: String| {
        let mut model = listed(served, &name);
        // It stays loaded; clients read a time.
        model["expires_at"] = json!("9999-12-31T23:59:59Z");
        model["size_vram"] = json!(0);
        model["context_length"] = json!(served.context);
        model
    };
    let models: Vec<Value> = names(&app, served).map(running).collect();
    Ok(Json(json!({"models": models})))
}

pub async fn show(State(app): State<Arc<App>>, request: Strict<ShowFields>) -> Response {
    let ShowFields { model, name, .. } = request.first;
    let asked = model.or(name).ok_or_else(|| ApiError::field("model", "model: expected a name, found none"));
    let shown = asked.and_then(|name| served_as(&app, &name).map(|served| Json(described(served))));
    (request.ignored, shown).into_response()
}

/// The names of the model, with the tag that clients expect.
fn names<'a>(app: &'a App, served: &'a Served) -> impl Iterator<Item = String> {
    let names = std::iter::once(&served.name).chain(&app.config.model_names.listed);
    names.map(|name| if name.contains(':') { name.clone() } else { format!("{name}{TAG}") })
}

fn listed(served: &Served, name: &str) -> Value {
    json!({
        "name": name,
        "model": name,
        "modified_at": time_as_text(served.created),
        "size": served.weights.bytes,
        "digest": digest(served),
        "details": details(served),
    })
}

/// Tells one entry of the list from another. It is not the digest of the files.
fn digest(served: &Served) -> String {
    let Served { name, weights, context, .. } = served;
    let digest = Sha256::digest(format!("{name} {} {} {context}", weights.bytes, weights.dtype));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn details(served: &Served) -> Value {
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": served.model_type,
        "families": [served.model_type],
        "parameter_size": in_words(served.weights.parameters),
        "quantization_level": served.weights.dtype.to_ascii_uppercase(),
    })
}

/// A number of parameters, such as 134.5M.
fn in_words(parameters: usize) -> String {
    let millions = parameters as f64 / 1e6;
    if millions >= 1e3 { format!("{:.1}B", millions / 1e3) } else { format!("{millions:.1}M") }
}

fn described(served: &Served) -> Value {
    let template = served.text.chat_template();
    let architecture = &served.model_type;
    let mut info = Map::from_iter([
        ("general.architecture".to_owned(), json!(architecture)),
        ("general.basename".to_owned(), json!(served.name)),
        ("general.parameter_count".to_owned(), json!(served.weights.parameters)),
    ]);
    let numbers = [
        ("context_length", served.context),
        ("embedding_length", served.hidden_size),
        ("vocab_size", served.vocab_size),
    ];
    info.extend(numbers.map(|(name, number)| (format!("{architecture}.{name}"), json!(number))));
    json!({
        "modelfile": "",
        "parameters": "",
        "template": template.map(|template| template.source()).unwrap_or_default(),
        "details": details(served),
        "model_info": info,
        "capabilities": capabilities(served),
        "modified_at": time_as_text(served.created),
    })
}

fn capabilities(served: &Served) -> Vec<&'static str> {
    let fills_in = served.text.tokenizer().and_then(InfillTokens::of).is_some();
    [
        ("completion", true),
        ("embedding", true),
        ("tools", served.takes_tools),
        ("thinking", served.reasoning_format.is_some()),
        ("insert", fills_in),
    ]
    .into_iter()
    .filter_map(|(name, has)| has.then_some(name))
    .collect()
}
