//! `/api/embed`, and its earlier form `/api/embeddings`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use braidinfer::Prompt;
use braidinfer::engine::Pooling;
use serde::{Deserialize, Serialize};

use super::fields::{KeepAlive, Options};
use super::lease;
use super::writer::nanoseconds;
use crate::api::answers::json_response;
use crate::api::embedding::{self, Embedded};
use crate::api::json_text::JsonText;
use crate::api::one_or_many::TextOr;
use crate::app::App;
use crate::http::{ApiError, Client, Strict};

#[derive(Debug, Deserialize)]
pub struct EmbedFields {
    model: String,
    input: TextOr<String>,
    dimensions: Option<usize>,
    keep_alive: Option<KeepAlive>,
    /// Nothing is sampled here.
    #[serde(rename = "options")]
    _options: Option<Options>,
}

#[derive(Debug, Deserialize)]
pub struct EmbedOneFields {
    model: String,
    prompt: String,
    keep_alive: Option<KeepAlive>,
    #[serde(rename = "options")]
    _options: Option<Options>,
}

#[derive(Serialize)]
struct EmbedBody<'a> {
    model: &'a str,
    embeddings: Vec<Vec<f32>>,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: usize,
}

#[derive(Serialize)]
struct EmbedOneBody {
    embedding: Vec<f32>,
}

pub async fn embed(State(app): State<Arc<App>>, request: Strict<EmbedFields>) -> Response {
    let arrived = Instant::now();
    let embedded = embedded(&app, request.client, request.first, arrived);
    (request.ignored, app.with_deadline(arrived, embedded).await).into_response()
}

pub async fn embed_one(State(app): State<Arc<App>>, request: Strict<EmbedOneFields>) -> Response {
    let arrived = Instant::now();
    let embedded = embedded_one(&app, request.client, request.first, arrived);
    (request.ignored, app.with_deadline(arrived, embedded).await).into_response()
}

async fn embedded(app: &App, client: Client, fields: EmbedFields, arrived: Instant) -> Result<Response, ApiError> {
    let texts = match fields.input {
        TextOr::Text(text) => vec![text],
        TextOr::Many(texts) => texts,
    };
    let wanted = Wanted { model: &fields.model, keep_alive: fields.keep_alive.as_ref(), dimensions: fields.dimensions };
    let (found, loading) = vectors(app, client, wanted, texts, arrived).await?;
    let Embedded { vectors, tokens, reservation } = found;
    let body = EmbedBody {
        model: &fields.model,
        embeddings: vectors,
        total_duration: nanoseconds(arrived.elapsed()),
        load_duration: nanoseconds(loading),
        prompt_eval_count: tokens,
    };
    json_response(JsonText::of(&body)?, reservation)
}

async fn embedded_one(
    app: &App,
    client: Client,
    fields: EmbedOneFields,
    arrived: Instant,
) -> Result<Response, ApiError> {
    let wanted = Wanted { model: &fields.model, keep_alive: fields.keep_alive.as_ref(), dimensions: None };
    let (found, _) = vectors(app, client, wanted, vec![fields.prompt], arrived).await?;
    let embedding = found.vectors.into_iter().next().unwrap_or_default();
    json_response(JsonText::of(&EmbedOneBody { embedding })?, found.reservation)
}

struct Wanted<'a> {
    model: &'a str,
    keep_alive: Option<&'a KeepAlive>,
    dimensions: Option<usize>,
}

/// The embeddings of texts, and how long it took until the model was loaded.
async fn vectors(
    app: &App,
    Client(client): Client,
    Wanted { model, keep_alive, dimensions }: Wanted<'_>,
    texts: Vec<String>,
    arrived: Instant,
) -> Result<(Embedded, Duration), ApiError> {
    let keep = keep_alive.map(KeepAlive::keep).transpose()?;
    let served = &lease(app, model, keep).await?;
    let loading = arrived.elapsed();
    let prompts = texts.into_iter().map(Prompt::Text).collect();
    // Ollama's way: the last token's.
    let embedded = embedding::embed(app, served, client, prompts, (Pooling::Last, dimensions), arrived).await?;
    Ok((embedded, loading))
}
