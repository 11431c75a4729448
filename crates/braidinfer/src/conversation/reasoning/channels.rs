//! Answers of gpt-oss: messages in channels. Reasoning is in the channel `analysis`; a message with a recipient is a call; all
//! others are text.

use super::marks::MOST_HELD;
use super::{ReasoningStart, SplitText};

pub(super) const START: &str = "<|start|>";
pub(super) const CHANNEL: &str = "<|channel|>";
pub(super) const MESSAGE: &str = "<|message|>";
pub(super) const END: &str = "<|end|>";
pub(super) const CALL: &str = "<|call|>";

/// What begins the answer.
pub(super) const ANSWER_HEADER: &str = "<|channel|>final<|message|>";
/// What ends the reasoning and begins the next header.
pub(super) const NEXT_HEADER: &str = "<|end|><|start|>assistant";

/// What a header may begin with.
const HEADERS: [&str; 4] = ["<|start|>assistant", CHANNEL, MESSAGE, "to="];
/// What ends a message, and whether it belongs to it: some models leave out the end.
const ENDS: [(&str, bool); 4] = [(END, true), (CALL, true), (START, false), (CHANNEL, false)];
/// What begins another message for certain.
const NEXT_MESSAGE: &str = "<|start|>assistant<|channel|>";
/// What stands between two messages of one kind.
const BETWEEN: &str = "\n\n";

/// Where an answer begins after what the prompt has of it.
pub(super) fn start_after(begun: &str) -> ReasoningStart {
    match begun.rsplit_once(MESSAGE) {
        None => ReasoningStart::Undecided,
        Some((_, message)) if message.contains(END) => ReasoningStart::Undecided,
        Some((before, _)) if kind_of(before) == Kind::Reasoning => ReasoningStart::Open,
        Some(_) => ReasoningStart::Closed,
    }
}

#[derive(Debug, Clone)]
pub(super) struct ChannelSplitter {
    place: Place,
    /// Text of which it is not known yet what it belongs to.
    held: String,
    /// Whether there is reasoning, and whether there is text, from an earlier message.
    has_reasoning: bool,
    has_answer: bool,
    /// Where in the JSON of a call the text is.
    json: InJson,
}

/// Whether a place in JSON is within a text, where marks are no marks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum InJson {
    #[default]
    Outside,
    Text,
    /// After a backslash.
    Escape,
}

impl InJson {
    fn after(self, next: char) -> Self {
        match (self, next) {
            (Self::Outside, '"') | (Self::Escape, _) => Self::Text,
            (Self::Text, '"') => Self::Outside,
            (Self::Text, '\\') => Self::Escape,
            (place, _) => place,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Header,
    /// Before the first text of a message.
    Begun(Kind),
    Message(Kind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Answer,
    /// Its marks are kept, for the parser of calls.
    Call,
}

/// What kind of message a header begins.
fn kind_of(header: &str) -> Kind {
    let last = header.rsplit_once(START).map_or(header, |(_, last)| last);
    let channel = last.rsplit_once(CHANNEL).map_or("", |(_, channel)| channel);
    if last.contains("to=") {
        Kind::Call
    } else if channel.trim_start().starts_with("analysis") {
        Kind::Reasoning
    } else {
        Kind::Answer
    }
}

/// The header of a call in the one way that the parser of calls reads.
fn call_header(header: &str) -> String {
    let recipient = header.rsplit_once("to=").map_or("", |(_, after)| after);
    let recipient = recipient.split(|next: char| next.is_whitespace() || next == '<').next().unwrap_or_default();
    format!("{CHANNEL}commentary to={recipient}{MESSAGE}")
}

impl ChannelSplitter {
    pub(super) fn new(start: ReasoningStart) -> Self {
        let place = match start {
            ReasoningStart::Undecided => Place::Header,
            ReasoningStart::Open => Place::Begun(Kind::Reasoning),
            ReasoningStart::Closed => Place::Begun(Kind::Answer),
        };
        Self { place, held: String::new(), has_reasoning: false, has_answer: false, json: InJson::Outside }
    }

    pub(super) fn is_in_reasoning(&self) -> bool {
        matches!(self.place, Place::Begun(Kind::Reasoning) | Place::Message(Kind::Reasoning))
    }

    pub(super) fn is_undecided(&self) -> bool {
        self.place == Place::Header
    }

    pub(super) fn push(&mut self, text: &str) -> SplitText {
        self.held += text;
        let mut split = SplitText::default();
        while self.advance(&mut split) {}
        split
    }

    pub(super) fn finish(&mut self) -> SplitText {
        let rest = std::mem::take(&mut self.held);
        match self.place {
            // A header that is cut says nothing, unless it is that of a call.
            Place::Header if is_cut_header(&rest) => SplitText::default(),
            Place::Header => SplitText { answer: without_header(&rest).to_owned(), ..SplitText::default() },
            Place::Begun(Kind::Reasoning) | Place::Message(Kind::Reasoning) => {
                SplitText { reasoning: rest, ..SplitText::default() }
            }
            _ => SplitText { answer: rest, ..SplitText::default() },
        }
    }

    /// Reads one part of the held text. Returns whether there may be more to read.
    fn advance(&mut self, split: &mut SplitText) -> bool {
        match self.place {
            Place::Header => self.read_header(split),
            _ if self.held.is_empty() => false,
            // An empty message says nothing.
            Place::Begun(kind) if self.may_end() => {
                let ends = ENDS.iter().any(|(mark, _)| self.held.starts_with(mark));
                ends && self.read_message(kind, split)
            }
            Place::Begun(kind) => {
                self.separate(kind, split);
                self.place = Place::Message(kind);
                true
            }
            Place::Message(kind) => self.read_message(kind, split),
        }
    }

    fn read_header(&mut self, split: &mut SplitText) -> bool {
        if let Some((header, message)) = self.held.split_once(MESSAGE).filter(|(header, _)| is_whole_header(header)) {
            let kind = kind_of(header);
            if kind == Kind::Call {
                split.answer += &call_header(header);
            }
            (self.place, self.held) = (Place::Begun(kind), message.to_owned());
            return true;
        }
        if may_be_header(&self.held) {
            return false;
        }
        // Text without a header.
        let rest = without_header(&self.held).to_owned();
        if !rest.is_empty() && ENDS.iter().any(|(mark, _)| mark.len() > rest.len() && mark.starts_with(&rest)) {
            return false;
        }
        // Another header follows one that was left unfinished.
        if rest.len() < self.held.len() && (rest.starts_with(START) || rest.starts_with(CHANNEL)) {
            self.held = rest;
            return true;
        }
        self.held = rest;
        self.separate(Kind::Answer, split);
        self.place = Place::Message(Kind::Answer);
        // A mark that begins no header is text; it would end this message at once.
        if let Some((mark, _)) = ENDS.iter().find(|(mark, is_part)| !is_part && self.held.starts_with(mark)) {
            split.answer += mark;
            self.held = self.held.split_off(mark.len());
        }
        true
    }

    /// Whether the held text is a mark that ends a message, or may become one.
    fn may_end(&self) -> bool {
        let held = self.held.as_str();
        ENDS.iter().any(|(mark, _)| held.starts_with(mark) || mark.starts_with(held))
    }

    fn separate(&mut self, kind: Kind, split: &mut SplitText) {
        let (has_text, text) = match kind {
            Kind::Reasoning => (&mut self.has_reasoning, &mut split.reasoning),
            Kind::Answer => (&mut self.has_answer, &mut split.answer),
            Kind::Call => return,
        };
        if std::mem::replace(has_text, true) {
            *text += BETWEEN;
        }
    }

    /// Moves text of a call up to a mark that ends it, or that may: marks within its JSON's texts do not.
    fn read_call(&mut self, text: &mut String) {
        let mut read = 0;
        for next in self.held.chars() {
            let rest = &self.held[read..];
            let may_end = ENDS.iter().any(|(mark, _)| rest.starts_with(mark) || mark.starts_with(rest));
            // Another message begins whatever is open.
            let begins = NEXT_MESSAGE.starts_with(rest) || rest.starts_with(NEXT_MESSAGE);
            if begins || (self.json == InJson::Outside && may_end) {
                break;
            }
            self.json = self.json.after(next);
            read += next.len_utf8();
        }
        let rest = self.held.split_off(read);
        *text += &std::mem::replace(&mut self.held, rest);
    }

    fn read_message(&mut self, kind: Kind, split: &mut SplitText) -> bool {
        let text = if kind == Kind::Reasoning { &mut split.reasoning } else { &mut split.answer };
        if kind == Kind::Call {
            self.read_call(text);
            // What is left is a mark, or its beginning.
            let is_within = self.json != InJson::Outside && !self.held.starts_with(NEXT_MESSAGE);
            if is_within || !ENDS.iter().any(|(mark, _)| self.held.starts_with(mark)) {
                return false;
            }
            self.json = InJson::Outside;
        }
        let ends = ENDS.iter().filter_map(|end| Some((self.held.find(end.0)?, end)));
        if let Some((at, (mark, is_part))) = ends.min_by_key(|(at, _)| *at) {
            *text += &self.held[..at];
            if kind == Kind::Call {
                *text += CALL;
            }
            self.held = self.held[if *is_part { at + mark.len() } else { at }..].to_owned();
            self.place = Place::Header;
            return true;
        }
        let held_back = ENDS.iter().map(|(mark, _)| crate::text::overlap(&self.held, mark)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - held_back);
        *text += &std::mem::replace(&mut self.held, rest);
        false
    }
}

/// Whether a text begins as a header does, and goes on so.
fn is_header(text: &str) -> bool {
    rest_of_header(text).is_some_and(|rest| is_header_text(rest, true))
}

/// What follows the beginning of a header.
fn rest_of_header(text: &str) -> Option<&str> {
    HEADERS.iter().find_map(|beginning| text.trim_start().strip_prefix(beginning))
}

/// Whether a text has names and marks as headers do; the last mark may not be complete yet.
fn is_header_text(rest: &str, may_be_cut: bool) -> bool {
    let marks = [CHANNEL, "<|constrain|>", MESSAGE];
    let mut rest = rest;
    while let Some(first) = rest.chars().next() {
        let is_name = first.is_ascii_alphanumeric() || " _-.=".contains(first);
        rest = match marks.iter().find_map(|mark| rest.strip_prefix(mark)) {
            Some(after) => after,
            None if is_name => &rest[first.len_utf8()..],
            None => return may_be_cut && marks.iter().any(|mark| mark.starts_with(rest)),
        };
    }
    true
}

/// Whether a text is the beginning of a header, and has no words of its own.
fn is_cut_header(text: &str) -> bool {
    let begun = text.trim_start();
    let words = begun.strip_prefix(HEADERS[0]).map(str::trim).filter(|rest| !rest.starts_with('<'));
    is_header(text) && kind_of(text) != Kind::Call && words.is_none_or(str::is_empty)
}

/// Whether a text before the mark of a message is its header.
fn is_whole_header(text: &str) -> bool {
    let is_header = rest_of_header(text).is_some_and(|rest| is_header_text(rest, false));
    text.len() + MESSAGE.len() < MOST_HELD && (is_header || text.trim().is_empty())
}

/// Whether a text is a header, as far as it goes.
fn may_be_header(text: &str) -> bool {
    let begun = text.trim_start();
    text.len() < MOST_HELD && (is_header(text) || HEADERS.iter().any(|beginning| beginning.starts_with(begun)))
}

/// Text that has the beginning of a header, but not its message.
fn without_header(text: &str) -> &str {
    let begun = text.trim_start();
    begun.strip_prefix(HEADERS[0]).map_or(text, str::trim_start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{parts, split_pieces};
    use super::*;

    fn split(start: ReasoningStart, pieces: &[&str]) -> (String, String) {
        split_pieces("channel", start, pieces)
    }

    #[test]
    fn messages_are_told_apart_by_their_channels() {
        let undecided = |text: &str| split(ReasoningStart::Undecided, &[text]);
        let analysis = "<|channel|>analysis<|message|>Hm.<|end|>";
        let last = "<|start|>assistant<|channel|>final<|message|>Yes.";
        assert_eq!(undecided(&format!("{analysis}{last}")), parts("Hm.", "Yes."));
        assert_eq!(undecided("<|channel|>final<|message|>Yes."), parts("", "Yes."));
        assert_eq!(undecided("Yes. <|x|>"), parts("", "Yes. <|x|>"));
        assert_eq!(undecided("<|channel|>{} <|channel|>!"), parts("", "<|channel|>{} \n\n<|channel|>!"));
        assert_eq!(split(ReasoningStart::Closed, &[last]), parts("", "Yes."));
        let open = "<|channel|>commentary to=functions.time<|message|>{\"a";
        assert_eq!(
            undecided(&format!("{open}{last}")),
            parts("", &format!("{open}<|call|>\n\nYes.").replace("\n\n", ""))
        );
        for call in [
            "<|channel|>commentary to=functions.time <|constrain|>json",
            " to=functions.time<|channel|>commentary json",
        ] {
            let call = format!("{analysis}<|start|>assistant{call}<|message|>{{}}<|call|>");
            assert_eq!(undecided(&call), parts("Hm.", "<|channel|>commentary to=functions.time<|message|>{}<|call|>"));
        }
        let argument = r#"{"a": "<|call|> \"<|end|>"}"#;
        let call = format!("<|channel|>commentary to=functions.time<|message|>{argument}<|call|>");
        assert_eq!(undecided(&format!("{analysis}{call}")), parts("Hm.", &call));
        let preamble = "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>";
        assert_eq!(
            undecided(&format!("{analysis}{preamble}<|start|>assistant{analysis}{last}")),
            parts("Hm.\n\nHm.", "I look.\n\nYes.")
        );
        assert_eq!(undecided("<|channel|>analysis<|message|>cut <|en"), parts("cut <|en", ""));
        assert_eq!(undecided(&format!("{analysis}<|start|>assistant<|chan")), parts("Hm.", ""));
        assert_eq!(undecided("<|channel|>analysis<|message|>a<|channel|>final<|message|>b"), parts("a", "b"));
        for text in ["Hello world", "Hello, world", "{\"name\": \"time\"}"] {
            assert_eq!(undecided(&format!("{analysis}<|start|>assistant{text}")), parts("Hm.", text));
        }
        assert_eq!(split(ReasoningStart::Open, &["a<|end|>", last]), parts("a", "Yes."));
        assert_eq!(split(ReasoningStart::Closed, &["a"]), parts("", "a"));
    }

    #[test]
    fn prompts_say_where_an_answer_begins() {
        assert_eq!(start_after("<|start|>assistant"), ReasoningStart::Undecided);
        assert_eq!(start_after("<|start|>assistant<|channel|>analysis<|message|>Hm"), ReasoningStart::Open);
        assert_eq!(start_after("<|start|>assistant<|channel|>final<|message|>"), ReasoningStart::Closed);
    }

    proptest! {
        #[test]
        fn chunks_change_nothing(
            pieces in proptest::collection::vec(proptest::sample::select(vec!["<|start|>assistant", "<|channel|>", "analysis", "final",
                " to=functions.a", "<|message|>", "<|end|>", "<|call|>", "a", "<|", " ", "\"", "\\"]), 0..14),
            size in 1_usize..9,
        ) {
            let text = pieces.concat();
            let chunks: Vec<&str> = text.as_bytes().chunks(size).map(|chunk| std::str::from_utf8(chunk).expect("it is ASCII")).collect();
            prop_assert_eq!(split(ReasoningStart::Undecided, &chunks), split(ReasoningStart::Undecided, &[&text]));
        }
    }
}
