//! `/v1/models`, and vLLM's `/tokenizer_info`.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use braidinfer::SamplingParams;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::status::OfModel;
use crate::app::App;
use crate::http::{ApiError, Strict};
use crate::models::{ListedModel, ModelState};

#[derive(Debug, Deserialize)]
pub struct NameFields {
    model: String,
}

pub async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let data: Vec<Value> = app.models.list().iter().map(described).collect();
    Json(json!({"object": "list", "data": data}))
}

pub async fn model(State(app): State<Arc<App>>, Path(model): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(described(&app.models.listed(&model)?)))
}

/// As it is described with the state that it is in, under llama.cpp's names where it has some.
fn described(model: &ListedModel) -> Value {
    let mut described = json!({
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "braidinfer",
        "status": {"value": model.state.as_str(), "failed": model.failure.is_some()},
    });
    if let Some(parent) = &model.parent {
        described["parent"] = json!(parent);
    }
    if let Some(sampling) = &model.sampling {
        described["default_sampling"] = default_sampling(sampling);
    }
    if let Some(about) = &model.about {
        described["capabilities"] = json!(about.capabilities());
        described["max_model_len"] = json!(about.context);
        described["has_chat_template"] = json!(about.has_chat_template);
    }
    match model.state {
        ModelState::Loaded { kernels, context, memory, in_use, .. } => {
            described["max_model_len"] = json!(context);
            described["kernels"] = json!(kernels.as_str());
            described["status"]["memory"] = json!(memory);
            described["status"]["in_use"] = json!(in_use);
        }
        ModelState::Loading(done, all) => described["status"]["layers"] = json!([done, all]),
        ModelState::Unloaded | ModelState::Unloading => {}
    }
    if let Some(failure) = &model.failure {
        described["status"]["error"] = json!(failure.message());
    }
    described
}

/// The values of the fields that say how tokens are chosen, where a request does not say.
fn default_sampling(params: &SamplingParams) -> Value {
    json!({
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
    })
}

/// Loads a model, if it is not loaded, and waits until it is.
pub async fn load(State(app): State<Arc<App>>, request: Strict<NameFields>) -> Response {
    let Strict { first: NameFields { model }, ignored, .. } = request;
    let loaded = async {
        app.lease(Some(&model)).await?;
        Ok(Json(described(&app.models.listed(&model)?)))
    };
    (ignored, app.with_deadline(Instant::now(), loaded).await).into_response()
}

/// Unloads a model, if it is loaded, when its last answers have ended.
pub async fn unload(State(app): State<Arc<App>>, request: Strict<NameFields>) -> Response {
    let Strict { first: NameFields { model }, ignored, .. } = request;
    let unloaded = async {
        app.models.unload(&model).await?;
        Ok(Json(described(&app.models.listed(&model)?)))
    };
    (ignored, app.with_deadline(Instant::now(), unloaded).await).into_response()
}

/// What clients that cut texts themselves ask for.
pub async fn tokenizer_info(State(app): State<Arc<App>>, query: Query<OfModel>) -> Result<Json<Value>, ApiError> {
    let served = app.lease(query.model.as_deref()).await?;
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
