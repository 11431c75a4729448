//! `/v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use braidinfer::engine::{FinishReason, MOST_LOGPROBS, TokenLogprobs};
use braidinfer::handle::Task;
use braidinfer::{ModelText, SamplingParams, Token};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::answers::{self, Choice, ChoiceStream, Envelope, ResponseWriter, Usage};
use super::form;
use super::json_text::JsonText;
use super::logprobs::{ChatLogprobs, ChatToken};
use super::messages::{self, Message};
use super::prompts;
use super::reservation;
use super::sampling::{Delivery, ParameterFields, SharedFields};
use super::tools::{self, OutputItem, Tool, ToolCallMode, ToolCallParser, ToolChoice};
use crate::http::{ApiError, Client, HttpRequestId, Strict, shown};
use crate::served::App;

#[derive(Debug, Deserialize)]
pub struct ChatFields {
    messages: Vec<Message>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    /// Whether an answer may have several tool calls; true if absent.
    parallel_tool_calls: Option<bool>,
    /// Additional variables for the chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
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
    let served = app.served_as(shared.model.as_deref())?;
    let delivery = shared.delivery()?;
    let logprobs = match (fields.logprobs.unwrap_or(false), fields.top_logprobs) {
        (true, Some(count)) if count > MOST_LOGPROBS => {
            let message = format!("top_logprobs: expected at most {MOST_LOGPROBS}, found {count}");
            return Err(ApiError::field("top_logprobs", message));
        }
        (true, count) => Some(count.unwrap_or(0)),
        (false, None) => None,
        (false, Some(_)) => {
            let message = "top_logprobs: expected `logprobs` to be true beside it";
            return Err(ApiError::field("top_logprobs", message));
        }
    };
    let mut params = SamplingParams { logprobs, ..shared.sampling_params(parameters, &served.default_sampling, None)? };
    let template = served.text.require_chat_template()?;
    let (mut variables, calls) = tools::prepare(fields.tools.as_ref(), fields.tool_choice.as_ref(), template)?;
    let only_one_call = fields.parallel_tool_calls == Some(false);
    params.stop.extend(calls.first_call_stop().filter(|_| only_one_call).map(str::to_owned));
    variables.extend(template_variables(fields.chat_template_kwargs.unwrap_or_default())?);
    let form = form::requested(shared.response_format.as_ref(), shared.structured_outputs.as_ref())?;
    let form = match (&calls, form) {
        (ToolCallMode::Forced(_), Some((_, field))) => {
            let message = format!("{field}: expected a free answer beside a tool that must be called");
            return Err(ApiError::field(field, message));
        }
        (ToolCallMode::Forced(form), None) => Some((form.clone(), "tools")),
        (ToolCallMode::None | ToolCallMode::Free(_), form) => form,
    };
    let (constraint, form_slot) = form::constraint(served, form, client).await?.unzip();
    let prompt = prompts::encode_chat(served, messages::template_fields(fields.messages)?, variables).await?;
    let (count, n, deadline) = (params.n, params.n, app.deadline(arrived));
    let prompts = vec![prompt];
    let reservation = reservation::reserve(app, served, client, &prompts, &params, delivery)?;
    let task = Task::Generate(Box::new(params), constraint);
    let engine = served.engine.for_client(client).with_most_unread(reservation::most_unread(app));
    let stream = engine.submit(prompts, task, arrived).await?;
    let envelope = Envelope::new("chatcmpl", name, served, delivery);
    let text = logprobs.is_some().then(|| Arc::clone(&served.text));
    let parsers = (0..n).map(|_| ToolCallParser::new(&calls, only_one_call)).collect();
    let writer = ChatWriter { envelope, text, parsers, num_calls: vec![0; n] };
    Ok((ChoiceStream { stream, count, n, deadline, form_slot: form_slot.flatten(), reservation }, writer, delivery))
}

/// Variables that a template gets from the messages, the tools and the model; a request has other fields for them, or none.
const OWN_VARIABLES: [&str; 4] = ["messages", "tools", "add_generation_prompt", "continue_final_message"];

/// Additional variables for the template. Refuses those that would replace what the server says.
fn template_variables(variables: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
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
    /// Tool call parser of each choice, if it may call tools.
    parsers: Vec<Option<ToolCallParser>>,
    /// Number of tool calls of each choice so far.
    num_calls: Vec<usize>,
}

impl ChatWriter {
    /// Parses new text of a choice; with `is_last` also the text that was held back.
    fn parse(&mut self, choice: usize, text: &str, is_last: bool) -> Vec<OutputItem> {
        let Some(parser) = &mut self.parsers[choice] else {
            return if text.is_empty() { Vec::new() } else { vec![OutputItem::Content(text.to_owned())] };
        };
        let mut items = parser.push(text);
        if is_last {
            items.extend(parser.finish());
        }
        self.num_calls[choice] += items.iter().filter(|item| matches!(item, OutputItem::ToolCall(_))).count();
        items
    }

    fn finish_reason(&self, choice: usize, reason: FinishReason) -> &'static str {
        if self.num_calls[choice] > 0 && reason == FinishReason::Stop { "tool_calls" } else { reason.as_str() }
    }

    fn message(&mut self, choice: usize, text: &str) -> Value {
        let (mut content, mut calls) = (String::new(), Vec::new());
        for item in self.parse(choice, text, true) {
            match item {
                OutputItem::Content(text) => content += &text,
                OutputItem::ToolCall(call) => calls.push(call.to_json()),
            }
        }
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !calls.is_empty() {
            if content.is_empty() {
                message["content"] = Value::Null;
            }
            message["tool_calls"] = json!(calls);
        }
        message
    }

    fn logprobs(&self, found: &TokenLogprobs) -> Value {
        let tokenizer = self.text.as_ref().and_then(|text| text.tokenizer());
        tokenizer.map_or(Value::Null, |tokenizer| json!({"content": [ChatToken::of(found.into(), tokenizer)]}))
    }

    fn chunk(&self, choice: usize, delta: Value, logprobs: Value, finish_reason: Option<&str>) -> Value {
        let choices = json!([{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}]);
        self.envelope.around("chat.completion.chunk", choices, None)
    }
}

impl ResponseWriter for ChatWriter {
    fn opening_chunks(&mut self, choice: usize) -> Vec<Value> {
        vec![self.chunk(choice, json!({"role": "assistant", "content": ""}), Value::Null, None)]
    }

    fn token_chunks(&mut self, choice: usize, token: Token) -> Vec<Value> {
        let first_call = self.num_calls[choice];
        let items = self.parse(choice, &token.text, token.finished.is_some());
        let mut logprobs = token.logprobs.as_ref().map_or(Value::Null, |found| self.logprobs(found));
        let mut chunks = Vec::new();
        let mut call_index = first_call;
        for item in items {
            let delta = match item {
                OutputItem::Content(text) => json!({"content": text}),
                OutputItem::ToolCall(call) => {
                    let mut call = call.to_json();
                    call["index"] = json!(call_index);
                    call_index += 1;
                    json!({"tool_calls": [call]})
                }
            };
            chunks.push(self.chunk(choice, delta, logprobs.take(), None));
        }
        // A token whose text is held back is sent with its log-probability and empty content.
        if !logprobs.is_null() {
            chunks.push(self.chunk(choice, json!({"content": ""}), logprobs, None));
        }
        if let Some(reason) = token.finished {
            chunks.push(self.chunk(choice, json!({}), Value::Null, Some(self.finish_reason(choice, reason))));
        }
        chunks
    }

    fn usage_chunk(&self, usage: Usage) -> Value {
        self.envelope.around("chat.completion.chunk", json!([]), Some(usage))
    }

    fn body(&mut self, answers: Vec<Choice>, usage: Usage) -> Result<JsonText, ApiError> {
        let messages: Vec<Value> =
            answers.iter().enumerate().map(|(index, answer)| self.message(index, &answer.text)).collect();
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
        self.envelope.body("chat.completion", &choices, usage)
    }
}
