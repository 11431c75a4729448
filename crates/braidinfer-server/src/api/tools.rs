//! Tool calls: the tools that a chat offers, and a parser for the calls of different model families.

use braidinfer::text::ChatTemplate;
use braidinfer::{AnswerForm, text};
use rand::RngExt;
use rand::distr::Alphanumeric;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::one_or_many::WordOr;
use crate::http::{ApiError, shown};

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

/// Whether an answer may or must call tools.
#[derive(Debug, Clone, PartialEq)]
pub enum ToolCallMode {
    /// It may not: the answer is only text.
    None,
    /// It may: text in the syntax of the model family is parsed as calls.
    Free(Syntax),
    /// It must: the whole answer is one call of this form.
    Forced(AnswerForm),
}

/// How a model family writes tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// `<tool_call>{"name": .., "arguments": ..}</tool_call>` anywhere: Hermes, Qwen.
    Tagged,
    /// An answer that is JSON as a whole, one object or a list: Llama 3 (`parameters`), Mistral (`arguments`).
    Whole,
}

impl Syntax {
    /// Detects the syntax from how the template renders the calls of earlier turns.
    fn of(template: &ChatTemplate) -> Option<Self> {
        let mentions = |texts: &[&str]| texts.iter().any(|text| template.mentions(text));
        if !mentions(&["tools"]) {
            return None;
        }
        if mentions(&["<tool_call>"]) {
            Some(Self::Tagged)
        } else if mentions(&["[TOOL_CALLS]", "<|python_tag|>", "\"parameters\""]) {
            Some(Self::Whole)
        } else {
            None
        }
    }
}

/// Validates the tools of a request. Returns variables for the chat template and how the answer may call tools.
pub fn prepare(
    tools: Option<&Vec<Tool>>,
    choice: Option<&ToolChoice>,
    template: &ChatTemplate,
) -> Result<(Map<String, Value>, ToolCallMode), ApiError> {
    let refused = |field: &str, message: String| Err(ApiError::field(field, format!("{field}: {message}")));
    let Some(tools) = tools.filter(|tools| !tools.is_empty()) else {
        return match choice {
            Some(WordOr::Object(_)) => refused("tool_choice", "expected tools beside it, found none".into()),
            Some(WordOr::Word(word)) if word == "required" => {
                refused("tool_choice", "expected tools beside it, found none".into())
            }
            _ => Ok((Map::new(), ToolCallMode::None)),
        };
    };
    if let Some(tool) = tools.iter().find(|tool| tool.kind != "function") {
        return refused("tools", format!("expected tools of type function, found `{}`", shown(&tool.kind)));
    }
    let Some(syntax) = Syntax::of(template) else {
        return refused("tools", "the chat template of this model has no place for tools".into());
    };
    let calls = match choice {
        None => ToolCallMode::Free(syntax),
        Some(WordOr::Word(word)) => match word.as_str() {
            "auto" => ToolCallMode::Free(syntax),
            "none" => return Ok((Map::new(), ToolCallMode::None)),
            "required" => ToolCallMode::Forced(call_form(tools.iter())),
            other => {
                return refused(
                    "tool_choice",
                    format!("expected none, auto, required or a tool, found `{}`", shown(other)),
                );
            }
        },
        Some(WordOr::Object(named)) => {
            let name = &named.function.name;
            let wanted: Vec<&Tool> = tools.iter().filter(|tool| tool.function.name == *name).collect();
            if named.kind != "function" || wanted.is_empty() {
                return refused("tool_choice", format!("expected one of the tools, found `{}`", shown(name)));
            }
            ToolCallMode::Forced(call_form(wanted.into_iter()))
        }
    };
    let described: Vec<Value> = tools.iter().map(described).collect();
    Ok((Map::from_iter([("tools".to_owned(), json!(described))]), calls))
}

/// A tool in the format that chat templates use.
fn described(tool: &Tool) -> Value {
    let Function { name, description, parameters, .. } = &tool.function;
    let parameters = parameters.clone().unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    let description = description.clone().unwrap_or_default();
    json!({"type": "function", "function": {"name": name, "description": description, "parameters": parameters}})
}

/// The JSON schema of a call of one of the tools.
fn call_form<'a>(tools: impl Iterator<Item = &'a Tool>) -> AnswerForm {
    let call = |(index, tool): (usize, &Tool)| {
        let mut arguments = tool.function.parameters.clone().unwrap_or_else(|| json!({"type": "object"}));
        move_references(&mut arguments, &format!("#/anyOf/{index}/properties/arguments"));
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
                    value => move_references(value, path),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, path)),
        _ => {}
    }
}

/// A parsed item of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputItem {
    Content(String),
    ToolCall(ToolCall),
}

/// A tool call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    pub name: String,
    /// Arguments as JSON.
    pub arguments: String,
}

impl ToolCall {
    /// The call as in chat messages, with a new id.
    pub fn to_json(&self) -> Value {
        let id: String = rand::rng().sample_iter(Alphanumeric).take(ID_LENGTH).map(char::from).collect();
        json!({"id": id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}})
    }

    /// Parses a JSON object with a name and arguments.
    fn parse(text: &str) -> Option<Self> {
        // Serde would also accept a list of the fields in order, which is not a call.
        let written: WrittenCall = serde_json::from_str(text).ok().filter(|_| is_object(text))?;
        let arguments = written.arguments.or(written.parameters)?.get();
        let arguments = match serde_json::from_str::<String>(arguments) {
            // Some models write the arguments as a JSON string that contains the object.
            Ok(text) => text,
            Err(_) if is_object(arguments) => arguments.to_owned(),
            Err(_) => return None,
        };
        Some(Self { name: written.name, arguments })
    }
}

/// Whether a JSON text is an object.
fn is_object(json: &str) -> bool {
    json.trim_start().starts_with('{')
}

/// A tool call as models write it. Arguments are kept as raw JSON, since parsing and writing a number could change it.
#[derive(Deserialize)]
struct WrittenCall<'a> {
    name: String,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow)]
    parameters: Option<&'a RawValue>,
}

/// Parses a streamed answer into text and tool calls.
#[derive(Debug)]
pub struct ToolCallParser {
    syntax: Syntax,
    /// Whether to return only the first call.
    only_one: bool,
    /// Text that is held back because it may belong to a call.
    held: String,
    /// Whether `held` begins after an opening tag.
    inside: bool,
    /// Whether text was returned, so that the whole answer cannot be a call any more.
    begun: bool,
}

impl ToolCallMode {
    /// The stop text after the first call, for an answer that may have only one call.
    pub fn first_call_stop(&self) -> Option<&'static str> {
        match self {
            Self::Free(Syntax::Tagged) => Some(CLOSING),
            // Not needed: the whole answer is one call or one list of calls.
            Self::None | Self::Free(Syntax::Whole) | Self::Forced(_) => None,
        }
    }
}

const OPENING: &str = "<tool_call>";
const CLOSING: &str = "</tool_call>";

impl ToolCallParser {
    pub fn new(calls: &ToolCallMode, only_one: bool) -> Option<Self> {
        let syntax = match calls {
            ToolCallMode::None => return None,
            ToolCallMode::Free(syntax) => *syntax,
            ToolCallMode::Forced(_) => Syntax::Whole,
        };
        Some(Self { syntax, only_one, held: String::new(), inside: false, begun: false })
    }

    /// Adds the next text and returns the items that are now certain.
    pub fn push(&mut self, text: &str) -> Vec<OutputItem> {
        self.held += text;
        match self.syntax {
            Syntax::Tagged => self.tagged(),
            Syntax::Whole => self.whole(),
        }
    }

    /// Parses the text that is held back at the end of the answer.
    pub fn finish(&mut self) -> Vec<OutputItem> {
        let rest = std::mem::take(&mut self.held);
        if self.syntax == Syntax::Whole
            && !self.begun
            && let Some(calls) = calls_in(&rest)
        {
            let most = if self.only_one { 1 } else { calls.len() };
            return calls.into_iter().take(most).map(OutputItem::ToolCall).collect();
        }
        if self.inside {
            return vec![call_or_text(&rest, "")];
        }
        content(rest)
    }

    fn whole(&mut self) -> Vec<OutputItem> {
        let may_be_calls = self.held.trim_start().chars().next().is_none_or(|first| first == '{' || first == '[');
        if !self.begun && may_be_calls {
            return Vec::new();
        }
        self.begun = true;
        content(std::mem::take(&mut self.held))
    }

    fn tagged(&mut self) -> Vec<OutputItem> {
        let mut items = Vec::new();
        loop {
            let tag = if self.inside { CLOSING } else { OPENING };
            let Some(at) = self.held.find(tag) else { break };
            let after = self.held.split_off(at + tag.len());
            let mut before = std::mem::replace(&mut self.held, after);
            before.truncate(at);
            if self.inside {
                items.push(call_or_text(&before, CLOSING));
            } else {
                // White space around calls is not part of the content.
                items.extend(content(before.trim_end().to_owned()));
            }
            self.inside = !self.inside;
        }
        if !self.inside {
            let undecided = text::overlap(&self.held, OPENING);
            let decided = self.held[..self.held.len() - undecided].trim_end().len();
            let rest = self.held.split_off(decided);
            items.extend(content(std::mem::replace(&mut self.held, rest)));
        }
        items
    }
}

fn content(text: String) -> Vec<OutputItem> {
    if text.is_empty() { Vec::new() } else { vec![OutputItem::Content(text)] }
}

/// The text between tags as a call, or unchanged as content if it is not a valid call.
fn call_or_text(inside: &str, closing: &str) -> OutputItem {
    ToolCall::parse(inside)
        .map_or_else(|| OutputItem::Content(format!("{OPENING}{inside}{closing}")), OutputItem::ToolCall)
}

/// The calls in a text that is one call or a list of calls; `None` if it is anything else.
fn calls_in(text: &str) -> Option<Vec<ToolCall>> {
    match serde_json::from_str::<Vec<&RawValue>>(text) {
        Ok(items) if items.is_empty() => None,
        Ok(items) => items.into_iter().map(|item| ToolCall::parse(item.get())).collect(),
        Err(_) => ToolCall::parse(text).map(|call| vec![call]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(calls: &ToolCallMode, chunks: &[&str]) -> Vec<OutputItem> {
        read_by(ToolCallParser::new(calls, false), chunks)
    }

    fn read_by(reader: Option<ToolCallParser>, chunks: &[&str]) -> Vec<OutputItem> {
        let mut reader = reader.expect("there may be calls");
        let mut items: Vec<OutputItem> = chunks.iter().flat_map(|chunk| reader.push(chunk)).collect();
        items.extend(reader.finish());
        // Adjacent content is joined, because how it is split depends on the chunks.
        items.into_iter().fold(Vec::new(), |mut all, item| {
            match (all.last_mut(), item) {
                (Some(OutputItem::Content(before)), OutputItem::Content(text)) => before.push_str(&text),
                (_, item) => all.push(item),
            }
            all
        })
    }

    fn call(name: &str, arguments: &str) -> OutputItem {
        OutputItem::ToolCall(ToolCall { name: name.into(), arguments: arguments.into() })
    }

    fn text_item(text: &str) -> OutputItem {
        OutputItem::Content(text.into())
    }

    #[test]
    fn tagged_calls_are_found_for_every_chunk_size() {
        let text = "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1.0}}\n</tool_call>\n<tool_call>\n\
                    {\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
        let expected = vec![text_item("Let me see."), call("f", "{\"a\": 1.0}"), call("g", "{}")];
        for size in [1, 2, 3, 7, text.len()] {
            let chunks: Vec<&str> =
                text.as_bytes().chunks(size).map(|chunk| std::str::from_utf8(chunk).expect("it is ASCII")).collect();
            assert_eq!(read(&ToolCallMode::Free(Syntax::Tagged), &chunks), expected, "{size}");
        }
    }

    #[test]
    fn text_that_is_not_a_call_stays_content() {
        let tagged = ToolCallMode::Free(Syntax::Tagged);
        assert_eq!(read(&tagged, &["a < b", " <tool", "s> c"]), [text_item("a < b <tools> c")]);
        assert_eq!(read(&tagged, &["<tool_call>no</tool_call>"]), [text_item("<tool_call>no</tool_call>")]);
        assert_eq!(read(&tagged, &["<tool_call>{\"name\": \"f\""]), [text_item("<tool_call>{\"name\": \"f\"")]);
        // A complete call without its closing tag, as at the token limit.
        assert_eq!(read(&tagged, &["<tool_call>{\"name\": \"f\", \"arguments\": {}}"]), [call("f", "{}")]);
        let whole = ToolCallMode::Free(Syntax::Whole);
        assert_eq!(read(&whole, &["{", "not JSON"]), [text_item("{not JSON")]);
        for text in ["{\"a\": 1}", "[\"f\", {}, {}]", "[[\"f\", {}, {}]]", "[]", "{\"name\": \"f\", \"arguments\": 5}"]
        {
            assert_eq!(read(&whole, &[text]), [text_item(text)]);
        }
        assert_eq!(read(&whole, &["Hello ", "{\"name\": \"f\", \"arguments\": {}}"]).len(), 1);
    }

    #[test]
    fn an_answer_may_be_one_or_several_calls() {
        let whole = ToolCallMode::Free(Syntax::Whole);
        let llama = read(&whole, &[" {\"name\": \"f\", ", "\"parameters\": {\"a\": \"b\"}}"]);
        assert_eq!(llama, [call("f", "{\"a\": \"b\"}")]);
        let mistral = "[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": \"{\\\"x\\\": 1}\"}]";
        assert_eq!(read(&whole, &[mistral]), [call("f", "{}"), call("g", "{\"x\": 1}")]);
        assert_eq!(read_by(ToolCallParser::new(&whole, true), &[mistral]), [call("f", "{}")]);
    }
}
