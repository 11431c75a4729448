//! Models of the Hub at the command line, from a server on this machine.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::fake_hub::{FakeHub, REPO, RepoFile, TOKEN};
use crate::support::{self, braidinfer, fixtures, model, stderr, stdout};

const PROMPT: [&str; 7] = ["--ids", "1,2,3", "--max-tokens", "4", "--temperature", "0", "--json"];

/// A repository with a model as safetensors and as GGUF, behind a token.
fn gated() -> FakeHub {
    let file = |path: &Path, large| RepoFile { content: fs::read(path).expect("the fixture exists"), large };
    let hub = FakeHub::serving(vec![
        ("config.json", file(&model("llama").join("config.json"), false)),
        ("model.safetensors", file(&model("llama").join("model.safetensors"), true)),
        ("tiny-BF16.gguf", file(&fixtures().join("gguf/models/llama.gguf"), true)),
        ("pytorch_model.bin", RepoFile { content: vec![0; 10], large: true }),
    ]);
    hub.require_token();
    hub
}

/// The binary with the environment of someone who uses this Hub.
fn command(hub: &FakeHub, args: &[&str]) -> Command {
    let mut command = braidinfer(args);
    command.env_remove("HF_HUB_OFFLINE").env("HF_HUB_CACHE", hub.cache.path()).env("HF_ENDPOINT", &hub.endpoint);
    command.env("HF_TOKEN", TOKEN).env("HF_HOME", hub.cache.path());
    command
}

fn succeeds(mut command: Command) -> Output {
    let output = command.output().expect("the binary starts");
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

fn ids(output: &Output) -> serde_json::Value {
    let answer: serde_json::Value = serde_json::from_str(&stdout(output)).expect("stdout is JSON");
    answer["ids"].clone()
}

#[test]
fn of_several_quantizations_one_that_fits_is_taken_and_said() {
    let file = |large| RepoFile {
        content: fs::read(fixtures().join("gguf/models/llama.gguf")).expect("the fixture exists"),
        large,
    };
    let names = ["m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"];
    let hub = FakeHub::serving(names.map(|name| (name, file(true))).to_vec());
    let pulled = succeeds(command(&hub, &["pull", REPO]));
    assert!(stdout(&pulled).trim().ends_with("m-Q4_K_M.gguf"), "{}", stdout(&pulled));
    let note = stderr(&pulled);
    assert!(note.contains("taking Q4_K_M") && note.contains("also Q2_K, Q8_0"), "{note}");
    // One that is asked for is taken, and one that was fetched stays the choice.
    let asked = succeeds(command(&hub, &["pull", &format!("{REPO}:q8_0")]));
    assert!(stdout(&asked).trim().ends_with("m-Q8_0.gguf"));
    let again = succeeds(command(&hub, &["pull", REPO]));
    assert!(stderr(&again).contains("which is in the cache"), "{}", stderr(&again));
}

#[test]
fn a_model_is_pulled_once_and_runs_without_a_network() {
    let hub = gated();
    let pulled = succeeds(command(&hub, &["pull", REPO]));
    let path = stdout(&pulled).trim().to_owned();
    assert!(Path::new(&path).join("model.safetensors").is_file(), "{path}");
    assert!(!Path::new(&path).join("pytorch_model.bin").exists(), "no run needs it");
    assert!(stderr(&pulled).contains("note: fetching model.safetensors, "), "{}", stderr(&pulled));
    let run = ["run", REPO].iter().chain(&PROMPT).copied().collect::<Vec<_>>();
    let online = succeeds(command(&hub, &run));
    let mut offline = command(&hub, &run);
    offline.env("HF_HUB_OFFLINE", "1").env("HF_ENDPOINT", "http://127.0.0.1:1");
    assert_eq!(ids(&online), ids(&succeeds(offline)));
    let mut unreachable = command(&hub, &run);
    unreachable.env("HF_ENDPOINT", "http://127.0.0.1:1");
    let unreachable = succeeds(unreachable);
    assert_eq!(ids(&online), ids(&unreachable));
    assert!(stderr(&unreachable).contains("from the cache as it is"), "{}", stderr(&unreachable));
    let local = model("llama").display().to_string();
    assert_eq!(ids(&online), ids(&support::output(["run", &local].iter().chain(&PROMPT))));
}

#[test]
fn a_gguf_file_is_picked_by_its_type_or_its_name() {
    let hub = gated();
    for id in [format!("{REPO}:bf16"), format!("{REPO}:tiny-BF16.gguf")] {
        let run = ["run", &id].into_iter().chain(PROMPT).collect::<Vec<_>>();
        succeeds(command(&hub, &run));
    }
    let missing = command(&hub, &["pull", &format!("{REPO}:Q4_K_M")]).output().expect("the binary starts");
    assert_eq!(missing.status.code(), Some(3));
    assert!(stderr(&missing).contains("BF16"), "{}", stderr(&missing));
    let file = hub.cache.path().join("small.gguf").display().to_string();
    let written = succeeds(command(&hub, &["quantize", REPO, &file, "--type", "q8_0"]));
    assert!(stdout(&written).contains("q8_0"), "{}", stdout(&written));
}

#[test]
fn a_gated_model_asks_for_a_token() {
    let hub = gated();
    let mut without = command(&hub, &["run", REPO, "--ids", "1"]);
    without.env_remove("HF_TOKEN");
    let output = without.output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("401") && stderr(&output).contains("HF_TOKEN"), "{}", stderr(&output));
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error() {
    let hub = gated();
    for cache in ["/proc/no/such/folder", "/dev/null/folder"] {
        let mut pull = command(&hub, &["pull", REPO]);
        let output = pull.env("HF_HUB_CACHE", cache).output().expect("the binary starts");
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(stderr(&output).contains(cache), "{}", stderr(&output));
    }
}
