//! `braidinfer chat`.

mod commands;
mod lines;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::bail;
use braidinfer::conversation::AnswerFormat;
use braidinfer::text::ChatMessage;
use braidinfer::{FinishReason, GenerateRequest, Llm, Prompt, SamplingParams};

use self::commands::{HELP, Next};
use self::lines::Lines;
use super::printer::{AnswerPrinter, CUT};
use crate::args::ChatArgs;
use crate::{interrupt, model, output};

pub fn run(args: ChatArgs) -> anyhow::Result<()> {
    let is_typed = io::stdin().is_terminal();
    if is_typed && !io::stdout().is_terminal() {
        bail!("chat: expected a terminal for output beside one for input, found a file or pipe; use `braidinfer run`");
    }
    let adapter = model::only_adapter(&args.load)?;
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
    let mut chat = Chat {
        llm,
        adapter,
        params,
        answered_with: None,
        continues,
        system: args.system,
        messages: Vec::new(),
        is_typed,
        thinking: String::new(),
        folds_thinking: true,
        own_files: BTreeSet::new(),
    };
    chat.begin();
    if !is_typed {
        return chat.talk(&mut Lines::piped());
    }
    output::note(HELP);
    chat.talk(&mut Lines::typed(args.no_history)?)
}

/// Models that only continue texts seldom come to an end.
const CONTINUATION_TOKENS: usize = 200;

struct Chat {
    llm: Llm,
    /// Index of the adapter that answers are computed with.
    adapter: Option<u32>,
    params: SamplingParams,
    /// Those of the last answer.
    answered_with: Option<SamplingParams>,
    /// Whether the model only continues the text of the chat, because it has no template for one.
    continues: bool,
    /// System prompt at the beginning of every chat.
    system: Option<String>,
    messages: Vec<ChatMessage>,
    /// Whether a person writes at a terminal.
    is_typed: bool,
    /// The reasoning before the last answer.
    thinking: String,
    /// Whether reasoning is shown as one line that says how long it is.
    folds_thinking: bool,
    /// Files that were written or read in this chat, which may be written to again.
    own_files: BTreeSet<PathBuf>,
}

impl Chat {
    /// Starts a new chat, which keeps only the system prompt.
    fn begin(&mut self) {
        self.answered_with = None;
        self.messages = self.system.iter().map(|text| ChatMessage::new("system", text)).collect();
        self.thinking.clear();
    }

    fn talk(&mut self, lines: &mut Lines) -> anyhow::Result<()> {
        while let Some(line) = lines.next()? {
            let next = match line.trim() {
                "" => Ok(Some(Next::Line)),
                _ => self.command(&line, lines),
            };
            match next {
                Ok(Some(Next::End)) => return Ok(()),
                Ok(Some(Next::Line)) => {}
                Ok(None) => self.answer(line)?,
                Err(error) if !self.is_typed || output::is_broken_pipe(&error) => return Err(error),
                Err(error) => output::error(&error),
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
        let wanted = GenerateRequest {
            params: self.params.clone(),
            format,
            adapter: self.adapter,
            ..GenerateRequest::default()
        };
        let mut printed = Ok(());
        let mut printer = if self.folds_thinking { AnswerPrinter::folding() } else { AnswerPrinter::default() };
        let streaming = interrupt::Working::begin();
        let answered = self.llm.stream_request(&[prompt], &wanted, &mut |event| {
            printed = printer.print(&event);
            if interrupt::requested() || printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        drop(streaming);
        self.answered_with = Some(wanted.params);
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
                self.thinking.clone_from(&completion.reasoning);
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
