//! `/v1/embeddings`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use braidinfer::engine::Pooling;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::answers::json_response;
use crate::api::embedding::{self, Embedded};
use crate::api::json_text::JsonText;
use crate::api::one_or_many::{PromptItem, TextOr};
use crate::api::prompts;
use crate::app::App;
use crate::http::{ApiError, Client, Strict};

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
    let served = &app.lease(fields.model.as_deref()).await?;
    let pooling = pooling(fields.pooling.as_deref())?;
    let as_text = match fields.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => return Err(ApiError::expected("encoding_format", "float or base64", other)),
    };
    let prompts = prompts::prompts_in(fields.input, "input")?;
    let Embedded { vectors, tokens, reservation } =
        embedding::embed(app, served, client, prompts, (pooling, fields.dimensions), arrived).await?;
    let data = vectors.into_iter().enumerate().map(|(index, values)| entry(index, values, as_text)).collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    let body = EmbeddingBody { object: "list", data, model: served.name(), usage };
    json_response(JsonText::of(&body)?, reservation)
}

/// How hidden states of tokens become one vector, by the field `pooling`.
pub fn pooling(asked: Option<&str>) -> Result<Pooling, ApiError> {
    match asked {
        None | Some("last") => Ok(Pooling::Last),
        Some("mean") => Ok(Pooling::Mean),
        Some(other) => Err(ApiError::expected("pooling", "last or mean", other)),
    }
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

fn entry(index: usize, values: Vec<f32>, as_text: bool) -> Entry {
    let embedding = if as_text {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Values::Base64(BASE64_STANDARD.encode(bytes))
    } else {
        Values::Numbers(values)
    };
    Entry { object: "embedding", index, embedding }
}
