//! What `run` asks the model: a message in a chat, a conversation, or a text to complete.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use braidinfer::conversation::{AnswerFormat, ReasoningLimits};
use braidinfer::engine::ConstraintFactory;
use braidinfer::{AnswerForm, CancelFlag, FormLimits, Llm, Prompt, StructuredOutput};
use serde_json::{Map, Value, json};

use crate::args::{Ids, RunArgs};
use crate::commands::conversation::{self, Conversation};
use crate::{model, output};

/// What the command line says, before a model is there.
pub struct Asked {
    text: Option<String>,
    /// The argument, if it is a single word, which may have been meant for the name of a model.
    word: Option<String>,
    ids: Option<Vec<u32>>,
    /// Messages before the text.
    history: Vec<Message>,
    /// Tools that the conversation offers.
    tools: Option<Value>,
    is_raw: bool,
    /// Which of the flags for chats are given, for messages.
    chat_flag: Option<&'static str>,
    form: Option<AnswerForm>,
}

/// A message with the fields that chat templates use.
type Message = Map<String, Value>;

/// Longest word that is repeated in a message, in bytes.
const LONGEST_WORD: usize = 200;

/// What the model is given.
pub struct Request {
    pub prompt: Prompt,
    pub format: AnswerFormat,
    pub constraint: Option<ConstraintFactory>,
    /// The text that the answer goes on from, if it does.
    pub continued: Option<String>,
}

impl Asked {
    /// Reads the arguments, with `text` where it is one of them.
    pub fn read(args: &RunArgs, text: Option<String>) -> anyhow::Result<Self> {
        let is_word =
            |text: &String| !text.is_empty() && !text.contains(char::is_whitespace) && text.len() <= LONGEST_WORD;
        let word = text.clone().filter(is_word);
        let text = match (&args.ids, &args.chat, text) {
            (Some(_), _, Some(text)) => {
                bail!("--ids: expected one source of text, found the argument `{text}` beside it")
            }
            (Some(_), _, None) => None,
            (None, _, Some(text)) if args.file.is_none() => Some(text),
            // Who has a conversation need not say more.
            (None, Some(_), None) if args.file.is_none() => None,
            (None, _, text) => {
                let read = model::read_text(args.file.as_ref(), "a prompt")?;
                Some(match (text, args.raw) {
                    (None, true) => read,
                    (None, false) => without_last_newline(read),
                    // What is asked stands after what it is asked about.
                    (Some(text), true) => read + &text,
                    (Some(text), false) => without_last_newline(read) + "\n\n" + &text,
                })
            }
        };
        if text.as_deref() == Some("") && !args.raw {
            bail!("expected a prompt, found an empty text; --raw goes on from nothing");
        }
        let Conversation { messages: mut history, tools } =
            args.chat.as_deref().map(read_chat).transpose()?.unwrap_or_default();
        if text.is_none() && history.last().is_some_and(|last| last["role"] == "assistant") {
            bail!(
                "--chat: expected a PROMPT, or a message to answer at the end of the conversation, found an answer there"
            );
        }
        if let Some(system) = &args.system {
            if history.first().is_some_and(|first| first["role"] == "system") {
                bail!(
                    "--system: expected a conversation without a message of the system beside it, found one in --chat"
                );
            }
            history.insert(0, message("system", system));
        }
        let flags = [("--system", args.system.is_some()), ("--chat", args.chat.is_some())];
        Ok(Self {
            text,
            word,
            tools,
            ids: args.ids.as_ref().map(|Ids(ids)| ids.clone()),
            history,
            is_raw: args.raw,
            chat_flag: flags.iter().find(|(_, given)| *given).map(|(flag, _)| *flag),
            form: form(args)?,
        })
    }

    /// The argument, if it is a single word, which may have been meant for the name of a model.
    pub fn word(&self) -> Option<&str> {
        self.word.as_deref()
    }

    /// The request for a model. Says on stderr whether it is a chat.
    pub fn of(self, llm: &Llm) -> anyhow::Result<Request> {
        let template = llm.text().require_chat_template();
        let constraint = |format: &AnswerFormat| constraint(llm, self.form.as_ref(), format);
        let is_chat = match (&template, &self.ids, self.chat_flag) {
            (_, Some(_), _) => false,
            (Err(error), None, Some(flag)) => bail!("{flag}: {error}"),
            // One that is faulty is not one that is missing.
            (Err(error), None, None) if llm.text().has_faulty_chat_template() && !self.is_raw => {
                bail!("{error}; --chat-template takes another one, and --raw completes the text without one")
            }
            (Err(_), None, None) => {
                if !self.is_raw {
                    output::note("the model has no chat template: it completes the text");
                }
                false
            }
            (Ok(_), None, _) => !self.is_raw,
        };
        if !is_chat {
            let continued = self.text.clone();
            let prompt = self.ids.map(Prompt::Ids).or(self.text.map(Prompt::Text));
            let prompt = prompt.context("expected a prompt, found none")?;
            let format = AnswerFormat::default();
            return Ok(Request { prompt, constraint: constraint(&format)?, format, continued });
        }
        let messages: Vec<Message> =
            self.history.iter().cloned().chain(self.text.iter().map(|text| message("user", text))).collect();
        let variables = self.tools.map(|tools| Map::from_iter([("tools".to_owned(), tools)])).unwrap_or_default();
        let conversation = llm.text().conversation(&messages, &variables)?;
        match self.chat_flag {
            None => {
                output::note("the text is a message in a chat, by the model's template; --raw completes it instead")
            }
            Some(_) => note_lost_system(llm, &messages, &variables, &conversation.ids),
        }
        let format = conversation.format;
        let prompt = Prompt::Ids(conversation.ids);
        Ok(Request { prompt, constraint: constraint(&format)?, format, continued: None })
    }
}

fn message(role: &str, content: &str) -> Message {
    Map::from_iter([("role".to_owned(), json!(role)), ("content".to_owned(), json!(content))])
}

/// Says so where a template has no place for what the system says.
fn note_lost_system(llm: &Llm, messages: &[Message], variables: &Map<String, Value>, ids: &[u32]) {
    let others: Vec<Message> = messages.iter().filter(|message| message["role"] != "system").cloned().collect();
    let without = || llm.text().conversation(&others, variables).is_ok_and(|without| without.ids == ids);
    if others.len() < messages.len() && without() {
        output::note("the model's template has no place for a message of the system: it was left out");
    }
}

/// Programs end what they write with a newline, which is no part of a message.
fn without_last_newline(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

/// The form of the answer that is asked for.
fn form(args: &RunArgs) -> anyhow::Result<Option<AnswerForm>> {
    if let Some(given) = &args.json_schema {
        let text = given_or_in_file(given, |text| text.trim_start().starts_with('{')).context("--json-schema")?;
        let schema = serde_json::from_str(&text).context("--json-schema: expected JSON")?;
        return Ok(Some(AnswerForm::JsonSchema(schema)));
    }
    let Some(given) = &args.grammar else { return Ok(None) };
    // A grammar has rules, which paths do not look like.
    let is_grammar = |text: &str| text.trim_start().starts_with("start") && text.contains(':') || text.contains('\n');
    let grammar = given_or_in_file(given, is_grammar).context("--grammar")?;
    Ok(Some(AnswerForm::Lark(grammar)))
}

/// A text that stands on the command line, if it looks like one, or in the file that is named there.
fn given_or_in_file(given: &str, is_text: impl FnOnce(&str) -> bool) -> anyhow::Result<String> {
    match is_text(given) && File::open(given).is_err() {
        true => Ok(given.to_owned()),
        false => model::read_text_in(&PathBuf::from(given)),
    }
}

/// The constraint that holds an answer to its form, after its reasoning.
fn constraint(
    llm: &Llm,
    form: Option<&AnswerForm>,
    format: &AnswerFormat,
) -> anyhow::Result<Option<ConstraintFactory>> {
    let Some(form) = form else { return Ok(None) };
    let vocab_size = llm.spec().vocab_size;
    let structured = StructuredOutput::new(llm.text(), vocab_size, FormLimits::default())?;
    let field = if matches!(form, AnswerForm::JsonSchema(_)) { "json_schema" } else { "grammar" };
    let answer = structured.constraint(form, field, &CancelFlag::default())?;
    match format.reasoning {
        Some(reasoning) => {
            let limits = ReasoningLimits { most_tokens: None, answer: Some(answer) };
            Ok(limits.constraint(llm.text(), vocab_size, reasoning)?)
        }
        None => Ok(Some(answer)),
    }
}

fn read_chat(path: &Path) -> anyhow::Result<Conversation> {
    conversation::read(path).with_context(|| format!("--chat {}", path.display()))
}
