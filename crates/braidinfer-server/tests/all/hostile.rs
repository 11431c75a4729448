//! Requests that are not meant well: none may end in a 5xx, a panic or a hang.

use std::time::Duration;

use crate::support::{Connection, Model, TestServer, config, greedy};
use braidinfer::LoadOptions;
use braidinfer_server::ServerConfig;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// Mutated requests in all.
const REQUESTS: usize = 10_000;

/// Sound requests, which are then broken.
fn seeds() -> Vec<(&'static str, Value)> {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}});
    vec![
        (
            "/v1/chat/completions",
            json!({
                "model": "demo", "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content":
                [{"type": "text", "text": "Hello"}]}], "temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.01,
                "n": 2, "max_tokens": 2, "stop": ["a", "b"], "seed": 7, "logprobs": true, "top_logprobs": 2,
                "logit_bias": {"5": 1.5}, "stream": true, "stream_options": {"include_usage": true}, "user": "x",
                "presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.1,
            }),
        ),
        (
            "/v1/completions",
            json!({"prompt": [[1, 2, 3], "text"], "max_tokens": 2, "echo": true, "logprobs": 1, "ignore_eos": true}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "x", "max_tokens": 2, "response_format": {"type": "json_schema", "json_schema":
                {"name": "n", "schema": schema, "strict": true}}}),
        ),
        ("/v1/completions", json!({"prompt": "x", "max_tokens": 2, "structured_outputs": {"regex": "[a-z]{1,3}"}})),
        ("/v1/embeddings", json!({"input": ["a", "b"], "encoding_format": "base64", "pooling": "mean"})),
        ("/tokenize", json!({"prompt": "some text", "add_special_tokens": false})),
        ("/tokenize", json!({"messages": [{"role": "user", "content": "x"}]})),
        ("/detokenize", json!({"tokens": [1, 2, 3]})),
        (
            "/v1/messages",
            json!({"model": "demo", "max_tokens": 2, "system": [{"type": "text", "text": "Be kind."}], "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "y", "signature": ""}, {"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "z"}]}],
                "temperature": 0.5, "top_k": 3, "stop_sequences": ["q"], "stream": true,
                "thinking": {"type": "enabled", "budget_tokens": 5}}),
        ),
        ("/v1/messages/count_tokens", json!({"model": "demo", "messages": [{"role": "user", "content": "x"}]})),
        (
            "/api/chat",
            json!({"model": "demo:latest", "messages": [{"role": "user", "content": "x", "images": []}], "stream": true,
                "think": false, "format": "json", "keep_alive": "5m", "options": {"num_predict": 2, "temperature": 0.5,
                "stop": ["a"], "seed": 1, "num_ctx": 100}}),
        ),
        ("/api/generate", json!({"model": "demo", "prompt": "x", "raw": true, "options": {"num_predict": 2}})),
        ("/api/embed", json!({"model": "demo", "input": ["a", "b"], "dimensions": 8})),
        ("/api/show", json!({"model": "demo"})),
        (
            "/v1/responses",
            json!({"model": "demo", "instructions": "Be kind.", "input": [{"role": "user", "content": [{"type":
                "input_text", "text": "x"}]}, {"type": "reasoning", "summary": [], "id": "r"}, {"type": "function_call",
                "call_id": "a", "name": "f", "arguments": "{}"}, {"type": "function_call_output", "call_id": "a",
                "output": "z"}], "max_output_tokens": 2, "stream": true, "store": true, "text": {"format": {"type": "text"}}}),
        ),
    ]
}

/// A value that stands where another one was expected.
fn strange(rng: &mut SmallRng) -> Value {
    let deep = (0..rng.random_range(1..200)).fold(json!(1), |inner, _| json!([inner]));
    let strange = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(0),
        json!(1.5e308),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("\u{0}\u{FFFF}\u{202E}"),
        json!("x".repeat(rng.random_range(1..5000))),
        json!([]),
        json!({}),
        json!({"a": {"b": [1, {"c": null}]}}),
        json!([[1, 2], "a", {"x": 1}, null]),
        deep,
    ];
    strange.choose(rng).cloned().unwrap_or(Value::Null)
}

/// Changes a value somewhere inside.
fn mutate(value: &mut Value, rng: &mut SmallRng) {
    let inside = rng.random_bool(0.7);
    match value {
        Value::Object(fields) if inside && !fields.is_empty() => {
            let names: Vec<String> = fields.keys().cloned().collect();
            let name = names.choose(rng).cloned().unwrap_or_default();
            match rng.random_range(0..8) {
                0 => {
                    fields.remove(&name);
                }
                1 => {
                    let other = fields[&name].clone();
                    fields.insert(format!("{name}_"), other);
                }
                _ => mutate(&mut fields[&name], rng),
            }
        }
        Value::Array(items) if inside && !items.is_empty() => {
            let index = rng.random_range(0..items.len());
            mutate(&mut items[index], rng);
        }
        other => *other = strange(rng),
    }
}

/// A body that may be no JSON at all.
fn body(seed: &Value, rng: &mut SmallRng) -> Vec<u8> {
    let mut value = seed.clone();
    for _ in 0..rng.random_range(1..4) {
        mutate(&mut value, rng);
    }
    let mut bytes = value.to_string().into_bytes();
    if rng.random_bool(0.4) {
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..=bytes.len().saturating_sub(1));
            match rng.random_range(0..5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at.min(bytes.len()), rng.random()),
                2 => bytes.splice(at..at, b"1e999".iter().copied()).for_each(drop),
                3 => bytes.splice(at..at, b"\xFF\xFE".iter().copied()).for_each(drop),
                _ => bytes.splice(at..at, b"{\"a\":".repeat(rng.random_range(1..300))).for_each(drop),
            }
        }
    }
    bytes
}

#[test]
fn ten_thousand_broken_requests_are_answered() {
    let config = ServerConfig { request_timeout: Duration::from_secs(20), ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions { max_sequences: 4, ..LoadOptions::default() }));
    let mut rng = SmallRng::seed_from_u64(3);
    let seeds = seeds();
    let (mut answered, mut refused) = (0, 0);
    for request in 0..REQUESTS {
        let (path, seed) = &seeds[request % seeds.len()];
        let body = body(seed, &mut rng);
        let kind = if rng.random_bool(0.02) { "text/plain" } else { "application/json" };
        let reply = server.request("POST", path, &[("content-type", kind)], &body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(600)]).into_owned();
        match reply.status {
            200 => answered += 1,
            400..500 => {
                refused += 1;
                let (_, error) = reply.error();
                // Ollama's errors are texts.
                let message = error["message"].as_str().or(error.as_str());
                assert!(message.is_some_and(|message| !message.is_empty()), "{path} {shown}");
            }
            status => panic!("{status} to {path} {shown}: {}", reply.text),
        }
        // A stream says within itself that something is wrong.
        assert!(!reply.text.contains("server_error"), "{path} {shown}: {}", reply.text);
    }
    assert!(answered > REQUESTS / 50 && refused > REQUESTS / 4, "{answered} answered, {refused} refused");
    assert_eq!(server.post("/v1/completions", &greedy("Once upon a time", 3)).status, 200);
    // An answer is out a little before what it held is given back.
    for metric in ["vllm:num_requests_running", "vllm:kv_cache_usage_perc"] {
        server.wait_for(metric, |value| value == 0.0, "something is still held");
    }
}

#[test]
fn what_is_no_http_ends_the_connection_and_nothing_else() {
    let config = ServerConfig { read_timeout: Duration::from_millis(200), ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions::default()));
    let mut rng = SmallRng::seed_from_u64(5);
    let long = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(1 << 20)).into_bytes();
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5000)).into_bytes();
    let fixed: [&[u8]; 9] = [
        b"",
        b"\r\n\r\n",
        b"GET",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nzz",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
        &long,
        &many,
    ];
    let noise = (0..200).map(|_| (0..rng.random_range(1..300)).map(|_| rng.random()).collect::<Vec<u8>>());
    for bytes in fixed.iter().map(|bytes| bytes.to_vec()).chain(noise) {
        let mut connection = Connection::open(server.address);
        connection.send(&bytes);
        if let Some(reply) = connection.reply() {
            assert!((400..500).contains(&reply.status), "{} to {:?}", reply.status, &bytes[..bytes.len().min(80)]);
        }
    }
    assert_eq!(server.get("/health").status, 200);
}
