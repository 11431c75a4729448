//! `braidinfer chat`.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;

use anyhow::bail;
use braidinfer::text::ChatMessage;
use braidinfer::{FinishReason, Llm, Prompt, SamplingParams};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::args::ChatArgs;
use crate::{interrupt, model, output};

const HELP: &str = "/reset forgets the chat, /system TEXT begins a new one with instructions (none without TEXT), /exit leaves; Ctrl-C ends an answer";

pub fn run(args: ChatArgs) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        bail!("chat: expected a terminal for input and output, found a file or pipe; use `braidinfer run` in scripts");
    }
    let (llm, _) = model::open(args.model.as_deref(), &args.load)?;
    if let Err(error) = llm.text().require_chat_template() {
        bail!("chat: {error}; use `braidinfer run` to continue plain text, or --chat-template FILE");
    }
    let params = args.sampling.override_defaults(llm.default_sampling());
    params.validate()?;
    let mut chat = Chat { llm, params, system: args.system, messages: Vec::new() };
    chat.begin();
    output::note(HELP);
    chat.talk()
}

struct Chat {
    llm: Llm,
    params: SamplingParams,
    /// System prompt at the beginning of every chat.
    system: Option<String>,
    messages: Vec<ChatMessage>,
}

impl Chat {
    /// Starts a new chat, which keeps only the system prompt.
    fn begin(&mut self) {
        self.messages = self.system.iter().map(|text| ChatMessage::new("system", text)).collect();
    }

    fn talk(&mut self) -> anyhow::Result<()> {
        let mut editor = DefaultEditor::new()?;
        loop {
            let line = match editor.readline("> ") {
                Ok(line) => line,
                // While a line is edited, Ctrl-C discards it and Ctrl-D ends the program.
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            editor.add_history_entry(&line)?;
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
                command if command.starts_with('/') => output::note(format!("unknown command {command}; {HELP}")),
                _ => self.answer(line)?,
            }
        }
    }

    /// Answers one line. An error of the model ends the answer, not the chat.
    fn answer(&mut self, line: String) -> anyhow::Result<()> {
        self.messages.push(ChatMessage::new("user", line));
        let prompt = Prompt::Chat(self.messages.clone());
        let mut printed = Ok(());
        let streaming = interrupt::Working::begin();
        let answered = self.llm.stream(&[prompt], &self.params, &mut |event| {
            printed = output::print(event.text);
            if interrupt::requested() || printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        drop(streaming);
        interrupt::take();
        output::print("\n")?;
        printed?;
        match answered {
            Ok((completions, _)) => {
                let completion = &completions[0];
                if completion.finish_reason == FinishReason::Length {
                    output::note("the answer was cut at the token limit; see --max-tokens and --context");
                }
                self.messages.push(ChatMessage::new("assistant", completion.text.clone()));
            }
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
