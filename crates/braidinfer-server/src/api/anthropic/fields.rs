//! The fields of requests.

use braidinfer::{AnswerForm, SamplingParams};
use serde::Deserialize;
use serde_json::Value;

use super::content::{Block, Message};
use crate::api::answers::Delivery;
use crate::api::chat::tools::{Tool, ToolChoice, refused};
use crate::api::chat::{ChatRequest, Conversation};
use crate::api::constraint::RequestedForm;
use crate::api::one_or_many::TextOr;
use crate::http::{ApiError, shown};

/// A request for a message, or for the number of its tokens.
#[derive(Debug, Deserialize)]
pub struct MessageFields {
    pub model: String,
    pub messages: Vec<Message>,
    pub system: Option<TextOr<Block>>,
    /// Most tokens of the answer; up to the end of the context if absent.
    max_tokens: Option<usize>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<usize>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    tools: Option<Vec<ToolFields>>,
    tool_choice: Option<ToolChoiceFields>,
    thinking: Option<ThinkingFields>,
    output_config: Option<OutputConfig>,
    /// An earlier place of `output_config.format`.
    output_format: Option<OutputFormat>,
}

#[derive(Debug, Deserialize)]
struct ToolFields {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: String,
    description: Option<String>,
    input_schema: Option<Value>,
    /// Ignored: where a call is forced, its arguments always follow the schema.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ToolChoiceFields {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ThinkingFields {
    #[serde(rename = "type")]
    kind: String,
    budget_tokens: Option<usize>,
    /// Ignored: reasoning is shown as it is.
    #[serde(rename = "display")]
    _display: Option<String>,
}

#[derive(Debug, Deserialize)]
struct OutputConfig {
    format: Option<OutputFormat>,
    /// How much the model reasons, for templates that know it.
    effort: Option<String>,
}

#[derive(Debug, Deserialize)]
struct OutputFormat {
    #[serde(rename = "type")]
    kind: String,
    schema: Option<Value>,
}

impl MessageFields {
    pub fn delivery(&self) -> Delivery {
        if self.stream == Some(true) { Delivery::Streamed } else { Delivery::Whole }
    }

    /// The chat that is asked for; `defaults` are the model's.
    pub fn into_chat(self, defaults: &SamplingParams) -> Result<ChatRequest, ApiError> {
        let (thinks, thinking_budget) = self.thinking()?;
        let params = SamplingParams {
            max_tokens: self.max_tokens,
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k: self.top_k.map_or(defaults.top_k, |count| Some(count).filter(|count| *count > 0)),
            stop: self.stop_sequences.clone().unwrap_or_default(),
            ..defaults.clone()
        };
        Ok(ChatRequest {
            params,
            form: self.form()?,
            thinking_budget,
            only_one_call: self
                .tool_choice
                .as_ref()
                .is_some_and(|choice| choice.disable_parallel_tool_use == Some(true)),
            conversation: self.into_conversation(thinks)?,
            ..ChatRequest::default()
        })
    }

    fn into_conversation(self, thinks: Option<bool>) -> Result<Conversation, ApiError> {
        let (messages, end) = super::content::template_fields(self.system, self.messages)?;
        Ok(Conversation {
            messages,
            end,
            tool_choice: tool_choice(self.tool_choice)?,
            tools: tools(self.tools.unwrap_or_default())?,
            thinks,
            reasoning_effort: self.output_config.and_then(|config| config.effort),
            ..Conversation::default()
        })
    }

    /// Whether the model reasons, and for how many tokens at most.
    fn thinking(&self) -> Result<(Option<bool>, Option<usize>), ApiError> {
        let Some(ThinkingFields { kind, budget_tokens, .. }) = &self.thinking else { return Ok((None, None)) };
        match kind.as_str() {
            "enabled" => Ok((Some(true), *budget_tokens)),
            "disabled" => Ok((Some(false), None)),
            // As the model does by itself.
            "adaptive" | "between_tools" => Ok((None, *budget_tokens)),
            other => {
                let message = format!(
                    "thinking.type: expected enabled, disabled, adaptive or between_tools, found `{}`",
                    shown(other)
                );
                Err(ApiError::field("thinking.type", message))
            }
        }
    }

    /// The form of the answer.
    fn form(&self) -> Result<Option<RequestedForm>, ApiError> {
        let in_config = self.output_config.as_ref().and_then(|config| config.format.as_ref());
        let (format, field) = match (in_config, &self.output_format) {
            (Some(format), None) => (format, "output_config.format"),
            (None, Some(format)) => (format, "output_format"),
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                let message = "output_format: expected one form for the answer, found another one in output_config";
                return Err(ApiError::field("output_format", message));
            }
        };
        match (format.kind.as_str(), &format.schema) {
            ("json_schema", Some(schema)) => Ok(Some((AnswerForm::JsonSchema(schema.clone()), field))),
            ("json_schema", None) => Err(ApiError::field(field, format!("{field}: expected a schema, found none"))),
            (other, _) => {
                let message = format!("{field}: expected the type json_schema, found `{}`", shown(other));
                Err(ApiError::field(field, message))
            }
        }
    }
}

fn tools(fields: Vec<ToolFields>) -> Result<Vec<Tool>, ApiError> {
    let tool = |(at, ToolFields { kind, name, description, input_schema, .. }): (usize, ToolFields)| match kind {
        Some(kind) if kind != "custom" => {
            refused("tools", format!("expected tools of type custom, found `{}`", shown(&kind)))
        }
        _ => Ok(Tool { name, description, parameters: input_schema, field: format!("tools[{at}].input_schema") }),
    };
    fields.into_iter().enumerate().map(tool).collect()
}

fn tool_choice(fields: Option<ToolChoiceFields>) -> Result<ToolChoice, ApiError> {
    let Some(ToolChoiceFields { kind, name, .. }) = fields else { return Ok(ToolChoice::Auto) };
    match (kind.as_str(), name) {
        ("auto", _) => Ok(ToolChoice::Auto),
        ("none", _) => Ok(ToolChoice::None),
        ("any", _) => Ok(ToolChoice::Required),
        ("tool", Some(name)) => Ok(ToolChoice::Named(name)),
        ("tool", None) => refused("tool_choice", "expected the name of a tool, found none".into()),
        (other, _) => refused("tool_choice", format!("expected auto, any, tool or none, found `{}`", shown(other))),
    }
}
