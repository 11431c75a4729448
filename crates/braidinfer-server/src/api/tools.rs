//! Tool calls: what a chat offers, and how models of different families call it.

use braidinfer::text::ChatTemplate;
use braidinfer::{AnswerForm, text};
use rand::RngExt;
use rand::distr::Alphanumeric;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::one_or_many::WordOr;
use crate::http::ApiError;

/// Letters and digits of a call's name; templates of Mistral take no other length.
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
    /// Arguments are held to their schema wherever a call is.
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

/// `none`, `auto`, `required`, or one tool.
pub type ToolChoice = WordOr<NamedTool>;

/// What of an answer may be calls.
#[derive(Debug, Clone, PartialEq)]
pub enum Calls {
    /// Nothing is.
    None,
    /// What looks like one, in the words of the model's family.
    Free(Syntax),
    /// The whole answer is one.
    Forced(AnswerForm),
}

/// How a family of models writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// `<tool_call>{"name": .., "arguments": ..}</tool_call>` anywhere: Hermes, Qwen.
    Tagged,
    /// An answer that is JSON as a whole, one object or a list: Llama 3 (`parameters`), Mistral (`arguments`).
    Whole,
}

impl Syntax {
    /// By what the template writes for calls of earlier turns.
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

/// What a chat offers: template variables, and what is made of the answer.
pub fn offered(
    tools: Option<&Vec<Tool>>,
    choice: Option<&ToolChoice>,
    template: &ChatTemplate,
) -> Result<(Map<String, Value>, Calls), ApiError> {
    let refused = |field: &str, message: String| Err(ApiError::field(field, format!("{field}: {message}")));
    let Some(tools) = tools.filter(|tools| !tools.is_empty()) else {
        return match choice {
            Some(WordOr::Object(_)) => refused("tool_choice", "expected tools beside it, found none".into()),
            Some(WordOr::Word(word)) if word == "required" => {
                refused("tool_choice", "expected tools beside it, found none".into())
            }
            _ => Ok((Map::new(), Calls::None)),
        };
    };
    if let Some(tool) = tools.iter().find(|tool| tool.kind != "function") {
        return refused("tools", format!("expected tools of type function, found `{}`", tool.kind));
    }
    let Some(syntax) = Syntax::of(template) else {
        return refused("tools", "the chat template of this model has no place for tools".into());
    };
    let calls = match choice {
        None => Calls::Free(syntax),
        Some(WordOr::Word(word)) => match word.as_str() {
            "auto" => Calls::Free(syntax),
            "none" => return Ok((Map::new(), Calls::None)),
            "required" => Calls::Forced(form_of(tools.iter())),
            other => {
                return refused("tool_choice", format!("expected none, auto, required or a tool, found `{other}`"));
            }
        },
        Some(WordOr::Object(named)) => {
            let name = &named.function.name;
            let wanted: Vec<&Tool> = tools.iter().filter(|tool| tool.function.name == *name).collect();
            if named.kind != "function" || wanted.is_empty() {
                return refused("tool_choice", format!("expected one of the tools, found `{name}`"));
            }
            Calls::Forced(form_of(wanted.into_iter()))
        }
    };
    let described: Vec<Value> = tools.iter().map(described).collect();
    Ok((Map::from_iter([("tools".to_owned(), json!(described))]), calls))
}

/// As templates take it.
fn described(tool: &Tool) -> Value {
    let Function { name, description, parameters, .. } = &tool.function;
    let parameters = parameters.clone().unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    let description = description.clone().unwrap_or_default();
    json!({"type": "function", "function": {"name": name, "description": description, "parameters": parameters}})
}

/// A call of one of some tools.
fn form_of<'a>(tools: impl Iterator<Item = &'a Tool>) -> AnswerForm {
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

/// Lets a schema that is now part of another one find its own parts.
fn move_references(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match value {
                    Value::String(target) if name == "$ref" && target.starts_with('#') => {
                        *target = format!("{place}{}", &target[1..]);
                    }
                    value => move_references(value, place),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, place)),
        _ => {}
    }
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Content(String),
    Call(Call),
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    /// JSON.
    pub arguments: String,
}

impl Call {
    /// As chats write it, under a new name of its own.
    pub fn wire(&self) -> Value {
        let id: String = rand::rng().sample_iter(Alphanumeric).take(ID_LENGTH).map(char::from).collect();
        json!({"id": id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}})
    }

    /// A JSON object with a name and arguments.
    fn parse(text: &str) -> Option<Self> {
        // Fields by their places in a list would be taken as well, and a list of three things is no call.
        let written: WrittenCall = serde_json::from_str(text).ok().filter(|_| is_object(text))?;
        let arguments = written.arguments.or(written.parameters)?.get();
        let arguments = match serde_json::from_str::<String>(arguments) {
            // Some models write the arguments as the text that they are for others.
            Ok(text) => text,
            Err(_) if is_object(arguments) => arguments.to_owned(),
            Err(_) => return None,
        };
        Some(Self { name: written.name, arguments })
    }
}

/// Whether a text that is JSON is an object.
fn is_object(json: &str) -> bool {
    json.trim_start().starts_with('{')
}

/// A call as models write it. Arguments stay as they were written: a number that is read and written again may be another.
#[derive(Deserialize)]
struct WrittenCall<'a> {
    name: String,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow)]
    parameters: Option<&'a RawValue>,
}

/// Tells calls from content while an answer comes.
#[derive(Debug)]
pub struct CallReader {
    syntax: Syntax,
    /// Tell the first call and no other.
    only_one: bool,
    /// What is not decided yet.
    held: String,
    /// Whether it is inside of a tag.
    inside: bool,
    /// Whether something was told, so that what comes now cannot be the beginning.
    begun: bool,
}

impl Calls {
    /// The text after which an answer ends that may have one call only.
    pub fn end_of_first(&self) -> Option<&'static str> {
        match self {
            Self::Free(Syntax::Tagged) => Some(CLOSING),
            // The whole answer is one call, or a list that ends with it.
            Self::None | Self::Free(Syntax::Whole) | Self::Forced(_) => None,
        }
    }
}

const OPENING: &str = "<tool_call>";
const CLOSING: &str = "</tool_call>";

impl CallReader {
    pub fn new(calls: &Calls, only_one: bool) -> Option<Self> {
        let syntax = match calls {
            Calls::None => return None,
            Calls::Free(syntax) => *syntax,
            Calls::Forced(_) => Syntax::Whole,
        };
        Some(Self { syntax, only_one, held: String::new(), inside: false, begun: false })
    }

    /// Takes the next text and returns what is decided.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held += text;
        match self.syntax {
            Syntax::Tagged => self.tagged(),
            Syntax::Whole => self.whole(),
        }
    }

    /// Decides about the rest.
    pub fn finish(&mut self) -> Vec<Piece> {
        let rest = std::mem::take(&mut self.held);
        if self.syntax == Syntax::Whole
            && !self.begun
            && let Some(calls) = calls_in(&rest)
        {
            let most = if self.only_one { 1 } else { calls.len() };
            return calls.into_iter().take(most).map(Piece::Call).collect();
        }
        if self.inside {
            return vec![call_or_text(&rest, "")];
        }
        content(rest)
    }

    fn whole(&mut self) -> Vec<Piece> {
        let may_be_calls = self.held.trim_start().chars().next().is_none_or(|first| first == '{' || first == '[');
        if !self.begun && may_be_calls {
            return Vec::new();
        }
        self.begun = true;
        content(std::mem::take(&mut self.held))
    }

    fn tagged(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        loop {
            let tag = if self.inside { CLOSING } else { OPENING };
            let Some(at) = self.held.find(tag) else { break };
            let after = self.held.split_off(at + tag.len());
            let mut before = std::mem::replace(&mut self.held, after);
            before.truncate(at);
            if self.inside {
                pieces.push(call_or_text(&before, CLOSING));
            } else {
                // White space around calls is not part of what is said.
                pieces.extend(content(before.trim_end().to_owned()));
            }
            self.inside = !self.inside;
        }
        if !self.inside {
            let undecided = text::overlap(&self.held, OPENING);
            let decided = self.held[..self.held.len() - undecided].trim_end().len();
            let rest = self.held.split_off(decided);
            pieces.extend(content(std::mem::replace(&mut self.held, rest)));
        }
        pieces
    }
}

fn content(text: String) -> Vec<Piece> {
    if text.is_empty() { Vec::new() } else { vec![Piece::Content(text)] }
}

/// What stands inside of a tag: a call, or else text as it was written.
fn call_or_text(inside: &str, closing: &str) -> Piece {
    Call::parse(inside).map_or_else(|| Piece::Content(format!("{OPENING}{inside}{closing}")), Piece::Call)
}

/// The calls that a text consists of.
fn calls_in(text: &str) -> Option<Vec<Call>> {
    match serde_json::from_str::<Vec<&RawValue>>(text) {
        Ok(items) if items.is_empty() => None,
        Ok(items) => items.into_iter().map(|item| Call::parse(item.get())).collect(),
        Err(_) => Call::parse(text).map(|call| vec![call]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(calls: &Calls, chunks: &[&str]) -> Vec<Piece> {
        read_by(CallReader::new(calls, false), chunks)
    }

    fn read_by(reader: Option<CallReader>, chunks: &[&str]) -> Vec<Piece> {
        let mut reader = reader.expect("there may be calls");
        let mut pieces: Vec<Piece> = chunks.iter().flat_map(|chunk| reader.push(chunk)).collect();
        pieces.extend(reader.finish());
        // Content comes in as many pieces as it was decided in.
        pieces.into_iter().fold(Vec::new(), |mut all, piece| {
            match (all.last_mut(), piece) {
                (Some(Piece::Content(before)), Piece::Content(text)) => before.push_str(&text),
                (_, piece) => all.push(piece),
            }
            all
        })
    }

    fn call(name: &str, arguments: &str) -> Piece {
        Piece::Call(Call { name: name.into(), arguments: arguments.into() })
    }

    fn said(text: &str) -> Piece {
        Piece::Content(text.into())
    }

    #[test]
    fn tagged_calls_are_found_however_they_are_cut() {
        let text = "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1.0}}\n</tool_call>\n<tool_call>\n\
                    {\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
        let expected = vec![said("Let me see."), call("f", "{\"a\": 1.0}"), call("g", "{}")];
        for size in [1, 2, 3, 7, text.len()] {
            let chunks: Vec<&str> =
                text.as_bytes().chunks(size).map(|chunk| std::str::from_utf8(chunk).expect("it is ASCII")).collect();
            assert_eq!(read(&Calls::Free(Syntax::Tagged), &chunks), expected, "{size}");
        }
    }

    #[test]
    fn what_is_no_call_stays_text() {
        let tagged = Calls::Free(Syntax::Tagged);
        assert_eq!(read(&tagged, &["a < b", " <tool", "s> c"]), [said("a < b <tools> c")]);
        assert_eq!(read(&tagged, &["<tool_call>no</tool_call>"]), [said("<tool_call>no</tool_call>")]);
        assert_eq!(read(&tagged, &["<tool_call>{\"name\": \"f\""]), [said("<tool_call>{\"name\": \"f\"")]);
        // Cut at the limit, but whole.
        assert_eq!(read(&tagged, &["<tool_call>{\"name\": \"f\", \"arguments\": {}}"]), [call("f", "{}")]);
        let whole = Calls::Free(Syntax::Whole);
        assert_eq!(read(&whole, &["{", "not JSON"]), [said("{not JSON")]);
        for text in ["{\"a\": 1}", "[\"f\", {}, {}]", "[[\"f\", {}, {}]]", "[]", "{\"name\": \"f\", \"arguments\": 5}"]
        {
            assert_eq!(read(&whole, &[text]), [said(text)]);
        }
        assert_eq!(read(&whole, &["Hello ", "{\"name\": \"f\", \"arguments\": {}}"]).len(), 1);
    }

    #[test]
    fn whole_answers_may_be_calls() {
        let whole = Calls::Free(Syntax::Whole);
        let llama = read(&whole, &[" {\"name\": \"f\", ", "\"parameters\": {\"a\": \"b\"}}"]);
        assert_eq!(llama, [call("f", "{\"a\": \"b\"}")]);
        let mistral = "[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": \"{\\\"x\\\": 1}\"}]";
        assert_eq!(read(&whole, &[mistral]), [call("f", "{}"), call("g", "{\"x\": 1}")]);
        assert_eq!(read_by(CallReader::new(&whole, true), &[mistral]), [call("f", "{}")]);
    }
}
