//! Tool calls: the tools that a chat offers, and whether an answer may or must call them.

use std::sync::Arc;

use braidinfer::conversation::{OfferedTool, ToolCallFormat, ToolCallParser};
use braidinfer::{AnswerForm, DATA_KEYS};
use rand::RngExt;
use rand::distr::Alphanumeric;
use serde_json::{Map, Value, json};

use crate::http::{ApiError, shown};

/// Most tools of which each is tried by itself, to find the one whose schema cannot be kept.
const MOST_TRIED: usize = 32;
/// Length of a tool call id, in letters and digits; Mistral's templates accept no other length.
const ID_LENGTH: usize = 9;

/// A tool that a chat offers.
#[derive(Debug, Clone)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON schema of its arguments.
    pub parameters: Option<Value>,
    /// Path of that schema in the request, for messages.
    pub field: String,
}

/// Which tools an answer may call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// Any, or none.
    #[default]
    Auto,
    None,
    /// One of all, which it must call.
    Required,
    /// The one with this name, which it must call.
    Named(String),
}

impl ToolChoice {
    /// The choice that the OpenAI APIs write as a word.
    pub fn of_word(word: &str) -> Result<Self, ApiError> {
        match word {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            "required" => Ok(Self::Required),
            other => Err(ApiError::expected("tool_choice", "none, auto, required or a tool", other)),
        }
    }
}

/// What a request says about tools.
#[derive(Debug, Default)]
pub struct ToolUse {
    /// Variables for the chat template.
    pub variables: Map<String, Value>,
    /// The tools that may be called; none if the answer is only text.
    pub offered: Arc<[OfferedTool]>,
    /// The form of the answer, if it must be a call.
    pub forced: Option<AnswerForm>,
}

impl ToolUse {
    /// A parser for the calls of an answer, if it may have any.
    pub fn parser(&self, format: ToolCallFormat, only_one: bool) -> Option<ToolCallParser> {
        (!self.offered.is_empty()).then(|| ToolCallParser::new(format, Arc::clone(&self.offered), only_one))
    }
}

/// The tools of which one must be called, each with the form of its calls.
pub fn forced_one_by_one<'a>(tools: &'a [Tool], choice: &ToolChoice) -> Vec<(&'a Tool, AnswerForm)> {
    let Ok(Callable::OneOf(wanted)) = callable(tools, choice) else { return Vec::new() };
    wanted.into_iter().take(MOST_TRIED).map(|tool| (tool, call_form(std::iter::once(tool)))).collect()
}

/// An error about the form of the calls of this tool alone, with its name and place.
pub fn naming_tool(error: &ApiError, tool: &Tool) -> ApiError {
    let named = format!("{} ({})", tool.field, shown(&tool.name));
    error.moved(&call_path(0), &named, &tool.field).unwrap_or_else(|| error.about(&named, &tool.field))
}

/// Where the schema of a tool's arguments is in that of the call.
fn call_path(index: usize) -> String {
    format!("/anyOf/{index}/properties/arguments")
}

/// A new id of a call.
pub fn new_call_id() -> String {
    rand::rng().sample_iter(Alphanumeric).take(ID_LENGTH).map(char::from).collect()
}

/// Validates the tools of a request.
pub fn prepare(tools: &[Tool], choice: &ToolChoice) -> Result<ToolUse, ApiError> {
    if tools.is_empty() {
        return match choice {
            ToolChoice::Required | ToolChoice::Named(_) => {
                refused("tool_choice", "expected tools beside it, found none".into())
            }
            ToolChoice::Auto | ToolChoice::None => Ok(ToolUse::default()),
        };
    }
    let callable = match callable(tools, choice)? {
        Callable::None => return Ok(ToolUse::default()),
        callable => callable,
    };
    if let Callable::OneOf(wanted) = &callable
        && let Some(tool) = wanted.iter().find(|tool| !takes_object(tool))
    {
        let name = shown(&tool.name);
        return refused("tools", format!("expected parameters of type object for {name}, found another schema"));
    }
    let described: Vec<Value> = tools.iter().map(described).collect();
    let offer =
        |tool: &Tool| OfferedTool { name: tool.name.clone(), parameters: tool.parameters.clone().unwrap_or_default() };
    Ok(ToolUse {
        variables: Map::from_iter([("tools".to_owned(), json!(described))]),
        offered: tools.iter().map(offer).collect(),
        forced: match callable {
            Callable::None | Callable::Any => None,
            Callable::OneOf(tools) => Some(call_form(tools.into_iter())),
        },
    })
}

/// Refuses a field.
pub fn refused<T>(field: &str, message: String) -> Result<T, ApiError> {
    Err(ApiError::field(field, format!("{field}: {message}")))
}

/// Which tools an answer may call.
enum Callable<'a> {
    None,
    /// Any, or none.
    Any,
    /// One of these, which it must call.
    OneOf(Vec<&'a Tool>),
}

fn callable<'a>(tools: &'a [Tool], choice: &ToolChoice) -> Result<Callable<'a>, ApiError> {
    match choice {
        ToolChoice::Auto => Ok(Callable::Any),
        ToolChoice::None => Ok(Callable::None),
        ToolChoice::Required => Ok(Callable::OneOf(tools.iter().collect())),
        ToolChoice::Named(name) => {
            let wanted: Vec<&Tool> = tools.iter().filter(|tool| tool.name == *name).collect();
            if wanted.is_empty() {
                return refused("tool_choice", format!("expected one of the tools, found `{}`", shown(name)));
            }
            Ok(Callable::OneOf(wanted))
        }
    }
}

/// A tool in the format that chat templates use.
fn described(tool: &Tool) -> Value {
    let Tool { name, description, parameters, .. } = tool;
    let parameters = parameters.clone().unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    let description = description.clone().unwrap_or_default();
    json!({"type": "function", "function": {"name": name, "description": description, "parameters": parameters}})
}

/// Whether the arguments of a tool may be an object.
fn takes_object(tool: &Tool) -> bool {
    match tool.parameters.as_ref().map(|schema| (schema.is_object(), schema.get("type"))) {
        None | Some((true, None)) => true,
        Some((_, Some(Value::String(kind)))) => kind == "object",
        Some((_, Some(Value::Array(kinds)))) => kinds.iter().any(|kind| kind == "object"),
        Some(_) => false,
    }
}

/// The JSON schema of a call of one of the tools.
fn call_form<'a>(tools: impl Iterator<Item = &'a Tool>) -> AnswerForm {
    let call = |(index, tool): (usize, &Tool)| {
        let mut arguments = tool.parameters.clone().unwrap_or_else(|| json!({"type": "object"}));
        if let Some(fields) = arguments.as_object_mut() {
            fields.insert("type".to_owned(), json!("object"));
        }
        move_references(&mut arguments, &format!("#{}", call_path(index)));
        json!({
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": arguments},
            "required": ["name", "arguments"],
            "additionalProperties": false,
        })
    };
    AnswerForm::JsonSchema(json!({"anyOf": tools.enumerate().map(call).collect::<Vec<_>>()}))
}

/// Makes the references of a schema that was moved to `path` within another schema point to their targets again.
fn move_references(schema: &mut Value, path: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match value {
                    Value::String(target) if name == "$ref" && target.starts_with('#') => {
                        *target = format!("{path}{}", &target[1..]);
                    }
                    _ if DATA_KEYS.contains(&name.as_str()) => {}
                    value => move_references(value, path),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, path)),
        _ => {}
    }
}
