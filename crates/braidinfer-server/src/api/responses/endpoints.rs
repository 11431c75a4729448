//! `/v1/responses`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::fields::ResponseFields;
use super::writer::{OutputWriter, Remembered};
use crate::api::answers::{self, ChoiceStream, Delivery};
use crate::api::chat;
use crate::http::{ApiError, Client, HttpRequestId, Strict, shown};
use crate::served::App;

pub async fn create(
    State(app): State<Arc<App>>,
    Extension(HttpRequestId(name)): Extension<HttpRequestId>,
    request: Strict<ResponseFields>,
) -> Response {
    let arrived = Instant::now();
    let begun = begin(&app, &name, request.client, request.first, arrived);
    let begun = app.with_deadline(arrived, begun).await;
    answers::deliver(begun, request.ignored).await
}

async fn begin(
    app: &Arc<App>,
    name: &str,
    Client(client): Client,
    fields: ResponseFields,
    arrived: Instant,
) -> Result<(ChoiceStream, OutputWriter, Delivery), ApiError> {
    let served = app.served_as(Some(&fields.model))?;
    let before = match &fields.previous_response_id {
        None => Vec::new(),
        Some(id) => {
            let stored = app.responses.get(client, id).ok_or_else(|| {
                let message = format!("previous_response_id: expected a stored response, found `{}`", shown(id));
                ApiError::field("previous_response_id", message)
            })?;
            stored.messages.clone()
        }
    };
    let delivery = fields.delivery();
    let params = fields.params(&served.default_sampling);
    let echo = fields.echo(&params);
    let (request, messages) = fields.into_chat(params, before)?;
    let (stream, reader) = chat::begin(app, served, client, request, delivery, arrived).await?;
    let remembered = echo.is_stored.then(|| Remembered { app: Arc::clone(app), client, messages });
    Ok((stream, OutputWriter::new(name, echo.fields, reader, remembered), delivery))
}

pub async fn retrieve(
    State(app): State<Arc<App>>,
    Extension(Client(client)): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let stored = app.responses.get(client, &id).ok_or_else(|| unknown(&id))?;
    Ok(Json(stored.response.clone()))
}

pub async fn delete(
    State(app): State<Arc<App>>,
    Extension(Client(client)): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    match app.responses.remove(client, &id) {
        true => Ok(Json(json!({"id": id, "object": "response", "deleted": true})).into_response()),
        false => Err(unknown(&id)),
    }
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no response `{}`", shown(id)))
}
