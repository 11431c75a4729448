//! Writes responses, whole and streamed.

use std::sync::Arc;

use braidinfer::Token;
use braidinfer::conversation::AnswerPart;
use braidinfer::engine::{ClientId, FinishReason};
use rand::distr::{Alphanumeric, SampleString};
use serde_json::{Map, Value, json};

use super::items::Message;
use super::store::StoredResponse;
use crate::api::answers::{Choice, Chunk, Framing, ResponseWriter, Usage};
use crate::api::chat::tools::new_call_id;
use crate::api::chat::{AnswerReader, Call, WholeAnswer, message};
use crate::api::json_text::JsonText;
use crate::app::App;
use crate::budget::Claim;
use crate::clock::seconds_since_1970;
use crate::http::ApiError;

/// The conversation of a response that is stored.
pub struct Remembered {
    pub app: Arc<App>,
    pub client: ClientId,
    /// The messages before the answer.
    pub messages: Vec<Message>,
}

/// Writes a response.
pub struct OutputWriter {
    id: String,
    created: u64,
    /// What the response repeats of the request.
    echo: Map<String, Value>,
    reader: AnswerReader,
    remembered: Option<Remembered>,
    /// Memory for what is repeated and remembered.
    _claim: Claim,
    /// Items that have ended.
    output: Vec<Item>,
    open: Option<Item>,
    /// The place of the open item, or of the next one.
    index: usize,
    /// White space before the first word of a message, which may stay the only text.
    blank: String,
    /// Number of the next event.
    sequence: usize,
    finished: Option<FinishReason>,
}

/// An item of the output.
#[derive(Debug, Clone)]
struct Item {
    id: String,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Reasoning(String),
    Message(String),
    Call { call: Call, is_complete: bool },
}

impl Item {
    fn json(&self, is_done: bool) -> Value {
        let status = if is_done { "completed" } else { "in_progress" };
        let id = &self.id;
        match &self.content {
            Content::Reasoning(text) => {
                let part = json!({"type": "reasoning_text", "text": text});
                let content = if text.is_empty() { json!([]) } else { json!([part]) };
                json!({"id": id, "type": "reasoning", "summary": [], "content": content, "status": status})
            }
            Content::Message(text) => {
                let content = if is_done { json!([text_part(text)]) } else { json!([]) };
                json!({"id": id, "type": "message", "role": "assistant", "content": content, "status": status})
            }
            Content::Call { call, is_complete } => {
                let status = if is_done && !is_complete { "incomplete" } else { status };
                json!({"id": id, "type": "function_call", "call_id": call.id, "name": call.name,
                    "arguments": call.arguments, "status": status})
            }
        }
    }
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// A new item, whose id begins with what it is.
fn new_item(content: Content) -> Item {
    let kind = match content {
        Content::Reasoning(_) => "rs",
        Content::Message(_) => "msg",
        Content::Call { .. } => "fc",
    };
    Item { id: format!("{kind}_{}{}", new_call_id(), new_call_id()), content }
}

impl OutputWriter {
    pub fn new(echo: Map<String, Value>, reader: AnswerReader, remembered: Option<Remembered>, claim: Claim) -> Self {
        Self {
            // Nobody can guess it, or choose that of another one.
            id: format!("resp_{}", Alphanumeric.sample_string(&mut rand::rng(), 32)),
            _claim: claim,
            created: seconds_since_1970(),
            echo,
            reader,
            remembered,
            output: Vec::new(),
            open: None,
            index: 0,
            blank: String::new(),
            sequence: 0,
            finished: None,
        }
    }

    fn response(&self, status: &str, usage: Option<&Usage>, error: Option<Value>) -> Value {
        let mut output: Vec<Value> = self.output.iter().map(|item| item.json(true)).collect();
        if let Some(last) = output.last_mut().filter(|_| status == "incomplete" || status == "failed") {
            last["status"] = json!("incomplete");
        }
        let mut response = json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": error,
            "incomplete_details": (status == "incomplete").then(|| json!({"reason": "max_output_tokens"})),
            "output": output,
            "usage": usage.map(usage_fields),
        });
        if let Value::Object(fields) = &mut response {
            fields.extend(self.echo.clone());
        }
        response
    }

    /// The response at its end, which is stored if it is to be.
    fn complete(&mut self, usage: &Usage) -> Value {
        let status = if self.finished == Some(FinishReason::Length) { "incomplete" } else { "completed" };
        let response = self.response(status, Some(usage), None);
        if let Some(Remembered { app, client, mut messages }) = self.remembered.take() {
            messages.push(self.answer());
            let stored = StoredResponse { client, messages, response: response.clone() };
            app.responses.insert(self.id.clone(), stored);
        }
        response
    }

    /// The answer with the fields that chat templates use.
    fn answer(&self) -> Message {
        let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
        for item in &self.output {
            match &item.content {
                Content::Reasoning(own) => reasoning += own,
                Content::Message(own) => text += own,
                Content::Call { call, .. } => {
                    let arguments: Value =
                        serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!(call.arguments));
                    let function = json!({"name": call.name, "arguments": arguments});
                    calls.push(json!({"id": call.id, "type": "function", "function": function}));
                }
            }
        }
        let mut message = message("assistant", &text);
        if !reasoning.is_empty() {
            message.insert("reasoning_content".into(), json!(reasoning));
        }
        if !calls.is_empty() {
            message.insert("tool_calls".into(), json!(calls));
        }
        message
    }

    fn event(&mut self, kind: &'static str, mut fields: Value) -> Chunk {
        fields["type"] = json!(kind);
        fields["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        Chunk::named(kind, &fields)
    }

    /// An event about a part of the open item, which is the only part of its content.
    fn part_event(&mut self, kind: &'static str, fields: Value) -> Option<Chunk> {
        let mut all = json!({"item_id": self.open.as_ref()?.id, "output_index": self.index, "content_index": 0});
        if let (Value::Object(all), Value::Object(fields)) = (&mut all, fields) {
            all.extend(fields);
        }
        Some(self.event(kind, all))
    }

    /// Begins an item.
    fn enter(&mut self, item: Item, chunks: &mut Vec<Chunk>) {
        self.leave(true, chunks);
        let added = json!({"output_index": self.index, "item": item.json(false)});
        let part = match &item.content {
            Content::Message(_) => Some(text_part("")),
            Content::Reasoning(_) => Some(json!({"type": "reasoning_text", "text": ""})),
            Content::Call { .. } => None,
        };
        self.open = Some(item);
        chunks.push(self.event("response.output_item.added", added));
        if let Some(part) = part {
            chunks.extend(self.part_event("response.content_part.added", json!({"part": part})));
        }
    }

    /// Ends the open item, which is whole or was cut.
    fn leave(&mut self, is_whole: bool, chunks: &mut Vec<Chunk>) {
        self.blank.clear();
        let Some(item) = &self.open else { return };
        let part = match &item.content {
            Content::Message(text) => Some((text_part(text), "response.output_text.done", text.clone())),
            Content::Reasoning(text) => {
                let part = json!({"type": "reasoning_text", "text": text});
                Some((part, "response.reasoning_text.done", text.clone()))
            }
            Content::Call { call, .. } => {
                let done = json!({"item_id": item.id, "output_index": self.index, "name": call.name,
                    "arguments": call.arguments});
                chunks.push(self.event("response.function_call_arguments.done", done));
                None
            }
        };
        if let Some((part, kind, text)) = part {
            let done = match kind {
                "response.output_text.done" => json!({"text": text, "logprobs": []}),
                _ => json!({"text": text}),
            };
            chunks.extend(self.part_event(kind, done));
            chunks.extend(self.part_event("response.content_part.done", json!({"part": part})));
        }
        let Some(item) = self.open.take() else { return };
        let mut ended = item.json(true);
        if !is_whole {
            ended["status"] = json!("incomplete");
        }
        chunks.push(self.event("response.output_item.done", json!({"output_index": self.index, "item": ended})));
        self.index += 1;
        self.output.push(item);
    }

    fn write_reasoning(&mut self, more: &str, chunks: &mut Vec<Chunk>) {
        if !matches!(&self.open, Some(Item { content: Content::Reasoning(_), .. })) {
            self.enter(new_item(Content::Reasoning(String::new())), chunks);
        }
        if let Some(Item { content: Content::Reasoning(text), .. }) = &mut self.open {
            *text += more;
        }
        chunks.extend(self.part_event("response.reasoning_text.delta", json!({"delta": more})));
    }

    fn write_text(&mut self, more: &str, chunks: &mut Vec<Chunk>) {
        let mut more = more.to_owned();
        if !matches!(&self.open, Some(Item { content: Content::Message(_), .. })) {
            self.blank += &more;
            if more.trim().is_empty() {
                return;
            }
            more = std::mem::take(&mut self.blank);
            self.enter(new_item(Content::Message(String::new())), chunks);
        }
        if let Some(Item { content: Content::Message(text), .. }) = &mut self.open {
            *text += &more;
        }
        chunks.extend(self.part_event("response.output_text.delta", json!({"delta": more, "logprobs": []})));
    }

    fn write_part(&mut self, part: AnswerPart, chunks: &mut Vec<Chunk>) {
        match part {
            AnswerPart::Text(text) => self.write_text(&text, chunks),
            AnswerPart::NoCall(text) => {
                // What had begun as a call is no part of the answer.
                if matches!(&self.open, Some(Item { content: Content::Call { .. }, .. })) {
                    self.leave(false, chunks);
                    self.output.pop();
                }
                self.write_text(&text, chunks);
            }
            AnswerPart::Call { name } => {
                let call = Call { id: new_call_id(), name, arguments: String::new() };
                self.enter(new_item(Content::Call { call, is_complete: false }), chunks);
            }
            AnswerPart::Arguments(more) => {
                let index = self.index;
                let Some(Item { id, content: Content::Call { call, .. } }) = &mut self.open else { return };
                call.arguments += &more;
                let fields = json!({"item_id": id, "output_index": index, "delta": more});
                chunks.push(self.event("response.function_call_arguments.delta", fields));
            }
            AnswerPart::CallEnd => {
                if let Some(Item { content: Content::Call { is_complete, .. }, .. }) = &mut self.open {
                    *is_complete = true;
                }
                self.leave(true, chunks);
            }
        }
    }
}

impl ResponseWriter for OutputWriter {
    const FRAMING: Framing = Framing::Events;

    fn opening(&mut self, _usage: &Usage) -> Vec<Chunk> {
        let response = self.response("in_progress", None, None);
        ["response.created", "response.in_progress"]
            .map(|kind| self.event(kind, json!({"response": response.clone()})))
            .into()
    }

    fn token(&mut self, _choice: usize, token: Token) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        if !token.reasoning.is_empty() {
            self.write_reasoning(&token.reasoning, &mut chunks);
        }
        for part in self.reader.read(0, &token.text, token.finished) {
            self.write_part(part, &mut chunks);
        }
        self.finished = token.finished;
        chunks
    }

    fn closing(&mut self, usage: &Usage) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        self.leave(self.finished != Some(FinishReason::Length), &mut chunks);
        let response = self.complete(usage);
        let kind = if response["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
        chunks.push(self.event(kind, json!({"response": response})));
        chunks
    }

    fn failing(&mut self, error: &ApiError) -> Vec<Chunk> {
        // Clients expect a beginning.
        let mut chunks = if self.sequence == 0 { self.opening(&Usage::default()) } else { Vec::new() };
        self.leave(false, &mut chunks);
        let error = error.clone().renamed(super::ERRORS.names);
        let code = error.code().unwrap_or("server_error");
        let response = self.response("failed", None, Some(json!({"code": code, "message": error.message()})));
        chunks.push(self.event("response.failed", json!({"response": response})));
        chunks
    }

    fn body(&mut self, choices: Vec<Choice>, usage: &Usage) -> Result<JsonText, ApiError> {
        let answer = choices.into_iter().next().unwrap_or_default();
        self.finished = answer.finish_reason;
        let WholeAnswer { content, calls } = self.reader.whole(0, &answer);
        let mut contents = Vec::new();
        if !answer.reasoning.is_empty() {
            contents.push(Content::Reasoning(answer.reasoning));
        }
        if !content.trim().is_empty() {
            contents.push(Content::Message(content));
        }
        let is_cut = answer.finish_reason == Some(FinishReason::Length);
        let last = calls.len();
        contents.extend(calls.into_iter().enumerate().map(|(index, call)| {
            let is_complete = !is_cut || index + 1 < last || serde_json::from_str::<Value>(&call.arguments).is_ok();
            Content::Call { call, is_complete }
        }));
        self.output = contents.into_iter().map(new_item).collect();
        JsonText::of(&self.complete(usage))
    }
}

fn usage_fields(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}
