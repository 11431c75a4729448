//! Reasoning between two marks.

use super::{ReasoningFormat, SplitText};
use crate::text::overlap;

/// Most bytes that are held back: much white space is text, and to hold it back would take time.
pub(super) const MOST_HELD: usize = 1024;

/// Splits at the marks of a format. Only reasoning that comes first counts: marks later in an answer are part of its text.
#[derive(Debug, Clone)]
pub(super) struct MarkSplitter {
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
    /// Before the first text of the reasoning.
    Begun,
    Reasoning,
    /// In white space after the closing mark.
    Closed,
    /// Before the mark that some models write before their answer.
    BeforeAnswer,
    /// In white space after that mark.
    AnswerOpened,
    /// Before the mark that some models write after their answer.
    MarkedAnswer,
    /// In white space after that mark.
    AnswerClosed,
    Answer,
}

impl MarkSplitter {
    /// A splitter for an answer; `is_open` says that the prompt has the opening mark.
    pub(super) fn new(format: ReasoningFormat, is_open: bool) -> Self {
        Self { format, place: if is_open { Place::Opened } else { Place::Start }, held: String::new() }
    }

    pub(super) fn is_in_reasoning(&self) -> bool {
        matches!(self.place, Place::Opened | Place::Begun | Place::Reasoning)
    }

    pub(super) fn is_undecided(&self) -> bool {
        self.place == Place::Start
    }

    pub(super) fn begun_close(&self) -> usize {
        if self.is_in_reasoning() { overlap(&self.held, self.format.close) } else { 0 }
    }

    pub(super) fn push(&mut self, text: &str) -> SplitText {
        self.held += text;
        let mut split = SplitText::default();
        while self.advance(&mut split) {}
        split
    }

    pub(super) fn finish(&mut self) -> SplitText {
        let rest = std::mem::take(&mut self.held);
        match self.is_in_reasoning() {
            true => SplitText { reasoning: rest.trim_end().to_owned(), ..SplitText::default() },
            false => SplitText { answer: rest, ..SplitText::default() },
        }
    }

    /// Reads one part of the held text. Returns whether there may be more to read.
    fn advance(&mut self, split: &mut SplitText) -> bool {
        match self.place {
            Place::Start => self.read_mark(self.format.open, Place::Opened),
            Place::Opened => self.skip_white_space(Place::Begun),
            // Some models write the mark that the prompt has once more.
            Place::Begun => {
                if let Some(rest) = self.held.strip_prefix(self.format.open) {
                    self.held = rest.to_owned();
                    return self.go_to(Place::Opened);
                }
                !self.format.open.starts_with(&self.held) && self.go_to(Place::Reasoning)
            }
            Place::Reasoning => self.read_until(self.format.close, Place::Closed, &mut split.reasoning),
            Place::Closed => self.skip_white_space(Place::BeforeAnswer),
            Place::BeforeAnswer => match self.format.around_answer {
                Some((mark, _)) => self.read_mark(mark, Place::AnswerOpened),
                None => self.go_to(Place::Answer),
            },
            Place::AnswerOpened => self.skip_white_space(Place::MarkedAnswer),
            Place::MarkedAnswer => match self.format.around_answer {
                Some((_, mark)) => self.read_until(mark, Place::AnswerClosed, &mut split.answer),
                None => self.go_to(Place::Answer),
            },
            Place::AnswerClosed => self.skip_white_space(Place::Answer),
            Place::Answer => {
                split.answer += &std::mem::take(&mut self.held);
                false
            }
        }
    }

    fn go_to(&mut self, place: Place) -> bool {
        self.place = place;
        true
    }

    /// Reads a mark, if the text begins with it; then comes `after`, and the answer otherwise.
    fn read_mark(&mut self, mark: &str, after: Place) -> bool {
        let begun = self.held.trim_start();
        if let Some(rest) = begun.strip_prefix(mark) {
            self.held = rest.to_owned();
            self.go_to(after)
        } else if mark.starts_with(begun) && self.held.len() < MOST_HELD {
            false
        } else {
            self.go_to(Place::Answer)
        }
    }

    fn skip_white_space(&mut self, next: Place) -> bool {
        self.held = self.held.trim_start().to_owned();
        let has_text = !self.held.is_empty();
        if has_text {
            self.place = next;
        }
        has_text
    }

    /// Reads text into `read`, up to a mark after which `after` comes.
    fn read_until(&mut self, mark: &str, after: Place, read: &mut String) -> bool {
        if let Some(at) = self.held.find(mark) {
            *read += self.held[..at].trim_end();
            self.held = self.held[at + mark.len()..].to_owned();
            return self.go_to(after);
        }
        // White space at the end is left out if the mark comes next.
        let may_be_mark = self.held.len() - overlap(&self.held, mark);
        let without_space = self.held[..may_be_mark].trim_end().len();
        let decided = if self.held.len() - without_space < MOST_HELD { without_space } else { may_be_mark };
        let rest = self.held.split_off(decided);
        *read += &std::mem::replace(&mut self.held, rest);
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{ReasoningStart, parts, split_pieces};
    use super::*;

    fn format(name: &str) -> ReasoningFormat {
        ReasoningFormat::named(name).expect("it is known")
    }

    fn split(is_open: bool, chunks: &[&str]) -> (String, String) {
        split_as("think", is_open, chunks)
    }

    fn split_as(name: &str, is_open: bool, pieces: &[&str]) -> (String, String) {
        let start = if is_open { ReasoningStart::Open } else { ReasoningStart::Undecided };
        split_pieces(name, start, pieces)
    }

    #[test]
    fn reasoning_ends_at_its_mark_and_the_rest_is_the_answer() {
        assert_eq!(split(false, &["<think>\nHm.\n</think>\n\nYes. <think>"]), parts("Hm.", "Yes. <think>"));
        assert_eq!(split(false, &["\n<thi", "nk>a </thin", "g> b</th", "ink>c"]), parts("a </thing> b", "c"));
        assert_eq!(split(true, &["a", " \n", "b\n", "</think>"]), parts("a \nb", ""));
        assert_eq!(split(true, &["cut <", "/think"]), parts("cut </think", ""));
        assert_eq!(split(true, &["</think>x"]), parts("", "x"));
        assert_eq!(split(true, &["\n<thi", "nk>\nHm</think>x"]), parts("Hm", "x"));
        assert_eq!(split(true, &["<thing"]), parts("<thing", ""));
    }

    #[test]
    fn marks_around_the_answer_are_left_out() {
        for (name, mark) in [("granite", "response"), ("hunyuan", "answer")] {
            let text = format!("<think>a</think>\n<{mark}>\nb </x> c\n</{mark}>\n");
            assert_eq!(split_as(name, false, &[&text]), parts("a", "b </x> c"));
            assert_eq!(split_as(name, false, &["<think>a</think>b</", "c"]), parts("a", "b</c"));
        }
    }

    #[test]
    fn much_white_space_is_not_held_back() {
        let space = " ".repeat(5000);
        for is_open in [false, true] {
            let mut splitter = MarkSplitter::new(format("think"), is_open);
            splitter.push(if is_open { "x" } else { "" });
            let passed = splitter.push(&space);
            assert!(passed.reasoning.len() + passed.answer.len() > 3000, "{is_open}");
        }
    }

    #[test]
    fn an_answer_without_reasoning_is_passed_on_at_once() {
        let mut splitter = MarkSplitter::new(format("think"), false);
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
