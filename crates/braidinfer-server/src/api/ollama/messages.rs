//! Messages and tools of chats.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::fields::refused;
use crate::api::chat::tools::Tool;
use crate::http::ApiError;

#[derive(Debug, Deserialize)]
pub struct Message {
    role: String,
    content: Option<String>,
    /// Reasoning of an earlier answer.
    thinking: Option<String>,
    images: Option<Vec<Value>>,
    tool_calls: Option<Vec<EarlierCall>>,
    /// Of a tool result.
    tool_name: Option<String>,
    tool_call_id: Option<String>,
    /// An earlier name of `tool_name`.
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct EarlierCall {
    id: Option<String>,
    #[serde(rename = "type")]
    _kind: Option<String>,
    function: EarlierFunction,
}

#[derive(Debug, Deserialize)]
struct EarlierFunction {
    name: String,
    arguments: Option<Value>,
    #[serde(rename = "index")]
    _index: Option<usize>,
    #[serde(rename = "description")]
    _description: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct ToolFields {
    #[serde(rename = "type")]
    kind: Option<String>,
    function: Function,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

/// Converts messages to the fields that chat templates use.
pub fn template_fields(messages: Vec<Message>) -> Result<Vec<Map<String, Value>>, ApiError> {
    messages.into_iter().enumerate().map(|(index, message)| message.into_fields(index)).collect()
}

impl Message {
    fn into_fields(self, index: usize) -> Result<Map<String, Value>, ApiError> {
        let role = match self.role.as_str() {
            role @ ("system" | "user" | "assistant" | "tool") => role,
            other => return Err(refused(&format!("messages[{index}].role"), "system, user, assistant or tool", other)),
        };
        refuse_images(self.images.as_deref(), &format!("messages[{index}].images"))?;
        let mut fields = Map::from_iter([
            ("role".to_owned(), json!(role)),
            ("content".to_owned(), json!(self.content.unwrap_or_default())),
        ]);
        let calls = self.tool_calls.unwrap_or_default();
        if !calls.is_empty() {
            fields.insert("tool_calls".into(), calls.into_iter().map(EarlierCall::into_field).collect());
        }
        let reasoning = self.thinking.filter(|text| role == "assistant" && !text.is_empty());
        let name = self.tool_name.or(self.name);
        let texts = [("reasoning_content", reasoning), ("name", name), ("tool_call_id", self.tool_call_id)];
        fields.extend(texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), json!(text?)))));
        Ok(fields)
    }
}

impl EarlierCall {
    fn into_field(self) -> Value {
        let arguments = match self.function.arguments {
            None | Some(Value::Null) => json!({}),
            Some(arguments) => arguments,
        };
        let mut call = json!({"type": "function", "function": {"name": self.function.name, "arguments": arguments}});
        if let Some(id) = self.id {
            call["id"] = json!(id);
        }
        call
    }
}

/// Refuses images, if there are any.
pub fn refuse_images(images: Option<&[Value]>, field: &str) -> Result<(), ApiError> {
    match images.map_or(0, <[Value]>::len) {
        0 => Ok(()),
        count => Err(refused(field, "none: this model reads text alone", &count.to_string())),
    }
}

/// The tools of a request.
pub fn tools(fields: Vec<ToolFields>) -> Result<Vec<Tool>, ApiError> {
    let tool = |(at, ToolFields { kind, function }): (usize, ToolFields)| match kind {
        Some(kind) if kind != "function" => {
            Err(refused(&format!("tools[{at}].type"), "function, since the server runs no tools itself", &kind))
        }
        _ => {
            let Function { name, description, parameters, .. } = function;
            Ok(Tool { name, description, parameters, field: format!("tools[{at}].function.parameters") })
        }
    };
    fields.into_iter().enumerate().map(tool).collect()
}
