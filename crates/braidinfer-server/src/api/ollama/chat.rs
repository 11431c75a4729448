//! `/api/chat`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::fields::SharedFields;
use super::messages::{self, Message, ToolFields};
use super::writer::{AnswerWriter, Place};
use super::{lease, load_or_unload};
use crate::api::answers::{self, ChoiceStream, Delivery};
use crate::api::chat::{self, ChatRequest, Conversation};
use crate::app::App;
use crate::http::{ApiError, Client, Strict};

#[derive(Debug, Deserialize)]
pub struct ChatFields {
    messages: Option<Vec<Message>>,
    tools: Option<Vec<ToolFields>>,
}

pub async fn chat(State(app): State<Arc<App>>, request: Strict<SharedFields, ChatFields>) -> Response {
    let arrived = Instant::now();
    let Strict { first: shared, second: fields, ignored, client, .. } = request;
    // Without messages, the model is only to be loaded, or unloaded.
    if fields.messages.as_ref().is_none_or(Vec::is_empty) {
        let found = app.with_deadline(arrived, load_or_unload(&app, &shared, Place::Message)).await;
        return (ignored, found).into_response();
    }
    let begun = app.with_deadline(arrived, begin(&app, client, &shared, fields, arrived)).await;
    answers::deliver(begun, ignored).await
}

async fn begin(
    app: &App,
    Client(client): Client,
    shared: &SharedFields,
    fields: ChatFields,
    arrived: Instant,
) -> Result<(ChoiceStream, AnswerWriter, Delivery), ApiError> {
    let served = &lease(app, &shared.model, shared.keep()?).await?;
    let loaded = Instant::now();
    let think = shared.think()?.check(served, &shared.model)?;
    let messages = messages::template_fields(fields.messages.unwrap_or_default())?;
    let request = ChatRequest {
        params: shared.params(&served.default_sampling)?,
        form: shared.form()?,
        conversation: Conversation {
            end: chat::end_of(&messages),
            messages,
            tools: messages::tools(fields.tools.unwrap_or_default())?,
            thinks: think.is_on,
            reasoning_effort: think.effort,
            ..Conversation::default()
        },
        ..ChatRequest::default()
    };
    let delivery = shared.delivery();
    let (stream, reader) = chat::begin(app, served, client, request, delivery, arrived).await?;
    Ok((stream, AnswerWriter::new(shared.model.clone(), Place::Message, reader, (arrived, loaded)), delivery))
}
