//! The fields `tools` and `tool_choice`.

use serde::Deserialize;
use serde_json::Value;

use crate::api::chat::tools::{Tool, ToolChoice, refused};
use crate::api::one_or_many::WordOr;
use crate::http::{ApiError, shown};

#[derive(Debug, Clone, Deserialize)]
pub struct ToolFields {
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
pub type ToolChoiceField = WordOr<NamedTool>;

/// The tools of a request.
pub fn tools_of(fields: Option<Vec<ToolFields>>) -> Result<Vec<Tool>, ApiError> {
    let tool = |(at, ToolFields { kind, function }): (usize, ToolFields)| {
        if kind != "function" {
            return refused("tools", format!("expected tools of type function, found `{}`", shown(&kind)));
        }
        let Function { name, description, parameters, .. } = function;
        Ok(Tool { name, description, parameters, field: format!("tools[{at}].function.parameters") })
    };
    fields.unwrap_or_default().into_iter().enumerate().map(tool).collect()
}

/// Which of them an answer may call.
pub fn choice_of(field: Option<ToolChoiceField>) -> Result<ToolChoice, ApiError> {
    match field {
        None => Ok(ToolChoice::Auto),
        Some(WordOr::Word(word)) => ToolChoice::of_word(&word),
        Some(WordOr::Object(named)) if named.kind == "function" => Ok(ToolChoice::Named(named.function.name)),
        Some(WordOr::Object(named)) => {
            refused("tool_choice", format!("expected one of the tools, found `{}`", shown(&named.function.name)))
        }
    }
}
