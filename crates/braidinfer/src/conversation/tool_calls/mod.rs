//! Tool calls in answers: how model families write them, and a parser that finds them in streamed text.

mod format;
mod json_call;
mod named_call;
mod parser;
mod unquoted_json;

use serde_json::Value;

pub use self::format::ToolCallFormat;
pub use self::parser::ToolCallParser;

/// A tool that an answer may call.
#[derive(Debug, Clone, PartialEq)]
pub struct OfferedTool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments.
    pub parameters: Value,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerPart {
    /// Text of the answer.
    Text(String),
    /// A tool call begins; its arguments follow.
    Call {
        /// The name of the tool.
        name: String,
    },
    /// The next piece of the arguments of the call that has begun, which is a JSON object in the end.
    Arguments(String),
    /// The call is complete.
    CallEnd,
    /// What had begun as a call is none. The text is all that was written of it, marks included.
    NoCall(String),
}

/// Reads one call.
trait CallReader: std::fmt::Debug + Send {
    /// Takes the next character, and adds what is certain now to `parts`.
    fn push(&mut self, next: char, parts: &mut Vec<AnswerPart>) -> Reading;

    /// Ends the text within the call.
    fn finish(&mut self, parts: &mut Vec<AnswerPart>) -> Reading;
}

/// How far a call is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// More text belongs to it.
    More,
    /// It ended with this character.
    Done,
    /// It is no call.
    Broken,
}
