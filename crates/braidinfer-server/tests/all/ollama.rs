//! The Ollama API.

use serde_json::{Value, json};

use crate::support::{Model, TestServer, config, demo_with_template, demo_with_templates, with};
use braidinfer::LoadOptions;

const TEMPLATE: &str = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}";

fn templated() -> (tempfile::TempDir, TestServer) {
    let (folder, llm) = demo_with_template(TEMPLATE);
    (folder, TestServer::start(config(), Model::Given(Box::new(llm))))
}

fn ask(fields: Value) -> Value {
    let body = json!({"model": "demo:latest", "messages": [{"role": "user", "content": "Hi"}],
        "options": {"temperature": 0, "num_predict": 8}});
    with(body, fields)
}

#[test]
fn chats_have_the_text_of_chat_completions_whole_and_streamed() {
    let (_folder, server) = templated();
    let chat = json!({"max_tokens": 8, "temperature": 0, "messages": [{"role": "user", "content": "Hi"}]});
    let expected = server.post("/v1/chat/completions", &chat).json();
    let whole = server.post("/api/chat", &ask(json!({"stream": false}))).json();
    let content = &expected["choices"][0]["message"]["content"];
    assert_eq!((&whole["message"]["content"], &whole["message"]["role"]), (content, &json!("assistant")), "{whole}");
    assert_eq!(
        (&whole["done"], &whole["done_reason"], &whole["model"]),
        (&json!(true), &json!("length"), &json!("demo:latest"))
    );
    assert_eq!(whole["prompt_eval_count"], expected["usage"]["prompt_tokens"]);
    assert_eq!(whole["eval_count"], 8);
    let durations = ["total_duration", "prompt_eval_duration", "eval_duration"].map(|name| whole[name].as_u64());
    let [Some(total), Some(prompt), Some(answer)] = durations else { panic!("no durations: {whole}") };
    assert!(prompt > 0 && answer > 0 && prompt + answer <= total, "{whole}");
    // Streams are the default.
    let reply = server.post("/api/chat", &ask(json!({})));
    assert_eq!(reply.header("content-type"), Some("application/x-ndjson"));
    let lines = reply.lines();
    let streamed: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    assert_eq!(json!(streamed), *content);
    let last = lines.last().expect("there is a last line");
    assert_eq!((&last["done"], &last["eval_count"]), (&json!(true), &json!(8)));
}

#[test]
fn generate_uses_the_template_unless_it_is_told_not_to() {
    let (_folder, server) = templated();
    let generate = |fields: Value| {
        let body =
            json!({"model": "demo", "prompt": "Hi", "stream": false, "options": {"temperature": 0, "num_predict": 8}});
        server.post("/api/generate", &with(body, fields)).json()
    };
    let chat = |messages: Value| {
        let body = json!({"max_tokens": 8, "temperature": 0, "messages": messages});
        server.post("/v1/chat/completions", &body).json()["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(generate(json!({}))["response"], chat(json!([{"role": "user", "content": "Hi"}])));
    assert_eq!(
        generate(json!({"system": "Be kind."}))["response"],
        chat(json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]))
    );
    let raw = server.post("/v1/completions", &json!({"prompt": "Hi", "max_tokens": 8, "temperature": 0})).json();
    assert_eq!(generate(json!({"raw": true}))["response"], raw["choices"][0]["text"]);
    // A model without a template completes.
    let settings = concat!(env!("CARGO_MANIFEST_DIR"), "/../braidinfer-cli/demo-model/tokenizer_config.json");
    let settings = std::fs::read_to_string(settings).expect("the settings can be read");
    let mut settings: Value = serde_json::from_str(&settings).expect("they are JSON");
    settings.as_object_mut().expect("they are an object").remove("chat_template").expect("there was one");
    let folder = tempfile::tempdir().expect("a folder can be made");
    let files = [("tokenizer_config.json", &*settings.to_string())];
    let llm = demo_with_templates(&folder, &files, &LoadOptions::default());
    let base = TestServer::start(config(), Model::Given(Box::new(llm)));
    let body =
        json!({"model": "demo", "prompt": "Hi", "stream": false, "options": {"temperature": 0, "num_predict": 8}});
    assert_eq!(base.post("/api/generate", &body).json()["response"], raw["choices"][0]["text"]);
    let refused = base.post("/api/chat", &ask(json!({})));
    assert!(refused.status == 400 && refused.json()["error"].is_string(), "{}", refused.text);
    for empty in [json!({"prompt": ""}), json!({"prompt": null, "keep_alive": "10m"})] {
        let loaded = generate(empty);
        assert_eq!(
            (&loaded["done"], &loaded["done_reason"], &loaded["response"]),
            (&json!(true), &json!("load"), &json!(""))
        );
    }
    let loaded = server.post("/api/chat", &json!({"model": "demo"})).json();
    assert_eq!((&loaded["done_reason"], &loaded["message"]["content"]), (&json!("load"), &json!("")));
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let (_folder, server) = templated();
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
    let body = ask(json!({"stream": false, "format": schema, "options": {"num_predict": 60, "temperature": 0}}));
    let answer = server.post("/api/chat", &body).json();
    let parsed: Value = serde_json::from_str(answer["message"]["content"].as_str().expect("a text")).expect("JSON");
    assert!(parsed["a"] == "x" || parsed["a"] == "y", "{answer}");
}

#[test]
fn vectors_are_those_of_the_openai_api() {
    let server = TestServer::shared();
    let expected = server.post("/v1/embeddings", &json!({"input": ["one", "two"]})).json();
    let found = server.post("/api/embed", &json!({"model": "demo", "input": ["one", "two"], "truncate": true})).json();
    for index in 0..2 {
        assert_eq!(found["embeddings"][index], expected["data"][index]["embedding"]);
    }
    assert_eq!(found["prompt_eval_count"], expected["usage"]["prompt_tokens"]);
    let one = server.post("/api/embeddings", &json!({"model": "demo", "prompt": "one"})).json();
    assert_eq!(one["embedding"], expected["data"][0]["embedding"]);
}

#[test]
fn models_are_listed_and_described() {
    let (_folder, server) = templated();
    let listed = server.get("/api/tags").json()["models"][0].clone();
    assert_eq!((&listed["name"], &listed["model"]), (&json!("demo:latest"), &json!("demo:latest")));
    assert!(listed["size"].as_u64().is_some_and(|size| size > 100_000), "{listed}");
    assert_eq!(listed["digest"].as_str().map(str::len), Some(64));
    for body in [json!({"model": "demo"}), json!({"name": "demo:latest", "verbose": false})] {
        let shown = server.post("/api/show", &body).json();
        let architecture = shown["model_info"]["general.architecture"].as_str().expect("a name");
        let context = &shown["model_info"][format!("{architecture}.context_length")];
        assert_eq!(*context, server.get("/v1/models").json()["data"][0]["max_model_len"]);
        assert!(shown["capabilities"].as_array().is_some_and(|all| all.contains(&json!("completion"))), "{shown}");
        assert_eq!(shown["template"], TEMPLATE);
    }
    assert_eq!(server.get("/api/ps").json()["models"][0]["name"], "demo:latest");
    assert!(server.get("/api/version").json()["version"].is_string());
}

#[test]
fn errors_have_the_form_of_this_api() {
    let (_folder, server) = templated();
    for (fields, status, says) in [
        (json!({"model": "other"}), 404, "model: expected `demo`"),
        (json!({"options": {"temperature": -1}}), 400, "options.temperature: "),
        (json!({"options": {"mirostat": 2}}), 400, "options.mirostat: this server knows no such field"),
        (json!({"options": {"stop": vec!["x"; 17]}}), 400, "options.stop: expected at most 16"),
        (json!({"options": {"repeat_last_n": 64, "repeat_penalty": 1.1}}), 400, "options.repeat_last_n: expected -1"),
        (json!({"format": "xml"}), 400, "format: expected `json` or a JSON schema"),
        (json!({"think": "perhaps"}), 400, "think: expected"),
        (json!({"think": true}), 400, "does not support thinking"),
        (
            json!({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}),
            400,
            "messages[0].images: expected none",
        ),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), 400, "messages[0].role: expected"),
        (json!({"messages": "x"}), 400, "messages: invalid type"),
    ] {
        let reply = server.post("/api/chat", &ask(fields));
        let error = reply.json();
        let message = error["error"].as_str().expect("a text");
        assert!(reply.status == status && message.contains(says), "{} {message} instead of {says}", reply.status);
    }
    let texts = json!({"model": "demo", "input": vec!["a"; 2049]});
    assert!(server.post("/api/embed", &texts).json()["error"].as_str().is_some_and(|error| error.contains("2048")));
    let both = json!({"model": "demo", "prompt": "x", "raw": true, "system": "y"});
    assert!(server.post("/api/generate", &both).json()["error"].as_str().is_some_and(|error| error.contains("system")));
    // What is at no address, or is asked for in another way, is an error of the API that was meant.
    assert_eq!((server.post("/api/copy", &json!({})).status, server.get("/api/chat").status), (404, 405));
    assert!(server.post("/api/copy", &json!({})).json()["error"].is_string());
    assert!(server.get("/api/chat").json()["error"].is_string());
    let missing = server.post("/api/show", &json!({"model": "other"}));
    assert_eq!((missing.status, missing.json()["error"].is_string()), (404, true));
}

#[test]
fn what_curl_sends_is_read_and_what_pages_of_other_sites_send_is_not() {
    let server = TestServer::shared();
    let body = json!({"model": "demo", "prompt": "x", "options": {"num_predict": 1}, "stream": false}).to_string();
    let form = ("content-type", "application/x-www-form-urlencoded");
    assert_eq!(server.request("POST", "/api/generate", &[form], body.as_bytes()).status, 200);
    let from_page = [form, ("origin", "https://other.example")];
    assert_eq!(server.request("POST", "/api/generate", &from_page, body.as_bytes()).status, 415);
}
