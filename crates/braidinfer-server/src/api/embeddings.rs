//! `/v1/embeddings`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use braidinfer::Output;
use braidinfer::engine::{Embedding, Pooling};
use braidinfer::handle::{OutputStream, Task};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::answers::json_response;
use super::json_text::JsonText;
use super::one_or_many::{PromptItem, TextOr};
use super::prompts;
use super::reservation;
use crate::http::{ApiError, Client, Strict, shown};
use crate::served::App;

#[derive(Debug, Deserialize)]
pub struct EmbeddingFields {
    model: Option<String>,
    input: TextOr<PromptItem>,
    /// `float` or `base64`: little-endian f32.
    encoding_format: Option<String>,
    /// How many of the first values of each vector to return, with length one again.
    dimensions: Option<usize>,
    /// How the tokens' hidden states are pooled: `last` (the default) or `mean`.
    pooling: Option<String>,
    /// Ignored: an id of the end user.
    #[serde(rename = "user")]
    _user: Option<String>,
}

pub async fn embed(State(app): State<Arc<App>>, request: Strict<EmbeddingFields>) -> Response {
    let arrived = Instant::now();
    let embedded = embedded(&app, request.client, request.first, arrived);
    (request.ignored, app.with_deadline(arrived, embedded).await).into_response()
}

async fn embedded(
    app: &App,
    Client(client): Client,
    fields: EmbeddingFields,
    arrived: Instant,
) -> Result<Response, ApiError> {
    let served = app.served_as(fields.model.as_deref())?;
    let one_of = |field: &str, expected: &str, found: &str| {
        ApiError::field(field, format!("{field}: expected {expected}, found `{}`", shown(found)))
    };
    let pooling = match fields.pooling.as_deref() {
        None | Some("last") => Pooling::Last,
        Some("mean") => Pooling::Mean,
        Some(other) => return Err(one_of("pooling", "last or mean", other)),
    };
    let as_text = match fields.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => return Err(one_of("encoding_format", "float or base64", other)),
    };
    if let Some(wanted) = fields.dimensions.filter(|wanted| !(1..=served.hidden_size).contains(wanted)) {
        let message = format!("dimensions: expected 1 to {}, found {wanted}", served.hidden_size);
        return Err(ApiError::field("dimensions", message));
    }
    let prompts = prompts::encode_all(served, prompts::prompts_in(fields.input, "input")?, "input").await?;
    let count = prompts.len();
    let reservation = reservation::reserve_embeddings(app, served, client, &prompts)?;
    let stream = served.engine.for_client(client).submit(prompts, Task::Embed(pooling), arrived).await?;
    let found = collected(stream, count).await?;
    let tokens: usize = found.iter().map(|embedding| embedding.prompt.num_tokens).sum();
    let shortened = |embedding: Embedding| match fields.dimensions {
        Some(wanted) => first_values(embedding.values, wanted),
        None => embedding.values,
    };
    let found = found.into_iter().map(shortened).enumerate();
    let data = found.map(|(index, values)| entry(index, values, as_text)).collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    let body = EmbeddingBody { object: "list", data, model: &served.name, usage };
    json_response(JsonText::of(&body)?, reservation)
}

#[derive(Serialize)]
struct EmbeddingBody<'a> {
    object: &'static str,
    data: Vec<Entry>,
    model: &'a str,
    usage: Value,
}

#[derive(Serialize)]
struct Entry {
    object: &'static str,
    index: usize,
    embedding: Values,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Values {
    Numbers(Vec<f32>),
    Base64(String),
}

/// Waits for all embeddings; returns them in the order of their prompts.
async fn collected(mut stream: OutputStream, count: usize) -> Result<Vec<Embedding>, ApiError> {
    let mut found: Vec<Option<Embedding>> = vec![None; count];
    while let Some(output) = stream.next().await {
        match output.output? {
            Output::Embedding(embedding) => found[output.choice] = Some(embedding),
            Output::Token(_) => return Err(ApiError::internal("a token came where a vector was asked for")),
        }
    }
    let missing = || ApiError::internal("the engine stopped before all vectors were there");
    found.into_iter().collect::<Option<_>>().ok_or_else(missing)
}

/// The first values of a vector, with length one.
fn first_values(mut values: Vec<f32>, wanted: usize) -> Vec<f32> {
    values.truncate(wanted);
    let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        values.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    values
}

fn entry(index: usize, values: Vec<f32>, as_text: bool) -> Entry {
    let embedding = if as_text {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Values::Base64(BASE64_STANDARD.encode(bytes))
    } else {
        Values::Numbers(values)
    };
    Entry { object: "embedding", index, embedding }
}
