//! Items of the input: reads them, and converts them to the messages of chat templates.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::api::chat::message;
use crate::api::one_or_many::TextOr;
use crate::http::ApiError;

/// An item of the input. Which fields it has depends on its type.
#[derive(Debug, Deserialize)]
pub struct Item {
    /// `message` if absent.
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<String>,
    content: Option<TextOr<Part>>,
    /// Ignored, as it changes nothing: items are known by their place.
    #[serde(rename = "id")]
    _id: Option<String>,
    #[serde(rename = "status")]
    _status: Option<String>,
    #[serde(rename = "phase")]
    _phase: Option<String>,
    /// Of calls and their results.
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    output: Option<TextOr<Part>>,
    /// Of reasoning.
    summary: Option<Vec<Part>>,
    /// Reasoning that only its writer can read.
    #[serde(rename = "encrypted_content")]
    _encrypted_content: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    refusal: Option<String>,
    /// Ignored: what an earlier answer had beside its text.
    #[serde(rename = "annotations")]
    _annotations: Option<Vec<Value>>,
    #[serde(rename = "logprobs")]
    _logprobs: Option<Vec<Value>>,
}

/// A message with the fields that chat templates use.
pub type Message = Map<String, Value>;

/// Adds the input to the messages `before` it.
pub fn append(before: Vec<Message>, input: TextOr<Item>) -> Result<Vec<Message>, ApiError> {
    let mut messages = Messages::after(before);
    match input {
        TextOr::Text(text) => messages.list.push(message("user", &text)),
        TextOr::Many(items) => {
            for (index, item) in items.into_iter().enumerate() {
                messages.add(item, &format!("input[{index}]"))?;
            }
        }
    }
    Ok(messages.list)
}

/// Messages that grow. Reasoning, text and calls of one answer are items, and become one message.
struct Messages {
    list: Vec<Message>,
    /// Names of the tools by the ids of their calls: templates want them beside the results.
    names: HashMap<String, String>,
}

impl Messages {
    fn after(list: Vec<Message>) -> Self {
        let mut names = HashMap::new();
        for call in list.iter().flat_map(|message| message.get("tool_calls").and_then(Value::as_array)).flatten() {
            if let (Some(id), Some(name)) = (call["id"].as_str(), call["function"]["name"].as_str()) {
                names.insert(id.to_owned(), name.to_owned());
            }
        }
        Self { list, names }
    }

    fn add(&mut self, item: Item, place: &str) -> Result<(), ApiError> {
        let Item { kind, role, content, call_id, name, arguments, output, summary, .. } = item;
        match kind.as_deref().unwrap_or("message") {
            "message" => {
                let role = required(role, place, "role")?;
                let text = text_of(required(content, place, "content")?, &format!("{place}.content"))?;
                self.add_message(&role, &text, place)
            }
            "reasoning" => {
                let whole =
                    content.map_or(Ok(String::new()), |content| text_of(content, &format!("{place}.content")))?;
                let short = text_of(TextOr::Many(summary.unwrap_or_default()), &format!("{place}.summary"))?;
                let text = if whole.is_empty() { short } else { whole };
                if !text.is_empty() {
                    let answer = self.answer(|last| last["content"].is_null() && !last.contains_key("tool_calls"));
                    let before = answer.entry("reasoning_content").or_insert_with(|| json!(""));
                    if let Value::String(before) = before {
                        before.push_str(if before.is_empty() { "" } else { "\n" });
                        before.push_str(&text);
                    }
                }
                Ok(())
            }
            "function_call" => {
                let (id, name) = (required(call_id, place, "call_id")?, required(name, place, "name")?);
                let arguments = arguments.filter(|text| !text.trim().is_empty()).unwrap_or_else(|| "{}".into());
                // Templates expect an object. What is no JSON stays the text that the model wrote.
                let arguments = serde_json::from_str(&arguments).unwrap_or_else(|_| json!(arguments));
                let function = json!({"name": name, "arguments": arguments});
                let call = json!({"id": id, "type": "function", "function": function});
                let calls = self.answer(|_| true).entry("tool_calls").or_insert_with(|| json!([]));
                calls.as_array_mut().into_iter().for_each(|calls| calls.push(call.clone()));
                self.names.insert(id, name);
                Ok(())
            }
            "function_call_output" => {
                let id = required(call_id, place, "call_id")?;
                let text = text_of(required(output, place, "output")?, &format!("{place}.output"))?;
                let mut result = message("tool", &text);
                result.extend(self.names.get(&id).map(|name| ("name".to_owned(), json!(name))));
                result.insert("tool_call_id".to_owned(), json!(id));
                self.list.push(result);
                Ok(())
            }
            other => {
                let field = format!("{place}.type");
                let expected = "message, reasoning, function_call or function_call_output";
                Err(ApiError::expected(&field, expected, other))
            }
        }
    }

    fn add_message(&mut self, role: &str, text: &str, place: &str) -> Result<(), ApiError> {
        match role {
            "user" | "system" => self.list.push(message(role, text)),
            "developer" => self.list.push(message("system", text)),
            "assistant" => {
                let answer = self.answer(|last| !last.contains_key("tool_calls") && last["content"].is_null());
                answer.insert("content".to_owned(), json!(text));
            }
            other => {
                return Err(ApiError::expected(
                    &format!("{place}.role"),
                    "user, assistant, system or developer",
                    other,
                ));
            }
        }
        Ok(())
    }

    /// The last message, if it is an answer to which more can be added, or a new one.
    fn answer(&mut self, goes_on: impl FnOnce(&Message) -> bool) -> &mut Message {
        let is_open = self.list.last().is_some_and(|last| last["role"] == "assistant" && goes_on(last));
        if !is_open {
            self.list
                .push(Map::from_iter([("role".to_owned(), json!("assistant")), ("content".to_owned(), Value::Null)]));
        }
        let last = self.list.len() - 1;
        &mut self.list[last]
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
    let mut text = String::new();
    for (index, Part { kind, text: own, refusal, .. }) in parts.into_iter().enumerate() {
        match (kind.as_str(), own, refusal) {
            ("input_text" | "output_text" | "text" | "summary_text" | "reasoning_text", Some(own), _)
            | ("refusal", _, Some(own)) => text += &own,
            (other, ..) => {
                let field = format!("{place}[{index}].type");
                return Err(ApiError::expected(&field, "text, since this model reads nothing else", other));
            }
        }
    }
    Ok(text)
}
