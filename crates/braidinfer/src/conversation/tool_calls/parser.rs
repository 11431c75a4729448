//! Finds tool calls in a streamed answer.

use std::sync::Arc;

use super::json_call::JsonCall;
use super::named_call::NamedCall;
use super::{AnswerPart, CallReader, OfferedTool, Reading, ToolCallFormat};
use crate::text::overlap;

/// Most bytes that are held back because white space before a call is no text.
const MOST_WHITE_SPACE: usize = 256;

/// Most bytes of what turned out to be no call that are read again, for a call that begins within them.
const MOST_READ_AGAIN: usize = 1024;

/// What may stand between calls besides white space.
const BETWEEN: &str = "[],;";

/// What may stand on the line before a call in JSON without marks.
const FENCES: [&str; 3] = ["```json", "```tool_call", FENCE];
const FENCE: &str = "```";

/// Tells the tool calls of one answer from its text. Text that may belong to a call is held back as long as that is possible.
#[derive(Debug)]
pub struct ToolCallParser {
    format: ToolCallFormat,
    tools: Arc<[OfferedTool]>,
    /// Whether to return only the first call.
    only_one: bool,
    place: Place,
    /// Text of which it is not known yet whether it belongs to a call.
    held: String,
    /// Whether the text before `held` ends within a line.
    is_within_line: bool,
    /// The call that is read.
    reader: Option<Box<dyn CallReader>>,
    /// Whether a part of it was returned.
    has_begun: bool,
    /// All text since the last call or since the mark that began this one, if it turns out to be no call.
    written: String,
    /// Number of complete calls.
    calls: usize,
    /// Whether a fence was opened, which another one closes.
    is_fenced: bool,
    /// Whether there was any text.
    has_text: bool,
}

/// Where in an answer the next character is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Text,
    /// After an opening mark.
    Marked,
    /// In or after JSON without a mark, or after a closing mark.
    Unmarked,
}

impl ToolCallParser {
    /// A parser for an answer to which these tools were offered.
    pub fn new(format: ToolCallFormat, tools: Arc<[OfferedTool]>, only_one: bool) -> Self {
        Self {
            format,
            tools,
            only_one,
            place: Place::Text,
            held: String::new(),
            is_within_line: false,
            reader: None,
            has_begun: false,
            written: String::new(),
            calls: 0,
            is_fenced: false,
            has_text: false,
        }
    }

    /// Takes the next text and returns the parts that are certain now.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPart> {
        let mut parts = Vec::new();
        text.chars().for_each(|next| self.take(next, &mut parts));
        parts
    }

    /// Ends the answer: returns what was held back.
    pub fn finish(&mut self) -> Vec<AnswerPart> {
        let mut parts = Vec::new();
        // What is no call is read again, and may begin another one.
        while let Some(mut reader) = self.reader.take() {
            let mut read = Vec::new();
            let reading = reader.finish(&mut read);
            read.into_iter().for_each(|part| self.add(part, &mut parts));
            self.end_reading(reading, &mut parts);
        }
        match self.place {
            Place::Text => self.add_text(String::new(), &mut parts),
            // The fence around calls ends with the answer.
            Place::Unmarked if self.is_fenced && self.calls > 0 && self.after_call(&self.written).trim() == FENCE => {}
            Place::Marked | Place::Unmarked => self.leave(&mut parts),
        }
        parts
    }

    /// Adds a part, unless there is one call already and no more are wanted. Texts, and pieces of arguments, that follow each
    /// other are one part.
    fn add(&mut self, part: AnswerPart, parts: &mut Vec<AnswerPart>) {
        if self.only_one && self.calls > 0 {
            return;
        }
        self.has_text |= matches!(&part, AnswerPart::Text(text) if !text.trim().is_empty());
        match (parts.last_mut(), part) {
            (_, AnswerPart::Text(text)) if text.is_empty() => {}
            (Some(AnswerPart::Text(text)), AnswerPart::Text(more))
            | (Some(AnswerPart::Arguments(text)), AnswerPart::Arguments(more)) => text.push_str(&more),
            (_, part) => parts.push(part),
        }
    }

    /// Adds the held text, all but this end of it.
    fn add_text(&mut self, kept: String, parts: &mut Vec<AnswerPart>) {
        self.held.truncate(self.held.len() - kept.len());
        let text = std::mem::replace(&mut self.held, kept);
        self.is_within_line = match text.rsplit_once('\n') {
            Some((_, line)) => !line.trim().is_empty(),
            None => self.is_within_line || !text.trim().is_empty(),
        };
        self.add(AnswerPart::Text(text), parts);
    }

    fn take(&mut self, next: char, parts: &mut Vec<AnswerPart>) {
        match (self.place, self.reader.is_some()) {
            (_, true) => self.read(next, parts),
            (Place::Text, _) => self.take_text(next, parts),
            (Place::Marked | Place::Unmarked, _) => self.take_between_calls(next, parts),
        }
    }

    /// Takes a character of text, which may begin a call.
    fn take_text(&mut self, next: char, parts: &mut Vec<AnswerPart>) {
        if matches!(next, '{' | '[') && self.is_line_for_call() {
            let before = self.held.split_off(self.undecided_line());
            self.is_fenced = !before.trim().is_empty();
            let white_space = self.held.split_off(self.held.trim_end().len());
            self.add_text(String::new(), parts);
            (self.place, self.written) = (Place::Unmarked, white_space + &before);
            return self.take_between_calls(next, parts);
        }
        self.held.push(next);
        if let Some(mark) = self.format.openings.iter().find(|mark| self.held.ends_with(**mark)) {
            self.held.truncate(self.held.len() - mark.len());
            let white_space = self.held.split_off(self.held.trim_end().len());
            self.add_text(String::new(), parts);
            (self.place, self.written) = (Place::Marked, white_space + mark);
            self.held = String::new();
            return;
        }
        let undecided = self.format.openings.iter().map(|mark| overlap(&self.held, mark)).max().unwrap_or(0);
        let undecided = (self.held.len() - undecided).min(self.undecided_line());
        let decided = self.held[..undecided].trim_end().len();
        // Much white space is no layout, and to hold it back would take time.
        let decided = if self.held.len() - decided > MOST_WHITE_SPACE { undecided } else { decided };
        let kept = self.held[decided..].to_owned();
        self.add_text(kept, parts);
    }

    /// Whether a bracket after the held text stands at the beginning of a line, or after a fence.
    fn is_line_for_call(&self) -> bool {
        let start = self.held.rfind('\n').map_or(0, |end| end + 1);
        let line = self.held[start..].trim();
        (line.is_empty() || FENCES.contains(&line)) && !(self.is_within_line && start == 0)
    }

    /// Where in the held text the last lines begin that may come before a call: white space, and a fence before it.
    fn undecided_line(&self) -> usize {
        let held = &self.held;
        let start_of_line = |end: usize| held[..end].rfind('\n').map_or(0, |end| end + 1);
        let is_whole = |start: usize| start > 0 || !self.is_within_line;
        let start = start_of_line(held.len());
        if held.len() - start > MOST_WHITE_SPACE {
            return held.len();
        }
        let line = held[start..].trim();
        if !is_whole(start) || !(line.is_empty() || FENCES.iter().any(|fence| fence.starts_with(line))) {
            return held.len();
        }
        let Some(end_before) = start.checked_sub(1).filter(|_| line.is_empty()) else { return start };
        let before = start_of_line(end_before);
        if is_whole(before) && FENCES.contains(&held[before..end_before].trim()) { before } else { start }
    }

    /// Takes a character before, between or after calls.
    fn take_between_calls(&mut self, next: char, parts: &mut Vec<AnswerPart>) {
        self.written.push(next);
        let may_begin_mark = |next: char| self.format.openings.iter().any(|mark| mark.starts_with(next));
        if self.held.is_empty() {
            match next {
                '{' => return self.begin_json(parts),
                next if next.is_whitespace() || (BETWEEN.contains(next) && !may_begin_mark(next)) => return,
                _ => {}
            }
        }
        self.held.push(next);
        let marks = || self.format.openings.iter().chain(self.format.closings).copied().chain(FENCES);
        if marks().any(|mark| mark.len() > self.held.len() && mark.starts_with(self.held.as_str())) {
            return;
        }
        let longest = marks().filter(|mark| self.held.starts_with(mark)).max_by_key(|mark| mark.len());
        if let Some(mark) = longest {
            let rest = self.held.split_off(mark.len());
            self.held.clear();
            self.written.truncate(self.written.len() - rest.len());
            self.take_mark(mark);
            return rest.chars().for_each(|next| self.take(next, parts));
        }
        let held = std::mem::take(&mut self.held);
        if let Some(rest) = held.strip_prefix(|first| BETWEEN.contains(first)) {
            self.written.truncate(self.written.len() - rest.len());
            return rest.chars().for_each(|next| self.take(next, parts));
        }
        if self.place == Place::Marked && !self.written_is_after_call() {
            self.reader = Some(Box::new(NamedCall::new(Arc::clone(&self.tools))));
            self.written.truncate(self.written.len() - held.len());
            held.chars().for_each(|next| self.take(next, parts));
        } else {
            self.leave(parts);
        }
    }

    /// Goes on after a mark before, between or after calls.
    fn take_mark(&mut self, mark: &str) {
        let is_fence = FENCES.contains(&mark);
        let closes_fence = is_fence && self.is_fenced && self.calls > 0;
        self.is_fenced = is_fence && !closes_fence;
        if self.format.openings.contains(&mark) {
            self.place = Place::Marked;
        } else if self.calls > 0 && (closes_fence || !is_fence) {
            self.written.clear();
            self.place = Place::Unmarked;
        }
    }

    /// Whether the text since the last mark follows a complete call.
    fn written_is_after_call(&self) -> bool {
        self.calls > 0 && !self.format.openings.iter().any(|mark| self.written.contains(mark))
    }

    /// Where in the text of what turned out to be no call another mark begins; its end if there is none.
    fn next_mark(&self, written: &str) -> usize {
        let openings = || self.format.openings.iter();
        if written.len() > MOST_READ_AGAIN {
            return written.len();
        }
        let own = openings().filter_map(|mark| Some(written.find(mark)? + mark.len())).min().unwrap_or(0);
        let next = openings().filter_map(|mark| written[own..].find(mark)).min();
        next.map_or(written.len(), |next| own + next)
    }

    /// Goes on with text: what was written is no call, or follows one.
    fn leave(&mut self, parts: &mut Vec<AnswerPart>) {
        let is_after_call = self.written_is_after_call();
        let written = std::mem::take(&mut self.written);
        self.held = if is_after_call { self.after_call(&written) } else { written };
        (self.place, self.is_fenced) = (Place::Text, false);
        self.add_text(String::new(), parts);
    }

    /// Text after a call, without what separates it; text before the call stays a line of its own.
    fn after_call(&self, written: &str) -> String {
        let text = written.trim_start_matches(|next: char| next.is_whitespace() || "];".contains(next));
        let gap = if self.has_text && !text.is_empty() { "\n" } else { "" };
        format!("{gap}{text}")
    }

    fn begin_json(&mut self, parts: &mut Vec<AnswerPart>) {
        let known = (self.place == Place::Unmarked).then(|| Arc::clone(&self.tools));
        self.reader = Some(Box::new(JsonCall::new(known)));
        // The bracket is in `written` already.
        self.written.pop();
        self.read('{', parts);
    }

    fn read(&mut self, next: char, parts: &mut Vec<AnswerPart>) {
        self.written.push(next);
        let Some(mut reader) = self.reader.take() else { return };
        let mut read = Vec::new();
        let reading = reader.push(next, &mut read);
        self.has_begun |= read.iter().any(|part| matches!(part, AnswerPart::Call { .. }));
        read.into_iter().for_each(|part| self.add(part, parts));
        self.reader = Some(reader);
        if reading != Reading::More {
            self.reader = None;
            self.end_reading(reading, parts);
        }
    }

    fn end_reading(&mut self, reading: Reading, parts: &mut Vec<AnswerPart>) {
        let written = std::mem::take(&mut self.written);
        let has_begun = std::mem::take(&mut self.has_begun);
        if reading == Reading::Done {
            self.calls += 1;
            return;
        }
        self.place = Place::Text;
        if has_begun {
            return self.add(AnswerPart::NoCall(written), parts);
        }
        let next = self.next_mark(&written);
        self.held = written[..next].to_owned();
        self.add_text(String::new(), parts);
        written[next..].chars().for_each(|next| self.take(next, parts));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tools() -> Arc<[OfferedTool]> {
        let parameters =
            json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}});
        ["weather", "time"].map(|name| OfferedTool { name: name.into(), parameters: parameters.clone() }).into()
    }

    /// Parts of several pushes, as if they had come at once.
    fn joined(parts: Vec<AnswerPart>) -> Vec<AnswerPart> {
        let mut parser = ToolCallParser::new(ToolCallFormat::default(), Arc::new([]), false);
        let mut joined = Vec::new();
        parts.into_iter().for_each(|part| parser.add(part, &mut joined));
        joined
    }

    fn read_in(format: &str, chunks: &[&str], only_one: bool) -> Vec<AnswerPart> {
        let format = ToolCallFormat::named(format).expect("the format is known");
        let mut parser = ToolCallParser::new(format, tools(), only_one);
        let mut parts: Vec<AnswerPart> = chunks.iter().flat_map(|chunk| parser.push(chunk)).collect();
        parts.extend(parser.finish());
        joined(parts)
    }

    fn chunks_of(text: &str, size: usize) -> Vec<&str> {
        let mut chunks = Vec::new();
        let mut rest = text;
        while let Some((end, _)) = rest.char_indices().nth(size) {
            let (chunk, after) = rest.split_at(end);
            chunks.push(chunk);
            rest = after;
        }
        chunks.push(rest);
        chunks
    }

    /// What an answer is made of, if it comes in chunks of any size.
    fn read(format: &str, text: &str) -> Vec<AnswerPart> {
        let parts = read_in(format, &[text], false);
        for size in [1, 2, 3, 7] {
            assert_eq!(read_in(format, &chunks_of(text, size), false), parts, "{text} in chunks of {size}");
        }
        parts
    }

    fn text(text: &str) -> Vec<AnswerPart> {
        vec![AnswerPart::Text(text.into())]
    }

    fn call(name: &str, arguments: &str) -> Vec<AnswerPart> {
        vec![AnswerPart::Call { name: name.into() }, AnswerPart::Arguments(arguments.into()), AnswerPart::CallEnd]
    }

    const PARIS: &str = r#"{"city": "Paris \"}\u00e9", "days": 1.0}"#;

    #[test]
    fn every_family_is_read() {
        let object = format!(r#"{{"name": "weather", "arguments": {PARIS}}}"#);
        let other = r#"{"name": "time", "parameters": {}}"#;
        let both = [call("weather", PARIS), call("time", "{}")].concat();
        for (format, written) in [
            ("tagged", format!("<tool_call>\n{object}\n</tool_call>\n<tool_call>\n{other}\n</tool_call>")),
            ("tagged", format!("<tool_call>\n{object}\n{other}\n</tool_call>\n")),
            ("mistral", format!("[TOOL_CALLS] [{object}, {other}]")),
            ("mistral", format!("[TOOL_CALLS]weather[ARGS]{PARIS}[TOOL_CALLS]time[CALL_ID]123456789[ARGS]{{}}")),
            ("phi", format!("<|tool_call|>[{object}, {other}]<|/tool_call|>")),
            ("phi", format!("functools[{object},{other}]")),
            ("phi", format!("<tool_call>[{object}, {other}]").replace("<tool_call>", "<|tool_call|>")),
            ("command", format!("<|START_ACTION|>[\n{},\n{other}]<|END_ACTION|>", object.replace("name", "tool_name"))),
            ("function", format!("<function=weather>{PARIS}</function><function=time>{{}}</function>")),
            ("json", format!("{object}; {other}")),
            ("json", format!("{object}\n{other}")),
            ("json", format!("<|python_tag|>{object}; {other}<|eom_id|>")),
            ("json", format!("[{object}, {other}]")),
            ("json", format!("```json\n[{object},\n{other}]\n```")),
            ("tagged", format!("```json\n{object}\n```\n```json\n{other}\n```")),
            ("tagged", format!(r#"{{"type": "function", "function": {object}}}"#) + "\n" + other),
            (
                "deepseek",
                format!(
                    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{PARIS}\n```<｜tool▁call▁end｜>\n\
                     <｜tool▁call▁begin｜>time<｜tool▁sep｜>{{}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
                ),
            ),
            (
                "kimi",
                format!(
                    "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{PARIS}\
                     <|tool_call_end|><|tool_call_begin|>functions.time:1<|tool_call_argument_begin|>{{}}<|tool_call_end|>\
                     <|tool_calls_section_end|>"
                ),
            ),
            (
                "channel",
                format!(
                    "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{PARIS}<|call|>\
                     <|start|>assistant to=functions.time<|channel|>commentary json<|message|>{{}}<|call|>"
                ),
            ),
        ] {
            assert_eq!(read(format, &written), both, "{format}: {written}");
        }
    }

    #[test]
    fn arguments_as_elements_have_the_types_of_the_schema() {
        let expected = call("weather", r#"{"city":"1 {Paris}\n<x>","days":2}"#);
        for (format, written) in [
            (
                "tagged",
                "<tool_call>\n<function=weather>\n<parameter=city>\n1 {Paris}\n<x>\n</parameter>\n<parameter=days>\n2\n\
                 </parameter>\n</function>\n</tool_call>",
            ),
            (
                "tagged",
                "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>1 {Paris}\n<x></arg_value>\n<arg_key>days</arg_key>\n\
                 <arg_value>2</arg_value>\n</tool_call>",
            ),
            (
                "gemma",
                "<start_function_call>call:weather{city:<escape>1 {Paris}\n<x><escape>,days:2}<end_function_call>",
            ),
        ] {
            assert_eq!(read(format, written), expected, "{written}");
        }
        let optional: Arc<[OfferedTool]> = Arc::new([OfferedTool {
            name: "time".into(),
            parameters: json!({"properties": {"a": {"type": ["string", "null"]}, "b": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "c": {"type": "string"}}}),
        }]);
        for (format, written) in [
            (
                "tagged",
                "<function=time><parameter=a>null</parameter><parameter=b>null</parameter><parameter=c>null</parameter></function>",
            ),
            ("gemma", "<start_function_call>call:time{a:null,b:null,c:null}<end_function_call>"),
        ] {
            let format = ToolCallFormat::named(format).expect("it is known");
            let mut parser = ToolCallParser::new(format, Arc::clone(&optional), false);
            let parts = joined([parser.push(written), parser.finish()].concat());
            assert_eq!(parts, call("time", r#"{"a":null,"b":null,"c":"null"}"#));
        }
        let typed: Arc<[OfferedTool]> = Arc::new([OfferedTool {
            name: "ns:tool/$x".into(),
            parameters: json!({"properties": {"flag": {"type": "boolean"}, "none": {"type": ["integer", "null"]}, "one": {"enum": ["1", "2"]},
                "ref": {"$ref": "#/$defs/s"}, "city": {"type": "string"}}, "$defs": {"s": {"type": "string"}}}),
        }]);
        let written = "<tool_call>\n<function=ns:tool/$x>\n<parameter=flag>\nTrue\n</parameter>\n<parameter=none>\nNone\n</parameter>\n<parameter=one>\n1\n</parameter>\n<parameter=ref>\n12\n</parameter>\n<parameter=city>\nParis\n<parameter=days>\n2\n</parameter>\n</tool_call>\n<tool_call>\n<function=ns:tool/$x>\n</function>\n</tool_call>";
        let mut parser = ToolCallParser::new(ToolCallFormat::named("tagged").expect("it is known"), typed, false);
        let parts = joined([parser.push(written), parser.finish()].concat());
        let arguments = r#"{"flag":true,"none":null,"one":"1","ref":"12","city":"Paris","days":2}"#;
        assert_eq!(parts, [call("ns:tool/$x", arguments), call("ns:tool/$x", "{}")].concat());
        let lost = "<start_function_call>call:weather{city:<escape>Paris<escape> or London,days:2}<end_function_call>";
        assert_eq!(read("gemma", lost), text(lost));
        // What begins like another family's mark is text.
        let value =
            "<tool_call>\n<function=weather>\n<parameter=city>\n<arg_value>\n</parameter>\n</function>\n</tool_call>";
        assert_eq!(read("tagged", value), call("weather", r#"{"city":"<arg_value>"}"#));
        let value = "<tool_call>\n<function=weather>\n<parameter=city>\na </parameter> b\n</parameter>\n<parameter=days>2</parameter>\n</function>\n</tool_call>";
        assert_eq!(read("tagged", value), call("weather", r#"{"city":"a </parameter> b","days":2}"#));
        // Indentation belongs to the value.
        let indented = "<function=weather>\n<parameter=city>\n    if x:\n        y\n</parameter>\n</function>";
        assert_eq!(read("tagged", indented), call("weather", r#"{"city":"    if x:\n        y"}"#));
        let inline =
            "<function=weather>\n<parameter=city>\nx</parameter>\n<parameter=days>\n2\n</parameter>\n</function>";
        assert_eq!(read("tagged", inline), call("weather", r#"{"city":"x","days":2}"#));
        // Names that marks tell need not be offered.
        for (format, written) in [
            ("kimi", "<|tool_call_begin|>functions.other:0<|tool_call_argument_begin|>{}<|tool_call_end|>"),
            ("mistral", "[TOOL_CALLS]other[ARGS]{}"),
            ("gemma", "<start_function_call>call:other{}<end_function_call>"),
        ] {
            assert_eq!(read(format, written), call("other", "{}"), "{written}");
        }
        let lost = "[TOOL_CALLS]time[ARGS]w10\n{\"name\": \"weather\"}";
        assert_eq!(read("mistral", lost), text(lost));
        // Marks at ends are left out at times.
        for written in [
            "<tool_call>\n<function=weather>\n<parameter=city>\n1 {Paris}\n<x>\n<parameter=days>\n2\n</function>\n</tool_call>",
            "<tool_call>\n<function=weather>\n<parameter=city>\n1 {Paris}\n<x>\n</parameter>\n<parameter=days>\n2\n</function>",
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>1 {Paris}\n<x>\n<arg_key>days</arg_key>\n<arg_value>2</tool_call>",
        ] {
            assert_eq!(read("tagged", written), expected, "{written}");
        }
        let nested = "<start_function_call>call:weather{city:<escape>a<escape>,at:{days:[1,<escape>},2<escape>],is:true},days:2}<end_function_call>";
        let arguments = r#"{"city":"a","at":{"days":[1,"},2"],"is":true},"days":2}"#;
        assert_eq!(read("gemma", nested), call("weather", arguments));
        assert_eq!(read("tagged", "<tool_call>\n<function=time>\n</function>\n</tool_call>"), call("time", "{}"));
        assert_eq!(read("tagged", "<tool_call>time\n</tool_call>"), call("time", "{}"));
    }

    #[test]
    fn text_beside_calls_is_text_and_white_space_is_not() {
        let object = r#"{"name": "time", "arguments": {}}"#;
        let whole = [text("Let me see."), call("time", "{}"), text("\nDone.\n")].concat();
        for (format, written) in [
            ("tagged", format!("Let me see.\n\n<tool_call>{object}</tool_call>\n\nDone.\n")),
            ("tagged", format!("Let me see.\n```json\n{object}\n```\nDone.\n")),
            ("json", format!("Let me see.\n{object}\nDone.\n")),
            ("mistral", format!("Let me see.[TOOL_CALLS][{object}]\nDone.\n")),
        ] {
            assert_eq!(read(format, &written), whole, "{format}: {written}");
        }
        for code in ["```python\nprint(1)\n```\n", "```\ncode\n```"] {
            for written in
                [format!("<tool_call>{object}</tool_call>\n{code}"), format!("```json\n{object}\n```\n{code}")]
            {
                assert_eq!(read("tagged", &written), [call("time", "{}"), text(code)].concat(), "{written}");
            }
        }
        let fenced = format!("```json\n{object}\n```\n");
        assert_eq!(read("tagged", &format!("{fenced}{fenced}")), [call("time", "{}"), call("time", "{}")].concat());
    }

    #[test]
    fn text_keeps_its_lines_and_its_end() {
        for format in ["tagged", "json", "mistral", "deepseek", "function"] {
            for written in [
                "See:\n[link](http://x)\n[b](y)\nend",
                "code:\n```json\n{\"a\": 1}\n```",
                "int main(void)\n{\n    int a[] =\n    {\n  1 };",
                "a\n\n\n[1]\n\n\n{}",
            ] {
                assert_eq!(read(format, written), text(written), "{format}");
            }
        }
        let object = r#"{"name": "time", "arguments": {}}"#;
        let rest = "Text mentions <tool_call> tags and <tool_call> again, all of this stays.";
        let read_twice = read("tagged", &format!("<tool_call>{object}</tool_call>\n{rest}"));
        assert_eq!(read_twice, [call("time", "{}"), text(rest)].concat());
        let cut = "<tool_call>\n<function=weather>\n<parameter=city>\nLost text here";
        let read_cut = read("tagged", &format!("<tool_call>{object}</tool_call>\n{cut}"));
        assert_eq!(read_cut, [call("time", "{}"), text(&format!("\n{cut}"))].concat());
        let code = "```python\nx = 1\n```\nDone.";
        let call_in_fence = format!(
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{{}}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n{code}"
        );
        assert_eq!(read("deepseek", &call_in_fence), [call("time", "{}"), text(code)].concat());
    }

    #[test]
    fn a_mark_in_prose_hides_no_call() {
        let written = "I use <tool_call> for it. <tool_call>{\"name\": \"time\", \"arguments\": {}}</tool_call>";
        assert_eq!(read("tagged", written), [text("I use <tool_call> for it. "), call("time", "{}")].concat());
        for (format, code) in [
            ("phi", "@functools.lru_cache(maxsize=None)\ndef fib(n, memo={}): pass"),
            ("json", "<|python_tag|>import json\nd = {\"a\": 1}"),
        ] {
            assert_eq!(read(format, code), text(code));
        }
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for written in [
            "a < b <tools> c <tool_cal",
            "<tool_call>no</tool_call>",
            "<tool_call>{\"name\": \"time\"",
            "{not JSON",
            "{\"a\": 1}",
            "[\"time\", {}, {}]",
            "[[\"time\", {}, {}]]",
            "[]",
            "[1, 2] is a list",
            "{\"name\": \"time\", \"arguments\": 5}",
            "{\"name\": \"unknown\", \"arguments\": {}}",
            "{\"name\": \"Ada\", \"age\": 36}",
            "<tool_call>{\"name\": \"time\", \"args\": {\"a\": 1}}</tool_call>",
            "<tool_call>time of day {\"a\": 1}",
            "Hello {\"name\": \"time\", \"arguments\": {}}",
            "```json\n{\"a\": 1}\n```\n",
            "```\ncode {\n```",
            " \n",
        ] {
            assert_eq!(read("tagged", written), text(written), "{written}");
        }
    }

    #[test]
    fn arguments_come_as_they_are_written() {
        let mut parser = ToolCallParser::new(ToolCallFormat::named("tagged").expect("it is known"), tools(), false);
        assert_eq!(parser.push("<tool_call>{\"name\": \"weather\", \"argu"), []);
        let begun = [AnswerPart::Call { name: "weather".into() }, AnswerPart::Arguments("{\"city\": \"Par".into())];
        assert_eq!(parser.push("ments\": {\"city\": \"Par"), begun);
        assert_eq!(parser.push("is"), [AnswerPart::Arguments("is".into())]);
        // Arguments that turn out to be no JSON are no call.
        let written = "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"]";
        assert_eq!(parser.push("\"]"), [AnswerPart::Arguments("\"".into()), AnswerPart::NoCall(written.into())]);
    }

    #[test]
    fn what_only_begins_like_a_call_is_passed_on() {
        let mut parser = ToolCallParser::new(ToolCallFormat::named("json").expect("it is known"), tools(), false);
        assert_eq!(parser.push("{\"na"), []);
        assert_eq!(parser.push("mes\":"), text("{\"names\":"));
    }

    #[test]
    fn much_white_space_is_not_held_back() {
        let mut parser = ToolCallParser::new(ToolCallFormat::default(), tools(), false);
        let space = " ".repeat(5000);
        let passed = parser.push(&format!("x{space}"));
        assert!(matches!(&passed[..], [AnswerPart::Text(text)] if text.len() > 4000), "{passed:?}");
        assert_eq!(read("json", &format!("x{space}\n")), text(&format!("x{space}\n")));
    }

    #[test]
    fn only_the_first_call_is_returned_if_one_is_wanted() {
        let written =
            "[TOOL_CALLS] [{\"name\": \"time\", \"arguments\": {}}, {\"name\": \"time\", \"arguments\": {}}] x";
        assert_eq!(read_in("mistral", &[written], true), call("time", "{}"));
    }

    #[test]
    fn arguments_may_be_a_text_with_json_and_come_before_the_name() {
        let text_arguments = r#"{"arguments": "{\"days\": 1}", "name": "weather"}"#;
        assert_eq!(read("json", text_arguments), call("weather", r#"{"days": 1}"#));
        assert_eq!(
            read("json", r#"{"parameters": {"days": 1}, "name": "weather"}"#),
            call("weather", r#"{"days": 1}"#)
        );
        assert_eq!(read("json", r#"{"name": "time"}"#), call("time", "{}"));
    }
}
