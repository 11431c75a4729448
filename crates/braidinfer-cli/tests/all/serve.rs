//! `braidinfer serve` as a process: what it refuses, that it serves, and how it ends.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::process::ChildStderr;

use crate::support::server::{
    Server, WITH_SIGNALS, code_of, get, line_with, post, rest, send, signal, start_server, started_by,
};
use crate::support::{braidinfer, model, output, refuse, stderr, stdout, succeed, wait_until};

/// A server that listens, and its address.
fn start(args: &[&str]) -> (Server, BufReader<ChildStderr>, String) {
    start_server(braidinfer(["serve", "--port", "0"].iter().chain(args)))
}

#[test]
fn a_server_serves_and_ends_at_a_signal() {
    for name in ["TERM", "INT", "HUP"] {
        let plain = braidinfer(["serve", "--port", "0", "--log-format", "json"]);
        let (server, mut lines, address) = start_server(started_by(WITH_SIGNALS, &plain));
        assert!(get(&address, "/ready").starts_with("HTTP/1.1 200"));
        assert!(get(&address, "/v1/models").contains("\"id\":\"demo\""));
        // The chat template is in a worker process.
        let metrics = get(&address, "/metrics");
        assert!(metrics.contains("braidinfer_workers 1\n"), "{metrics}");
        assert!(metrics.contains("braidinfer_workers_ended_total{reason=\"memory\"} 0\n"), "{metrics}");
        assert!(line_with(&mut lines, "\"path\":\"/ready\"").contains("\"status\":200"));
        signal(&server, name);
        assert_eq!(code_of(server), Some(0), "{name}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_that_is_to_outlive_its_terminal_does() {
    let (server, _lines, address) = start_server(started_by(&["nohup"], &braidinfer(["serve", "--port", "0"])));
    signal(&server, "HUP");
    for _ in 0..3 {
        assert!(get(&address, "/ready").starts_with("HTTP/1.1 200"));
    }
    signal(&server, "TERM");
    assert_eq!(code_of(server), Some(0), "it was the first that it heeded");
}

#[test]
fn how_conversations_are_read_is_said() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let template = folder.path().join("chat.jinja");
    let text = "{{ tools }}{{ messages[0].content }}{# <think> </think> <tool_call> #}";
    std::fs::write(&template, text).expect("it can be written");
    let said = |args: &[&str]| {
        let mut command = braidinfer(["serve", "--port", "0"].iter().chain(args));
        let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped"));
        let _server = Server(child);
        line_with(&mut lines, "is served at")
    };
    let line = said(&["--chat-template", &template.display().to_string()]);
    assert!(line.contains("reasoning format think, tool call format tagged"), "{line}");
    let line = said(&[]);
    assert!(line.contains("reasoning format none, tool call format none"), "{line}");
}

/// A server of several models, which are not loaded when it begins.
fn start_several(command: std::process::Command) -> (Server, BufReader<ChildStderr>, String) {
    let mut command = command;
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("the program starts");
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped"));
    let line = line_with(&mut lines, "listening at http://");
    let address = line.split("http://").nth(1).and_then(|rest| rest.split(": ").next()).expect("an address").to_owned();
    assert!(line.contains("loaded when somebody asks"), "{line}");
    (Server(child), lines, address)
}

#[test]
fn several_models_are_served_and_listed_by_ps() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let cache = tempfile::tempdir().expect("a folder can be made");
    let tiny = model("llama").display().to_string();
    let mut command = braidinfer(["serve", &tiny, "--models-dir", &folder.path().display().to_string(), "--port", "0"]);
    command.env("BRAIDINFER_CACHE", cache.path());
    let (server, mut lines, address) = start_several(command);
    assert!(get(&address, "/ready").contains("\"models\":[\"llama\"]"));
    // One that is put there later is found.
    std::os::unix::fs::symlink(model("qwen3"), folder.path().join("later")).expect("links can be made");
    assert!(wait_until(|| get(&address, "/v1/models").contains("\"id\":\"later\"")), "it is never found");
    let body = r#"{"model": "later", "prompt": [1, 2, 3], "max_tokens": 2}"#;
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json";
    let answer = rest(send(&address, &format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"model\":\"later\""), "{answer}");
    assert!(line_with(&mut lines, "is loaded").contains("later"));
    let ps = |args: &[&str]| {
        let mut command = braidinfer(["ps"].iter().chain(args));
        command.env("BRAIDINFER_CACHE", cache.path()).output().expect("the program starts")
    };
    let rows: serde_json::Value = serde_json::from_str(&stdout(&ps(&["--json"]))).expect("it is JSON");
    let found = (&rows[0]["url"], &rows[0]["models"][0]["state"], &rows[0]["models"][1]["state"]);
    assert_eq!(found, (&format!("http://{address}").into(), &"loaded".into(), &"unloaded".into()), "{rows}");
    assert!(rows[0]["models"][0]["memory"].as_u64() > Some(0), "{rows}");
    let table = stdout(&ps(&[]));
    assert!(table.contains("later") && table.contains("1 server "), "{table}");
    // A server that was killed is forgotten.
    signal(&server, "KILL");
    code_of(server);
    assert_eq!(std::fs::read_dir(cache.path().join("servers")).map(Iterator::count).ok(), Some(1));
    assert_eq!(stdout(&ps(&["--json"])), "[]\n");
    assert_eq!(std::fs::read_dir(cache.path().join("servers")).map(Iterator::count).ok(), Some(0));
}

#[test]
fn what_is_for_one_model_is_refused_beside_several() {
    let tiny = model("llama").display().to_string();
    for (args, says) in [
        (vec!["serve", &tiny, &tiny], "found two of this one"),
        (vec!["serve", &tiny, "--idle", "1m", "--any-model-name"], "--any-model-name"),
        (vec!["serve", &tiny, "--idle", "1m", "--served-model-name", "x"], "--served-model-name"),
        (vec!["serve", "--models-dir", "/no/such/folder"], "--models-dir /no/such/folder"),
    ] {
        refuse(args, &[says]);
    }
    let message = stderr(&output(["serve", &tiny, "--idle", "soon"]));
    assert!(message.contains("expected a time such as 10m"), "{message}");
}

#[test]
fn clients_that_go_away_before_they_are_answered_are_in_the_log() {
    let (server, mut lines, address) = start(&[]);
    let body = r#"{"prompt": "Once", "max_tokens": 400, "ignore_eos": true, "n": 100, "logprobs": 20}"#;
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nx-request-id: gone";
    let mut stream = TcpStream::connect(&address).expect("it listens");
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).expect("it takes requests");
    // A client that disconnects before its request is scheduled starts none, so wait until it runs.
    let is_running = |metrics: &str| {
        metrics.lines().any(|line| line.starts_with("vllm:num_requests_running") && !line.ends_with(" 0"))
    };
    assert!(wait_until(|| is_running(&get(&address, "/metrics"))), "the request never runs");
    drop(stream);
    let line = line_with(&mut lines, "the client went away");
    assert!(line.contains("gone") && line.contains("/v1/completions"), "{line}");
    signal(&server, "TERM");
    code_of(server);
}

#[test]
fn what_others_can_reach_needs_a_key() {
    refuse(["serve", "--host", "0.0.0.0", "--port", "0"], &["0.0.0.0", "no API key is set"]);
    let (server, _lines, address) = start(&["--host", "0.0.0.0", "--api-key", "secret"]);
    let local = address.replace("0.0.0.0", "127.0.0.1");
    assert!(get(&local, "/v1/models").starts_with("HTTP/1.1 401"));
    let url = format!("http://{local}");
    assert_eq!(succeed(["health", &url]), "ready\n");
    refuse(["health", &format!("{url}/v1/models?")], &["expected a server that is ready", "401"]);
    signal(&server, "TERM");
    code_of(server);
    refuse(["health", &url, "--timeout", "2"], &[&url]);
}

#[test]
fn settings_that_cannot_be_used_are_refused_before_anything_is_loaded() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let empty = folder.path().join("empty").display().to_string();
    std::fs::write(&empty, "\n").expect("a file can be written");
    let serve =
        |args: &[&str]| ["serve", "--port", "0"].iter().chain(args).map(ToString::to_string).collect::<Vec<_>>();
    refuse(serve(&["--api-key-file", &empty]), &["--api-key-file", "expected a key in each line"]);
    refuse(serve(&["--api-key-file", "/no/such/file"]), &["/no/such/file"]);
    refuse(serve(&["--tls-cert", &empty, "--tls-key", &empty]), &[&empty, "expected a certificate"]);
    refuse(serve(&["--cors-origin", "example.org"]), &["CORS origin", "example.org"]);
    for flag in [
        "--max-body",
        "--max-answer",
        "--max-request-memory",
        "--max-connections",
        "--max-connections-per-client",
        "--max-sequences",
        "--read-timeout",
        "--write-timeout",
        "--request-timeout",
    ] {
        for value in ["0", "99999999999999999"] {
            let output = output(serve(&[flag, value]));
            let message = stderr(&output);
            assert!(!output.status.success() && message.contains(flag), "{message}");
            assert!(message.contains(&format!("{value} is not in 1..=")), "{message}");
        }
    }
    let memory = serve(&["--max-body", "600"]);
    refuse(memory, &["--max-body", "half of --max-request-memory", "536870912", "629145600"]);
    refuse(serve(&["--force"]), &["--force", "--kernels fused"]);
    refuse(serve(&["/no/such/model"]), &["/no/such/model"]);
    refuse(serve(&["--shadow-check", "2"]), &["shadow-check", "from 0 to 1"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    refuse(["serve", "--port", &port], &["127.0.0.1", "in use"]);
}

/// Its text is read in a worker process.
#[test]
fn a_server_reads_the_text_of_documents() {
    let (server, _lines, address) = start(&[]);
    let read = |kind: &str, body: &[u8]| post(&address, "/v1/extract_text", kind, body);
    let found = read("application/pdf", document());
    assert!(found.starts_with("HTTP/1.1 200"), "{found}");
    assert!(found.ends_with("{\"text\":\"Braids of three strands.\",\"pages\":1}"), "{found}");
    let other = read("application/pdf", b"plain text");
    assert!(other.starts_with("HTTP/1.1 400") && other.contains("a file of another kind"), "{other}");
    assert!(read("application/pdf", &document()[..300]).starts_with("HTTP/1.1 400"));
    assert!(read("text/plain", document()).starts_with("HTTP/1.1 415"));
    signal(&server, "TERM");
    assert_eq!(code_of(server), Some(0));
}

/// A document with one page of text.
fn document() -> &'static [u8] {
    include_bytes!("../../../../tests/fixtures/requests/one-page.pdf")
}
