//! `/tokenize` and `/detokenize`.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use braidinfer::Prompt;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat::{prompt_end, template_variables};
use super::messages::{self, Message};
use super::tools::{ToolFields, tools_of};
use crate::api::chat::{self, Conversation};
use crate::api::prompts;
use crate::app::App;
use crate::http::{ApiError, Strict};

#[derive(Debug, Deserialize)]
pub struct TokenizeFields {
    model: Option<String>,
    /// A text; exactly one of `prompt` and `messages` must be present.
    prompt: Option<String>,
    /// A chat.
    messages: Option<Vec<Message>>,
    /// Tools that the chat offers.
    tools: Option<Vec<ToolFields>>,
    /// Additional variables for the chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the prompt of a chat ends where an answer begins; true if absent.
    add_generation_prompt: Option<bool>,
    /// Whether the answer continues the last message.
    continue_final_message: Option<bool>,
    /// Whether to add special tokens such as BOS to the text; true if absent.
    add_special_tokens: Option<bool>,
    /// Whether to return the spelling of each token.
    return_token_strs: Option<bool>,
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
    let served = &app.lease(fields.model.as_deref()).await?;
    let with_spellings = fields.return_token_strs == Some(true);
    let tokens = match (fields.prompt, fields.messages, fields.add_special_tokens) {
        (Some(text), None, Some(false)) => prompts::encode_bare(served, text).await?,
        (Some(text), None, _) => prompts::encode(served, Prompt::Text(text)).await?,
        // A chat template writes special tokens itself.
        (None, Some(messages), None | Some(false)) => {
            let conversation = Conversation {
                messages: messages::template_fields(messages)?,
                tools: tools_of(fields.tools)?,
                variables: template_variables(fields.chat_template_kwargs.unwrap_or_default())?,
                end: prompt_end(fields.add_generation_prompt, fields.continue_final_message)?,
                ..Conversation::default()
            };
            chat::encode(served, conversation).await?.ids
        }
        (None, Some(_), Some(true)) => {
            let message =
                "add_special_tokens: expected a prompt beside it; a chat template writes special tokens itself";
            return Err(ApiError::field("add_special_tokens", message));
        }
        _ => return Err(ApiError::field("prompt", "prompt: expected either a prompt or messages")),
    };
    let spellings = served.text.tokenizer().filter(|_| with_spellings).map(|tokenizer| {
        tokens.iter().map(|id| tokenizer.id_to_token(*id).map(std::borrow::Cow::into_owned)).collect::<Vec<_>>()
    });
    let mut found = json!({"count": tokens.len(), "max_model_len": served.context, "tokens": tokens});
    if with_spellings {
        found["token_strs"] = json!(spellings);
    }
    Ok(Json(found))
}

async fn detokenized(app: &App, fields: DetokenizeFields) -> Result<Json<Value>, ApiError> {
    let served = &app.lease(fields.model.as_deref()).await?;
    prompts::check_ids(served, &fields.tokens, "tokens")?;
    Ok(Json(json!({"prompt": prompts::decode(served, fields.tokens).await?})))
}
