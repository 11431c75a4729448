//! A fake server for the Hub and its CDN, with injected faults, and assertions on the cache.
// Not every test file uses all of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use braidinfer_hub::{Hub, Progress, Result, Retry, Settings, Timeouts, Token};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

pub const REPO: &str = "org/model";
pub const FOLDER: &str = "models--org--model";
pub const TOKEN: &str = "hf_secret";

/// A file of the repository. Large ones are served by the CDN.
#[derive(Clone)]
pub struct RepoFile {
    pub content: Vec<u8>,
    pub large: bool,
}

impl RepoFile {
    pub fn etag(&self) -> String {
        let mut context = Context::new(if self.large { &SHA256 } else { &SHA1_FOR_LEGACY_USE_ONLY });
        if !self.large {
            context.update(format!("blob {}\0", self.content.len()).as_bytes());
        }
        context.update(&self.content);
        context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// An injected fault of one response.
#[derive(Clone)]
pub enum Fault {
    /// Responds with this status and these headers, without a body.
    Status(u16, Vec<(&'static str, String)>),
    /// Closes the connection after so many bytes of the body.
    Cut(usize),
    /// Stops sending after so many bytes of the body, and keeps the connection open.
    Stall(usize),
    /// Closes the connection without a response.
    Silence,
    /// Sends the whole file, ignoring the requested range.
    IgnoreRange,
    /// Sends another range than requested.
    WrongRange,
    /// Sends another body, with its correct length.
    Body(Vec<u8>),
    /// Sends another body, ignoring the requested range, without `Content-Length`.
    Chunked(Vec<u8>),
    /// Replaces or adds these headers; an empty value removes one.
    Headers(Vec<(&'static str, String)>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `hub` or `cdn`.
    pub host: &'static str,
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

#[derive(Default)]
struct State {
    /// Files by commit.
    files: BTreeMap<String, BTreeMap<String, RepoFile>>,
    /// Commit by revision.
    revisions: BTreeMap<String, String>,
    /// Host and method, part of the path, remaining count, fault.
    faults: Vec<(String, String, usize, Fault)>,
    requests: Vec<Request>,
    token: Option<String>,
    cdn: String,
}

/// The fake server, on two ports of the loopback device: the Hub, and the CDN that it redirects to.
pub struct FakeHub {
    state: Arc<Mutex<State>>,
    pub endpoint: String,
    pub cache: tempfile::TempDir,
}

pub fn commit(number: u8) -> String {
    format!("{number:02x}").repeat(20)
}

pub fn small(text: &str) -> RepoFile {
    RepoFile { content: text.as_bytes().to_vec(), large: false }
}

/// A large file whose bytes do not repeat within a buffer.
pub fn large(seed: u32, size: usize) -> RepoFile {
    let mut value = seed.wrapping_mul(2_654_435_761).max(1);
    let byte = |_| {
        value ^= value << 13;
        value ^= value >> 17;
        value ^= value << 5;
        value as u8
    };
    RepoFile { content: (0..size).map(byte).collect(), large: true }
}

/// A model with two shards, and many files that are not required.
pub fn sharded() -> Vec<(&'static str, RepoFile)> {
    let index = r#"{"metadata":{},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    vec![
        (".gitattributes", small("x")),
        ("README.md", small("read me")),
        ("config.json", small(r#"{"model_type":"llama"}"#)),
        ("generation_config.json", small("{}")),
        ("model-00001-of-00002.safetensors", large(1, 700_000)),
        ("model-00002-of-00002.safetensors", large(2, 300_000)),
        ("model.safetensors.index.json", small(index)),
        ("onnx/model.onnx", large(3, 10)),
        ("original/params.json", small("{}")),
        ("other-00001-of-00001.safetensors", large(4, 10)),
        ("pytorch_model.bin", large(5, 10)),
        ("tokenizer.json", small("{\"version\":\"1.0\"}")),
        ("tokenizer.model", large(6, 10)),
    ]
}

/// The required files of [`sharded`].
pub const NEEDED: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
];

/// A minimal model.
pub fn single() -> Vec<(&'static str, RepoFile)> {
    vec![("config.json", small("{}")), ("model.safetensors", large(7, 1_000_000))]
}

pub const WEIGHTS: &str = "model.safetensors";

impl FakeHub {
    /// Serves `files` as the only commit, on `main`, without authentication.
    pub fn serving(files: Vec<(&str, RepoFile)>) -> Self {
        let (hub, cdn) = (listen(), listen());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("an address"));
        let endpoint = address(&hub);
        let state = Arc::new(Mutex::new(State { cdn: address(&cdn), ..State::default() }));
        for (listener, host) in [(hub, "hub"), (cdn, "cdn")] {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    thread::spawn(move || serve(&state, host, stream));
                }
            });
        }
        let fake = Self { state, endpoint, cache: tempfile::tempdir().expect("a folder") };
        fake.publish("main", &commit(1), files);
        fake
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test thread panicked with it")
    }

    /// Puts a commit on a branch.
    pub fn publish(&self, revision: &str, commit: &str, files: Vec<(&str, RepoFile)>) {
        let mut state = self.state();
        state.revisions.insert(revision.to_owned(), commit.to_owned());
        let files = files.into_iter().map(|(name, file)| (name.to_owned(), file)).collect();
        state.files.insert(commit.to_owned(), files);
    }

    pub fn require_token(&self) {
        self.state().token = Some(TOKEN.to_owned());
    }

    /// Makes the next `times` requests to `where_what`, such as `"hub GET"`, with `path` in their path fail.
    pub fn fail(&self, where_what: &str, path: &str, times: usize, fault: Fault) {
        self.state().faults.push((where_what.to_owned(), path.to_owned(), times, fault));
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    pub fn settings(&self) -> Settings {
        let mut settings = Settings::new(self.cache.path());
        settings.endpoint.clone_from(&self.endpoint);
        settings.retry =
            Retry { attempts: 4, first_delay: Duration::from_millis(1), longest_delay: Duration::from_secs(2) };
        settings.timeouts = Timeouts { connect: Duration::from_secs(5), stall: Duration::from_secs(20) };
        settings
    }

    pub fn settings_with_token(&self) -> Settings {
        Settings { token: Token::new("test", TOKEN).expect("a token"), ..self.settings() }
    }

    pub fn fetch(&self, id: &str) -> (Result<PathBuf>, Log) {
        fetch(self.settings(), id)
    }

    /// Fetches offline; the endpoint is unreachable as well.
    pub fn fetch_offline(&self, id: &str) -> (Result<PathBuf>, Log) {
        fetch(Settings { offline: true, endpoint: "http://127.0.0.1:1".into(), ..self.settings() }, id)
    }

    pub fn folder(&self) -> PathBuf {
        self.cache.path().join(FOLDER)
    }

    pub fn blob(&self, file: &RepoFile) -> PathBuf {
        self.folder().join("blobs").join(file.etag())
    }

    pub fn incomplete(&self, file: &RepoFile) -> PathBuf {
        self.folder().join("blobs").join(format!("{}.incomplete", file.etag()))
    }

    /// Writes a part of `file` as an interrupted download would leave it.
    pub fn leave_part(&self, file: &RepoFile, part: &[u8]) {
        fs::create_dir_all(self.folder().join("blobs")).expect("created");
        fs::write(self.incomplete(file), part).expect("written");
    }

    /// Asserts that nothing in the cache looks like a complete `file`, called `name`, nor like a complete model.
    pub fn assert_nothing_looks_whole(&self, name: &str, file: &RepoFile) {
        assert!(fs::symlink_metadata(self.blob(file)).is_err(), "there is a blob of {name}");
        let entry = self.folder().join("snapshots").join(commit(1)).join(name);
        assert!(fs::symlink_metadata(entry).is_err(), "{name} is in the snapshot");
        assert!(!self.folder().join("refs/main").exists(), "main is there");
        assert!(self.fetch_offline(REPO).0.is_err());
    }

    /// Asserts that the snapshot has `file` as a relative link to its blob, with the right bytes.
    pub fn assert_whole(&self, commit: &str, name: &str, file: &RepoFile) {
        let entry = self.folder().join("snapshots").join(commit).join(name);
        let up = "../".repeat(2 + name.matches('/').count());
        let target = fs::read_link(&entry).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(target, Path::new(&format!("{up}blobs/{}", file.etag())));
        assert!(fs::read(&entry).expect("readable") == file.content, "{name} has other contents");
        assert!(!self.incomplete(file).exists());
    }
}

pub fn fetch(settings: Settings, id: &str) -> (Result<PathBuf>, Log) {
    let mut log = Log::default();
    let result = Hub::new(settings).and_then(|hub| hub.fetch(&id.parse()?, &mut log));
    (result, log)
}

/// The recorded progress of a fetch.
#[derive(Default, Debug)]
pub struct Log {
    /// Name, size, bytes already present.
    pub started: Vec<(String, u64, u64)>,
    pub advanced: Vec<u64>,
    pub finished: Vec<String>,
    pub notes: Vec<String>,
}

impl Log {
    pub fn has_note(&self, text: &str) -> bool {
        self.notes.iter().any(|note| note.contains(text))
    }
}

impl Progress for Log {
    fn started(&mut self, file: &str, size: u64, present: u64) {
        self.started.push((file.to_owned(), size, present));
    }

    fn advanced(&mut self, present: u64) {
        self.advanced.push(present);
    }

    fn finished(&mut self, file: &str) {
        self.finished.push(file.to_owned());
    }

    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

/// A response before faults are applied.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16, headers: &[(&str, String)], body: Vec<u8>) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Self { status, headers, body }
    }

    fn set(&mut self, name: &str, value: String) {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        if !value.is_empty() {
            self.headers.push((name.to_owned(), value));
        }
    }
}

fn serve(state: &Mutex<State>, host: &'static str, mut stream: TcpStream) {
    let Some(request) = read_request(host, &stream) else { return };
    let (answer, fault) = {
        let mut state = state.lock().expect("no other thread panicked with it");
        state.requests.push(request.clone());
        let fault = take_fault(&mut state, &request);
        let range = request.range.clone().filter(|_| !matches!(fault, Some(Fault::IgnoreRange | Fault::Chunked(_))));
        (answer(&state, &Request { range, ..request.clone() }), fault)
    };
    let _ = send(&mut stream, &request, answer, fault);
}

fn read_request(host: &'static str, stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(|line| line.ok());
    let first = lines.next()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(':').map(|(k, v)| (k.to_lowercase(), v.trim().to_owned())))
        .collect();
    let get = |name: &str| headers.get(name).cloned();
    Some(Request { host, method, path, range: get("range"), token: get("authorization") })
}

fn take_fault(state: &mut State, request: &Request) -> Option<Fault> {
    let asked = format!("{} {}", request.host, request.method);
    let fits = |(what, path, times, _): &(String, String, usize, Fault)| {
        *times > 0 && *what == asked && request.path.contains(path)
    };
    let found = state.faults.iter_mut().find(|fault| fits(fault))?;
    found.2 = found.2.saturating_sub(1);
    Some(found.3.clone())
}

fn answer(state: &State, request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap_or_default();
    if request.host == "cdn" {
        let etag = path.trim_start_matches("/blob/");
        let file = state.files.values().flat_map(BTreeMap::values).find(|file| file.etag() == etag);
        return file
            .map_or_else(|| missing("EntryNotFound"), |file| content(file, request, &[("etag", "\"s3\"".into())]));
    }
    if state.token.as_ref().is_some_and(|token| request.token.as_deref() != Some(&format!("Bearer {token}"))) {
        // The Hub responds the same way whether a repository is missing or private.
        return Answer::new(
            401,
            &[("x-error-code", "RepoNotFound".into()), ("x-error-message", "Invalid username or password.".into())],
            Vec::new(),
        );
    }
    if let Some(revision) = path.strip_prefix(&format!("/api/models/{REPO}/revision/")) {
        let revision = revision.strip_suffix("?blobs=true").unwrap_or(revision);
        return listing(state, &revision.replace("%2F", "/"));
    }
    if let Some(revision) = path.strip_prefix(&format!("/api/models/{REPO}/tree/")) {
        return tree(state, revision);
    }
    match path.strip_prefix(&format!("/{REPO}/resolve/")).and_then(|rest| rest.split_once('/')) {
        Some((revision, name)) => resolve(state, request, revision, name),
        None => missing("RepoNotFound"),
    }
}

fn missing(code: &str) -> Answer {
    Answer::new(404, &[("x-error-code", code.to_owned())], Vec::new())
}

fn commit_of<'a>(state: &'a State, revision: &'a str) -> Option<(&'a str, &'a BTreeMap<String, RepoFile>)> {
    let commit = state.revisions.get(revision).map_or(revision, String::as_str);
    state.files.get(commit).map(|files| (commit, files))
}

fn listing(state: &State, revision: &str) -> Answer {
    let Some((commit, files)) = commit_of(state, revision) else { return missing("RevisionNotFound") };
    let siblings: Vec<_> =
        files.iter().map(|(name, file)| serde_json::json!({ "rfilename": name, "size": file.content.len() })).collect();
    let listing = serde_json::json!({ "id": REPO, "sha": commit, "siblings": siblings, "private": false });
    Answer::new(200, &[("content-type", "application/json".into())], listing.to_string().into_bytes())
}

/// The file listing that Python requests.
fn tree(state: &State, revision: &str) -> Answer {
    let Some((_, files)) = commit_of(state, revision) else { return missing("RevisionNotFound") };
    let entry = |(name, file): (&String, &RepoFile)| {
        let mut entry =
            serde_json::json!({ "type": "file", "path": name, "size": file.content.len(), "oid": file.etag() });
        if file.large {
            entry["lfs"] = serde_json::json!({ "oid": file.etag(), "size": file.content.len(), "pointerSize": 134 });
        }
        entry
    };
    let tree: Vec<_> = files.iter().map(entry).collect();
    let body = serde_json::Value::from(tree).to_string().into_bytes();
    Answer::new(200, &[("content-type", "application/json".into())], body)
}

fn resolve(state: &State, request: &Request, revision: &str, name: &str) -> Answer {
    let Some((commit, files)) = commit_of(state, revision) else { return missing("RevisionNotFound") };
    let Some(file) = files.get(name) else { return missing("EntryNotFound") };
    let (etag, size) = (file.etag(), file.content.len());
    if !file.large {
        return content(file, request, &[("etag", format!("\"{etag}\"")), ("x-repo-commit", commit.to_owned())]);
    }
    let headers = [
        ("x-repo-commit", commit.to_owned()),
        ("x-linked-etag", format!("\"{etag}\"")),
        ("x-linked-size", size.to_string()),
        ("location", format!("{}/blob/{etag}?signature=abc", state.cdn)),
    ];
    Answer::new(302, &headers, b"Found. Redirecting".to_vec())
}

fn content(file: &RepoFile, request: &Request, headers: &[(&str, String)]) -> Answer {
    let size = file.content.len();
    let from = request.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        None => Answer::new(200, headers, file.content.clone()),
        Some(from) if from < size => {
            let mut answer = Answer::new(206, headers, file.content[from..].to_vec());
            answer.set("content-range", format!("bytes {from}-{}/{size}", size - 1));
            answer
        }
        Some(_) => Answer::new(416, headers, Vec::new()),
    }
}

fn send(stream: &mut TcpStream, request: &Request, mut answer: Answer, fault: Option<Fault>) -> std::io::Result<()> {
    let mut sent = usize::MAX;
    let mut chunked = false;
    let mut stall = false;
    match fault {
        None | Some(Fault::IgnoreRange) => {}
        Some(Fault::Silence) => return Ok(()),
        Some(Fault::Status(status, headers)) => answer = Answer::new(status, &headers, Vec::new()),
        Some(Fault::Cut(bytes)) => sent = bytes,
        Some(Fault::Stall(bytes)) => (sent, stall) = (bytes, true),
        Some(Fault::WrongRange) => answer.set("content-range", "bytes 5-9/10".into()),
        Some(Fault::Body(body)) => answer.body = body,
        Some(Fault::Chunked(body)) => (answer.body, chunked) = (body, true),
        Some(Fault::Headers(headers)) => headers.into_iter().for_each(|(name, value)| answer.set(name, value)),
    }
    let length = answer.body.len();
    write!(stream, "HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status)?;
    for (name, value) in &answer.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    if chunked {
        write!(stream, "Transfer-Encoding: chunked\r\n\r\n")?;
        if request.method == "HEAD" {
            return Ok(());
        }
        write!(stream, "{length:x}\r\n")?;
        stream.write_all(&answer.body)?;
        return write!(stream, "\r\n0\r\n\r\n");
    }
    if !answer.headers.iter().any(|(name, _)| name == "content-length") {
        write!(stream, "Content-Length: {length}\r\n")?;
    }
    write!(stream, "\r\n")?;
    if request.method != "HEAD" {
        stream.write_all(&answer.body[..sent.min(length)])?;
    }
    if stall {
        // Wait until the client gives up.
        let _ = stream.read(&mut [0]);
    }
    Ok(())
}
