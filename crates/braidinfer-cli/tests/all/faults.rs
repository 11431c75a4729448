//! The program under faults of the machine and of other processes: no command panics, aborts or hangs, and what cannot be
//! done is an error that says so.
#![cfg(unix)]

use std::fs;
use std::io::{BufReader, Read};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStderr, Command, Output, Stdio};

use crate::support::server::{PATIENCE, Server, code_of, connect, get, line_with, rest, send, signal, start_server};
use crate::support::{Broken, braidinfer, model, stderr, stdout, wait_until};
use tempfile::TempDir;

/// The binary with `args` below a shell, which runs `setup` first: redirections and limits.
fn below(setup: &str, args: &[&str]) -> Command {
    let (exec, redirections) = setup.split_once('|').unwrap_or((setup, ""));
    let plain = braidinfer(args);
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{exec}\nexec \"$0\" \"$@\" {redirections}")).arg(plain.get_program()).args(args);
    command.stdin(Stdio::null());
    for (name, value) in plain.get_envs() {
        command.env(name, value.expect("the environment of tests sets variables"));
    }
    command
}

fn run(setup: &str, args: &[&str]) -> Output {
    below(setup, args).output().expect("the shell starts")
}

fn assert_code(output: &Output, code: i32, what: &str) {
    assert_eq!(output.status.code(), Some(code), "{what}: {:?} {}", output.status.signal(), stderr(output));
    assert!(!stderr(output).contains("panicked"), "{what}: {}", stderr(output));
}

fn fixture(name: &str) -> String {
    model(name).display().to_string()
}

#[test]
fn exit_codes_do_not_depend_on_stderr() {
    let llama = fixture("llama");
    let cases: [(&[&str], i32); 7] = [
        (&["models"], 0),
        // This one has a note.
        (&["run", "Once", "--max-tokens", "2"], 0),
        (&["run", &llama, "--ids", "1,2", "--max-tokens", "2", "--json"], 0),
        (&["inspect", "/no/such/model"], 3),
        (&["run", "--no-such-flag"], 3),
        (&[], 3),
        (&["serve", "--max-sequences", "0"], 3),
    ];
    for (args, code) in cases {
        for setup in ["", "|2>&-", "|2>/dev/full"] {
            assert_code(&run(setup, args), code, &format!("{args:?} {setup}"));
        }
    }
}

#[test]
fn results_that_cannot_be_written_are_errors() {
    let cases: [&[&str]; 8] = [
        &["models"],
        &["models", "--json"],
        &["run", "Once", "--max-tokens", "2"],
        &["tokenize", "Once upon a time"],
        &["inspect", "--json"],
        &["logits", "--prompt", "Once"],
        &["--help"],
        &["completions", "bash"],
    ];
    for args in cases {
        for (setup, reason) in [("|>/dev/full", "No space left"), ("|>&-", "found it closed")] {
            let output = run(setup, args);
            assert_code(&output, 3, &format!("{args:?} {setup}"));
            let message = stderr(&output);
            assert!(message.contains("error: stdout: ") && message.contains(reason), "{args:?}: {message}");
        }
        assert_code(&run("|>/dev/null", args), 0, &format!("{args:?} to nowhere"));
        assert_code(&run("|<>/dev/null >&0", args), 0, &format!("{args:?} to nowhere, open for reading too"));
    }
    // Without a result nothing is missing.
    let (child, _lines, address) = start_below("|>&-", &[]);
    assert!(get(&address, "/health").starts_with("HTTP/1.1 200"));
    stop(child);
}

#[test]
fn files_that_cannot_be_written_are_errors_and_leave_nothing() {
    let llama = fixture("llama");
    let folder = TempDir::new().expect("a temporary folder can be made");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (gguf, page, saved) = (path("x.gguf"), path("x.html"), path("x.json"));
    let commands: [(&[&str], &str); 3] = [
        (&["quantize", &llama, &gguf, "--type", "q8_0"], &gguf),
        (&["check", &llama, "--export", &page], &page),
        (&["bench", &llama, "--prompt-tokens", "2", "--gen-tokens", "2", "--batch", "1", "--repetitions", "1"], &saved),
    ];
    for (args, file) in commands {
        let args: Vec<&str> = if file == saved { [args, &["--save", &saved]].concat() } else { args.to_vec() };
        let output = run("ulimit -f 0", &args);
        assert_code(&output, 3, &format!("{args:?}"));
        assert!(stderr(&output).contains(file), "{args:?}: {}", stderr(&output));
        assert_eq!(fs::read_dir(folder.path()).expect("it can be listed").count(), 0, "{args:?} leaves something");
    }
}

#[test]
fn verdicts_that_cannot_be_kept_or_read_are_measured_again() {
    let llama = fixture("llama");
    let args = ["run", &llama, "--ids", "1,2,3", "--max-tokens", "2"];
    let expected = stdout(&run("", &args));
    let folder = TempDir::new().expect("a temporary folder can be made");
    let cache = folder.path().display().to_string();
    let with_cache = |setup: &str, cache: &str| {
        let output = below(setup, &args).env("BRAIDINFER_CACHE", cache).output().expect("the shell starts");
        assert_code(&output, 0, cache);
        assert_eq!(stdout(&output), expected, "{cache}");
        stderr(&output)
    };
    for (setup, cache) in [("", "/proc/no/such/folder"), ("", "/dev/null/folder"), ("ulimit -f 0", &*cache)] {
        let notes = with_cache(setup, cache);
        assert!(notes.contains("the verdict could not be kept"), "{cache}: {notes}");
    }
    with_cache("", &cache);
    let kept: Vec<_> = walk(folder.path());
    assert!(!kept.is_empty());
    for garbage in [&b""[..], b"{", b"null", b"\xff\xfe\0", "[".repeat(100_000).as_bytes()] {
        kept.iter().for_each(|file| fs::write(file, garbage).expect("it can be written"));
        with_cache("", &cache);
    }
    // Where a file of verdicts should be is a folder.
    for file in &kept {
        fs::remove_file(file).expect("it is there");
        fs::create_dir(file).expect("a folder can be made");
    }
    with_cache("", &cache);
}

/// All files below `folder`.
fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).expect("it can be listed");
    let paths = entries.map(|entry| entry.expect("it can be listed").path());
    paths.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn a_model_that_goes_away_or_is_a_device_is_an_error() {
    for path in ["/dev/zero", "/dev/full", "/proc/self/mem", "/dev/null"] {
        assert_code(&run("", &["inspect", path]), 3, path);
    }
    let folder = Broken::copy_of("llama").remove("config.json");
    let config = folder.file("config.json");
    assert!(Command::new("mkfifo").arg(&config).status().expect("mkfifo is there").success());
    let path = folder.path().display().to_string();
    let output = run("", &["inspect", &path]);
    assert_code(&output, 3, "a pipe that nobody writes to");
    assert!(stderr(&output).contains("config.json"), "{}", stderr(&output));
}

/// A server that listens, and its address.
fn start_below(setup: &str, args: &[&str]) -> (Server, BufReader<ChildStderr>, String) {
    let args: Vec<&str> = ["serve", "--port", "0"].iter().chain(args).copied().collect();
    start_server(below(setup, &args))
}

/// Begins a streamed answer and reads its first lines, so that it is being written.
fn begin_answer(address: &str) -> (BufReader<TcpStream>, String) {
    let body = r#"{"prompt": "Once", "max_tokens": 150, "ignore_eos": true, "temperature": 0, "stream": true}"#;
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json";
    let mut answer = send(address, &format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    let beginning = line_with(&mut answer, "data: ");
    (answer, beginning)
}

/// The text of a streamed answer.
fn text_of(stream: &str) -> String {
    let events = stream.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<serde_json::Value> = events.filter_map(|event| serde_json::from_str(event).ok()).collect();
    events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect()
}

/// Ends a server as an operator does.
fn stop(server: Server) {
    signal(&server, "TERM");
    assert_eq!(code_of(server), Some(0));
}

#[test]
fn a_server_answers_while_nobody_reads_its_log() {
    for format in ["text", "json"] {
        let (server, mut lines, address) = start_below("", &["--log-format", format, "--shutdown-timeout", "1"]);
        // More than a pipe and the queue before it hold.
        for _ in 0..2_500 {
            assert!(get(&address, "/v1/models").starts_with("HTTP/1.1 200"));
        }
        // What was lost is told to who reads again.
        let (told, lost) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let line = line_with(&mut lines, "lines were lost");
            told.send(line).expect("the test waits");
            let mut rest = Vec::new();
            let _ = lines.read_to_end(&mut rest);
        });
        let line = lost.recv_timeout(PATIENCE).expect("lost lines are told");
        assert!(line.starts_with("note: "), "{line}");
        stop(server);
        reader.join().expect("the log is text");
    }
}

#[test]
fn a_server_ends_while_nobody_reads_its_log() {
    let (server, _lines, address) = start_below("", &[]);
    for _ in 0..1_000 {
        assert!(get(&address, "/v1/models").starts_with("HTTP/1.1 200"));
    }
    stop(server);
}

#[test]
fn a_server_serves_without_stderr() {
    for setup in ["|2>&-", "|2>/dev/full"] {
        let port = free_port();
        let args = ["serve", "--port", &port];
        let server = Server(below(setup, &args).spawn().expect("the shell starts"));
        let address = format!("127.0.0.1:{port}");
        let ready = || TcpStream::connect(&address).is_ok() && get(&address, "/ready").starts_with("HTTP/1.1 200");
        assert!(wait_until(ready), "{setup}: it is never ready");
        assert!(get(&address, "/v1/models").contains("demo"));
        stop(server);
    }
}

/// A port that nobody listens at; somebody may take it before the server does, which then ends.
fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").port().to_string()
}

#[test]
fn a_server_goes_on_after_it_ran_out_of_file_descriptors() {
    let (server, _lines, address) = start_below("ulimit -n 40", &["--log-format", "none"]);
    let connections: Vec<TcpStream> = (0..80).map(|_| connect(&address)).collect();
    drop(connections);
    assert!(get(&address, "/v1/models").contains("demo"));
    stop(server);
}

#[test]
fn an_answer_goes_on_after_the_server_was_stopped_for_a_while() {
    let (server, _lines, address) = start_below("", &["--log-format", "none"]);
    let (answer, beginning) = begin_answer(&address);
    let undisturbed = text_of(&(beginning + &rest(answer)));
    assert!(undisturbed.split_whitespace().count() > 20, "{undisturbed}");
    let (answer, beginning) = begin_answer(&address);
    signal(&server, "STOP");
    let stat = format!("/proc/{}/stat", server.0.id());
    let state = || fs::read_to_string(&stat).expect("it lives").rsplit(") ").next().map(|rest| rest.starts_with('T'));
    assert!(wait_until(|| state() == Some(true)), "it never stops");
    signal(&server, "CONT");
    assert_eq!(text_of(&(beginning + &rest(answer))), undisturbed);
    stop(server);
}

#[test]
fn a_server_ends_at_sigterm_in_each_state() {
    // While the model is being loaded.
    let mut child = below("", &["serve", "--port", "0"]).stderr(Stdio::piped()).spawn().expect("the shell starts");
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped"));
    line_with(&mut lines, "listening at http://");
    stop(Server(child));
    // With an answer that is being written, which is finished.
    let (server, _lines, address) = start_below("", &["--log-format", "none"]);
    let (answer, _) = begin_answer(&address);
    signal(&server, "TERM");
    assert!(rest(answer).contains("[DONE]"));
    assert_eq!(code_of(server), Some(0));
    // With a request that never arrives.
    let (server, _lines, address) = start_below("", &["--log-format", "none", "--shutdown-timeout", "1"]);
    let half = send(&address, "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{");
    stop(server);
    drop(half);
    // Twice: at once.
    let (server, _lines, address) = start_below("", &["--log-format", "none", "--shutdown-timeout", "600"]);
    let half = send(&address, "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{");
    signal(&server, "TERM");
    let refuses = || TcpStream::connect(&address).is_err();
    assert!(wait_until(refuses), "it listens for ever");
    signal(&server, "TERM");
    assert!(matches!(code_of(server), Some(0 | 130)));
    drop(half);
}

#[test]
fn numbers_that_mean_nothing_are_refused_by_name() {
    let llama = fixture("llama");
    let cases: [(&[&str], &str); 13] = [
        (&["serve", "--max-sequences", "0"], "'--max-sequences <N>': 0 is not in 1..="),
        (
            &["serve", "--max-sequences", "18446744073709551615"],
            "'--max-sequences <N>': 18446744073709551615 is not in 1..=",
        ),
        (
            &["serve", "--max-waiting", "18446744073709551615"],
            "'--max-waiting <N>': 18446744073709551615 is not in 0..=",
        ),
        (&["serve", "--kv-cache-tokens", "0"], "'--kv-cache-tokens <N>': 0 is not in 1..="),
        (&["serve", "--form-depth", "0"], "'--form-depth <LEVELS>': 0 is not in 1..="),
        (&["serve", "--port", "0", "--threads", "0"], "--threads: expected from 1 to"),
        (&["serve", "--port", "0", "--threads", "100000"], "--threads: expected from 1 to"),
        (&["serve", "--port", "0", "--context", "0"], "--context: expected from 1 to"),
        (&["diff", &llama, &llama, "--max-tokens", "0"], "--max-tokens: expected from 1 to"),
        (&["diff", &llama, &llama, "--max-tokens", "18446744073709551615"], "--max-tokens: expected from 1 to"),
        (&["perplexity", &llama, "--context", "18446744073709551615"], "--context: expected from 4 to"),
        (&["quantize", &llama, "/tmp/never.gguf", "--type", "q8_0", "--threads", "0"], "--threads: expected from 1 to"),
        (&["bench", &llama, "--threads", "100000"], "--threads: expected from 1 to"),
    ];
    for (args, message) in cases {
        let output = run("", args);
        assert_code(&output, 3, &format!("{args:?}"));
        assert!(stderr(&output).contains(message), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn what_the_prefix_cache_holds_is_published_where_it_is_asked_for() {
    let args = ["--kv-events", "127.0.0.1:0", "--no-prefix-cache"];
    let output = run("", &[&["serve", "--port", "0"][..], &args].concat());
    assert_code(&output, 3, "no prefix cache");
    assert!(stderr(&output).contains("kv-events"), "{}", stderr(&output));
    let output = run("", &["serve", "--port", "0", "--kv-events", "0.0.0.0:0"]);
    assert!(stderr(&output).contains("--public-without-key"), "{}", stderr(&output));
    let (server, _lines, address) = start_below("", &["--kv-events", "127.0.0.1:0"]);
    assert!(get(&address, "/health").starts_with("HTTP/1.1 200"));
    stop(server);
}
