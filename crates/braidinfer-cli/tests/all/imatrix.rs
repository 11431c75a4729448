//! `braidinfer imatrix`, and `braidinfer quantize --imatrix`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::server::{Server, WITH_SIGNALS, code_of, signal, started_by};
use crate::support::{braidinfer, refuse, stderr, succeed, wait_until};
use tempfile::TempDir;

/// The built-in model, which has a tokenizer.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo-model");

#[test]
fn what_is_made_from_a_text_is_used() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (text, imatrix, plain, weighted) = (path("t.txt"), path("i.gguf"), path("plain.gguf"), path("weighted.gguf"));
    fs::write(&text, "The fish looked out of the well and saw the sun. ".repeat(30)).expect("the text can be written");
    let line = succeed(["imatrix", DEMO, &text, "--out", &imatrix, "--chunk", "32", "--chunks", "3"]);
    assert!(line.starts_with(&format!("{imatrix}: ")) && line.contains("28 tensors, 3 chunks of 32 tokens"), "{line}");
    succeed(["quantize", DEMO, &plain, "--type", "q4_0"]);
    let output = braidinfer(["quantize", DEMO, &weighted, "--type", "q4_0", "--imatrix", &imatrix]).output();
    let output = output.expect("the binary starts");
    assert!(output.status.success() && !stderr(&output).contains("importance"), "{}", stderr(&output));
    assert!(fs::read(&plain).expect("it is there") != fs::read(&weighted).expect("it is there"));

    let again = ["imatrix", DEMO, &text, "--out", &imatrix];
    refuse(again, &["i.gguf: expected no file of this name"]);
    refuse([&again[..], &["--force", "--chunk", "0"]].concat(), &["--chunk: expected from 1 to"]);
    refuse([&again[..], &["--force", "--chunks", "0"]].concat(), &["--chunks: expected at least 1, found 0"]);
    refuse(
        [&again[..], &["--force", "--chunk", "510"]].concat(),
        &["t.txt: expected at least one chunk of 510 tokens, found ", "; see --chunk"],
    );
    refuse(["imatrix", DEMO, &text, "--out", "sums.dat"], &["expected a name that ends in .gguf"]);
    let quantize = |imatrix: &str, words: &[&str]| {
        refuse(["quantize", DEMO, &plain, "--force", "--type", "q4_0", "--imatrix", imatrix], words);
    };
    quantize(&text, &["t.txt: expected an importance matrix, with the name of a tensor"]);
    quantize(
        &plain,
        &["plain.gguf: field `general.type`: expected `imatrix`, for an importance matrix, found `model`"],
    );
    quantize(&path("none.gguf"), &["none.gguf: "]);
    let itself = ["quantize", DEMO, &imatrix, "--force", "--type", "q4_0", "--imatrix", &imatrix];
    refuse(itself, &["expected another file than it is made from"]);
    refuse(["imatrix", &plain, &text, "--out", &plain, "--force"], &["expected another file than it is made from"]);
    refuse(["run", &imatrix, "Hi"], &["an importance matrix, which is used to quantize a model"]);
}

#[test]
fn texts_that_are_too_short_or_never_end_are_refused_by_name() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let text = |words: &str| {
        let path = folder.path().join("t.txt");
        fs::write(&path, words).expect("the text can be written");
        path.display().to_string()
    };
    let out = folder.path().join("i.gguf").display().to_string();
    let imatrix = |text: &str, words: &[&str]| refuse(["imatrix", DEMO, text, "--out", &out], words);
    imatrix(&text(""), &["t.txt: expected a text, found an empty file"]);
    imatrix(&text("Once"), &["t.txt: expected at least one chunk of 512 tokens, found ", "; see --chunk"]);
    let zeros = ["/dev/zero: expected a text of at most 256 MiB, found a longer one, or one that never ends"];
    if cfg!(target_os = "linux") {
        imatrix("/dev/zero", &zeros);
        refuse(["run", "--file", "/dev/zero"], &zeros);
    }
    assert!(!Path::new(&out).exists());
}

#[cfg(unix)]
#[test]
fn a_text_may_come_through_a_pipe() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let text = folder.path().join("t.txt");
    fs::write(&text, "The fish looked out of the well. ".repeat(10)).expect("the text can be written");
    let out = folder.path().join("i.gguf");
    let plain = braidinfer(["imatrix", DEMO, "/dev/stdin", "--chunk", "16", "--out"]);
    let mut piped = Command::new("sh");
    piped.args(["-c", "text=$1; shift; cat \"$text\" | \"$0\" \"$@\""]).arg(plain.get_program()).arg(&text);
    let output = piped.args(plain.get_args()).arg(&out).output().expect("there is a shell");
    assert!(output.status.success() && out.exists(), "{}", stderr(&output));
}

#[test]
fn a_file_that_cannot_be_made_is_named_as_it_was_given() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let text = folder.path().join("t.txt");
    fs::write(&text, "The fish looked out of the well. ").expect("the text can be written");
    let text = text.display().to_string();
    let out = folder.path().join("none/x.gguf").display().to_string();
    for args in [
        vec!["imatrix", DEMO, &text, "--out", &out],
        vec!["quantize", DEMO, &out, "--type", "q4_0"],
        vec!["validate", DEMO, "--export", &out.replace(".gguf", ".txt")],
        vec!["bench", DEMO, "--save", &out],
    ] {
        let output = braidinfer(&args).output().expect("the binary starts");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {said}");
        assert!(said.contains("none/x.") && said.contains("No such file or directory"), "{args:?}: {said}");
        assert!(!said.contains(" at path "), "{args:?}: the name of a temporary file: {said}");
    }
}

/// `braidinfer imatrix` at work on a text that takes it a while, started by another program.
#[cfg(target_os = "linux")]
fn at_work(by: &[&str], folder: &Path) -> Server {
    let text = folder.join("t.txt");
    fs::write(&text, "The fish looked out of the well and saw the sun. ".repeat(6000)).expect("it can be written");
    let mut plain = braidinfer(["imatrix", DEMO, "--chunk", "32", "--threads", "1", "--out"]);
    plain.arg(folder.join("i.gguf")).arg(&text);
    let child = started_by(by, &plain).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let server = Server(child.expect("the program starts"));
    assert!(wait_until(|| partial_files(folder) == 1), "it never begins to write");
    server
}

#[cfg(target_os = "linux")]
fn partial_files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).expect("it can be listed");
    entries
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().extension() == Some("partial".as_ref())))
        .count()
}

#[cfg(target_os = "linux")]
#[test]
fn no_signal_that_ends_it_leaves_an_unfinished_file() {
    for (name, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let folder = TempDir::new().expect("a temporary folder can be made");
        let process = at_work(WITH_SIGNALS, folder.path());
        signal(&process, name);
        assert_eq!(code_of(process), Some(code), "{name}");
        assert_eq!((partial_files(folder.path()), folder.path().join("i.gguf").exists()), (0, false), "{name}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_was_started_to_outlive_its_terminal_does() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let process = at_work(&["nohup"], folder.path());
    signal(&process, "HUP");
    signal(&process, "TERM");
    assert_eq!(code_of(process), Some(143));
    assert_eq!(partial_files(folder.path()), 0, "SIGTERM was the first that it heeded");
}
