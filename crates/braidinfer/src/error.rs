//! What can go wrong, in the kinds that faces tell apart.

use std::io;

use braidinfer_model::ModelError;

use crate::Advice;

/// A failure of the library.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model's files.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A name that is no path, of a model that cannot be had from the Hub.
    #[cfg(feature = "hub")]
    #[error("{name}: no such file or directory, so taken for a model of the Hub: {source}")]
    Hub {
        /// What the model was called.
        name: String,
        /// Why it cannot be had.
        source: Box<braidinfer_hub::HubError>,
    },
    /// A tokenizer or chat template that cannot be read or used.
    #[error("{path}: {message}")]
    Text {
        /// File.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// A file that cannot be written.
    #[error("{path}: {source}")]
    File {
        /// File.
        path: String,
        /// The system's own reason.
        source: io::Error,
    },
    /// A file that would have to be overwritten.
    #[error("{path}: expected no file of this name, found one")]
    AlreadyThere {
        /// File.
        path: String,
    },
    /// Whoever asked for the work broke it off.
    #[error("cancelled; nothing was written")]
    Cancelled,
    /// A setting or input outside its range. The field has its neutral name, in snake_case: `top_p` is `--top-p` on a
    /// command line.
    #[error("{field}: expected {expected}, found {found}")]
    BadRequest {
        /// Setting or input.
        field: String,
        /// What would be right.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The prompt does not fit.
    #[error(
        "the prompt has {prompt} tokens, but the context holds {context}: nothing was cut; shorten it or raise the context"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens the context holds.
        context: usize,
    },
    /// The text does not fill one context.
    #[error("text: expected at least one context of {context} tokens, found {tokens} tokens")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of one context.
        context: usize,
    },
    /// Too much is asked at once.
    #[error("{waiting} answers are waiting already, and no more may; try again later")]
    QueueFull {
        /// Answers that wait.
        waiting: usize,
    },
    /// Fused kernels were asked for, and a check forbids them.
    #[error("{model}: fused kernels are {status} with this model: {reason}")]
    FusedForbidden {
        /// Where the model came from.
        model: String,
        /// The verdict.
        status: &'static str,
        /// Why.
        reason: String,
    },
    /// Not possible with this model, device or build.
    #[error("{0}")]
    Unsupported(String),
    /// A fault of this library's own bookkeeping.
    #[error("internal error, please report it: {0}")]
    Internal(String),
    /// A logit, or a value of a hidden state, that is not a number or not finite.
    #[error("step {step}: what was computed for sequence {sequence} is not finite (row index {index}: {value})")]
    NotFinite {
        /// Engine step.
        step: usize,
        /// Sequence number.
        sequence: usize,
        /// Place of the first such value in its row: the token id, of a logit.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// The tensor library.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// What can be done about it, where that takes a setting. It is no part of the message, so that each face can word it.
    pub fn advice(&self) -> Option<Advice> {
        match self {
            Self::AlreadyThere { .. } => Some(Advice::from("it can be overwritten with ").then_set("force", "true")),
            Self::FusedForbidden { .. } => {
                Some(Advice::from("use ").then_set("kernels", "auto").then(", or ").then_set("force", "true"))
            }
            Self::TextTooShort { .. } => Some(Advice::from("see ").then_name("context")),
            _ => None,
        }
    }

    /// Makes an [`Error::Hub`] about the model that is called `name`.
    #[cfg(feature = "hub")]
    pub(crate) fn hub(name: impl ToString) -> impl FnOnce(braidinfer_hub::HubError) -> Self {
        move |error| Self::Hub { name: name.to_string(), source: Box::new(error) }
    }

    /// A [`Error::BadRequest`].
    pub fn bad_request(field: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::BadRequest { field: field.into(), expected: expected.into(), found: found.to_string() }
    }
}
