//! `/v1/models`, and vLLM's `/tokenizer_info`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::http::ApiError;
use crate::served::{App, Served};

pub async fn models(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let served = app.served_as(None)?;
    let names = std::iter::once(&served.name).chain(&app.config.model_names.listed);
    let data: Vec<Value> = names.map(|name| described(served, name)).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

pub async fn model(State(app): State<Arc<App>>, Path(model): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(described(app.served_as(Some(&model))?, &model)))
}

fn described(served: &Served, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "braidinfer",
        "max_model_len": served.context,
        "kernels": served.kernels.as_str(),
        // One that cannot be used is one: chats say what is wrong with it.
        "has_chat_template": served.text.chat_template().is_some() || served.text.has_faulty_chat_template(),
    })
}

/// What clients that cut texts themselves ask for.
pub async fn tokenizer_info(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let served = app.served_as(None)?;
    let tokenizer = served.text.require_tokenizer()?;
    let first = tokenizer.first_token();
    let (bos, eos) = (tokenizer.bos_token(), tokenizer.eos_token());
    Ok(Json(json!({
        "tokenizer_class": tokenizer.kind(),
        "vocab_size": tokenizer.vocab_size(),
        "model_max_length": served.context,
        "add_bos_token": first.is_some(),
        "bos_token": bos,
        "eos_token": eos,
        "bos_token_id": bos.and_then(|token| tokenizer.token_to_id(token)),
        "eos_token_id": eos.and_then(|token| tokenizer.token_to_id(token)),
        "chat_template": served.text.chat_template().map(|template| template.source()),
    })))
}
