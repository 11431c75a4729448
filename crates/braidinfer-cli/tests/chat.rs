//! `braidinfer chat` on a terminal.
#![cfg(unix)]

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
