//! Chat messages: reads them from requests and converts them for chat templates.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::one_or_many::TextOr;
use crate::http::{ApiError, shown};

#[derive(Debug, Deserialize)]
pub struct Message {
    role: String,
    content: Option<TextOr<ContentPart>>,
    /// Name of the participant; in a message with the role `tool`, name of the tool.
    name: Option<String>,
    tool_calls: Option<Vec<EarlierCall>>,
    tool_call_id: Option<String>,
    /// A refusal of an earlier answer; not supported, must be absent or null.
    refusal: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ContentPart {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// A tool call in an earlier answer.
#[derive(Debug, Deserialize)]
struct EarlierCall {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    function: EarlierFunction,
}

#[derive(Debug, Deserialize)]
struct EarlierFunction {
    name: String,
    /// Arguments as JSON in a string.
    arguments: String,
}

/// Converts messages to the fields that chat templates use.
pub fn template_fields(messages: Vec<Message>) -> Result<Vec<Map<String, Value>>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages: expected at least one message, found none"));
    }
    let into_fields = |(index, message): (usize, Message)| message.into_fields(&MessageIndex(index));
    messages.into_iter().enumerate().map(into_fields).collect()
}

/// Index of a message in the request, for error messages.
struct MessageIndex(usize);

impl MessageIndex {
    fn error<T>(&self, field: &str, expected: &str, found: &str) -> Result<T, ApiError> {
        let field = format!("messages[{}].{field}", self.0);
        let message = format!("{field}: expected {expected}, found {}", shown(found));
        Err(ApiError::field(field, message))
    }
}

impl Message {
    fn into_fields(self, index: &MessageIndex) -> Result<Map<String, Value>, ApiError> {
        let role = match self.role.as_str() {
            role @ ("system" | "user" | "assistant" | "tool") => role,
            // The name of the role `system` in newer clients.
            "developer" => "system",
            other => {
                return index.error("role", "system, developer, user, assistant or tool", &format!("`{other}`"));
            }
        };
        if self.refusal.is_some() {
            return index.error("refusal", "none", "one");
        }
        let mut fields = Map::from_iter([("role".to_owned(), json!(role))]);
        match (&self.content, &self.tool_calls) {
            (None, None) => return index.error("content", "a text", "none"),
            (None, Some(_)) => {}
            (Some(content), _) => {
                fields.insert("content".into(), json!(content_text(content, index)?));
            }
        }
        if let Some(calls) = &self.tool_calls {
            if role != "assistant" {
                return index.error("tool_calls", "the role assistant beside them", &format!("`{role}`"));
            }
            let calls: Vec<Value> = calls.iter().map(|call| call.template_field(index)).collect::<Result<_, _>>()?;
            fields.insert("tool_calls".into(), json!(calls));
        }
        match (role, self.tool_call_id) {
            ("tool", None) => return index.error("tool_call_id", "that of a call", "none"),
            ("tool", Some(id)) => {
                fields.insert("tool_call_id".into(), json!(id));
                fields.extend(self.name.map(|name| ("name".to_owned(), json!(name))));
            }
            (_, Some(_)) => return index.error("tool_call_id", "the role tool beside it", &format!("`{role}`")),
            (_, None) => {}
        }
        Ok(fields)
    }
}

fn content_text(content: &TextOr<ContentPart>, index: &MessageIndex) -> Result<String, ApiError> {
    let parts = match content {
        TextOr::Text(text) => return Ok(text.clone()),
        TextOr::Many(parts) => parts,
    };
    let mut text = String::new();
    for part in parts {
        match &part.text {
            Some(own) if part.kind == "text" => text += own,
            _ => return index.error("content", "parts of type text", &format!("one of type {}", part.kind)),
        }
    }
    Ok(text)
}

impl EarlierCall {
    /// Converts the call for chat templates, which expect arguments as an object.
    fn template_field(&self, index: &MessageIndex) -> Result<Value, ApiError> {
        if self.kind != "function" {
            return index.error("tool_calls", "calls of type function", &format!("`{}`", self.kind));
        }
        let written = self.function.arguments.trim();
        let Ok(arguments) = serde_json::from_str::<Value>(if written.is_empty() { "{}" } else { written }) else {
            return index.error("tool_calls", "arguments in JSON", &format!("`{}`", self.function.arguments));
        };
        Ok(json!({"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}))
    }
}
