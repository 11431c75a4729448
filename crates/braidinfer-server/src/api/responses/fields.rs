//! The fields of requests.

use braidinfer::{AnswerForm, SamplingParams};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::items::{self, Item};
use crate::api::answers::Delivery;
use crate::api::chat::tools::{Tool, ToolChoice, refused};
use crate::api::chat::{ChatRequest, Conversation, combined, message};
use crate::api::constraint::RequestedForm;
use crate::api::one_or_many::{TextOr, WordOr};
use crate::http::{ApiError, shown};

#[derive(Debug, Deserialize)]
pub struct ResponseFields {
    pub model: String,
    input: Option<TextOr<Item>>,
    /// What the model is told before the conversation. It is not part of what the next request goes on from.
    instructions: Option<String>,
    tools: Option<Vec<ToolFields>>,
    tool_choice: Option<WordOr<NamedTool>>,
    parallel_tool_calls: Option<bool>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    /// Most tokens of the answer; up to the end of the context if absent.
    max_output_tokens: Option<usize>,
    stream: Option<bool>,
    /// Whether the response can be asked for later, and gone on from; true if absent.
    store: Option<bool>,
    /// The response that this one goes on from.
    pub previous_response_id: Option<String>,
    metadata: Option<Map<String, Value>>,
    text: Option<TextFields>,
    reasoning: Option<ReasoningFields>,
    /// What else to return. Reasoning is always returned in the clear.
    include: Option<Vec<String>>,
    user: Option<String>,
    #[serde(rename = "stream_options")]
    _stream_options: Option<StreamOptions>,
}

/// Ignored: events are never padded.
#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ToolFields {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct NamedTool {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct TextFields {
    format: Option<Format>,
}

#[derive(Debug, Deserialize)]
struct Format {
    #[serde(rename = "type")]
    kind: String,
    schema: Option<Value>,
    /// Repeated in the response; for human readers.
    name: Option<String>,
    description: Option<String>,
    /// Repeated in the response: schemas are always enforced.
    strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ReasoningFields {
    /// How much the model reasons, for templates that know it; `none` means not at all.
    effort: Option<String>,
}

/// What a response repeats of its request.
#[derive(Debug, Clone)]
pub struct Echo {
    pub fields: Map<String, Value>,
    pub is_stored: bool,
}

impl ResponseFields {
    pub fn delivery(&self) -> Delivery {
        if self.stream == Some(true) { Delivery::Streamed } else { Delivery::Whole }
    }

    /// What the response repeats.
    pub fn echo(&self, params: &SamplingParams) -> Echo {
        let is_stored = self.store.unwrap_or(true);
        let tool = |tool: &ToolFields| {
            json!({"type": tool.kind, "name": tool.name, "description": tool.description,
                "parameters": tool.parameters, "strict": tool.strict.unwrap_or(false)})
        };
        let tool_choice = match &self.tool_choice {
            None => json!("auto"),
            Some(WordOr::Word(word)) => json!(word),
            Some(WordOr::Object(named)) => json!({"type": named.kind, "name": named.name}),
        };
        let format = match self.text.as_ref().and_then(|text| text.format.as_ref()) {
            None => json!({"type": "text"}),
            Some(Format { kind, schema: None, .. }) => json!({"type": kind}),
            Some(Format { kind, schema, name, description, strict }) => {
                json!({"type": kind, "name": name, "description": description, "schema": schema, "strict": strict})
            }
        };
        let effort = self.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_ref());
        let fields = json!({
            "background": false,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata.clone().unwrap_or_default(),
            "model": self.model,
            "parallel_tool_calls": self.parallel_tool_calls.unwrap_or(true),
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": effort, "summary": null},
            "store": is_stored,
            "temperature": params.temperature,
            "text": {"format": format},
            "tool_choice": tool_choice,
            "tools": self.tools.iter().flatten().map(tool).collect::<Vec<_>>(),
            "top_p": params.top_p,
            "truncation": "disabled",
            "user": self.user,
        });
        let Value::Object(fields) = fields else { unreachable!("it is an object") };
        Echo { fields, is_stored }
    }

    pub fn params(&self, defaults: &SamplingParams) -> SamplingParams {
        SamplingParams {
            max_tokens: self.max_output_tokens,
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            ..defaults.clone()
        }
    }

    /// The chat that is asked for, which goes on from `before`; and its messages without the instructions.
    pub fn into_chat(
        self,
        params: SamplingParams,
        before: Vec<Map<String, Value>>,
    ) -> Result<(ChatRequest, Vec<Map<String, Value>>), ApiError> {
        const ENCRYPTED: &str = "reasoning.encrypted_content";
        if let Some(metadata) = &self.metadata {
            check_metadata(metadata)?;
        }
        if let Some(other) = self.include.iter().flatten().find(|name| *name != ENCRYPTED) {
            return refused("include", format!("expected {ENCRYPTED}, found `{}`", shown(other)));
        }
        let form = self.text.and_then(|text| text.format).map_or(Ok(None), Format::into_form)?;
        let effort = self.reasoning.and_then(|reasoning| reasoning.effort);
        let input = self.input.unwrap_or(TextOr::Many(Vec::new()));
        let messages = items::append(before, input)?;
        if messages.is_empty() {
            return refused("input", "expected at least one message, found none".into());
        }
        let instructions = self.instructions.filter(|text| !text.is_empty());
        let system = instructions.map(|text| message("system", &text));
        let conversation = Conversation {
            messages: combined(system.into_iter().chain(messages.iter().cloned()).collect()),
            tools: tools(self.tools.unwrap_or_default())?,
            tool_choice: tool_choice(self.tool_choice)?,
            thinks: (effort.as_deref() == Some("none")).then_some(false),
            reasoning_effort: effort.filter(|effort| effort != "none"),
            ..Conversation::default()
        };
        let only_one_call = self.parallel_tool_calls == Some(false);
        Ok((ChatRequest { conversation, params, form, only_one_call, ..ChatRequest::default() }, messages))
    }
}

/// It is kept with the response, so it is bounded as OpenAI bounds it.
fn check_metadata(metadata: &Map<String, Value>) -> Result<(), ApiError> {
    let is_short = |(name, value): (&String, &Value)| {
        name.chars().count() <= 64 && value.as_str().is_some_and(|text| text.chars().count() <= 512)
    };
    if metadata.len() <= 16 && metadata.iter().all(is_short) {
        return Ok(());
    }
    let expected = "at most 16 texts of at most 512 characters, with names of at most 64";
    refused("metadata", format!("expected {expected}, found {} fields", metadata.len()))
}

impl Format {
    fn into_form(self) -> Result<Option<RequestedForm>, ApiError> {
        const FIELD: &str = "text.format";
        match (self.kind.as_str(), self.schema) {
            ("text", None) => Ok(None),
            ("json_object", None) => Ok(Some((AnswerForm::JsonObject, FIELD))),
            ("json_schema", Some(schema)) => Ok(Some((AnswerForm::JsonSchema(schema), FIELD))),
            ("json_schema", None) => refused(FIELD, "expected a schema, found none".into()),
            ("text" | "json_object", Some(_)) => {
                refused(FIELD, "expected no schema, or the type json_schema beside it, found a schema".into())
            }
            (other, _) => {
                refused(FIELD, format!("expected text, json_object or json_schema, found `{}`", shown(other)))
            }
        }
    }
}

fn tools(fields: Vec<ToolFields>) -> Result<Vec<Tool>, ApiError> {
    let tool = |(at, tool): (usize, ToolFields)| {
        if tool.kind != "function" {
            let message = format!(
                "expected tools of type function, since the server runs no tools itself, found `{}`",
                shown(&tool.kind)
            );
            return refused("tools", message);
        }
        let Some(name) = tool.name else {
            return refused("tools", format!("expected a name of the tool at {at}, found none"));
        };
        let field = format!("tools[{at}].parameters");
        Ok(Tool { name, description: tool.description, parameters: tool.parameters, field })
    };
    fields.into_iter().enumerate().map(tool).collect()
}

fn tool_choice(field: Option<WordOr<NamedTool>>) -> Result<ToolChoice, ApiError> {
    match field {
        None => Ok(ToolChoice::Auto),
        Some(WordOr::Word(word)) => ToolChoice::of_word(&word),
        Some(WordOr::Object(NamedTool { kind, name: Some(name) })) if kind == "function" => Ok(ToolChoice::Named(name)),
        Some(WordOr::Object(NamedTool { kind, .. })) => {
            refused("tool_choice", format!("expected the name of a function, found `{}`", shown(&kind)))
        }
    }
}
