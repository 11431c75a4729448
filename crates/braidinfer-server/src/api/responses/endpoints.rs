//! `/v1/responses`.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::json;

use super::fields::ResponseFields;
use super::store::{bytes_of_fields, bytes_of_messages};
use super::writer::{OutputWriter, Remembered};
use crate::api::answers::{self, ChoiceStream, Delivery};
use crate::api::chat;
use crate::api::json_text::JsonText;
use crate::app::App;
use crate::budget::Held;
use crate::http::{ApiError, Client, Kept, Strict, shown};

pub async fn create(State(app): State<Arc<App>>, request: Strict<ResponseFields>) -> Response {
    let arrived = Instant::now();
    let begun = begin(&app, request.client, request.first, arrived);
    let begun = app.with_deadline(arrived, begun).await;
    answers::deliver(begun, request.ignored).await
}

async fn begin(
    app: &Arc<App>,
    Client(client): Client,
    fields: ResponseFields,
    arrived: Instant,
) -> Result<(ChoiceStream, OutputWriter, Delivery), ApiError> {
    let served = &app.lease(Some(&fields.model)).await?;
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
    let remembered = echo.is_stored.then(|| Remembered { app: Arc::clone(app), client, messages });
    // What is sent back and stored is held until the answer is there.
    let held = bytes_of_fields(&echo.fields) + remembered.as_ref().map_or(0, |kept| bytes_of_messages(&kept.messages));
    let claim = app.budget.claim(client, Held::Prompt, held)?;
    let (stream, reader) = chat::begin(app, served, client, request, delivery, arrived).await?;
    Ok((stream, OutputWriter::new(echo.fields, reader, remembered, claim), delivery))
}

pub async fn retrieve(
    State(app): State<Arc<App>>,
    Extension(Client(client)): Extension<Client>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    if let Some(query) = query.filter(|query| !query.is_empty()) {
        let message =
            format!("query: expected none, as a stored response is returned whole, found `{}`", shown(&query));
        return Err(ApiError::field("query", message));
    }
    let stored = app.responses.get(client, &id).ok_or_else(|| unknown(&id))?;
    let text = JsonText::of(&stored.response)?;
    let claim = app.budget.claim(client, Held::Answer, text.len())?;
    Ok(([(CONTENT_TYPE, "application/json")], Kept::within(Body::new(text), claim)).into_response())
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
