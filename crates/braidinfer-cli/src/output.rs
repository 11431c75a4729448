//! Output to the user: results on stdout, everything else at best effort on stderr.
//!
//! Files and models may contain any text. What steers a terminal (escape sequences, text that is shown in another order than
//! it is written) is shown escaped there; files and pipes get answers byte for byte.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};
use std::path::Path;

pub use braidinfer::size;
use comfy_table::{LineStyle, TableStyle};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::{stderr, stdout_at_start, wording};

/// Tables with a header: columns kept apart by spaces, one line below the header.
pub const TABLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Prints an error in one line, with each cause that is not already part of the message above it.
pub fn error(error: &anyhow::Error) {
    let mut line = String::new();
    let words = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref() {
        Some(error) => wording::error(error),
        None => cause.to_string(),
    };
    for cause in error.chain().map(words) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    stderr::write(format!("{} {}\n", label("error:", "31"), one_line(&line)));
}

/// Prints a note on stderr.
pub fn note(note: impl Display) {
    stderr::write(format!("{} {}\n", label("note:", "33"), one_line(&note.to_string())));
}

/// Prints a question on stderr, to be answered in the same line.
pub fn ask(question: &str) {
    stderr::write(one_line(question).into_owned());
}

/// `text` in one line that does not steer a terminal: names and paths, tables and notes.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c.is_control() || reorders(c))
}

/// `text` without what steers a terminal, but with its lines and tabs. Each character is judged by itself, so that nothing
/// depends on how an answer is cut into pieces.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| (c.is_control() && c != '\n' && c != '\t') || reorders(c))
}

/// Whether a character changes the order in which the others are shown.
fn reorders(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, hostile: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&hostile) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if hostile(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

fn label(text: &str, colour: &str) -> String {
    if colours(&io::stderr()) { format!("\x1b[1;{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Writes `text` dimmed, if stdout shows colours.
pub fn print_dim(text: &str) -> anyhow::Result<()> {
    if colours(&io::stdout()) { write(format!("\x1b[2m{}\x1b[0m", lines(text)).as_bytes()) } else { print(text) }
}

/// Whether a line on stdout can be written again.
pub fn can_rewrite() -> bool {
    colours(&io::stdout())
}

/// Writes `text` dimmed, in place of the line that was written before.
pub fn rewrite_dim(text: &str) -> anyhow::Result<()> {
    write(format!("\r\x1b[2m{}\x1b[0m\x1b[K", one_line(text)).as_bytes())
}

/// Whether `stream` shows colours and the user wants them (<https://no-color.org>).
fn colours(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes to stdout at once.
pub fn print(text: &str) -> anyhow::Result<()> {
    if io::stdout().is_terminal() { write(lines(text).as_bytes()) } else { write(text.as_bytes()) }
}

/// Writes a line to stdout.
pub fn print_line(line: impl Display) -> anyhow::Result<()> {
    print(&format!("{line}\n"))
}

/// Writes a path and the end of the line to stdout.
pub fn print_path(path: &Path) -> anyhow::Result<()> {
    if io::stdout().is_terminal() {
        return print_line(one_line(&path.display().to_string()));
    }
    write(&[path.as_os_str().as_encoded_bytes(), b"\n"].concat())
}

/// Results are not at best effort: what cannot be written is an error.
fn write(bytes: &[u8]) -> anyhow::Result<()> {
    if stdout_at_start::was_closed() {
        return Err(StdoutError(io::Error::other("expected it to be open, found it closed at the start")).into());
    }
    let mut stdout = io::stdout().lock();
    Ok(stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(StdoutError)?)
}

/// Why a result could not be written.
#[derive(Debug)]
struct StdoutError(io::Error);

impl Display for StdoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stdout: {}", self.0)
    }
}

impl std::error::Error for StdoutError {}

/// Prints help to stdout and usage errors to stderr.
pub fn usage(error: &clap::Error) -> anyhow::Result<()> {
    // An argument that is quoted may contain anything, which colours would hide from the look at the text.
    let steers = |argument: std::ffi::OsString| matches!(one_line(&argument.to_string_lossy()), Cow::Owned(_));
    let harmless = !std::env::args_os().any(steers);
    let styled = |text: &clap::builder::StyledStr, colours| {
        if colours && harmless { text.ansi().to_string() } else { lines(&text.to_string()).into_owned() }
    };
    let text = error.render();
    if error.use_stderr() {
        stderr::write(styled(&text, colours(&io::stderr())));
        return Ok(());
    }
    write(styled(&text, colours(&io::stdout())).as_bytes())
}

/// Writes `value` to stdout as one line of JSON.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print_line(serde_json::to_string(value)?)
}

/// Whether `error` is a broken pipe on stdout.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(|StdoutError(error)| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Whether stderr is a terminal, which shows progress bars.
pub fn shows_progress() -> bool {
    io::stderr().is_terminal()
}

/// A bar on stderr that counts `unit`, shown only on a terminal.
pub fn progress_bar(what: &str, unit: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(&format!("{{msg}} [{{bar:30}}] {{pos}}/{{len}} {unit} {{elapsed}}"));
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.set_message(one_line(what).into_owned());
    bar
}

/// A number of things, with their name in the right form.
pub fn counted(number: usize, name: &str) -> String {
    format!("{number} {name}{}", if number == 1 { "" } else { "s" })
}

/// A bar on stderr for a file of `size` bytes, shown only on a terminal.
pub fn download_bar(file: &str, size: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.set_message(one_line(file).into_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        let hostile = "a\x1b[2J\u{9b}31m\u{7f}\u{202e}\u{2066}\r\n\tb\0";
        let kept = "a\\u{1b}[2J\\u{9b}31m\\u{7f}\\u{202e}\\u{2066}\\r\n\tb\\u{0}";
        assert_eq!(lines(hostile), kept);
        assert_eq!(one_line(hostile), kept.replace('\n', "\\n").replace('\t', "\\t"));
        let harmless = "Größe \u{5d0}\u{200f} 中文 😀\n";
        assert_eq!(lines(harmless), harmless);
    }
}
