//! Requests as Continue, an assistant in editors, sends them (recorded from version 1.5 of its command line and from its library of
//! adapters; the texts in them are ours): its agent with tools, the turn after a call, the same through Anthropic's API, and
//! completions at the cursor.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Model, Reply, TestServer, config, demo_with_template, with};

/// One that has a place for tools and does not write all of them out.
const TEMPLATE: &str = "{%- if tools %}{{ tools[0].function.name }} and others\n{% endif -%}
{%- for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";

fn recorded(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/requests").join(name);
    serde_json::from_slice(&std::fs::read(path.with_extension("json")).expect("it was recorded")).expect("it is JSON")
}

/// What the server replies to a recorded request, with these fields in place of its own.
fn replayed(server: &TestServer, name: &str, fields: Value) -> Reply {
    let request = recorded(name);
    let text = |value: &Value| value.as_str().expect("it is text").to_owned();
    let own = request["headers"].as_object().expect("headers have names").iter();
    let mut headers: Vec<(String, String)> = own.map(|(name, value)| (name.clone(), text(value))).collect();
    headers.push(("content-type".into(), "application/json".into()));
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let body = with(request["body"].clone(), with(json!({"model": "demo", "max_tokens": 6}), fields));
    server.request("POST", &text(&request["path"]), &headers, body.to_string().as_bytes())
}

#[test]
fn what_continue_sends_is_answered() {
    let (_folder, llm) = demo_with_template(TEMPLATE);
    let server = TestServer::start(config(), Model::Given(Box::new(llm)));
    for (name, end) in [
        ("continue-chat", "data: [DONE]"),
        ("continue-tool-result", "data: [DONE]"),
        ("continue-messages", "message_stop"),
        ("continue-completion", "data: [DONE]"),
    ] {
        let reply = replayed(&server, name, json!({}));
        assert_eq!(reply.status, 200, "{name}: {}", reply.text);
        assert!(reply.text.contains(end), "{name}: {}", reply.text);
    }
    // Usage was asked for.
    let usage = replayed(&server, "continue-chat", json!({}));
    assert!(usage.text.contains("\"total_tokens\""), "{}", usage.text);
    // The demo model has no tokens for it.
    let insert = replayed(&server, "continue-insert", json!({}));
    assert_eq!(insert.status, 400);
    assert!(insert.text.contains("suffix"), "{}", insert.text);
    let wrong = replayed(&server, "continue-chat", json!({"tools": "Read"}));
    assert_eq!(wrong.status, 400);
    assert!(wrong.text.contains("tools"), "{}", wrong.text);
}
