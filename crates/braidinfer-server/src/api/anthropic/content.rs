//! Messages: reads their blocks, and converts them for chat templates.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::api::chat::{combined, end_of, message};
use crate::api::one_or_many::TextOr;
use crate::api::prompts::PromptEnd;
use crate::http::ApiError;

#[derive(Debug, Deserialize)]
pub struct Message {
    role: String,
    content: TextOr<Block>,
}

/// A part of a message. Which fields it has depends on its type.
#[derive(Debug, Deserialize)]
pub struct Block {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    /// Reasoning of an earlier answer.
    thinking: Option<String>,
    /// Ignored: it says who wrote the reasoning.
    #[serde(rename = "signature")]
    _signature: Option<String>,
    /// Of a tool call.
    id: Option<String>,
    name: Option<String>,
    input: Option<Value>,
    /// Of a tool result.
    tool_use_id: Option<String>,
    content: Option<TextOr<Part>>,
    is_error: Option<bool>,
    /// Of what other models read.
    source: Option<Value>,
    /// Of reasoning that only its writer can read.
    #[serde(rename = "data")]
    _data: Option<String>,
    title: Option<String>,
    context: Option<String>,
}

/// A part of a tool result.
#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    source: Option<Value>,
}

/// What a message says, by the kinds of its blocks.
#[derive(Debug, Default)]
struct Turn {
    texts: Vec<String>,
    reasoning: Vec<String>,
    calls: Vec<Value>,
    /// The messages of tools.
    results: Vec<Map<String, Value>>,
}

/// Converts a conversation to the fields that chat templates use, and says whether the answer continues its last message.
pub fn template_fields(
    system: Option<TextOr<Block>>,
    messages: Vec<Message>,
) -> Result<(Vec<Map<String, Value>>, PromptEnd), ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages: expected at least one message, found none"));
    }
    let mut converted = Vec::new();
    if let Some(content) = system {
        let text = Turn::of(content, "system", &mut HashMap::new())?.only_text("system")?;
        converted.extend((!text.is_empty()).then(|| message("system", &text)));
    }
    // Templates want the name of the tool beside its result.
    let mut names = HashMap::new();
    for (index, Message { role, content }) in messages.into_iter().enumerate() {
        let place = format!("messages[{index}].content");
        let turn = Turn::of(content, &place, &mut names)?;
        match role.as_str() {
            "user" => turn.append_user(&mut converted, &place)?,
            "assistant" => turn.append_assistant(&mut converted, &place)?,
            "system" => converted.push(message("system", &turn.only_text(&place)?)),
            other => {
                let field = format!("messages[{index}].role");
                return Err(ApiError::expected(&field, "user or assistant", other));
            }
        }
    }
    let converted = combined(converted);
    let end = end_of(&converted);
    Ok((converted, end))
}

impl Turn {
    fn of(content: TextOr<Block>, place: &str, names: &mut HashMap<String, String>) -> Result<Self, ApiError> {
        let mut turn = Self::default();
        match content {
            TextOr::Text(text) => turn.texts.push(text),
            TextOr::Many(blocks) => {
                for (index, block) in blocks.into_iter().enumerate() {
                    turn.add(block, &format!("{place}[{index}]"), names)?;
                }
            }
        }
        Ok(turn)
    }

    fn add(&mut self, block: Block, place: &str, names: &mut HashMap<String, String>) -> Result<(), ApiError> {
        let Block { kind, text, thinking, id, name, input, tool_use_id, content, is_error, source, .. } = block;
        match kind.as_str() {
            "text" => self.texts.push(required(text, place, "text")?),
            "thinking" => self.reasoning.push(required(thinking, place, "thinking")?),
            // Nobody here can read it.
            "redacted_thinking" => {}
            "tool_use" => {
                let (id, name) = (required(id, place, "id")?, required(name, place, "name")?);
                let arguments = input.unwrap_or_else(|| json!({}));
                let function = json!({"name": name, "arguments": arguments});
                self.calls.push(json!({"id": id, "type": "function", "function": function}));
                names.insert(id, name);
            }
            "tool_result" => {
                let id = required(tool_use_id, place, "tool_use_id")?;
                let mut text = content.map_or(Ok(String::new()), |content| text_of(content, place))?;
                // Templates have no other place for it.
                if is_error == Some(true) {
                    text.insert_str(0, "Error: ");
                }
                let mut result = message("tool", &text);
                result.extend(names.get(&id).map(|name| ("name".to_owned(), json!(name))));
                result.insert("tool_call_id".to_owned(), json!(id));
                self.results.push(result);
            }
            "document" => self.texts.push(document(block.title, block.context, source, place)?),
            other => {
                let expected = "text, thinking, tool_use or tool_result, since this model reads nothing else";
                return Err(ApiError::expected(&format!("{place}.type"), expected, other));
            }
        }
        Ok(())
    }

    /// Adds tool results, each a message of its own, and then what the user says.
    fn append_user(self, to: &mut Vec<Map<String, Value>>, place: &str) -> Result<(), ApiError> {
        if !self.calls.is_empty() || !self.reasoning.is_empty() {
            return Err(ApiError::expected(
                place,
                "tool_use and thinking in messages of the assistant alone",
                "one of the user",
            ));
        }
        let has_results = !self.results.is_empty();
        to.extend(self.results);
        if self.texts.is_empty() && has_results {
            return Ok(());
        }
        to.push(message("user", &self.texts.join("\n")));
        Ok(())
    }

    fn append_assistant(self, to: &mut Vec<Map<String, Value>>, place: &str) -> Result<(), ApiError> {
        if !self.results.is_empty() {
            return Err(ApiError::expected(place, "tool_result in messages of the user alone", "one of the assistant"));
        }
        let mut fields = message("assistant", &self.texts.join("\n"));
        if self.texts.is_empty() {
            fields.insert("content".to_owned(), Value::Null);
        }
        if !self.calls.is_empty() {
            fields.insert("tool_calls".to_owned(), json!(self.calls));
        }
        if !self.reasoning.is_empty() {
            fields.insert("reasoning_content".to_owned(), json!(self.reasoning.join("\n")));
        }
        to.push(fields);
        Ok(())
    }

    fn only_text(self, place: &str) -> Result<String, ApiError> {
        if !self.calls.is_empty() || !self.reasoning.is_empty() || !self.results.is_empty() {
            return Err(ApiError::expected(place, "text alone", "other blocks"));
        }
        Ok(self.texts.join("\n"))
    }
}

fn required<T>(value: Option<T>, place: &str, field: &str) -> Result<T, ApiError> {
    value.ok_or_else(|| ApiError::missing(&format!("{place}.{field}")))
}

fn text_of(content: TextOr<Part>, place: &str) -> Result<String, ApiError> {
    let parts = match content {
        TextOr::Text(text) => return Ok(text),
        TextOr::Many(parts) => parts,
    };
    let mut texts = Vec::new();
    for (index, Part { kind, text, source }) in parts.into_iter().enumerate() {
        match (kind.as_str(), text, source) {
            ("text", Some(text), _) => texts.push(text),
            (other, ..) => {
                let field = format!("{place}.content[{index}].type");
                return Err(ApiError::expected(&field, "text, since this model reads nothing else", other));
            }
        }
    }
    Ok(texts.join("\n"))
}

/// The text of a document that is text.
fn document(
    title: Option<String>,
    context: Option<String>,
    source: Option<Value>,
    place: &str,
) -> Result<String, ApiError> {
    let field = |name: &str| source.as_ref().and_then(|source| source.get(name)).and_then(Value::as_str);
    match (field("type"), field("data")) {
        (Some("text"), Some(data)) => {
            Ok([title, context, Some(data.to_owned())].into_iter().flatten().collect::<Vec<_>>().join("\n"))
        }
        (kind, _) => {
            let field = format!("{place}.source.type");
            Err(ApiError::expected(&field, "text, since this model reads nothing else", kind.unwrap_or("none")))
        }
    }
}
