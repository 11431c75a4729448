//! Reads the tool calls out of the text of answers.

use braidinfer::conversation::{AnswerPart, ToolCallParser};
use braidinfer::engine::FinishReason;

use super::tools::new_call_id;
use crate::api::answers::Choice;

/// Reads the answers to one chat.
pub struct AnswerReader {
    /// The parser of each choice, if it may call tools.
    parsers: Vec<Option<ToolCallParser>>,
    /// Complete calls of each choice so far.
    complete: Vec<usize>,
    /// Whether an answer must be a call, so that text can only be the beginning of one that was cut.
    is_call_forced: bool,
}

/// A tool call of a whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub id: String,
    pub name: String,
    /// JSON.
    pub arguments: String,
}

/// The text of a whole answer, and the calls in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WholeAnswer {
    pub content: String,
    pub calls: Vec<Call>,
}

impl AnswerReader {
    pub fn new(parsers: Vec<Option<ToolCallParser>>, is_call_forced: bool) -> Self {
        Self { complete: vec![0; parsers.len()], parsers, is_call_forced }
    }

    /// Number of choices.
    pub fn choices(&self) -> usize {
        self.parsers.len()
    }

    /// The parts in the next text of a choice; at its `end` also those in the text that was held back.
    pub fn read(&mut self, choice: usize, text: &str, end: Option<FinishReason>) -> Vec<AnswerPart> {
        let Some(parser) = &mut self.parsers[choice] else {
            return if text.is_empty() { Vec::new() } else { vec![AnswerPart::Text(text.to_owned())] };
        };
        let mut parts = parser.push(text);
        let mut last = if end.is_some() { parser.finish() } else { Vec::new() };
        if end == Some(FinishReason::Length) {
            // A call that the limit of tokens cuts stays one, as far as it goes.
            last.retain(|part| !matches!(part, AnswerPart::NoCall(_)));
        }
        parts.extend(last);
        // Where a call must come, there is no text, but only calls that were cut.
        if end == Some(FinishReason::Length) && self.is_call_forced {
            parts.retain(|part| !matches!(part, AnswerPart::Text(_) | AnswerPart::NoCall(_)));
        }
        self.complete[choice] += parts.iter().filter(|part| matches!(part, AnswerPart::CallEnd)).count();
        parts
    }

    /// Whether a choice that ends for this reason ends with calls.
    pub fn ends_with_calls(&self, choice: usize, reason: FinishReason) -> bool {
        self.complete[choice] > 0 && reason == FinishReason::Stop
    }

    /// Reads a whole answer.
    pub fn whole(&mut self, choice: usize, answer: &Choice) -> WholeAnswer {
        let mut whole = WholeAnswer::default();
        for part in self.read(choice, &answer.text, answer.finish_reason.or(Some(FinishReason::Stop))) {
            match part {
                AnswerPart::Text(text) => whole.content += &text,
                AnswerPart::Call { name } => {
                    whole.calls.push(Call { id: new_call_id(), name, arguments: String::new() });
                }
                AnswerPart::Arguments(more) => {
                    whole.calls.iter_mut().last().into_iter().for_each(|call| call.arguments += &more)
                }
                AnswerPart::CallEnd => {}
                AnswerPart::NoCall(text) => {
                    whole.calls.pop();
                    whole.content += &text;
                }
            }
        }
        whole
    }
}
