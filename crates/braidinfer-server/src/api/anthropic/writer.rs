//! Writes messages, whole and streamed.

use braidinfer::Token;
use braidinfer::conversation::AnswerPart;
use braidinfer::engine::FinishReason;
use serde_json::{Value, json};

use super::ERRORS;
use crate::api::answers::{Choice, Chunk, Framing, ResponseWriter, Usage};
use crate::api::chat::tools::new_call_id;
use crate::api::chat::{AnswerReader, Call, WholeAnswer};
use crate::api::json_text::JsonText;
use crate::http::ApiError;

/// In place of a signature of reasoning: clients keep and send back only what has one.
const SIGNATURE: &str = "unsigned";

/// Writes a message.
pub struct MessageWriter {
    id: String,
    model: String,
    reader: AnswerReader,
    /// Number of blocks that have begun.
    begun: usize,
    open: Option<Open>,
    /// White space before the first word of a block of text, which may stay the only text.
    blank: String,
    stop: Stop,
}

/// A block that has begun and not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Thinking,
    Text,
    Call,
}

/// Why a message ended.
#[derive(Debug, Default)]
struct Stop {
    reason: Option<&'static str>,
    sequence: Option<String>,
}

impl MessageWriter {
    pub fn new(id: String, model: String, reader: AnswerReader) -> Self {
        Self { id, model, reader, begun: 0, open: None, blank: String::new(), stop: Stop::default() }
    }

    fn stop(&self, reason: FinishReason, sequence: Option<String>) -> Stop {
        let reason = match reason {
            FinishReason::Length => "max_tokens",
            _ if sequence.is_some() => "stop_sequence",
            reason if self.reader.ends_with_calls(0, reason) => "tool_use",
            FinishReason::Stop | FinishReason::Cancelled => "end_turn",
        };
        Stop { reason: Some(reason), sequence }
    }

    fn message(&self, content: Value, stop: &Stop, usage: &Usage) -> Value {
        let Self { id, model, .. } = self;
        json!({
            "id": id, "type": "message", "role": "assistant", "model": model, "content": content,
            "stop_reason": stop.reason, "stop_sequence": stop.sequence, "usage": usage_fields(usage),
        })
    }

    /// Begins a block, if the open one is not of this kind.
    fn enter(&mut self, kind: Open, block: Value, chunks: &mut Vec<Chunk>) {
        if self.open == Some(kind) && kind != Open::Call {
            return;
        }
        self.leave(chunks);
        self.open = Some(kind);
        chunks.push(event("content_block_start", json!({"index": self.begun, "content_block": block})));
        self.begun += 1;
    }

    /// Ends the open block.
    fn leave(&mut self, chunks: &mut Vec<Chunk>) {
        self.blank.clear();
        let Some(kind) = self.open.take() else { return };
        if kind == Open::Thinking {
            chunks.push(self.delta_at(json!({"type": "signature_delta", "signature": SIGNATURE})));
        }
        chunks.push(event("content_block_stop", json!({"index": self.begun - 1})));
    }

    fn delta_at(&self, delta: Value) -> Chunk {
        event("content_block_delta", json!({"index": self.begun - 1, "delta": delta}))
    }

    fn write_text(&mut self, text: &str, chunks: &mut Vec<Chunk>) {
        if self.open != Some(Open::Text) {
            self.blank += text;
            if text.trim().is_empty() {
                return;
            }
            let text = std::mem::take(&mut self.blank);
            self.enter(Open::Text, json!({"type": "text", "text": ""}), chunks);
            chunks.push(self.delta_at(json!({"type": "text_delta", "text": text})));
        } else if !text.is_empty() {
            chunks.push(self.delta_at(json!({"type": "text_delta", "text": text})));
        }
    }

    fn write_part(&mut self, part: AnswerPart, chunks: &mut Vec<Chunk>) {
        match part {
            AnswerPart::Text(text) | AnswerPart::NoCall(text) => self.write_text(&text, chunks),
            AnswerPart::Call { name } => {
                let block = json!({"type": "tool_use", "id": new_call_id(), "name": name, "input": {}});
                self.enter(Open::Call, block, chunks);
            }
            AnswerPart::Arguments(more) => {
                chunks.push(self.delta_at(json!({"type": "input_json_delta", "partial_json": more})));
            }
            AnswerPart::CallEnd => self.leave(chunks),
        }
    }
}

impl ResponseWriter for MessageWriter {
    const FRAMING: Framing = Framing::Events;

    fn opening(&mut self, usage: &Usage) -> Vec<Chunk> {
        vec![event("message_start", json!({"message": self.message(json!([]), &Stop::default(), usage)}))]
    }

    fn token(&mut self, _choice: usize, token: Token) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        if !token.reasoning.is_empty() {
            let block = json!({"type": "thinking", "thinking": "", "signature": ""});
            self.enter(Open::Thinking, block, &mut chunks);
            chunks.push(self.delta_at(json!({"type": "thinking_delta", "thinking": token.reasoning})));
        }
        for part in self.reader.read(0, &token.text, token.finished) {
            self.write_part(part, &mut chunks);
        }
        if let Some(reason) = token.finished {
            self.stop = self.stop(reason, token.stop);
        }
        chunks
    }

    fn closing(&mut self, usage: &Usage) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        self.leave(&mut chunks);
        let delta = json!({"stop_reason": self.stop.reason, "stop_sequence": self.stop.sequence});
        chunks.push(event("message_delta", json!({"delta": delta, "usage": usage_fields(usage)})));
        chunks.push(event("message_stop", json!({})));
        chunks
    }

    fn failing(&mut self, error: &ApiError) -> Vec<Chunk> {
        vec![Chunk::named("error", &ERRORS.body(error))]
    }

    fn body(&mut self, choices: Vec<Choice>, usage: &Usage) -> Result<JsonText, ApiError> {
        let answer = choices.into_iter().next().unwrap_or_default();
        let WholeAnswer { content: text, calls } = self.reader.whole(0, &answer);
        let mut content = Vec::new();
        if !answer.reasoning.is_empty() {
            content.push(json!({"type": "thinking", "thinking": answer.reasoning, "signature": SIGNATURE}));
        }
        // A block of text without words is refused when it is sent back to other servers.
        if !text.trim().is_empty() {
            content.push(json!({"type": "text", "text": text}));
        }
        content.extend(calls.iter().map(call_block));
        let stop = answer.finish_reason.map(|reason| self.stop(reason, answer.stop)).unwrap_or_default();
        JsonText::of(&self.message(json!(content), &stop, usage))
    }
}

/// A whole call. Arguments that the limit of tokens cut are no JSON; then they are left out.
fn call_block(call: &Call) -> Value {
    let input = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
    json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input})
}

fn event(kind: &'static str, mut fields: Value) -> Chunk {
    fields["type"] = json!(kind);
    Chunk::named(kind, &fields)
}

fn usage_fields(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    })
}
