//! Prints answers while they are generated.

use std::io::{self, IsTerminal};

use braidinfer::StreamEvent;

use crate::output;

/// What people are told of an answer that is not whole.
pub const CUT: &str = "the answer was cut at the token limit; see --max-tokens and --context";

/// Prints the text of an answer. The reasoning before it is dimmed, or marked where there are no colours; where no person reads,
/// it is left out.
#[derive(Debug, Default)]
pub struct AnswerPrinter {
    is_reasoning: bool,
    /// Tokens with reasoning that was left out.
    hidden: usize,
    /// Whether reasoning is one line that says how long it is, where a line can be written again.
    folds: bool,
    /// Tokens of it.
    folded: usize,
}

impl AnswerPrinter {
    /// One that shows only how long the reasoning is.
    pub fn folding() -> Self {
        Self { folds: true, ..Self::default() }
    }

    pub fn print(&mut self, event: &StreamEvent) -> anyhow::Result<()> {
        if !event.reasoning.is_empty() && !io::stdout().is_terminal() {
            self.hidden += 1;
        } else if !event.reasoning.is_empty() && self.folds && output::can_rewrite() {
            (self.is_reasoning, self.folded) = (true, self.folded + 1);
            output::rewrite_dim(&format!("thinking: {}", output::counted(self.folded, "token")))?;
        } else if !event.reasoning.is_empty() {
            if !std::mem::replace(&mut self.is_reasoning, true) {
                output::print_dim("thinking: ")?;
            }
            output::print_dim(event.reasoning)?;
        }
        if !event.text.is_empty() && std::mem::take(&mut self.is_reasoning) {
            if self.folded > 0 {
                let tokens = output::counted(self.folded, "token");
                output::rewrite_dim(&format!("thought for {tokens}; /thinking shows it"))?;
            }
            output::print("\n\n")?;
        }
        if event.text.is_empty() { Ok(()) } else { output::print(event.text) }
    }

    /// Says that reasoning was left out, if it was.
    pub fn note_hidden(&self) {
        if self.hidden > 0 {
            let tokens = output::counted(self.hidden, "token");
            output::note(format!("the model reasoned for about {tokens}, which is not part of the answer"));
        }
    }
}
