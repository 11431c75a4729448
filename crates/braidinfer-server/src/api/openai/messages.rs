//! Chat messages: reads them from requests and converts them for chat templates.
//!
//! What a server emits, its clients send back, and not all of them keep its form. So what cannot change a prompt is taken as it is.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::api::one_or_many::TextOr;
use crate::http::{ApiError, shown};

#[derive(Debug, Deserialize)]
pub struct Message {
    role: String,
    content: Option<TextOr<ContentPart>>,
    /// Name of the participant; in a message with the role `tool`, name of the tool.
    name: Option<String>,
    tool_calls: Option<Vec<EarlierCall>>,
    tool_call_id: Option<String>,
    /// The only call of a message in the API before tools.
    function_call: Option<EarlierFunction>,
    /// A refusal of an earlier answer, which is its text.
    refusal: Option<String>,
    /// The reasoning of an earlier answer, which is passed to the chat template.
    reasoning_content: Option<String>,
    /// Another name of it.
    reasoning: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ContentPart {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    refusal: Option<String>,
    /// What other models read; here only its place is named.
    image_url: Option<Value>,
    input_audio: Option<Value>,
    video_url: Option<Value>,
    file: Option<Value>,
}

/// A tool call in an earlier answer.
#[derive(Debug, Deserialize)]
struct EarlierCall {
    id: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    function: EarlierFunction,
}

#[derive(Debug, Deserialize)]
struct EarlierFunction {
    name: String,
    /// Arguments as JSON in a string, or as the JSON itself.
    arguments: Option<Value>,
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
            // The name of the role `system` in newer clients, and of `tool` in older ones.
            "developer" => "system",
            "function" => "tool",
            other => {
                return index.error("role", "system, developer, user, assistant or tool", &format!("`{other}`"));
            }
        };
        let mut fields = Map::from_iter([("role".to_owned(), json!(role))]);
        let content = self.content.map(|content| content_text(content, index)).transpose()?.or(self.refusal);
        if content.is_none() && !matches!(role, "assistant" | "tool") {
            return index.error("content", "a text", "none");
        }
        fields.insert("content".into(), json!(content));
        let calls = self.tool_calls.unwrap_or_default();
        let calls = calls.into_iter().chain(self.function_call.map(EarlierCall::from)).collect::<Vec<_>>();
        if !calls.is_empty() {
            if role != "assistant" {
                return index.error("tool_calls", "the role assistant beside them", &format!("`{role}`"));
            }
            let calls: Vec<Value> = calls.iter().map(|call| call.template_field(index)).collect::<Result<_, _>>()?;
            fields.insert("tool_calls".into(), json!(calls));
        }
        if self.tool_call_id.is_some() && role != "tool" {
            return index.error("tool_call_id", "the role tool beside it", &format!("`{role}`"));
        }
        let reasoning = self.reasoning_content.or(self.reasoning).filter(|_| role == "assistant");
        let texts = [("tool_call_id", self.tool_call_id), ("name", self.name), ("reasoning_content", reasoning)];
        fields.extend(texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), json!(text?)))));
        Ok(fields)
    }
}

fn content_text(content: TextOr<ContentPart>, index: &MessageIndex) -> Result<String, ApiError> {
    let parts = match content {
        TextOr::Text(text) => return Ok(text),
        TextOr::Many(parts) => parts,
    };
    let mut text = String::new();
    for (place, part) in parts.into_iter().enumerate() {
        let media = [
            ("image_url", part.image_url),
            ("input_audio", part.input_audio),
            ("video_url", part.video_url),
            ("file", part.file),
        ];
        if let Some((name, _)) = media.into_iter().find(|(_, value)| value.is_some()) {
            return index.error(&format!("content[{place}].{name}"), "text: this model reads nothing else", name);
        }
        match (part.kind.as_str(), part.text, part.refusal) {
            ("text" | "input_text" | "output_text", Some(own), _) | ("refusal", _, Some(own)) => text += &own,
            (kind, ..) => {
                let field = format!("content[{place}].type");
                return index.error(&field, "text, since this model reads nothing else", kind);
            }
        }
    }
    Ok(text)
}

impl From<EarlierFunction> for EarlierCall {
    fn from(function: EarlierFunction) -> Self {
        Self { id: None, kind: None, function }
    }
}

impl EarlierCall {
    /// Converts the call for chat templates, which expect arguments as an object. Those that are no JSON stay the text that
    /// they are: it is what the model wrote.
    fn template_field(&self, index: &MessageIndex) -> Result<Value, ApiError> {
        if let Some(kind) = self.kind.as_ref().filter(|kind| *kind != "function") {
            return index.error("tool_calls", "calls of type function", &format!("`{kind}`"));
        }
        let arguments = match &self.function.arguments {
            None | Some(Value::Null) => json!({}),
            Some(Value::String(written)) if written.trim().is_empty() => json!({}),
            Some(Value::String(written)) => serde_json::from_str(written).unwrap_or_else(|_| json!(written)),
            Some(written) => written.clone(),
        };
        let mut call = json!({"type": "function", "function": {"name": self.function.name, "arguments": arguments}});
        if let Some(id) = &self.id {
            call["id"] = json!(id);
        }
        Ok(call)
    }
}
