//! `/v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use braidinfer::engine::TokenLogprobs;
use braidinfer::text::ChatMessage;
use braidinfer::{ModelText, Prompt, SamplingParams, Token};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answers::{Answer, Answers, Envelope, Form, Usage};
use super::form;
use super::logprobs::ChatToken;
use super::one_or_many::TextOr;
use super::sampling::{Delivery, SamplingFields};
use crate::http::{ApiError, Strict};
use crate::served::{App, Served, seconds_since_1970};
use crate::worker::Task;

#[derive(Debug, Deserialize)]
pub struct ChatFields {
    messages: Vec<Message>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
}

#[derive(Debug, Deserialize)]
pub struct Message {
    role: String,
    content: Option<TextOr<Part>>,
    /// Tells apart who speaks in a role; templates have no place for it.
    #[serde(rename = "name")]
    _name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

impl Message {
    /// As the chat template takes it; `index` is for messages about it.
    pub fn into_chat(self, index: usize) -> Result<ChatMessage, ApiError> {
        let refused = |field: &str, expected: &str, found: &str| {
            let field = format!("messages[{index}].{field}");
            Err(ApiError::field(field.clone(), format!("{field}: expected {expected}, found {found}")))
        };
        let role = match self.role.as_str() {
            role @ ("system" | "user" | "assistant") => role,
            // What newer clients call instructions.
            "developer" => "system",
            other => return refused("role", "system, developer, user or assistant", &format!("`{other}`")),
        };
        let content = match self.content {
            None => return refused("content", "a text", "none"),
            Some(TextOr::Text(text)) => text,
            Some(TextOr::Many(parts)) => {
                let mut content = String::new();
                for part in parts {
                    match part.text {
                        Some(text) if part.kind == "text" => content += &text,
                        _ => return refused("content", "parts of type text", &format!("one of type {}", part.kind)),
                    }
                }
                content
            }
        };
        Ok(ChatMessage::new(role, content))
    }
}

pub async fn complete(State(app): State<Arc<App>>, request: Strict<SamplingFields, ChatFields>) -> Response {
    let arrived = Instant::now();
    match begin(&app, &request.first, request.second, arrived).await {
        Ok((answers, form, delivery)) => answers.deliver(form, delivery, request.ignored).await,
        Err(error) => (request.ignored, error).into_response(),
    }
}

async fn begin(
    app: &App,
    sampling: &SamplingFields,
    fields: ChatFields,
    arrived: Instant,
) -> Result<(Answers, ChatForm, Delivery), ApiError> {
    let served = app.served_as(sampling.model.as_deref())?;
    let delivery = sampling.delivery()?;
    let logprobs = match (fields.logprobs.unwrap_or(false), fields.top_logprobs) {
        (true, count) => Some(count.unwrap_or(0)),
        (false, None) => None,
        (false, Some(_)) => {
            let message = "top_logprobs: expected `logprobs` to be true beside it";
            return Err(ApiError::field("top_logprobs", message));
        }
    };
    let params = SamplingParams { logprobs, ..sampling.over(&served.default_sampling, None)? };
    let messages = fields.messages.into_iter().enumerate().map(|(index, message)| message.into_chat(index));
    let messages = messages.collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages: expected at least one message, found none"));
    }
    let asked = form::asked_for(sampling.response_format.as_ref(), sampling.structured_outputs.as_ref())?;
    let constraint = form::constraint(served, asked).await?;
    let prompt = encode(served, Prompt::Chat(messages)).await?;
    let (count, n, deadline) = (params.n, params.n, (arrived + app.config.request_timeout).into());
    let task = Task::Answer(Box::new(params), constraint);
    let stream = served.worker.submit(vec![prompt], &task, arrived).await?;
    let envelope = Envelope {
        id: format!("chatcmpl-{}", app.next_id()),
        created: seconds_since_1970(),
        model: served.name.clone(),
        with_usage: delivery == (Delivery::Streamed { with_usage: true }),
    };
    let text = logprobs.is_some().then(|| Arc::clone(&served.text));
    Ok((Answers { stream, count, n, deadline }, ChatForm { envelope, text }, delivery))
}

/// Token ids of a prompt. Long ones take their time, which is not taken from other requests.
pub async fn encode(served: &Served, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    let text = Arc::clone(&served.text);
    let encoded = tokio::task::spawn_blocking(move || text.encode(&prompt)).await;
    Ok(encoded.map_err(|error| ApiError::internal(format!("the prompt could not be encoded: {error}")))??)
}

struct ChatForm {
    envelope: Envelope,
    /// With probabilities: what spells tokens.
    text: Option<Arc<ModelText>>,
}

impl ChatForm {
    fn logprobs(&self, found: &[TokenLogprobs]) -> Value {
        let tokenizer = self.text.as_ref().and_then(|text| text.tokenizer());
        match tokenizer {
            Some(tokenizer) => {
                json!({"content": found.iter().map(|found| ChatToken::of(found, tokenizer)).collect::<Vec<_>>()})
            }
            None => Value::Null,
        }
    }

    fn chunk(&self, choice: usize, delta: Value, logprobs: Value, finish_reason: Option<&str>) -> Value {
        let choices = json!([{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}]);
        self.envelope.around("chat.completion.chunk", choices, None)
    }
}

impl Form for ChatForm {
    fn opening(&mut self, choice: usize) -> Vec<Value> {
        vec![self.chunk(choice, json!({"role": "assistant", "content": ""}), Value::Null, None)]
    }

    fn part(&mut self, choice: usize, token: Token) -> Vec<Value> {
        let mut parts = Vec::new();
        // A token whose text is held back has nothing to tell but its probability.
        if !token.text.is_empty() || token.logprobs.is_some() {
            let logprobs =
                token.logprobs.as_ref().map_or(Value::Null, |found| self.logprobs(std::slice::from_ref(found)));
            parts.push(self.chunk(choice, json!({"content": token.text}), logprobs, None));
        }
        if let Some(reason) = token.finished {
            parts.push(self.chunk(choice, json!({}), Value::Null, Some(reason.as_str())));
        }
        parts
    }

    fn usage_part(&self, usage: Usage) -> Value {
        self.envelope.around("chat.completion.chunk", json!([]), Some(usage))
    }

    fn whole(&mut self, answers: Vec<Answer>, usage: Usage) -> Value {
        let choice = |(index, answer): (usize, &Answer)| {
            json!({
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": null},
                "logprobs": self.logprobs(&answer.logprobs),
                "finish_reason": answer.finish_reason.map(|reason| reason.as_str()),
            })
        };
        let choices: Vec<Value> = answers.iter().enumerate().map(choice).collect();
        self.envelope.around("chat.completion", json!(choices), Some(usage))
    }
}
