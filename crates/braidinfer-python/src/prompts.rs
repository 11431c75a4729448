//! Prompts as Python writes them: text, token ids, or the messages of a chat.

use braidinfer::conversation::AnswerFormat;
use braidinfer::{ConversationPrompt, ModelText, Prompt};
use pyo3::prelude::*;
use serde_json::{Map, Value};

use crate::errors::{bad_argument, exception};

/// A prompt.
#[derive(FromPyObject)]
pub enum RawPrompt {
    /// Text, to which the tokenizer adds its special tokens.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
    /// A JSON list of messages, and a JSON object of variables for the chat template, such as `tools`.
    Conversation(String, String),
}

/// A prompt as the engine takes it.
pub struct EncodedPrompt {
    /// As text, if it was not given as token ids.
    pub text: Option<String>,
    pub ids: Vec<u32>,
    /// How its answer becomes text.
    pub format: AnswerFormat,
}

impl RawPrompt {
    pub fn encode(self, model: &ModelText) -> PyResult<EncodedPrompt> {
        let format = AnswerFormat::default();
        match self {
            Self::Ids(ids) => Ok(EncodedPrompt { text: None, ids, format }),
            Self::Text(text) => {
                let prompt = Prompt::Text(text.clone());
                let ids = model.encode(&prompt).map_err(|error| exception(&error))?;
                Ok(EncodedPrompt { text: Some(text), ids, format })
            }
            Self::Conversation(messages, variables) => {
                let ConversationPrompt { text, ids, format } = conversation(model, &messages, &variables)?;
                Ok(EncodedPrompt { text: Some(text), ids, format })
            }
        }
    }
}

/// Renders a chat, whose parts are JSON as in [`RawPrompt::Conversation`].
pub fn conversation(model: &ModelText, messages: &str, variables: &str) -> PyResult<ConversationPrompt> {
    let messages: Vec<Map<String, Value>> = serde_json::from_str(messages)
        .map_err(|error| bad_argument("messages", "a list of dictionaries", error.to_string()))?;
    let variables: Map<String, Value> = serde_json::from_str(variables)
        .map_err(|error| bad_argument("chat_template_kwargs", "a dictionary", error.to_string()))?;
    model.conversation(&messages, &variables).map_err(|error| exception(&error))
}
