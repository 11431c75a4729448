//! Messages of chats, as chat templates take them.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::one_or_many::TextOr;
use crate::http::ApiError;

#[derive(Debug, Deserialize)]
pub struct Message {
    role: String,
    content: Option<TextOr<Part>>,
    /// Who speaks in a role; or, of the result of a tool, the tool.
    name: Option<String>,
    tool_calls: Option<Vec<EarlierCall>>,
    tool_call_id: Option<String>,
    /// Of answers that were refused elsewhere; only its absence means something here.
    refusal: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// A call of an earlier answer.
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
    /// JSON in a text.
    arguments: String,
}

/// Messages as templates take them.
pub fn fields(messages: Vec<Message>) -> Result<Vec<Map<String, Value>>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages: expected at least one message, found none"));
    }
    let place = |(index, message): (usize, Message)| message.into_fields(&Place(index));
    messages.into_iter().enumerate().map(place).collect()
}

/// A message by its index.
struct Place(usize);

impl Place {
    fn refuse<T>(&self, field: &str, expected: &str, found: &str) -> Result<T, ApiError> {
        let field = format!("messages[{}].{field}", self.0);
        Err(ApiError::field(field.clone(), format!("{field}: expected {expected}, found {found}")))
    }
}

impl Message {
    fn into_fields(self, place: &Place) -> Result<Map<String, Value>, ApiError> {
        let role = match self.role.as_str() {
            role @ ("system" | "user" | "assistant" | "tool") => role,
            // What newer clients call instructions.
            "developer" => "system",
            other => {
                return place.refuse("role", "system, developer, user, assistant or tool", &format!("`{other}`"));
            }
        };
        if self.refusal.is_some() {
            return place.refuse("refusal", "none", "one");
        }
        let mut fields = Map::from_iter([("role".to_owned(), json!(role))]);
        match (&self.content, &self.tool_calls) {
            (None, None) => return place.refuse("content", "a text", "none"),
            (None, Some(_)) => {}
            (Some(content), _) => {
                fields.insert("content".into(), json!(text_of(content, place)?));
            }
        }
        if let Some(calls) = &self.tool_calls {
            if role != "assistant" {
                return place.refuse("tool_calls", "the role assistant beside them", &format!("`{role}`"));
            }
            let calls: Vec<Value> = calls.iter().map(|call| call.field(place)).collect::<Result<_, _>>()?;
            fields.insert("tool_calls".into(), json!(calls));
        }
        match (role, self.tool_call_id) {
            ("tool", None) => return place.refuse("tool_call_id", "that of a call", "none"),
            ("tool", Some(id)) => {
                fields.insert("tool_call_id".into(), json!(id));
                fields.extend(self.name.map(|name| ("name".to_owned(), json!(name))));
            }
            (_, Some(_)) => return place.refuse("tool_call_id", "the role tool beside it", &format!("`{role}`")),
            (_, None) => {}
        }
        Ok(fields)
    }
}

fn text_of(content: &TextOr<Part>, place: &Place) -> Result<String, ApiError> {
    let parts = match content {
        TextOr::Text(text) => return Ok(text.clone()),
        TextOr::Many(parts) => parts,
    };
    let mut text = String::new();
    for part in parts {
        match &part.text {
            Some(own) if part.kind == "text" => text += own,
            _ => return place.refuse("content", "parts of type text", &format!("one of type {}", part.kind)),
        }
    }
    Ok(text)
}

impl EarlierCall {
    /// Templates take arguments as the object that they are.
    fn field(&self, place: &Place) -> Result<Value, ApiError> {
        if self.kind != "function" {
            return place.refuse("tool_calls", "calls of type function", &format!("`{}`", self.kind));
        }
        let written = self.function.arguments.trim();
        let Ok(arguments) = serde_json::from_str::<Value>(if written.is_empty() { "{}" } else { written }) else {
            return place.refuse("tool_calls", "arguments in JSON", &format!("`{}`", self.function.arguments));
        };
        Ok(json!({"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}))
    }
}
