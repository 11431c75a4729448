//! What can be typed in a chat besides messages.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use braidinfer::SamplingParams;
use braidinfer::engine::PARAMETERS;
use braidinfer::text::ChatMessage;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde_json::json;

use super::Chat;
use super::lines::Lines;
use crate::commands::conversation;
use crate::output::{self, counted};

/// Each command with what it does.
const COMMANDS: &[(&str, &str)] = &[
    ("/reset", "forgets the chat"),
    ("/system TEXT", "begins a new chat with instructions; none without TEXT"),
    ("/regen", "answers the last message anew"),
    ("/edit", "changes the last message and answers it"),
    ("/set NAME VALUE", "changes a sampling parameter; shows them without NAME"),
    ("/tokens", "says how long the chat is"),
    ("/thinking", "shows how the model came to its last answer; with on or off, always or folded"),
    ("/save FILE", "writes the chat as JSON, for /load and `run --chat`"),
    ("/load FILE", "goes on with a chat from a file"),
    ("/help", "shows this"),
    ("/exit", "leaves"),
];

/// Commands without an argument.
const ALONE: [&str; 10] = ["/exit", "/quit", "/bye", "/help", "/?", "/reset", "/clear", "/regen", "/edit", "/tokens"];

/// In one line.
pub const HELP: &str =
    "/help shows commands, Alt-Enter or \"\"\" make messages of several lines, Ctrl-C ends an answer, Ctrl-D leaves";

/// What follows from a line.
pub enum Next {
    /// The next line.
    Line,
    /// The end of the chat.
    End,
}

impl Chat {
    /// Does what a command says. `None` if the line is none.
    pub fn command(&mut self, line: &str, lines: &mut Lines) -> anyhow::Result<Option<Next>> {
        let line = line.trim();
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        if ALONE.contains(&name) && !argument.is_empty() && self.is_typed {
            bail!("{name}: expected nothing after it, found `{argument}`");
        }
        match name {
            "/exit" | "/quit" | "/bye" => return Ok(Some(Next::End)),
            "/help" | "/?" => self.help()?,
            "/reset" | "/clear" => self.begin(),
            "/system" => {
                self.system = (!argument.is_empty()).then(|| argument.to_owned());
                self.begin();
            }
            "/regen" => self.answer_again()?,
            "/edit" => self.edit(lines)?,
            "/set" => self.set(argument)?,
            "/tokens" => self.count()?,
            "/thinking" => self.show_thinking(argument)?,
            "/save" => self.save(argument)?,
            "/load" => self.load(argument)?,
            command if command.starts_with('/') && self.is_typed => {
                bail!("unknown command {command}; {HELP}")
            }
            _ => return Ok(None),
        }
        Ok(Some(Next::Line))
    }

    fn help(&self) -> anyhow::Result<()> {
        let row = |(name, does): &(&str, &str)| ((*name).to_owned(), (*does).to_owned());
        self.tell(&table(COMMANDS.iter().map(row).collect()).to_string())?;
        self.tell(HELP)
    }

    /// Tells a person something. In a pipe only answers are written to stdout.
    fn tell(&self, text: &str) -> anyhow::Result<()> {
        if self.is_typed {
            return output::print_line(text);
        }
        text.lines().for_each(|line| output::note(line.trim_end()));
        Ok(())
    }

    fn answer_again(&mut self) -> anyhow::Result<()> {
        self.messages.pop_if(|last| last.role == "assistant");
        match self.messages.pop_if(|last| last.role == "user") {
            Some(message) => {
                let is_certain = self.params.temperature == 0.0 || self.params.seed.is_some();
                if is_certain && self.answered_with.as_ref() == Some(&self.params) {
                    output::note("the answer will be the same: `/set temperature 0.8` and no seed make it another one");
                }
                self.answer(message.content)
            }
            None => bail!("/regen: expected a message to answer, found none"),
        }
    }

    fn edit(&mut self, lines: &mut Lines) -> anyhow::Result<()> {
        let at = self.messages.iter().rposition(|message| message.role == "user");
        let Some(at) = at else { bail!("/edit: expected a message to change, found none") };
        let Some(changed) = lines.edited(&self.messages[at].content)?.filter(|text| !text.trim().is_empty()) else {
            output::note("nothing was changed");
            return Ok(());
        };
        self.messages.truncate(at);
        self.answer(changed)
    }

    fn set(&mut self, argument: &str) -> anyhow::Result<()> {
        let (name, value) = argument.split_once(char::is_whitespace).unwrap_or((argument, ""));
        if name.is_empty() {
            return self.tell(&table(shown(&self.params)).to_string());
        }
        let field = name.replace('-', "_");
        let known = PARAMETERS.iter().filter(|parameter| parameter.can_be_written() && parameter.name != "n");
        let Some(parameter) = known.clone().find(|parameter| parameter.name == field) else {
            let names: BTreeSet<&str> = known.map(|parameter| parameter.name).collect();
            bail!("/set: expected one of {}, found `{name}`", names.into_iter().collect::<Vec<_>>().join(", "))
        };
        let mut params = self.params.clone();
        parameter.write(&mut params, value.trim())?;
        params.validate()?;
        self.params = params;
        Ok(())
    }

    fn count(&self) -> anyhow::Result<()> {
        let tokens = if self.messages.is_empty() { 0 } else { self.llm.encode(&self.prompt()?.0)?.len() };
        let left = self.llm.context().saturating_sub(tokens);
        self.tell(&format!("{} so far; the context has room for {left} more", counted(tokens, "token")))
    }

    fn show_thinking(&mut self, argument: &str) -> anyhow::Result<()> {
        match argument {
            "on" => self.folds_thinking = false,
            "off" => self.folds_thinking = true,
            "" if self.thinking.is_empty() => output::note("the last answer has no reasoning that is told from it"),
            "" => {
                output::print_dim(self.thinking.trim())?;
                output::print("\n")?;
            }
            other => bail!("/thinking: expected nothing, on or off, found `{other}`"),
        }
        Ok(())
    }

    fn save(&mut self, argument: &str) -> anyhow::Result<()> {
        let path = path_in(argument, "/save")?;
        let message = |message: &ChatMessage| json!({"role": message.role, "content": message.content});
        let text =
            serde_json::to_string_pretty(&json!({"messages": self.messages.iter().map(message).collect::<Vec<_>>()}))?;
        let mut options = OpenOptions::new();
        // What others wrote is not lost by a typing error.
        match self.own_files.contains(&path) {
            true => options.write(true).truncate(true),
            false => options.write(true).create_new(true),
        };
        let mut file = options.open(&path).with_context(|| format!("/save {}", path.display()))?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.write_all(b"\n"))
            .with_context(|| path.display().to_string())?;
        output::note(format!("{} are in {}", counted(self.messages.len(), "message"), path.display()));
        self.own_files.insert(path);
        Ok(())
    }

    fn load(&mut self, argument: &str) -> anyhow::Result<()> {
        let path = path_in(argument, "/load")?;
        let read = conversation::read(&path).with_context(|| format!("/load {}", path.display()))?;
        if read.tools.is_some() {
            bail!("/load {}: expected a chat without tools, which cannot be called here", path.display());
        }
        let mut messages = Vec::with_capacity(read.messages.len());
        for (at, message) in read.messages.iter().enumerate() {
            let known =
                [message.get("role"), message.get("content")].map(|field| field.and_then(|field| field.as_str()));
            match known {
                [Some(role @ ("system" | "user" | "assistant")), Some(content)]
                    if !message.contains_key("tool_calls") =>
                {
                    messages.push(ChatMessage::new(role, content));
                }
                _ => bail!("/load {}: messages[{at}]: expected a text of system, user or assistant", path.display()),
            }
        }
        self.system = messages.first().filter(|first| first.role == "system").map(|first| first.content.clone());
        self.messages = messages;
        self.thinking.clear();
        if self.messages.last().is_some_and(|last| last.role == "user") {
            output::note("the last message has no answer; /regen answers it");
        }
        output::note(format!("{} from {}", counted(self.messages.len(), "message"), path.display()));
        self.own_files.insert(path);
        Ok(())
    }
}

fn path_in(argument: &str, command: &str) -> anyhow::Result<PathBuf> {
    match argument {
        "" => bail!("{command}: expected a file, found none"),
        path => Ok(Path::new(path).to_owned()),
    }
}

fn table(rows: Vec<(String, String)>) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    for (name, value) in rows {
        table.add_row([name, output::one_line(&value).into_owned()]);
    }
    table
}

/// Parameters with their values.
fn shown(params: &SamplingParams) -> Vec<(String, String)> {
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".into());
    let count = |value: Option<usize>| or_none(value.map(|value| value.to_string()));
    [
        ("temperature", params.temperature.to_string()),
        ("top_k", count(params.top_k)),
        ("top_p", params.top_p.to_string()),
        ("min_p", params.min_p.to_string()),
        ("repetition_penalty", params.repetition_penalty.to_string()),
        ("presence_penalty", params.presence_penalty.to_string()),
        ("frequency_penalty", params.frequency_penalty.to_string()),
        ("seed", or_none(params.seed.map(|seed| seed.to_string()))),
        ("max_tokens", count(params.max_tokens)),
        ("min_tokens", params.min_tokens.to_string()),
        ("stop", or_none((!params.stop.is_empty()).then(|| params.stop.join(", ")))),
        ("ignore_eos", params.ignore_eos.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}
