//! Output to the user: results on stdout, everything else on stderr.
#![allow(clippy::print_stderr, reason = "the one place that writes to stderr")]

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use comfy_table::{LineStyle, TableStyle};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::wording;

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
    eprintln!("{} {}", label("error:", "31"), harmless(&line));
}

/// Prints a note on stderr.
pub fn note(note: impl Display) {
    eprintln!("{} {}", label("note:", "33"), harmless(&note.to_string()));
}

/// `text` without terminal control characters, since text from model files may contain any.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

fn label(text: &str, colour: &str) -> String {
    if colours(&io::stderr()) { format!("\x1b[1;{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

/// `text` dimmed, if stdout shows colours.
pub fn dim(text: &str) -> String {
    if colours(&io::stdout()) { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
}

/// Whether `stream` shows colours and the user wants them (<https://no-color.org>).
fn colours(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes to stdout at once.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("stdout")
}

/// Writes a line to stdout.
pub fn print_line(line: impl Display) -> anyhow::Result<()> {
    print(&format!("{line}\n"))
}

/// Writes `value` to stdout as one line of JSON.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print_line(serde_json::to_string(value)?)
}

/// Whether `error` is a broken pipe on stdout.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    error.chain().any(broken)
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
    bar.set_message(what.to_owned());
    bar
}

/// A bar on stderr for a file of `size` bytes, shown only on a terminal.
pub fn download_bar(file: &str, size: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.set_message(file.to_owned());
    bar
}

/// `bytes` with a unit.
pub fn size(bytes: usize) -> String {
    const UNITS: [&str; 4] = ["B", "kB", "MB", "GB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
