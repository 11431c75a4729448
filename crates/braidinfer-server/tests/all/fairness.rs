//! Nothing that one client does keeps another from its answer: turns, limits, connections, memory, and connections that are
//! cut. Clients without keys are told apart by their addresses, of which the loopback network has many.

use std::io::{Read, Write};
use std::net::Shutdown;

use crate::support::{
    self, Connection, Model, TestServer, config, demo_with_template, greedy, metric, wait_until, with,
};
use braidinfer::LoadOptions;
use braidinfer_server::ServerConfig;
use serde_json::{Value, json};

const STORY: &str = "Once upon a time";

/// The text of a request for completions.
fn text_of(body: &Value) -> String {
    let body = body.to_string();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length:";
    format!("{head} {}\r\n\r\n{body}", body.len())
}

fn ask(server: &TestServer, body: &Value) -> Connection {
    let mut connection = Connection::open(server.address);
    connection.send(text_of(body).as_bytes());
    connection
}

/// Sends a long streaming request and waits for its first token.
fn stream(server: &TestServer, fields: Value) -> Connection {
    let mut connection = ask(server, &with(with(greedy(STORY, 400), json!({"stream": true})), fields));
    while !connection.line().expect("the stream begins").starts_with("data: ") {}
    connection
}

fn with_key(server: &TestServer, key: &str, body: &Value) -> support::Reply {
    let key = format!("Bearer {key}");
    let headers = [("content-type", "application/json"), ("authorization", key.as_str())];
    server.request("POST", "/v1/completions", &headers, body.to_string().as_bytes())
}

/// Waits until nothing is held by anyone.
fn everything_is_given_back(server: &TestServer, after: &str) {
    let held =
        ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "braidinfer_clients"];
    let bytes = ["braidinfer_body_bytes", "braidinfer_prompt_bytes", "braidinfer_answer_bytes"];
    let is_free = || {
        let text = server.get("/metrics").text;
        // The connection of this request is open, too.
        held.iter().chain(&bytes).all(|name| metric(&text, name) == 0.0)
            && metric(&text, "braidinfer_connections") == 1.0
    };
    assert!(wait_until(is_free), "after {after}: {}", server.get("/metrics").text);
}

#[test]
fn an_honest_client_is_answered_while_another_has_two_thousand_prompts_queued() {
    let keys = vec!["greedy".to_owned(), "honest".to_owned()];
    let server = TestServer::start(ServerConfig { api_keys: keys, ..config() }, Model::Demo(LoadOptions::default()));
    let body = with(greedy("", 200), json!({"prompt": vec![STORY; 2000], "stream": true})).to_string();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer greedy\r\n";
    let mut greedy_one = Connection::open(server.address);
    let kind = "content-type: application/json";
    greedy_one.send(format!("{head}{kind}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes());
    while !greedy_one.line().expect("the stream begins").starts_with("data: ") {}
    // No turn is left for a client that has to wait for all others: 1,984 answers of 200 tokens are ahead.
    let honest = with_key(&server, "honest", &greedy(STORY, 20)).json();
    assert_eq!(honest["usage"]["completion_tokens"], 20);
    let ended = with_key(&server, "honest", &greedy(STORY, 1));
    assert_eq!(ended.status, 200);
    let metrics = server.request("GET", "/metrics", &[("authorization", "Bearer honest")], b"").text;
    assert!(metric(&metrics, "vllm:num_requests_waiting") > 1500.0, "the others wait: {metrics}");
    assert_eq!(metric(&metrics, "braidinfer_clients"), 1.0);
}

/// Without keys.
#[cfg(target_os = "linux")]
#[test]
fn addresses_take_turns() {
    let server = TestServer::start(config(), Model::Demo(LoadOptions::default()));
    let from = |last: u8| Connection::open_from([127, 0, 0, last].into(), server.address);
    let many = with(greedy("", 200), json!({"prompt": vec![STORY; 2000], "stream": true}));
    let mut greedy_one = from(2);
    greedy_one.send(text_of(&many).as_bytes());
    while !greedy_one.line().expect("the stream begins").starts_with("data: ") {}
    let mut honest = from(3);
    honest.send(text_of(&greedy(STORY, 20)).as_bytes());
    assert_eq!(honest.reply().expect("it is answered").json()["usage"]["completion_tokens"], 20);
    let metrics = server.get("/metrics").text;
    assert!(metric(&metrics, "vllm:num_requests_waiting") > 1500.0, "the others wait: {metrics}");
}

#[test]
fn all_answers_of_a_request_find_room_or_none() {
    let options = LoadOptions { max_sequences: 2, max_waiting: 6, max_waiting_per_client: 3, ..LoadOptions::default() };
    let keys = vec!["a".to_owned(), "b".to_owned()];
    let server = TestServer::start(ServerConfig { api_keys: keys, ..config() }, Model::Demo(options));
    let many = |prompts: usize, n: usize| with(greedy("", 2), json!({"prompt": vec![STORY; prompts], "n": n}));
    assert_eq!(with_key(&server, "a", &many(5, 1)).status, 200, "two run, and three of one client may wait");
    for body in [many(6, 1), many(2, 3), many(2000, 1)] {
        let reply = with_key(&server, "a", &body);
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, &error["code"]), (429, &json!("too_many_answers")), "{error}");
        assert_eq!((reply.header("x-should-retry"), reply.header("retry-after")), (Some("false"), None));
        assert!(error["message"].as_str().is_some_and(|message| message.contains("at most 5")), "{error}");
    }
    let metrics = server.request("GET", "/metrics", &[("authorization", "Bearer a")], b"").text;
    assert_eq!(metric(&metrics, "braidinfer_refused_total"), 3.0, "{metrics}");
    assert!(metrics.contains("reason=\"too_many_answers\""), "{metrics}");
    assert_eq!(metric(&metrics, "vllm:num_requests_waiting"), 0.0);
}

#[test]
fn one_client_cannot_fill_the_queue() {
    let options = LoadOptions { max_sequences: 1, max_waiting: 4, max_waiting_per_client: 2, ..LoadOptions::default() };
    let keys = vec!["a".to_owned(), "b".to_owned()];
    let server = TestServer::start(ServerConfig { api_keys: keys, ..config() }, Model::Demo(options));
    let open = |key: &str, prompts: usize| {
        let body = with(greedy("", 450), json!({"prompt": vec![STORY; prompts], "stream": true})).to_string();
        let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
        let mut connection = Connection::open(server.address);
        let text = format!("{head}\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        connection.send(text.as_bytes());
        connection.line().expect("the server answers")
    };
    // The connection is kept open by its owner, so that its answers go on.
    let body = with(greedy("", 450), json!({"prompt": vec![STORY; 3], "stream": true})).to_string();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
    let mut first = Connection::open(server.address);
    first.send(format!("{head}\r\nauthorization: Bearer a\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes());
    while !first.line().expect("the stream begins").starts_with("data: ") {}
    let reply = with_key(&server, "a", &greedy(STORY, 1));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (429, &json!("client_queue_full")));
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert!(open("b", 2).contains(" 200 "), "the other client's places are free");
}

#[test]
fn probes_are_answered_when_all_connections_are_taken() {
    let config = ServerConfig { max_connections: 3, max_connections_per_client: 3, ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions::default()));
    let busy: Vec<Connection> = (0..3).map(|_| stream(&server, json!({}))).collect();
    for path in ["/health", "/ready", "/metrics"] {
        let reply = server.get(path);
        assert_eq!((reply.status, reply.header("connection")), (200, Some("close")), "{path}");
    }
    let reply = server.post("/v1/completions", &greedy(STORY, 1));
    assert!([429, 503].contains(&reply.status) && reply.header("retry-after").is_some(), "{}", reply.text);
    let metrics = server.get("/metrics").text;
    assert!(
        metrics.contains("reason=\"client_connections\"") || metrics.contains("reason=\"connections\""),
        "{metrics}"
    );
    drop(busy);
    server.wait_for("vllm:num_requests_running", |running| running == 0.0, "a stream goes on");
    assert!(wait_until(|| server.post("/v1/completions", &greedy(STORY, 1)).status == 200), "there is room again");
}

#[test]
fn idle_connections_give_way() {
    let config = ServerConfig { max_connections: 4, max_connections_per_client: 4, ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions::default()));
    let mut silent: Vec<Connection> = (0..4).map(|_| Connection::open(server.address)).collect();
    for _ in 0..6 {
        assert_eq!(server.post("/v1/completions", &greedy(STORY, 1)).status, 200);
    }
    // Each of them was closed for one of the requests.
    assert!(silent.iter_mut().take(2).all(|connection| connection.reply().is_none()));
}

#[test]
fn answers_that_could_take_too_much_memory_are_refused_by_name() {
    let config = ServerConfig { max_answer_bytes: 1 << 20, max_request_memory: 4 << 20, ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions::default()));
    for (fields, field) in
        [(json!({"n": 64, "logprobs": 20}), "n"), (json!({"logprobs": 20, "max_tokens": 480}), "max_tokens")]
    {
        let (status, error) = server.post("/v1/completions", &with(greedy(STORY, 480), fields)).error();
        assert_eq!((status, &error["param"]), (400, &json!(field)), "{error}");
        let message = error["message"].as_str().expect("it says why");
        assert!(message.contains("at most 1048576 bytes") && message.contains("could take "), "{message}");
    }
    for (fields, field) in [(json!({"logprobs": u64::MAX}), "logprobs"), (json!({"n": u64::MAX}), "n")] {
        let (status, error) = server.post("/v1/completions", &with(greedy(STORY, 480), fields)).error();
        assert_eq!((status, &error["param"]), (400, &json!(field)), "{error}");
    }
    let chat = json!({"messages": [{"role": "user", "content": "x"}], "logprobs": true, "top_logprobs": 20, "n": 8});
    assert_eq!(server.post("/v1/chat/completions", &chat).error().0, 400);
    // What fits is answered, one after another, and given back.
    for _ in 0..5 {
        assert_eq!(
            server.post("/v1/completions", &with(greedy(STORY, 40), json!({"n": 4, "logprobs": 5}))).status,
            200
        );
    }
    let long = (0..40_000).map(|_| "x").collect::<Vec<_>>();
    let embeddings = server.post("/v1/embeddings", &json!({"input": &long[..2000]}));
    assert_eq!(embeddings.error().1["param"], "input");
    everything_is_given_back(&server, "refusals");
}

#[test]
fn memory_of_all_requests_is_bounded() {
    let config = ServerConfig { max_answer_bytes: 1 << 20, max_request_memory: 2 << 20, ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions::default()));
    let body = with(greedy(STORY, 400), json!({"n": 16, "logprobs": 0}));
    let _first = ask(&server, &with(body.clone(), json!({"n": 12})));
    server.wait_for("vllm:num_requests_running", |running| running >= 1.0, "it never runs");
    let reply = server.post("/v1/completions", &with(body, json!({"n": 12, "max_tokens": 401})));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (429, &json!("client_memory")), "{}", reply.text);
    assert_eq!(reply.header("retry-after"), Some("1"));
}

#[test]
fn clients_that_end_their_side_get_their_answer() {
    let server = TestServer::start(config(), Model::Demo(LoadOptions::default()));
    for (fields, end) in [
        (json!({}), "}"),
        // Takes longer than the first look whether the client is there.
        (json!({"n": 100, "max_tokens": 300}), "}"),
        (json!({"stream": true, "max_tokens": 100}), "[DONE]\n\n"),
    ] {
        let mut socket = std::net::TcpStream::connect(server.address).expect("the server listens");
        socket.write_all(text_of(&with(greedy(STORY, 5), fields)).as_bytes()).expect("it takes requests");
        socket.shutdown(Shutdown::Write).expect("one side can be ended");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("the server answers");
        let last = answer.rsplit("HTTP/1.1 100 Continue\r\n\r\n").next().expect("there is always one");
        assert!(last.starts_with("HTTP/1.1 200 OK\r\n"), "{last:.200}");
        assert!(last.trim_end_matches("0\r\n\r\n").trim_end_matches("\r\n").ends_with(end), "it is whole");
    }
    everything_is_given_back(&server, "half-closed connections");
}

#[test]
fn connections_can_be_cut_at_any_time() {
    let options = LoadOptions { max_sequences: 2, ..LoadOptions::default() };
    let server = TestServer::start(config(), Model::Demo(options));
    let text = text_of(&with(greedy(STORY, 400), json!({"n": 2})));
    let body_at = text.find("\r\n\r\n").expect("a head") + 4;
    for at in [0, 10, body_at, body_at + 10] {
        let mut connection = Connection::open(server.address);
        connection.send(&text.as_bytes()[..at]);
        server.wait_for("braidinfer_connections", |open| open >= 2.0, "it is accepted");
        drop(connection);
        everything_is_given_back(&server, &format!("{at} bytes"));
    }
    let running = |server: &TestServer| server.wait_for("vllm:num_requests_running", |n| n > 0.0, "it never runs");
    // In an answer that is not streamed.
    let whole = ask(&server, &with(greedy(STORY, 400), json!({"n": 100})));
    running(&server);
    drop(whole);
    everything_is_given_back(&server, "an answer");
    // In the middle of a prompt.
    let long = "dragon ".repeat(300);
    let prompts = ask(&server, &with(greedy(&long, 50), json!({"prompt": vec![long.as_str(); 40], "stream": true})));
    running(&server);
    drop(prompts);
    everything_is_given_back(&server, "prompts");
    // In a stream, and while another request waits, streamed or not.
    let first = stream(&server, json!({"n": 8}));
    for fields in [json!({"stream": true}), json!({})] {
        let before = server.metric("vllm:num_requests_waiting");
        let second = ask(&server, &with(greedy(STORY, 400), with(json!({"n": 50}), fields)));
        let waits = |waiting| waiting > before + 20.0;
        server.wait_for("vllm:num_requests_waiting", waits, "the second request never waits");
        drop(second);
        server.wait_for("vllm:num_requests_waiting", |waiting| waiting < 20.0, "it goes on waiting");
    }
    drop(first);
    everything_is_given_back(&server, "a stream");
}

#[test]
fn clients_that_do_not_read_are_cancelled_before_much_is_stored() {
    // Only the bound on what is unread can end it.
    let config = ServerConfig { max_answer_bytes: 64 << 10, ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions::default()));
    let body = with(greedy(STORY, 450), json!({"n": 100, "logprobs": 20, "stream": true}));
    let mut client = ask(&server, &body);
    let of_unread = |line: &&str| line.starts_with("braidinfer_requests_total") && line.contains("\"abort\"");
    let was_ended = || server.get("/metrics").text.lines().find(of_unread).is_some_and(|line| !line.ends_with(" 0"));
    assert!(wait_until(was_ended), "the request goes on");
    let reply = client.reply().expect("what was written, and why it ends");
    assert!(reply.text.contains("its reader is too slow") && reply.text.ends_with("[DONE]\n\n"), "{:.300}", reply.text);
    everything_is_given_back(&server, "a client that does not read");
}

/// What the server says to raw bytes.
fn raw(server: &TestServer, bytes: &[u8]) -> support::Reply {
    let mut connection = Connection::open(server.address);
    connection.send(bytes);
    connection.reply().expect("the server answers")
}

#[test]
fn headers_that_contradict_each_other_are_refused() {
    let server = TestServer::shared();
    for (name, values) in [
        ("host", ["localhost", "localhost"]),
        ("x-request-id", ["a", "b"]),
        ("authorization", ["Bearer a", "Bearer b"]),
        ("content-type", ["application/json", "text/plain"]),
    ] {
        let host = if name == "host" { "" } else { "host: localhost\r\n" };
        let head = format!("GET /health HTTP/1.1\r\n{host}{name}: {}\r\n{name}: {}\r\n\r\n", values[0], values[1]);
        let (status, error) = raw(server, head.as_bytes()).error();
        assert_eq!(status, 400);
        assert!(error["message"].as_str().is_some_and(|message| message.starts_with(name)), "{error}");
    }
    let other = raw(server, b"GET http://evil.example/v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(other.error().0, 400);
    for (encoding, status) in [("gzip", 415), ("br, gzip", 415), ("identity", 200)] {
        let headers = [("content-type", "application/json"), ("content-encoding", encoding)];
        let reply = server.request("POST", "/v1/completions", &headers, greedy(STORY, 1).to_string().as_bytes());
        assert_eq!(reply.status, status, "{}", reply.text);
        assert!(status == 200 || reply.text.contains(encoding), "{}", reply.text);
    }
}

#[test]
fn long_values_are_never_repeated_whole() {
    let server = TestServer::start(ServerConfig { lenient: false, ..config() }, Model::Demo(LoadOptions::default()));
    let long = "x".repeat(70_000);
    let message = json!({"role": long, "content": "x"});
    let mut named = greedy(STORY, 1);
    named[&long] = json!(1);
    for (path, body) in [
        ("/v1/completions", with(greedy(STORY, 1), json!({"model": long}))),
        ("/v1/completions", named),
        ("/v1/completions", with(greedy(STORY, 1), json!({"temperature": long}))),
        ("/v1/completions", with(greedy(STORY, 1), json!({"logit_bias": {long.as_str(): 1}}))),
        ("/v1/completions", with(greedy(STORY, 1), json!({"response_format": {"type": long}}))),
        ("/v1/completions", with(greedy(STORY, 1), json!({"structured_outputs": {"regex": format!("[{long}")}}))),
        ("/v1/completions", with(greedy(STORY, 1), json!({"stream_options": {long.as_str(): 1}, "stream": true}))),
        ("/v1/chat/completions", json!({"messages": [message]})),
        ("/v1/embeddings", json!({"input": "x", "pooling": long})),
    ] {
        let reply = server.post(path, &body);
        assert!((400..500).contains(&reply.status), "{}", reply.status);
        assert!(reply.text.len() < 2500, "{} bytes: {:.300}", reply.text.len(), reply.text);
    }
    let reply = server.request("POST", "/v1/completions", &[("content-type", &long)], b"{}");
    assert!(reply.status == 415 && reply.text.len() < 1000);
    let lenient = TestServer::start(ServerConfig { lenient: true, ..config() }, Model::Demo(LoadOptions::default()));
    let names = (0..3000).map(|index| (format!("field_{index}"), json!(1))).collect::<serde_json::Map<_, _>>();
    let reply = lenient.post("/v1/completions", &with(greedy(STORY, 1), Value::Object(names)));
    assert!(reply.status == 200 && reply.header("x-braidinfer-ignored").is_some_and(|names| names.len() < 1200));
}

#[test]
fn templates_get_no_variables_that_the_server_sets_and_errors_name_no_folder() {
    let (_folder, llm) = demo_with_template("{{ raise_exception('no ' + extra) }}");
    let server = TestServer::start(config(), Model::Given(Box::new(llm)));
    let chat = |variables: Value| {
        let messages = json!([{"role": "user", "content": "x"}]);
        server.post("/v1/chat/completions", &json!({"messages": messages, "chat_template_kwargs": variables})).error()
    };
    for name in ["messages", "tools", "bos_token", "eos_token", "add_generation_prompt", "raise_exception"] {
        let (status, error) = chat(json!({name: "x"}));
        assert_eq!((status, &error["param"]), (400, &json!(format!("chat_template_kwargs.{name}"))));
    }
    let (status, error) = chat(json!({"extra": "thanks"}));
    let message = error["message"].as_str().expect("it says why");
    assert!(status == 400 && message.contains("no thanks") && !message.contains('/'), "{message}");
}

#[test]
fn limits_of_zero_are_refused_by_name() {
    let runtime = tokio::runtime::Runtime::new().expect("there are threads");
    let zero = std::time::Duration::ZERO;
    for (broken, name) in [
        (ServerConfig { max_connections: 0, ..config() }, "max_connections"),
        (ServerConfig { max_connections: usize::MAX, ..config() }, "max_connections"),
        (ServerConfig { max_connections_per_client: 0, ..config() }, "max_connections_per_client"),
        (ServerConfig { max_body_bytes: 0, ..config() }, "max_body_bytes"),
        (ServerConfig { max_answer_bytes: 0, ..config() }, "max_answer_bytes"),
        (ServerConfig { max_answer_bytes: 1 << 30, ..config() }, "max_answer_bytes"),
        (ServerConfig { max_request_memory: usize::MAX, ..config() }, "max_request_memory"),
        (ServerConfig { read_timeout: zero, ..config() }, "read_timeout"),
        (ServerConfig { write_timeout: zero, ..config() }, "write_timeout"),
        (ServerConfig { request_timeout: zero, ..config() }, "request_timeout"),
        (ServerConfig { shutdown_timeout: std::time::Duration::MAX, ..config() }, "shutdown_timeout"),
    ] {
        let error = runtime.block_on(braidinfer_server::Server::bind(broken)).err().expect(name).to_string();
        assert!(error.starts_with(&format!("{name}: expected ")), "{error}");
    }
}
