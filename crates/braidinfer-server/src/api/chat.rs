//! `/v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use braidinfer::engine::{FinishReason, MOST_LOGPROBS, TokenLogprobs};
use braidinfer::handle::Task;
use braidinfer::{ModelText, SamplingParams, Token};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answers::{self, Answer, Answers, Envelope, Form, Usage};
use super::form;
use super::logprobs::ChatToken;
use super::messages::{self, Message};
use super::prompts;
use super::sampling::{Delivery, ParameterFields, SharedFields};
use super::tools::{self, CallReader, Calls, Piece, Tool, ToolChoice};
use crate::http::{ApiError, RequestName, Strict};
use crate::served::App;

#[derive(Debug, Deserialize)]
pub struct ChatFields {
    messages: Vec<Message>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    /// Whether an answer may have several calls; true if absent.
    parallel_tool_calls: Option<bool>,
    /// Further variables of the chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
}

pub async fn complete(
    State(app): State<Arc<App>>,
    Extension(RequestName(name)): Extension<RequestName>,
    request: Strict<ParameterFields, SharedFields, ChatFields>,
) -> Response {
    let arrived = Instant::now();
    let begun = begin(&app, &name, (&request.first, &request.second), request.third, arrived);
    let begun = app.in_time(arrived, begun).await;
    answers::deliver(begun, request.ignored).await
}

async fn begin(
    app: &App,
    name: &str,
    (parameters, shared): (&ParameterFields, &SharedFields),
    fields: ChatFields,
    arrived: Instant,
) -> Result<(Answers, ChatForm, Delivery), ApiError> {
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
    let mut params = SamplingParams { logprobs, ..shared.over(parameters, &served.default_sampling, None)? };
    let template = served.text.require_chat_template()?;
    let (mut variables, calls) = tools::offered(fields.tools.as_ref(), fields.tool_choice.as_ref(), template)?;
    let only_one_call = fields.parallel_tool_calls == Some(false);
    params.stop.extend(calls.end_of_first().filter(|_| only_one_call).map(str::to_owned));
    variables.extend(fields.chat_template_kwargs.unwrap_or_default());
    let asked = form::asked_for(shared.response_format.as_ref(), shared.structured_outputs.as_ref())?;
    let asked = match (&calls, asked) {
        (Calls::Forced(_), Some((_, field))) => {
            let message = format!("{field}: expected a free answer beside a tool that must be called");
            return Err(ApiError::field(field, message));
        }
        (Calls::Forced(form), None) => Some((form.clone(), "tools")),
        (Calls::None | Calls::Free(_), asked) => asked,
    };
    let constraint = form::constraint(served, asked).await?;
    let prompt = prompts::encode_chat(served, messages::fields(fields.messages)?, variables).await?;
    let (count, n, deadline) = (params.n, params.n, app.deadline(arrived));
    let task = Task::Generate(Box::new(params), constraint);
    let stream = served.engine.submit(vec![prompt], task, arrived).await?;
    let envelope = Envelope::new("chatcmpl", name, served, delivery);
    let text = logprobs.is_some().then(|| Arc::clone(&served.text));
    let readers = (0..n).map(|_| CallReader::new(&calls, only_one_call)).collect();
    let form = ChatForm { envelope, text, readers, calls: vec![0; n] };
    Ok((Answers { stream, count, n, deadline }, form, delivery))
}

struct ChatForm {
    envelope: Envelope,
    /// With probabilities: what spells tokens.
    text: Option<Arc<ModelText>>,
    /// Of each answer, where it may call tools.
    readers: Vec<Option<CallReader>>,
    /// Calls of each answer so far.
    calls: Vec<usize>,
}

impl ChatForm {
    /// What a text adds to an answer; with `is_last` also what was not decided before.
    fn pieces(&mut self, choice: usize, text: &str, is_last: bool) -> Vec<Piece> {
        let Some(reader) = &mut self.readers[choice] else {
            return if text.is_empty() { Vec::new() } else { vec![Piece::Content(text.to_owned())] };
        };
        let mut pieces = reader.push(text);
        if is_last {
            pieces.extend(reader.finish());
        }
        self.calls[choice] += pieces.iter().filter(|piece| matches!(piece, Piece::Call(_))).count();
        pieces
    }

    fn finish_reason(&self, choice: usize, reason: FinishReason) -> &'static str {
        if self.calls[choice] > 0 && reason == FinishReason::Stop { "tool_calls" } else { reason.as_str() }
    }

    fn message(&mut self, choice: usize, text: &str) -> Value {
        let (mut content, mut calls) = (String::new(), Vec::new());
        for piece in self.pieces(choice, text, true) {
            match piece {
                Piece::Content(text) => content += &text,
                Piece::Call(call) => calls.push(call.wire()),
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
        let first_call = self.calls[choice];
        let pieces = self.pieces(choice, &token.text, token.finished.is_some());
        let mut logprobs =
            token.logprobs.as_ref().map_or(Value::Null, |found| self.logprobs(std::slice::from_ref(found)));
        let mut parts = Vec::new();
        let mut call_index = first_call;
        for piece in pieces {
            let delta = match piece {
                Piece::Content(text) => json!({"content": text}),
                Piece::Call(call) => {
                    let mut wire = call.wire();
                    wire["index"] = json!(call_index);
                    call_index += 1;
                    json!({"tool_calls": [wire]})
                }
            };
            parts.push(self.chunk(choice, delta, logprobs.take(), None));
        }
        // A token whose text is held back has nothing to tell but its probability.
        if !logprobs.is_null() {
            parts.push(self.chunk(choice, json!({"content": ""}), logprobs, None));
        }
        if let Some(reason) = token.finished {
            parts.push(self.chunk(choice, json!({}), Value::Null, Some(self.finish_reason(choice, reason))));
        }
        parts
    }

    fn usage_part(&self, usage: Usage) -> Value {
        self.envelope.around("chat.completion.chunk", json!([]), Some(usage))
    }

    fn whole(&mut self, answers: Vec<Answer>, usage: Usage) -> Value {
        let mut choice = |(index, answer): (usize, &Answer)| {
            json!({
                "index": index,
                "message": self.message(index, &answer.text),
                "logprobs": self.logprobs(&answer.logprobs),
                "finish_reason": answer.finish_reason.map(|reason| self.finish_reason(index, reason)),
            })
        };
        let choices: Vec<Value> = answers.iter().enumerate().map(&mut choice).collect();
        self.envelope.around("chat.completion", json!(choices), Some(usage))
    }
}
