//! `/v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use braidinfer::conversation::{AnswerFormat, AnswerPart, Reasoning, ReasoningLimits, ToolCallParser};
use braidinfer::engine::{ClientId, FinishReason, MOST_LOGPROBS, TokenLogprobs};
use braidinfer::handle::Task;
use braidinfer::{GenerateRequest, ModelText, SamplingParams, Token};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::answers::{self, Choice, ChoiceStream, Envelope, ResponseWriter, Usage};
use super::form::{self, RequestedForm};
use super::json_text::JsonText;
use super::logprobs::{ChatLogprobs, ChatToken};
use super::messages::{self, Message};
use super::prompts::{self, PromptEnd};
use super::reservation;
use super::sampling::{Delivery, ParameterFields, SharedFields};
use super::tools::{self, Tool, ToolChoice, ToolUse, new_call_id};
use crate::http::{ApiError, Client, HttpRequestId, ReasoningFields, Strict, shown};
use crate::served::{App, Served};

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
    let served = app.served_as(shared.model.as_deref())?;
    let delivery = shared.delivery()?;
    let logprobs = wanted_logprobs(&fields)?;
    let params = SamplingParams { logprobs, ..shared.sampling_params(parameters, &served.default_sampling, None)? };
    let template = served.text.require_chat_template()?;
    let tools = tools::prepare(fields.tools.as_ref(), fields.tool_choice.as_ref(), template)?;
    let only_one_call = fields.parallel_tool_calls == Some(false);
    let mut variables = tools.variables.clone();
    let thinks = thinks(&fields);
    variables.extend(reasoning_variables(fields.reasoning_effort.as_deref(), thinks));
    variables.extend(template_variables(fields.chat_template_kwargs.clone().unwrap_or_default())?);
    let form = wanted_form(&tools, form::requested(shared)?)?;
    let has_response_format = matches!(&form, Some((_, "response_format")));
    let constraint = form::constraint(served, form, client).await;
    let (answer, form_slot) = match constraint {
        Ok(constraint) => constraint.unzip(),
        Err(error) => return Err(tool_at_fault(served, &fields, client).await.unwrap_or(error)),
    };
    let end = prompt_end(fields.add_generation_prompt, fields.continue_final_message)?;
    let prompt = prompts::encode_chat(served, messages::template_fields(fields.messages)?, variables, end).await?;
    let (start, is_off) = (prompt.reasoning_start, thinks == Some(false));
    let reasoning = served.reasoning_format.map(|format| Reasoning { format, start, is_off });
    let constraint = match reasoning {
        Some(reasoning) => {
            let limits = ReasoningLimits { most_tokens: fields.thinking_budget.or(app.config.thinking_budget), answer };
            // It may look through the whole vocabulary.
            served.run_blocking(move |served| limits.constraint(&served.text, served.vocab_size, reasoning)).await?
        }
        None => answer,
    };
    let mut marks = served.reasoning_marks.clone();
    if !tools.offered.is_empty() {
        marks.extend(served.tool_calls.marks());
    }
    let format = AnswerFormat { reasoning, special_tokens: shared.shown_tokens(&marks) };
    let (count, n, deadline) = (params.n, params.n, app.deadline(arrived));
    let prompts = vec![prompt.ids];
    let reservation = reservation::reserve(app, served, client, &prompts, &params, delivery)?;
    let task = Task::Generate(Box::new(GenerateRequest { params, constraint, format }));
    let engine = served.engine.for_client(client).with_most_unread(reservation::most_unread(app));
    let stream = engine.submit(prompts, task, arrived).await?;
    let envelope = Envelope::new("chatcmpl", name, served, delivery);
    let text = logprobs.is_some().then(|| Arc::clone(&served.text));
    // An answer that is held to a response format is no call, whatever it looks like.
    let parser = || tools.parser(served.tool_calls, only_one_call).filter(|_| !has_response_format);
    let parsers = (0..n).map(|_| parser()).collect();
    let is_call_forced = tools.forced.is_some();
    let writer = ChatWriter {
        envelope,
        text,
        parsers,
        calls: vec![CallCount::default(); n],
        is_call_forced,
        reasoning_fields: app.config.reasoning_fields,
    };
    Ok((ChoiceStream { stream, count, n, deadline, form_slot: form_slot.flatten(), reservation }, writer, delivery))
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

/// The form of the answer, and the request field that asks for it: that of a call that must come, or what was requested.
fn wanted_form(tools: &ToolUse, requested: Option<RequestedForm>) -> Result<Option<RequestedForm>, ApiError> {
    match (&tools.forced, requested) {
        (Some(_), Some((_, field))) => {
            let message = format!("{field}: expected a free answer beside a tool that must be called");
            Err(ApiError::field(field, message))
        }
        (Some(form), None) => Ok(Some((form.clone(), "tools"))),
        (None, form) => Ok(form),
    }
}

/// What is wrong with the first tool that must be called and cannot be held to its schema, if there is one.
async fn tool_at_fault(served: &Arc<Served>, fields: &ChatFields, client: ClientId) -> Option<ApiError> {
    for (at, name, form) in tools::forced_one_by_one(fields.tools.as_ref(), fields.tool_choice.as_ref()) {
        if let Err(error) = form::constraint(served, Some((form, "tools")), client).await {
            return Some(tools::naming_tool(&error, at, &name));
        }
    }
    None
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

/// Variables by which templates switch reasoning on and off.
fn reasoning_variables(effort: Option<&str>, thinks: Option<bool>) -> Map<String, Value> {
    let mut variables = Map::new();
    if let Some(effort) = effort.filter(|effort| *effort != "none") {
        variables.insert("reasoning_effort".to_owned(), json!(effort));
    }
    if let Some(wanted) = thinks {
        variables.extend(["enable_thinking", "thinking"].map(|name| (name.to_owned(), json!(wanted))));
    }
    variables
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
    /// Tool call parser of each choice, if it may call tools.
    parsers: Vec<Option<ToolCallParser>>,
    calls: Vec<CallCount>,
    /// Whether an answer must be a call, so that text can only be the beginning of one that was cut.
    is_call_forced: bool,
    reasoning_fields: ReasoningFields,
}

/// Tool calls of one choice so far.
#[derive(Debug, Clone, Copy, Default)]
struct CallCount {
    begun: usize,
    complete: usize,
}

/// A whole tool call.
struct WholeCall {
    name: String,
    arguments: String,
}

impl ChatWriter {
    /// Parses new text of a choice; at its `end` also the text that was held back.
    fn parse(&mut self, choice: usize, text: &str, end: Option<FinishReason>) -> Vec<AnswerPart> {
        let Some(parser) = &mut self.parsers[choice] else {
            return if text.is_empty() { Vec::new() } else { vec![AnswerPart::Text(text.to_owned())] };
        };
        let mut parts = parser.push(text);
        if end.is_some() {
            parts.extend(parser.finish());
        }
        // The beginning of a call that must come, and that the limit of tokens cut, is no text.
        if self.is_call_forced && end == Some(FinishReason::Length) {
            parts.retain(|part| !matches!(part, AnswerPart::Text(_)));
        }
        let count = |is_counted: fn(&AnswerPart) -> bool| parts.iter().filter(|part| is_counted(part)).count();
        self.calls[choice].complete += count(|part| matches!(part, AnswerPart::CallEnd));
        parts
    }

    fn finish_reason(&self, choice: usize, reason: FinishReason) -> &'static str {
        if self.calls[choice].complete > 0 && reason == FinishReason::Stop { "tool_calls" } else { reason.as_str() }
    }

    fn message(&mut self, choice: usize, answer: &Choice) -> Value {
        let (mut content, mut calls) = (String::new(), Vec::<WholeCall>::new());
        for part in self.parse(choice, &answer.text, answer.finish_reason.or(Some(FinishReason::Stop))) {
            match part {
                AnswerPart::Text(text) => content += &text,
                AnswerPart::Call { name } => calls.push(WholeCall { name, arguments: String::new() }),
                AnswerPart::Arguments(more) => {
                    calls.iter_mut().last().into_iter().for_each(|call| call.arguments += &more)
                }
                AnswerPart::CallEnd => {}
                // A call that the limit of tokens cuts stays one, as in a stream.
                AnswerPart::NoCall(_) if answer.finish_reason == Some(FinishReason::Length) => {}
                AnswerPart::NoCall(text) => {
                    calls.pop();
                    content += &text;
                }
            }
        }
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !answer.reasoning.is_empty() {
            self.reasoning_fields.names().iter().for_each(|name| message[*name] = json!(answer.reasoning));
        }
        if !calls.is_empty() {
            if content.is_empty() {
                message["content"] = Value::Null;
            }
            let call = |WholeCall { name, arguments }: WholeCall| json!({"id": new_call_id(), "type": "function", "function": {"name": name, "arguments": arguments}});
            message["tool_calls"] = calls.into_iter().map(call).collect();
        }
        message
    }

    /// The part of a streamed message for a part of its answer, if there is one.
    fn delta(&mut self, choice: usize, part: AnswerPart) -> Option<Value> {
        let calls = &mut self.calls[choice];
        let call = match part {
            AnswerPart::Text(text) | AnswerPart::NoCall(text) => return Some(json!({"content": text})),
            AnswerPart::CallEnd => return None,
            AnswerPart::Call { name } => {
                calls.begun += 1;
                json!({"id": new_call_id(), "type": "function", "function": {"name": name, "arguments": ""}})
            }
            AnswerPart::Arguments(more) => json!({"function": {"arguments": more}}),
        };
        let mut indexed = json!({"index": calls.begun - 1});
        if let (Value::Object(indexed), Value::Object(call)) = (&mut indexed, call) {
            indexed.extend(call);
        }
        Some(json!({"tool_calls": [indexed]}))
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
        let mut deltas = Vec::new();
        if !token.reasoning.is_empty() {
            let fields = self.reasoning_fields.names().iter();
            deltas.push(fields.map(|name| ((*name).to_owned(), json!(token.reasoning))).collect());
        }
        let mut parts = self.parse(choice, &token.text, token.finished);
        if token.finished == Some(FinishReason::Length) {
            // A call that the limit of tokens cuts was sent as far as it goes.
            parts.retain(|part| !matches!(part, AnswerPart::NoCall(_)));
        }
        deltas.extend(parts.into_iter().filter_map(|part| self.delta(choice, part)).collect::<Vec<_>>());
        let mut logprobs = token.logprobs.as_ref().map_or(Value::Null, |found| self.logprobs(found));
        let mut chunks: Vec<Value> =
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

    fn usage_chunk(&self, usage: Usage) -> Value {
        self.envelope.around("chat.completion.chunk", json!([]), Some(usage))
    }

    fn body(&mut self, answers: Vec<Choice>, usage: Usage) -> Result<JsonText, ApiError> {
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
        self.envelope.body("chat.completion", &choices, usage)
    }
}
