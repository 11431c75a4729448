//! A call as a JSON object with a name and arguments, or the arguments alone after a name.

use std::sync::Arc;

use actson::feeder::PushJsonFeeder;
use actson::options::JsonParserOptionsBuilder;
use actson::{JsonEvent, JsonParser};
use serde_json::Value;

use super::{AnswerPart, CallReader, OfferedTool, Reading};

/// Keys of the name of a tool.
const NAMES: [&str; 3] = ["name", "function", "tool_name"];
/// Keys of its arguments.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];
/// Keys of a call that say nothing.
const OTHERS: [&str; 4] = ["id", "type", "tool_call_id", "index"];
/// Deepest nesting of arguments.
const DEEPEST: usize = 128;

/// Reads a JSON object with the name of a tool and its arguments.
pub(super) struct JsonCall {
    json: JsonReader,
    /// The tools of which it must be a call; `None` if any name is good.
    known: Option<Arc<[OfferedTool]>>,
    /// The key whose value comes next.
    key: Key,
    /// How deep the keys of the call are: two if it is within the key `function`.
    level: usize,
    /// The name, until the call has begun.
    name: Option<String>,
    arguments: Arguments,
    has_begun: bool,
    /// Whether there is a key that calls do not have.
    has_other_key: bool,
}

/// Reads an object of arguments, whose tool is named before it.
#[derive(Debug)]
pub(super) struct JsonArguments(JsonReader);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    Other,
}

/// The arguments, as far as they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Arguments {
    None,
    /// An object that began before the name was known, or that is read now.
    Open(String),
    /// They are complete.
    Whole(String),
}

/// A JSON parser that takes one character at a time.
struct JsonReader {
    parser: JsonParser<PushJsonFeeder>,
    depth: usize,
}

impl std::fmt::Debug for JsonReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JsonReader").field("depth", &self.depth).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for JsonCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JsonCall").field("name", &self.name).field("arguments", &self.arguments).finish_non_exhaustive()
    }
}

impl JsonReader {
    fn new() -> Self {
        let options = JsonParserOptionsBuilder::default().with_max_depth(DEEPEST).build();
        Self { parser: JsonParser::new_with_options(PushJsonFeeder::new(), options), depth: 0 }
    }

    /// What a character completes, with the depth after it; `None` if it is no JSON.
    fn push(&mut self, next: char) -> Option<Vec<(JsonEvent, String, usize)>> {
        let mut events = Vec::new();
        let mut bytes = [0; 4];
        for byte in next.encode_utf8(&mut bytes).bytes() {
            self.parser.feeder.push_byte(byte).ok()?;
            loop {
                let event = self.parser.next_event().ok()??;
                match event {
                    JsonEvent::NeedMoreInput => break,
                    JsonEvent::StartObject | JsonEvent::StartArray => self.depth += 1,
                    JsonEvent::EndObject | JsonEvent::EndArray => self.depth = self.depth.checked_sub(1)?,
                    _ => {}
                }
                let text = match event {
                    JsonEvent::FieldName | JsonEvent::ValueString => self.parser.current_str().ok()?.to_owned(),
                    _ => String::new(),
                };
                events.push((event, text, self.depth));
                // After the last bracket there is nothing that the parser could ask for.
                if self.depth == 0 {
                    break;
                }
            }
        }
        Some(events)
    }
}

impl JsonCall {
    pub(super) fn new(known: Option<Arc<[OfferedTool]>>) -> Self {
        Self {
            json: JsonReader::new(),
            known,
            key: Key::Other,
            level: 1,
            name: None,
            arguments: Arguments::None,
            has_begun: false,
            has_other_key: false,
        }
    }

    /// Takes an event of the parser. Returns whether this can still be a call.
    fn take(&mut self, event: JsonEvent, text: String, depth: usize) -> bool {
        let is_at_key = depth == self.level;
        match event {
            JsonEvent::FieldName if is_at_key => self.take_key(&text),
            JsonEvent::ValueString if is_at_key && self.key == Key::Name => self.take_name(text),
            JsonEvent::StartObject if depth == 2 && self.level == 1 && self.key == Key::Name && self.name.is_none() => {
                self.level = 2;
                true
            }
            JsonEvent::StartObject if depth == self.level + 1 && self.key == Key::Arguments => {
                self.arguments = Arguments::Open(String::new());
                true
            }
            JsonEvent::EndObject if is_at_key && self.key == Key::Arguments => {
                if let Arguments::Open(written) = &mut self.arguments {
                    self.arguments = Arguments::Whole(std::mem::take(written));
                }
                true
            }
            // Some models write the arguments as a JSON string that contains the object.
            JsonEvent::ValueString if is_at_key && self.key == Key::Arguments => {
                let is_object = serde_json::from_str::<Value>(&text).is_ok_and(|arguments| arguments.is_object());
                self.arguments = Arguments::Whole(text);
                is_object
            }
            JsonEvent::ValueNull if is_at_key && self.key == Key::Arguments => true,
            _ => !(is_at_key && self.key == Key::Arguments && is_value(event)),
        }
    }

    fn take_key(&mut self, key: &str) -> bool {
        self.key = match key {
            key if NAMES.contains(&key) => Key::Name,
            key if ARGUMENTS.contains(&key) => Key::Arguments,
            _ => Key::Other,
        };
        self.has_other_key |= self.key == Key::Other && !OTHERS.contains(&key);
        let is_repeated = self.key == Key::Arguments && self.arguments != Arguments::None;
        !is_repeated && (self.key != Key::Other || self.known.is_none() || OTHERS.contains(&key))
    }

    fn take_name(&mut self, name: String) -> bool {
        let is_known = self.known.as_ref().is_none_or(|known| known.iter().any(|tool| tool.name == name));
        let is_first = self.name.is_none() && !self.has_begun;
        self.name = Some(name);
        is_known && is_first
    }

    /// Passes on what is known of the call: nothing before its arguments begin.
    fn emit(&mut self, parts: &mut Vec<AnswerPart>) {
        if self.arguments == Arguments::None {
            return;
        }
        if let Some(name) = self.name.take() {
            parts.push(AnswerPart::Call { name });
            self.has_begun = true;
        }
        if let (true, Arguments::Open(written) | Arguments::Whole(written)) = (self.has_begun, &mut self.arguments)
            && !written.is_empty()
        {
            parts.push(AnswerPart::Arguments(std::mem::take(written)));
        }
    }

    fn end(&mut self, parts: &mut Vec<AnswerPart>) -> Reading {
        // Arguments under another name would be lost.
        if self.arguments == Arguments::None && self.has_other_key {
            return Reading::Broken;
        }
        if self.arguments == Arguments::None {
            self.arguments = Arguments::Whole("{}".to_owned());
        }
        self.emit(parts);
        if !self.has_begun {
            return Reading::Broken;
        }
        parts.push(AnswerPart::CallEnd);
        Reading::Done
    }
}

fn is_value(event: JsonEvent) -> bool {
    matches!(
        event,
        JsonEvent::ValueInt
            | JsonEvent::ValueFloat
            | JsonEvent::ValueTrue
            | JsonEvent::ValueFalse
            | JsonEvent::ValueString
            | JsonEvent::EndArray
    )
}

impl CallReader for JsonCall {
    fn push(&mut self, next: char, parts: &mut Vec<AnswerPart>) -> Reading {
        let was_open = matches!(self.arguments, Arguments::Open(_));
        if let Arguments::Open(written) = &mut self.arguments {
            written.push(next);
        }
        let Some(events) = self.json.push(next) else { return Reading::Broken };
        for (event, text, depth) in events {
            if !self.take(event, text, depth) {
                return Reading::Broken;
            }
        }
        if let (false, Arguments::Open(written)) = (was_open, &mut self.arguments) {
            written.push(next);
        }
        if self.json.depth == 0 {
            return self.end(parts);
        }
        self.emit(parts);
        Reading::More
    }

    fn finish(&mut self, _parts: &mut Vec<AnswerPart>) -> Reading {
        Reading::Broken
    }
}

impl JsonArguments {
    pub(super) fn new() -> Self {
        Self(JsonReader::new())
    }
}

impl CallReader for JsonArguments {
    fn push(&mut self, next: char, parts: &mut Vec<AnswerPart>) -> Reading {
        if self.0.push(next).is_none() {
            return Reading::Broken;
        }
        parts.push(AnswerPart::Arguments(next.to_string()));
        if self.0.depth > 0 {
            return Reading::More;
        }
        parts.push(AnswerPart::CallEnd);
        Reading::Done
    }

    fn finish(&mut self, _parts: &mut Vec<AnswerPart>) -> Reading {
        Reading::Broken
    }
}
