//! The Anthropic Messages API.

use serde_json::{Value, json};

use crate::support::{Model, TestServer, config, demo_with_template, with};
use braidinfer::LoadOptions;
use braidinfer_server::ServerConfig;

const TEMPLATE: &str = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}";

fn ask(fields: Value) -> Value {
    let body =
        json!({"model": "demo", "max_tokens": 8, "temperature": 0, "messages": [{"role": "user", "content": "Hi"}]});
    with(body, fields)
}

/// A server, with the folder of its model.
fn templated() -> (tempfile::TempDir, TestServer) {
    let (folder, llm) = demo_with_template(TEMPLATE);
    (folder, TestServer::start(config(), Model::Given(Box::new(llm))))
}

#[test]
fn messages_have_the_text_of_chat_completions_whole_and_streamed() {
    let (_folder, server) = templated();
    let chat = json!({"max_tokens": 8, "temperature": 0, "messages": [
        {"role": "system", "content": "Be\nkind."}, {"role": "user", "content": "Hi\nyou"}]});
    let expected = server.post("/v1/chat/completions", &chat).json();
    let system = json!([{"type": "text", "text": "Be"}, {"type": "text", "text": "kind.", "cache_control": {"type": "ephemeral"}}]);
    let messages =
        json!([{"role": "user", "content": "Hi"}, {"role": "user", "content": [{"type": "text", "text": "you"}]}]);
    let body = ask(json!({"system": system, "messages": messages}));
    let reply = server.post("/v1/messages", &body);
    assert_eq!(reply.header("x-braidinfer-ignored"), Some("system[1].cache_control"));
    let message = reply.json();
    assert_eq!(message["content"][0]["text"], expected["choices"][0]["message"]["content"], "{message}");
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("max_tokens"), &Value::Null));
    assert_eq!(
        (&message["type"], &message["role"], &message["model"]),
        (&json!("message"), &json!("assistant"), &json!("demo"))
    );
    let usage = &message["usage"];
    let read = usage["input_tokens"].as_u64().zip(usage["cache_read_input_tokens"].as_u64()).map(|(a, b)| a + b);
    assert_eq!(read, expected["usage"]["prompt_tokens"].as_u64());
    assert_eq!(usage["output_tokens"], 8);
    let events = server.post("/v1/messages", &with(body, json!({"stream": true}))).named_events();
    let streamed: String = events.iter().filter_map(|(_, event)| event["delta"]["text"].as_str()).collect();
    assert_eq!(json!(streamed), message["content"][0]["text"]);
    let kinds: Vec<&str> =
        events.iter().map(|(kind, _)| kind.as_str()).filter(|kind| *kind != "content_block_delta").collect();
    assert_eq!(kinds, ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]);
    assert_eq!(events[events.len() - 2].1["usage"]["output_tokens"], 8);
}

#[test]
fn tokens_are_counted_as_they_are_read() {
    let (_folder, server) = templated();
    let body = ask(json!({"system": "Be kind."}));
    let usage = server.post("/v1/messages", &body).json()["usage"].clone();
    let counted = server.post("/v1/messages/count_tokens", &body).json();
    let read = usage["input_tokens"].as_u64().zip(usage["cache_read_input_tokens"].as_u64()).map(|(a, b)| a + b);
    assert_eq!(counted["input_tokens"].as_u64(), read, "{usage}");
}

#[test]
fn the_stop_sequence_that_ended_a_message_is_named() {
    let (_folder, server) = templated();
    let whole = server.post("/v1/messages", &ask(json!({"max_tokens": 30}))).json();
    let text = whole["content"][0]["text"].as_str().expect("a text").to_owned();
    let stop: String = text.chars().skip(4).take(3).collect();
    let body = ask(json!({"max_tokens": 30, "stop_sequences": ["no such text", stop]}));
    let message = server.post("/v1/messages", &body).json();
    assert_eq!(
        (&message["stop_reason"], &message["stop_sequence"]),
        (&json!("stop_sequence"), &json!(stop)),
        "{message}"
    );
    let events = server.post("/v1/messages", &with(body, json!({"stream": true}))).named_events();
    assert_eq!(events[events.len() - 2].1["delta"], json!({"stop_reason": "stop_sequence", "stop_sequence": stop}));
}

#[test]
fn a_message_of_the_assistant_at_the_end_goes_on() {
    let (_folder, server) = templated();
    let chat = json!({"max_tokens": 8, "temperature": 0, "continue_final_message": true, "messages": [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon"}]});
    let expected = server.post("/v1/chat/completions", &chat).json();
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon"}]);
    let message = server.post("/v1/messages", &ask(json!({"messages": messages}))).json();
    assert_eq!(message["content"][0]["text"], expected["choices"][0]["message"]["content"]);
}

#[test]
fn answers_are_held_to_a_schema() {
    let (_folder, server) = templated();
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "schema": schema});
    for fields in [json!({"output_format": format}), json!({"output_config": {"format": format}})] {
        let message = server.post("/v1/messages", &ask(with(json!({"max_tokens": 40}), fields))).json();
        let answer: Value =
            serde_json::from_str(message["content"][0]["text"].as_str().expect("a text")).expect("JSON");
        assert!(answer["a"] == "x" || answer["a"] == "y", "{message}");
    }
}

#[test]
fn errors_have_the_form_of_this_api() {
    let (_folder, server) = templated();
    let image = json!([{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": ""}}]}]);
    for (fields, status, kind, says) in [
        (json!({"messages": []}), 400, "invalid_request_error", "messages: expected at least one message"),
        (json!({"messages": image}), 400, "invalid_request_error", "messages[0].content[0].type: expected text"),
        (json!({"model": "other"}), 404, "not_found_error", "model: expected `demo`"),
        (json!({"temperature": -1}), 400, "invalid_request_error", "temperature: "),
        (json!({"stop_sequences": vec!["x"; 17]}), 400, "invalid_request_error", "stop_sequences: expected at most 16"),
        (json!({"stop_sequences": [""]}), 400, "invalid_request_error", "stop_sequences: "),
        (json!({"max_tokens": "many"}), 400, "invalid_request_error", "max_tokens: invalid type"),
        (json!({"colour": 1}), 400, "invalid_request_error", "colour: this server knows no such field"),
        (json!({"tool_choice": {"type": "any"}}), 400, "invalid_request_error", "tool_choice: expected tools"),
        (
            json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            400,
            "invalid_request_error",
            "found `web_search_20250305`",
        ),
        (json!({"thinking": {"type": "maybe"}}), 400, "invalid_request_error", "thinking.type: "),
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            400,
            "invalid_request_error",
            "messages[0].role: expected user or assistant",
        ),
    ] {
        for path in ["/v1/messages", "/v1/messages/count_tokens"] {
            // Counting reads only what is in the prompt.
            if path.ends_with("count_tokens") && (says.starts_with("temperature") || says.starts_with("stop_sequences"))
            {
                continue;
            }
            let reply = server.post(path, &ask(fields.clone()));
            let error = reply.json();
            assert_eq!(
                (reply.status, &error["type"], &error["error"]["type"]),
                (status, &json!("error"), &json!(kind)),
                "{error}"
            );
            let message = error["error"]["message"].as_str().expect("a text");
            assert!(message.contains(says), "{message} instead of {says}");
        }
    }
}

#[test]
fn keys_come_in_the_header_of_either_api() {
    let config = ServerConfig { api_keys: vec!["secret".into()], ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions::default()));
    let body = json!({"model": "demo", "messages": [{"role": "user", "content": "x"}]}).to_string();
    let json = ("content-type", "application/json");
    let post = |key: (&str, &str)| server.request("POST", "/v1/messages/count_tokens", &[json, key], body.as_bytes());
    for key in [("x-api-key", "other"), ("accept", "x")] {
        let refused = post(key);
        assert_eq!((refused.status, refused.json()["error"]["type"].clone()), (401, json!("authentication_error")));
    }
    for key in [("x-api-key", "secret"), ("authorization", "Bearer secret")] {
        assert_eq!(post(key).status, 200);
    }
}
