//! The cache is the one that Python's `huggingface_hub` uses. Needs a Python that has it:
//!
//! ```sh
//! BRAIDINFER_PYTHON=python3 cargo test -p braidinfer-hub --test all python:: -- --ignored
//! ```

use std::env;
use std::path::Path;
use std::process::Command;

use crate::support::{self, FakeHub, NEEDED, REPO, commit, fetch, sharded};

/// Runs `script` with Python, on the cache and the server of `hub`, and gives back what it prints.
fn python(hub: &FakeHub, cache: &Path, script: &str) -> String {
    let interpreter = env::var_os("BRAIDINFER_PYTHON").expect("BRAIDINFER_PYTHON names a Python with huggingface_hub");
    let output = Command::new(interpreter)
        .args(["-c", script])
        .env("HF_HUB_CACHE", cache)
        .env("HF_HOME", cache.join("home"))
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_HUB_DISABLE_XET", "1")
        .output()
        .expect("Python starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

#[test]
#[ignore = "needs Python with huggingface_hub, named by BRAIDINFER_PYTHON"]
fn python_finds_what_we_fetched() {
    let hub = FakeHub::serving(sharded());
    let path = hub.fetch(REPO).0.expect("fetched");
    hub.requests();
    let script = "
from huggingface_hub import snapshot_download, try_to_load_from_cache, scan_cache_dir
print(snapshot_download('org/model', local_files_only=True))
print(*[bool(try_to_load_from_cache('org/model', f)) for f in ['config.json', 'tokenizer.json', 'pytorch_model.bin']])
info = scan_cache_dir()
print(info.warnings, [(r.repo_id, r.nb_files, sorted(r.refs)) for r in info.repos])";
    let expected = format!("{}\nTrue True False\n[] [('org/model', 6, ['main'])]", path.display());
    assert_eq!(python(&hub, hub.cache.path(), script), expected);
    assert!(hub.requests().is_empty());
    // With a network Python sees that nothing but the rest is missing.
    let script = "
from huggingface_hub import hf_hub_download
for f in ['config.json', 'model-00001-of-00002.safetensors']:
    hf_hub_download('org/model', f)";
    python(&hub, hub.cache.path(), script);
    let mut about_files = hub.requests();
    about_files.retain(|request| request.path.contains("/resolve/") || request.host == "cdn");
    assert!(about_files.len() == 2 && about_files.iter().all(|request| request.method == "HEAD"), "{about_files:?}");
}

#[test]
#[ignore = "needs Python with huggingface_hub, named by BRAIDINFER_PYTHON"]
fn we_find_what_python_fetched() {
    let hub = FakeHub::serving(sharded());
    let script = "
from huggingface_hub import snapshot_download
print(snapshot_download('org/model', allow_patterns=['*.json', 'model*.safetensors']))";
    let path = python(&hub, hub.cache.path(), script);
    hub.requests();
    assert_eq!(hub.fetch_offline(REPO).0.expect("cached").display().to_string(), path);
    let (again, log) = fetch(hub.settings(), REPO);
    assert_eq!(again.expect("cached").display().to_string(), path);
    assert!(log.notes.is_empty(), "{:?}", log.notes);
    assert_eq!(hub.requests().len(), 1);
    for name in NEEDED {
        let file = sharded().into_iter().find(|(other, _)| *other == name).expect("in the list").1;
        hub.assert_whole(&commit(1), name, &file);
    }
}

#[test]
#[ignore = "needs Python with huggingface_hub, named by BRAIDINFER_PYTHON"]
fn locks_keep_python_out() {
    let hub = FakeHub::serving(sharded());
    hub.fetch(REPO).0.expect("fetched");
    let etag = sharded().into_iter().find(|(name, _)| *name == "config.json").expect("in the list").1.etag();
    // Python takes our lock file as its own kind, and we wait for Python's lock.
    let script = format!(
        "
import os, sys, threading
from huggingface_hub.utils import WeakFileLock
path = os.path.join(os.environ['HF_HUB_CACHE'], '.locks', 'models--org--model', '{etag}.lock')
assert os.path.exists(path)
with WeakFileLock(path):
    print('locked', flush=True)
    sys.stdin.read()"
    );
    let interpreter = env::var_os("BRAIDINFER_PYTHON").expect("BRAIDINFER_PYTHON names a Python with huggingface_hub");
    let mut holder = Command::new(interpreter)
        .args(["-c", &script])
        .env("HF_HUB_CACHE", hub.cache.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("Python starts");
    let mut line = String::new();
    let stdout = holder.stdout.take().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a line");
    assert_eq!(line, "locked\n");
    let snapshot = hub.folder().join("snapshots").join(commit(1));
    std::fs::remove_file(snapshot.join("config.json")).expect("removed");
    let stdin = holder.stdin.take();
    let mut waiter = support::Log::default();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            let hub = braidinfer_hub::Hub::new(hub.settings()).expect("a hub");
            hub.fetch(&REPO.parse().expect("an id"), &mut Release { log: &mut waiter, stdin })
        });
        run.join().expect("no panic").expect("fetched");
    });
    assert!(waiter.has_note("waiting for another process"), "{:?}", waiter.notes);
    assert!(holder.wait().expect("ended").success());
}

/// Lets Python go as soon as we say that we wait for it.
struct Release<'a> {
    log: &'a mut support::Log,
    stdin: Option<std::process::ChildStdin>,
}

impl braidinfer_hub::Progress for Release<'_> {
    fn note(&mut self, text: &str) {
        self.log.note(text);
        self.stdin = None;
    }
}
