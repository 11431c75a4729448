//! `braidinfer chat`.

use std::io::{self, BufRead, IsTerminal, Read, StdinLock};
use std::ops::ControlFlow;

use anyhow::{Context, bail};
use braidinfer::conversation::AnswerFormat;
use braidinfer::text::ChatMessage;
use braidinfer::{FinishReason, GenerateRequest, Llm, Prompt, SamplingParams};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::printer::{AnswerPrinter, CUT};
use crate::args::ChatArgs;
use crate::{interrupt, model, output};

const HELP: &str = "/reset forgets the chat, /system TEXT begins a new one with instructions (none without TEXT), /exit leaves; Ctrl-C ends an answer";

pub fn run(args: ChatArgs) -> anyhow::Result<()> {
    let is_typed = io::stdin().is_terminal();
    if is_typed && !io::stdout().is_terminal() {
        bail!("chat: expected a terminal for output beside one for input, found a file or pipe; use `braidinfer run`");
    }
    let (llm, _) = model::open(args.model.as_deref(), &args.load)?;
    let continues = match llm.text().require_chat_template() {
        Ok(_) => false,
        // One that is faulty is not one that is missing.
        Err(error) if llm.text().has_faulty_chat_template() => {
            bail!("chat: {error}; --chat-template takes another one")
        }
        Err(_) => true,
    };
    let mut params = args.sampling.override_defaults(llm.default_sampling());
    if continues {
        llm.text().require_tokenizer()?;
        let most = params.max_tokens.get_or_insert(CONTINUATION_TOKENS);
        output::note(format!(
            "the model has no chat template: it continues the text that you write, by {most} tokens at a time (--max-tokens)"
        ));
    }
    params.validate()?;
    let mut chat = Chat { llm, params, continues, system: args.system, messages: Vec::new(), is_typed };
    chat.begin();
    if !is_typed {
        return chat.talk(&mut Lines::Piped(io::stdin().lock()));
    }
    output::note(HELP);
    chat.talk(&mut Lines::Typed(Box::new(DefaultEditor::new()?)))
}

/// Longest line of a pipe, in bytes.
const LONGEST_LINE: u64 = 64 << 20;

/// Where the lines of a chat come from.
enum Lines {
    Typed(Box<DefaultEditor>),
    Piped(StdinLock<'static>),
}

impl Lines {
    /// The next line, without its end; `None` at the end of all.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Typed(editor) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        editor.add_history_entry(&line)?;
                        return Ok(Some(line));
                    }
                    // While a line is edited, Ctrl-C discards it and Ctrl-D ends the program.
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            },
            Self::Piped(input) => {
                let mut line = String::new();
                let length = input.take(LONGEST_LINE).read_line(&mut line).context("standard input")?;
                if length as u64 == LONGEST_LINE {
                    bail!("standard input: expected lines of at most {} MiB, found a longer one", LONGEST_LINE >> 20);
                }
                let text = line.strip_suffix('\n').unwrap_or(&line);
                let text = text.strip_suffix('\r').unwrap_or(text);
                Ok((length > 0).then(|| text.to_owned()))
            }
        }
    }
}

/// Models that only continue texts seldom come to an end.
const CONTINUATION_TOKENS: usize = 200;

struct Chat {
    llm: Llm,
    params: SamplingParams,
    /// Whether the model only continues the text of the chat, because it has no template for one.
    continues: bool,
    /// System prompt at the beginning of every chat.
    system: Option<String>,
    messages: Vec<ChatMessage>,
    /// Whether a person writes at a terminal.
    is_typed: bool,
}

impl Chat {
    /// Starts a new chat, which keeps only the system prompt.
    fn begin(&mut self) {
        self.messages = self.system.iter().map(|text| ChatMessage::new("system", text)).collect();
    }

    fn talk(&mut self, lines: &mut Lines) -> anyhow::Result<()> {
        while let Some(line) = lines.next()? {
            match line.trim() {
                "" => {}
                "/exit" | "/quit" => return Ok(()),
                "/help" => output::note(HELP),
                "/reset" => self.begin(),
                command if command == "/system" || command.starts_with("/system ") => {
                    let text = command["/system".len()..].trim();
                    self.system = (!text.is_empty()).then(|| text.to_owned());
                    self.begin();
                }
                command if command.starts_with('/') && self.is_typed => {
                    output::note(format!("unknown command {command}; {HELP}"))
                }
                _ => self.answer(line)?,
            }
            if interrupt::requested() {
                break;
            }
        }
        Ok(())
    }

    /// The prompt for the next answer, and how that becomes text.
    fn prompt(&self) -> anyhow::Result<(Prompt, AnswerFormat)> {
        if !self.continues {
            return Ok((Prompt::Chat(self.messages.clone()), self.llm.text().chat_format(&self.messages)?));
        }
        let mut text = String::new();
        for message in &self.messages {
            // An answer goes on where the line ended.
            let gap = if text.is_empty() || message.role == "assistant" { "" } else { "\n" };
            text = text + gap + &message.content;
        }
        Ok((Prompt::Text(text), AnswerFormat::default()))
    }

    /// Answers one line. An error of the model ends the answer, not the chat.
    fn answer(&mut self, line: String) -> anyhow::Result<()> {
        self.messages.push(ChatMessage::new("user", line));
        let (prompt, format) = match self.prompt() {
            Ok(prompt) => prompt,
            // Where nobody can say something else, it ends the chat.
            Err(error) if !self.is_typed => return Err(error),
            Err(error) => {
                output::error(&error);
                self.messages.pop();
                return Ok(());
            }
        };
        let wanted = GenerateRequest { params: self.params.clone(), format, ..GenerateRequest::default() };
        let mut printed = Ok(());
        let mut printer = AnswerPrinter::default();
        let streaming = interrupt::Working::begin();
        let answered = self.llm.stream_request(&[prompt], &wanted, &mut |event| {
            printed = printer.print(&event);
            if interrupt::requested() || printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        drop(streaming);
        self.llm.take_notices().iter().for_each(output::note);
        // Where nobody writes, it ends the chat.
        if self.is_typed {
            interrupt::forget_ctrl_c();
        }
        output::print("\n")?;
        printed?;
        printer.note_hidden();
        match answered {
            Ok((completions, _)) => {
                let completion = &completions[0];
                if completion.finish_reason == FinishReason::Length {
                    output::note(CUT);
                }
                self.messages.push(ChatMessage::new("assistant", completion.text.clone()));
            }
            Err(error) if !self.is_typed => return Err(error.into()),
            Err(error) => {
                let too_long = matches!(error, braidinfer::Error::PromptTooLong { .. });
                output::error(&error.into());
                if too_long {
                    output::note("/reset begins a new chat");
                }
                self.messages.pop();
            }
        }
        Ok(())
    }
}
