//! How model families write what an answer consists of: reasoning, text and tool calls.

mod reasoning;
mod tool_calls;

pub use self::reasoning::{ReasoningFormat, ReasoningLimits, ReasoningSplitter, ReasoningStart, SplitText};
pub use self::tool_calls::{AnswerPart, OfferedTool, ToolCallFormat, ToolCallParser};

use crate::Result;
use crate::text::{StreamDecoder, Tokenizer};

/// How the tokens of an answer become text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerFormat {
    /// How reasoning is told from the answer. `None` leaves it in the text.
    pub reasoning: Option<Reasoning>,
    /// Which special tokens are written out.
    pub special_tokens: ShownTokens,
}

/// The reasoning of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reasoning {
    /// How it is marked.
    pub format: ReasoningFormat,
    /// Where the answer begins.
    pub start: ReasoningStart,
    /// Whether the model was asked not to reason.
    pub is_off: bool,
}

/// Which special tokens, which have no text of their own, are written out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ShownTokens {
    /// None.
    #[default]
    None,
    /// Those with these spellings, which mark the parts of an answer.
    Marks(Vec<String>),
    /// All but those that end an answer.
    All,
}

impl ShownTokens {
    /// Gives a decoder the next token, and returns the text that can no longer change.
    pub(crate) fn decode(&self, decoder: &mut StreamDecoder, id: u32, tokenizer: &Tokenizer) -> Result<String> {
        if *self != Self::None
            && tokenizer.is_special(id)
            && let Some(spelling) = tokenizer.id_to_token(id).filter(|spelling| self.includes(spelling))
        {
            return Ok(decoder.finish(tokenizer)? + &spelling);
        }
        decoder.push(id, tokenizer)
    }

    /// Whether a special token with this spelling is written out.
    fn includes(&self, spelling: &str) -> bool {
        match self {
            Self::None => false,
            Self::Marks(marks) => marks.iter().any(|mark| mark == spelling),
            Self::All => true,
        }
    }
}
