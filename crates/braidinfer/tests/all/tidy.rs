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

/// No file of `folder` may contain any of `words`, but for those whose path is or begins with one of `except`; both from
/// `crates/` on.
fn check_absent(folder: &str, words: &[&str], except: &[&str]) {
    for (path, text) in sources(&crates().join(folder)) {
        let path = path.strip_prefix(crates()).expect("it was found there");
        if except.iter().any(|excepted| path.starts_with(excepted)) {
            continue;
        }
        for word in words {
            assert!(!text.contains(word), "crates/{} must not contain `{word}`", path.display());
        }
    }
}

/// The folder `src` of every crate of the workspace.
fn programs() -> Vec<String> {
    let entries = fs::read_dir(crates()).expect("the crates can be listed");
    let name =
        |entry: std::io::Result<fs::DirEntry>| entry.expect("and named").file_name().into_string().expect("UTF-8");
    entries.map(|entry| format!("{}/src", name(entry))).collect()
}

#[test]
fn the_executor_knows_neither_engine_nor_text() {
    check_absent("braidinfer/src/executor", &["crate::engine", "crate::text", "crate::llm"], &[]);
}

/// Waiting times and limits are measured with `Instant`, so that setting the clock of the machine does not change them. The date is
/// read only to show it, to notice that a file was written to, and to tell which of the kept files was not used for longest.
#[test]
fn only_dates_depend_on_the_clock() {
    let except = [
        "braidinfer-model/src/file.rs",
        "braidinfer-server/src/clock.rs",
        "braidinfer/src/packed_cache",
        "braidinfer/src/saved_prefixes",
    ];
    programs().iter().for_each(|folder| check_absent(folder, &["SystemTime"], &except));
}

/// Other code uses fused kernels through a `Decoder`.
#[test]
fn only_its_folder_names_the_fused_runner() {
    let except = ["braidinfer/src/executor/fused", "braidinfer/tests/all/tidy.rs"];
    check_absent("", &["FusedRunner", "FusedExecutor"], &except);
}

#[test]
fn the_engine_knows_neither_tensors_nor_text() {
    check_absent("braidinfer/src/engine", &["candle", "crate::text", "executor::standard"], &[]);
}

#[test]
fn no_code_after_the_registry_names_an_architecture() {
    let names: Vec<String> = REGISTRY.iter().map(|architecture| format!("\"{}\"", architecture.model_type)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let except = [
        "braidinfer-model/src/arch",
        // How models were taught to write is named after who taught them.
        "braidinfer/src/conversation",
        // llama.cpp calls some kinds of tokenizers as it calls architectures.
        "braidinfer/src/text/gguf.rs",
        "braidinfer/src/text/gguf/pre_tokenizer.rs",
    ];
    for folder in programs() {
        check_absent(&folder, &names, &except);
    }
}

#[test]
fn unsafe_has_one_address() {
    // `unsafe_code` is the lint, which the root manifest denies: to name it is to allow it. Tests and examples count too.
    let words = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe_code"];
    check_absent("", &words, &["braidinfer-kernels", "braidinfer/tests/all/tidy.rs"]);
}

/// A test that sleeps for a fixed time is slow on a fast machine and fails on a slow one.
#[test]
fn tests_wait_for_what_they_need() {
    let except = [
        // The one function that looks again and again, with a deadline.
        "braidinfer/tests/support/waiting.rs",
        // Between two attempts to reach the Hub, and while there is no room for another connection.
        "braidinfer-hub/src/http.rs",
        "braidinfer-server/src/http/listener.rs",
        // Looks for signals, which cannot be waited for on Windows.
        "braidinfer-cli/src/interrupt/windows.rs",
        // Has a function of this name, which waits for a notification.
        "braidinfer-kernels/src/pool.rs",
        // Measures how long it takes to wake a thread that has been asleep for a while.
        "braidinfer-kernels/examples/pool_overhead.rs",
        "braidinfer/tests/all/tidy.rs",
    ];
    check_absent("", &["::sleep", " sleep(", "sleep_ms(", "sleep_until(", "park_timeout("], &except);
}

/// What `.ci/clients` runs, by the same rule.
#[test]
fn clients_wait_for_what_they_need() {
    for (file, word, times) in [
        ("openai-client/drive.py", "sleep(", 1),
        ("web-page/drive.mjs", "waitForTimeout(", 0),
        ("../.ci/clients", "sleep ", 1),
    ] {
        let path = crates().join("../tools").join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(text.matches(word).count(), times, "{}: {word}", path.display());
    }
}

#[test]
fn only_the_choice_of_a_device_depends_on_the_build() {
    check_absent(
        "braidinfer/src",
        &["feature = \"cuda\"", "feature = \"metal\""],
        &["braidinfer/src/executor/device.rs"],
    );
}

/// What a file says outside comments and tests.
fn code(text: &str) -> String {
    let own = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    own.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// A flag of a command line that is spelled in some code.
fn flag(code: &str) -> Option<&str> {
    let mut after = code.match_indices("--").map(|(at, _)| code[at..].split(char::is_whitespace).next().unwrap_or(""));
    after.find(|word| word[2..].starts_with(|first: char| first.is_ascii_lowercase()))
}

/// A field that something is refused of under a name that is not in snake_case.
fn odd_field(code: &str) -> Option<&str> {
    let calls = code.split("bad_request(").skip(1);
    let mut fields = calls.filter_map(|call| call.trim_start().strip_prefix('"')?.split('"').next());
    fields.find(|field| !field.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_'))
}

#[test]
fn the_library_leaves_it_to_faces_to_spell_settings() {
    assert_eq!((flag("\"use --kernels auto\""), flag("a -- b one---2")), (Some("--kernels"), None));
    assert_eq!(odd_field("bad_request(name, 1) bad_request(\n  \"top-p\", 2)"), Some("top-p"));
    for folder in ["braidinfer/src", "braidinfer-model/src", "braidinfer-kernels/src"] {
        for (path, text) in sources(&crates().join(folder)) {
            let (path, code) = (path.display(), code(&text));
            assert_eq!(flag(&code), None, "{path}: a flag in a message: name the setting");
            assert_eq!(odd_field(&code), None, "{path}: a field whose name is not in snake_case");
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
