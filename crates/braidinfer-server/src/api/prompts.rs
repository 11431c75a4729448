//! Tokenizes the prompts of requests, on blocking threads so that long texts do not delay other requests.

use braidinfer::Prompt;
use braidinfer::conversation::ReasoningStart;
use braidinfer::text::InfillTokens;
use serde_json::{Map, Value};

use super::one_or_many::{PromptItem, TextOr};
use crate::http::ApiError;
use crate::models::{Lease, Served};

/// Most tokens of all prompts of one request together, each with its own copy of the suffix.
const MOST_INFILLED: usize = 1 << 22;

/// Most prompts in one request, as in the OpenAI API.
pub const MOST_PROMPTS: usize = 2048;

/// The prompts in a field that holds one or several, as texts or token ids.
pub fn prompts_in(field: TextOr<PromptItem>, name: &str) -> Result<Vec<Prompt>, ApiError> {
    let items = match field {
        TextOr::Text(text) => return Ok(vec![Prompt::Text(text)]),
        TextOr::Many(items) => items,
    };
    if items.len() > MOST_PROMPTS && items.iter().any(|item| !matches!(item, PromptItem::Id(_))) {
        let message = format!("{name}: expected at most {MOST_PROMPTS} prompts, found {}", items.len());
        return Err(ApiError::field(name, message));
    }
    if items.is_empty() {
        return Err(ApiError::field(name, format!("{name}: expected at least one token or text, found none")));
    }
    let id = |item: &PromptItem| match item {
        PromptItem::Id(id) => Some(*id),
        PromptItem::Text(_) | PromptItem::Ids(_) => None,
    };
    // A list of token ids is one prompt.
    if let Some(ids) = items.iter().map(id).collect() {
        return Ok(vec![Prompt::Ids(ids)]);
    }
    let prompt = |item| match item {
        PromptItem::Text(text) => Ok(Prompt::Text(text)),
        PromptItem::Ids(ids) => Ok(Prompt::Ids(ids)),
        PromptItem::Id(_) => {
            let message = format!("{name}: expected token ids alone, or texts and lists of them, found both");
            Err(ApiError::field(name, message))
        }
    };
    items.into_iter().map(prompt).collect()
}

/// Token ids of the prompts of the field `name`.
pub async fn encode_all(served: &Lease, prompts: Vec<Prompt>, name: &str) -> Result<Vec<Vec<u32>>, ApiError> {
    let mut ids = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        if let Prompt::Ids(ids) = &prompt {
            check_ids(served, ids, name)?;
        }
        ids.push(encode(served, prompt).await?);
    }
    Ok(ids)
}

/// Token ids of a prompt.
pub async fn encode(served: &Lease, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    if let Prompt::Text(text) = &prompt {
        served.check_length(text.len())?;
    }
    served.run_blocking(move |served| served.text.encode(&prompt)).await
}

/// Token ids of prompts for what stands between each of them and `suffix`, and the tokens that end it.
pub async fn encode_infill(
    served: &Lease,
    prompts: Vec<Prompt>,
    suffix: String,
) -> Result<(Vec<Vec<u32>>, Vec<u32>), ApiError> {
    let tokens = served.text.tokenizer().and_then(InfillTokens::of).ok_or_else(|| {
        let message = "suffix: expected a model whose tokenizer has tokens to fill in the middle of a text, such as \
                       `<|fim_middle|>`, found none";
        ApiError::field("suffix", message)
    })?;
    let after = encode_bare(served, suffix).await?;
    let context = served.context;
    let mut encoded = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let Prompt::Text(before) = prompt else {
            return Err(ApiError::field("prompt", "prompt: expected a text beside `suffix`, found token ids"));
        };
        let before = encode_bare(served, before).await?;
        // Before the suffix is copied for all of them.
        if before.len() + after.len() >= context {
            let found = before.len() + after.len();
            let message = format!(
                "suffix: expected a prompt and a suffix that fit the context of {context} tokens, found {found}"
            );
            return Err(ApiError::field("suffix", message));
        }
        let leading = served.text.require_tokenizer()?.first_token().into_iter().collect();
        encoded.push(tokens.prompt(leading, &before, &after));
        let all: usize = encoded.iter().map(Vec::len).sum();
        if all > MOST_INFILLED {
            let message = format!("suffix: expected at most {MOST_INFILLED} tokens in all prompts with it, found more");
            return Err(ApiError::field("suffix", message));
        }
    }
    Ok((encoded, tokens.ends))
}

/// Rejects ids in the field `name` that are not in the model's vocabulary.
pub fn check_ids(served: &Served, ids: &[u32], name: &str) -> Result<(), ApiError> {
    match ids.iter().find(|id| **id as usize >= served.about.vocab_size) {
        Some(id) => {
            let message =
                format!("{name}: expected ids below the vocabulary size {}, found {id}", served.about.vocab_size);
            Err(ApiError::field(name, message))
        }
        None => Ok(()),
    }
}

/// Token ids of a text without special tokens such as BOS.
pub async fn encode_bare(served: &Lease, text: String) -> Result<Vec<u32>, ApiError> {
    served.check_length(text.len())?;
    served.run_blocking(move |served| served.text.require_tokenizer()?.encode(&text, false)).await
}

/// How the prompt of a chat ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PromptEnd {
    /// Where an answer begins.
    #[default]
    Answer,
    /// After the last message.
    Message,
    /// Within the last message, which the answer continues.
    WithinMessage,
}

/// The prompt of a chat.
pub struct ChatPrompt {
    pub ids: Vec<u32>,
    /// Where an answer begins, if the model reasons.
    pub reasoning_start: ReasoningStart,
}

/// The prompt of a chat.
pub async fn encode_chat(
    served: &Lease,
    mut messages: Vec<Map<String, Value>>,
    variables: Map<String, Value>,
    end: PromptEnd,
) -> Result<ChatPrompt, ApiError> {
    served
        .run_blocking(move |served| {
            let template = served.text.require_chat_template()?;
            let continued = (end == PromptEnd::WithinMessage).then(|| take_last_content(&mut messages));
            let render = |is_answer| template.render_conversation(&messages, is_answer, &variables);
            let mut rendered = render(end == PromptEnd::Answer)?;
            if let Some(content) = &continued {
                rendered.truncate(rendered.rfind(CONTENT).unwrap_or(rendered.len()));
                rendered += content;
            }
            served.check_length(rendered.len())?;
            let reasoning_start = match (served.conversations().reasoning_format, continued, end) {
                (Some(format), Some(content), _) => match format.start_after(&content) {
                    // The answer goes on.
                    ReasoningStart::Undecided if !content.trim().is_empty() => ReasoningStart::Closed,
                    start => start,
                },
                (Some(format), None, PromptEnd::Answer) => format.start_of_answer(&rendered, || render(false).ok()),
                _ => ReasoningStart::Undecided,
            };
            Ok(ChatPrompt { ids: served.text.require_tokenizer()?.encode_chat(&rendered)?, reasoning_start })
        })
        .await
}

/// Stands for the content of a message, so that its place in the prompt is found.
const CONTENT: &str = "CONTENT-OF-THE-LAST-MESSAGE-64c1e0b7";

/// Takes the content of the last message, and leaves [`CONTENT`] in its place.
fn take_last_content(messages: &mut [Map<String, Value>]) -> String {
    let content = messages.last_mut().and_then(|message| message.insert("content".to_owned(), Value::from(CONTENT)));
    content.and_then(|content| content.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The text of token ids, including special tokens.
pub async fn decode(served: &Lease, ids: Vec<u32>) -> Result<String, ApiError> {
    served.run_blocking(move |served| served.text.require_tokenizer()?.decode(&ids, false)).await
}
