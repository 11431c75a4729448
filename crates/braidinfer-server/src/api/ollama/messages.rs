//! Messages and tools of chats.

use std::collections::{HashMap, VecDeque};

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
    let mut calls = Calls::default();
    messages.into_iter().enumerate().map(|(index, message)| message.into_fields(index, &mut calls)).collect()
}

/// The calls of a conversation. Clients of this API tell results apart by the names of tools and their order, and templates by ids.
#[derive(Default)]
struct Calls {
    /// Ids and names of all calls.
    all: Vec<(String, String)>,
    /// Whether they have a result.
    done: Vec<bool>,
    by_id: HashMap<String, usize>,
    by_name: HashMap<String, VecDeque<usize>>,
    /// Before this one, all are done.
    first_open: usize,
}

impl Calls {
    /// The id of a call, which has one of its own where the client sent none: always the same in the same conversation, and as long
    /// as Mistral's templates want it.
    fn begin(&mut self, id: Option<String>, name: &str) -> String {
        let number = self.all.len();
        let id = id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call{number:05}"));
        self.all.push((id.clone(), name.to_owned()));
        self.done.push(false);
        self.by_id.insert(id.clone(), number);
        self.by_name.entry(name.to_owned()).or_default().push_back(number);
        id
    }

    /// The id and the name of the call with a result: that with this id, or else the first one of this name, or of any.
    fn end(&mut self, id: Option<&str>, name: Option<&str>) -> Option<(String, String)> {
        let number = match (id, name) {
            (Some(id), _) => *self.by_id.get(id)?,
            (None, Some(name)) => {
                let of_name = self.by_name.get_mut(name)?;
                while of_name.front().is_some_and(|number| self.done[*number]) {
                    of_name.pop_front();
                }
                of_name.pop_front()?
            }
            (None, None) => {
                while self.done.get(self.first_open) == Some(&true) {
                    self.first_open += 1;
                }
                self.first_open
            }
        };
        *self.done.get_mut(number)? = true;
        self.all.get(number).cloned()
    }
}

impl Message {
    fn into_fields(self, index: usize, calls: &mut Calls) -> Result<Map<String, Value>, ApiError> {
        let role = match self.role.as_str() {
            role @ ("system" | "user" | "assistant" | "tool") => role,
            other => return Err(refused(&format!("messages[{index}].role"), "system, user, assistant or tool", other)),
        };
        refuse_images(self.images.as_deref(), &format!("messages[{index}].images"))?;
        let mut fields = Map::from_iter([
            ("role".to_owned(), json!(role)),
            ("content".to_owned(), json!(self.content.unwrap_or_default())),
        ]);
        let earlier = self.tool_calls.unwrap_or_default();
        if !earlier.is_empty() {
            fields.insert("tool_calls".into(), earlier.into_iter().map(|call| call.into_field(calls)).collect());
        }
        let (mut id, mut name) = (self.tool_call_id, self.tool_name.or(self.name));
        if role == "tool"
            && let Some((own_id, own_name)) = calls.end(id.as_deref(), name.as_deref())
        {
            (id, name) = (Some(own_id), Some(own_name));
        }
        let reasoning = self.thinking.filter(|text| role == "assistant" && !text.is_empty());
        let texts = [("reasoning_content", reasoning), ("name", name), ("tool_call_id", id)];
        fields.extend(texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), json!(text?)))));
        Ok(fields)
    }
}

impl EarlierCall {
    fn into_field(self, calls: &mut Calls) -> Value {
        let EarlierFunction { name, arguments, .. } = self.function;
        let arguments = arguments.filter(|arguments| !arguments.is_null()).unwrap_or_else(|| json!({}));
        let id = calls.begin(self.id, &name);
        json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_find_their_calls() {
        let call = |name: &str| json!({"function": {"name": name, "arguments": {"city": "Oslo"}}});
        let messages = json!([
            {"role": "assistant", "tool_calls": [call("a"), call("b"), call("a")]},
            {"role": "tool", "tool_name": "b", "content": "1"},
            {"role": "tool", "tool_name": "a", "content": "2"},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "tool_calls": [{"id": "own", "function": {"name": "c"}}]},
            {"role": "tool", "tool_call_id": "own", "content": "4"},
            {"role": "tool", "tool_name": "d", "content": "of no call"},
        ]);
        let messages = serde_json::from_value(messages).expect("they are messages");
        let fields = template_fields(messages).expect("they are good");
        let found: Vec<_> = fields.iter().filter(|fields| fields["role"] == "tool").collect();
        let ids: Vec<_> = found.iter().map(|fields| fields.get("tool_call_id").and_then(Value::as_str)).collect();
        assert_eq!(ids, [Some("call00001"), Some("call00000"), Some("call00002"), Some("own"), None]);
        let names: Vec<_> = found.iter().map(|fields| fields["name"].as_str()).collect();
        assert_eq!(names, ["b", "a", "a", "c", "d"].map(Some));
        assert_eq!(fields[0]["tool_calls"][2]["id"], "call00002");
    }
}
