//! Chats: what requests of all APIs are translated into, and the parts of which their answers consist.

mod answer;
pub mod tools;

use std::time::Instant;

use braidinfer::conversation::{AnswerFormat, Reasoning, ReasoningLimits, ShownTokens};
use braidinfer::engine::ClientId;
use braidinfer::handle::Task;
use braidinfer::{GenerateRequest, SamplingParams};
use serde_json::{Map, Value, json};

pub use self::answer::{AnswerReader, Call, WholeAnswer};
use self::tools::{Tool, ToolChoice, ToolUse};
use super::answers::{ChoiceStream, Delivery};
use super::constraint::{self, RequestedForm};
use super::prompts::{self, ChatPrompt, PromptEnd};
use super::reservation;
use crate::app::App;
use crate::http::ApiError;
use crate::models::{Lease, Served};

/// A conversation that a chat template turns into a prompt.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// Messages with the fields that chat templates use: `role`, `content`, `tool_calls` and so on.
    pub messages: Vec<Map<String, Value>>,
    pub tools: Vec<Tool>,
    pub tool_choice: ToolChoice,
    /// Whether the model reasons; as it does by itself if `None`.
    pub thinks: Option<bool>,
    /// How much it reasons, for templates that know it.
    pub reasoning_effort: Option<String>,
    /// Additional variables for the chat template.
    pub variables: Map<String, Value>,
    pub end: PromptEnd,
}

/// A chat to be answered.
#[derive(Debug, Clone, Default)]
pub struct ChatRequest {
    pub conversation: Conversation,
    pub params: SamplingParams,
    /// The form of the answer.
    pub form: Option<RequestedForm>,
    /// Whether what has this form may be a tool call; otherwise it is text, whatever it looks like.
    pub is_form_of_calls: bool,
    /// Most tokens of reasoning; the server's own limit if `None`.
    pub thinking_budget: Option<usize>,
    /// Whether an answer has at most one tool call.
    pub only_one_call: bool,
    /// Whether special tokens are part of the text.
    pub shows_special_tokens: bool,
}

impl Conversation {
    /// Whether the model is asked to reason, or how much.
    pub fn asks_to_reason(&self) -> bool {
        self.thinks == Some(true) || self.reasoning_effort.as_ref().is_some_and(|effort| effort != "none")
    }

    /// The tools of the conversation.
    fn tool_use(&self) -> Result<ToolUse, ApiError> {
        tools::prepare(&self.tools, &self.tool_choice)
    }

    /// Variables for the chat template.
    fn all_variables(&self, tools: &ToolUse) -> Map<String, Value> {
        let mut variables = tools.variables.clone();
        if let Some(effort) = &self.reasoning_effort {
            variables.insert("reasoning_effort".to_owned(), json!(effort));
        }
        // Templates call the switch one or the other.
        if let Some(wanted) = self.thinks {
            variables.extend(["enable_thinking", "thinking"].map(|name| (name.to_owned(), json!(wanted))));
        }
        variables.extend(self.variables.clone());
        variables
    }
}

/// A message with the fields that chat templates use.
pub fn message(role: &str, content: &str) -> Map<String, Value> {
    Map::from_iter([("role".to_owned(), json!(role)), ("content".to_owned(), json!(content))])
}

/// How the prompt of these messages ends, in APIs that go on with an answer at the end of a conversation.
pub fn end_of(messages: &[Map<String, Value>]) -> PromptEnd {
    let is_begun = |last: &Map<String, Value>| last["role"] == "assistant" && !last.contains_key("tool_calls");
    if messages.last().is_some_and(is_begun) { PromptEnd::WithinMessage } else { PromptEnd::Answer }
}

/// Makes one message of several in a row that are nothing but text of one role: some APIs take them, and many templates do not.
pub fn combined(messages: Vec<Map<String, Value>>) -> Vec<Map<String, Value>> {
    let is_text = |message: &Map<String, Value>| message.len() == 2 && message["content"].is_string();
    let mut combined: Vec<Map<String, Value>> = Vec::with_capacity(messages.len());
    for message in messages {
        match combined.last_mut() {
            Some(last) if is_text(last) && is_text(&message) && last["role"] == message["role"] => {
                if let (Some(Value::String(text)), Some(more)) = (last.get_mut("content"), message["content"].as_str())
                {
                    text.push('\n');
                    text.push_str(more);
                }
            }
            _ => combined.push(message),
        }
    }
    combined
}

/// The prompt of a conversation.
pub async fn encode(served: &Lease, conversation: Conversation) -> Result<ChatPrompt, ApiError> {
    let tools = conversation.tool_use()?;
    let variables = conversation.all_variables(&tools);
    prompts::encode_chat(served, conversation.messages, variables, conversation.end).await
}

/// Begins to answer a chat.
pub async fn begin(
    app: &App,
    served: &Lease,
    client: ClientId,
    request: ChatRequest,
    delivery: Delivery,
    arrived: Instant,
) -> Result<(ChoiceStream, AnswerReader), ApiError> {
    let ChatRequest { conversation, params, form, is_form_of_calls, .. } = request;
    let ChatRequest { thinking_budget, only_one_call, shows_special_tokens, .. } = request;
    // Before anything is made of its tools.
    served.text.require_chat_template()?;
    let asks_to_reason = conversation.asks_to_reason() || thinking_budget.is_some();
    let unused: &[&str] = if asks_to_reason && !served.knows_reasoning() { &["reasoning"] } else { &[] };
    let tools = conversation.tool_use()?;
    let is_text = form.is_some() && !is_form_of_calls;
    let constraint = constraint::constraint(served, wanted_form(&tools, form)?, client).await;
    let (answer, form_slot) = match constraint {
        Ok(constraint) => constraint.unzip(),
        Err(error) => return Err(tool_at_fault(served, &conversation, client).await.unwrap_or(error)),
    };
    let (variables, thinks) = (conversation.all_variables(&tools), conversation.thinks);
    let prompt = prompts::encode_chat(served, conversation.messages, variables, conversation.end).await?;
    let (start, is_off) = (prompt.reasoning_start, thinks == Some(false));
    let reasoning = served.conversations().reasoning_format.map(|format| Reasoning { format, start, is_off });
    let constraint = match reasoning {
        Some(reasoning) => {
            let limits = ReasoningLimits { most_tokens: thinking_budget.or(app.config.thinking_budget), answer };
            // It may look through the whole vocabulary.
            served
                .run_blocking(move |served| limits.constraint(&served.text, served.about.vocab_size, reasoning))
                .await?
        }
        None => answer,
    };
    let format = AnswerFormat { reasoning, special_tokens: shown_tokens(served, &tools, shows_special_tokens) };
    let (n, deadline) = (params.n, app.deadline(arrived));
    let prompts = vec![prompt.ids];
    let reservation = reservation::reserve(app, served, client, &prompts, &params, delivery)?;
    let task = Task::Generate(Box::new(GenerateRequest { params, constraint, format, adapter: served.adapter() }));
    let engine = served.engine.for_client(client).with_most_unread(reservation::most_unread(app));
    let stream = engine.submit(prompts, task, arrived).await?;
    let parser = || tools.parser(served.conversations().tool_calls, only_one_call).filter(|_| !is_text);
    let reader = AnswerReader::new((0..n).map(|_| parser()).collect(), tools.forced.is_some());
    let (form_slot, lease) = (form_slot.flatten(), served.clone());
    Ok((ChoiceStream { stream, count: n, n, deadline, form_slot, reservation, unused, lease }, reader))
}

/// Marks of reasoning and of calls are special tokens in some vocabularies.
fn shown_tokens(served: &Served, tools: &ToolUse, all: bool) -> ShownTokens {
    let conversations = served.conversations();
    let of_calls = conversations.tool_calls.marks().filter(|_| !tools.offered.is_empty());
    let marks: Vec<String> = conversations.reasoning_marks.iter().copied().chain(of_calls).map(str::to_owned).collect();
    match all {
        true => ShownTokens::All,
        false if marks.is_empty() => ShownTokens::None,
        false => ShownTokens::Marks(marks),
    }
}

/// The form of the answer, and the request field that asks for it: that of a call that must come, or what was requested.
fn wanted_form(tools: &ToolUse, requested: Option<RequestedForm>) -> Result<Option<RequestedForm>, ApiError> {
    match (&tools.forced, requested) {
        (Some(_), Some((_, field))) => {
            let message = format!("{field}: expected a free answer beside a tool that must be called");
            Err(ApiError::field(field, message))
        }
        (Some(form), None) => Ok(Some((form.clone(), "tools"))),
        (None, form) => Ok(form),
    }
}

/// What is wrong with the first tool that must be called and cannot be held to its schema, if there is one.
async fn tool_at_fault(served: &Lease, conversation: &Conversation, client: ClientId) -> Option<ApiError> {
    for (tool, form) in tools::forced_one_by_one(&conversation.tools, &conversation.tool_choice) {
        if let Err(error) = constraint::constraint(served, Some((form, "tools")), client).await {
            return Some(tools::naming_tool(&error, tool));
        }
    }
    None
}
