//! Conversations in JSON files, as requests to servers have them: for `run` and `chat`.

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use crate::model;

/// A message with the fields that chat templates use.
type Message = Map<String, Value>;

/// A conversation.
#[derive(Debug, Default, PartialEq)]
pub struct Conversation {
    pub messages: Vec<Message>,
    /// Tools that it offers.
    pub tools: Option<Value>,
}

/// Fields of a message that templates know.
const FIELDS: [&str; 6] = ["role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"];

/// Reads the conversation in a JSON file: a list of messages, or an object with `messages` and perhaps `tools`.
pub fn read(path: &Path) -> anyhow::Result<Conversation> {
    let text = model::read_text(Some(&path.to_owned()), "a conversation")?;
    parse(&text)
}

fn parse(text: &str) -> anyhow::Result<Conversation> {
    let value: Value = serde_json::from_str(text).context("expected JSON")?;
    let (list, tools) = match value {
        Value::Array(list) => (list, None),
        Value::Object(mut fields) => {
            let (list, tools) = (fields.remove("messages"), fields.remove("tools"));
            if let Some(name) = fields.keys().next() {
                bail!("expected `messages`, and perhaps `tools`, found `{name}`, which has a flag or no meaning here");
            }
            match list {
                Some(Value::Array(list)) => (list, tools),
                _ => bail!("expected a list of messages, or an object with `messages`"),
            }
        }
        _ => bail!("expected a list of messages, or an object with `messages`"),
    };
    if list.is_empty() {
        bail!("expected at least one message, found none");
    }
    let message = |(at, message)| message_of(message).with_context(|| format!("messages[{at}]"));
    let messages = list.into_iter().enumerate().map(message).collect::<Result<_, _>>()?;
    Ok(Conversation { messages, tools })
}

fn message_of(message: Value) -> anyhow::Result<Message> {
    let Value::Object(mut message) = message else { bail!("expected an object") };
    if let Some(name) = message.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        bail!("expected {}, found `{name}`", FIELDS.join(", "));
    }
    let role = match message.get("role").and_then(Value::as_str) {
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        // Other names of the same.
        Some("developer") => "system",
        Some("function") => "tool",
        Some(other) => bail!("role: expected system, user, assistant or tool, found `{other}`"),
        None => bail!("expected a role, found none"),
    };
    let role = json!(role);
    let content = match message.remove("content") {
        None | Some(Value::Null) if role == "assistant" => Value::Null,
        Some(Value::String(text)) => json!(text),
        Some(Value::Array(parts)) => json!(text_of(&parts)?),
        _ => bail!("content: expected a text"),
    };
    message.insert("role".to_owned(), role);
    message.insert("content".to_owned(), content);
    for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        // Templates expect an object. What is no JSON stays the text that a model wrote.
        if let Some(Value::String(written)) = call.pointer("/function/arguments") {
            let parsed = serde_json::from_str(written).unwrap_or_else(|_| json!(written));
            call["function"]["arguments"] = parsed;
        }
    }
    Ok(message)
}

fn text_of(parts: &[Value]) -> anyhow::Result<String> {
    let part = |part: &Value| match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (kind, _) => bail!("content: expected parts of type text, found `{}`", kind.unwrap_or("none")),
    };
    parts.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_what_templates_expect() {
        let parsed = parse(
            r#"{"tools": [{"type": "function"}], "messages": [{"role": "developer", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "function", "content": "d", "name": "f"}]}"#,
        );
        let Conversation { messages, tools } = parsed.expect("it is a conversation");
        assert_eq!(tools, Some(json!([{"type": "function"}])));
        assert_eq!(
            json!(messages),
            json!([{"role": "system", "content": "a"}, {"role": "user", "content": "bc"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
            {"role": "tool", "content": "d", "name": "f"}])
        );
    }

    #[test]
    fn what_could_not_be_followed_is_refused_by_name() {
        for (text, says) in [
            ("no JSON", "expected JSON"),
            ("1", "expected a list of messages"),
            ("[]", "expected at least one message"),
            (r#"{"messages": []}"#, "expected at least one message"),
            (r#"{"messages": 1}"#, "expected a list of messages"),
            (r#"{"messages": [], "temperature": 2}"#, "found `temperature`"),
            ("[1]", "messages[0]: expected an object"),
            (r#"[{"content": "x"}]"#, "messages[0]: expected a role, found none"),
            (r#"[{"role": "wizard", "content": "x"}]"#, "found `wizard`"),
            (r#"[{"role": "user"}]"#, "content: expected a text"),
            (r#"[{"role": "user", "content": [{"type": "image_url"}]}]"#, "found `image_url`"),
            (r#"[{"role": "user", "content": "x", "colour": 1}]"#, "found `colour`"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(format!("{error:#}").contains(says), "{error:#} instead of {says}");
        }
    }
}
