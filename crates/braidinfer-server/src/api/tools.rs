//! Tool calls: the tools that a chat offers, and whether an answer may or must call them.

use std::sync::Arc;

use braidinfer::conversation::{OfferedTool, ToolCallFormat, ToolCallParser};
use braidinfer::text::ChatTemplate;
use braidinfer::{AnswerForm, DATA_KEYS};
use rand::RngExt;
use rand::distr::Alphanumeric;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::one_or_many::WordOr;
use crate::http::{ApiError, shown};

/// Most tools of which each is tried by itself, to find the one whose schema cannot be kept.
const MOST_TRIED: usize = 32;
/// Length of a tool call id, in letters and digits; Mistral's templates accept no other length.
const ID_LENGTH: usize = 9;

#[derive(Debug, Clone, Deserialize)]
pub struct Tool {
    #[serde(rename = "type")]
    kind: String,
    function: Function,
}

#[derive(Debug, Clone, Deserialize)]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    /// Ignored: where a call is forced, its arguments always follow the schema.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct NamedTool {
    #[serde(rename = "type")]
    kind: String,
    function: NamedFunction,
}

#[derive(Debug, Clone, Deserialize)]
struct NamedFunction {
    name: String,
}

/// `none`, `auto`, `required`, or one named tool.
pub type ToolChoice = WordOr<NamedTool>;

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

/// The tools of which one must be called, each with its place among all and the form of its calls.
pub fn forced_one_by_one(tools: Option<&Vec<Tool>>, choice: Option<&ToolChoice>) -> Vec<(usize, String, AnswerForm)> {
    let tools = tools.map_or(&[][..], Vec::as_slice);
    let Ok(Callable::OneOf(wanted)) = callable(tools, choice) else { return Vec::new() };
    let place = |tool: &Tool| tools.iter().position(|other| std::ptr::eq(other, tool));
    let forms = wanted
        .into_iter()
        .filter_map(|tool| Some((place(tool)?, tool.function.name.clone(), call_form(std::iter::once(tool)))));
    forms.take(MOST_TRIED).collect()
}

/// An error about the form of the calls of this tool alone, with its name and place.
pub fn naming_tool(error: &ApiError, at: usize, name: &str) -> ApiError {
    let field = format!("tools[{at}].function.parameters");
    let named = format!("{field} ({})", shown(name));
    error.moved(&call_path(0), &named, &field).unwrap_or_else(|| error.about(&named, &field))
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
pub fn prepare(
    tools: Option<&Vec<Tool>>,
    choice: Option<&ToolChoice>,
    template: &ChatTemplate,
) -> Result<ToolUse, ApiError> {
    let Some(tools) = tools.filter(|tools| !tools.is_empty()) else {
        let is_call_wanted = match choice {
            Some(WordOr::Object(_)) => true,
            Some(WordOr::Word(word)) => word == "required",
            None => false,
        };
        return match is_call_wanted {
            true => refused("tool_choice", "expected tools beside it, found none".into()),
            false => Ok(ToolUse::default()),
        };
    };
    if let Some(tool) = tools.iter().find(|tool| tool.kind != "function") {
        return refused("tools", format!("expected tools of type function, found `{}`", shown(&tool.kind)));
    }
    let callable = match callable(tools, choice)? {
        Callable::None => return Ok(ToolUse::default()),
        callable => callable,
    };
    if !template.has_place_for_tools()? {
        return refused("tools", "the chat template of this model has no place for tools".into());
    }
    if let Callable::OneOf(wanted) = &callable
        && let Some(tool) = wanted.iter().find(|tool| !takes_object(tool))
    {
        let name = shown(&tool.function.name);
        return refused("tools", format!("expected parameters of type object for {name}, found another schema"));
    }
    let described: Vec<Value> = tools.iter().map(described).collect();
    let offer = |tool: &Tool| OfferedTool {
        name: tool.function.name.clone(),
        parameters: tool.function.parameters.clone().unwrap_or_default(),
    };
    Ok(ToolUse {
        variables: Map::from_iter([("tools".to_owned(), json!(described))]),
        offered: tools.iter().map(offer).collect(),
        forced: match callable {
            Callable::None | Callable::Any => None,
            Callable::OneOf(tools) => Some(call_form(tools.into_iter())),
        },
    })
}

fn refused<T>(field: &str, message: String) -> Result<T, ApiError> {
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

fn callable<'a>(tools: &'a [Tool], choice: Option<&ToolChoice>) -> Result<Callable<'a>, ApiError> {
    match choice {
        None => Ok(Callable::Any),
        Some(WordOr::Word(word)) => match word.as_str() {
            "auto" => Ok(Callable::Any),
            "none" => Ok(Callable::None),
            "required" => Ok(Callable::OneOf(tools.iter().collect())),
            other => {
                refused("tool_choice", format!("expected none, auto, required or a tool, found `{}`", shown(other)))
            }
        },
        Some(WordOr::Object(named)) => {
            let name = &named.function.name;
            let wanted: Vec<&Tool> = tools.iter().filter(|tool| tool.function.name == *name).collect();
            if named.kind != "function" || wanted.is_empty() {
                return refused("tool_choice", format!("expected one of the tools, found `{}`", shown(name)));
            }
            Ok(Callable::OneOf(wanted))
        }
    }
}

/// A tool in the format that chat templates use.
fn described(tool: &Tool) -> Value {
    let Function { name, description, parameters, .. } = &tool.function;
    let parameters = parameters.clone().unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    let description = description.clone().unwrap_or_default();
    json!({"type": "function", "function": {"name": name, "description": description, "parameters": parameters}})
}

/// Whether the arguments of a tool may be an object.
fn takes_object(tool: &Tool) -> bool {
    match tool.function.parameters.as_ref().map(|schema| (schema.is_object(), schema.get("type"))) {
        None | Some((true, None)) => true,
        Some((_, Some(Value::String(kind)))) => kind == "object",
        Some((_, Some(Value::Array(kinds)))) => kinds.iter().any(|kind| kind == "object"),
        Some(_) => false,
    }
}

/// The JSON schema of a call of one of the tools.
fn call_form<'a>(tools: impl Iterator<Item = &'a Tool>) -> AnswerForm {
    let call = |(index, tool): (usize, &Tool)| {
        let mut arguments = tool.function.parameters.clone().unwrap_or_else(|| json!({"type": "object"}));
        if let Some(fields) = arguments.as_object_mut() {
            fields.insert("type".to_owned(), json!("object"));
        }
        move_references(&mut arguments, &format!("#{}", call_path(index)));
        json!({
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
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
