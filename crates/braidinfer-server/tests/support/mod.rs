//! A server with the demo model on a port of its own, and clients.
// Not every test file uses all of it.
#![allow(dead_code, unused_imports)]

#[path = "../../../braidinfer/tests/support/random_adapter.rs"]
pub mod random_adapter;
#[path = "../../../braidinfer/tests/support/waiting.rs"]
mod waiting;

pub mod scripted_model;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use braidinfer::model::ModelSource;
use braidinfer::{FormLimits, Llm, LoadOptions};
use braidinfer_server::{FormatChoice, ModelNames, OnDemand, ReasoningFields, Server, ServerConfig};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
pub use waiting::wait_until;

pub const MODEL: &str = "demo";

pub fn config() -> ServerConfig {
    ServerConfig {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        api_keys: Vec::new(),
        public_without_key: false,
        cors_origins: Vec::new(),
        tls: None,
        lenient: false,
        worker: None,
        max_body_bytes: 1 << 20,
        max_connections: 256,
        max_connections_per_client: 256,
        max_answer_bytes: 256 << 20,
        max_request_memory: 1 << 30,
        read_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(10),
        request_timeout: Duration::from_secs(120),
        form_limits: FormLimits::default(),
        reasoning_format: FormatChoice::Own,
        tool_call_format: None,
        thinking_budget: None,
        reasoning_fields: ReasoningFields::Both,
        model_names: ModelNames::default(),
        shutdown_timeout: Duration::from_secs(10),
    }
}

pub fn demo(options: &LoadOptions) -> Llm {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../braidinfer-cli/demo-model");
    Llm::open(&ModelSource::Directory(folder), options, &|_, _| {}).expect("the demo model opens")
}

/// The demo model with another chat template, in a folder that lives as long as the first of both.
pub fn demo_with_template(template: &str) -> (tempfile::TempDir, Llm) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let llm = demo_with_templates(&folder, &[("chat_template.jinja", template)], &LoadOptions::default());
    (folder, llm)
}

/// The demo model in a folder, with these files of chat templates.
pub fn demo_with_templates(folder: &tempfile::TempDir, templates: &[(&str, &str)], options: &LoadOptions) -> Llm {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../braidinfer-cli/demo-model");
    for file in std::fs::read_dir(source).expect("the demo model is there") {
        let file = file.expect("its files can be listed");
        std::fs::copy(file.path(), folder.path().join(file.file_name())).expect("and copied");
    }
    for (name, template) in templates {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("it is in the folder")).expect("folders can be made");
        std::fs::write(path, template).expect("and templates added");
    }
    let model = Llm::open(&ModelSource::Directory(folder.path().to_owned()), options, &|_, _| {});
    model.expect("the model opens")
}

/// A server that stops when it is dropped.
pub struct TestServer {
    pub address: SocketAddr,
    stop: Arc<Notify>,
    thread: Option<thread::JoinHandle<()>>,
}

/// How a server begins.
#[allow(clippy::large_enum_variant, reason = "there are a few of them, for a moment")]
pub enum Model {
    None,
    Demo(LoadOptions),
    Given(Box<Llm>),
    OnDemand(OnDemand),
}

impl TestServer {
    pub fn start(config: ServerConfig, model: Model) -> Self {
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = Runtime::new().expect("there are threads");
            runtime.block_on(async move {
                let server = Server::bind(config).await.expect("a port is free");
                let llm = match model {
                    Model::OnDemand(models) => {
                        assert!(server.serve_on_demand(models));
                        None
                    }
                    Model::None => None,
                    Model::Demo(options) => Some(demo(&options)),
                    Model::Given(llm) => Some(*llm),
                };
                if let Some(llm) = llm {
                    assert!(server.model_slot().serve(llm, MODEL.into()).expect("there is a thread for it"));
                }
                sender.send(server.address()).expect("the test waits");
                server.run(async move { stopped.notified().await }).await;
            });
            runtime.shutdown_background();
        });
        Self { address: receiver.recv().expect("the server begins"), stop, thread: Some(thread) }
    }

    /// One with the demo model and nothing special.
    pub fn plain() -> Self {
        Self::start(config(), Model::Demo(LoadOptions::default()))
    }

    /// One that several tests of a file share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<TestServer> = OnceLock::new();
        SHARED.get_or_init(Self::plain)
    }

    /// Begins to stop, as SIGTERM does.
    pub fn begin_to_stop(&self) {
        self.stop.notify_one();
    }

    /// Waits until it has stopped.
    pub fn wait(mut self) {
        self.thread.take().expect("it runs").join().expect("the server ends in order");
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.request("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], b"")
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        Connection::open(self.address).request(method, path, headers, body)
    }

    /// Waits until a metric is as it should be; `otherwise` says what is wrong if it never is.
    pub fn wait_for(&self, metric: &str, is_so: impl Fn(f64) -> bool, otherwise: &str) {
        assert!(wait_until(|| is_so(self.metric(metric))), "{otherwise}");
    }

    /// The sum of the values of a metric, whatever its labels.
    pub fn metric(&self, name: &str) -> f64 {
        metric(&self.get("/metrics").text, name)
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            // A test that failed should say why, and not that its server has, too.
            let _ = thread.join();
        }
    }
}

/// The sum of the values of a metric in a text of them, whatever its labels.
pub fn metric(text: &str, name: &str) -> f64 {
    let is_of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    let values: Vec<f64> = text.lines().filter(is_of).map(|line| value(line).expect("it has a value")).collect();
    assert!(!values.is_empty(), "no metric {name} in {text}");
    values.iter().sum()
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub text: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The parts of a stream, without the word that ends it.
    pub fn events(&self) -> Vec<Value> {
        let data: Vec<&str> = self.text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let (last, parts) = data.split_last().unwrap_or_else(|| panic!("no stream: {}", self.text));
        assert_eq!(*last, "[DONE]", "{}", self.text);
        parts.iter().map(|part| serde_json::from_str(part).expect("parts are JSON")).collect()
    }

    /// The parts of a stream whose events have names, with these.
    pub fn named_events(&self) -> Vec<(String, Value)> {
        let events = self.text.split("\n\n").filter(|event| event.contains("data: "));
        let field = |event: &str, name: &str| {
            let line = event.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name}in {event}")).to_owned()
        };
        let named = |event: &str| {
            let data = serde_json::from_str(&field(event, "data: ")).expect("parts are JSON");
            (field(event, "event: "), data)
        };
        events.map(named).collect()
    }

    /// The lines of a stream of JSON lines.
    pub fn lines(&self) -> Vec<Value> {
        self.text.lines().map(|line| serde_json::from_str(line).expect("lines are JSON")).collect()
    }

    /// What an error says.
    pub fn error(&self) -> (u16, Value) {
        (self.status, self.json()["error"].clone())
    }
}

/// A connection that speaks HTTP/1.1 by hand, so that it can also speak it badly.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        Self::of(TcpStream::connect(address).expect("the server listens"))
    }

    /// A connection from an address of its own, such as any of 127.0.0.0/8.
    #[cfg(target_os = "linux")]
    pub fn open_from(from: IpAddr, address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime starts");
        let stream = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind((from, 0).into())?;
            socket.connect(address).await?.into_std()
        });
        let stream = stream.expect("the server listens");
        stream.set_nonblocking(false).expect("it can wait");
        Self::of(stream)
    }

    fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout can be set");
        Self(BufReader::new(stream))
    }

    pub fn request(mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        head += &format!("content-length: {}\r\n\r\n", body.len());
        self.send(&[head.as_bytes(), body].concat());
        self.reply().expect("the server answers")
    }

    /// Sends bytes; whether they arrive is another matter.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.get_mut().write_all(bytes);
    }

    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        (self.0.read_line(&mut line).ok()? > 0).then_some(line)
    }

    /// The next answer, whole; `None` if the server ends the connection before it.
    pub fn reply(&mut self) -> Option<Reply> {
        let status = self.line()?.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut reply = Reply { status, headers, text: String::new() };
        let body = match (reply.header("content-length"), reply.header("transfer-encoding")) {
            (Some(length), _) => {
                let mut body = vec![0; length.parse().ok()?];
                self.0.read_exact(&mut body).ok()?;
                body
            }
            (None, Some(_)) => self.chunks()?,
            (None, None) => Vec::new(),
        };
        reply.text = String::from_utf8(body).expect("answers are text");
        Some(reply)
    }

    fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let length = usize::from_str_radix(self.line()?.trim(), 16).ok()?;
            let mut chunk = vec![0; length + 2];
            self.0.read_exact(&mut chunk).ok()?;
            if length == 0 {
                return Some(body);
            }
            body.extend_from_slice(&chunk[..length]);
        }
    }
}

/// A greedy completion of so many tokens.
pub fn greedy(prompt: &str, max_tokens: usize) -> Value {
    json!({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true})
}

/// A body with other fields in it.
pub fn with(mut body: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().expect("fields are an object") {
        body[name] = value.clone();
    }
    body
}

/// The parts of a streamed message, put together: content, reasoning and calls; and why it ended.
pub fn streamed_message(server: &TestServer, body: &Value) -> (Value, Value) {
    let reply = server.post("/v1/chat/completions", body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::<Value>::new());
    let mut reason = Value::Null;
    for event in reply.events() {
        let choice = &event["choices"][0];
        let delta = &choice["delta"];
        content += delta["content"].as_str().unwrap_or_default();
        reasoning += delta["reasoning_content"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().expect("calls are numbered") as usize;
            if index == calls.len() {
                calls.push(json!({"name": call["function"]["name"], "arguments": ""}));
            }
            let more = call["function"]["arguments"].as_str().unwrap_or_default();
            let whole = calls[index]["arguments"].as_str().unwrap_or_default().to_owned() + more;
            calls[index]["arguments"] = json!(whole);
        }
        if !choice["finish_reason"].is_null() {
            reason = choice["finish_reason"].clone();
        }
    }
    (json!({"content": content, "reasoning": reasoning, "calls": calls}), reason)
}
