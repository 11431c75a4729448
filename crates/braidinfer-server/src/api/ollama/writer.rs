//! Writes answers, whole and streamed.

use std::time::{Duration, Instant};

use braidinfer::Token;
use braidinfer::conversation::AnswerPart;
use braidinfer::engine::FinishReason;
use serde_json::{Value, json};

use super::ERRORS;
use crate::api::answers::{Choice, Chunk, Framing, ResponseWriter, Usage};
use crate::api::chat::tools::new_call_id;
use crate::api::chat::{AnswerReader, Call, WholeAnswer};
use crate::api::json_text::JsonText;
use crate::clock::now_as_text;
use crate::http::ApiError;

/// Where the text of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a message, for chats.
    Message,
    /// In the field `response`.
    Response,
}

/// What a part of an answer says.
#[derive(Debug, Default)]
struct Said {
    text: String,
    reasoning: String,
    calls: Vec<Call>,
}

/// Writes an answer.
pub struct AnswerWriter {
    model: String,
    place: Place,
    reader: AnswerReader,
    /// When the request arrived.
    arrived: Instant,
    /// How long it took until the model was loaded.
    loading: Duration,
    /// A call whose arguments are not complete: this API has whole ones.
    call: Option<Call>,
    /// Calls that were sent.
    sent: usize,
    finished: Option<FinishReason>,
}

impl AnswerWriter {
    /// For a request that arrived, and whose model was loaded, at these times.
    pub fn new(model: String, place: Place, reader: AnswerReader, (arrived, loaded): (Instant, Instant)) -> Self {
        let loading = loaded.saturating_duration_since(arrived);
        Self { model, place, reader, arrived, loading, call: None, sent: 0, finished: None }
    }

    fn said(&mut self, token: &Token) -> Said {
        let mut said = Said { reasoning: token.reasoning.clone(), ..Said::default() };
        for part in self.reader.read(0, &token.text, token.finished) {
            match part {
                AnswerPart::Text(text) => said.text += &text,
                AnswerPart::NoCall(text) => {
                    self.call = None;
                    said.text += &text;
                }
                AnswerPart::Call { name } => {
                    self.call = Some(Call { id: new_call_id(), name, arguments: String::new() });
                }
                AnswerPart::Arguments(more) => {
                    self.call.iter_mut().for_each(|call| call.arguments += &more);
                }
                AnswerPart::CallEnd => said.calls.extend(self.call.take()),
            }
        }
        said
    }

    /// The fields of a part, or of all of an answer.
    fn fields(&self, said: &Said, is_whole: bool) -> Value {
        let mut fields = json!({"model": self.model, "created_at": now_as_text(), "done": is_whole});
        let mut inner = match self.place {
            Place::Message => json!({"role": "assistant", "content": said.text}),
            Place::Response => json!({"response": said.text}),
        };
        if !said.reasoning.is_empty() {
            inner["thinking"] = json!(said.reasoning);
        }
        if !said.calls.is_empty() {
            inner["tool_calls"] = (self.sent..).zip(&said.calls).map(call_field).collect();
        }
        match self.place {
            Place::Message => fields["message"] = inner,
            Place::Response => extend(&mut fields, inner),
        }
        fields
    }

    /// Adds why an answer ended, and what it took.
    fn end(&self, mut fields: Value, usage: &Usage) -> Value {
        let total = self.arrived.elapsed();
        let first = usage.first_token.map(|at| at.into_std().saturating_duration_since(self.arrived));
        let until_first = first.unwrap_or(total);
        fields["done"] = json!(true);
        let reason = if self.finished == Some(FinishReason::Length) { "length" } else { "stop" };
        extend(
            &mut fields,
            json!({
                "done_reason": reason,
                "total_duration": nanoseconds(total),
                "load_duration": nanoseconds(self.loading),
                "prompt_eval_count": usage.prompt_tokens,
                "prompt_eval_duration": nanoseconds(until_first.saturating_sub(usage.queued).saturating_sub(self.loading)),
                "eval_count": usage.completion_tokens,
                "eval_duration": nanoseconds(total.saturating_sub(until_first)),
            }),
        );
        fields
    }
}

impl ResponseWriter for AnswerWriter {
    const FRAMING: Framing = Framing::Lines;

    fn opening(&mut self, _usage: &Usage) -> Vec<Chunk> {
        Vec::new()
    }

    fn idle(&mut self) -> Option<Chunk> {
        Some(Chunk::json(&self.fields(&Said::default(), false)))
    }

    fn token(&mut self, _choice: usize, token: Token) -> Vec<Chunk> {
        let said = self.said(&token);
        self.finished = token.finished;
        let is_empty = said.text.is_empty() && said.reasoning.is_empty() && said.calls.is_empty();
        let chunks = if is_empty { Vec::new() } else { vec![Chunk::json(&self.fields(&said, false))] };
        self.sent += said.calls.len();
        chunks
    }

    fn closing(&mut self, usage: &Usage) -> Vec<Chunk> {
        vec![Chunk::json(&self.end(self.fields(&Said::default(), false), usage))]
    }

    fn failing(&mut self, error: &ApiError) -> Vec<Chunk> {
        vec![Chunk::json(&ERRORS.body(error))]
    }

    fn body(&mut self, choices: Vec<Choice>, usage: &Usage) -> Result<JsonText, ApiError> {
        let answer = choices.into_iter().next().unwrap_or_default();
        self.finished = answer.finish_reason;
        let WholeAnswer { content: text, mut calls } = self.reader.whole(0, &answer);
        // Of a call that the limit of tokens cut, there is no whole one.
        calls.retain(|call| serde_json::from_str::<Value>(&call.arguments).is_ok());
        let said = Said { text, reasoning: answer.reasoning, calls };
        JsonText::of(&self.end(self.fields(&said, true), usage))
    }
}

fn call_field((index, call): (usize, &Call)) -> Value {
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
    json!({"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}})
}

/// The answer to a request that asks nothing, with the reason why it is done.
pub fn without_answer(model: &str, place: Place, reason: &str) -> Value {
    let mut fields = json!({"model": model, "created_at": now_as_text(), "done": true, "done_reason": reason});
    match place {
        Place::Message => fields["message"] = json!({"role": "assistant", "content": ""}),
        Place::Response => fields["response"] = json!(""),
    }
    fields
}

fn extend(fields: &mut Value, more: Value) {
    if let (Value::Object(fields), Value::Object(more)) = (fields, more) {
        fields.extend(more);
    }
}

pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
