//! A call that begins with the name of its tool; its arguments are JSON, or elements with a key and a value each.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::json_call::JsonArguments;
use super::unquoted_json::UnquotedJson;
use super::{AnswerPart, CallReader, OfferedTool, Reading};

/// Longest text before the arguments, in bytes.
const LONGEST_HEAD: usize = 512;

/// How arguments are written as elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Elements {
    /// What the first of them begins with.
    begin: &'static str,
    /// What stands between key and value.
    middle: &'static str,
    /// What stands before a value besides that, if anything.
    before_value: Option<&'static str>,
    /// What stands after a value.
    after: &'static str,
    /// The mark after all of them.
    end: &'static str,
}

impl Elements {
    /// A value without what belongs to the layout: a mark before it, or one line break on each side.
    fn without_layout(self, value: &str) -> &str {
        match self.before_value {
            Some(mark) => value.trim_start().strip_prefix(mark).unwrap_or(value),
            None => {
                let value = value.strip_prefix('\n').unwrap_or(value);
                value.strip_suffix('\n').unwrap_or(value)
            }
        }
    }

    /// Where the next element begins on a line of its own.
    fn next_of(self, value: &str) -> Option<usize> {
        value.find(&format!("\n{}", self.begin))
    }

    /// Where the value that this text begins with ends. One that begins a line ends at one: it may contain the mark.
    fn end_of(self, value: &str) -> Option<usize> {
        let is_on_lines = self.before_value.is_none() && value.starts_with('\n');
        let on_line = is_on_lines.then(|| value.find(&format!("\n{}", self.after))).flatten();
        let on_line = on_line.filter(|line| self.next_of(value).is_none_or(|next| *line < next));
        on_line.map(|line| line + 1).or_else(|| value.find(self.after))
    }
}

/// Qwen3-Coder, and GLM.
const ELEMENTS: [Elements; 2] = [
    Elements { begin: "<parameter=", middle: ">", before_value: None, after: "</parameter>", end: "</function>" },
    Elements {
        begin: "<arg_key>",
        middle: "</arg_key>",
        before_value: Some("<arg_value>"),
        after: "</arg_value>",
        end: OUTER_END,
    },
];

/// The mark around a call, which other formats than Qwen3-Coder's have for themselves.
const OUTER_END: &str = "</tool_call>";

/// What tells that the text beside it is the name of a tool.
const NAME_MARKS: [&str; 7] =
    ["<function=", "[ARGS]", "<｜tool▁sep｜>", "<|tool_call_argument_begin|>", "<|message|>", "functions.", "call:"];

/// What may stand between the name and the arguments.
const LAYOUT: [&str; 11] = [
    ">",
    "[ARGS]",
    "<｜tool▁sep｜>",
    "<|tool_call_argument_begin|>",
    "<|constrain|>",
    "<|message|>",
    "<|channel|>commentary",
    "```json",
    "```",
    "json",
    "code",
];

/// Reads a call.
#[derive(Debug)]
pub(super) struct NamedCall {
    tools: Arc<[OfferedTool]>,
    head: String,
    arguments: Arguments,
}

#[derive(Debug)]
enum Arguments {
    /// They have not begun.
    None,
    Json(JsonArguments),
    /// Their text so far.
    Elements(Elements, ElementText),
    Unquoted(UnquotedJson),
}

/// The text of elements so far.
#[derive(Debug)]
struct ElementText {
    text: String,
    /// Whether its last element has no end.
    is_open: bool,
}

impl NamedCall {
    pub(super) fn new(tools: Arc<[OfferedTool]>) -> Self {
        Self { tools, head: String::new(), arguments: Arguments::None }
    }

    fn read_head(&mut self, next: char, parts: &mut Vec<AnswerPart>) -> Reading {
        if next == '{' {
            let Some(name) = self.name(&self.head, false) else { return Reading::Broken };
            if self.head.trim_start().starts_with("call:") {
                self.arguments = Arguments::Unquoted(UnquotedJson::default());
                return Reading::More;
            }
            parts.push(AnswerPart::Call { name });
            let mut arguments = JsonArguments::new();
            let reading = arguments.push(next, parts);
            self.arguments = Arguments::Json(arguments);
            return reading;
        }
        self.head.push(next);
        if self.head.len() > LONGEST_HEAD {
            return Reading::Broken;
        }
        if let Some(elements) = ELEMENTS.into_iter().find(|elements| self.head.ends_with(elements.begin)) {
            let written = ElementText { text: elements.begin.to_owned(), is_open: true };
            self.arguments = Arguments::Elements(elements, written);
        } else if let Some(elements) = ELEMENTS.into_iter().find(|elements| self.head.ends_with(elements.end)) {
            return self.end(elements, Vec::new(), parts);
        }
        Reading::More
    }

    /// Ends a call that has these arguments as elements.
    fn end(&self, elements: Elements, pairs: Vec<(String, String)>, parts: &mut Vec<AnswerPart>) -> Reading {
        let head =
            self.head.strip_suffix(elements.begin).or(self.head.strip_suffix(elements.end)).unwrap_or(&self.head);
        let name = self.name(head, !pairs.is_empty());
        name.map_or(Reading::Broken, |name| self.call(&name, self.typed(&name, pairs), parts))
    }

    /// The name in what is written before the arguments. Where no mark says that it is one, it must be that of a tool: any text
    /// could stand there.
    fn name(&self, head: &str, is_certain: bool) -> Option<String> {
        let is_certain = is_certain || NAME_MARKS.iter().any(|mark| head.contains(mark));
        if let Some(name) = self.offered_name(head) {
            return Some(name);
        }
        name_in(head).filter(|name| is_certain || self.tools.iter().any(|tool| tool.name == *name))
    }

    /// The longest name of a tool that the text before the arguments has, whatever characters it is made of.
    fn offered_name(&self, head: &str) -> Option<String> {
        let is_before_layout =
            |name: &&str| starts_of_name(head).iter().any(|start| start.strip_prefix(*name).is_some_and(is_layout));
        let names = self.tools.iter().map(|tool| tool.name.as_str()).filter(|name| !name.is_empty());
        names.filter(is_before_layout).max_by_key(|name| name.len()).map(str::to_owned)
    }

    /// The arguments that were written as texts, with the types of the tool's schema.
    fn typed(&self, name: &str, pairs: Vec<(String, String)>) -> Map<String, Value> {
        let tool = self.tools.iter().find(|tool| tool.name == name);
        let value = |(key, written): (String, String)| {
            let value = value_of(tool, &key, written);
            (key, value)
        };
        pairs.into_iter().map(value).collect()
    }

    fn call(&self, name: &str, arguments: Map<String, Value>, parts: &mut Vec<AnswerPart>) -> Reading {
        parts.push(AnswerPart::Call { name: name.to_owned() });
        parts.push(AnswerPart::Arguments(Value::Object(arguments).to_string()));
        parts.push(AnswerPart::CallEnd);
        Reading::Done
    }
}

/// Where in the text before the arguments the name may begin, the likeliest place last.
fn starts_of_name(head: &str) -> [&str; 5] {
    let marked = head.split_once("<function=").map_or(head, |(_, after)| after);
    let is_kind = |(kind, _): &(&str, &str)| kind.trim() == "function";
    let separated = marked.split_once("<｜tool▁sep｜>").filter(is_kind).map_or(marked, |(_, name)| name);
    let called = separated.trim_start();
    let called = called.strip_prefix("call:").unwrap_or(called);
    let qualified = called.strip_prefix("functions.").unwrap_or(called);
    [head.trim_start(), marked.trim_start(), separated.trim_start(), called, qualified]
}

/// The name in what is written before the arguments.
fn name_in(head: &str) -> Option<String> {
    let [.., head] = starts_of_name(head);
    let is_of_name = |character: char| character.is_alphanumeric() || "_-.".contains(character);
    let (name, rest) = head.split_at(head.find(|next| !is_of_name(next)).unwrap_or(head.len()));
    (!name.is_empty() && is_layout(rest)).then(|| name.to_owned())
}

/// Whether there are only marks between the name and the arguments.
fn is_layout(mut rest: &str) -> bool {
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return true;
        }
        let number = rest.strip_prefix(':').map(|after| after.trim_start_matches(|next: char| next.is_ascii_digit()));
        let id = rest.strip_prefix("[CALL_ID]").map(|after| after.trim_start_matches(char::is_alphanumeric));
        let mark = LAYOUT.iter().find_map(|mark| rest.strip_prefix(mark));
        let Some(after) = number.or(id).or(mark) else { return false };
        rest = after;
    }
}

/// The keys and values of elements; `None` if one is not complete.
fn pairs_in(elements: Elements, written: &str) -> Option<Vec<(String, String)>> {
    pairs(elements, written, |value| {
        let end = elements.end_of(value);
        // A value whose end mark is left out reaches to the line of the next element.
        let next = elements.next_of(value).filter(|next| end.is_none_or(|end| *next < end));
        match (next, end) {
            (Some(next), _) => Some(value.split_at(next)),
            (None, Some(end)) => Some((&value[..end], &value[end + elements.after.len()..])),
            (None, None) => None,
        }
    })
}

/// Like [`pairs_in`], for a call that has certainly ended: a value without its end mark reaches as far as it can.
fn pairs_without_ends(elements: Elements, written: &str) -> Option<Vec<(String, String)>> {
    let ends = [OUTER_END, elements.end];
    let written = ends.iter().fold(written.trim_end(), |rest, end| rest.strip_suffix(end).unwrap_or(rest).trim_end());
    pairs(elements, written, |value| {
        let next = elements.next_of(value).or_else(|| value.find(elements.begin)).unwrap_or(value.len());
        match elements.end_of(&value[..next]) {
            Some(end) => Some((&value[..end], &value[end + elements.after.len()..])),
            None => Some(value.split_at(next)),
        }
    })
}

/// The keys and values of elements; `split` tells a value from what follows it.
fn pairs<'a>(
    elements: Elements,
    written: &'a str,
    split: impl Fn(&'a str) -> Option<(&'a str, &'a str)>,
) -> Option<Vec<(String, String)>> {
    let (mut pairs, mut rest) = (Vec::new(), written);
    while let Some((_, element)) = rest.split_once(elements.begin) {
        let (key, value) = element.split_once(elements.middle)?;
        let (value, after) = split(value)?;
        pairs.push((key.trim().to_owned(), elements.without_layout(value).to_owned()));
        rest = after;
    }
    Some(pairs)
}

/// Makes a value a text where the tool's schema asks for one.
fn make_text(tool: Option<&OfferedTool>, key: &str, value: &mut Value) {
    let kinds = kinds_of(tool, key);
    if !value.is_string() && kinds.contains(&"string") && !(value.is_null() && kinds.contains(&"null")) {
        *value = Value::String(value.to_string());
    }
}

/// An argument with the type that the tool's schema asks for: anything but a text is JSON. Constants may be spelled as in Python.
fn value_of(tool: Option<&OfferedTool>, key: &str, written: String) -> Value {
    let kinds = kinds_of(tool, key);
    match written.trim().to_ascii_lowercase().as_str() {
        "null" | "none" if kinds.contains(&"null") => return Value::Null,
        word @ ("true" | "false") if kinds.contains(&"boolean") && !kinds.contains(&"string") => {
            return Value::Bool(word == "true");
        }
        _ => {}
    }
    if kinds.contains(&"string") {
        return Value::String(written);
    }
    serde_json::from_str(written.trim()).unwrap_or(Value::String(written))
}

/// Most references and choices that are followed for the type of an argument.
const MOST_FOLLOWED: usize = 64;

/// The types that the schema of an argument names.
fn kinds_of<'a>(tool: Option<&'a OfferedTool>, key: &str) -> Vec<&'a str> {
    let Some(schema) = tool.and_then(|tool| tool.parameters.get("properties")?.get(key)) else { return Vec::new() };
    let (mut kinds, mut waiting) = (Vec::new(), vec![schema]);
    for _ in 0..MOST_FOLLOWED {
        let Some(schema) = waiting.pop() else { break };
        match &schema["type"] {
            Value::Array(several) => kinds.extend(several.iter().filter_map(Value::as_str)),
            one => kinds.extend(one.as_str()),
        }
        let values = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
        kinds.extend(values.map(kind_of_value));
        waiting.extend(["anyOf", "oneOf", "allOf"].iter().filter_map(|key| schema[*key].as_array()).flatten());
        let reference = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
        waiting.extend(tool.zip(reference).and_then(|(tool, pointer)| tool.parameters.pointer(pointer)));
    }
    kinds
}

fn kind_of_value<'a>(value: &Value) -> &'a str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl CallReader for NamedCall {
    fn push(&mut self, next: char, parts: &mut Vec<AnswerPart>) -> Reading {
        match &mut self.arguments {
            Arguments::None => self.read_head(next, parts),
            Arguments::Json(arguments) => arguments.push(next, parts),
            Arguments::Elements(elements, ElementText { text, is_open }) => {
                text.push(next);
                let elements = *elements;
                if text.ends_with(elements.begin) || text.ends_with(elements.after) {
                    *is_open = text.ends_with(elements.begin);
                }
                let is_end = text.ends_with(elements.end) || text.ends_with(OUTER_END);
                // A value may contain the mark at the end, but not both.
                let is_certain_end = elements.end != OUTER_END
                    && text.strip_suffix(OUTER_END).is_some_and(|call| call.trim_end().ends_with(elements.end));
                let pairs = match (is_end && !*is_open, is_certain_end) {
                    (true, _) => pairs_in(elements, text),
                    (_, true) => pairs_without_ends(elements, text),
                    _ => return Reading::More,
                };
                pairs.map_or(Reading::More, |pairs| self.end(elements, pairs, parts))
            }
            Arguments::Unquoted(arguments) => {
                let Some(arguments) = arguments.push(next) else { return Reading::More };
                match (self.name(&self.head, true), arguments) {
                    (Some(name), Some(mut arguments)) => {
                        let tool = self.tools.iter().find(|tool| tool.name == name);
                        arguments.iter_mut().for_each(|(key, value)| make_text(tool, key, value));
                        self.call(&name, arguments, parts)
                    }
                    _ => Reading::Broken,
                }
            }
        }
    }

    fn finish(&mut self, parts: &mut Vec<AnswerPart>) -> Reading {
        match &mut self.arguments {
            // Only marks at ends are missing.
            Arguments::Elements(elements, ElementText { text, .. })
                if [elements.after, elements.end, OUTER_END].iter().any(|end| text.trim_end().ends_with(end)) =>
            {
                let elements = *elements;
                // A value that goes on into another call is none.
                let is_whole =
                    |pairs: &Vec<(String, String)>| pairs.iter().all(|(_, value)| !value.contains(OUTER_END));
                let pairs = pairs_without_ends(elements, text).filter(is_whole);
                pairs.map_or(Reading::Broken, |pairs| self.end(elements, pairs, parts))
            }
            Arguments::None => match self.name(&self.head, false) {
                Some(name) if name == self.head.trim() => self.call(&name, Map::new(), parts),
                _ => Reading::Broken,
            },
            _ => Reading::Broken,
        }
    }
}
