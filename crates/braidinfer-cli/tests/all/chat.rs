//! `braidinfer chat` on a terminal.
#![cfg(unix)]

use rexpect::process::{Signal, WaitStatus};
use rexpect::session::{PtySession, spawn_command};
use std::process::Command;

const PATIENCE_MS: u64 = 60_000;

fn chat(args: &[&str]) -> PtySession {
    let mut command = Command::new(env!("CARGO_BIN_EXE_braidinfer"));
    // A dumb terminal keeps the line editor from drawing, so that what is read is what was written.
    command
        .arg("chat")
        .args(args)
        .env("TERM", "dumb")
        .env("BRAIDINFER_CONFIG", concat!(env!("CARGO_TARGET_TMPDIR"), "/chat"));
    let mut session = spawn_command(command, Some(PATIENCE_MS)).expect("the chat starts");
    session.exp_string("> ").expect("it asks for a line");
    session
}

fn say(session: &mut PtySession, line: &str) -> String {
    session.send_line(line).expect("the line is taken");
    session.exp_string("> ").expect("the answer ends and it asks again")
}

#[test]
fn a_request_is_answered_with_a_story_and_the_chat_goes_on() {
    let mut session = chat(&["--seed", "1"]);
    let story = say(&mut session, "Tell me a story about a fox.");
    assert!(story.matches("fox").count() > 1 && story.split_whitespace().count() > 30, "{story}");
    let thanks = say(&mut session, "Thank you!");
    assert!(!thanks.trim().is_empty());
    session.send_line("/exit").expect("the line is taken");
    session.exp_eof().expect("it leaves");
}

#[test]
fn commands_are_explained_and_limits_are_said() {
    let mut session = chat(&["--context", "40", "--seed", "1"]);
    assert!(say(&mut session, "/nonsense").contains("unknown command /nonsense; /help shows"));
    assert!(say(&mut session, "Tell me a story about a fox.").contains("the answer was cut at the token limit"));
    let refused = say(&mut session, "Tell me another one about a bear.");
    assert!(refused.contains("but the context holds 40") && refused.contains("/reset begins a new chat"), "{refused}");
    say(&mut session, "/reset");
    assert!(!say(&mut session, "Hello").trim().is_empty());
    session.send_control('d').expect("the key is taken");
    session.exp_eof().expect("it leaves");
}

#[test]
fn a_chat_is_set_counted_saved_and_gone_on_with() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("chat.json").display().to_string();
    let mut session = chat(&["-n", "12"]);
    assert!(say(&mut session, "/regen").contains("expected a message to answer"));
    assert!(say(&mut session, "/set temperature hot").contains("expected a number, found hot"));
    assert!(say(&mut session, "/set temperature -1").contains("at least 0"));
    assert!(say(&mut session, "/set colour red").contains("found `colour`"));
    say(&mut session, "/set temperature 0");
    say(&mut session, "/set seed 4");
    let values = say(&mut session, "/set");
    assert!(values.lines().any(|line| line.contains("temperature") && line.trim_end().ends_with(" 0")), "{values}");
    let empty = say(&mut session, "/tokens");
    assert!(empty.contains("0 tokens so far; the context has room for 512 more"), "{empty}");
    let answer = say(&mut session, "Tell me a story about a fox.");
    // Greedy answers are the same again, which is said.
    let again = say(&mut session, "/regen");
    assert!(again.contains("the answer will be the same"), "{again}");
    let story = answer.find("Once upon").and_then(|start| answer[start..].lines().next());
    assert!(story.is_some_and(|story| again.contains(story.trim_end())), "{again} without {story:?}");
    assert!(say(&mut session, "/regen now").contains("/regen: expected nothing after it, found `now`"));
    for parameter in ["seed", "stop"] {
        say(&mut session, &format!("/set {parameter} none"));
    }
    let values = say(&mut session, "/set");
    let is_none = |name: &str| values.lines().any(|line| line.contains(name) && line.trim_end().ends_with(" none"));
    assert!(is_none("seed") && is_none("stop"), "{values}");
    assert!(!say(&mut session, "/tokens").contains(" 0 tokens"));
    assert!(say(&mut session, "/thinking").contains("no reasoning"));
    assert!(say(&mut session, &format!("/save {path}")).contains("2 messages are in"));
    session.send_line("\"\"\"Tell me").expect("the line is taken");
    session.exp_string(". ").expect("it asks for more");
    let two_lines = say(&mut session, "a story.\"\"\"");
    assert!(!two_lines.trim().is_empty());
    // One's own file may be written again, and no other one.
    assert!(say(&mut session, &format!("/save {path}")).contains("4 messages are in"));
    let saved: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).expect("it is there")).expect("it is JSON");
    assert_eq!(saved["messages"][2]["content"], "Tell me\na story.");
    let other = folder.path().join("other.json").display().to_string();
    std::fs::write(&other, "mine").expect("it can be written");
    assert!(say(&mut session, &format!("/save {other}")).contains("exists"));
    assert!(say(&mut session, &format!("/load {other}")).contains("expected JSON"));
    say(&mut session, "/reset");
    assert!(say(&mut session, &format!("/load {path}")).contains("4 messages from"));
    assert!(say(&mut session, "/load").contains("expected a file"));
    say(&mut session, "Thank you!");
}

#[test]
fn what_was_typed_is_there_in_the_next_chat_unless_it_is_not_to_be() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let history = || std::fs::read_to_string(folder.path().join("chat_history")).unwrap_or_default();
    let start = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_braidinfer"));
        command
            .arg("chat")
            .args(args)
            .env("TERM", "xterm")
            .env("NO_COLOR", "1")
            .env("BRAIDINFER_CONFIG", folder.path());
        let mut session = spawn_command(command, Some(PATIENCE_MS)).expect("the chat starts");
        session.exp_string("Ctrl-D leaves").expect("it begins");
        session.exp_string("> ").expect("it asks for a line");
        session
    };
    let leave = |mut session: PtySession| {
        session.send_line("/exit").expect("the line is taken");
        session.exp_eof().expect("it leaves");
    };
    let mut session = start(&["-n", "3", "--no-history"]);
    session.send_line("/tokens").expect("the line is taken");
    session.exp_string("so far").expect("it counts");
    leave(session);
    assert_eq!(history(), "");
    // What is typed before it is asked for is not lost.
    let mut session = start(&["-n", "3"]);
    session.send("/set min_p 0.25\r/tokens\r").expect("the lines are taken");
    session.flush().expect("they are sent");
    session.exp_string("so far").expect("it counts");
    leave(session);
    assert!(history().contains("/set min_p 0.25"), "{}", history());
    // A message of several lines can be left.
    let mut session = start(&["-n", "3", "--no-history"]);
    session.send_line("\"\"\"Tell me").expect("the line is taken");
    session.exp_string(". ").expect("it asks for more");
    session.send_control('c').expect("the key is taken");
    session.exp_string("the message was dropped").expect("what was begun is left");
    session.exp_string("> ").expect("it asks for the next message");
    leave(session);
    // The key for the line before, three times: over the one that left and the one that counted.
    let mut session = start(&["-n", "3"]);
    session.send("\x1b[A\x1b[A\x1b[A\r").expect("the keys are taken");
    session.flush().expect("they are sent");
    session.exp_string("/set min_p 0.25").expect("it is there again");
    session.send_line("/set").expect("the line is taken");
    session.exp_string("0.25").expect("it was done");
    leave(session);
}

/// Other signals are for the program, and Ctrl-C is for the answer.
#[test]
fn ctrl_c_ends_an_answer_and_sigterm_the_chat() {
    let mut session = chat(&["--ignore-eos", "--max-tokens", "500", "--context", "4096", "--threads", "1"]);
    let begin = |session: &mut PtySession| {
        session.send_line("Tell me a story about a fox.").expect("the line is taken");
        session.exp_regex("[a-z]{3} ").expect("the answer begins");
    };
    begin(&mut session);
    session.send_control('c').expect("the key is taken");
    let rest = session.exp_string("> ").expect("it asks again");
    assert!(rest.split_whitespace().count() < 300, "{rest}");
    begin(&mut session);
    session.process_mut().signal(Signal::SIGTERM).expect("it is sent");
    session.exp_eof().expect("it leaves");
    let ended = session.process().wait().expect("it ends");
    assert!(matches!(ended, WaitStatus::Exited(_, 143)), "{ended:?}");
}

/// The demo model with another chat template, or none.
fn with_template(template: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
    for file in std::fs::read_dir(demo).expect("the model is there") {
        let file = file.expect("its files can be listed");
        std::fs::copy(file.path(), folder.path().join(file.file_name())).expect("and copied");
    }
    let config = folder.path().join("tokenizer_config.json");
    let text = std::fs::read_to_string(&config).expect("it can be read");
    let mut settings: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    settings.as_object_mut().expect("it is an object").remove("chat_template");
    std::fs::write(config, settings.to_string()).expect("it can be written");
    if let Some(template) = template {
        std::fs::write(folder.path().join("chat_template.jinja"), template).expect("it can be written");
    }
    folder
}

#[test]
fn a_model_without_a_template_continues_what_is_written() {
    let folder = with_template(None);
    let mut session = chat(&[&folder.path().display().to_string(), "--seed", "1", "-n", "30"]);
    let text = say(&mut session, "Once upon a time");
    assert!(text.split_whitespace().count() > 15, "{text}");
    assert!(!say(&mut session, "The next day").trim().is_empty());
}

#[test]
fn reasoning_stands_apart() {
    // The prompt says that the model thinks, and it never stops.
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}{# </think> #}";
    let folder = with_template(Some(template));
    let mut session = chat(&[&folder.path().display().to_string(), "--seed", "1", "-n", "30"]);
    let text = say(&mut session, "Once upon a time");
    assert!(text.contains("thinking: ") && !text.contains("think>"), "{text}");
}

#[test]
fn a_template_that_refuses_messages_ends_the_answer_only() {
    let template = "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ message.content }}{% endfor %}{# </think> #}";
    let folder = with_template(Some(template));
    let mut session = chat(&[&folder.path().display().to_string(), "--seed", "1", "-n", "5"]);
    say(&mut session, "/system be nice");
    assert!(say(&mut session, "Hello").contains("no system"));
    say(&mut session, "/system");
    assert!(!say(&mut session, "Hello").contains("no system"));
}
