//! `/v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use braidinfer::conversation::AnswerPart;
use braidinfer::engine::{MOST_LOGPROBS, TokenLogprobs};
use braidinfer::{ModelText, SamplingParams, Token};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::envelope::{Envelope, failed_chunks};
use super::form;
use super::logprobs::{ChatLogprobs, ChatToken};
use super::messages::{self, Message};
use super::sampling::{ParameterFields, SharedFields};
use super::tools::{ToolChoiceField, ToolFields, choice_of, tools_of};
use crate::api::answers::{self, Choice, ChoiceStream, Chunk, Delivery, Framing, ResponseWriter, Usage};
use crate::api::chat::tools::new_call_id;
use crate::api::chat::{self, AnswerReader, ChatRequest, Conversation};
use crate::api::json_text::JsonText;
use crate::api::prompts::PromptEnd;
use crate::app::App;
use crate::http::{ApiError, Client, HttpRequestId, ReasoningFields, Strict, shown};

#[derive(Debug, Deserialize)]
pub struct ChatFields {
    messages: Vec<Message>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    tools: Option<Vec<ToolFields>>,
    tool_choice: Option<ToolChoiceField>,
    /// Whether an answer may have several tool calls; true if absent.
    parallel_tool_calls: Option<bool>,
    /// Additional variables for the chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the prompt ends where an answer begins; true if absent.
    add_generation_prompt: Option<bool>,
    /// Whether the answer continues the last message.
    continue_final_message: Option<bool>,
    /// How much the model reasons, for templates that know it; `none` means not at all.
    reasoning_effort: Option<String>,
    /// Whether the model reasons, for templates that know it.
    enable_thinking: Option<bool>,
    /// Most tokens of reasoning.
    thinking_budget: Option<usize>,
}

pub async fn complete(
    State(app): State<Arc<App>>,
    Extension(HttpRequestId(name)): Extension<HttpRequestId>,
    request: Strict<ParameterFields, SharedFields, ChatFields>,
) -> Response {
    let arrived = Instant::now();
    let begun = begin(&app, &name, request.client, (&request.first, &request.second), request.third, arrived);
    let begun = app.with_deadline(arrived, begun).await;
    answers::deliver(begun, request.ignored).await
}

async fn begin(
    app: &App,
    name: &str,
    Client(client): Client,
    (parameters, shared): (&ParameterFields, &SharedFields),
    fields: ChatFields,
    arrived: Instant,
) -> Result<(ChoiceStream, ChatWriter, Delivery), ApiError> {
    let served = &app.lease(shared.model.as_deref()).await?;
    let delivery = shared.delivery()?;
    let logprobs = wanted_logprobs(&fields)?;
    let params = SamplingParams { logprobs, ..shared.sampling_params(parameters, &served.default_sampling, None)? };
    let form = form::requested(shared)?;
    let request = ChatRequest {
        params,
        // vLLM's fields are about all that a model writes.
        is_form_of_calls: form.as_ref().is_some_and(|(_, field)| *field != "response_format"),
        form,
        thinking_budget: fields.thinking_budget,
        only_one_call: fields.parallel_tool_calls == Some(false),
        shows_special_tokens: shared.shows_special_tokens(),
        conversation: conversation(fields)?,
    };
    let (stream, reader) = chat::begin(app, served, client, request, delivery, arrived).await?;
    let writer = ChatWriter {
        envelope: Envelope::new("chatcmpl", name, served, shared.with_usage()),
        text: logprobs.is_some().then(|| Arc::clone(&served.text)),
        begun: vec![0; reader.choices()],
        reader,
        reasoning_fields: app.config.reasoning_fields,
    };
    Ok((stream, writer, delivery))
}

fn conversation(fields: ChatFields) -> Result<Conversation, ApiError> {
    Ok(Conversation {
        thinks: thinks(&fields),
        reasoning_effort: fields.reasoning_effort.filter(|effort| effort != "none"),
        messages: messages::template_fields(fields.messages)?,
        tools: tools_of(fields.tools)?,
        tool_choice: choice_of(fields.tool_choice)?,
        variables: template_variables(fields.chat_template_kwargs.unwrap_or_default())?,
        end: prompt_end(fields.add_generation_prompt, fields.continue_final_message)?,
    })
}

/// How many of the likeliest tokens to return beside each one; `None` for no log-probabilities.
fn wanted_logprobs(fields: &ChatFields) -> Result<Option<usize>, ApiError> {
    match (fields.logprobs.unwrap_or(false), fields.top_logprobs) {
        (true, Some(count)) if count > MOST_LOGPROBS => {
            let message = format!("top_logprobs: expected at most {MOST_LOGPROBS}, found {count}");
            Err(ApiError::field("top_logprobs", message))
        }
        (true, count) => Ok(Some(count.unwrap_or(0))),
        (false, None) => Ok(None),
        (false, Some(_)) => {
            let message = "top_logprobs: expected `logprobs` to be true beside it";
            Err(ApiError::field("top_logprobs", message))
        }
    }
}

/// How the prompt ends.
pub fn prompt_end(add_generation_prompt: Option<bool>, continue_final: Option<bool>) -> Result<PromptEnd, ApiError> {
    match (add_generation_prompt, continue_final.unwrap_or(false)) {
        (Some(true), true) => {
            let message = "continue_final_message: expected `add_generation_prompt` to be false beside it";
            Err(ApiError::field("continue_final_message", message))
        }
        (_, true) => Ok(PromptEnd::WithinMessage),
        (Some(false), false) => Ok(PromptEnd::Message),
        (Some(true) | None, false) => Ok(PromptEnd::Answer),
    }
}

/// Whether the model shall reason, if the request says so.
fn thinks(fields: &ChatFields) -> Option<bool> {
    let is_none = fields.reasoning_effort.as_deref() == Some("none");
    let variables = fields.chat_template_kwargs.as_ref();
    let in_variables = || ["enable_thinking", "thinking"].iter().find_map(|name| variables?.get(*name)?.as_bool());
    fields.enable_thinking.or(is_none.then_some(false)).or_else(in_variables)
}

/// Variables that a template gets from the messages, the tools and the model; a request has other fields for them, or none.
const OWN_VARIABLES: [&str; 4] = ["messages", "tools", "add_generation_prompt", "continue_final_message"];

/// Additional variables for the template. Refuses those that would replace what the server says.
pub fn template_variables(variables: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let is_own = |name: &&String| {
        let is_function = ["raise_exception", "strftime_now", "range", "dict", "namespace", "debug", "loop", "self"];
        OWN_VARIABLES.contains(&name.as_str()) || is_function.contains(&name.as_str()) || name.ends_with("_token")
    };
    match variables.keys().find(is_own) {
        Some(name) => {
            let field = format!("chat_template_kwargs.{name}");
            let message = format!("{}: expected a variable that the server does not set itself", shown(&field));
            Err(ApiError::field(field, message))
        }
        None => Ok(variables),
    }
}

#[derive(Serialize)]
struct WholeChoice<'a> {
    index: usize,
    message: Value,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: Option<&'static str>,
}

struct ChatWriter {
    envelope: Envelope,
    /// Tokenizer for log-probabilities, if they are requested.
    text: Option<Arc<ModelText>>,
    reader: AnswerReader,
    /// Calls of each choice that have begun.
    begun: Vec<usize>,
    reasoning_fields: ReasoningFields,
}

const CHUNK: &str = "chat.completion.chunk";

impl ChatWriter {
    fn finish_reason(&self, choice: usize, reason: braidinfer::FinishReason) -> &'static str {
        if self.reader.ends_with_calls(choice, reason) { "tool_calls" } else { reason.as_str() }
    }

    fn message(&mut self, choice: usize, answer: &Choice) -> Value {
        let chat::WholeAnswer { content, calls } = self.reader.whole(choice, answer);
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !answer.reasoning.is_empty() {
            self.reasoning_fields.names().iter().for_each(|name| message[*name] = json!(answer.reasoning));
        }
        if !calls.is_empty() {
            if content.is_empty() {
                message["content"] = Value::Null;
            }
            let call = |chat::Call { id, name, arguments }| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
            message["tool_calls"] = calls.into_iter().map(call).collect();
        }
        message
    }

    /// The part of a streamed message for a part of its answer, if there is one.
    fn delta(&mut self, choice: usize, part: AnswerPart) -> Option<Value> {
        let begun = &mut self.begun[choice];
        let call = match part {
            AnswerPart::Text(text) | AnswerPart::NoCall(text) => return Some(json!({"content": text})),
            AnswerPart::CallEnd => return None,
            AnswerPart::Call { name } => {
                *begun += 1;
                json!({"id": new_call_id(), "type": "function", "function": {"name": name, "arguments": ""}})
            }
            AnswerPart::Arguments(more) => json!({"function": {"arguments": more}}),
        };
        let mut indexed = json!({"index": *begun - 1});
        if let (Value::Object(indexed), Value::Object(call)) = (&mut indexed, call) {
            indexed.extend(call);
        }
        Some(json!({"tool_calls": [indexed]}))
    }

    fn logprobs(&self, found: &TokenLogprobs) -> Value {
        let tokenizer = self.text.as_ref().and_then(|text| text.tokenizer());
        tokenizer.map_or(Value::Null, |tokenizer| json!({"content": [ChatToken::of(found.into(), tokenizer)]}))
    }

    fn chunk(&self, choice: usize, delta: Value, logprobs: Value, finish_reason: Option<&str>) -> Chunk {
        let choices = json!([{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}]);
        self.envelope.chunk(CHUNK, choices)
    }
}

impl ResponseWriter for ChatWriter {
    const FRAMING: Framing = Framing::Events;

    fn opening(&mut self, _usage: &Usage) -> Vec<Chunk> {
        let role = || json!({"role": "assistant", "content": ""});
        (0..self.reader.choices()).map(|choice| self.chunk(choice, role(), Value::Null, None)).collect()
    }

    fn token(&mut self, choice: usize, token: Token) -> Vec<Chunk> {
        let mut deltas = Vec::new();
        if !token.reasoning.is_empty() {
            let fields = self.reasoning_fields.names().iter();
            deltas.push(fields.map(|name| ((*name).to_owned(), json!(token.reasoning))).collect());
        }
        let parts = self.reader.read(choice, &token.text, token.finished);
        deltas.extend(parts.into_iter().filter_map(|part| self.delta(choice, part)).collect::<Vec<_>>());
        let mut logprobs = token.logprobs.as_ref().map_or(Value::Null, |found| self.logprobs(found));
        let mut chunks: Vec<Chunk> =
            deltas.into_iter().map(|delta| self.chunk(choice, delta, logprobs.take(), None)).collect();
        // A token whose text is held back is sent with its log-probability and empty content.
        if !logprobs.is_null() {
            chunks.push(self.chunk(choice, json!({"content": ""}), logprobs, None));
        }
        if let Some(reason) = token.finished {
            chunks.push(self.chunk(choice, json!({}), Value::Null, Some(self.finish_reason(choice, reason))));
        }
        chunks
    }

    fn closing(&mut self, usage: &Usage) -> Vec<Chunk> {
        self.envelope.last_chunks(CHUNK, usage.into())
    }

    fn failing(&mut self, error: &ApiError) -> Vec<Chunk> {
        failed_chunks(error)
    }

    fn body(&mut self, answers: Vec<Choice>, usage: &Usage) -> Result<JsonText, ApiError> {
        let messages: Vec<Value> =
            answers.iter().enumerate().map(|(index, answer)| self.message(index, answer)).collect();
        let tokenizer = self.text.as_ref().and_then(|text| text.tokenizer());
        let choice = |(index, (answer, message)): (usize, (&Choice, Value))| WholeChoice {
            index,
            message,
            logprobs: None,
            finish_reason: answer.finish_reason.map(|reason| self.finish_reason(index, reason)),
        };
        let mut choices: Vec<WholeChoice> = answers.iter().zip(messages).enumerate().map(choice).collect();
        if let Some(tokenizer) = tokenizer {
            for (choice, answer) in choices.iter_mut().zip(&answers) {
                choice.logprobs = Some(ChatLogprobs::new(&answer.logprobs, tokenizer));
            }
        }
        self.envelope.body("chat.completion", &choices, usage.into())
    }
}
