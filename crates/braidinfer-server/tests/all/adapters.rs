//! Adapters beside a model: each is a model by its name.

use braidinfer::{AdapterOptions, LoadOptions};
use serde_json::{Value, json};

use crate::support::{Model, TestServer, config, greedy, random_adapter, with};

/// A server with the demo model and two adapters.
fn start(folder: &tempfile::TempDir) -> TestServer {
    let adapter = |(name, seed): (&str, u64)| {
        let path = folder.path().join(name);
        random_adapter::write(&path, seed);
        AdapterOptions { name: name.into(), path }
    };
    let options = LoadOptions { adapters: [("red", 5), ("blue", 9)].map(adapter).to_vec(), ..LoadOptions::default() };
    TestServer::start(config(), Model::Demo(options))
}

fn story(server: &TestServer, name: &str) -> String {
    let reply = server.post("/v1/completions", &with(greedy("Once upon a time", 12), json!({"model": name})));
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.json()["model"], name);
    reply.json()["choices"][0]["text"].as_str().expect("there is text").to_owned()
}

#[test]
fn requests_name_adapters_as_models() {
    let folder = tempfile::tempdir().expect("there is room");
    let server = start(&folder);
    let stories = ["demo", "red", "blue"].map(|name| story(&server, name));
    assert!(stories[0] != stories[1] && stories[1] != stories[2] && stories[0] != stories[2], "{stories:?}");
    assert_eq!(stories[0], story(&TestServer::plain(), "demo"), "the model alone is what it is without adapters");
    // Together, and again.
    let (server, expected) = (&server, &stories);
    std::thread::scope(|scope| {
        for (name, story_alone) in ["demo", "red", "blue", "red"].into_iter().zip([0, 1, 2, 1].map(|at| &expected[at]))
        {
            scope.spawn(move || assert_eq!(story(server, name), *story_alone, "{name} in company"));
        }
    });
    let list = server.get("/v1/models").json();
    let of = |name: &str| -> Value {
        let models = list["data"].as_array().expect("models are a list");
        models.iter().find(|model| model["id"] == name).expect("it is listed").clone()
    };
    assert_eq!((of("red")["parent"].clone(), of("demo").get("parent")), (json!("demo"), None));
    assert_eq!(of("blue")["status"]["value"], "loaded");
    assert_eq!(server.get("/v1/models/red").json()["parent"], "demo");
    for (path, body) in [
        ("/v1/embeddings", json!({"model": "red", "input": "a braid"})),
        (
            "/api/generate",
            json!({"model": "red", "prompt": "Once", "raw": true, "stream": false, "options": {"num_predict": 3}}),
        ),
        ("/tokenize", json!({"model": "red", "prompt": "Once"})),
    ] {
        let reply = server.post(path, &body);
        assert_eq!(reply.status, 200, "{path}: {}", reply.text);
    }
    let [own, alone] = ["red", "demo"].map(|model| {
        server.post("/v1/embeddings", &json!({"model": model, "input": "a braid"})).json()["data"].clone()
    });
    assert_ne!(own, alone, "embeddings know adapters");
    let unknown = server.post("/v1/completions", &with(greedy("Once", 1), json!({"model": "green"})));
    assert_eq!(unknown.status, 404);
    assert!(unknown.text.contains("red") && unknown.text.contains("demo"), "{}", unknown.text);
    let verdicts = ["red", "demo"].map(|model| server.get(&format!("/v1/compat?model={model}")).json());
    assert!(verdicts[0]["adapter"].as_str().is_some_and(|adapter| adapter.ends_with("red")), "{}", verdicts[0]);
    assert_eq!(verdicts[1].get("adapter"), None);
}

#[test]
fn models_say_what_they_can_and_how_they_choose_tokens() {
    let model = TestServer::shared().get("/v1/models/demo").json();
    assert_eq!(model["default_sampling"]["temperature"], 0.7);
    assert_eq!(model["default_sampling"]["top_k"], 50);
    let capabilities = model["capabilities"].as_array().expect("they are a list");
    assert!(capabilities.contains(&json!("completion")), "{model}");
}
