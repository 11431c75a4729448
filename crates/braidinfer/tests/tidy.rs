//! The invariants of ARCHITECTURE.md that a look at the source can hold.

use std::fs;
use std::path::{Path, PathBuf};

use braidinfer::model::arch::REGISTRY;

fn crates() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every source file below `folder` with its text.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.expect("the folder can be listed").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("sources are UTF-8");
            files.push((path, text));
        }
    }
    files
}

/// No file of `folder` may contain any of `words`, but for those whose path ends with one of `except`.
fn check_absent(folder: &str, words: &[&str], except: &[&str]) {
    for (path, text) in sources(&crates().join(folder)) {
        if except.iter().any(|end| path.ends_with(end)) {
            continue;
        }
        for word in words {
            assert!(!text.contains(word), "{} must not contain `{word}`", path.display());
        }
    }
}

#[test]
fn the_executor_knows_neither_engine_nor_text() {
    check_absent("braidinfer/src/executor", &["crate::engine", "crate::text", "crate::llm"], &[]);
}

#[test]
fn the_engine_knows_neither_tensors_nor_text() {
    check_absent("braidinfer/src/engine", &["candle", "crate::text", "executor::standard"], &[]);
}

#[test]
fn no_code_after_the_registry_names_an_architecture() {
    let names: Vec<String> = REGISTRY.iter().map(|architecture| format!("\"{}\"", architecture.model_type)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // llama.cpp calls some kinds of tokenizers as it calls architectures.
    check_absent("braidinfer/src", &names, &["src/text/gguf.rs", "src/text/gguf/pre_tokenizer.rs"]);
    check_absent("braidinfer-cli/src", &names, &[]);
}

#[test]
fn unsafe_has_two_addresses() {
    for folder in ["braidinfer-model/src", "braidinfer-hub/src", "braidinfer/src", "braidinfer-cli/src"] {
        check_absent(folder, &["unsafe {", "unsafe fn", "allow(unsafe_code)"], &["mmap.rs"]);
    }
}

#[test]
fn only_the_choice_of_a_device_depends_on_the_build() {
    check_absent("braidinfer/src", &["feature = \"cuda\"", "feature = \"metal\""], &["executor/device.rs"]);
}

/// What a file says outside comments and tests.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let own = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    own.lines().filter(|line| !line.trim_start().starts_with("//"))
}

/// Whether a line spells a flag of a command line.
fn has_flag(line: &str) -> bool {
    let mut after = line.match_indices("--").map(|(at, dashes)| &line[at + dashes.len()..]);
    after.any(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase()))
}

/// The field that a line refuses something of by a name with other letters than `a` to `z` and `_`.
fn odd_field(line: &str) -> Option<&str> {
    let field = line.split_once("bad_request(\"")?.1.split('"').next()?;
    (!field.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_')).then_some(field)
}

#[test]
fn the_library_leaves_it_to_faces_to_spell_settings() {
    assert!(has_flag("\"use --kernels auto\"") && !has_flag("a -- b") && !has_flag("one---two"));
    assert_eq!(odd_field("Error::bad_request(\"top-p\", expected, 3)"), Some("top-p"));
    for folder in ["braidinfer/src", "braidinfer-model/src", "braidinfer-kernels/src"] {
        for (path, text) in sources(&crates().join(folder)) {
            for line in code(&text) {
                assert!(!has_flag(line), "{}: a flag in `{line}`: say the setting", path.display());
                let odd = odd_field(line);
                assert!(odd.is_none(), "{}: `{odd:?}` is no name in snake_case", path.display());
            }
        }
    }
}

#[test]
fn no_vague_module_names() {
    for (path, _) in sources(&crates()) {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        assert!(
            !["util", "utils", "common", "helper", "helpers", "manager"].contains(&stem.as_str()),
            "{}",
            path.display()
        );
    }
}
