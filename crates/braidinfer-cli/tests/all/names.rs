//! Models by their names, and aliases.

use std::fs;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{braidinfer, model, stderr, stdout};

/// A machine with a model in a folder, and nothing else.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(TempDir::new().expect("a folder can be made"));
        let folder = machine.path("models/tiny-one");
        fs::create_dir_all(&folder).expect("folders can be made");
        for file in fs::read_dir(model("llama")).expect("the fixture is there") {
            let file = file.expect("it can be listed");
            fs::copy(file.path(), format!("{folder}/{}", file.file_name().display())).expect("it can be copied");
        }
        machine
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn run(&self, args: &[&str]) -> Output {
        let nothing = self.path("nothing");
        let mut command = braidinfer(args);
        command.env("HOME", &nothing).env("HF_HUB_CACHE", &nothing).env("OLLAMA_MODELS", &nothing);
        command.env("BRAIDINFER_MODELS", self.path("models")).env("BRAIDINFER_CONFIG", self.path("config"));
        command.output().expect("the binary starts")
    }
}

const IDS: [&str; 5] = ["--ids", "1,2,3", "--max-tokens", "4", "--json"];

fn ids(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_str::<Value>(&stdout(output)).expect("it is JSON")["ids"].clone()
}

#[test]
fn models_are_listed_and_run_by_name_and_by_alias() {
    let machine = Machine::new();
    let listed = machine.run(&["list", "--json"]);
    let rows: Value = serde_json::from_str(&stdout(&listed)).expect("it is JSON");
    assert_eq!(
        (&rows[0]["name"], &rows[0]["place"], rows.as_array().map(Vec::len)),
        (&"tiny-one".into(), &"folder".into(), Some(1))
    );
    let by_path = ids(&machine.run(&[&["run", &machine.path("models/tiny-one")][..], &IDS].concat()));
    let by_name = machine.run(&[&["run", "Tiny-One"][..], &IDS].concat());
    assert!(
        stderr(&by_name).contains("tiny-one is ") && stderr(&by_name).contains("found in: folder"),
        "{}",
        stderr(&by_name)
    );
    assert_eq!(ids(&by_name), by_path);
    assert_eq!(stdout(&machine.run(&["alias"])), "no aliases\n");
    assert_eq!(stdout(&machine.run(&["alias", "t", "tiny-one"])), "t is tiny-one\n");
    let nowhere = machine.run(&["alias", "u", "./typo.gguf"]);
    assert!(nowhere.status.code() == Some(3) && stderr(&nowhere).contains("./typo.gguf"), "{}", stderr(&nowhere));
    // One of another alias is that of its model.
    assert_eq!(stdout(&machine.run(&["alias", "tt", "t"])), "tt is tiny-one\n");
    assert!(machine.run(&["alias", "--remove", "tt"]).status.success());
    assert_eq!(ids(&machine.run(&[&["run", "t"][..], &IDS].concat())), by_path);
    assert!(
        stdout(&machine.run(&["list"]))
            .lines()
            .any(|line| line.contains("tiny-one") && line.trim_end().ends_with(" t"))
    );
    assert!(machine.run(&["alias", "--remove", "t"]).status.success());
    let gone = machine.run(&["alias", "--remove", "t"]);
    assert!(
        gone.status.code() == Some(3) && stderr(&gone).contains("--remove t: expected a name"),
        "{}",
        stderr(&gone)
    );
    let odd = machine.run(&["alias", "a/b", "tiny-one"]);
    assert!(odd.status.code() == Some(3) && stderr(&odd).contains("`a/b`"), "{}", stderr(&odd));
    assert_eq!(machine.run(&["alias", "t"]).status.code(), Some(3));
}

#[test]
fn a_model_is_shown_and_removed_by_name() {
    let machine = Machine::new();
    let shown = machine.run(&["show", "tiny-one", "--json"]);
    let found: Value = serde_json::from_str(&stdout(&shown)).unwrap_or_else(|_| panic!("{}", stderr(&shown)));
    assert_eq!(
        (&found["name"], &found["model_type"], &found["place"]),
        (&"tiny-one".into(), &"llama".into(), &"folder".into())
    );
    assert!(found["parameters"].as_u64() > Some(1000) && found["context_length"].as_u64() > Some(1), "{found}");
    assert!(machine.run(&["alias", "t", "tiny-one"]).status.success());
    let table = stdout(&machine.run(&["show", "t"]));
    assert!(table.contains("tiny-one") && table.contains("llama") && table.contains("aliases"), "{table}");
    let unknown = machine.run(&["show", "org/name"]);
    assert!(unknown.status.code() == Some(3) && stderr(&unknown).contains("HF_HUB_OFFLINE"), "{}", stderr(&unknown));
    // Nobody can be asked here.
    let unasked = machine.run(&["remove", "tiny-one"]);
    let says = stderr(&unasked);
    assert!(unasked.status.code() == Some(3) && says.contains("--yes") && says.contains("model.safetensors"), "{says}");
    let alias = machine.run(&["remove", "t", "--yes"]);
    assert!(alias.status.code() == Some(3) && stderr(&alias).contains("an alias of tiny-one"), "{}", stderr(&alias));
    let removed = machine.run(&["remove", "tiny-one", "--yes"]);
    assert!(stdout(&removed).starts_with("deleted tiny-one, "), "{}", stderr(&removed));
    assert!(stderr(&removed).contains("the alias t stands for nothing now"), "{}", stderr(&removed));
    let left = stderr(&removed);
    assert!(left.contains("left where they are") && left.contains("expected.json"), "{left}");
    assert!(!std::path::Path::new(&machine.path("models/tiny-one/model.safetensors")).exists());
    let gone = machine.run(&["remove", "tiny-one", "--yes"]);
    assert!(gone.status.code() == Some(3) && stderr(&gone).contains("found none of this name"), "{}", stderr(&gone));
}

#[test]
fn unknown_names_are_not_taken_for_prompts_in_silence() {
    let machine = Machine::new();
    let word = machine.run(&["run", "tinyone", "--max-tokens", "1"]);
    assert!(
        stderr(&word).contains("no model is called `tinyone`: the built-in demo model answers it"),
        "{}",
        stderr(&word)
    );
    let refused = machine.run(&["run", "tinyone", "Hello"]);
    assert!(
        refused.status.code() == Some(3) && stderr(&refused).contains("did you mean tiny-one?"),
        "{}",
        stderr(&refused)
    );
    let refused = machine.run(&["inspect", "nothing-like-it"]);
    assert!(
        refused.status.code() == Some(3) && stderr(&refused).contains("`braidinfer list` shows"),
        "{}",
        stderr(&refused)
    );
    // Aliases that cannot be read stop what could be one, and nothing else.
    fs::create_dir_all(machine.path("config")).expect("folders can be made");
    fs::write(machine.path("config/aliases.json"), "[]").expect("files can be written");
    let damaged = machine.run(&["run", "tiny-one", "Hello"]);
    assert!(
        damaged.status.code() == Some(3) && stderr(&damaged).contains("aliases.json: expected an object"),
        "{}",
        stderr(&damaged)
    );
}
