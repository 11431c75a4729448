//! Reasoning: what a model writes before its answer, between marks of its family.

use crate::text::{ChatTemplate, overlap};

/// How a model family marks its reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReasoningFormat {
    /// The name of the format in settings.
    pub name: &'static str,
    /// The mark before the reasoning. A prompt may end with it.
    pub open: &'static str,
    /// The mark between the reasoning and the answer.
    pub close: &'static str,
}

/// The known formats. The first whose closing mark is in a chat template is the model's.
const FORMATS: &[ReasoningFormat] = &[
    // gpt-oss: channels of a message.
    ReasoningFormat {
        name: "channel",
        open: "<|channel|>analysis<|message|>",
        close: "<|end|><|start|>assistant<|channel|>final<|message|>",
    },
    // Magistral.
    ReasoningFormat { name: "mistral", open: "[THINK]", close: "[/THINK]" },
    // Command R7B, Command A.
    ReasoningFormat { name: "command", open: "<|START_THINKING|>", close: "<|END_THINKING|>" },
    // Seed-OSS.
    ReasoningFormat { name: "seed", open: "<seed:think>", close: "</seed:think>" },
    // Kimi-VL.
    ReasoningFormat { name: "kimi", open: "◁think▷", close: "◁/think▷" },
    // DeepSeek-R1 and its distilled models, Qwen3, QwQ, SmolLM3, GLM-4.5, ERNIE-4.5 Thinking, Phi-4 reasoning, Nemotron.
    ReasoningFormat { name: "think", open: "<think>", close: "</think>" },
];

impl ReasoningFormat {
    /// The names of all formats.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FORMATS.iter().map(|format| format.name)
    }

    /// The format with this name.
    pub fn named(name: &str) -> Option<Self> {
        FORMATS.iter().find(|format| format.name == name).copied()
    }

    /// The format of the models that a chat template is written for; `None` if it mentions no known mark.
    pub fn of(template: &ChatTemplate) -> Option<Self> {
        let is_known = |format: &&ReasoningFormat| match format.name {
            // The marks are put together from parts there.
            "channel" => template.mentions("<|channel|>") && template.mentions("analysis"),
            _ => template.mentions(format.close),
        };
        FORMATS.iter().find(is_known).copied()
    }

    /// The marks, or the special tokens of which they consist.
    pub fn marks(&self) -> Vec<&'static str> {
        match self.name {
            "channel" => vec!["<|channel|>", "<|message|>", "<|end|>", "<|start|>"],
            _ => vec![self.open, self.close],
        }
    }

    /// Whether an answer to this prompt begins within the reasoning.
    pub fn is_open_after(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open)
    }
}

/// Most bytes that are held back: much white space is text, and to hold it back would take time.
const MOST_HELD: usize = 1024;

/// The parts of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SplitText {
    /// Text between the marks, without white space around it.
    pub reasoning: String,
    /// Text of the answer, without white space between it and the reasoning.
    pub answer: String,
}

impl SplitText {
    /// Adds text that follows.
    pub fn append(&mut self, more: Self) {
        self.reasoning += &more.reasoning;
        self.answer += &more.answer;
    }
}

/// Splits a streamed answer into reasoning and the answer itself. Only reasoning that comes first counts: marks later in an
/// answer are part of its text.
#[derive(Debug, Clone)]
pub struct ReasoningSplitter {
    format: ReasoningFormat,
    place: Place,
    /// Text of which it is not known yet what it belongs to.
    held: String,
}

/// Where in an answer the next text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the opening mark, if there is one.
    Start,
    /// In white space after the opening mark.
    Opened,
    Reasoning,
    /// In white space after the closing mark.
    Closed,
    Answer,
}

impl ReasoningSplitter {
    /// A splitter for an answer; `is_open` says that the prompt has the opening mark.
    pub fn new(format: ReasoningFormat, is_open: bool) -> Self {
        Self { format, place: if is_open { Place::Opened } else { Place::Start }, held: String::new() }
    }

    /// Whether the next text is certainly part of the reasoning, as long as no closing mark comes.
    pub fn is_in_reasoning(&self) -> bool {
        matches!(self.place, Place::Opened | Place::Reasoning)
    }

    /// Whether the answer may still begin with the opening mark.
    pub fn is_undecided(&self) -> bool {
        self.place == Place::Start
    }

    /// Takes the next text and returns what is certain now.
    pub fn push(&mut self, text: &str) -> SplitText {
        self.held += text;
        let mut split = SplitText::default();
        while self.advance(&mut split) {}
        split
    }

    /// Ends the text: returns what was held back. Reasoning without a closing mark stays reasoning.
    pub fn finish(&mut self) -> SplitText {
        let rest = std::mem::take(&mut self.held);
        match self.is_in_reasoning() {
            true => SplitText { reasoning: rest.trim_end().to_owned(), ..SplitText::default() },
            false => SplitText { answer: rest, ..SplitText::default() },
        }
    }

    /// Reads one part of the held text. Returns whether there may be more to read.
    fn advance(&mut self, split: &mut SplitText) -> bool {
        match self.place {
            Place::Start => self.read_opening_mark(),
            Place::Opened => self.skip_white_space(Place::Reasoning),
            Place::Reasoning => self.read_reasoning(split),
            Place::Closed => self.skip_white_space(Place::Answer),
            Place::Answer => {
                split.answer += &std::mem::take(&mut self.held);
                false
            }
        }
    }

    fn read_opening_mark(&mut self) -> bool {
        let begun = self.held.trim_start();
        if let Some(rest) = begun.strip_prefix(self.format.open) {
            (self.held, self.place) = (rest.to_owned(), Place::Opened);
        } else if self.format.open.starts_with(begun) && self.held.len() < MOST_HELD {
            return false;
        } else {
            self.place = Place::Answer;
        }
        true
    }

    fn skip_white_space(&mut self, next: Place) -> bool {
        self.held = self.held.trim_start().to_owned();
        let has_text = !self.held.is_empty();
        if has_text {
            self.place = next;
        }
        has_text
    }

    fn read_reasoning(&mut self, split: &mut SplitText) -> bool {
        let close = self.format.close;
        if let Some(at) = self.held.find(close) {
            split.reasoning += self.held[..at].trim_end();
            (self.held, self.place) = (self.held[at + close.len()..].to_owned(), Place::Closed);
            return true;
        }
        // White space at the end is left out if the closing mark comes next.
        let may_be_mark = self.held.len() - overlap(&self.held, close);
        let without_space = self.held[..may_be_mark].trim_end().len();
        let decided = if self.held.len() - without_space < MOST_HELD { without_space } else { may_be_mark };
        let rest = self.held.split_off(decided);
        split.reasoning += &std::mem::replace(&mut self.held, rest);
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THINK: ReasoningFormat = ReasoningFormat { name: "think", open: "<think>", close: "</think>" };

    fn split(is_open: bool, chunks: &[&str]) -> (String, String) {
        let mut splitter = ReasoningSplitter::new(THINK, is_open);
        let mut whole = SplitText::default();
        chunks.iter().for_each(|chunk| whole.append(splitter.push(chunk)));
        whole.append(splitter.finish());
        (whole.reasoning, whole.answer)
    }

    fn parts(reasoning: &str, answer: &str) -> (String, String) {
        (reasoning.into(), answer.into())
    }

    #[test]
    fn reasoning_ends_at_its_mark_and_the_rest_is_the_answer() {
        assert_eq!(split(false, &["<think>\nHm.\n</think>\n\nYes. <think>"]), parts("Hm.", "Yes. <think>"));
        assert_eq!(split(false, &["\n<thi", "nk>a </thin", "g> b</th", "ink>c"]), parts("a </thing> b", "c"));
        assert_eq!(split(true, &["a", " \n", "b\n", "</think>"]), parts("a \nb", ""));
        assert_eq!(split(true, &["cut <", "/think"]), parts("cut </think", ""));
        assert_eq!(split(true, &["</think>x"]), parts("", "x"));
    }

    #[test]
    fn much_white_space_is_not_held_back() {
        let space = " ".repeat(5000);
        for is_open in [false, true] {
            let mut splitter = ReasoningSplitter::new(THINK, is_open);
            splitter.push(if is_open { "x" } else { "" });
            let passed = splitter.push(&space);
            assert!(passed.reasoning.len() + passed.answer.len() > 3000, "{is_open}");
        }
    }

    #[test]
    fn an_answer_without_reasoning_is_passed_on_at_once() {
        let mut splitter = ReasoningSplitter::new(THINK, false);
        assert_eq!(splitter.push(" <th"), SplitText::default());
        assert_eq!(splitter.push("e> "), SplitText { answer: " <the> ".into(), ..SplitText::default() });
        assert_eq!(splitter.push("</think>").answer, "</think>");
    }

    proptest! {
        #[test]
        fn chunks_change_nothing(text in "(<think>)?[ \n<a/]{0,9}(</think>)?[ \n<a/]{0,9}", cuts in proptest::collection::vec(1_usize..5, 0..30), is_open: bool) {
            let (mut chunks, mut rest) = (Vec::new(), text.as_str());
            for cut in cuts {
                let (chunk, after) = rest.split_at(cut.min(rest.len()));
                chunks.push(chunk);
                rest = after;
            }
            chunks.push(rest);
            prop_assert_eq!(split(is_open, &chunks), split(is_open, &[&text]));
        }
    }
}
