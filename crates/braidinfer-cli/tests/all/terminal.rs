//! What a terminal is shown of names and texts that steer terminals.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{self, braidinfer, model};
use rexpect::session::spawn_command;
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE_MS: u64 = 60_000;

/// Clears the screen, sets the title, uses the one-byte form of such sequences, and reverses what follows.
const HOSTILE: &str = "evil\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{202e}\u{2066}";

/// What a terminal is sent on stdout, or on stderr beside it.
fn on_terminal(args: &[&str], with_stderr: bool) -> String {
    let plain = braidinfer(args);
    let mut command = Command::new("sh");
    let elsewhere = if with_stderr { "" } else { "2>/dev/null" };
    command.arg("-c").arg(format!("stty cols 400; exec \"$0\" \"$@\" {elsewhere}")).arg(plain.get_program()).args(args);
    for (name, value) in plain.get_envs() {
        command.env(name, value.expect("the environment of tests sets variables"));
    }
    command.env("NO_COLOR", "1");
    sent_by(command)
}

fn sent_by(command: Command) -> String {
    let sent = spawn_command(command, Some(PATIENCE_MS)).expect("it starts").exp_eof().expect("it ends");
    // Each byte is a character there.
    let bytes = sent.chars().map(|c| u8::try_from(c).expect("bytes are read")).collect();
    String::from_utf8(bytes).expect("the program writes UTF-8")
}

fn steers(c: char) -> bool {
    // The terminal itself makes `\r\n` of every line's end.
    let layout = matches!(c, '\n' | '\r' | '\t');
    (c.is_control() && !layout) || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[track_caller]
fn shown_escaped(sent: &str) {
    assert!(!sent.contains(steers), "{sent:?}");
    assert!(sent.contains("\\u{"), "the text is not there: {sent:?}");
}

/// The built-in model with the byte that begins escape sequences in the place of the token for ` the`.
fn hostile_model() -> TempDir {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
    for entry in fs::read_dir(own).expect("the model is in the repository") {
        let path = entry.expect("it can be listed").path();
        let copy = folder.path().join(path.file_name().expect("files have names"));
        fs::copy(&path, &copy).expect("it can be copied");
        if copy.ends_with("tokenizer.json") {
            let text = fs::read(&copy).expect("it was copied");
            let mut tokenizer: Value = serde_json::from_slice(&text).expect("it is JSON");
            let vocab = tokenizer["model"]["vocab"].as_object_mut().expect("it has a vocabulary");
            // Byte 27 is spelled so in the alphabet of byte-level tokenizers.
            let (the, escape) = (vocab["\u{120}the"].clone(), vocab["\u{11b}"].clone());
            vocab.insert("\u{120}the".into(), escape);
            vocab.insert("\u{11b}".into(), the);
            fs::write(&copy, tokenizer.to_string()).expect("it can be written");
        }
    }
    folder
}

#[test]
fn answers_are_escaped_on_terminals_and_raw_in_pipes() {
    let folder = hostile_model();
    let path = folder.path().display().to_string();
    let args = ["run", &path, "--ids", "1,2,3", "--max-tokens", "80", "--ignore-eos", "--temperature", "0"];
    let piped = support::succeed(args);
    assert!(piped.contains('\u{1b}'), "the answer is harmless: {piped:?}");
    let sent = on_terminal(&args, false);
    assert!(!sent.contains(steers), "{sent:?}");
    assert_eq!(sent.replace("\r\n", "\n"), piped.replace('\u{1b}', "\\u{1b}"));
}

#[test]
fn prompts_are_escaped_when_they_are_repeated() {
    shown_escaped(&on_terminal(&["run", "--raw", HOSTILE, "--max-tokens", "2"], false));
}

#[test]
fn names_are_escaped_in_every_command() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let evil = folder.path().join(HOSTILE);
    fs::create_dir(&evil).expect("file systems take such names");
    for entry in fs::read_dir(model("llama")).expect("the fixture is there") {
        let path = entry.expect("it can be listed").path();
        fs::copy(&path, evil.join(path.file_name().expect("files have names"))).expect("it can be copied");
    }
    let evil = evil.display().to_string();
    let gguf = format!("{evil}/{HOSTILE}.gguf");
    let bench = ["bench", &evil, "--prompt-tokens", "2", "--gen-tokens", "2", "--batch", "1", "--repetitions", "1"];
    let commands: [&[&str]; 7] = [
        &["inspect", &evil],
        &["quantize", &evil, &gguf, "--type", "q8_0"],
        &["check", &evil, "--static"],
        &["validate", &evil],
        &["compare", &evil],
        &["diff", &evil, &evil, "--ids", "1,2", "--max-tokens", "2"],
        &bench,
    ];
    for args in commands {
        shown_escaped(&on_terminal(args, false));
    }
    // Errors name them, too.
    let missing = format!("{evil}/missing");
    let commands: [&[&str]; 4] = [
        &["inspect", &missing],
        &["run", &missing, "Once"],
        &["tokenize", &missing, "Once"],
        &["serve", "--port", "0", &missing],
    ];
    for args in commands {
        shown_escaped(&on_terminal(args, true));
    }
}

#[test]
fn wrong_arguments_are_escaped_with_colours_too() {
    for args in [&["run", &format!("--{HOSTILE}")][..], &[HOSTILE]] {
        shown_escaped(&on_terminal(args, true));
        let mut command = Command::new(env!("CARGO_BIN_EXE_braidinfer"));
        command.args(args).env("TERM", "xterm").env_remove("NO_COLOR");
        let sent = sent_by(command);
        assert!(!sent.contains("\u{1b}[2J") && !sent.contains('\u{7}'), "{sent:?}");
    }
}
