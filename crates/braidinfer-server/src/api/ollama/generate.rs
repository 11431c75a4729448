//! `/api/generate`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use braidinfer::Prompt;
use serde::Deserialize;
use serde_json::Value;

use super::fields::{SharedFields, refused};
use super::messages::refuse_images;
use super::writer::{AnswerWriter, Place};
use super::{lease, load_or_unload};
use crate::api::answers::{self, ChoiceStream, Delivery};
use crate::api::chat::{self, AnswerReader, ChatRequest, Conversation, message};
use crate::api::completion::{self, CompletionRequest};
use crate::api::prompts;
use crate::app::App;
use crate::http::{ApiError, Client, Strict};

#[derive(Debug, Deserialize)]
pub struct GenerateFields {
    prompt: Option<String>,
    /// Text after what is to be filled in.
    suffix: Option<String>,
    system: Option<String>,
    /// Whether the prompt is taken as it is, without the chat template.
    raw: Option<bool>,
    images: Option<Vec<Value>>,
    /// Another chat template, which nobody may bring.
    template: Option<String>,
}

pub async fn generate(State(app): State<Arc<App>>, request: Strict<SharedFields, GenerateFields>) -> Response {
    let arrived = Instant::now();
    let Strict { first: shared, second: fields, ignored, client, .. } = request;
    // Without a prompt, the model is only to be loaded, or unloaded.
    if fields.prompt.as_ref().is_none_or(String::is_empty) {
        let found = app.with_deadline(arrived, load_or_unload(&app, &shared, Place::Response)).await;
        return (ignored, found).into_response();
    }
    let begun = app.with_deadline(arrived, begin(&app, client, &shared, fields, arrived)).await;
    answers::deliver(begun, ignored).await
}

async fn begin(
    app: &App,
    Client(client): Client,
    shared: &SharedFields,
    fields: GenerateFields,
    arrived: Instant,
) -> Result<(ChoiceStream, AnswerWriter, Delivery), ApiError> {
    let served = &lease(app, &shared.model, shared.keep()?).await?;
    let loaded = Instant::now();
    let delivery = shared.delivery();
    refuse_images(fields.images.as_deref(), "images")?;
    if let Some(template) = fields.template.filter(|template| !template.is_empty()) {
        return Err(refused("template", "none: the model has its own", &template));
    }
    let (prompt, system) = (fields.prompt.unwrap_or_default(), fields.system.filter(|system| !system.is_empty()));
    let think = shared.think()?.check(served, &shared.model)?;
    let mut params = shared.params(&served.default_sampling)?;
    let is_raw = fields.raw == Some(true) || served.text.chat_template().is_none();
    let suffix = fields.suffix.filter(|suffix| !suffix.is_empty());
    if let Some(system) = system.as_ref().filter(|_| fields.raw == Some(true) || suffix.is_some()) {
        return Err(refused("system", "none beside `raw` or `suffix`, which are about the prompt alone", system));
    }
    let (stream, reader) = if suffix.is_none() && !is_raw {
        let turns = system.iter().map(|text| message("system", text)).chain([message("user", &prompt)]);
        let conversation = Conversation {
            messages: turns.collect(),
            thinks: think.is_on,
            reasoning_effort: think.effort,
            ..Conversation::default()
        };
        let request = ChatRequest { params, form: shared.form()?, conversation, ..ChatRequest::default() };
        chat::begin(app, served, client, request, delivery, arrived).await?
    } else {
        // What a model without a template would be told stands before its prompt.
        let prompt = system.into_iter().chain([prompt]).collect::<Vec<_>>().join("\n");
        let prompts = match suffix {
            Some(suffix) => {
                let (prompts, ends) = prompts::encode_infill(served, vec![Prompt::Text(prompt)], suffix).await?;
                params.stop_token_ids.extend(ends);
                prompts
            }
            None => vec![prompts::encode(served, Prompt::Text(prompt)).await?],
        };
        let request = CompletionRequest { prompts, params, form: shared.form()?, shows_special_tokens: false };
        let stream = completion::begin(app, served, client, request, delivery, arrived).await?;
        (stream, AnswerReader::new(vec![None], false))
    };
    Ok((stream, AnswerWriter::new(shared.model.clone(), Place::Response, reader, (arrived, loaded)), delivery))
}
