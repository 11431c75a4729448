//! `/v1/messages` and `/v1/messages/count_tokens`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::fields::MessageFields;
use super::writer::MessageWriter;
use crate::api::answers::{self, ChoiceStream, Delivery};
use crate::api::chat;
use crate::app::App;
use crate::http::{ApiError, Client, HttpRequestId, Strict};

pub async fn create(
    State(app): State<Arc<App>>,
    Extension(HttpRequestId(name)): Extension<HttpRequestId>,
    request: Strict<MessageFields>,
) -> Response {
    let arrived = Instant::now();
    let begun = begin(&app, &name, request.client, request.first, arrived);
    let begun = app.with_deadline(arrived, begun).await;
    answers::deliver(begun, request.ignored).await
}

async fn begin(
    app: &App,
    name: &str,
    Client(client): Client,
    fields: MessageFields,
    arrived: Instant,
) -> Result<(ChoiceStream, MessageWriter, Delivery), ApiError> {
    let served = &app.lease(Some(&fields.model)).await?;
    let (delivery, model) = (fields.delivery(), fields.model.clone());
    let request = fields.into_chat(&served.default_sampling)?;
    let (stream, reader) = chat::begin(app, served, client, request, delivery, arrived).await?;
    Ok((stream, MessageWriter::new(format!("msg_{name}"), model, reader), delivery))
}

pub async fn count_tokens(State(app): State<Arc<App>>, request: Strict<MessageFields>) -> Response {
    (request.ignored, app.with_deadline(Instant::now(), counted(&app, request.first)).await).into_response()
}

async fn counted(app: &App, fields: MessageFields) -> Result<Json<Value>, ApiError> {
    let served = &app.lease(Some(&fields.model)).await?;
    let chat = fields.into_chat(&served.default_sampling)?;
    let prompt = chat::encode(served, chat.conversation).await?;
    Ok(Json(json!({"input_tokens": prompt.ids.len()})))
}
