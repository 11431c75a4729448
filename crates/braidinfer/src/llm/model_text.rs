//! The text side of a model (tokenizer, chat template, generation settings), which threads can share without the engine.

use std::mem;

use braidinfer_model::GenerationConfig;
use serde_json::{Map, Value as Json};

use super::Prompt;
use crate::containment::WorkerProgram;
use crate::conversation::{AnswerFormat, Reasoning, ReasoningFormat, ShownTokens};
use crate::loading::{LoadOptions, ModelParts};
use crate::text::{ChatMessage, ChatTemplate, Tokenizer};
use crate::{Error, Result};

/// What was found where a model's chat template could be.
#[derive(Debug)]
pub(crate) enum FoundTemplate {
    None,
    Usable(Box<ChatTemplate>),
    /// One that cannot be used.
    Faulty {
        path: String,
        message: String,
    },
}

impl FoundTemplate {
    pub(crate) fn usable(&self) -> Option<&ChatTemplate> {
        match self {
            Self::Usable(template) => Some(template),
            Self::None | Self::Faulty { .. } => None,
        }
    }

    /// Why it cannot be used.
    pub(crate) fn fault(&self) -> Option<Error> {
        match self {
            Self::Faulty { path, message } => Some(Error::Text { path: path.clone(), message: message.clone() }),
            Self::None | Self::Usable(_) => None,
        }
    }
}

/// The prompt of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationPrompt {
    /// As the chat template writes it.
    pub text: String,
    /// As token ids.
    pub ids: Vec<u32>,
    /// How its answer becomes text.
    pub format: AnswerFormat,
}

/// How the answer to a `prompt` becomes text: by the marks of reasoning in the chat template, if there are any. `without_answer`
/// is the same conversation up to where its answer begins.
fn answer_format(
    template: &ChatTemplate,
    prompt: &str,
    without_answer: impl FnOnce() -> Option<String>,
) -> AnswerFormat {
    let Some(format) = ReasoningFormat::of(template) else { return AnswerFormat::default() };
    let start = format.start_of_answer(prompt, without_answer);
    let marks = format.marks().into_iter().map(str::to_owned).collect();
    AnswerFormat {
        reasoning: Some(Reasoning { format, start, is_off: false }),
        special_tokens: ShownTokens::Marks(marks),
    }
}

/// A model's tokenizer, chat template and generation settings.
#[derive(Debug)]
pub struct ModelText {
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) chat_template: FoundTemplate,
    pub(super) generation: GenerationConfig,
    pub(super) label: String,
    /// What the model has instead of a tokenizer.
    pub(super) other_tokenizer: Option<String>,
    /// Worker processes for untrusted input, if the model was opened with them.
    pub(super) worker: Option<WorkerProgram>,
}

impl ModelText {
    /// That of a model whose files were read.
    pub(super) fn take_from(parts: &mut ModelParts, options: &LoadOptions) -> Self {
        Self {
            tokenizer: parts.tokenizer.take(),
            chat_template: mem::replace(&mut parts.chat_template, FoundTemplate::None),
            generation: parts.generation.clone(),
            label: parts.label.clone(),
            other_tokenizer: parts.other_tokenizer.take(),
            worker: options.worker.clone(),
        }
    }

    /// The tokenizer, if the model has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The tokenizer, or an error that says what is missing.
    pub fn require_tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let other = self.other_tokenizer.as_ref().map_or_else(String::new, |other| format!(", found {other}"));
            Error::Unsupported(format!(
                "{}: the model has no tokenizer (expected `tokenizer.json` or `tokenizer.model`{other}); give token ids instead of text",
                self.label
            ))
        })
    }

    /// The chat template, if the model has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.usable()
    }

    /// The chat template, or an error that says what is missing or wrong.
    pub fn require_chat_template(&self) -> Result<&ChatTemplate> {
        let missing = || Error::Unsupported(format!("{}: the model has no chat template", self.label));
        self.chat_template.usable().ok_or_else(|| self.chat_template.fault().unwrap_or_else(missing))
    }

    /// Whether the model has a chat template that cannot be used.
    pub fn has_faulty_chat_template(&self) -> bool {
        self.chat_template.fault().is_some()
    }

    /// How the answer to a chat becomes text: by the marks of reasoning in the chat template, if there are any.
    pub fn chat_format(&self, messages: &[ChatMessage]) -> Result<AnswerFormat> {
        let template = self.require_chat_template()?;
        let prompt = template.render(messages, true)?;
        Ok(answer_format(template, &prompt, || template.render(messages, false).ok()))
    }

    /// The prompt of a conversation as clients send it: messages with any fields, and variables for the template, such as
    /// `tools`.
    pub fn conversation(
        &self,
        messages: &[Map<String, Json>],
        variables: &Map<String, Json>,
    ) -> Result<ConversationPrompt> {
        let template = self.require_chat_template()?;
        let render = |is_answer| template.render_conversation(messages, is_answer, variables);
        let text = render(true)?;
        let ids = self.require_tokenizer()?.encode_chat(&text)?;
        let format = answer_format(template, &text, || render(false).ok());
        Ok(ConversationPrompt { text, ids, format })
    }

    /// The model's own generation settings.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The program that does work on untrusted input in processes of its own, if the model was opened with one.
    pub fn worker(&self) -> Option<&WorkerProgram> {
        self.worker.as_ref()
    }

    /// Length of the longest token in bytes, if there is a tokenizer. It bounds how long a text can be that fits the context.
    pub fn longest_token(&self) -> Option<usize> {
        let tokenizer = self.tokenizer()?;
        let lengths = (0..tokenizer.vocab_size() as u32).filter_map(|id| tokenizer.token_bytes(id));
        lengths.map(|bytes| bytes.len()).max()
    }

    /// Token ids of a prompt.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Ids(ids) => Ok(ids.clone()),
            Prompt::Text(text) => {
                let mut ids = self.require_tokenizer()?.encode_prompt(text)?;
                // For an empty prompt the model starts from its BOS token, as in transformers.
                if ids.is_empty() {
                    ids.extend(self.generation.bos_token_id);
                }
                Ok(ids)
            }
            Prompt::Chat(messages) => {
                let rendered = self.require_chat_template()?.render(messages, true)?;
                self.require_tokenizer()?.encode_chat(&rendered)
            }
        }
    }
}
