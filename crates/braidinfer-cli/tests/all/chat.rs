//! `braidinfer chat` on a terminal.
#![cfg(unix)]

use rexpect::process::{Signal, WaitStatus};
use rexpect::session::{PtySession, spawn_command};
use std::process::Command;

const PATIENCE_MS: u64 = 60_000;

fn chat(args: &[&str]) -> PtySession {
    let mut command = Command::new(env!("CARGO_BIN_EXE_braidinfer"));
    // A dumb terminal keeps the line editor from drawing, so that what is read is what was written.
    command.arg("chat").args(args).env("TERM", "dumb");
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
    assert!(say(&mut session, "/nonsense").contains("unknown command /nonsense; /reset forgets the chat"));
    assert!(say(&mut session, "Tell me a story about a fox.").contains("the answer was cut at the token limit"));
    let refused = say(&mut session, "Tell me another one about a bear.");
    assert!(refused.contains("but the context holds 40") && refused.contains("/reset begins a new chat"), "{refused}");
    say(&mut session, "/reset");
    assert!(!say(&mut session, "Hello").trim().is_empty());
    session.send_control('d').expect("the key is taken");
    session.exp_eof().expect("it leaves");
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
