//! Reasoning: what a model writes before its answer, between marks of its family.

mod channels;
mod constraint;
mod marks;

pub use self::constraint::ReasoningLimits;

use self::channels::ChannelSplitter;
use self::marks::MarkSplitter;
use crate::text::ChatTemplate;

/// How a model family marks its reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReasoningFormat {
    /// The name of the format in settings.
    pub name: &'static str,
    /// The mark before the reasoning. A prompt may end with it.
    pub open: &'static str,
    /// The mark between the reasoning and the answer.
    pub close: &'static str,
    /// Marks around the answer, which some models write.
    pub around_answer: Option<(&'static str, &'static str)>,
    /// What a chat template of such models mentions.
    hints: &'static [&'static str],
}

/// The known formats. The first whose hints are all in a chat template is the model's.
const FORMATS: &[ReasoningFormat] = &[
    // gpt-oss: messages in channels.
    ReasoningFormat {
        name: "channel",
        open: "<|channel|>analysis<|message|>",
        close: "<|end|><|start|>assistant<|channel|>final<|message|>",
        around_answer: None,
        // The marks are put together from parts there.
        hints: &["<|channel|>", "analysis"],
    },
    // Magistral.
    ReasoningFormat { name: "mistral", open: "[THINK]", close: "[/THINK]", around_answer: None, hints: &["[/THINK]"] },
    // Command R7B, Command A.
    ReasoningFormat {
        name: "command",
        open: "<|START_THINKING|>",
        close: "<|END_THINKING|>",
        around_answer: None,
        hints: &["<|END_THINKING|>"],
    },
    // Gemma 4.
    ReasoningFormat {
        name: "gemma",
        open: "<|channel>thought",
        close: "<channel|>",
        around_answer: None,
        hints: &["<|channel>", "<channel|>"],
    },
    // Seed-OSS.
    ReasoningFormat {
        name: "seed",
        open: "<seed:think>",
        close: "</seed:think>",
        around_answer: None,
        hints: &["</seed:think>"],
    },
    // Kimi-VL.
    ReasoningFormat {
        name: "kimi", open: "◁think▷", close: "◁/think▷", around_answer: None, hints: &["◁/think▷"]
    },
    // Granite 3.3.
    ReasoningFormat {
        name: "granite",
        open: "<think>",
        close: "</think>",
        around_answer: Some(("<response>", "</response>")),
        hints: &["</think>", "<response>"],
    },
    // Hunyuan.
    ReasoningFormat {
        name: "hunyuan",
        open: "<think>",
        close: "</think>",
        around_answer: Some(("<answer>", "</answer>")),
        hints: &["</think>", "<answer>"],
    },
    // DeepSeek-R1 and its distilled models, Qwen3, QwQ, SmolLM3, GLM-4.5, ERNIE-4.5 Thinking, Phi-4 reasoning, Nemotron.
    ReasoningFormat { name: "think", open: "<think>", close: "</think>", around_answer: None, hints: &["</think>"] },
];

/// Where an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasoningStart {
    /// The model decides whether it reasons.
    Undecided,
    /// Within the reasoning: the prompt has the opening mark.
    Open,
    /// After the reasoning: the prompt has the closing mark, or none is wanted.
    Closed,
}

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
        FORMATS.iter().find(|format| format.hints.iter().all(|hint| template.mentions(hint))).copied()
    }

    /// The marks, or the special tokens of which they consist.
    pub fn marks(&self) -> Vec<&'static str> {
        match self.has_channels() {
            true => vec![channels::CHANNEL, channels::MESSAGE, channels::END, channels::START, channels::CALL],
            false => {
                let around = self.around_answer.into_iter().flat_map(|(before, after)| [before, after]);
                // Gemma's opening mark is a token and a word.
                let open = self.open.strip_suffix("thought").unwrap_or(self.open);
                [open, self.close].into_iter().chain(around).collect()
            }
        }
    }

    /// Whether reasoning, text and calls are messages in channels.
    fn has_channels(&self) -> bool {
        self.name == "channel"
    }

    /// Where an answer to this prompt begins. `messages` gives the prompt without what it has of the answer, if it can; it is
    /// asked only where that can matter.
    pub fn start_of_answer(&self, prompt: &str, messages: impl FnOnce() -> Option<String>) -> ReasoningStart {
        if !self.has_channels() && !prompt.contains(self.open) && !prompt.contains(self.close) {
            return ReasoningStart::Undecided;
        }
        let messages = messages();
        let begun = messages.as_deref().and_then(|messages| prompt.strip_prefix(messages));
        let at_end = || [self.open, self.close].into_iter().find(|mark| prompt.trim_end().ends_with(mark));
        let begun = begun.or_else(at_end);
        self.start_after(begun.unwrap_or_default())
    }

    /// Where an answer begins that continues this text, which is what a prompt has of the model's turn.
    pub fn start_after(&self, begun: &str) -> ReasoningStart {
        if self.has_channels() {
            return channels::start_after(begun);
        }
        match (begun.rfind(self.open), begun.rfind(self.close)) {
            (None, None) => ReasoningStart::Undecided,
            (open, close) if open > close => ReasoningStart::Open,
            _ => ReasoningStart::Closed,
        }
    }
}

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

/// Splits a streamed answer into reasoning and the answer itself.
#[derive(Debug, Clone)]
pub struct ReasoningSplitter(Splitter);

#[derive(Debug, Clone)]
enum Splitter {
    Marks(MarkSplitter),
    Channels(ChannelSplitter),
}

impl ReasoningSplitter {
    /// A splitter for an answer.
    pub fn new(format: ReasoningFormat, start: ReasoningStart) -> Self {
        Self(match format.has_channels() {
            true => Splitter::Channels(ChannelSplitter::new(start)),
            false => Splitter::Marks(MarkSplitter::new(format, start == ReasoningStart::Open)),
        })
    }

    /// Whether the next text is certainly part of the reasoning, as long as no closing mark comes.
    pub fn is_in_reasoning(&self) -> bool {
        match &self.0 {
            Splitter::Marks(marks) => marks.is_in_reasoning(),
            Splitter::Channels(channels) => channels.is_in_reasoning(),
        }
    }

    /// Whether reasoning may begin with the next text.
    pub fn is_undecided(&self) -> bool {
        match &self.0 {
            Splitter::Marks(marks) => marks.is_undecided(),
            Splitter::Channels(channels) => channels.is_undecided(),
        }
    }

    /// How many bytes of the closing mark the text ends with.
    fn begun_close(&self) -> usize {
        match &self.0 {
            Splitter::Marks(marks) => marks.begun_close(),
            // The marks there are tokens of their own.
            Splitter::Channels(_) => 0,
        }
    }

    /// Takes the next text and returns what is certain now.
    pub fn push(&mut self, text: &str) -> SplitText {
        match &mut self.0 {
            Splitter::Marks(marks) => marks.push(text),
            Splitter::Channels(channels) => channels.push(text),
        }
    }

    /// Ends the text: returns what was held back. Reasoning without a closing mark stays reasoning.
    pub fn finish(&mut self) -> SplitText {
        match &mut self.0 {
            Splitter::Marks(marks) => marks.finish(),
            Splitter::Channels(channels) => channels.finish(),
        }
    }
}

/// Reasoning and answer of a text that comes in pieces.
#[cfg(test)]
fn split_pieces(name: &str, start: ReasoningStart, pieces: &[&str]) -> (String, String) {
    let format = ReasoningFormat::named(name).expect("it is known");
    let mut splitter = ReasoningSplitter::new(format, start);
    let mut whole = SplitText::default();
    pieces.iter().for_each(|piece| whole.append(splitter.push(piece)));
    whole.append(splitter.finish());
    (whole.reasoning, whole.answer)
}

#[cfg(test)]
fn parts(reasoning: &str, answer: &str) -> (String, String) {
    (reasoning.into(), answer.into())
}
