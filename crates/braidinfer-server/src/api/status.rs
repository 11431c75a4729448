//! Status endpoints: health, readiness, models, compatibility report and metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::http::ApiError;
use crate::served::{App, Served};

/// Content type of [`crate::metrics::Metrics::text`].
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Liveness: fails only if nothing but a new start helps.
pub async fn health(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    app.served().map_or(Ok(()), |served| check_engine(served))?;
    Ok(Json(json!({"status": "ok"})))
}

/// Readiness: whether the server accepts requests for the model.
pub async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    if app.is_stopping() {
        return Err(ApiError::not_ready("the server stops"));
    }
    let served = app.served_as(None)?;
    check_engine(served)?;
    Ok(Json(json!({"status": "ready", "model": served.name})))
}

/// Fails if the engine will answer nothing any more.
fn check_engine(served: &Served) -> Result<(), ApiError> {
    if !served.engine.is_alive() {
        return Err(ApiError::not_ready("the engine has stopped"));
    }
    served.engine.fault().map_or(Ok(()), |fault| Err(fault.into()))
}

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

/// The compatibility report by which the kernels were chosen.
pub async fn compat(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let served = app.served_as(None)?;
    match &served.compat {
        Some(report) => Ok(Json(report).into_response()),
        None => Err(ApiError::not_found(format!(
            "{} kernels were chosen by name, without a check",
            served.kernels.as_str()
        ))),
    }
}

pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let served = app.served_as(None)?;
    app.metrics.update(&app.budget, app.connections.len());
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], served.metrics.text()).into_response())
}
