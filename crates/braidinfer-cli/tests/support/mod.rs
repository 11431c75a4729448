//! Running the real binary on fixtures and on broken copies of them.

#[path = "../../../braidinfer/tests/support/random_adapter.rs"]
pub mod random_adapter;
#[path = "../../../braidinfer/tests/support/waiting.rs"]
mod waiting;

pub mod server;
pub mod vocabulary;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
pub use waiting::wait_until;

/// `tests/fixtures` of the repository.
pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

pub fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

/// Names of all fixture models.
pub fn models() -> Vec<String> {
    let entries = fs::read_dir(fixtures().join("models")).expect("the fixtures are in the repository");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("the folder can be listed").file_name();
    let mut names: Vec<String> = entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The `config.json` of a fixture model. Python writes `Infinity`, which JSON does not have: such values are `null` here.
pub fn config(name: &str) -> Value {
    let text = fs::read_to_string(model(name).join("config.json")).expect("every fixture has a config.json");
    serde_json::from_str(&text.replace("Infinity", "null")).expect("it is JSON")
}

/// The binary with `args`, without a terminal and without a network.
pub fn braidinfer<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_braidinfer"));
    command.args(args).stdin(Stdio::null()).env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", "/no/such/cache");
    command.env("BRAIDINFER_CACHE", env!("CARGO_TARGET_TMPDIR"));
    // What the machine has of models and aliases is none of the tests' business.
    for name in ["BRAIDINFER_CONFIG", "OLLAMA_MODELS", "BRAIDINFER_MODELS"] {
        command.env(name, concat!(env!("CARGO_TARGET_TMPDIR"), "/none"));
    }
    // Mesa's drivers complain where there is none.
    command.env("XDG_RUNTIME_DIR", env!("CARGO_TARGET_TMPDIR"));
    command
}

pub fn output<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    braidinfer(args).output().expect("the binary starts")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is UTF-8")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is UTF-8")
}

/// stdout of a run that must succeed.
pub fn succeed<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let output = output(args);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

pub fn succeed_json<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Value {
    serde_json::from_str(&succeed(args)).expect("stdout is JSON")
}

/// A run must fail with exit code 3, nothing on stdout, and one clear line on stderr that has all of `parts`.
pub fn refuse<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>, parts: &[&str]) {
    let output = output(args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(output.stdout.is_empty(), "stdout: {}", stdout(&output));
    let errors: Vec<&str> = message.lines().filter(|line| !line.starts_with("note: ")).collect();
    assert_eq!(errors.len(), 1, "one line expected: {message}");
    assert!(errors[0].starts_with("error: "), "{message}");
    for part in parts {
        assert!(errors[0].contains(part), "`{part}` is missing in: {message}");
    }
    assert!(!message.contains("backtrace") && !message.contains("panicked"), "{message}");
}

/// A copy of a fixture that may be broken.
pub struct Broken {
    dir: TempDir,
}

impl Broken {
    pub fn copy_of(name: &str) -> Self {
        let dir = TempDir::new().expect("a temporary folder can be made");
        for entry in fs::read_dir(model(name)).expect("the fixture exists") {
            let path = entry.expect("the folder can be listed").path();
            fs::copy(&path, dir.path().join(path.file_name().expect("files have names")))
                .expect("the file can be copied");
        }
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn remove(self, name: &str) -> Self {
        fs::remove_file(self.file(name)).expect("the file exists");
        self
    }

    pub fn write(self, name: &str, contents: impl AsRef<[u8]>) -> Self {
        fs::write(self.file(name), contents).expect("the file can be written");
        self
    }

    pub fn edit(self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = fs::read(self.file(name)).expect("the file exists");
        change(&mut bytes);
        self.write(name, bytes)
    }

    pub fn edit_json(self, name: &str, change: impl FnOnce(&mut Value)) -> Self {
        self.edit(name, |bytes| {
            let mut value = serde_json::from_slice(bytes).expect("the file is JSON");
            change(&mut value);
            *bytes = value.to_string().into_bytes();
        })
    }

    /// Changes the header of `model.safetensors`, keeping the data.
    pub fn edit_header(self, change: impl FnOnce(&mut Value)) -> Self {
        self.edit("model.safetensors", |bytes| {
            let len = u64::from_le_bytes(*bytes.first_chunk().expect("the file has a header")) as usize;
            let mut header = serde_json::from_slice(&bytes[8..8 + len]).expect("the header is JSON");
            change(&mut header);
            let header = header.to_string().into_bytes();
            let data = bytes.split_off(8 + len);
            *bytes = (header.len() as u64).to_le_bytes().into_iter().chain(header).chain(data).collect();
        })
    }

    /// `run` on this model with a three-token prompt.
    pub fn run_args(&self) -> Vec<String> {
        let path = self.path().display().to_string();
        ["run", &path, "--ids", "1,2,3", "--max-tokens", "2"].map(str::to_owned).to_vec()
    }

    pub fn refused(&self, parts: &[&str]) {
        refuse(self.run_args(), parts);
    }
}
