//! `/tokenize` and `/detokenize`.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use braidinfer::Prompt;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::messages::{self, Message};
use super::prompts;
use crate::http::{ApiError, Strict};
use crate::served::App;

#[derive(Debug, Deserialize)]
pub struct TokenizeFields {
    model: Option<String>,
    /// A text; exactly one of `prompt` and `messages` must be present.
    prompt: Option<String>,
    /// A chat.
    messages: Option<Vec<Message>>,
    /// Whether to add special tokens such as BOS to the text; true if absent.
    add_special_tokens: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub struct DetokenizeFields {
    model: Option<String>,
    tokens: Vec<u32>,
}

pub async fn tokenize(State(app): State<Arc<App>>, request: Strict<TokenizeFields>) -> Response {
    (request.ignored, app.with_deadline(Instant::now(), tokenized(&app, request.first)).await).into_response()
}

pub async fn detokenize(State(app): State<Arc<App>>, request: Strict<DetokenizeFields>) -> Response {
    (request.ignored, app.with_deadline(Instant::now(), detokenized(&app, request.first)).await).into_response()
}

async fn tokenized(app: &App, fields: TokenizeFields) -> Result<Json<Value>, ApiError> {
    let served = app.served_as(fields.model.as_deref())?;
    let tokens = match (fields.prompt, fields.messages, fields.add_special_tokens) {
        (Some(text), None, Some(false)) => prompts::encode_bare(served, text).await?,
        (Some(text), None, _) => prompts::encode(served, Prompt::Text(text)).await?,
        (None, Some(messages), None) => {
            prompts::encode_chat(served, messages::template_fields(messages)?, Map::new()).await?
        }
        (None, Some(_), Some(_)) => {
            let message =
                "add_special_tokens: expected a prompt beside it; a chat template writes special tokens itself";
            return Err(ApiError::field("add_special_tokens", message));
        }
        _ => return Err(ApiError::field("prompt", "prompt: expected either a prompt or messages")),
    };
    Ok(Json(json!({"count": tokens.len(), "max_model_len": served.context, "tokens": tokens})))
}

async fn detokenized(app: &App, fields: DetokenizeFields) -> Result<Json<Value>, ApiError> {
    let served = app.served_as(fields.model.as_deref())?;
    prompts::check_ids(served, &fields.tokens, "tokens")?;
    Ok(Json(json!({"prompt": prompts::decode(served, fields.tokens).await?})))
}
