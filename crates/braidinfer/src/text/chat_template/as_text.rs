//! Tools, calls and their results as plain text, for templates that have no place for them.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::habits::{Messages, has_role, message};

/// What a model is told of the tools that it may call. [`crate::conversation::ToolCallParser`] reads calls of this form whatever
/// the model.
pub(super) fn described(tools: &Json) -> String {
    let tools = tools.as_array().into_iter().flatten().map(|tool| tool.get("function").unwrap_or(tool));
    let lines: Vec<String> = tools.map(Json::to_string).collect();
    format!(
        "These functions can be called, with JSON schemas of their parameters:\n{}\n\nIf one is needed, answer with nothing but a \
         JSON object that calls it, such as {{\"name\": \"NAME\", \"arguments\": {{}}}}; its result comes with the next message. \
         Otherwise, and once the result is there, answer in plain words.",
        lines.join("\n")
    )
}

/// The messages with calls as text of the assistant, and results as text of the user. Texts of the user that then stand in a row
/// become one, since many templates want turns.
pub(super) fn with_calls_as_text(messages: Messages) -> Messages {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut written = Messages::with_capacity(messages.len());
    // Whether the last message ends with a result.
    let mut is_result = false;
    for mut next in messages {
        let calls = next.remove("tool_calls");
        for call in calls.iter().filter_map(Json::as_array).flatten() {
            let name = call.get("function").and_then(|function| function.get("name")).and_then(Json::as_str);
            if let (Some(id), Some(name)) = (call.get("id").and_then(Json::as_str), name) {
                names.insert(id.to_owned(), name.to_owned());
            }
            append(&mut next, "\n", &call_text(call));
        }
        let was_result = is_result;
        is_result = has_role(&next, "tool");
        if is_result {
            next = message("user", &result_text(&next, &names));
        }
        let are_of_user = |last: &Map<String, Json>| has_role(last, "user") && has_role(&next, "user");
        match written.last_mut().filter(|last| (was_result || is_result) && are_of_user(last)) {
            Some(last) => append(last, "\n\n", content(&next)),
            None => written.push(next),
        }
    }
    written
}

/// A call as the model is told to write it.
fn call_text(call: &Json) -> String {
    let function = call.get("function").unwrap_or(call);
    let arguments = match function.get("arguments") {
        Some(Json::String(text)) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        Some(arguments) => arguments.clone(),
        None => json!({}),
    };
    json!({"name": function.get("name"), "arguments": arguments}).to_string()
}

fn result_text(result: &Map<String, Json>, names: &BTreeMap<String, String>) -> String {
    let field = |name| result.get(name).and_then(Json::as_str);
    let name = field("name").or_else(|| field("tool_call_id").and_then(|id| names.get(id)).map(String::as_str));
    let of_name = name.map(|name| format!(" of {name}")).unwrap_or_default();
    format!("Result{of_name}:\n{}", content(result))
}

/// Adds to the end of a message, after a separator where there is some text already.
pub(super) fn append(message: &mut Map<String, Json>, separator: &str, more: &str) {
    let text = content(message).to_owned();
    message.insert("content".to_owned(), json!(joined(&text, separator, more)));
}

/// Adds to the beginning of a message, before a separator where there is some text already.
pub(super) fn prepend(message: &mut Map<String, Json>, separator: &str, more: &str) {
    let text = content(message).to_owned();
    message.insert("content".to_owned(), json!(joined(more, separator, &text)));
}

fn content(message: &Map<String, Json>) -> &str {
    message.get("content").and_then(Json::as_str).unwrap_or_default()
}

fn joined(first: &str, separator: &str, second: &str) -> String {
    let separator = if first.is_empty() || second.is_empty() { "" } else { separator };
    format!("{first}{separator}{second}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_results_are_texts_of_turns() {
        let call = |id: &str, name: &str, arguments: Json| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let mut calls = message("assistant", "Let me see.");
        calls.insert(
            "tool_calls".to_owned(),
            json!([call("1", "add", json!("{\"a\": 1}")), call("2", "now", json!({}))]),
        );
        let result = |id: &str, content: &str| {
            let mut result = message("tool", content);
            result.insert("tool_call_id".to_owned(), json!(id));
            result
        };
        let messages = vec![
            message("system", "s"),
            message("user", "x"),
            calls,
            result("1", "2"),
            result("2", "noon"),
            message("user", "and?"),
            message("assistant", "y"),
            message("user", "a"),
            message("user", "b"),
        ];
        let expected = vec![
            message("system", "s"),
            message("user", "x"),
            message(
                "assistant",
                "Let me see.\n{\"name\":\"add\",\"arguments\":{\"a\":1}}\n{\"name\":\"now\",\"arguments\":{}}",
            ),
            message("user", "Result of add:\n2\n\nResult of now:\nnoon\n\nand?"),
            message("assistant", "y"),
            // What has nothing to do with results stays as it is.
            message("user", "a"),
            message("user", "b"),
        ];
        assert_eq!(with_calls_as_text(messages), expected);
    }
}
