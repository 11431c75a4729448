//! Several models in one server: loaded when they are asked for, and unloaded when their memory is needed or nobody uses them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use braidinfer::model::ModelSource;
use braidinfer::{KvCacheRoom, LoadOptions};
use braidinfer_server::{ModelOnDemand, OnDemand};
use serde_json::{Value, json};

use crate::support::{Connection, Model, TestServer, config, demo, greedy, wait_until, with};

fn demo_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../braidinfer-cli/demo-model")
}

/// How the models of these tests are loaded: with room for a few sequences, so that sizes do not depend on the machine.
fn options() -> LoadOptions {
    LoadOptions { max_sequences: 2, kv_cache: KvCacheRoom::Tokens(1024), ..LoadOptions::default() }
}

fn model(name: &str, folder: &Path) -> ModelOnDemand {
    let (name, folder) = (name.to_owned(), folder.to_owned());
    ModelOnDemand {
        name,
        file_name: None,
        bytes: None,
        source: Box::new(move || Ok(ModelSource::Directory(folder.clone()))),
    }
}

fn on_demand(names: &[&str], memory: usize) -> OnDemand {
    let models = names.iter().map(|name| model(name, &demo_folder())).collect();
    OnDemand { models, catalog: None, fetch: None, options: options(), memory, idle: None }
}

fn start(models: OnDemand) -> TestServer {
    TestServer::start(config(), Model::OnDemand(models))
}

/// Memory for so many of these models, and half of one.
fn memory_for(models: usize) -> usize {
    let one = demo(&options()).memory();
    one * models + one / 2
}

/// The state of each model, by name.
fn states(server: &TestServer) -> Vec<(String, String)> {
    let list = server.get("/v1/models").json();
    let models = list["data"].as_array().expect("models are a list");
    let text = |value: &Value| value.as_str().expect("it is text").to_owned();
    models.iter().map(|model| (text(&model["id"]), text(&model["status"]["value"]))).collect()
}

fn state(server: &TestServer, name: &str) -> String {
    states(server).into_iter().find(|(own, _)| own == name).expect("it is listed").1
}

fn ask(server: &TestServer, name: &str, max_tokens: usize) -> String {
    let reply = server.post("/v1/completions", &with(greedy("Once upon a time", max_tokens), json!({"model": name})));
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.json()["model"], name);
    reply.json()["choices"][0]["text"].as_str().expect("there is text").to_owned()
}

#[test]
fn models_are_loaded_when_they_are_asked_for() {
    let server = start(on_demand(&["a", "b"], memory_for(2)));
    assert_eq!(server.get("/ready").status, 200);
    let states_of = |a: &str, b: &str| vec![("a".to_owned(), a.to_owned()), ("b".to_owned(), b.to_owned())];
    assert_eq!(states(&server), states_of("unloaded", "unloaded"));
    let story = ask(&server, "a", 12);
    assert_eq!(states(&server), states_of("loaded", "unloaded"));
    assert_eq!(ask(&server, "b", 12), story, "they are the same model");
    assert_eq!(states(&server), states_of("loaded", "loaded"));
    // Each has metrics of its own.
    let metrics = server.get("/metrics").text;
    for name in ["a", "b"] {
        for line in [
            format!("braidinfer_generation_tokens_total{{model_name=\"{name}\"}} 12"),
            format!("braidinfer_model_loaded{{model_name=\"{name}\"}} 1"),
        ] {
            assert!(metrics.contains(&line), "{line}: {metrics}");
        }
    }
    for line in ["# TYPE braidinfer_model_loaded gauge", "# TYPE braidinfer_connections gauge"] {
        assert_eq!(metrics.matches(line).count(), 1, "{line}: {metrics}");
    }
    // And a verdict of its own.
    let verdict = server.get("/v1/compat?model=b").json();
    assert!(verdict["status"].is_string(), "{verdict}");
    for path in ["/v1/compat", "/tokenizer_info"] {
        let (status, error) = server.get(path).error();
        assert_eq!((status, error["param"].as_str()), (400, Some("model")), "{error}");
    }
    let (status, error) = server.post("/v1/completions", &greedy("Once", 1)).error();
    let message = error["message"].as_str().expect("it says what is wrong");
    assert!(status == 400 && message.contains("`a` or `b`"), "{message}");
    let unknown = with(greedy("Once", 1), json!({"model": "c"}));
    let (status, error) = server.post("/v1/completions", &unknown).error();
    assert_eq!((status, error["code"].as_str()), (404, Some("model_not_found")));
}

#[test]
fn the_model_that_was_not_used_for_longest_makes_room() {
    let server = start(on_demand(&["a", "b", "c"], memory_for(2)));
    for name in ["a", "b", "a", "c"] {
        ask(&server, name, 2);
    }
    let loaded = |server: &TestServer| -> Vec<String> {
        states(server).into_iter().filter(|(_, state)| state == "loaded").map(|(name, _)| name).collect()
    };
    assert_eq!(loaded(&server), ["a", "c"], "b was not used for longest");
    // What was counted of a model stays, and what it held does not.
    let tokens = server.get("/metrics").text;
    let holds_memory = |name: &str| {
        let gauge = format!("braidinfer_model_memory_bytes{{model_name=\"{name}\"}} ");
        tokens.lines().find_map(|line| line.strip_prefix(&gauge)).map(|bytes| bytes != "0")
    };
    assert_eq!(["a", "b", "c"].map(holds_memory), [Some(true), Some(false), Some(true)], "{tokens}");
    assert!(tokens.contains("braidinfer_generation_tokens_total{model_name=\"b\"} 2"), "{tokens}");
    ask(&server, "b", 3);
    let tokens = server.get("/metrics").text;
    assert!(tokens.contains("braidinfer_generation_tokens_total{model_name=\"b\"} 5"), "{tokens}");
}

#[test]
fn two_models_take_turns_within_the_memory_of_one() {
    let server = start(on_demand(&["a", "b"], memory_for(1)));
    let failed = AtomicUsize::new(0);
    thread::scope(|scope| {
        for client in 0..4 {
            let (server, failed) = (&server, &failed);
            scope.spawn(move || {
                for request in 0..6 {
                    let name = ["a", "b"][(client + request) % 2];
                    let body = with(greedy("Once upon a time", 4), json!({"model": name, "stream": request % 3 == 0}));
                    let reply = server.post("/v1/completions", &body);
                    failed.fetch_add(usize::from(reply.status != 200), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    let loaded = states(&server).into_iter().filter(|(_, state)| state == "loaded").count();
    assert_eq!(loaded, 1);
}

#[test]
fn an_answer_is_finished_before_its_model_makes_room() {
    let server = start(on_demand(&["a", "b"], memory_for(1)));
    ask(&server, "a", 1);
    let long = with(greedy("Once upon a time", 300), json!({"model": "a", "stream": true, "n": 2}));
    let text = long.to_string();
    let mut connection = Connection::open(server.address);
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json";
    connection.send(format!("{head}\r\ncontent-length: {}\r\n\r\n{text}", text.len()).as_bytes());
    let in_use = |server: &TestServer| server.get("/v1/models/a").json()["status"]["in_use"].as_u64();
    assert!(wait_until(|| in_use(&server) == Some(1)), "it never runs");
    ask(&server, "b", 1);
    let reply = connection.reply().expect("the answer is there");
    assert!(reply.status == 200 && reply.text.contains("data: [DONE]"), "{}", reply.text);
    let tokens = reply.events().iter().filter(|event| event["choices"][0]["text"].is_string()).count();
    assert!(tokens > 300, "{tokens}");
}

#[test]
fn models_are_unloaded_when_nobody_uses_them_and_when_somebody_says_so() {
    let mut models = on_demand(&["a", "b"], memory_for(2));
    models.idle = Some(Duration::from_millis(100));
    let server = start(models);
    ask(&server, "a", 1);
    assert!(wait_until(|| state(&server, "a") == "unloaded"), "nobody uses it");
    let ollama =
        |fields: Value| server.post("/api/generate", &with(json!({"model": "b", "stream": false}), fields)).json();
    assert_eq!(ollama(json!({"keep_alive": -1}))["done_reason"], "load");
    ask(&server, "a", 1);
    assert!(wait_until(|| state(&server, "a") == "unloaded"), "nobody uses it");
    assert_eq!(state(&server, "b"), "loaded", "it is kept");
    // Others say nothing of that.
    ask(&server, "b", 1);
    ask(&server, "a", 1);
    assert!(wait_until(|| state(&server, "a") == "unloaded"), "nobody uses it");
    assert_eq!(state(&server, "b"), "loaded", "it is kept");
    let running = server.get("/api/ps").json();
    assert_eq!((&running["models"][0]["name"], &running["models"][1]), (&json!("b:latest"), &Value::Null));
    assert_eq!(ollama(json!({"keep_alive": 0}))["done_reason"], "unload");
    assert_eq!(state(&server, "b"), "unloaded");
    let answer = ollama(json!({"prompt": "Once", "keep_alive": "1h", "options": {"num_predict": 2}}));
    assert!(answer["load_duration"].as_u64().is_some_and(|time| time > 0), "{answer}");
    let by_hand = server.post("/v1/models/unload", &json!({"model": "b"})).json();
    assert_eq!(by_hand["status"]["value"], "unloaded");
    let by_hand = server.post("/v1/models/load", &json!({"model": "b"})).json();
    assert_eq!(by_hand["status"]["value"], "loaded");
    assert!(wait_until(|| state(&server, "b") == "unloaded"), "what an earlier request asked for is over");
    assert_eq!(ollama(json!({"keep_alive": 1.8e19}))["done_reason"], "load");
    assert_eq!(server.get("/api/ps").json()["models"][0]["expires_at"], "9999-12-31T23:59:59Z");
    for keep_alive in [json!("soon"), json!(1e300), json!([1])] {
        let reply = server.post("/api/generate", &json!({"model": "b", "prompt": "x", "keep_alive": keep_alive}));
        assert_eq!(reply.status, 400, "{}", reply.text);
    }
    // A model that the server was started with stays.
    let given = TestServer::plain();
    assert_eq!(given.post("/v1/models/unload", &json!({"model": "demo"})).status, 400);
    let reply = given.post("/api/generate", &json!({"model": "demo", "keep_alive": 0, "stream": false}));
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(state(&given, "demo"), "loaded");
}

#[test]
fn a_model_that_cannot_be_loaded_says_so_and_leaves_the_others_alone() {
    let empty = tempfile::tempdir().expect("a folder can be made");
    let mut models = on_demand(&["a"], memory_for(1));
    models.models.push(model("broken", empty.path()));
    models.models.push(ModelOnDemand { bytes: Some(1 << 60), ..model("huge", &demo_folder()) });
    let server = start(models);
    ask(&server, "a", 1);
    for _ in 0..2 {
        let (status, error) = server.post("/v1/completions", &with(greedy("x", 1), json!({"model": "broken"}))).error();
        assert_eq!((status, error["code"].as_str()), (500, Some("model_not_loaded")));
        let message = error["message"].as_str().expect("it says what is wrong");
        assert!(
            !message.contains(&*empty.path().to_string_lossy()),
            "folders are the server's own business: {message}"
        );
    }
    let listed = server.get("/v1/models/broken").json();
    assert_eq!((&listed["status"]["failed"], &listed["status"]["value"]), (&json!(true), &json!("unloaded")));
    let (status, error) = server.post("/v1/completions", &with(greedy("x", 1), json!({"model": "huge"}))).error();
    assert_eq!((status, error["code"].as_str()), (503, Some("too_little_memory")));
    assert_eq!(state(&server, "a"), "loaded", "it made no room for what cannot be loaded");
    // Too little for any.
    let small = start(on_demand(&["a"], 1 << 20));
    let (status, error) = small.post("/v1/completions", &with(greedy("x", 1), json!({"model": "a"}))).error();
    assert_eq!((status, error["code"].as_str()), (503, Some("too_little_memory")), "{error}");
}

#[test]
fn clients_have_models_fetched_only_where_they_may() {
    let server = start(on_demand(&["a"], memory_for(1)));
    let reply = server.post("/api/pull", &json!({"model": "org/other"}));
    assert_eq!(reply.status, 403, "{}", reply.text);
    assert!(reply.json()["error"].as_str().is_some_and(|error| error.contains("--allow-pull")), "{}", reply.text);
    // What is here need not be fetched.
    assert_eq!(server.post("/api/pull", &json!({"model": "a:latest"})).lines(), [json!({"status": "success"})]);
    let mut models = on_demand(&["a"], memory_for(1));
    models.fetch = Some(Box::new(|name, progress| {
        if name != "org/other" {
            anyhow::bail!("there is no such model");
        }
        progress.started("other.gguf", 1000, 0);
        (1..=1000).for_each(|present| progress.advanced(present));
        progress.finished("other.gguf");
        Ok(model(name, &demo_folder()))
    }));
    let server = start(models);
    let lines = server.post("/api/pull", &json!({"name": "org/other"})).lines();
    let (first, last) = (&lines[0], lines.last().expect("there is a last line"));
    assert_eq!((&first["status"], &last["status"]), (&json!("pulling manifest"), &json!("success")));
    let told: Vec<u64> = lines.iter().filter_map(|line| line["completed"].as_u64()).collect();
    assert!(told.is_sorted() && told.len() < 220 && told.last() == Some(&1000), "{told:?}");
    ask(&server, "org/other", 1);
    for stream in [true, false] {
        let reply = server.post("/api/pull", &json!({"model": "no/such", "stream": stream}));
        let error = reply.lines().pop().expect("there is a last line")["error"].to_string();
        assert!(error.contains("no such model") && (stream || reply.status == 400), "{} {error}", reply.status);
    }
}

#[test]
fn texts_are_ranked_by_their_embeddings() {
    let server = TestServer::shared();
    let texts = ["The dragon slept.", "Once upon a time", "A fox"];
    let query = "Once upon a time";
    let scored = server.post("/v1/score", &json!({"model": "demo", "text_1": query, "text_2": texts})).json();
    let scores: Vec<f64> =
        scored["data"].as_array().expect("a list").iter().filter_map(|one| one["score"].as_f64()).collect();
    assert!((scores[1] - 1.0).abs() < 1e-3 && scores[0] < scores[1] && scores[2] < scores[1], "{scores:?}");
    let vector = |text: &str| -> Vec<f64> {
        let found = server.post("/v1/embeddings", &json!({"input": text})).json();
        found["data"][0]["embedding"].as_array().expect("a vector").iter().filter_map(Value::as_f64).collect()
    };
    let cosine: f64 = vector(query).iter().zip(vector(texts[0])).map(|(a, b)| a * b).sum();
    assert!((cosine - scores[0]).abs() < 1e-3, "{cosine} {}", scores[0]);
    let pairs = server.post("/score", &json!({"text_1": texts, "text_2": texts})).json();
    assert!(pairs["data"].as_array().is_some_and(|all| all.iter().all(|one| one["score"].as_f64() > Some(0.999))));
    let documents = json!([texts[0], {"text": texts[1]}, texts[2]]);
    let ranked =
        server.post("/v1/rerank", &json!({"model": "demo", "query": query, "documents": documents, "top_n": 2})).json();
    let results = ranked["results"].as_array().expect("a list");
    assert_eq!((results.len(), &results[0]["index"], &results[0]["document"]["text"]), (2, &json!(1), &json!(query)));
    let short = json!({"query": query, "documents": texts, "return_documents": false});
    assert!(server.post("/rerank", &short).json()["results"][0]["document"].is_null());
    for (path, body, param) in [
        ("/v1/score", json!({"text_1": ["a", "b"], "text_2": ["c"]}), "text_1"),
        ("/v1/score", json!({"text_1": "a", "text_2": []}), "text_2"),
        ("/v1/rerank", json!({"query": "a", "documents": []}), "documents"),
        ("/v1/rerank", json!({"query": "a", "documents": ["b"], "top_n": 0}), "top_n"),
        ("/v1/rerank", json!({"query": "a", "documents": ["b"], "pooling": "max"}), "pooling"),
    ] {
        let (status, error) = server.post(path, &body).error();
        assert_eq!((status, error["param"].as_str()), (400, Some(param)), "{error}");
    }
}

#[test]
fn a_catalog_is_looked_through_again_for_names_that_are_not_known() {
    let known = Arc::new(AtomicUsize::new(1));
    let found = Arc::clone(&known);
    let mut models = on_demand(&[], memory_for(1));
    models.catalog = Some(Box::new(move || {
        (0..found.load(Ordering::Relaxed)).map(|number| model(&format!("m{number}"), &demo_folder())).collect()
    }));
    let server = start(models);
    assert_eq!(states(&server), [("m0".to_owned(), "unloaded".to_owned())]);
    known.store(2, Ordering::Relaxed);
    assert!(wait_until(|| states(&server).len() == 2), "it was put there later");
    let shown = server.post("/api/show", &json!({"model": "m1"})).json();
    let details = &shown["details"];
    assert_eq!((&details["family"], &details["parameter_size"]), (&json!("llama"), &json!("2.0M")), "{shown}");
    assert_eq!(state(&server, "m1"), "unloaded", "to look at it does not load it");
    ask(&server, "m1", 1);
}
