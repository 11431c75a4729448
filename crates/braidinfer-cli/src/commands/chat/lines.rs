//! Where the messages of a chat come from: a person at a terminal, or a pipe.

use std::fs;
use std::io::{self, BufRead, Read, StdinLock};
use std::path::PathBuf;

use anyhow::{Context, bail};
use braidinfer::settings_folder;
use rustyline::error::ReadlineError;
use rustyline::{Cmd, Config, DefaultEditor, KeyCode, KeyEvent, Modifiers};

use crate::output;

/// Longest line of a pipe, in bytes.
const LONGEST_LINE: u64 = 64 << 20;
/// Lines that are remembered across chats.
const REMEMBERED: usize = 1000;
/// What begins and ends a message of several lines.
const QUOTES: &str = "\"\"\"";

/// Where messages come from.
pub enum Lines {
    Typed { editor: Box<DefaultEditor>, history: Option<PathBuf> },
    Piped(StdinLock<'static>),
}

/// What came of asking for a line.
enum Entry {
    Line(String),
    /// A person would rather not.
    Dropped,
    /// There is none any more.
    End,
}

impl Lines {
    /// A person's, with what was typed in earlier chats, unless `forgets`.
    pub fn typed(forgets: bool) -> anyhow::Result<Self> {
        let config = Config::builder().max_history_size(REMEMBERED)?.history_ignore_space(true).bracketed_paste(true);
        let mut editor = DefaultEditor::with_config(config.build())?;
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        let history = settings_folder().filter(|_| !forgets).map(|folder| folder.join("chat_history"));
        if let Some(path) = &history {
            let loaded =
                path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| match editor.load_history(path) {
                    Err(ReadlineError::Io(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                });
            if let Err(error) = loaded {
                output::note(format!("what is typed is not remembered: {}: {error}", path.display()));
                return Ok(Self::Typed { editor: Box::new(editor), history: None });
            }
        }
        Ok(Self::Typed { editor: Box::new(editor), history })
    }

    pub fn piped() -> Self {
        Self::Piped(io::stdin().lock())
    }

    /// The next message, without the end of its last line, empty if it was dropped; `None` at the end of all.
    pub fn next(&mut self) -> anyhow::Result<Option<String>> {
        let first = match self.line("> ", "")? {
            Entry::Line(first) => first,
            Entry::Dropped => return Ok(Some(String::new())),
            Entry::End => return Ok(None),
        };
        let Some(begun) = first.trim_start().strip_prefix(QUOTES) else {
            self.remember(&first);
            return Ok(Some(first));
        };
        let mut text = begun.to_owned();
        while !text.trim_end().ends_with(QUOTES) || text.trim_end().len() < QUOTES.len() {
            match self.line(". ", "")? {
                Entry::Line(line) => text = text + "\n" + &line,
                Entry::Dropped => {
                    output::note("the message was dropped");
                    return Ok(Some(String::new()));
                }
                Entry::End => {
                    bail!("expected {QUOTES} at the end of a message that begins with it, found the end of the input")
                }
            }
        }
        let text = text.trim_end().trim_end_matches(QUOTES).trim_matches('\n').to_owned();
        self.remember(&text);
        Ok(Some(text))
    }

    /// A text that a person changes; `None` if they would rather not, or where nobody is.
    pub fn edited(&mut self, text: &str) -> anyhow::Result<Option<String>> {
        match self.line("edit> ", text)? {
            Entry::Line(edited) => {
                self.remember(&edited);
                Ok(Some(edited))
            }
            Entry::Dropped | Entry::End => Ok(None),
        }
    }

    fn line(&mut self, prompt: &str, initial: &str) -> anyhow::Result<Entry> {
        match self {
            Self::Typed { editor, .. } => match editor.readline_with_initial(prompt, (initial, "")) {
                Ok(line) => Ok(Entry::Line(line)),
                // While a line is edited, Ctrl-C discards it and Ctrl-D ends the program.
                Err(ReadlineError::Interrupted) => Ok(Entry::Dropped),
                Err(ReadlineError::Eof) => Ok(Entry::End),
                Err(error) => Err(error.into()),
            },
            Self::Piped(_) if !initial.is_empty() => Ok(Entry::End),
            Self::Piped(input) => {
                let mut line = String::new();
                let length = input.take(LONGEST_LINE).read_line(&mut line).context("standard input")?;
                if length as u64 == LONGEST_LINE {
                    bail!("standard input: expected lines of at most {} MiB, found a longer one", LONGEST_LINE >> 20);
                }
                let text = line.strip_suffix('\n').unwrap_or(&line);
                let text = text.strip_suffix('\r').unwrap_or(text);
                Ok(if length > 0 { Entry::Line(text.to_owned()) } else { Entry::End })
            }
        }
    }

    /// Remembers what was typed, now and for later chats.
    fn remember(&mut self, text: &str) {
        let Self::Typed { editor, history } = self else { return };
        let Some(path) = history else {
            // In this chat alone.
            let _ = editor.add_history_entry(text);
            return;
        };
        let kept =
            editor.add_history_entry(text).and_then(|is_new| if is_new { editor.append_history(path) } else { Ok(()) });
        if let Err(error) = kept {
            output::note(format!("what is typed is not remembered: {}: {error}", path.display()));
            *history = None;
        }
    }
}
