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
}

impl AnswerPrinter {
    pub fn print(&mut self, event: &StreamEvent) -> anyhow::Result<()> {
        if !event.reasoning.is_empty() && !io::stdout().is_terminal() {
            self.hidden += 1;
        } else if !event.reasoning.is_empty() {
            if !std::mem::replace(&mut self.is_reasoning, true) {
                output::print_dim("thinking: ")?;
            }
            output::print_dim(event.reasoning)?;
        }
        if !event.text.is_empty() && std::mem::take(&mut self.is_reasoning) {
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
