//! `/api/embed`, and its earlier form `/api/embeddings`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use braidinfer::Prompt;
use braidinfer::engine::Pooling;
use serde::{Deserialize, Serialize};

use super::fields::Options;
use super::served_as;
use super::writer::nanoseconds;
use crate::api::answers::json_response;
use crate::api::embedding::{self, Embedded};
use crate::api::json_text::JsonText;
use crate::api::one_or_many::TextOr;
use crate::http::{ApiError, Client, Strict};
use crate::served::App;

#[derive(Debug, Deserialize)]
pub struct EmbedFields {
    model: String,
    input: TextOr<String>,
    dimensions: Option<usize>,
    /// Nothing is sampled here.
    #[serde(rename = "options")]
    _options: Option<Options>,
}

#[derive(Debug, Deserialize)]
pub struct EmbedOneFields {
    model: String,
    prompt: String,
    #[serde(rename = "options")]
    _options: Option<Options>,
}

#[derive(Serialize)]
struct EmbedBody<'a> {
    model: &'a str,
    embeddings: Vec<Vec<f32>>,
    total_duration: u64,
    /// The model was loaded before.
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
    let found = vectors(app, client, &fields.model, texts, fields.dimensions, arrived).await?;
    let Embedded { vectors, tokens, reservation } = found;
    let body = EmbedBody {
        model: &fields.model,
        embeddings: vectors,
        total_duration: nanoseconds(arrived.elapsed()),
        load_duration: 0,
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
    let found = vectors(app, client, &fields.model, vec![fields.prompt], None, arrived).await?;
    let embedding = found.vectors.into_iter().next().unwrap_or_default();
    json_response(JsonText::of(&EmbedOneBody { embedding })?, found.reservation)
}

async fn vectors(
    app: &App,
    Client(client): Client,
    model: &str,
    texts: Vec<String>,
    dimensions: Option<usize>,
    arrived: Instant,
) -> Result<Embedded, ApiError> {
    let served = served_as(app, model)?;
    let prompts = texts.into_iter().map(Prompt::Text).collect();
    // Ollama's way: the last token's.
    embedding::embed(app, served, client, prompts, (Pooling::Last, dimensions), arrived).await
}
